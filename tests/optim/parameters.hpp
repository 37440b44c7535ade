#pragma once
// A bag of parameters that optimizers take as they take an adapter.

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "../support/primitives.hpp"
#include "deltaw/core/parameter.hpp"
#include "guarded.hpp"

namespace deltaw_tests {

template <class T, class B = dw::Cpu>
struct Bag {
  using Backend = B;
  using Parameter = dw::Parameter<T, typename B::Space>;
  std::deque<Parameter> parameters;  // a deque: references to elements stay valid

  Parameter& add(const std::string& name, index_t rows, index_t cols, std::uint32_t seed) {
    auto& p = parameters.emplace_back(name, dw::Role::Weight, dw::RankAxis::None, rows, cols);
    fill(p.value, seed);
    return p;
  }
  void fill_gradients(std::uint32_t seed) {
    for (auto& p : parameters) fill(p.grad, seed++);
  }
  static void fill(dw::Tensor<T, typename B::Space>& tensor, std::uint32_t seed) {
    Numbers numbers(seed);
    std::vector<T> values(static_cast<std::size_t>(tensor.size()));
    for (T& value : values) value = T(numbers());
    from_host(values, tensor.view());
  }

  template <class F>
  void for_each_parameter(F&& f) {
    for (auto& p : parameters) f(p);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    for (const auto& p : parameters) f(p);
  }
};

/// All elements in double, row after row.
template <class T, class Space>
std::vector<double> elements(const dw::Tensor<T, Space>& tensor) {
  const auto values = to_host(tensor.view());
  return {values.begin(), values.end()};
}

/// The largest difference relative to 1 + |want|; infinity where the sizes differ or NaN is met.
inline double distance(const std::vector<double>& got, const std::vector<double>& want) {
  constexpr double far = std::numeric_limits<double>::infinity();
  if (got.size() != want.size()) return far;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(got[i] - want[i]) / (1 + std::abs(want[i]));
    if (!(d <= worst)) worst = std::isnan(d) ? far : d;
  }
  return worst;
}

}  // namespace deltaw_tests
