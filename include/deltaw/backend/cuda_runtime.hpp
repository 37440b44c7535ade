#pragma once
// What stands between the CUDA runtime and the rest: errors as exceptions, device memory, copies, and one launch function.

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <source_location>
#include <string>
#include <type_traits>

#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"

namespace deltaw {
namespace cuda_detail {

inline std::string place(const std::source_location& at) {
  return std::string(" at ").append(at.file_name()).append(":").append(std::to_string(at.line()));
}

/// Throws DeviceError naming the call, its code and the place unless it succeeded.
inline void check(cudaError_t code, std::string_view call,
                  const std::source_location& at = std::source_location::current()) {
  if (code != cudaSuccess)
    raise_mismatch<DeviceError>(call, "result",
                                std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")",
                                "cudaSuccess" + place(at));
}
inline void check(cublasStatus_t code, std::string_view call,
                  const std::source_location& at = std::source_location::current()) {
  if (code != CUBLAS_STATUS_SUCCESS)
    raise_mismatch<DeviceError>(call, "status", static_cast<int>(code), "CUBLAS_STATUS_SUCCESS" + place(at));
}

/// A stream, and the place that launches on it, for the message of an error.
struct Launcher {
  cudaStream_t stream;
  std::source_location place;
  Launcher(cudaStream_t s, const std::source_location& at = std::source_location::current()) : stream(s), place(at) {}
};

/// Enqueues kernel(args...) on the stream. An ordinary template, so that no unit needs <<< >>>.
template <class... Params, class... Args>
void launch(const Launcher& on, dim3 grid, int block, void (*kernel)(Params...), Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.stream = on.stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "cudaLaunchKernelEx", on.place);
}

template <class T>
constexpr cudaDataType_t data_type() {
  if constexpr (std::is_same_v<T, float>) return CUDA_R_32F;
  if constexpr (std::is_same_v<T, double>) return CUDA_R_64F;
  if constexpr (std::is_same_v<T, bf16>) return CUDA_R_16BF;
  if constexpr (std::is_same_v<T, f16>) return CUDA_R_16F;
}

}  // namespace cuda_detail

/// Device memory by cudaMalloc, which may synchronise: it happens while tensors and arenas grow, never in steady state.
template <>
struct Memory<Device> {
  /// Null where there is not enough.
  static void* try_allocate(std::size_t bytes) noexcept {
    void* p = nullptr;
    if (cudaMalloc(&p, std::max<std::size_t>(bytes, 1)) == cudaSuccess) return p;
    cudaGetLastError();  // it would come back from the next launch
    return nullptr;
  }
  static void* allocate(std::size_t bytes) {
    void* p = nullptr;
    cuda_detail::check(cudaMalloc(&p, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
    return p;
  }
  static void release(void* p) noexcept { cudaFree(p); }
  static void zero(void* p, std::size_t bytes) {
    cuda_detail::check(cudaMemset(p, 0, bytes), "cudaMemset");
    wait();  // the user's stream may not wait for ours
  }
  static void copy(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes, cudaMemcpyDeviceToDevice); }
  static void to_host(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes, cudaMemcpyDeviceToHost); }
  static void from_host(void* to, const void* from, std::size_t bytes) {
    copy(to, from, bytes, cudaMemcpyHostToDevice);
  }

 private:
  static void wait() { cuda_detail::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
  // What is under way may be about to write what is copied, and what comes after may not wait for the copy.
  static void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    wait();
    cuda_detail::check(cudaMemcpy(to, from, bytes, kind), "cudaMemcpy");
    wait();
  }
};

}  // namespace deltaw
