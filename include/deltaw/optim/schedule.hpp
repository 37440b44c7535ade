#pragma once
// Learning-rate schedules: functions of the step, counted from 0, with no state to save.

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "deltaw/core/options.hpp"

namespace deltaw {

enum class Decay { Constant, Linear, Cosine };

/// Linear warm-up from 0 to `peak` in `warmup_steps`, then constant, or linear or cosine decay to `floor` at `total_steps`.
struct Schedule {
  double peak = 1e-3;
  long warmup_steps = 0;
  long total_steps = 0;  ///< needed by the decaying ones
  Decay decay = Decay::Cosine;
  double floor = 0;

  void check() const {
    check_not_negative("Schedule", "peak", peak);
    if (warmup_steps < 0) raise_mismatch<OptionError>("Schedule", "warmup_steps", warmup_steps, "0 or more");
    if (decay != Decay::Constant && total_steps <= warmup_steps)
      raise_mismatch<OptionError>("Schedule", "total_steps", total_steps,
                                  "more than warmup_steps = " + std::to_string(warmup_steps));
    if (!(floor >= 0 && floor <= peak))
      raise_mismatch<OptionError>("Schedule", "floor", floor, "at least 0 and at most peak = " + number_text(peak));
  }

  /// The rate of step `step`; the first step of a warm-up of n is peak / n.
  double operator()(long step) const {
    check();
    if (step < 0) raise_mismatch<OptionError>("Schedule", "step", step, "0 or more");
    if (step < warmup_steps) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    if (decay == Decay::Constant) return peak;
    const double done = static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
    const double x = std::min(1.0, done);
    const double left = decay == Decay::Linear ? 1 - x : 0.5 * (1 + std::cos(std::numbers::pi * x));
    return floor + (peak - floor) * left;
  }
};

}  // namespace deltaw
