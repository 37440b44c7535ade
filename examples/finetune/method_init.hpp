#pragma once
// The initial values that each method's paper has: from the singular vectors of the base's weight where it asks for them.

#include "deltaw/backend/cpu_solver.hpp"
#include "deltaw/init/kaiming.hpp"
#include "deltaw/init/kasa.hpp"
#include "deltaw/init/spectral.hpp"

namespace finetune {

namespace dw = deltaw;

struct MethodInit {
  std::uint64_t seed = 0;

  template <class A, class Base>
  dw::BaseChange<typename A::Scalar, typename A::Space> operator()(typename A::Context& ctx, A& adapter,
                                                                   const Base& base) const {
    const std::string_view method = adapter.method_name();
    if (method == "kasa") return dw::init::Kasa{seed}(ctx, adapter, base);
    if (method == "lamda") return dw::init::SpectralResidual{}(ctx, adapter, base);
    if (method == "lora_xs" || method == "lora_sb")
      dw::init::Spectral{seed}(ctx, adapter, base);
    else
      dw::init::Kaiming{seed}(ctx, adapter, base);
    return {};
  }
};

}  // namespace finetune
