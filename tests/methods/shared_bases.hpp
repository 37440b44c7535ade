#pragma once
// What the tests of methods over shared random bases have in common.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "guarded.hpp"
#include "message.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

using dw::Cpu;

inline dw::MatrixView<double> memory(Matrix& m) { return {m.values.data(), m.rows, m.cols}; }
inline dw::ConstMatrixView<double> memory(const Matrix& m) { return {m.values.data(), m.rows, m.cols}; }

inline Matrix random_matrix(index_t rows, index_t cols, std::uint32_t seed) {
  Matrix m(rows, cols);
  Numbers numbers(seed);
  for (double& value : m.values) value = numbers();
  return m;
}
inline Matrix transposed(const Matrix& m) {
  Matrix result(m.cols, m.rows);
  for (index_t i = 0; i < m.rows; ++i)
    for (index_t j = 0; j < m.cols; ++j) result(j, i) = m(i, j);
  return result;
}
inline double squares(const Matrix& m) {
  double sum = 0;
  for (double value : m.values) sum += value * value;
  return sum;
}
/// ||a - b|| / ||b||.
inline double difference(const Matrix& a, const Matrix& b) {
  return std::sqrt(squares(plus(a, b, -1)) / std::max(squares(b), 1e-300));
}
/// The number of pivots above 1e-9 of the largest, in Gaussian elimination with full pivoting.
inline index_t rank_of(Matrix m) {
  double largest = 0;
  index_t rank = 0;
  for (; rank < std::min(m.rows, m.cols); ++rank) {
    index_t pi = rank, pj = rank;
    for (index_t i = rank; i < m.rows; ++i)
      for (index_t j = rank; j < m.cols; ++j)
        if (std::abs(m(i, j)) > std::abs(m(pi, pj))) pi = i, pj = j;
    if (rank == 0) largest = std::abs(m(pi, pj));
    if (!(std::abs(m(pi, pj)) > 1e-9 * largest)) break;
    for (index_t j = 0; j < m.cols; ++j) std::swap(m(rank, j), m(pi, j));
    for (index_t i = 0; i < m.rows; ++i) std::swap(m(i, rank), m(i, pj));
    for (index_t i = rank + 1; i < m.rows; ++i) {
      const double factor = m(i, rank) / m(rank, rank);
      for (index_t j = rank; j < m.cols; ++j) m(i, j) -= factor * m(rank, j);
    }
  }
  return rank;
}

template <class A>
dw::Parameter<double>& parameter(A& adapter, const std::string& name) {
  dw::Parameter<double>* found = nullptr;
  adapter.for_each_parameter([&](auto& p) {
    if (p.name == name) found = &p;
  });
  REQUIRE(found != nullptr);
  return *found;
}
template <class A>
Matrix value_of(A& adapter, const std::string& name) {
  return values_of(parameter(adapter, name).value.view());
}
template <class A>
void set(A& adapter, const std::string& name, const Matrix& values) {
  auto& p = parameter(adapter, name);
  REQUIRE(p.value.rows() == values.rows);
  REQUIRE(p.value.cols() == values.cols);
  std::copy(values.values.begin(), values.values.end(), p.value.view().data);
  p.changed();
}
template <class A>
Matrix delta_of(Cpu::Context& ctx, const A& adapter) {
  Matrix delta(adapter.shape().out_features, adapter.shape().in_features);
  adapter.delta_weight(ctx, {}, memory(delta));
  return delta;
}
/// Y = X dW^T by the adapter's own forward, as a call of `call`.
template <class A>
Matrix output_of(Cpu::Context& ctx, const A& adapter, const Matrix& x, const dw::Call& call = {}) {
  typename A::Saved saved;
  saved.call = call;
  Matrix y(x.rows, adapter.shape().out_features);
  adapter.forward(ctx, {}, memory(x), memory(y), saved);
  return y;
}

/// Trains the adapter to dW = target by AdamW on the loss ||dW - target||^2 / ||target||^2 (X = 1, the identity); returns the last loss.
template <class A>
double fit(Cpu::Context& ctx, A& adapter, const Matrix& target, double learning_rate, int steps) {
  dw::Optimizer<dw::AdamW> adamw{{.learning_rate = learning_rate}};
  const index_t in = adapter.shape().in_features, out = adapter.shape().out_features;
  Matrix x(in, in), dx(in, in);
  for (index_t i = 0; i < in; ++i) x(i, i) = 1;
  const Matrix want = transposed(target);
  double loss = 1;
  for (int step = 0; step < steps; ++step) {
    typename A::Saved saved;
    Matrix y(in, out);
    adapter.forward(ctx, {}, memory(x), memory(y), saved);
    Matrix dy = plus(y, want, -1);
    loss = squares(dy) / squares(want);
    for (double& g : dy.values) g *= 2 / squares(want);
    adapter.backward(ctx, {}, memory(x), memory(dy), memory(dx), saved);
    adamw.step(ctx, adapter);
    dw::zero_grad(ctx, adapter);
  }
  return loss;
}

}  // namespace deltaw_tests
