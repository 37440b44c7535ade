#pragma once
// Sums over random matrices that are never stored (RandomBases), on the GPU: whoever needs a number draws its block of Philox,
// which has that element of four matrices.

#include <algorithm>

#include "deltaw/backend/cuda_kernels.hpp"

namespace deltaw::cuda_detail {

/// out = beta out + scale sum_n c_n U_n, an element a thread.
template <class TC, class T>
__global__ void random_combine_kernel(RandomBases bases, double scale, ConstMatrixView<TC, Device> c, double beta,
                                      MatrixView<T, Device> out) {
  using C = compute_t<T>;
  const index_t at = static_cast<index_t>(blockIdx.x) * block_size + static_cast<int>(threadIdx.x);
  if (at >= out.rows * out.cols) return;
  const index_t i = at / out.cols, j = at % out.cols;
  C sum = 0;
  for (index_t n = 0; n < c.cols; n += 4) {
    const PhiloxBlock bits = bases.key.block(static_cast<std::uint64_t>(n / 4), bases.element(i, j));
    for (index_t w = 0; w < 4 && n + w < c.cols; ++w)
      sum += static_cast<C>(c.data[n + w]) * static_cast<C>(signed24(bits[static_cast<std::size_t>(w)]));
  }
  T& o = out.data[i * out.stride + j];
  const C kept = beta == 0 ? C(0) : static_cast<C>(beta) * static_cast<C>(o);
  o = T(kept + static_cast<C>(scale * 0x1p-23) * sum);
}

/// partial(blockIdx.y, n) = 2^23 <U_n, in> over every gridDim.y-th stretch of columns: a block takes four n.
template <class TA, class C>
__global__ void random_project_kernel(RandomBases bases, ConstMatrixView<TA, Device> in,
                                      MatrixView<C, Device> partial) {
  __shared__ C sums[4][block_size];
  const int thread = static_cast<int>(threadIdx.x);
  C sum[4] = {};
  for (index_t i = 0; i < in.rows; ++i)
    for (index_t j = static_cast<index_t>(blockIdx.y) * block_size + thread; j < in.cols;
         j += static_cast<index_t>(gridDim.y) * block_size) {
      const PhiloxBlock bits = bases.key.block(blockIdx.x, bases.element(i, j));
      const C x = static_cast<C>(in.data[i * in.stride + j]);
      for (int w = 0; w < 4; ++w) sum[w] += x * static_cast<C>(signed24(bits[static_cast<std::size_t>(w)]));
    }
  for (int w = 0; w < 4; ++w) sums[w][thread] = sum[w];
  for (int width = block_size / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width)
      for (int w = 0; w < 4; ++w) sums[w][thread] += sums[w][thread + width];
  }
  __syncthreads();
  if (thread < 4)
    partial.data[static_cast<index_t>(blockIdx.y) * partial.stride + 4 * static_cast<index_t>(blockIdx.x) + thread] =
        sums[thread][0];
}

inline unsigned blocks_of(index_t n, index_t size) { return static_cast<unsigned>((n + size - 1) / size); }

template <class TC, class T>
void combine(CudaContext& ctx, const RandomBases& bases, double scale, ConstMatrixView<TC, Device> c, double beta,
             MatrixView<T, Device> out) {
  if (out.empty()) return;
  launch(ctx.stream(), dim3(blocks_of(out.size(), block_size)), block_size, &random_combine_kernel<TC, T>, bases, scale,
         c, beta, out);
}

/// out_n += scale <U_n, in>, the sums of the blocks in a fixed order.
template <class TA, class T>
void project(CudaContext& ctx, const RandomBases& bases, double scale, ConstMatrixView<TA, Device> in,
             MatrixView<T, Device> out) {
  using C = compute_t<T>;
  if (in.empty() || out.empty()) return;
  if (in.contiguous() && bases.row_step == static_cast<std::uint64_t>(in.cols))
    in = {in.data, 1, in.size()};  // so that short rows waste no threads
  Arena<Device>::Mark mark(ctx.arena);
  const dim3 grid(blocks_of(out.cols, 4), std::min(blocks_of(in.cols, 16 * block_size), 64u));
  const auto partial = ctx.arena.template take<C>(static_cast<index_t>(grid.y), 4 * static_cast<index_t>(grid.x));
  launch(ctx.stream(), grid, block_size, &random_project_kernel<TA, C>, bases, in, partial);
  launch(ctx.stream(), dim3(blocks_of(out.cols, 32)), block_size, &column_sums_kernel<T, C, C>, scale * 0x1p-23,
         ConstMatrixView<C, Device>(partial.col_range(0, out.cols)), ConstMatrixView<C, Device>{}, out);
}

}  // namespace deltaw::cuda_detail
