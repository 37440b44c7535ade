#pragma once
// Optimizer updates of the Cpu backend, in one pass over memory. They are written in Eigen's packets: a plain loop is not
// vectorised by the compilers' defaults, since square roots and divisions may trap or set errno.

#include <Eigen/Core>
#include <algorithm>
#include <array>
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

namespace packet = Eigen::internal;

template <class T>
inline constexpr index_t packet_lanes = packet::packet_traits<T>::size;

// Correctly rounded. Eigen's own is approximate on x86 and takes numbers below the normal range for zero. The masked form
// of the last two is the plain one without an uninitialised operand, of which GCC 12 would warn in the user's build.
template <class P>
P square_root(const P& x) {
  return packet::psqrt(x);
}
#if defined(EIGEN_VECTORIZE_SSE2)
inline __m128 square_root(const __m128& x) { return _mm_sqrt_ps(x); }
#endif
#if defined(EIGEN_VECTORIZE_AVX)
inline __m256 square_root(const __m256& x) { return _mm256_sqrt_ps(x); }
#endif
#if defined(EIGEN_VECTORIZE_AVX512)
inline __m512 square_root(const __m512& x) { return _mm512_maskz_sqrt_ps(static_cast<__mmask16>(-1), x); }
inline __m512d square_root(const __m512d& x) { return _mm512_maskz_sqrt_pd(static_cast<__mmask8>(-1), x); }
#endif

/// kernel(gradient, state, i) for the packets at i = 0, lanes, ... of every row. What is left of a row goes through the
/// same operations in a copy of one packet, so an element's bits depend neither on its place nor on its address.
template <class T, std::size_t N, class Kernel>
void for_each_packet(ConstMatrixView<T, Host> gradient, const std::array<MatrixView<T, Host>, N>& state,
                     Kernel kernel) {
  constexpr index_t lanes = packet_lanes<T>;
  bool contiguous = gradient.contiguous();
  for (const auto& view : state) contiguous = contiguous && view.contiguous();
  const index_t rows = contiguous ? std::min<index_t>(gradient.rows, 1) : gradient.rows;
  const index_t cols = contiguous ? gradient.size() : gradient.cols;
  for (index_t row = 0; row < rows; ++row) {
    const T* g = gradient.data + row * gradient.stride;
    std::array<T*, N> s;
    for (std::size_t k = 0; k < N; ++k) s[k] = state[k].data + row * state[k].stride;
    index_t i = 0;
    for (; i + lanes <= cols; i += lanes) kernel(g, s, i);
    if (i == cols) continue;

    std::array<std::array<T, lanes>, N + 1> copies;
    std::array<T*, N> copied;
    for (index_t lane = 0; lane < lanes; ++lane) {
      const index_t from = std::min(i + lane, cols - 1);
      copies[N][static_cast<std::size_t>(lane)] = g[from];
      for (std::size_t k = 0; k < N; ++k) copies[k][static_cast<std::size_t>(lane)] = s[k][from];
    }
    for (std::size_t k = 0; k < N; ++k) copied[k] = copies[k].data();
    kernel(copies[N].data(), copied, 0);
    for (std::size_t k = 0; k < N; ++k) std::copy_n(copied[k], cols - i, s[k] + i);
  }
}

// Every product below is an operand of pmadd or of a division, so no compiler has anything left to contract.
template <class T>
void adamw(const AdamWUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient, MatrixView<T, Host> m,
           MatrixView<T, Host> v) {
  using P = typename packet::packet_traits<T>::type;
  using packet::ploadu, packet::pmadd, packet::pmul, packet::pstoreu;
  const auto all = [](double x) { return packet::pset1<P>(T(x)); };
  const auto steps = static_cast<double>(u.step);
  const P step_size = all(-u.learning_rate / (1 - std::pow(u.beta1, steps)));
  const P root = all(1 / std::sqrt(1 - std::pow(u.beta2, steps)));
  const P shrink = all(1 - u.learning_rate * u.weight_decay), epsilon = all(u.epsilon), scale = all(u.gradient_scale);
  const P beta1 = all(u.beta1), rest1 = all(1 - u.beta1), beta2 = all(u.beta2), rest2 = all(1 - u.beta2);
  for_each_packet(gradient, std::array{value, m, v}, [=](const T* g, const std::array<T*, 3>& s, index_t i) {
    const P scaled = pmul(scale, ploadu<P>(g + i));
    const P m1 = pmadd(beta1, ploadu<P>(s[1] + i), pmul(rest1, scaled));
    const P m2 = pmadd(beta2, ploadu<P>(s[2] + i), pmul(pmul(rest2, scaled), scaled));
    const P moved = packet::pdiv(pmul(step_size, m1), pmadd(square_root(m2), root, epsilon));
    pstoreu(s[0] + i, pmadd(shrink, ploadu<P>(s[0] + i), moved));
    pstoreu(s[1] + i, m1);
    pstoreu(s[2] + i, m2);
  });
}

template <class T>
void sgd(const SgdUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient,
         MatrixView<T, Host> momentum) {
  using P = typename packet::packet_traits<T>::type;
  using packet::ploadu, packet::pmadd, packet::pmul, packet::pstoreu;
  const auto all = [](double x) { return packet::pset1<P>(T(x)); };
  const P rate = all(-u.learning_rate), scale = all(u.gradient_scale), mu = all(u.momentum);
  const P fresh = all(u.step <= 1 ? 1 : 1 - u.dampening), kept = all(u.step <= 1 ? 0 : u.momentum);
  const P coupled = all(u.decoupled ? 0 : u.weight_decay);
  const P shrink = all(u.decoupled ? 1 - u.learning_rate * u.weight_decay : 1);
  const auto direction = [=](const T* g, const T* p) {
    return pmadd(coupled, ploadu<P>(p), pmul(scale, ploadu<P>(g)));
  };
  const auto move = [=](T* p, const P& step) { pstoreu(p, pmadd(shrink, ploadu<P>(p), pmul(rate, step))); };
  if (momentum.empty()) {
    for_each_packet(gradient, std::array{value}, [=](const T* g, const std::array<T*, 1>& s, index_t i) {
      move(s[0] + i, direction(g + i, s[0] + i));
    });
    return;
  }
  for_each_packet(gradient, std::array{value, momentum}, [=](const T* g, const std::array<T*, 2>& s, index_t i) {
    const P step = direction(g + i, s[0] + i);
    const P b = pmadd(kept, ploadu<P>(s[1] + i), pmul(fresh, step));
    move(s[0] + i, u.nesterov ? pmadd(mu, b, step) : b);
    pstoreu(s[1] + i, b);
  });
}

}  // namespace cpu_detail
}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
