#pragma once
// The kernels around cuSOLVER's calls: they look for NaN before, and bring the results into our order and signs after.

#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "deltaw/backend/cuda_kernels.hpp"
#include "deltaw/backend/solver.hpp"

namespace deltaw::cuda_detail {

/// numeric_limits has no device code, but this has its value.
template <class T>
inline constexpr T quiet_nan = std::numeric_limits<T>::quiet_NaN();

/// failed[b] counts the elements of matrix b that are not finite; they become 0, since cuSOLVER may not return from them
/// or fail on the host.
template <class T>
__global__ void clean_kernel(T* values, index_t matrix_size, index_t size, int* failed) {
  const index_t step = static_cast<index_t>(gridDim.x) * block_size;
  for (index_t i = static_cast<index_t>(blockIdx.x) * block_size + static_cast<int>(threadIdx.x); i < size; i += step)
    if (!solver_detail::is_finite(values[i])) {
      values[i] = 0;
      atomicAdd(&failed[i / matrix_size], 1);
    }
}

/// The first failure of all calls stays in `status`: 1 + 2 routine, one more where the input was finite and cuSOLVER
/// failed. One thread. A template, as all kernels here: of a plain inline one nvcc warns.
template <class Code>
__global__ void record_kernel(int routine, const Code* info, index_t count, Code* failed, Code* status) {
  for (index_t b = 0; b < count; ++b) {
    const int code = failed[b] != 0 ? 1 + 2 * routine : info[b] != 0 ? 2 + 2 * routine : 0;
    if (code != 0 && *status == 0) *status = code;
    if (info[b] != 0) failed[b] = 1;
  }
}

/// Where vector i of matrix b begins, and how its elements follow each other.
template <class T>
struct Vectors {
  const T* data;
  index_t matrix_step, vector_step, element_step;
  DELTAW_HD const T* of(index_t matrix, index_t vector) const {
    return data + matrix * matrix_step + vector * vector_step;
  }
};

/// What a decomposition in C has left behind, and the views of T it goes to. `u_out` may be left out.
template <class C, class T>
struct Spectrum {
  const C* values;
  double factor;  // of the values; 0 is added to the product, so that there is no -0
  Vectors<C> u, v;
  MatrixView<T, Device> u_out, s_out, vt_out;
};

/// Moves one value with its vectors, by the sign that makes the greatest element of v positive. A block a value. All is
/// NaN where the decomposition failed.
template <class C, class T>
__global__ void spectrum_kernel(Spectrum<C, T> x, const int* failed) {
  __shared__ C greatest[block_size];
  __shared__ index_t place[block_size];
  const index_t row = blockIdx.x, matrix = row / x.s_out.cols, i = row % x.s_out.cols;
  const int thread = static_cast<int>(threadIdx.x);
  const C* v = x.v.of(matrix, i);
  const auto before = [](C a, index_t at, C b, index_t other) { return a > b || (a == b && at < other); };
  greatest[thread] = -1;
  place[thread] = 0;
  for (index_t j = thread; j < x.vt_out.cols; j += block_size) {
    const C size = std::abs(v[j * x.v.element_step]);
    if (size > greatest[thread]) greatest[thread] = size, place[thread] = j;
  }
  for (int width = block_size / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread >= width) continue;
    const int other = thread + width;
    if (before(greatest[other], place[other], greatest[thread], place[thread]))
      greatest[thread] = greatest[other], place[thread] = place[other];
  }
  __syncthreads();
  const C sign = failed[matrix] != 0 ? quiet_nan<C> : v[place[0] * x.v.element_step] < 0 ? C(-1) : C(1);
  if (thread == 0)
    x.s_out.data[matrix * x.s_out.stride + i] =
        T(failed[matrix] != 0 ? quiet_nan<C> : C(0) + static_cast<C>(x.factor) * x.values[row]);
  for (index_t j = thread; j < x.vt_out.cols; j += block_size)
    x.vt_out.data[row * x.vt_out.stride + j] = T(sign * v[j * x.v.element_step]);
  if (x.u_out.data == nullptr) return;
  const index_t rows = x.u_out.rows / x.s_out.rows;
  const C* u = x.u.of(matrix, i);
  for (index_t j = thread; j < rows; j += block_size)
    x.u_out.data[(matrix * rows + j) * x.u_out.stride + i] = T(sign * u[j * x.u.element_step]);
}

/// Row i of R, and the sign that makes R(i, i) positive, out of cuSOLVER's factors. A block a row.
template <class T>
__global__ void triangle_kernel(ConstMatrixView<T, Device> factors, const int* failed, T* signs,
                                MatrixView<T, Device> r) {
  const index_t i = blockIdx.x;
  const T sign = *failed != 0 ? quiet_nan<T> : factors.data[i * factors.stride + i] < 0 ? T(-1) : T(1);
  if (threadIdx.x == 0) signs[i] = sign;
  for (index_t j = static_cast<int>(threadIdx.x); j < r.cols; j += block_size)
    r.data[i * r.stride + j] = j < i && *failed == 0 ? T(0) : sign * factors.data[j * factors.stride + i];
}

/// a(i, i) += absolute + relative * trace / size. One block.
template <class T>
__global__ void damp_kernel(MatrixView<T, Device> a, Damping damping) {
  __shared__ T sums[block_size];
  const int thread = static_cast<int>(threadIdx.x);
  sums[thread] = 0;
  for (index_t i = thread; i < a.rows; i += block_size) sums[thread] += a.data[i * a.stride + i];
  for (int width = block_size / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width) sums[thread] += sums[thread + width];
  }
  __syncthreads();
  const T lambda = T(damping.absolute) + T(damping.relative) * sums[0] / static_cast<T>(a.rows);
  for (index_t i = thread; i < a.rows; i += block_size) a.data[i * a.stride + i] += lambda;
}

struct TimesSign {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y sign) const {
    return out * static_cast<X>(sign);
  }
};
struct NanWhereFailed {
  template <class X>
  DELTAW_HD X operator()(X out, int failed) const {
    return failed != 0 ? quiet_nan<X> : out;
  }
};

}  // namespace deltaw::cuda_detail
