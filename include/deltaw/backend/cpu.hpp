#pragma once
// The Cpu backend: the closed list of primitives on views of host memory. Adapters name only these. Elementwise work is
// in the value's own precision, or in float for 16-bit storage. No reduction depends on the address of its data.

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <type_traits>

#include "deltaw/backend/cpu_bases.hpp"
#include "deltaw/backend/cpu_gemm.hpp"
#include "deltaw/backend/cpu_update.hpp"
#include "deltaw/core/random.hpp"
#include "deltaw/core/signed_columns.hpp"

namespace deltaw {

#if DELTAW_CBLAS
inline namespace cpu_with_cblas {
#else
inline namespace cpu_with_eigen {
#endif

/// CPU backend. A product runs on the threads of its BLAS (OMP_NUM_THREADS), which belong to the program, not to us.
struct Cpu {
  using Space = Host;

  /// Workspace of one thread of calls: grows in the first step and then allocates nothing; or the caller's own memory,
  /// which never grows. One Context per calling thread.
  struct Context {
    Arena<Host> arena;
    Context() = default;
    Context(void* memory, std::size_t bytes) : arena(memory, bytes) {}
  };

  static constexpr index_t tile_rows = 256;  ///< of what is dropped out at a time

  /// The type of what lies between two products of an adapter (Z = X A^T): the parameters' own.
  template <class P, class Act>
  using Intermediate = P;

  /// A temporary that lives until the enclosing `Arena::Mark` ends.
  template <class T>
  static MatrixView<T, Host> temp(Context& ctx, index_t rows, index_t cols) {
    return ctx.arena.template take<T>(rows, cols);
  }

  /// C = alpha A B + beta C; A or B may be `t(view)`, the types may be mixed. beta = 0 never reads C.
  template <class A, class B, class T>
  static void gemm(Context& ctx, double alpha, A a, B b, double beta, MatrixView<T, Host> c) {
    static_assert(!std::is_const_v<T>,
                  "deltaw: a product is written into memory that is const, a frozen weight perhaps");
    cpu_detail::gemm(ctx.arena, alpha, cpu_detail::operand(a), cpu_detail::operand(b), beta, c);
  }

  /// C_k = alpha A_k B_k + beta C_k for every k of a batch, see BatchSteps; the C_k must not overlap.
  template <class A, class B, class T>
  static void gemm_batched(Context& ctx, const BatchSteps& steps, double alpha, A a, B b, double beta,
                           MatrixView<T, Host> c) {
    check_batch("gemm_batched", steps, c);
    for (index_t k = 0; k < steps.count; ++k)
      gemm(ctx, alpha, moved(a, k * steps.a), moved(b, k * steps.b), beta, moved(c, k * steps.c));
  }

  /// C = alpha A S + beta C with S of -1, 0 and 1: sums over each column's non-zeros in their order. Rows of S from A's
  /// columns on are left out, as if A ended in zeros. beta = 0 never reads C.
  template <class TA, class T>
  static void gemm_signed(Context& ctx, double alpha, MatrixView<TA, Host> a, const SignedColumns<Host>& s, double beta,
                          MatrixView<T, Host> c) {
    check_view("gemm_signed", "a", a, a.rows, a.cols);
    check_view("gemm_signed", "c", c, a.rows, s.cols);
    check_no_alias("gemm_signed", "a", a, "c", c);
    using C = compute_t<T>;
    Arena<Host>::Mark mark(ctx.arena);
    const bool turn = s.non_zeros > 2 * a.cols;  // else copying A costs more than reading across its rows
    const auto turned = turn ? temp<C>(ctx, a.cols, signed_lanes) : MatrixView<C, Host>{};
    for (index_t first = 0; first < a.rows; first += signed_lanes) {
      const auto rows = a.row_range(first, std::min(signed_lanes, a.rows - first));
      const auto out = c.row_range(first, rows.rows);
      if (turn) {
        if (rows.rows < signed_lanes) fill(ctx, turned, 0);
        copy_transposed(ctx, rows, turned.col_range(0, rows.rows));
        add_signed_rows<C>(alpha, s, rows.cols, beta, out,
                           [&](index_t row, C*) -> const C* { return turned.data + row * signed_lanes; });
      } else {
        add_signed_rows<C>(alpha, s, rows.cols, beta, out, [&](index_t row, C* lanes) -> const C* {
          for (index_t l = 0; l < rows.rows; ++l) lanes[l] = static_cast<C>(rows.data[l * rows.stride + row]);
          return lanes;
        });
      }
    }
  }

  /// out(i, j) = f(out(i, j), in(i, j)...). An input of one row or one column is broadcast.
  template <class F, class T, class... In>
  static void map(Context&, F f, MatrixView<T, Host> out, MatrixView<In, Host>... in) {
    (check_broadcast(out, in), ...);
    const bool plain = ((in.cols == out.cols) && ...);
    for (index_t i = 0; i < out.rows; ++i) {
      T* row = out.data + i * out.stride;
      if (plain) {
        for (index_t j = 0; j < out.cols; ++j) row[j] = T(f(compute_t<T>(row[j]), value(in, i)[j]...));
      } else {
        for (index_t j = 0; j < out.cols; ++j)
          row[j] = T(f(compute_t<T>(row[j]), value(in, i)[in.cols == 1 ? 0 : j]...));
      }
    }
  }

  template <class T>
  static void fill(Context&, MatrixView<T, Host> out, double constant) {
    for (index_t i = 0; i < out.rows; ++i) std::fill_n(out.data + i * out.stride, out.cols, T(constant));
  }

  /// out = in, converted.
  template <class U, class T>
  static void copy(Context&, MatrixView<U, Host> in, MatrixView<T, Host> out) {
    check_view("copy", "out", out, in.rows, in.cols);
    for (index_t i = 0; i < in.rows; ++i)
      for (index_t j = 0; j < in.cols; ++j)
        out.data[i * out.stride + j] = T(static_cast<compute_t<T>>(in.data[i * in.stride + j]));
  }

  /// out = in^T, converted.
  template <class U, class T>
  static void copy_transposed(Context&, MatrixView<U, Host> in, MatrixView<T, Host> out) {
    check_view("copy_transposed", "out", out, in.cols, in.rows);
    check_no_alias("copy_transposed", "in", in, "out", out);
    constexpr index_t block = 16;  // 16 x 16 floats: both sides of a block stay in the first cache
    for (index_t i0 = 0; i0 < in.rows; i0 += block)
      for (index_t j0 = 0; j0 < in.cols; j0 += block)
        for (index_t i = i0; i < std::min(i0 + block, in.rows); ++i)
          for (index_t j = j0; j < std::min(j0 + block, in.cols); ++j)
            out.data[j * out.stride + i] = T(static_cast<compute_t<T>>(in.data[i * in.stride + j]));
  }

  /// out_j += scale * sum_i a_ij b_ij (out: one row).
  template <class TA, class TB, class T>
  static void col_dot(Context&, double scale, MatrixView<TA, Host> a, MatrixView<TB, Host> b, MatrixView<T, Host> out) {
    check_view("col_dot", "b", b, a.rows, a.cols);
    add_column_sums("col_dot", scale, out, a.rows, a.cols, [=](index_t i, index_t j) {
      return static_cast<compute_t<T>>(a.data[i * a.stride + j]) * static_cast<compute_t<T>>(b.data[i * b.stride + j]);
    });
  }

  /// out_j += scale * sum_i a_ij (out: one row).
  template <class TA, class T>
  static void col_sum(Context&, double scale, MatrixView<TA, Host> a, MatrixView<T, Host> out) {
    add_column_sums("col_sum", scale, out, a.rows, a.cols,
                    [=](index_t i, index_t j) { return static_cast<compute_t<T>>(a.data[i * a.stride + j]); });
  }

  /// out_i += scale * sum_j a_ij b_ij (out: one row of a.rows elements).
  template <class TA, class TB, class T>
  static void row_dot(Context&, double scale, MatrixView<TA, Host> a, MatrixView<TB, Host> b, MatrixView<T, Host> out) {
    check_view("row_dot", "b", b, a.rows, a.cols);
    check_view("row_dot", "out", out, 1, a.rows);
    using C = compute_t<T>;
    for (index_t i = 0; i < a.rows; ++i) {
      const auto* u = a.data + i * a.stride;
      const auto* v = b.data + i * b.stride;
      const C sum = lane_sum<C>(a.cols, [&](index_t j) { return static_cast<C>(u[j]) * static_cast<C>(v[j]); });
      out.data[i] = T(static_cast<C>(out.data[i]) + static_cast<C>(scale) * sum);
    }
  }

  /// sum_ij a_ij^2 in double; NaN or infinity where an element is.
  template <class T>
  static double norm2(Context&, MatrixView<T, Host> a) {
    double sum = 0;
    for (index_t i = 0; i < a.rows; ++i) {
      const auto* row = a.data + i * a.stride;
      sum += lane_sum<double>(a.cols,
                              [&](index_t j) { return static_cast<double>(row[j]) * static_cast<double>(row[j]); });
    }
    return sum;
  }

  /// out = mask o in / (1 - p), or out += that: element (i, j) is dropped where its random number falls below p.
  template <class U, class T>
  static void dropout(Context&, double p, CallKey key, RandomOrigin origin, MatrixView<U, Host> in,
                      MatrixView<T, Host> out, bool accumulate = false) {
    check_view("dropout", "out", out, in.rows, in.cols);
    const auto threshold = static_cast<std::uint64_t>(std::llround(p * 0x1p32));
    const auto keep = static_cast<compute_t<T>>(1 / (1 - p));
    for_each_random(key.key(), origin, in.rows, in.cols, [&](index_t i, index_t j, std::uint32_t bits) {
      const auto x = bits < threshold ? compute_t<T>(0) : static_cast<compute_t<T>>(in.data[i * in.stride + j]) * keep;
      T& o = out.data[i * out.stride + j];
      o = T(accumulate ? static_cast<compute_t<T>>(o) + x : x);
    });
  }

  /// out_ij uniform in [low, high), addressed by (key, origin + (i, j)).
  template <class T>
  static void fill_uniform(Context&, RandomKey key, RandomOrigin origin, double low, double high,
                           MatrixView<T, Host> out) {
    for_each_random(key, origin, out.rows, out.cols, [&](index_t i, index_t j, std::uint32_t bits) {
      out.data[i * out.stride + j] = T(std::fma(uniform01(bits), high - low, low));
    });
  }

  /// out_ij normal with the given deviation, addressed by (key, origin + (i, j)).
  template <class T>
  static void fill_normal(Context&, RandomKey key, RandomOrigin origin, double deviation, MatrixView<T, Host> out) {
    for_each_random(key, origin, out.rows, out.cols, [&](index_t i, index_t j, std::uint32_t bits) {
      out.data[i * out.stride + j] = T(deviation * normal01(bits));
    });
  }

  /// out = beta out + scale sum_n c_n U_n (c: one row), see RandomBases; beta = 0 never reads out.
  template <class TC, class T>
  static void random_combine(Context& ctx, const RandomBases& bases, double scale, MatrixView<TC, Host> c, double beta,
                             MatrixView<T, Host> out) {
    check_view("random_combine", "c", c, 1, c.cols);
    check_view("random_combine", "out", out, out.rows, out.cols);
    check_no_alias("random_combine", "c", c, "out", out);
    cpu_detail::bases::combine(ctx.arena, bases, scale, c, beta, out);
  }

  /// out_n += scale <U_n, in> (out: one row), see RandomBases.
  template <class TA, class T>
  static void random_project(Context& ctx, const RandomBases& bases, double scale, MatrixView<TA, Host> in,
                             MatrixView<T, Host> out) {
    check_view("random_project", "in", in, in.rows, in.cols);
    check_view("random_project", "out", out, 1, out.cols);
    check_no_alias("random_project", "in", in, "out", out);
    cpu_detail::bases::project(ctx.arena, bases, scale, in, out);
  }

  /// What an optimizer keeps on the device between its steps: nothing, here.
  struct StepState {};

  /// One optimizer step: `measure` every gradient, `decide`, hand over every update, `run`. Here each is done as it comes.
  class Step {
   public:
    Step(Context& ctx, StepState&, const StepPolicy& policy) : ctx_(ctx), policy_(policy) {}

    template <class P>
    void measure(const P& parameter) {
      const double n = norm2(ctx_, parameter.grad.view());
      if (!std::isfinite(n) && report_.non_finite.empty()) report_.non_finite = parameter.full_name();
      norm2_ += n;
    }
    /// Whether the step is taken, by what was measured.
    StepReport decide() {
      if (!policy_.needs_norm()) return report_;
      report_.gradient_norm = std::sqrt(norm2_) * policy_.unscale;
      report_.skipped = policy_.skip_non_finite && !report_.non_finite.empty();
      if (!policy_.skip_non_finite) report_.non_finite.clear();
      return report_;
    }
    /// For a rule to put into its update.
    double gradient_scale() const {
      return clipped_scale(policy_.unscale, policy_.max_gradient_norm, report_.gradient_norm);
    }
    Context& context() { return ctx_; }

    /// p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    /// p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    template <class T>
    void adamw(const AdamWUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient,
               MatrixView<T, Host> m, MatrixView<T, Host> v) {
      check_view("adamw", "gradient", gradient, value.rows, value.cols);
      check_view("adamw", "m", m, value.rows, value.cols);
      check_view("adamw", "v", v, value.rows, value.cols);
      cpu_detail::adamw(u, value, gradient, m, v);
    }
    /// g += wd p; with momentum b = mu b + (1 - dampening) g (b = g at the first step), g = b, or g + mu b for Nesterov;
    /// p -= lr g. `momentum` may be empty.
    template <class T>
    void sgd(const SgdUpdate& u, MatrixView<T, Host> value, ConstMatrixView<T, Host> gradient,
             MatrixView<T, Host> momentum) {
      check_view("sgd", "gradient", gradient, value.rows, value.cols);
      if (!momentum.empty()) check_view("sgd", "momentum", momentum, value.rows, value.cols);
      cpu_detail::sgd(u, value, gradient, momentum);
    }
    void run() {}

   private:
    Context& ctx_;
    StepPolicy policy_;
    StepReport report_;
    double norm2_ = 0;
  };
  /// What the last steps did that the host does not know yet: here, nothing.
  static SettledSteps settle(Context&, StepState&) { return {}; }

 private:
  template <class In>
  static auto value(MatrixView<In, Host> in, index_t i) {
    return in.data + (in.rows == 1 ? 0 : i * in.stride);
  }

  template <class T, class In>
  static void check_broadcast(MatrixView<T, Host> out, MatrixView<In, Host> in) {
    check_view("map", "input", in, in.rows == 1 ? 1 : out.rows, in.cols == 1 ? 1 : out.cols);
  }

  static constexpr index_t signed_lanes = 16;  // rows that `gemm_signed` sums side by side: a cache line of floats

  // At most 16 rows of C = alpha A S + beta C, `column(k, room)` being where those rows of A's column k lie side by side.
  template <class C, class T, class F>
  static void add_signed_rows(double alpha, const SignedColumns<Host>& s, index_t limit, double beta,
                              MatrixView<T, Host> c, F column) {
    using Lanes = Eigen::Array<C, signed_lanes, 1>;  // in registers: what g++ makes of a plain array here is not
    C room[signed_lanes] = {};
    for (index_t j = 0; j < c.cols; ++j) {
      if (s.begin[j] == s.begin[j + 1] && beta == 1) continue;
      Lanes sum = Lanes::Zero();
      for (std::int32_t at = s.begin[j]; at < s.begin[j + 1]; ++at) {
        const std::int32_t code = s.row_of[at];
        const index_t row = code < 0 ? ~code : code;
        if (row >= limit) break;
        const C sign = code < 0 ? C(-1) : C(1);  // exact, and without a branch that no processor can foresee
        sum += sign * Eigen::Map<const Lanes>(column(row, room));
      }
      for (index_t i = 0; i < c.rows; ++i) {
        T& out = c.data[i * c.stride + j];
        const C added = static_cast<C>(alpha) * sum[i];
        out = T(beta == 0 ? added : added + static_cast<C>(beta) * static_cast<C>(out));
      }
    }
  }

  // sum_j f(j) in 16 lanes by j mod 16 and then a fixed tree: vectors without reassociating, whatever the address.
  template <class C, class F>
  static C lane_sum(index_t n, F f) {
    constexpr index_t lanes = 16;
    std::array<C, lanes> acc{};
    index_t j = 0;
    for (; j + lanes <= n; j += lanes)
      for (index_t l = 0; l < lanes; ++l) acc[static_cast<std::size_t>(l)] += f(j + l);
    for (index_t l = 0; j < n; ++j, ++l) acc[static_cast<std::size_t>(l)] += f(j);
    for (std::size_t width = lanes / 2; width > 0; width /= 2)
      for (std::size_t l = 0; l < width; ++l) acc[l] += acc[l + width];
    return acc[0];
  }

  // out_j += scale * sum_i f(i, j): 64 columns at a time stay in registers, rows in their order.
  template <class T, class F>
  static void add_column_sums(std::string_view where, double scale, MatrixView<T, Host> out, index_t rows, index_t cols,
                              F f) {
    check_view(where, "out", out, 1, cols);
    using C = compute_t<T>;
    constexpr index_t width = 64;
    for (index_t j0 = 0; j0 < cols; j0 += width) {
      std::array<C, width> acc{};
      const index_t n = std::min(width, cols - j0);
      for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < n; ++j) acc[static_cast<std::size_t>(j)] += f(i, j0 + j);
      for (index_t j = 0; j < n; ++j)
        out.data[j0 + j] =
            T(static_cast<C>(out.data[j0 + j]) + static_cast<C>(scale) * acc[static_cast<std::size_t>(j)]);
    }
  }

  // f(i, j, bits) for every element; 16 blocks of Philox at a time so that the rounds run in vectors.
  template <class F>
  static void for_each_random(RandomKey key, RandomOrigin origin, index_t rows, index_t cols, F f) {
    constexpr index_t blocks = 16;
    std::array<std::uint32_t, 4 * blocks> bits;
    const auto offset = static_cast<index_t>(origin.col % 4);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t first = -offset; first < cols; first += 4 * blocks) {
        philox_run(key, (origin.col + static_cast<std::uint64_t>(first + offset)) / 4,
                   origin.row + static_cast<std::uint64_t>(i), bits);
        const index_t begin = std::max<index_t>(first, 0), end = std::min(first + 4 * blocks, cols);
        for (index_t j = begin; j < end; ++j) f(i, j, bits[static_cast<std::size_t>(j - first)]);
      }
    }
  }

  template <std::size_t N>
  static void philox_run(RandomKey key, std::uint64_t first_block, std::uint64_t row,
                         std::array<std::uint32_t, N>& bits) {
    for (std::size_t b = 0; b < N / 4; ++b) {
      const PhiloxBlock block = key.block(first_block + b, row);
      for (std::size_t w = 0; w < 4; ++w) bits[4 * b + w] = block[w];
    }
  }
};

}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
