#pragma once
// A linear layer of doubles with one adapter, and a regression to train it on: what the effect tests of methods share.

#include <algorithm>
#include <cmath>
#include <vector>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "guarded.hpp"
#include "message.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

inline dw::MatrixView<double> view_of(Matrix& m) { return {m.values.data(), m.rows, m.cols}; }
inline dw::ConstMatrixView<double> view_of(const Matrix& m) { return {m.values.data(), m.rows, m.cols}; }
inline Matrix matrix_of(dw::ConstMatrixView<double> v) {
  Matrix m(v.rows, v.cols);
  m.values = to_host(v);
  return m;
}
inline Matrix random_values(index_t rows, index_t cols, std::uint32_t seed) {
  Matrix m(rows, cols);
  Numbers numbers(seed);
  for (double& x : m.values) x = numbers();
  return m;
}
inline Matrix turned(const Matrix& a) {
  Matrix b(a.cols, a.rows);
  for (index_t i = 0; i < a.rows; ++i)
    for (index_t j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  return b;
}
inline double frobenius(const Matrix& a) {
  double sum = 0;
  for (double x : a.values) sum += x * x;
  return std::sqrt(sum);
}
/// The rows made orthonormal: Gram-Schmidt, twice.
inline Matrix orthonormal_rows(Matrix q) {
  for (int pass = 0; pass < 2; ++pass)
    for (index_t i = 0; i < q.rows; ++i) {
      for (index_t k = 0; k < i; ++k) {
        double along = 0;
        for (index_t j = 0; j < q.cols; ++j) along += q(i, j) * q(k, j);
        for (index_t j = 0; j < q.cols; ++j) q(i, j) -= along * q(k, j);
      }
      double norm = 0;
      for (index_t j = 0; j < q.cols; ++j) norm += q(i, j) * q(i, j);
      for (index_t j = 0; j < q.cols; ++j) q(i, j) /= std::sqrt(norm);
    }
  return q;
}
inline Matrix random_rows(index_t rows, index_t cols, std::uint32_t seed) {
  return orthonormal_rows(random_values(rows, cols, seed));
}
/// U diag(values) V^T with random orthonormal U and V.
inline Matrix with_singular_values(index_t rows, index_t cols, const std::vector<double>& values, std::uint32_t seed) {
  const auto k = static_cast<index_t>(values.size());
  Matrix u = random_rows(k, rows, seed), v = random_rows(k, cols, seed + 1000);
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j < cols; ++j) v(i, j) *= values[static_cast<std::size_t>(i)];
  return times(turned(u), v);
}

template <template <class, class, class> class Method>
struct ToyLayer {
  using A = Method<double, dw::Cpu, double>;
  using Dense = dw::DenseLinear<double, double, dw::Cpu>;
  dw::Cpu::Context ctx;
  Matrix w;
  Dense base;
  A adapter;
  typename A::Saved saved;

  ToyLayer(Matrix weight, typename A::Options options)
      : w(std::move(weight)), base(view_of(w), {}), adapter(base.shape, options) {}
  ToyLayer(const ToyLayer&) = delete;

  auto& parameter(dw::Role role) {
    dw::Parameter<double, dw::Host>* found = nullptr;
    adapter.for_each_parameter([&](auto& p) {
      if (p.role == role) found = &p;
    });
    return *found;
  }
  Matrix value(dw::Role role) { return matrix_of(parameter(role).value.view()); }
  Matrix gradient(dw::Role role) { return matrix_of(parameter(role).grad.view()); }
  void set(dw::Role role, const Matrix& m) {
    std::copy(m.values.begin(), m.values.end(), parameter(role).value.view().data);
    parameter(role).changed();
  }
  Matrix delta() {
    Matrix d(w.rows, w.cols);
    adapter.delta_weight(ctx, base, view_of(d));
    return d;
  }
  Matrix output(const Matrix& x, bool training = false) {
    Matrix y(x.rows, w.rows);
    saved.call.training = training;
    base.forward(ctx, view_of(x), view_of(y));
    adapter.forward(ctx, base, view_of(x), view_of(y), saved);
    return y;
  }
  /// (1 / 2 tokens) ||Y - target||^2.
  double loss(const Matrix& x, const Matrix& target) {
    const double d = frobenius(plus(output(x), target, -1));
    return d * d / 2 / static_cast<double>(x.rows);
  }
  /// The loss, with its gradients added and finished.
  double backward(const Matrix& x, const Matrix& target) {
    dw::prepare(ctx, adapter, base);
    Matrix dy = plus(output(x, true), target, -1), dx(x.rows, x.cols);
    const double d = frobenius(dy), tokens = static_cast<double>(x.rows);
    for (double& g : dy.values) g /= tokens;
    adapter.backward(ctx, base, view_of(x), view_of(dy), view_of(dx), saved);
    dw::finish(ctx, adapter, base);
    return d * d / 2 / tokens;
  }
  /// A whole step; the loss before it.
  template <class Optimizer>
  double step(Optimizer& optimizer, const Matrix& x, const Matrix& target, const dw::StepInfo& info = {}) {
    A* const layers[] = {&adapter};
    dw::begin_step<A>(ctx, layers, info);
    const double before = backward(x, target);
    dw::regularize<A>(ctx, layers);
    optimizer.step(ctx, adapter);
    dw::after_step<A>(ctx, layers, info);
    dw::zero_grad(ctx, adapter);
    return before;
  }
};

}  // namespace deltaw_tests
