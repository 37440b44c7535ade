#pragma once
// What kernels may call: barriers, full-mask shuffles, fences, atomic addition, a few intrinsics, and the functions of
// <math.h> in the global namespace, where CUDA has them.

#include <math.h>

#include <atomic>
#include <cmath>

#include "block.hpp"

inline void __syncthreads(standin::Site at = standin::Site::current()) {
  standin::require_kernel("__syncthreads");
  standin::current_executor->wait(standin::State::at_barrier, at);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, standin::Site at = standin::Site::current()) {
  standin::require_kernel("__syncwarp");
  if (mask != 0xffffffffu) standin::stop("__syncwarp with a mask that is not full is not in the subset");
  standin::current_executor->wait(standin::State::at_warp, at);
}

namespace standin {

/// What lane `source(lane)` of the warp holds; a source outside the lane's own group of `width` gives the lane its own.
template <class T, class Source>
T exchange(unsigned mask, T value, int width, Source source, Site at) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves up to 8 bytes");
  require_kernel("a shuffle");
  if (mask != 0xffffffffu) stop("a shuffle with a mask that is not full is not in the subset");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) stop("the width of a shuffle is no power of two up to 32");
  Thread& self = current_block->threads[current_thread];
  const unsigned parity = self.shuffles++ % 2;
  std::memcpy(self.exchanged[parity].data(), &value, sizeof(T));
  current_executor->wait(State::at_warp, at);
  const int lane = static_cast<int>(current_thread % warp_size), group = lane / width * width;
  const int from = source(lane, group);
  if (from < group || from >= group + width) return value;
  T result;
  const unsigned warp = current_thread / warp_size * warp_size;
  std::memcpy(&result, current_block->threads[warp + static_cast<unsigned>(from)].exchanged[parity].data(), sizeof(T));
  return result;
}

template <class T>
T atomic_add(T* address, T value) {
  require_kernel("atomicAdd");
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

/// ThreadSanitizer does not know fences, but it knows that one addition to an atomic comes before another.
inline void fence(const char* who) {
  static std::atomic<unsigned> fences;
  require_kernel(who);
  fences.fetch_add(1, std::memory_order_acq_rel);
}

}  // namespace standin

inline void __threadfence() { standin::fence("__threadfence"); }
inline void __threadfence_block() { standin::fence("__threadfence_block"); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, standin::Site at = standin::Site::current()) {
  return standin::exchange(
      mask, value, width, [&](int, int group) { return group + source % width; }, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   standin::Site at = standin::Site::current()) {
  return standin::exchange(
      mask, value, width, [&](int lane, int) { return lane + static_cast<int>(delta); }, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, standin::Site at = standin::Site::current()) {
  return standin::exchange(
      mask, value, width, [&](int lane, int) { return lane - static_cast<int>(delta); }, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, standin::Site at = standin::Site::current()) {
  return standin::exchange(
      mask, value, width, [&](int lane, int) { return lane ^ lanes; }, at);
}

inline float atomicAdd(float* address, float value) { return standin::atomic_add(address, value); }
inline double atomicAdd(double* address, double value) { return standin::atomic_add(address, value); }
inline int atomicAdd(int* address, int value) { return standin::atomic_add(address, value); }
inline unsigned atomicAdd(unsigned* address, unsigned value) { return standin::atomic_add(address, value); }
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return standin::atomic_add(address, value);
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
