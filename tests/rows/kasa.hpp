#pragma once
// The row of KaSA. What init::Kasa does to the base and the penalties are in tests/methods/kasa_test.cpp.

#include "deltaw/adapters/kasa.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct KasaRow {
  template <class P, class B, class Act = P>
  using Method = dw::Kasa<P, B, Act>;
  static constexpr const char* header = "kasa.hpp";
  static constexpr bool identity_at_init = true;  // of the base as it is then
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// Y = X W^T + b + s ((D(X) A^T) o d) B^T.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix z = times_transposed(dropped_input(in, o.dropout, o.seed, o.layer), in.parameters.at("lora_A.weight"));
    const Matrix v = scale_columns(z, in.parameters.at("lora_diag"), o.alpha / static_cast<double>(o.rank));
    return plus(plus(times_transposed(in.x, in.w), in.bias), times_transposed(v, in.parameters.at("lora_B.weight")));
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    return {.flops = 2 * tokens * r * (in + out) + tokens * r,
            .bytes = sizeof(P) *
                     (tokens * in + r * in + tokens * r + 3 * tokens * r + r + tokens * r + out * r + 2 * tokens * out),
            .launches = 3,
            .temporary_bytes = sizeof(P) * tokens * r};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    const double v = 3 * tokens * r + r, db = tokens * out + tokens * r + 2 * out * r;
    const double dv = tokens * out + out * r + tokens * r, dd = 2 * tokens * r + 2 * r, h = 3 * tokens * r + r;
    const double dx = tokens * r + r * in + 2 * tokens * in, da = tokens * r + tokens * in + 2 * r * in;
    return {.flops = 4 * tokens * r * (in + out) + 4 * tokens * r,
            .bytes = sizeof(P) * (v + db + dv + dd + h + dx + da),
            .launches = 7,
            .temporary_bytes = sizeof(P) * 3 * tokens * r};
  }
};

}  // namespace deltaw_tests
