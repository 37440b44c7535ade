#pragma once
// Ratios that a shared machine cannot spoil: the two things to compare run one after the other, many times, in random
// order, in one process; each pair gives one ratio, and the result is their median with its 95 % interval.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace deltaw_bench {

struct Interval {
  double median = 0, low = 0, high = 0;
};

/// Median, and the narrowest pair of order statistics (k-th smallest, k-th largest) between which the true median lies in
/// at least 95 % of cases: 1 - 2 P(Binomial(n, 1/2) < k) >= 0.95. No assumption about the distribution; wants 6 or more.
inline Interval median_interval(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  std::size_t k = 0;
  double term = std::exp2(-static_cast<double>(n)), below = term;  // P(Binomial < 1)
  while (2 * (k + 1) <= n && below <= 0.025) {
    ++k;
    term *= static_cast<double>(n - k + 1) / static_cast<double>(k);
    below += term;
  }
  const std::size_t first = k == 0 ? 0 : k - 1;
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values[first], values[n - 1 - first]};
}

template <class F>
double milliseconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Plan {
  int pairs = 31;         ///< at least; the interval wants 31
  int most_pairs = 301;   ///< and no more, once `seconds` have passed
  double seconds = 3;     ///< short things go on for this long
  unsigned seed = 20261;  ///< of the order within the pairs
};

struct PairedTimes {
  double floor_ms = 0, ms = 0;  ///< medians
  Interval ratio;               ///< of ms / floor_ms, pair by pair
  int pairs = 0;
};

/// Times `floor` and `with` in pairs. `before` runs untimed ahead of each and puts back what they change.
template <class Before, class Floor, class With>
PairedTimes measure_pairs(const Plan& plan, Before before, Floor floor, With with) {
  const auto timed = [&](auto& f) {
    before();
    return milliseconds(f);
  };
  timed(floor), timed(with), timed(floor), timed(with);  // warm up: pages, caches, workspaces
  std::mt19937 order(plan.seed);
  std::vector<double> floors, withs, ratios;
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (int i = 0; i < plan.pairs || (i < plan.most_pairs && spent() < plan.seconds); ++i) {
    double floor_ms = 0, with_ms = 0;
    if (order() % 2 == 0) {
      floor_ms = timed(floor);
      with_ms = timed(with);
    } else {
      with_ms = timed(with);
      floor_ms = timed(floor);
    }
    floors.push_back(floor_ms);
    withs.push_back(with_ms);
    ratios.push_back(with_ms / floor_ms);
  }
  return {median_interval(floors).median, median_interval(withs).median, median_interval(ratios),
          static_cast<int>(ratios.size())};
}

}  // namespace deltaw_bench
