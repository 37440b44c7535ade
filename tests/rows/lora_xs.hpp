#pragma once
// The row of LoRA-XS.

#include "deltaw/adapters/lora_xs.hpp"
#include "rows/core.hpp"

namespace deltaw_tests {

struct LoraXsRow {
  template <class P, class B, class Act = P>
  using Method = dw::LoraXs<P, B, Act>;
  static constexpr const char* header = "lora_xs.hpp";
  static constexpr bool identity_at_init = false;  // R ~ N(0, 1e-5^2)
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    return core_oracle(in, "default_lora_latent_mapping.weight", o.alpha / static_cast<double>(o.rank), o.dropout,
                       o.seed, o.layer);
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    return core_forward_cost<P>(tokens, in, out, static_cast<double>(o.rank));
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    return core_backward_cost<P>(tokens, in, out, static_cast<double>(o.rank), false);
  }
};

}  // namespace deltaw_tests
