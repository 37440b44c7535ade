#pragma once
// Optimizer updates of the Cpu backend. Square root and division are Eigen's packet operations: a plain loop is not
// vectorised by the compilers' defaults, since both may trap or set errno.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "deltaw/core/config.hpp"
#include "deltaw/core/update.hpp"
#include "deltaw/core/view.hpp"

namespace deltaw {
#if DELTAW_CBLAS
inline namespace cpu_with_cblas {
#else
inline namespace cpu_with_eigen {
#endif
namespace cpu_detail {

// Tiles keep the operands of all passes of one update in the first cache, so memory is crossed once.
inline constexpr index_t update_tile = 512;

template <class T>
using EigenSpan = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1, 0, update_tile, 1>>;
template <class T>
using EigenConstSpan = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1, 0, update_tile, 1>>;

/// f(row, first, count) over tiles of every row; contiguous views are one long row.
template <class T, class F>
void for_each_tile(MatrixView<T, Host> v, bool contiguous, F f) {
  const index_t rows = contiguous ? std::min<index_t>(v.rows, 1) : v.rows;
  const index_t cols = contiguous ? v.size() : v.cols;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; j += update_tile) f(i, j, std::min(update_tile, cols - j));
}

template <class T>
void adamw(const AdamWUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient, MatrixView<T, Host> m,
           MatrixView<T, Host> v) {
  const auto steps = static_cast<double>(u.step);
  const T step_size = T(u.learning_rate / (1 - std::pow(u.beta1, steps)));
  const T root = T(1 / std::sqrt(1 - std::pow(u.beta2, steps)));
  const T shrink = T(1 - u.learning_rate * u.weight_decay), epsilon = T(u.epsilon), scale = T(u.gradient_scale);
  const T beta1 = T(u.beta1), rest1 = T(1 - u.beta1), beta2 = T(u.beta2), rest2 = T(1 - u.beta2);
  const bool contiguous = value.contiguous() && gradient.contiguous() && m.contiguous() && v.contiguous();
  for_each_tile(value, contiguous, [&](index_t i, index_t j, index_t n) {
    EigenSpan<T> p(value.data + i * value.stride + j, n), m1(m.data + i * m.stride + j, n);
    EigenSpan<T> m2(v.data + i * v.stride + j, n);
    EigenConstSpan<T> g(gradient.data + i * gradient.stride + j, n);
    m1 = beta1 * m1 + (rest1 * scale) * g;
    m2 = beta2 * m2 + rest2 * (scale * g).square();
    p = shrink * p - step_size * m1 / (m2.sqrt() * root + epsilon);
  });
}

template <class T>
void sgd(const SgdUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient,
         MatrixView<T, Host> momentum) {
  const T rate = T(u.learning_rate), scale = T(u.gradient_scale), mu = T(u.momentum);
  const T fresh = T(u.step <= 1 ? 1 : 1 - u.dampening), kept = T(u.step <= 1 ? 0 : u.momentum);
  const T coupled = T(u.decoupled ? 0 : u.weight_decay);
  const T shrink = T(u.decoupled ? 1 - u.learning_rate * u.weight_decay : 1);
  const bool plain = momentum.empty();
  const bool contiguous = value.contiguous() && gradient.contiguous() && (plain || momentum.contiguous());
  for_each_tile(value, contiguous, [&](index_t i, index_t j, index_t n) {
    EigenSpan<T> p(value.data + i * value.stride + j, n);
    EigenConstSpan<T> g(gradient.data + i * gradient.stride + j, n);
    if (plain) {
      p = shrink * p - rate * (scale * g + coupled * p);
      return;
    }
    EigenSpan<T> b(momentum.data + i * momentum.stride + j, n);
    b = kept * b + fresh * (scale * g + coupled * p);
    if (u.nesterov) {
      p = shrink * p - rate * (scale * g + coupled * p + mu * b);
    } else {
      p = shrink * p - rate * b;
    }
  });
}

}  // namespace cpu_detail
}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
