#pragma once
// A bag of parameters that optimizers take as they take an adapter.

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "guarded.hpp"
#include "../support/primitives.hpp"
#include "deltaw/core/parameter.hpp"

namespace deltaw_tests {

template <class T>
struct Bag {
  using Backend = dw::Cpu;
  std::deque<dw::Parameter<T>> parameters;  // a deque: references to elements stay valid

  dw::Parameter<T>& add(const std::string& name, index_t rows, index_t cols, std::uint32_t seed) {
    auto& p = parameters.emplace_back(name, dw::Role::Weight, dw::RankAxis::None, rows, cols);
    fill(p.value, seed);
    return p;
  }
  void fill_gradients(std::uint32_t seed) {
    for (auto& p : parameters) fill(p.grad, seed++);
  }
  static void fill(dw::Tensor<T>& tensor, std::uint32_t seed) {
    Numbers numbers(seed);
    auto v = tensor.view();
    for (index_t i = 0; i < v.rows; ++i)
      for (index_t j = 0; j < v.cols; ++j) v(i, j) = T(numbers());
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
template <class T>
std::vector<double> elements(const dw::Tensor<T>& tensor) {
  std::vector<double> all;
  const auto v = tensor.view();
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) all.push_back(static_cast<double>(v(i, j)));
  return all;
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
