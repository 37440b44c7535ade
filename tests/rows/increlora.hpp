#pragma once
// The row of IncreLoRA.

#include <algorithm>

#include "deltaw/adapters/increlora.hpp"
#include "rows/gated.hpp"

namespace deltaw_tests {

struct IncreLoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::IncreLora<P, B, Act>;
  static constexpr const char* header = "increlora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"without reserve", {.rank = 4, .init_rank = 3, .target_rank = 3, .alpha = 6, .advance_learn = false}},
            {"dropout",
             {.rank = 3, .init_rank = 2, .alpha = 5, .advance_learn = false, .dropout = 0.3, .seed = 11, .layer = 4}},
            // e of the ranks trained ahead is fixed, at 1e-5
            {"with reserve", {.rank = 4, .init_rank = 2, .target_rank = 2, .alpha = 6}, {"lora_E"}, true}};
  }
  /// Y = X W^T + b + s ((D(X) A^T) o E^T) B^T over the ranks that take part, s = alpha / (ranks grown + 1e-5).
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const dw::index_t ahead = o.advance_learn ? std::max<dw::index_t>(1, o.target_rank / 2) : 0;
    Matrix e = in.parameters.at("lora_E");
    for (dw::index_t k = o.init_rank; k < o.rank; ++k) {
      if (!in.held.empty()) e(0, k) = in.held.at("lora_E")(0, k);
      if (k >= o.init_rank + ahead) e(0, k) = 0;
    }
    return gated_oracle(in, dropped_input(in, o.dropout, o.seed, o.layer),
                        o.alpha / (static_cast<double>(o.init_rank) + 1e-5), in.parameters.at("lora_A"),
                        in.parameters.at("lora_B"), e);
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    return gated_forward_cost<P>(tokens, in, out, static_cast<double>(o.init_rank));
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    return gated_backward_cost<P>(tokens, in, out, static_cast<double>(o.init_rank));
  }
};

}  // namespace deltaw_tests
