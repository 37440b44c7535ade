#pragma once
// The row of LoRA-SB.

#include "deltaw/adapters/lora_sb.hpp"
#include "rows/core.hpp"

namespace deltaw_tests {

struct LoraSbRow {
  template <class P, class B, class Act = P>
  using Method = dw::LoraSb<P, B, Act>;
  static constexpr const char* header = "lora_sb.hpp";
  static constexpr bool identity_at_init = false;  // R ~ N(0, 1e-5^2)
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    const char* core = "default_lora_latent_mapping.weight";
    return {{"plain", {.rank = 3, .scale = 1.75}, {core}},
            {"plain gradient", {.rank = 3, .scale = 0.5, .optimal_gradient = false}},
            {"dropout",  // what follows the sum over tokens knows nothing of it: tests/methods/lora_sb_test.cpp
             {.rank = 2, .scale = 1.5, .optimal_gradient = false, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// The gradient H = K_B dR K_A / s^2, K_B = (B^T B)^-1 and K_A = (A A^T)^-1, is the true one of a function whose core is
  /// R0 + K_B (R - R0) K_A / s^2, at R = R0.
  template <class Options>
  static Matrix oracle(OracleInput in, const Options& o) {
    const char* core = "default_lora_latent_mapping.weight";
    if (in.held.contains(core)) {
      const Matrix a = in.parameters.at("lora_A.weight"), b = transposed(in.parameters.at("lora_B.weight"));
      const Matrix &held = in.held.at(core), moved = plus(in.parameters.at(core), held, -1);
      const Matrix step = times(times(inverse(times_transposed(b, b)), moved), inverse(times_transposed(a, a)));
      in.parameters.at(core) = plus(held, step, 1 / (o.scale * o.scale));
    }
    return core_oracle(in, core, o.scale, o.dropout, o.seed, o.layer);
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
