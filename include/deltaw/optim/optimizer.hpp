#pragma once
// One optimizer step over the parameters of any number of adapters or sets: detect non-finite gradients, unscale, clip by
// the global norm, then apply a rule to each parameter. The rule (AdamW, Sgd, ...) is a policy for one parameter.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "deltaw/backend/cpu.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/update.hpp"

namespace deltaw {

template <class R>
concept UpdateRule = requires(R rule) {
  rule.learning_rate;
};

struct OptimizerOptions {
  double max_gradient_norm = 0;  ///< 0: no clipping
  bool skip_non_finite = true;   ///< leave everything as it is when a gradient holds NaN or infinity
};

/// `B` is the backend of what it steps.
template <UpdateRule Rule, class B = Cpu>
class Optimizer {
 public:
  explicit Optimizer(Rule rule = {}, OptimizerOptions options = {}) : rule_(rule), options_(options) {
    rule.check();
    if (!(options.max_gradient_norm >= 0))
      raise_mismatch<OptionError>("Optimizer", "max_gradient_norm", options.max_gradient_norm, "0 or more");
  }

  /// Updates every trained parameter. Gradients stay as they are: call `zero_grad` before the next backward.
  /// On a device nothing waits: whether a step was skipped is decided there, and the report says `pending`.
  template <HasParameters First, HasParameters... Rest>
  StepReport step(typename First::Backend::Context& ctx, First& first, Rest&... rest) {
    static_assert(
        std::is_same_v<typename First::Backend::StepState, typename B::StepState>,
        "deltaw: the optimizer is of another backend than the parameters: Optimizer<AdamW, Cuda>, for example");
    rule_.check();
    check_distinct<const void*>({&first, &rest...});
    for_each_trained([](const auto& p) { check_gradient(p); }, first, rest...);
    const StepPolicy policy{1 / loss_scale_, options_.max_gradient_norm, options_.skip_non_finite};
    typename First::Backend::Step step(ctx, state_, policy);
    if (policy.needs_norm()) for_each_trained([&](const auto& p) { step.measure(p); }, first, rest...);
    StepReport report = step.decide();
    if (report.skipped) {
      ++skipped_;
      return report;
    }
    const auto update = [&](auto& p) {
      ++p.step;
      rule_.update(step, p);
      p.changed();
    };
    for_each_trained(update, first, rest...);
    step.run();
    return report;
  }

  /// Waits for the device and makes the host's counts true: skipped steps leave `Parameter::step` and enter `skipped()`.
  /// Give it what `step` is given, before the state is saved or the set of parameters changes. Reports the last step. On
  /// the Cpu there is nothing to wait for, and the report is empty.
  template <HasParameters First, HasParameters... Rest>
  StepReport settle(typename First::Backend::Context& ctx, First& first, Rest&... rest) {
    const SettledSteps settled = First::Backend::settle(ctx, state_);
    const auto correct = [&](auto& p) {
      p.step -= settled.skipped;
      for (long& birth : p.births) birth = std::min(birth, p.step);
    };
    for_each_trained(correct, first, rest...);
    skipped_ += settled.skipped;
    return settled.last;
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
  template <class F, class... Parameters>
  static void for_each_trained(F f, Parameters&... parameters) {
    const auto trained = [&](auto& p) {
      if (p.trained) f(p);
    };
    (parameters.for_each_parameter(trained), ...);
  }
  // As an initializer_list, so that no memory is taken.
  template <class Address>
  static void check_distinct(std::initializer_list<Address> sets) {
    for (auto a = sets.begin(); a != sets.end(); ++a)
      if (std::find(a + 1, sets.end(), *a) != sets.end())
        raise<AliasError>("Optimizer.step", "parameters: got the same set twice, want each once");
  }
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
  typename B::StepState state_;
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

  /// A report that is still pending says nothing: give it what `Optimizer::settle` returns, once a step.
  void update(const StepReport& report) {
    if (report.pending) return;
    if (!report.skipped && ++good_steps < growth_interval) return;
    const double changed = value * (report.skipped ? backoff : growth);
    if (changed > 0 && std::isfinite(changed)) value = changed;
    good_steps = 0;
  }
};

}  // namespace deltaw
