#pragma once
// Ratios that a shared machine cannot spoil: the two things to compare run one after the other, many times, in random
// order, in one process; each round gives one ratio, and the result is their median with its 95 % interval.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <numeric>
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

/// Times `floor` once a round beside each of a few others, all in random order; what each took over the floor of its round is
/// its ratio. `before(i)` runs untimed ahead of number i (the floor is number 0, the others follow) and puts back what they
/// change; `with(i)` runs number i.
template <class Before, class Floor, class With>
std::vector<PairedTimes> measure_group(const Plan& plan, std::size_t others, Before before, Floor floor, With with) {
  const auto timed = [&](std::size_t i) {
    before(i);
    return i == 0 ? milliseconds(floor) : milliseconds([&] { with(i); });
  };
  std::vector<std::size_t> order(others + 1);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (int warm_up = 0; warm_up < 2; ++warm_up)  // pages, caches, workspaces
    for (const std::size_t i : order) timed(i);
  std::mt19937 random(plan.seed);
  std::vector<std::vector<double>> times(others + 1), ratios(others + 1);
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (int round = 0; round < plan.pairs || (round < plan.most_pairs && spent() < plan.seconds); ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t i : order) times[i].push_back(timed(i));
    for (std::size_t i = 0; i <= others; ++i) ratios[i].push_back(times[i].back() / times[0].back());
  }
  std::vector<PairedTimes> result;
  for (std::size_t i = 1; i <= others; ++i)
    result.push_back({median_interval(times[0]).median, median_interval(times[i]).median, median_interval(ratios[i]),
                      static_cast<int>(ratios[i].size())});
  return result;
}
/// The same for a floor and one other.
template <class Before, class Floor, class With>
PairedTimes measure_pairs(const Plan& plan, Before before, Floor floor, With with) {
  return measure_group(
             plan, 1, [&](std::size_t) { before(); }, floor, [&](std::size_t) { with(); })
      .front();
}

}  // namespace deltaw_bench
