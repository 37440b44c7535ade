#pragma once
// The elementwise kernels of the Cuda backend. A block is 256 threads; short rows share one. `map` moves 16 bytes a
// thread at a time where every view allows it. Arithmetic on 16-bit data is in float, as on the CPU.

#include <cuda_runtime.h>

#include <cstdint>

#include "deltaw/backend/cuda_context.hpp"
#include "deltaw/core/half.hpp"
#include "deltaw/core/random.hpp"
#include "deltaw/core/signed_columns.hpp"
#include "deltaw/core/view.hpp"

namespace deltaw::cuda_detail {

inline constexpr int block_size = 256;

/// How the threads of a block lie over rows and columns: `width` threads along a row, each `pack` elements.
struct Tiling {
  int width = 32;
  int pack = 1;
};

/// N neighbours that are loaded and stored at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

/// A view broadcast over rows or columns: a step of 0 stays where it is.
template <class T>
struct Input {
  const T* data;
  index_t row_step, col_step;
};

template <class F, class T, class... In>
DELTAW_HD T apply(F f, T old, In... in) {
  return T(f(compute_t<T>(old), in...));
}

/// out(i, j) = f(out(i, j), in(i, j)...), a column a thread.
template <class F, class T, class... In>
__global__ void map_kernel(F f, MatrixView<T, Device> out, Tiling tiling, Input<In>... in) {
  const int column_in_tile = static_cast<int>(threadIdx.x) % tiling.width;
  const int rows_a_block = block_size / tiling.width;
  const index_t first_row =
      static_cast<index_t>(blockIdx.y) * rows_a_block + static_cast<int>(threadIdx.x) / tiling.width;
  const index_t row_stride = static_cast<index_t>(gridDim.y) * rows_a_block;
  const index_t j = static_cast<index_t>(blockIdx.x) * tiling.width + column_in_tile;
  if (j >= out.cols) return;
  for (index_t i = first_row; i < out.rows; i += row_stride) {
    T& o = out.data[i * out.stride + j];
    o = apply(f, o, in.data[i * in.row_step + j * in.col_step]...);
  }
}

/// The same with N neighbours a thread: every pointer and stride is a multiple of N, and no input is a column.
template <int N, class F, class T, class... In>
__global__ void packed_map_kernel(F f, MatrixView<T, Device> out, Tiling tiling, Input<In>... in) {
  const int rows_a_block = block_size / tiling.width;
  const index_t first_row =
      static_cast<index_t>(blockIdx.y) * rows_a_block + static_cast<int>(threadIdx.x) / tiling.width;
  const index_t row_stride = static_cast<index_t>(gridDim.y) * rows_a_block;
  const index_t j =
      (static_cast<index_t>(blockIdx.x) * tiling.width + static_cast<int>(threadIdx.x) % tiling.width) * N;
  if (j >= out.cols) return;
  for (index_t i = first_row; i < out.rows; i += row_stride) {
    auto* place = reinterpret_cast<Pack<T, N>*>(out.data + i * out.stride + j);
    Pack<T, N> o = *place;
    const auto change = [&](const Pack<In, N>&... x) {
      for (int n = 0; n < N; ++n) o.values[n] = apply(f, o.values[n], x.values[n]...);
    };
    change(*reinterpret_cast<const Pack<In, N>*>(in.data + i * in.row_step + j)...);
    *place = o;
  }
}

/// out_j += scale * sum_i f(i, j): a block takes 32 columns, 8 threads share one and add up in a fixed order.
template <class T, class A, class B>
__global__ void column_sums_kernel(double scale, ConstMatrixView<A, Device> a, ConstMatrixView<B, Device> b,
                                   MatrixView<T, Device> out) {
  using C = compute_t<T>;
  constexpr int columns = 32, lanes = block_size / columns;
  __shared__ C partial[lanes][columns];
  const int column = static_cast<int>(threadIdx.x) % columns, lane = static_cast<int>(threadIdx.x) / columns;
  const index_t j = static_cast<index_t>(blockIdx.x) * columns + column;
  C sum = 0;
  if (j < a.cols)
    for (index_t i = lane; i < a.rows; i += lanes) {
      const C x = static_cast<C>(a.data[i * a.stride + j]);
      sum += b.data == nullptr ? x : x * static_cast<C>(b.data[i * b.stride + j]);
    }
  partial[lane][column] = sum;
  __syncthreads();
  if (lane != 0 || j >= a.cols) return;
  for (int l = 1; l < lanes; ++l) sum += partial[l][column];
  out.data[j] = T(static_cast<C>(out.data[j]) + static_cast<C>(scale) * sum);
}

/// out_i += scale * sum_j a_ij b_ij: a warp a row.
template <class T, class A, class B>
__global__ void row_dot_kernel(double scale, ConstMatrixView<A, Device> a, ConstMatrixView<B, Device> b,
                               MatrixView<T, Device> out) {
  using C = compute_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const index_t i = static_cast<index_t>(blockIdx.x) * (block_size / 32) + static_cast<int>(threadIdx.x) / 32;
  C sum = 0;
  if (i < a.rows)
    for (index_t j = lane; j < a.cols; j += 32)
      sum += static_cast<C>(a.data[i * a.stride + j]) * static_cast<C>(b.data[i * b.stride + j]);
  for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(0xffffffffu, sum, static_cast<unsigned>(width));
  if (lane == 0 && i < a.rows) out.data[i] = T(static_cast<C>(out.data[i]) + static_cast<C>(scale) * sum);
}

/// C = alpha A S + beta C: an element a thread, its column's non-zeros in their order.
template <class T, class A>
__global__ void signed_kernel(double alpha, ConstMatrixView<A, Device> a, SignedColumns<Device> s, double beta,
                              MatrixView<T, Device> c) {
  using C = compute_t<T>;
  const index_t j = static_cast<index_t>(blockIdx.x) * block_size + static_cast<int>(threadIdx.x);
  if (j >= c.cols) return;
  for (index_t i = blockIdx.y; i < c.rows; i += gridDim.y) {
    C sum = 0;
    for (std::int32_t at = s.begin[j]; at < s.begin[j + 1]; ++at) {
      const std::int32_t code = s.row_of[at];
      const index_t row = code < 0 ? ~code : code;
      if (row >= a.cols) break;
      const C x = static_cast<C>(a.data[i * a.stride + row]);
      sum += code < 0 ? -x : x;
    }
    T& out = c.data[i * c.stride + j];
    const C added = static_cast<C>(alpha) * sum;
    out = T(beta == 0 ? added : added + static_cast<C>(beta) * static_cast<C>(out));
  }
}

/// out = in^T through 32 x 32 tiles, one column wider so that neither side of it collides in a bank. A block takes every
/// gridDim.y-th tile of its columns.
template <class U, class T>
__global__ void transpose_kernel(ConstMatrixView<U, Device> in, MatrixView<T, Device> out) {
  constexpr int tile = 32, lanes = block_size / tile;
  __shared__ compute_t<T> values[tile][tile + 1];
  const int x = static_cast<int>(threadIdx.x) % tile, y = static_cast<int>(threadIdx.x) / tile;
  const index_t col = static_cast<index_t>(blockIdx.x) * tile, row_step = static_cast<index_t>(gridDim.y) * tile;
  for (index_t row = static_cast<index_t>(blockIdx.y) * tile; row < in.rows; row += row_step) {
    for (int l = y; l < tile; l += lanes)
      if (row + l < in.rows && col + x < in.cols)
        values[l][x] = static_cast<compute_t<T>>(in.data[(row + l) * in.stride + col + x]);
    __syncthreads();
    for (int l = y; l < tile; l += lanes)
      if (col + l < in.cols && row + x < in.rows) out.data[(col + l) * out.stride + row + x] = T(values[x][l]);
    __syncthreads();
  }
}

__device__ inline RandomKey key_at(RandomKey key, const CudaReplay*) { return key; }
__device__ inline RandomKey key_at(const CallKey& key, const CudaReplay* replay) { return key.key(replay->steps); }

/// f(i, j, bits) for each element; a thread draws one Philox block, four neighbours of a row.
template <class F, class Key>
__global__ void random_kernel(F f, Key call_key, RandomOrigin origin, index_t rows, index_t cols, Tiling tiling,
                              const CudaReplay* replay) {
  __shared__ std::uint64_t key_value;
  if (threadIdx.x == 0) key_value = key_at(call_key, replay).value;
  __syncthreads();
  const RandomKey key{key_value};
  const int rows_a_block = block_size / tiling.width;
  const index_t first_row =
      static_cast<index_t>(blockIdx.y) * rows_a_block + static_cast<int>(threadIdx.x) / tiling.width;
  const index_t row_stride = static_cast<index_t>(gridDim.y) * rows_a_block;
  const index_t slot = static_cast<index_t>(blockIdx.x) * tiling.width + static_cast<int>(threadIdx.x) % tiling.width;
  const auto offset = static_cast<index_t>(origin.col % 4);
  const index_t first = 4 * slot - offset;
  if (first >= cols) return;
  for (index_t i = first_row; i < rows; i += row_stride) {
    const PhiloxBlock bits =
        key.block(origin.col / 4 + static_cast<std::uint64_t>(slot), origin.row + static_cast<std::uint64_t>(i));
    for (int n = 0; n < 4; ++n)
      if (first + n >= 0 && first + n < cols) f(i, first + n, bits[static_cast<std::size_t>(n)]);
  }
}

/// The functors of `random_kernel`.
template <class U, class T>
struct DropElement {
  ConstMatrixView<U, Device> in;
  MatrixView<T, Device> out;
  std::uint64_t threshold;
  double keep;
  std::uint64_t accumulate;  // 0 or 1; a bool would leave bytes of the arguments unset

  DELTAW_HD void operator()(index_t i, index_t j, std::uint32_t bits) const {
    using C = compute_t<T>;
    const C x = bits < threshold ? C(0) : static_cast<C>(in.data[i * in.stride + j]) * static_cast<C>(keep);
    T& o = out.data[i * out.stride + j];
    o = T(accumulate != 0 ? static_cast<C>(o) + x : x);
  }
};
template <class T>
struct UniformElement {
  MatrixView<T, Device> out;
  double low, range;
  DELTAW_HD void operator()(index_t i, index_t j, std::uint32_t bits) const {
    out.data[i * out.stride + j] = T(std::fma(uniform01(bits), range, low));
  }
};
template <class T>
struct NormalElement {
  MatrixView<T, Device> out;
  double deviation;
  DELTAW_HD void operator()(index_t i, index_t j, std::uint32_t bits) const {
    out.data[i * out.stride + j] = T(deviation * normal01(bits));
  }
};

}  // namespace deltaw::cuda_detail
