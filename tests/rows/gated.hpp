#pragma once
// What rows of methods with one gate a rank share: the oracle of Y += s (Z o g) B^T, and what it costs.

#include "rows/row.hpp"

namespace deltaw_tests {

/// Y = X W^T + b + s ((D(X) A^T) o g) B^T.
inline Matrix gated_oracle(const OracleInput& in, const Matrix& xd, double s, const Matrix& a, const Matrix& b,
                           const Matrix& g) {
  const Matrix y = plus(times_transposed(in.x, in.w), in.bias);
  return plus(y, times_transposed(scale_columns(times_transposed(xd, a), g), b), s);
}

/// LoRA's two products and the gate between them; without dropout, all in type P.
template <class P>
Cost gated_forward_cost(double tokens, double in, double out, double r) {
  const double z = tokens * r, v = 3 * z + r;
  return {.flops = 2 * z * (in + out) + z,
          .bytes = sizeof(P) * (tokens * in + r * in + z + v + z + out * r + 2 * tokens * out),
          .launches = 3,
          .temporary_bytes = sizeof(P) * z};
}
template <class P>
Cost gated_backward_cost(double tokens, double in, double out, double r) {
  const double z = tokens * r, v = 3 * z + r;
  const double db = v + tokens * out + z + 2 * out * r, dv = tokens * out + out * r + z, dg = 2 * z + 2 * r;
  const double dx = z + r * in + 2 * tokens * in, da = z + tokens * in + 2 * r * in;
  return {.flops = 4 * z * (in + out) + 4 * z,
          .bytes = sizeof(P) * (db + dv + dg + v + dx + da),
          .launches = 7,
          .temporary_bytes = sizeof(P) * 3 * z};
}

/// All of a row but its names and what holds at the start. `Row::gate` is the name of the gate's parameter.
template <class Row>
struct GatedRow {
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    return gated_oracle(in, dropped_input(in, o.dropout, o.seed, o.layer), o.alpha / static_cast<double>(o.rank),
                        in.parameters.at("lora_A.weight"), in.parameters.at("lora_B.weight"),
                        in.parameters.at(Row::gate));
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    return gated_forward_cost<P>(tokens, in, out, static_cast<double>(o.rank));
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    return gated_backward_cost<P>(tokens, in, out, static_cast<double>(o.rank));
  }
};

}  // namespace deltaw_tests
