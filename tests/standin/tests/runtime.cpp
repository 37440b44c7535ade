// The runtime stand-in in right use: every thread runs once, in no natural order; shuffles, atomics, streams, events, copies,
// limits and error codes.

#include <algorithm>
#include <cmath>

#include "kernels.hpp"
#include "support.hpp"

namespace {

__global__ void visit(int* visits, int* order, int* next) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned all = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  atomicAdd(&visits[all], 1);
  order[atomicAdd(next, 1)] = static_cast<int>(all);
}

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* mine = out + 5 * lane;
  mine[0] = __shfl_sync(0xffffffffu, lane, 7);
  mine[1] = __shfl_down_sync(0xffffffffu, lane, 3u);
  mine[2] = __shfl_up_sync(0xffffffffu, lane, 3u);
  mine[3] = __shfl_xor_sync(0xffffffffu, lane, 5);
  mine[4] = __shfl_down_sync(0xffffffffu, lane, 2u, 8);
}

__global__ void spoiled_shared(int* is_nan) {
  __shared__ float values[lanes];
  const auto i = threadIdx.x;
  is_nan[blockIdx.x * blockDim.x + i] = std::isnan(values[i]) ? 1 : 0;
  __syncthreads();
  values[i] = 1;
}

template <class T>
__global__ void block_sum(const T* in, T* out) {
  __shared__ T values[lanes];
  const auto i = threadIdx.x;
  values[i] = in[blockIdx.x * blockDim.x + i];
  __syncthreads();
  for (unsigned width = lanes / 2; width > 0; width /= 2) {
    if (i < width) values[i] += values[i + width];
    __syncthreads();
  }
  if (i == 0) atomicAdd(out, values[0]);
}

__forceinline__ __device__ double cube(double x) { return std::pow(x, 3); }

/// Functions that kernels call by CUDA's names and by those of the standard library.
template <class T>
__global__ void __launch_bounds__(32) mathematics(const T* __restrict__ in, T* __restrict__ out) {
  const T x = in[threadIdx.x];
  T* mine = out + 6 * threadIdx.x;
  mine[0] = isfinite(x) && !isnan(x) && !isinf(x) ? T(1) : T(0);
  mine[1] = rsqrt(x);
  mine[2] = pow(x, T(0.5));
  mine[3] = std::pow(x, T(2));
  mine[4] = std::sqrt(x);
  mine[5] = static_cast<T>(cube(static_cast<double>(x)));
}

template <std::size_t Bytes>
struct Bulk {
  unsigned char bytes[Bytes];
};
template <std::size_t Bytes>
__global__ void last_byte(Bulk<Bytes> bulk, int* out) {
  *out = bulk.bytes[Bytes - 1];
}

void threads_and_blocks() {
  const int n = 3 * 2 * 2 * 4 * 3 * 2;
  auto *visits = to_device(std::vector<int>(n)), *order = device_new<int>(n), *next = to_device(std::vector<int>(1));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(3, 2, 2);
  config.blockDim = dim3(4, 3, 2);
  REQUIRE(cudaLaunchKernelEx(&config, &visit, visits, order, next) == cudaSuccess);
  REQUIRE(to_host(visits, n) == std::vector<int>(n, 1));
  const std::vector<int> went = to_host(order, n);
  REQUIRE(!std::is_sorted(went.begin(), went.end()));
}

void warps() {
  auto* out = device_new<int>(5 * 32);
  REQUIRE(launch(nullptr, 1, 32, &shuffles, out) == cudaSuccess);
  const std::vector<int> got = to_host(out, 5 * 32);
  for (int lane = 0; lane < 32; ++lane) {
    const int* mine = got.data() + 5 * lane;
    REQUIRE(mine[0] == 7);
    REQUIRE(mine[1] == (lane + 3 < 32 ? lane + 3 : lane));
    REQUIRE(mine[2] == (lane >= 3 ? lane - 3 : lane));
    REQUIRE(mine[3] == (lane ^ 5));
    REQUIRE(mine[4] == (lane % 8 < 6 ? lane + 2 : lane));
  }
}

void shared_memory() {
  auto* is_nan = device_new<int>(3 * lanes);
  REQUIRE(launch(nullptr, 3, lanes, &spoiled_shared, is_nan) == cudaSuccess);
  REQUIRE(to_host(is_nan, 3 * lanes) == std::vector<int>(3 * lanes, 1));
  auto* out = to_device(std::vector<double>(1));
  REQUIRE(launch(nullptr, 4, lanes, &block_sum<double>,
                 static_cast<const double*>(to_device(std::vector<double>(4 * lanes, 0.5))), out) == cudaSuccess);
  REQUIRE(to_host(out, 1)[0] == 2.0 * lanes);
}

void atomics() {
  auto* total = to_device(std::vector<unsigned>(1));
  auto* sum = to_device(std::vector<float>(1));
  REQUIRE(launch(nullptr, 2, lanes, &count, total, sum) == cudaSuccess);
  REQUIRE(to_host(total, 1)[0] == 2 * lanes && to_host(sum, 1)[0] == lanes);
}

/// Work of one stream is in order, an event orders two, and nothing is done before somebody waits.
void streams() {
  const cudaStream_t first = new_stream(), second = new_stream();
  const float* in = to_device(std::vector<float>(8, 1.5f));
  auto *middle = device_new<float>(8), *out = device_new<float>(8);
  cudaEvent_t event = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  REQUIRE(cudaEventQuery(event) == cudaSuccess);
  REQUIRE(launch(first, 1, 8, &twice<float>, in, middle, 8) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  REQUIRE(launch(second, 1, 8, &twice<float>, middle, out, 8) == cudaSuccess);
  REQUIRE(cudaStreamQuery(second) == cudaErrorNotReady);
  REQUIRE(cudaStreamSynchronize(second) == cudaSuccess);
  REQUIRE(cudaEventQuery(event) == cudaSuccess);
  REQUIRE(to_host(out, 8)[7] == 6.0f);
  REQUIRE(cudaEventDestroy(event) == cudaSuccess);

  cudaStream_t waits_for_null = nullptr;  // the legacy default stream waits for it and is waited for
  REQUIRE(cudaStreamCreate(&waits_for_null) == cudaSuccess);
  REQUIRE(launch(waits_for_null, 1, 8, &twice<float>, in, middle, 8) == cudaSuccess);
  REQUIRE(launch(nullptr, 1, 8, &twice<float>, middle, out, 8) == cudaSuccess);
  REQUIRE(launch(waits_for_null, 1, 8, &twice<float>, out, middle, 8) == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(waits_for_null) == cudaSuccess);
  REQUIRE(to_host(middle, 8)[0] == 12.0f);
  for (cudaStream_t stream : {first, second, waits_for_null}) REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

void copies() {
  const cudaStream_t stream = new_stream();
  std::vector<int> values{1, 2, 3, 4, 5, 6};
  auto* wide = to_device(std::vector<int>(12, 9));
  REQUIRE(cudaMemcpy2DAsync(wide, 16, values.data(), 8, 8, 3, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  std::fill(values.begin(), values.end(), 0);  // pageable memory is free again when the call returns
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(to_host(wide, 12) == (std::vector<int>{1, 2, 9, 9, 3, 4, 9, 9, 5, 6, 9, 9}));
  REQUIRE(cudaMemcpy2D(values.data(), 8, wide, 16, 8, 3, cudaMemcpyDefault) == cudaSuccess);
  REQUIRE(values == (std::vector<int>{1, 2, 3, 4, 5, 6}));
  REQUIRE(cudaMemcpy2D(values.data(), 4, wide, 16, 8, 3, cudaMemcpyDefault) == cudaErrorInvalidValue);
  REQUIRE(cudaGetLastError() == cudaErrorInvalidValue);
  REQUIRE(cudaMemsetAsync(wide, 0, 48, stream) == cudaSuccess);
  int* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, 48) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(pinned, wide, 48, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(std::count(pinned, pinned + 12, 0) == 12);
  REQUIRE(cudaFreeHost(pinned) == cudaSuccess);
}

template <class T>
void functions() {
  const std::vector<T> values{4, T(0.25), T(INFINITY)};
  auto* out = device_new<T>(18);
  REQUIRE(launch(nullptr, 1, 3, &mathematics<T>, static_cast<const T*>(to_device(values)), out) == cudaSuccess);
  const T infinite = T(INFINITY);
  REQUIRE(to_host(out, 18) == (std::vector<T>{1, T(0.5), 2, 16, 2, 64,                       //
                                              1, 2, T(0.5), T(0.0625), T(0.5), T(0.015625),  //
                                              0, 0, infinite, infinite, infinite, infinite}));
}

/// 32,764 bytes of parameters and no more; the pointer behind the bytes lies at a multiple of eight.
void parameters() {
  auto* out = device_new<int>(1);
  static Bulk<32752> most;
  most.bytes[32751] = 7;
  REQUIRE(launch(nullptr, 1, 1, &last_byte<32752>, most, out) == cudaSuccess);
  REQUIRE(to_host(out, 1)[0] == 7);
  static const Bulk<32753> more{};
  REQUIRE(launch(nullptr, 1, 1, &last_byte<32753>, more, out) == cudaErrorInvalidValue);
  REQUIRE(cudaGetLastError() == cudaErrorInvalidValue);
}

void limits_and_errors() {
  const float* in = to_device(std::vector<float>(8, 1.0f));
  auto* out = device_new<float>(8);
  const auto shape = [&](dim3 grid, dim3 block) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    return cudaLaunchKernelEx(&config, &twice<float>, in, out, 0);
  };
  REQUIRE(shape(dim3(1), dim3(1024)) == cudaSuccess);
  REQUIRE(cudaGetLastError() == cudaSuccess);
  for (dim3 block : {dim3(1025), dim3(32, 33), dim3(1, 1, 65), dim3(0)})
    REQUIRE(shape(dim3(1), block) == cudaErrorInvalidConfiguration);
  for (dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536)})
    REQUIRE(shape(grid, dim3(1)) == cudaErrorInvalidConfiguration);
  REQUIRE(cudaPeekAtLastError() == cudaErrorInvalidConfiguration);
  REQUIRE(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
  REQUIRE(std::string(cudaGetErrorName(cudaErrorMemoryAllocation)) == "cudaErrorMemoryAllocation");
  void* huge = nullptr;
  REQUIRE(cudaMalloc(&huge, std::size_t{1} << 40) == cudaErrorMemoryAllocation && huge == nullptr);
  cudaPointerAttributes attributes{};
  REQUIRE(cudaPointerGetAttributes(&attributes, in) == cudaSuccess && attributes.type == cudaMemoryTypeDevice);
  REQUIRE(cudaPointerGetAttributes(&attributes, &huge) == cudaSuccess && attributes.type == cudaMemoryTypeUnregistered);
  for (std::size_t bytes : {1, 255, 256, 4097}) {
    auto* p = device_new<char>(bytes);
    REQUIRE(reinterpret_cast<std::uintptr_t>(p) % 256 == 0);
    REQUIRE(cudaFree(p) == cudaSuccess);
  }
}

}  // namespace

int main() {
  threads_and_blocks();
  warps();
  shared_memory();
  atomics();
  streams();
  copies();
  functions<float>();
  functions<double>();
  parameters();
  limits_and_errors();
  std::puts("runtime: all hold");
}
