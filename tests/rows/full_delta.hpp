#pragma once
// The row of full fine-tuning.

#include "deltaw/adapters/full_delta.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct FullDeltaRow {
  template <class P, class B, class Act = P>
  using Method = dw::FullDelta<P, B, Act>;
  static constexpr const char* header = "full_delta.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = false;  // the weight it trains is the base's own

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"with bias", {.bias = true}}, {"weight only", {.bias = false}}};
  }
  /// Y = X W^T + b, with W and b trained where they lie.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options&) {
    const auto bias = in.parameters.find("bias");
    return plus(times_transposed(in.x, in.parameters.at("weight")),
                bias == in.parameters.end() ? in.bias : bias->second);
  }
  template <class P, class Options>
  static Cost forward_cost(double, double, double, const Options&) {
    return {};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const double bias = o.bias ? 1 : 0;
    return {.flops = 2 * tokens * in * out + bias * tokens * out,
            .bytes = sizeof(P) * (tokens * out + tokens * in + 2 * in * out + bias * (tokens * out + 2 * out)),
            .launches = o.bias ? 2 : 1};
  }
};

}  // namespace deltaw_tests
