#pragma once
// A backend around a backend: every primitive first tells a hook what it is about to do. `Counting` adds up FLOPs, bytes
// and launches; `Faulty` plants one wrong factor, to prove that the checks would notice.

#include <algorithm>
#include <cstddef>

#include "deltaw/core/memory.hpp"
#include "deltaw/core/random.hpp"
#include "deltaw/core/signed_columns.hpp"
#include "deltaw/core/update.hpp"

namespace deltaw_tests {

namespace dw = deltaw;

template <class Inner, class Hook>
struct Wrapped {
  using Space = typename Inner::Space;
  struct Context : Inner::Context {
    using Inner::Context::Context;
    Hook hook;
  };
  template <class T>
  using View = dw::MatrixView<T, Space>;

  static constexpr dw::index_t tile_rows = Inner::tile_rows;
  template <class P, class Act>
  using Intermediate = typename Inner::template Intermediate<P, Act>;

  template <class T>
  static View<T> temp(Context& ctx, dw::index_t rows, dw::index_t cols) {
    ctx.hook.temporary(static_cast<double>(rows * cols) * sizeof(T));
    return Inner::template temp<T>(ctx, rows, cols);
  }
  template <class A, class B, class T>
  static void gemm(Context& ctx, double alpha, A a, B b, double beta, View<T> c) {
    const double flops = 2.0 * static_cast<double>(c.size()) * static_cast<double>(inner_size(a));
    alpha = ctx.hook.product(alpha, flops, bytes(a) + bytes(b) + bytes(c) * (beta == 0 ? 1 : 2));
    Inner::gemm(ctx, alpha, a, b, beta, c);
  }
  template <class A, class B, class T>
  static void gemm_batched(Context& ctx, const dw::BatchSteps& steps, double alpha, A a, B b, double beta, View<T> c) {
    const auto count = static_cast<double>(steps.count);
    const double flops = 2.0 * static_cast<double>(c.size()) * static_cast<double>(inner_size(a));
    alpha = ctx.hook.product(alpha, count * flops, count * (bytes(a) + bytes(b) + bytes(c) * (beta == 0 ? 1 : 2)));
    Inner::gemm_batched(ctx, steps, alpha, a, b, beta, c);
  }
  template <class TA, class T>
  static void gemm_signed(Context& ctx, double alpha, View<TA> a, const dw::SignedColumns<Space>& s, double beta,
                          View<T> c) {
    const auto adds = static_cast<double>(a.rows) * static_cast<double>(s.non_zeros);
    const double lists = static_cast<double>(s.non_zeros + s.cols) * sizeof(std::int32_t);
    alpha = ctx.hook.product(alpha, adds, bytes(a) + lists + bytes(c) * (beta == 0 ? 1 : 2));
    Inner::gemm_signed(ctx, alpha, a, s, beta, c);
  }
  template <class F, class T, class... In>
  static void map(Context& ctx, F f, View<T> out, View<In>... in) {
    ctx.hook.pass(static_cast<double>(out.size()), 2 * bytes(out) + (0.0 + ... + bytes(in)));
    Inner::map(ctx, f, out, in...);
  }
  template <class T>
  static void fill(Context& ctx, View<T> out, double constant) {
    ctx.hook.pass(0, bytes(out));
    Inner::fill(ctx, out, constant);
  }
  template <class U, class T>
  static void copy(Context& ctx, View<U> in, View<T> out) {
    ctx.hook.pass(0, bytes(in) + bytes(out));
    Inner::copy(ctx, in, out);
  }
  template <class U, class T>
  static void copy_transposed(Context& ctx, View<U> in, View<T> out) {
    ctx.hook.pass(0, bytes(in) + bytes(out));
    Inner::copy_transposed(ctx, in, out);
  }
  template <class TA, class TB, class T>
  static void col_dot(Context& ctx, double scale, View<TA> a, View<TB> b, View<T> out) {
    scale = ctx.hook.product(scale, 2.0 * static_cast<double>(a.size()), bytes(a) + bytes(b) + 2 * bytes(out));
    Inner::col_dot(ctx, scale, a, b, out);
  }
  template <class TA, class T>
  static void col_sum(Context& ctx, double scale, View<TA> a, View<T> out) {
    scale = ctx.hook.product(scale, static_cast<double>(a.size()), bytes(a) + 2 * bytes(out));
    Inner::col_sum(ctx, scale, a, out);
  }
  template <class TA, class TB, class T>
  static void row_dot(Context& ctx, double scale, View<TA> a, View<TB> b, View<T> out) {
    scale = ctx.hook.product(scale, 2.0 * static_cast<double>(a.size()), bytes(a) + bytes(b) + 2 * bytes(out));
    Inner::row_dot(ctx, scale, a, b, out);
  }
  template <class T>
  static double norm2(Context& ctx, View<T> a) {
    ctx.hook.pass(2.0 * static_cast<double>(a.size()), bytes(a));
    return Inner::norm2(ctx, a);
  }
  template <class U, class T>
  static void dropout(Context& ctx, double p, dw::CallKey key, dw::RandomOrigin origin, View<U> in, View<T> out,
                      bool accumulate = false) {
    ctx.hook.pass(static_cast<double>(in.size()), bytes(in) + bytes(out) * (accumulate ? 2 : 1));
    Inner::dropout(ctx, p, key, origin, in, out, accumulate);
  }
  template <class T>
  static void fill_uniform(Context& ctx, dw::RandomKey key, dw::RandomOrigin origin, double low, double high,
                           View<T> out) {
    ctx.hook.pass(0, bytes(out));
    Inner::fill_uniform(ctx, key, origin, low, high, out);
  }
  template <class T>
  static void fill_normal(Context& ctx, dw::RandomKey key, dw::RandomOrigin origin, double deviation, View<T> out) {
    ctx.hook.pass(0, bytes(out));
    Inner::fill_normal(ctx, key, origin, deviation, out);
  }
  template <class TC, class T>
  static void random_combine(Context& ctx, const dw::RandomBases& bases, double scale, View<TC> c, double beta,
                             View<T> out) {
    scale = ctx.hook.product(scale, 2.0 * static_cast<double>(out.size()) * static_cast<double>(c.cols),
                             bytes(c) + bytes(out) * (beta == 0 ? 1 : 2));
    Inner::random_combine(ctx, bases, scale, c, beta, out);
  }
  template <class TA, class T>
  static void random_project(Context& ctx, const dw::RandomBases& bases, double scale, View<TA> in, View<T> out) {
    scale = ctx.hook.product(scale, 2.0 * static_cast<double>(in.size()) * static_cast<double>(out.cols),
                             bytes(in) + 2 * bytes(out));
    Inner::random_project(ctx, bases, scale, in, out);
  }
  using StepState = typename Inner::StepState;
  struct Step : Inner::Step {
    Hook& hook;
    Step(Context& ctx, StepState& state, const dw::StepPolicy& policy)
        : Inner::Step(ctx, state, policy), hook(ctx.hook) {}

    template <class P>
    void measure(const P& p) {
      hook.pass(2.0 * static_cast<double>(p.grad.size()), bytes(p.grad.view()));
      Inner::Step::measure(p);
    }
    template <class T>
    void adamw(const dw::AdamWUpdate& u, View<T> value, View<const T> gradient, View<T> m, View<T> v) {
      hook.pass(12.0 * static_cast<double>(value.size()), 7 * bytes(value));
      Inner::Step::adamw(u, value, gradient, m, v);
    }
    template <class T>
    void sgd(const dw::SgdUpdate& u, View<T> value, View<const T> gradient, View<T> momentum) {
      hook.pass(4.0 * static_cast<double>(value.size()), 3 * bytes(value) + 2 * bytes(momentum));
      Inner::Step::sgd(u, value, gradient, momentum);
    }
  };
  static dw::SettledSteps settle(Context& ctx, StepState& state) { return Inner::settle(ctx, state); }

 private:
  template <class T>
  static double bytes(View<T> v) {
    return static_cast<double>(v.size()) * sizeof(T);
  }
  template <class T>
  static double bytes(dw::Transposed<T, Space> v) {
    return bytes(v.base);
  }
  template <class T>
  static dw::index_t inner_size(View<T> v) {
    return v.cols;
  }
  template <class T>
  static dw::index_t inner_size(dw::Transposed<T, Space> v) {
    return v.base.rows;
  }
};

/// What was done since the last reset.
struct Counts {
  double flops = 0, bytes = 0;
  int products = 0, passes = 0;  ///< launches: products and reductions, and elementwise passes
  double temporary_bytes = 0;    ///< taken from the arena in all

  void temporary(double b) { temporary_bytes += b; }
  double product(double alpha, double f, double b) {
    flops += f, bytes += b, ++products;
    return alpha;
  }
  void pass(double f, double b) { flops += f, bytes += b, ++passes; }
};

/// Changes the factor of the product number `target` since `begin`, while `active`.
struct Fault {
  enum class Kind { None, Sign, MissingScale };
  Kind kind = Kind::None;
  int target = -1, seen = 0;
  bool active = false, changed = false;

  void begin() { seen = 0, changed = false; }
  void temporary(double) {}
  double product(double alpha, double, double) {
    if (!active || seen++ != target || kind == Kind::None) return alpha;
    const double wrong = kind == Kind::Sign ? -alpha : 1;
    changed = changed || wrong != alpha;
    return wrong;
  }
  void pass(double, double) {}
};

template <class Inner>
using Counting = Wrapped<Inner, Counts>;
template <class Inner>
using Faulty = Wrapped<Inner, Fault>;

}  // namespace deltaw_tests
