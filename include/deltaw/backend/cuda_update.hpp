#pragma once
// Kernels of an optimizer step over many tensors in one launch: the squared norm of all gradients, the decision that it
// leads to, AdamW and SGD. The list of tensors travels in the arguments of the launch, so nothing is uploaded, and a graph
// captures it. The order of operations is that of the Cpu's packets, with explicit fma.

#include <cmath>
#include <cstdint>

#include "deltaw/backend/cuda_context.hpp"
#include "deltaw/backend/cuda_kernels.hpp"
#include "deltaw/core/update.hpp"

namespace deltaw::cuda_detail {

/// One contiguous tensor, or one row of a tensor with gaps.
struct UpdateTensor {
  void* value;
  const void* gradient;
  void *first, *second;  ///< the rule's state; null where it has none
  index_t count;
  std::int64_t step;  ///< counting the skipped steps, which the device takes off
  index_t first_block;
};

// It stays in the arguments, `__grid_constant__`: a copy in each thread would be 28 KB of local memory.
// Arguments of a launch hold 32,764 bytes since CUDA 12.1, and 4,096 before.
#if CUDART_VERSION >= 12010
inline constexpr int max_tensors = 512;
#else
inline constexpr int max_tensors = 64;
#endif

template <int N>
struct TensorList {
  UpdateTensor tensors[N];
  index_t count;
};

/// What a step leaves on the device: whether and how the updates are carried out, and what the host may ask for later.
struct StepRecord {
  double scale;  ///< of the gradients
  double norm2, norm;
  std::uint64_t skip;     ///< 1: the updates of this step do nothing
  std::uint64_t skipped;  ///< steps left out so far
};

/// StepPolicy without its bool, whose padding would be unset bytes among the arguments.
struct DevicePolicy {
  double unscale, max_gradient_norm;
  std::uint64_t skip_non_finite;
};

inline constexpr int elements_a_block = 16 * block_size;

/// The tensor that this block works on.
template <int N>
__device__ const UpdateTensor& tensor_of_block(const TensorList<N>& list) {
  index_t low = 0, high = list.count;
  while (high - low > 1) {
    const index_t middle = (low + high) / 2;
    if (list.tensors[middle].first_block <= static_cast<index_t>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return list.tensors[low];
}

template <class T>
DELTAW_HD constexpr int pack_of() {
  return static_cast<int>(16 / sizeof(T));
}
/// `count` of the neighbours at p + i into `to`, at once where all are there and lie at a multiple of 16 bytes.
template <class T>
__device__ void load(const T* p, index_t i, int count, Pack<T, pack_of<T>()>& to) {
  if (count == pack_of<T>() && reinterpret_cast<std::uintptr_t>(p + i) % 16 == 0) {
    to = *reinterpret_cast<const Pack<T, pack_of<T>()>*>(p + i);
  } else {
    for (int n = 0; n < count; ++n) to.values[n] = p[i + n];
  }
}
template <class T>
__device__ void store(const Pack<T, pack_of<T>()>& from, int count, T* p, index_t i) {
  if (count == pack_of<T>() && reinterpret_cast<std::uintptr_t>(p + i) % 16 == 0) {
    *reinterpret_cast<Pack<T, pack_of<T>()>*>(p + i) = from;
  } else {
    for (int n = 0; n < count; ++n) p[i + n] = from.values[n];
  }
}

/// f(i, count) for each group of neighbours of this block, the same groups whatever the address.
template <class T, class F>
__device__ void for_each_pack(const UpdateTensor& tensor, F f) {
  constexpr int pack = pack_of<T>();
  const index_t first = (static_cast<index_t>(blockIdx.x) - tensor.first_block) * elements_a_block;
  const index_t end = first + elements_a_block < tensor.count ? first + elements_a_block : tensor.count;
  for (index_t i = first + static_cast<index_t>(threadIdx.x) * pack; i < end; i += block_size * pack)
    f(i, static_cast<int>(end - i < pack ? end - i : pack));
}

/// The sum of `mine` over the threads of the block, by a fixed tree; whole in thread 0. `shared` has a place a thread.
__device__ inline double block_sum(double mine, double* shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned width = block_size / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  return shared[0];
}

/// partial[block] = the sum of squares of the block's elements.
template <class T, int N>
__global__ void norm2_kernel(const __grid_constant__ TensorList<N> list, double* partial) {
  __shared__ double sums[block_size];
  const UpdateTensor& tensor = tensor_of_block(list);
  const T* gradient = static_cast<const T*>(tensor.gradient);
  double sum = 0;
  for_each_pack<T>(tensor, [&](index_t i, int count) {
    Pack<T, pack_of<T>()> g;
    load(gradient, i, count, g);
    for (int n = 0; n < count; ++n) {
      const double x = static_cast<double>(g.values[n]);
      sum = std::fma(x, x, sum);
    }
  });
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/// The partial sums into record->norm2, added to what is there unless `first`. One block.
template <class Record>
__global__ void sum_norms_kernel(const double* partial, index_t count, std::uint64_t first, Record* record) {
  __shared__ double sums[block_size];
  double sum = 0;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < count; i += block_size) sum += partial[i];
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) record->norm2 = first != 0 ? sum : record->norm2 + sum;
}

/// From the norm to what the updates will do. One thread.
template <class Record>
__global__ void decide_kernel(DevicePolicy policy, const CudaReplay* replay, Record* record) {
  const double unscale = policy.unscale * replay->gradient_factor;
  const double norm = std::sqrt(record->norm2) * unscale;
  const bool finite = norm - norm == 0;
  record->norm = norm;
  record->scale = clipped_scale(unscale, policy.max_gradient_norm * replay->threshold_factor, norm);
  record->skip = replay->skip != 0 || (policy.skip_non_finite != 0 && !finite) ? 1 : 0;
  record->skipped += record->skip;
}

/// What the device knows of an update. `record` is null where no norm was asked for.
struct StepNumbers {
  double learning_rate, gradient_scale, steps;
  bool skip;
};
template <class Update>
__device__ StepNumbers step_numbers(const Update& u, std::int64_t step, const StepRecord* record,
                                    const CudaReplay* replay) {
  const std::int64_t later = step + static_cast<std::int64_t>(replay->steps);
  const double rate = u.learning_rate * replay->learning_rate_factor;
  if (record == nullptr)
    return {rate, u.gradient_scale * replay->gradient_factor, static_cast<double>(later), replay->skip != 0};
  const std::int64_t taken = later - static_cast<std::int64_t>(record->skipped);  // below 1: of ranks born since a skip
  return {rate, u.gradient_scale * record->scale, static_cast<double>(taken < 1 ? 1 : taken), record->skip != 0};
}

/// Cpu's `adamw`, for every tensor of the list.
template <class T, int N>
__global__ void adamw_kernel(const __grid_constant__ TensorList<N> list, AdamWUpdate u, const StepRecord* record,
                             const CudaReplay* replay) {
  __shared__ T numbers[4];
  const UpdateTensor& tensor = tensor_of_block(list);
  const StepNumbers now = step_numbers(u, tensor.step, record, replay);
  if (now.skip) return;
  if (threadIdx.x == 0) {
    numbers[0] = T(-now.learning_rate / (1 - std::pow(u.beta1, now.steps)));
    numbers[1] = T(1 / std::sqrt(1 - std::pow(u.beta2, now.steps)));
    numbers[2] = T(1 - now.learning_rate * u.weight_decay);
    numbers[3] = T(now.gradient_scale);
  }
  __syncthreads();
  const T step_size = numbers[0], root = numbers[1], shrink = numbers[2], scale = numbers[3], epsilon = T(u.epsilon);
  const T beta1 = T(u.beta1), rest1 = T(1 - u.beta1), beta2 = T(u.beta2), rest2 = T(1 - u.beta2);
  T* value = static_cast<T*>(tensor.value);
  T *first = static_cast<T*>(tensor.first), *second = static_cast<T*>(tensor.second);
  for_each_pack<T>(tensor, [&](index_t i, int count) {
    Pack<T, pack_of<T>()> g, p, m, v;
    load(static_cast<const T*>(tensor.gradient), i, count, g);
    load(static_cast<const T*>(value), i, count, p);
    load(static_cast<const T*>(first), i, count, m);
    load(static_cast<const T*>(second), i, count, v);
    for (int n = 0; n < count; ++n) {
      const T scaled = scale * g.values[n];
      m.values[n] = std::fma(beta1, m.values[n], rest1 * scaled);
      v.values[n] = std::fma(beta2, v.values[n], rest2 * scaled * scaled);
      const T moved = step_size * m.values[n] / std::fma(std::sqrt(v.values[n]), root, epsilon);
      p.values[n] = std::fma(shrink, p.values[n], moved);
    }
    store(p, count, value, i);
    store(m, count, first, i);
    store(v, count, second, i);
  });
}

/// SgdUpdate without its bools; `momentum` is the kernel's to read from the tensor.
struct SgdNumbers {
  double learning_rate, momentum, dampening, weight_decay, gradient_scale;
  std::uint64_t nesterov, decoupled;
};

/// Cpu's `sgd`, for every tensor of the list.
template <class T, int N>
__global__ void sgd_kernel(const __grid_constant__ TensorList<N> list, SgdNumbers u, const StepRecord* record,
                           const CudaReplay* replay) {
  const UpdateTensor& tensor = tensor_of_block(list);
  const StepNumbers numbers = step_numbers(u, tensor.step, record, replay);
  if (numbers.skip) return;
  const bool begins = numbers.steps <= 1;
  const T rate = T(-numbers.learning_rate), scale = T(numbers.gradient_scale), mu = T(u.momentum);
  const T fresh = T(begins ? 1 : 1 - u.dampening), kept = T(begins ? 0 : u.momentum);
  const T coupled = T(u.decoupled != 0 ? 0 : u.weight_decay);
  const T shrink = T(u.decoupled != 0 ? 1 - numbers.learning_rate * u.weight_decay : 1);
  T *value = static_cast<T*>(tensor.value), *momentum = static_cast<T*>(tensor.first);
  for_each_pack<T>(tensor, [&](index_t i, int count) {
    Pack<T, pack_of<T>()> g, p, b;
    load(static_cast<const T*>(tensor.gradient), i, count, g);
    load(static_cast<const T*>(value), i, count, p);
    if (momentum != nullptr) load(static_cast<const T*>(momentum), i, count, b);
    for (int n = 0; n < count; ++n) {
      T step = std::fma(coupled, p.values[n], scale * g.values[n]);
      if (momentum != nullptr) {
        b.values[n] = std::fma(kept, b.values[n], fresh * step);
        step = u.nesterov != 0 ? std::fma(mu, b.values[n], step) : b.values[n];
      }
      p.values[n] = std::fma(shrink, p.values[n], rate * step);
    }
    store(p, count, value, i);
    if (momentum != nullptr) store(b, count, momentum, i);
  });
}

}  // namespace deltaw::cuda_detail
