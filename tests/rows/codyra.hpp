#pragma once
// The row of CoDyRA.

#include "deltaw/adapters/codyra.hpp"
#include "rows/gated.hpp"

namespace deltaw_tests {

struct CoDyRARow {
  template <class P, class B, class Act = P>
  using Method = dw::CoDyRA<P, B, Act>;
  static constexpr const char* header = "codyra.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// Y = X W^T + b + s ((D(X) A^T) o g) B^T.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    return gated_oracle(in, dropped_input(in, o.dropout, o.seed, o.layer), o.alpha / static_cast<double>(o.rank),
                        in.parameters.at("lora_A.weight"), in.parameters.at("lora_B.weight"), in.parameters.at("gate"));
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
