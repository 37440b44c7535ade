#pragma once
// The Cuda backend: the same primitives as Cpu on views of device memory. Products are cuBLAS, the rest are kernels of ours.
// Everything is enqueued on the context's stream: nothing synchronises, and after the first step nothing allocates.

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "deltaw/backend/cuda_bases.hpp"
#include "deltaw/backend/cuda_kernels.hpp"
#include "deltaw/backend/cuda_step.hpp"
#include "deltaw/core/functors.hpp"

namespace deltaw {

struct Cuda {
  using Space = Device;
  using Context = CudaContext;
  using StepState = CudaStepState;
  using Step = CudaStep;
  static SettledSteps settle(Context& ctx, StepState& state) { return settle_steps(ctx, state); }

  static constexpr index_t tile_rows = 8192;  ///< of what is dropped out at a time

  /// The type of what lies between two products of an adapter (Z = X A^T): the activations' where those have 16 bits. The
  /// next product would round it to that anyhow, in a launch of its own.
  template <class P, class Act>
  using Intermediate = std::conditional_t<is_half<Act>, Act, P>;

  template <class T>
  static MatrixView<T, Device> temp(Context& ctx, index_t rows, index_t cols) {
    return ctx.arena.template take<T>(rows, cols);
  }

  /// C = alpha A B + beta C, sums in float for 16-bit operands. cuBLAS takes one type for both: a float operand is rounded
  /// where the other operand and C have 16 bits. Where one of the three has 16 bits alone, or is double, the others stay
  /// exact.
  template <class A, class B, class T>
  static void gemm(Context& ctx, double alpha, A a, B b, double beta, MatrixView<T, Device> c);
  /// C_k = alpha A_k B_k + beta C_k for every k of a batch, in one call of cuBLAS: the operands are of one type, and C of the
  /// same, or of float where they have 16 bits.
  template <class A, class B, class T>
  static void gemm_batched(Context& ctx, const BatchSteps& steps, double alpha, A a, B b, double beta,
                           MatrixView<T, Device> c);

  /// C = alpha A S + beta C with S of -1, 0 and 1, as on the Cpu: rows of S from A's columns on are left out.
  template <class TA, class T>
  static void gemm_signed(Context& ctx, double alpha, MatrixView<TA, Device> a, const SignedColumns<Device>& s,
                          double beta, MatrixView<T, Device> c) {
    check_view("gemm_signed", "a", a, a.rows, a.cols);
    check_view("gemm_signed", "c", c, a.rows, s.cols);
    check_no_alias("gemm_signed", "a", a, "c", c);
    if (c.empty()) return;
    const dim3 grid(blocks(c.cols, cuda_detail::block_size), grid_rows(c.rows, 1));
    cuda_detail::launch(ctx.stream(), grid, cuda_detail::block_size,
                        &cuda_detail::signed_kernel<T, std::remove_const_t<TA>>, alpha, read(a), s, beta, c);
  }

  /// out(i, j) = f(out(i, j), in(i, j)...). An input of one row or one column is broadcast.
  template <class F, class T, class... In>
  static void map(Context& ctx, F f, MatrixView<T, Device> out, MatrixView<In, Device>... in);

  template <class T>
  static void fill(Context& ctx, MatrixView<T, Device> out, double constant) {
    map(ctx, Constant{constant}, out);
  }
  /// out = in, converted.
  template <class U, class T>
  static void copy(Context& ctx, MatrixView<U, Device> in, MatrixView<T, Device> out) {
    check_view("copy", "out", out, in.rows, in.cols);
    map(ctx, Assign{}, out, ConstMatrixView<std::remove_const_t<U>, Device>(in));
  }
  template <class U, class T>
  static void copy_transposed(Context& ctx, MatrixView<U, Device> in, MatrixView<T, Device> out) {
    check_view("copy_transposed", "out", out, in.cols, in.rows);
    check_no_alias("copy_transposed", "in", in, "out", out);
    if (in.empty()) return;
    const dim3 grid(blocks(in.cols, 32), grid_rows(in.rows, 32));
    cuda_detail::launch(ctx.stream(), grid, cuda_detail::block_size,
                        &cuda_detail::transpose_kernel<std::remove_const_t<U>, T>, read(in), out);
  }

  /// out_j += scale * sum_i a_ij b_ij (out: one row).
  template <class TA, class TB, class T>
  static void col_dot(Context& ctx, double scale, MatrixView<TA, Device> a, MatrixView<TB, Device> b,
                      MatrixView<T, Device> out) {
    check_view("col_dot", "b", b, a.rows, a.cols);
    check_view("col_dot", "out", out, 1, a.cols);
    column_sums(ctx, scale, read(a), read(b), out);
  }
  /// out_j += scale * sum_i a_ij (out: one row).
  template <class TA, class T>
  static void col_sum(Context& ctx, double scale, MatrixView<TA, Device> a, MatrixView<T, Device> out) {
    check_view("col_sum", "out", out, 1, a.cols);
    column_sums(ctx, scale, read(a), ConstMatrixView<std::remove_const_t<TA>, Device>{}, out);
  }
  /// out_i += scale * sum_j a_ij b_ij (out: one row of a.rows elements).
  template <class TA, class TB, class T>
  static void row_dot(Context& ctx, double scale, MatrixView<TA, Device> a, MatrixView<TB, Device> b,
                      MatrixView<T, Device> out) {
    check_view("row_dot", "b", b, a.rows, a.cols);
    check_view("row_dot", "out", out, 1, a.rows);
    if (a.empty()) return;
    cuda_detail::launch(ctx.stream(), dim3(blocks(a.rows, cuda_detail::block_size / 32)), cuda_detail::block_size,
                        &cuda_detail::row_dot_kernel<T, std::remove_const_t<TA>, std::remove_const_t<TB>>, scale,
                        read(a), read(b), out);
  }

  /// sum_ij a_ij^2 in double, on the host: it waits for the stream. An optimizer step does not, see CudaStep.
  template <class T>
  static double norm2(Context& ctx, MatrixView<T, Device> a) {
    Arena<Device>::Mark mark(ctx.arena);
    const auto record = temp<cuda_detail::StepRecord>(ctx, 1, 1);
    cuda_detail::PendingTensors pending;
    bool first = true;
    const auto sum_up = [&] {
      cuda_detail::launch_norm2<std::remove_const_t<T>>(ctx, pending, first, record.data);
      first = false;
    };
    cuda_detail::for_each_piece(a.rows, a.cols, a.contiguous(), [&](index_t row, index_t count) {
      if (pending.full()) sum_up();
      pending.add({nullptr, a.data + row * a.stride, nullptr, nullptr, count, 0, 0});
    });
    sum_up();
    double sum = 0;
    cuda_detail::check(cudaMemcpyAsync(&sum, &record.data->norm2, sizeof sum, cudaMemcpyDeviceToHost, ctx.stream()),
                       "cudaMemcpyAsync");
    ctx.synchronize();
    return sum;
  }

  /// out = mask o in / (1 - p), or out += that, as on the Cpu: the same elements fall.
  template <class U, class T>
  static void dropout(Context& ctx, double p, CallKey key, RandomOrigin origin, MatrixView<U, Device> in,
                      MatrixView<T, Device> out, bool accumulate = false) {
    check_view("dropout", "out", out, in.rows, in.cols);
    const cuda_detail::DropElement<std::remove_const_t<U>, T> drop{
        read(in), out, static_cast<std::uint64_t>(std::llround(p * 0x1p32)), 1 / (1 - p), accumulate ? 1u : 0u};
    random(ctx, drop, key, origin, in.rows, in.cols);
  }
  template <class T>
  static void fill_uniform(Context& ctx, RandomKey key, RandomOrigin origin, double low, double high,
                           MatrixView<T, Device> out) {
    random(ctx, cuda_detail::UniformElement<T>{out, low, high - low}, key, origin, out.rows, out.cols);
  }
  template <class T>
  static void fill_normal(Context& ctx, RandomKey key, RandomOrigin origin, double deviation,
                          MatrixView<T, Device> out) {
    random(ctx, cuda_detail::NormalElement<T>{out, deviation}, key, origin, out.rows, out.cols);
  }

  /// out = beta out + scale sum_n c_n U_n (c: one row), see RandomBases; beta = 0 never reads out.
  template <class TC, class T>
  static void random_combine(Context& ctx, const RandomBases& bases, double scale, MatrixView<TC, Device> c,
                             double beta, MatrixView<T, Device> out) {
    check_view("random_combine", "c", c, 1, c.cols);
    check_view("random_combine", "out", out, out.rows, out.cols);
    check_no_alias("random_combine", "c", c, "out", out);
    cuda_detail::combine(ctx, bases, scale, read(c), beta, out);
  }
  /// out_n += scale <U_n, in> (out: one row), see RandomBases.
  template <class TA, class T>
  static void random_project(Context& ctx, const RandomBases& bases, double scale, MatrixView<TA, Device> in,
                             MatrixView<T, Device> out) {
    check_view("random_project", "in", in, in.rows, in.cols);
    check_view("random_project", "out", out, 1, out.cols);
    check_no_alias("random_project", "in", in, "out", out);
    cuda_detail::project(ctx, bases, scale, read(in), out);
  }

 private:
  template <class T>
  static ConstMatrixView<std::remove_const_t<T>, Device> read(MatrixView<T, Device> v) {
    return v;
  }
  static unsigned blocks(index_t n, index_t size) { return static_cast<unsigned>((n + size - 1) / size); }
  // Enough blocks to fill any card; further rows are taken by the same threads in a loop.
  static unsigned grid_rows(index_t rows, int rows_a_block) { return std::min(blocks(rows, rows_a_block), 1024u); }
  // Threads along a row: the least power of two that covers it, from 1 to a whole block.
  static int row_width(index_t items) {
    int width = 1;
    while (width < items && width < cuda_detail::block_size) width *= 2;
    return width;
  }

  template <class T, class A, class B>
  static void column_sums(Context& ctx, double scale, ConstMatrixView<A, Device> a, ConstMatrixView<B, Device> b,
                          MatrixView<T, Device> out) {
    if (a.empty()) return;
    cuda_detail::launch(ctx.stream(), dim3(blocks(a.cols, 32)), cuda_detail::block_size,
                        &cuda_detail::column_sums_kernel<T, A, B>, scale, a, b, out);
  }
  template <class F, class Key>
  static void random(Context& ctx, F f, Key key, RandomOrigin origin, index_t rows, index_t cols) {
    if (rows == 0 || cols == 0) return;
    const index_t slots = (cols + static_cast<index_t>(origin.col % 4) + 3) / 4;
    const cuda_detail::Tiling tiling{row_width(slots), 4};
    const dim3 grid(blocks(slots, tiling.width), grid_rows(rows, cuda_detail::block_size / tiling.width));
    cuda_detail::launch(ctx.stream(), grid, cuda_detail::block_size, &cuda_detail::random_kernel<F, Key>, f, key,
                        origin, rows, cols, tiling, ctx.replay());
  }
};

template <class F, class T, class... In>
void Cuda::map(Context& ctx, F f, MatrixView<T, Device> out, MatrixView<In, Device>... in) {
  (check_view("map", "input", in, in.rows == 1 ? 1 : out.rows, in.cols == 1 ? 1 : out.cols), ...);
  if (out.empty()) return;
  constexpr int pack = static_cast<int>(16 / std::max({sizeof(T), sizeof(In)...}));
  const auto packs = [&](auto v) {
    return reinterpret_cast<std::uintptr_t>(v.data) % (pack * sizeof(*v.data)) == 0 &&
           (v.rows == 1 || v.stride % pack == 0) && v.cols == out.cols;
  };
  const bool packed = pack > 1 && out.cols % pack == 0 && packs(out) && (packs(in) && ...);
  const cuda_detail::Tiling tiling{row_width(packed ? out.cols / pack : out.cols), packed ? pack : 1};
  const dim3 grid(blocks(out.cols, tiling.width * tiling.pack),
                  grid_rows(out.rows, cuda_detail::block_size / tiling.width));
  [[maybe_unused]] const auto input = [](auto v) {
    using Value = std::remove_const_t<std::remove_pointer_t<decltype(v.data)>>;
    return cuda_detail::Input<Value>{v.data, v.rows == 1 ? 0 : v.stride, index_t{v.cols == 1 ? 0 : 1}};
  };
  if (packed) {
    cuda_detail::launch(ctx.stream(), grid, cuda_detail::block_size,
                        &cuda_detail::packed_map_kernel<pack, F, T, std::remove_const_t<In>...>, f, out, tiling,
                        input(in)...);
  } else {
    cuda_detail::launch(ctx.stream(), grid, cuda_detail::block_size,
                        &cuda_detail::map_kernel<F, T, std::remove_const_t<In>...>, f, out, tiling, input(in)...);
  }
}

namespace cuda_detail {

/// One operand as it lies in memory; `transposed` says that the product uses its transpose.
template <class T>
struct Operand {
  ConstMatrixView<T, Device> stored;
  bool transposed;
  index_t rows() const { return transposed ? stored.cols : stored.rows; }
  index_t cols() const { return transposed ? stored.rows : stored.cols; }
  Operand rows_from(index_t first, index_t count) const {
    return {transposed ? stored.col_range(first, count) : stored.row_range(first, count), transposed};
  }
  Operand cols_from(index_t first, index_t count) const {
    return {transposed ? stored.row_range(first, count) : stored.col_range(first, count), transposed};
  }
};
template <class T>
Operand<std::remove_const_t<T>> operand(MatrixView<T, Device> v) {
  return {v, false};
}
template <class T>
Operand<std::remove_const_t<T>> operand(Transposed<T, Device> v) {
  return {v.base, true};
}

/// `o` itself where it is of type N already, else rounded into the arena.
template <class N, class T>
Operand<N> as_type(Cuda::Context& ctx, Operand<T> o) {
  if constexpr (std::is_same_v<N, T>) {
    return o;
  } else {
    auto rounded = Cuda::temp<N>(ctx, o.stored.rows, o.stored.cols);
    Cuda::copy(ctx, o.stored, rounded);
    return {rounded, o.transposed};
  }
}

/// Row-major C = alpha A B + beta C is column-major C^T = alpha B^T A^T + beta C^T: the operands change places, and what
/// is stored row-major needs no transposition.
template <class N, class T>
void multiply(Cuda::Context& ctx, double alpha, Operand<N> a, Operand<N> b, double beta, MatrixView<T, Device> c,
              const BatchSteps& steps = {}) {
  constexpr bool wide = std::is_same_v<N, double>;
  const auto size = [](index_t n) {
    constexpr index_t limit = std::numeric_limits<int>::max();
    if (n > limit) raise_mismatch<ShapeError>("gemm", "size for cuBLAS", n, "at most " + std::to_string(limit));
    return static_cast<int>(n);
  };
  const auto leading = [&](auto v) { return size(std::max<index_t>({v.stride, v.cols, 1})); };
  const auto flag = [](const auto& o) { return o.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  const void* factor = wide ? static_cast<const void*>(&alpha) : &alpha32;
  const void* keep = wide ? static_cast<const void*>(&beta) : &beta32;
  constexpr auto compute = wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  if (steps.count == 1) {
    check(cublasGemmEx(ctx.cublas(), flag(b), flag(a), size(c.cols), size(c.rows), size(a.cols()), factor,
                       b.stored.data, data_type<N>(), leading(b.stored), a.stored.data, data_type<N>(),
                       leading(a.stored), keep, c.data, data_type<T>(), leading(c), compute, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  } else {
    check(cublasGemmStridedBatchedEx(ctx.cublas(), flag(b), flag(a), size(c.cols), size(c.rows), size(a.cols()), factor,
                                     b.stored.data, data_type<N>(), leading(b.stored), steps.b, a.stored.data,
                                     data_type<N>(), leading(a.stored), steps.a, keep, c.data, data_type<T>(),
                                     leading(c), steps.c, size(steps.count), compute, CUBLAS_GEMM_DEFAULT),
          "cublasGemmStridedBatchedEx");
  }
}

template <class TA, class TB, class T>
void check_product(std::string_view where, const Operand<TA>& a, const Operand<TB>& b, MatrixView<T, Device> c) {
  if (a.cols() != b.rows()) raise_mismatch<ShapeError>(where, "b.rows", b.rows(), std::to_string(a.cols()));
  check_view(where, "a", a.stored, a.stored.rows, a.stored.cols);
  check_view(where, "b", b.stored, b.stored.rows, b.stored.cols);
  check_view(where, "c", c, a.rows(), b.cols());
  check_no_alias(where, "a", a.stored, "c", c);
  check_no_alias(where, "b", b.stored, "c", c);
}

/// The type both operands take: double where there is one; a 16-bit type where both have it, or one and the output; else
/// float.
template <class A, class B, class C>
struct ProductType {
  template <class T>
  static constexpr bool any = std::is_same_v<A, T> || std::is_same_v<B, T> || std::is_same_v<C, T>;
  static_assert(any<double> || !(any<bf16> && any<f16>), "deltaw: no product mixes bf16 and f16: convert one of them");
  static constexpr int halves = (is_half<A> ? 1 : 0) + (is_half<B> ? 1 : 0) + (is_half<C> ? 1 : 0);
  using Half = std::conditional_t<any<bf16>, bf16, f16>;
  using type = std::conditional_t<any<double>, double, std::conditional_t<halves >= 2, Half, float>>;
};

/// A product of which one part alone has 16 bits: that part passes through float, in tiles of at most 256 rows or columns, and
/// nothing else is rounded.
template <class TA, class TB, class T>
void widened_product(Cuda::Context& ctx, double alpha, Operand<TA> a, Operand<TB> b, double beta,
                     MatrixView<T, Device> c) {
  constexpr bool by_cols = is_half<TB>;
  constexpr index_t tile = 256;
  const index_t size = by_cols ? c.cols : c.rows;
  for (index_t first = 0; first < size; first += tile) {
    Arena<Device>::Mark mark(ctx.arena);
    const index_t count = std::min(tile, size - first);
    const auto part = by_cols ? c.col_range(first, count) : c.row_range(first, count);
    const auto in_a = as_type<float>(ctx, by_cols ? a : a.rows_from(first, count));
    const auto in_b = as_type<float>(ctx, by_cols ? b.cols_from(first, count) : b);
    if constexpr (is_half<T>) {
      auto sum = Cuda::temp<float>(ctx, part.rows, part.cols);
      if (beta != 0) Cuda::copy(ctx, part, sum);
      multiply<float>(ctx, alpha, in_a, in_b, beta, sum);
      Cuda::copy(ctx, sum, part);
    } else {
      multiply<float>(ctx, alpha, in_a, in_b, beta, part);
    }
  }
}

}  // namespace cuda_detail

template <class A, class B, class T>
void Cuda::gemm(Context& ctx, double alpha, A left, B right, double beta, MatrixView<T, Device> c) {
  const auto a = cuda_detail::operand(left);
  const auto b = cuda_detail::operand(right);
  cuda_detail::check_product("gemm", a, b, c);
  if (c.empty()) return;
  if (a.cols() == 0 || alpha == 0) {
    if (beta == 0) return fill(ctx, c, 0);
    if (beta != 1) map(ctx, Scale{beta}, c);
    return;
  }
  using TA = std::remove_const_t<std::remove_pointer_t<decltype(a.stored.data)>>;
  using TB = std::remove_const_t<std::remove_pointer_t<decltype(b.stored.data)>>;
  using N = typename cuda_detail::ProductType<TA, TB, T>::type;
  if constexpr (std::is_same_v<N, float> && cuda_detail::ProductType<TA, TB, T>::halves == 1)
    return cuda_detail::widened_product(ctx, alpha, a, b, beta, c);
  Arena<Device>::Mark mark(ctx.arena);
  const auto in_a = cuda_detail::as_type<N>(ctx, a), in_b = cuda_detail::as_type<N>(ctx, b);
  if constexpr (std::is_same_v<N, double> && !std::is_same_v<T, double>) {
    auto wide = temp<double>(ctx, c.rows, c.cols);
    if (beta != 0) copy(ctx, c, wide);
    cuda_detail::multiply<N>(ctx, alpha, in_a, in_b, beta, wide);
    copy(ctx, wide, c);
  } else {
    cuda_detail::multiply<N>(ctx, alpha, in_a, in_b, beta, c);
  }
}

template <class A, class B, class T>
void Cuda::gemm_batched(Context& ctx, const BatchSteps& steps, double alpha, A left, B right, double beta,
                        MatrixView<T, Device> c) {
  const auto a = cuda_detail::operand(left);
  const auto b = cuda_detail::operand(right);
  using N = std::remove_const_t<std::remove_pointer_t<decltype(a.stored.data)>>;
  static_assert(
      std::is_same_v<decltype(a), decltype(b)> && (std::is_same_v<N, T> || (is_half<N> && std::is_same_v<T, float>)),
      "deltaw: a batch of products on Cuda wants operands of one type, and an output of the same or of float");
  check_batch("gemm_batched", steps, c);
  cuda_detail::check_product("gemm_batched", a, b, c);
  if (c.empty() || steps.count == 0) return;
  if (steps.count > 1 && a.cols() != 0 && alpha != 0) return cuda_detail::multiply<N>(ctx, alpha, a, b, beta, c, steps);
  for (index_t k = 0; k < steps.count; ++k)
    gemm(ctx, alpha, moved(left, k * steps.a), moved(right, k * steps.b), beta, moved(c, k * steps.c));
}

}  // namespace deltaw
