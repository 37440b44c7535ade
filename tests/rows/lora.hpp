#pragma once
// The row of LoRA.

#include <cmath>

#include "deltaw/adapters/lora.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct LoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::Lora<P, B, Act>;
  static constexpr const char* header = "lora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"rsLoRA with bias", {.rank = 4, .alpha = 3, .rslora = true, .bias = true}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// Y = X W^T + b + s (D(X) A^T B^T + b').
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const auto rank = static_cast<double>(o.rank);
    const double s = o.rslora ? o.alpha / std::sqrt(rank) : o.alpha / rank;
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    const Matrix z = times_transposed(xd, in.parameters.at("lora_A.weight"));
    Matrix y = plus(times_transposed(in.x, in.w), in.bias);
    y = plus(y, times_transposed(z, in.parameters.at("lora_B.weight")), s);
    return o.bias ? plus(y, in.parameters.at("lora_B.bias"), s) : y;
  }
  /// Without dropout and bias, all in type P.
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    return {.flops = 2 * tokens * r * (in + out),
            .bytes = sizeof(P) * (tokens * in + r * in + tokens * r + tokens * r + out * r + 2 * tokens * out),
            .launches = 2};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    const double db = tokens * out + tokens * r + 2 * out * r, h = tokens * out + out * r + tokens * r;
    const double dx = tokens * r + r * in + 2 * tokens * in, da = tokens * r + tokens * in + 2 * r * in;
    return {.flops = 4 * tokens * r * (in + out),
            .bytes = sizeof(P) * (db + h + dx + da),
            .launches = 4,
            .temporary_bytes = sizeof(P) * tokens * r};
  }
};

}  // namespace deltaw_tests
