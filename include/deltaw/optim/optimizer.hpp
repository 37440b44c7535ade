#pragma once
// One optimizer step over the parameters of any number of adapters or sets: detect non-finite gradients, unscale, clip by
// the global norm, then apply a rule to each parameter. The rule (AdamW, Sgd, ...) is a policy for one parameter.

#include <algorithm>
#include <cmath>
#include <string>

#include "deltaw/core/adapter.hpp"

namespace deltaw {

/// What a step did.
struct StepReport {
  bool skipped = false;
  double gradient_norm = 0;     ///< over all trained parameters, after unscaling and before clipping; 0 if not computed
  std::string non_finite = {};  ///< first parameter with a non-finite gradient, where the step was skipped
};

template <class R>
concept UpdateRule = requires(R rule) {
  rule.learning_rate;
};

struct OptimizerOptions {
  double max_gradient_norm = 0;  ///< 0: no clipping
  bool skip_non_finite = true;   ///< leave everything as it is when a gradient holds NaN or infinity
};

template <UpdateRule Rule>
class Optimizer {
 public:
  explicit Optimizer(Rule rule = {}, OptimizerOptions options = {}) : rule_(rule), options_(options) {
    rule.check();
    if (!(options.max_gradient_norm >= 0))
      raise_mismatch<OptionError>("Optimizer", "max_gradient_norm", options.max_gradient_norm, "0 or more");
  }

  /// Updates every trained parameter. Gradients stay as they are: call `zero_grad` before the next backward.
  /// `loss_scale` is what the loss was multiplied by.
  template <HasParameters First, HasParameters... Rest>
  StepReport step(typename First::Backend::Context& ctx, First& first, Rest&... rest) {
    using B = typename First::Backend;
    const auto for_each_trained = [&](auto f) {
      const auto trained = [&](auto& p) {
        if (p.trained) f(p);
      };
      first.for_each_parameter(trained);
      (rest.for_each_parameter(trained), ...);
    };
    for_each_trained([](const auto& p) { check_gradient(p); });
    StepReport report;
    double scale = 1 / loss_scale_;
    if (options_.skip_non_finite || options_.max_gradient_norm > 0) {
      double norm2 = 0;
      for_each_trained([&](auto& p) {
        const double n = B::norm2(ctx, std::as_const(p.grad).view());
        if (!std::isfinite(n) && report.non_finite.empty()) report.non_finite = p.full_name();
        norm2 += n;
      });
      report.gradient_norm = std::sqrt(norm2) * scale;
      if (options_.skip_non_finite && !report.non_finite.empty()) {
        report.skipped = true;
        ++skipped_;
        return report;
      }
      if (options_.max_gradient_norm > 0)
        scale *= std::min(1.0, options_.max_gradient_norm / (report.gradient_norm + 1e-6));
    }
    for_each_trained([&](auto& p) {
      ++p.step;
      rule_.template update<B>(ctx, p, scale);
      p.changed();
    });
    return report;
  }

  Rule& rule() { return rule_; }
  const Rule& rule() const { return rule_; }
  void set_learning_rate(double rate) {
    Rule changed = rule_;
    changed.learning_rate = rate;
    changed.check();
    rule_ = changed;
  }
  void set_loss_scale(double scale) {
    if (!(scale > 0 && std::isfinite(scale) && std::isfinite(1 / scale)))
      raise_mismatch<OptionError>("Optimizer.set_loss_scale", "scale", scale, "finite, above 0, with a finite inverse");
    loss_scale_ = scale;
  }
  long skipped() const { return skipped_; }  ///< steps skipped so far because of non-finite gradients
  void set_skipped(long count) { skipped_ = count; }

 private:
  template <class Param>
  static void check_gradient(const Param& p) {
    const auto shape = [](const auto& tensor) {
      return std::to_string(tensor.rows()) + " x " + std::to_string(tensor.cols());
    };
    if (p.grad.rows() != p.value.rows() || p.grad.cols() != p.value.cols())
      raise_mismatch<ShapeError>("Optimizer.step", "gradient of '" + p.full_name() + "'", shape(p.grad),
                                 shape(p.value));
  }

  Rule rule_;
  OptimizerOptions options_;
  double loss_scale_ = 1;
  long skipped_ = 0;
};

/// Dynamic loss scale for 16-bit gradients, by the rules of PyTorch's GradScaler (Micikevicius et al., 2018,
/// arXiv 1710.03740): halve on a skipped step, double after `growth_interval` good ones. It stays finite and above 0.
struct LossScale {
  double value = 65536;
  double growth = 2, backoff = 0.5;
  long growth_interval = 2000;
  long good_steps = 0;

  void update(const StepReport& report) {
    if (!report.skipped && ++good_steps < growth_interval) return;
    const double changed = value * (report.skipped ? backoff : growth);
    if (changed > 0 && std::isfinite(changed)) value = changed;
    good_steps = 0;
  }
};

}  // namespace deltaw
