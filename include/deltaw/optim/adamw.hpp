#pragma once
// AdamW with decoupled weight decay, by PyTorch's exact rules (Loshchilov and Hutter, 2019, arXiv 1711.05101).

#include "deltaw/core/options.hpp"
#include "deltaw/core/update.hpp"
#include "deltaw/optim/optimizer.hpp"

namespace deltaw {

/// p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr m^ / (sqrt(v^) + eps), with m^ = m / (1 - b1^t),
/// v^ = v / (1 - b2^t). Moments are slots "exp_avg" and "exp_avg_sq" of the parameter.
struct AdamW {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;

  void check() const {
    check_not_negative("AdamW", "learning_rate", learning_rate);
    if (!(beta1 >= 0 && beta1 < 1)) raise_mismatch<OptionError>("AdamW", "beta1", beta1, "at least 0 and below 1");
    if (!(beta2 >= 0 && beta2 < 1)) raise_mismatch<OptionError>("AdamW", "beta2", beta2, "at least 0 and below 1");
    check_not_negative("AdamW", "epsilon", epsilon);
    check_not_negative("AdamW", "weight_decay", weight_decay);
  }

  template <class Step, class Param>
  void update(Step& step, Param& p) const {
    auto m = p.slot("exp_avg").view();  // made before v: a new slot may move the other
    auto v = p.slot("exp_avg_sq").view();
    p.for_each_age([&](const Window& ranks, long steps) {
      const AdamWUpdate u{.learning_rate = learning_rate,
                          .beta1 = beta1,
                          .beta2 = beta2,
                          .epsilon = epsilon,
                          .weight_decay = weight_decay,
                          .gradient_scale = step.gradient_scale(),
                          .step = steps};
      step.adamw(u, p.part(p.value.view(), ranks), p.part(std::as_const(p.grad).view(), ranks), p.part(m, ranks),
                 p.part(v, ranks));
    });
  }
};

}  // namespace deltaw
