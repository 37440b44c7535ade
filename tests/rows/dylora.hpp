#pragma once
// The row of DyLoRA, which between its steps is a LoRA of all its ranks.

#include "deltaw/adapters/dylora.hpp"
#include "rows/lora.hpp"

namespace deltaw_tests {

struct DyLoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::DyLora<P, B, Act>;
  static constexpr const char* header = "dylora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"dropout", {.rank = 2, .alpha = 5, .frozen = false, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix z = times_transposed(dropped_input(in, o.dropout, o.seed, o.layer), in.parameters.at("lora_A.weight"));
    return plus(plus(times_transposed(in.x, in.w), in.bias), times_transposed(z, in.parameters.at("lora_B.weight")),
                o.alpha / static_cast<double>(o.rank));
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    return LoraRow::forward_cost<P>(tokens, in, out, PlainOptions{o.rank});
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    return LoraRow::backward_cost<P>(tokens, in, out, PlainOptions{o.rank});
  }

 private:
  struct PlainOptions {
    dw::index_t rank;
  };
};

}  // namespace deltaw_tests
