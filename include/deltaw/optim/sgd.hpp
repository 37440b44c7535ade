#pragma once
// SGD with momentum, by PyTorch's exact rules (Sutskever et al., 2013).

#include <cmath>

#include "deltaw/core/options.hpp"
#include "deltaw/core/update.hpp"
#include "deltaw/optim/optimizer.hpp"

namespace deltaw {

/// g += wd p; b = mu b + (1 - dampening) g (b = g at the first step); p -= lr b, or lr (g + mu b) for Nesterov.
/// `decoupled` decays the weight itself instead, p *= 1 - lr wd. The momentum is slot "momentum_buffer".
struct Sgd {
  double learning_rate = 1e-2;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  double weight_decay = 0;
  bool decoupled = false;

  void check() const {
    check_not_negative("Sgd", "learning_rate", learning_rate);
    check_not_negative("Sgd", "momentum", momentum);
    if (!std::isfinite(dampening)) raise_mismatch<OptionError>("Sgd", "dampening", dampening, "finite");
    check_not_negative("Sgd", "weight_decay", weight_decay);
    if (nesterov && !(momentum > 0 && dampening == 0))
      raise<OptionError>("Sgd", "nesterov: got momentum " + number_text(momentum) + " and dampening " +
                                    number_text(dampening) + ", want momentum above 0 and no dampening");
  }

  template <class Step, class Param>
  void update(Step& step, Param& p) const {
    const SgdUpdate u{.learning_rate = learning_rate,
                      .momentum = momentum,
                      .dampening = dampening,
                      .nesterov = nesterov,
                      .weight_decay = weight_decay,
                      .decoupled = decoupled,
                      .gradient_scale = step.gradient_scale(),
                      .step = p.step};
    auto value = p.trained_part(p.value.view());
    auto buffer = momentum > 0 ? p.trained_part(p.slot("momentum_buffer").view()) : decltype(value){};
    step.sgd(u, value, p.trained_part(std::as_const(p.grad).view()), buffer);
  }
};

}  // namespace deltaw
