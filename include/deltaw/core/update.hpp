#pragma once
// What an optimizer step hands to the backend: the numbers of each rule, the policy of the step, and what it reports.

#include <string>

#include "deltaw/core/config.hpp"

namespace deltaw {

/// AdamW by PyTorch's rules (Loshchilov and Hutter, 2019, arXiv 1711.05101).
struct AdamWUpdate {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double gradient_scale = 1;  ///< multiplies the gradient: clipping and loss unscaling, in the same pass
  long step = 1;              ///< counted from 1, this update included

  friend bool operator==(const AdamWUpdate&, const AdamWUpdate&) = default;
};

/// SGD by PyTorch's rules (Sutskever et al., 2013, in PyTorch's form: the learning rate is not inside the momentum).
struct SgdUpdate {
  double learning_rate = 1e-2;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  double weight_decay = 0;  ///< coupled, g += wd p, unless `decoupled`
  bool decoupled = false;   ///< p *= 1 - lr wd instead
  double gradient_scale = 1;
  long step = 1;

  friend bool operator==(const SgdUpdate&, const SgdUpdate&) = default;
};

/// What a step does with the gradients before the rule sees them.
struct StepPolicy {
  double unscale = 1;            ///< multiplies every gradient: 1 / loss scale
  double max_gradient_norm = 0;  ///< 0: no clipping
  bool skip_non_finite = true;   ///< leave everything as it is when a gradient holds NaN or infinity

  bool needs_norm() const { return skip_non_finite || max_gradient_norm > 0; }
};

/// What gradients of this norm (after unscaling) are multiplied by: PyTorch's clip_grad_norm_, and the unscaling.
DELTAW_HD inline double clipped_scale(double unscale, double max_gradient_norm, double norm) {
  const double clip = max_gradient_norm / (norm + 1e-6);
  return max_gradient_norm > 0 && !(clip >= 1) ? unscale * clip : unscale;
}

/// What a step did.
struct StepReport {
  bool skipped = false;
  double gradient_norm = 0;     ///< over all trained parameters, after unscaling and before clipping; 0 if not computed
  std::string non_finite = {};  ///< first parameter with a non-finite gradient, where the step was skipped
  bool pending = false;         ///< a device knows the rest: ask `Optimizer::settle`, which waits for it
};

/// What steps on a device turned out to do, once the host waited for them.
struct SettledSteps {
  long skipped = 0;  ///< steps left out since they were last asked for
  StepReport last = {};
};

}  // namespace deltaw
