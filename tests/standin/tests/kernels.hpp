#pragma once
// Kernels with a fault that can be switched on.

#include <cuda_runtime.h>

inline constexpr int lanes = 64;

template <class T>
__global__ void twice(const T* in, T* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = in[i] + in[i];
}

struct Pair {
  const float* in;
  int n;
  float* out;
};
__global__ inline void twice_of(Pair p) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < p.n) p.out[i] = 2 * p.in[i];
}

/// Each thread hands its value to its neighbour through shared memory.
__global__ inline void rotate(const float* in, float* out, bool barrier) {
  __shared__ float values[lanes];
  const auto i = static_cast<int>(threadIdx.x);
  values[i] = in[i];
  if (barrier) __syncthreads();
  out[i] = values[(i + 1) % lanes];
}

/// Twice round: what one step reads the next overwrites, so that a barrier belongs between them too.
__global__ inline void rotate_twice(const float* in, float* out, bool barrier) {
  __shared__ float values[lanes];
  const auto i = static_cast<int>(threadIdx.x);
  values[i] = in[i];
  __syncthreads();
  const float neighbour = values[(i + 1) % lanes];
  if (barrier) __syncthreads();
  values[i] = neighbour;
  __syncthreads();
  out[i] = values[(i + 1) % lanes];
}

/// As `rotate`, with only the first `reach` threads at the barrier; the others return or go another way.
template <class T>
__global__ void rotate_some(const T* in, T* out, int reach, bool others_return) {
  __shared__ T values[lanes];
  const auto i = static_cast<int>(threadIdx.x);
  values[i] = in[i];
  if (i < reach)
    __syncthreads();
  else if (!others_return)
    __syncthreads();
  out[i] = values[i];
}

/// out_i = in_i + in_{i+1}, of which the last has no right-hand neighbour.
__global__ inline void sum_neighbours(const float* in, float* out, int n) {
  const auto i = static_cast<int>(threadIdx.x);
  out[i] = in[i] + (i + 1 < n ? in[i + 1] : 0);
}

/// The thread that comes last adds up what the others have written, which they show it by a fence before they are counted.
__global__ inline void last_adds_up(const float* in, float* seen, unsigned* arrived, float* out, bool fence) {
  seen[threadIdx.x] = in[threadIdx.x];
  if (fence) __threadfence();
  if (atomicAdd(arrived, 1u) + 1 < blockDim.x) return;
  if (fence) __threadfence();
  *out = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) *out += seen[i];
}

__global__ inline void store_at(float* out, int at, float value) {
  if (threadIdx.x == 0) out[at] = value;
}

__global__ inline void sum_warp(const float* in, float* out, unsigned mask, int reach) {
  const auto i = static_cast<int>(threadIdx.x);
  float sum = in[i];
  if (i < reach)
    for (int w = 16; w > 0; w /= 2) sum += __shfl_xor_sync(mask, sum, w);
  if (i % 32 == 0) out[i / 32] = sum;
}

__global__ inline void count(unsigned* total, float* sum) {
  atomicAdd(total, 1u);
  atomicAdd(sum, 0.5f);
}
