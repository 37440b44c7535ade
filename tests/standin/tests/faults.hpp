#pragma once
// Every fault that the stand-in promises to stop, each with its twin: the same program without it.

#include <csignal>
#include <string>

#include "kernels.hpp"
#include "support.hpp"

struct Fault {
  const char* name;
  const char* message;  ///< what the stand-in has to say
  void (*program)(bool faulty);
  const char* sanitized = nullptr;  ///< what a sanitizer says, where it comes first
};

inline std::vector<float> numbers(std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<float>(i) + 0.5f;
  return values;
}

inline void missing_barrier(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(lanes);
  REQUIRE(launch(nullptr, 1, lanes, &rotate, in, out, !faulty) == cudaSuccess);
  REQUIRE(to_host(out, lanes)[lanes - 1] == 0.5f);
}
/// Nothing is unwritten here and the result may be right: only ThreadSanitizer sees it.
inline void missing_second_barrier(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(lanes);
  REQUIRE(launch(nullptr, 1, lanes, &rotate_twice, in, out, !faulty) == cudaSuccess);
  to_host(out, lanes);
}
inline void missing_fence(bool faulty) {
  const float* in = to_device(std::vector<float>(lanes, 0.5f));
  auto *seen = device_new<float>(lanes), *out = device_new<float>(1);
  auto* arrived = to_device(std::vector<unsigned>(1));
  REQUIRE(launch(nullptr, 1, lanes, &last_adds_up, in, seen, arrived, out, !faulty) == cudaSuccess);
  REQUIRE(to_host(out, 1)[0] == 0.5f * lanes);
}
inline void barrier_after_return(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(lanes);
  REQUIRE(launch(nullptr, 1, lanes, &rotate_some<float>, in, out, faulty ? lanes / 2 : lanes, true) == cudaSuccess);
  REQUIRE(to_host(out, lanes)[3] == 3.5f);
}
inline void two_barriers_for_one(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(lanes);
  REQUIRE(launch(nullptr, 1, lanes, &rotate_some<float>, in, out, faulty ? lanes / 2 : lanes, false) == cudaSuccess);
  REQUIRE(to_host(out, lanes)[3] == 3.5f);
}
inline void partial_shuffle(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(2);
  REQUIRE(launch(nullptr, 1, lanes, &sum_warp, in, out, 0xffffffffu, faulty ? 40 : lanes) == cudaSuccess);
  REQUIRE(to_host(out, 2)[0] == 512.0f);
}
inline void shuffle_mask(bool faulty) {
  const float* in = to_device(numbers(lanes));
  auto* out = device_new<float>(2);
  REQUIRE(launch(nullptr, 1, lanes, &sum_warp, in, out, faulty ? 0xffffu : 0xffffffffu, lanes) == cudaSuccess);
  REQUIRE(to_host(out, 2)[0] == 512.0f);
}

inline void store(int at) {
  auto* out = to_device(numbers(100));
  REQUIRE(launch(nullptr, 1, 1, &store_at, out, at, 1.0f) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}
inline void out_of_bounds(bool faulty) { store(faulty ? 1000 : 99); }
inline void read_past_the_end(bool faulty) {
  const float* in = to_device(numbers(8));
  auto* out = device_new<float>(8);
  REQUIRE(launch(nullptr, 1, 8, &sum_neighbours, in, out, faulty ? 9 : 8) == cudaSuccess);
  REQUIRE(to_host(out, 8)[7] == 7.5f);
}
inline void just_past_the_end(bool faulty) { store(faulty ? 100 : 99); }
inline void just_before_the_beginning(bool faulty) { store(faulty ? -1 : 0); }
inline void freed_memory(bool faulty) {
  const float* in = to_device(numbers(8));
  auto* out = device_new<float>(8);
  if (faulty) REQUIRE(cudaFree(const_cast<float*>(in)) == cudaSuccess);
  REQUIRE(launch(nullptr, 1, 8, &twice<float>, in, out, 8) == cudaSuccess);
  REQUIRE(to_host(out, 8)[1] == 3.0f);
}

inline void unwritten_read(bool faulty) {
  const float* in = faulty ? device_new<float>(8) : to_device(numbers(8));
  auto* out = device_new<float>(8);
  REQUIRE(launch(nullptr, 1, 8, &twice<float>, in, out, 8) == cudaSuccess);
  REQUIRE(to_host(out, 8)[1] == 3.0f);
}

inline void host_pointer(bool faulty) {
  const std::vector<float> values = numbers(8);
  const float* in = faulty ? values.data() : to_device(values);
  auto* out = device_new<float>(8);
  REQUIRE(launch(nullptr, 1, 8, &twice<float>, in, out, 8) == cudaSuccess);
  REQUIRE(to_host(out, 8)[1] == 3.0f);
}
inline void host_pointer_in_a_view(bool faulty) {
  const std::vector<float> values = numbers(8);
  const Pair pair{faulty ? values.data() : to_device(values), 8, device_new<float>(8)};
  REQUIRE(launch(nullptr, 1, 8, &twice_of, pair) == cudaSuccess);
  REQUIRE(to_host(pair.out, 8)[1] == 3.0f);
}
inline void host_pointer_in_a_copy(bool faulty) {
  std::vector<float> values = numbers(8);
  auto* in = device_new<float>(8);
  float* to = faulty ? values.data() : in;
  REQUIRE(cudaMemcpy(to, values.data(), 8 * sizeof(float), cudaMemcpyHostToDevice) == cudaSuccess);
  REQUIRE(to_host(in, 8)[1] == 1.5f);
}
inline void device_pointer(bool faulty) {
  const float* in = to_device(numbers(8));
  const std::vector<float> copy = to_host(in, 8);
  const volatile float* p = faulty ? in : copy.data();
  REQUIRE(p[1] == 1.5f);
}

/// As in a test framework, which takes the signal for itself before each test.
inline void device_pointer_behind_a_handler(bool faulty) {
  const float* in = to_device(numbers(8));
  std::signal(SIGSEGV, SIG_DFL);
  const std::vector<float> copy = to_host(in, 8);
  const volatile float* p = faulty ? in : copy.data();
  REQUIRE(p[1] == 1.5f);
}

inline void unsynchronised_read(bool faulty) {
  const cudaStream_t stream = new_stream();
  const float* in = to_device(numbers(8));
  auto* out = to_device(numbers(8));
  REQUIRE(launch(stream, 1, 8, &twice<float>, in, out, 8) == cudaSuccess);
  if (!faulty) REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(to_host(out, 8)[1] == 3.0f);
}
inline void unsynchronised_pinned_read(bool faulty) {
  const cudaStream_t stream = new_stream();
  const float* in = to_device(numbers(8));
  float* host = nullptr;
  REQUIRE(cudaMallocHost(&host, 8 * sizeof(float)) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(host, in, 8 * sizeof(float), cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  if (!faulty) REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(host[1] == 1.5f);
}

struct Blas {
  cudaStream_t stream = new_stream();
  cublasHandle_t handle = nullptr;
  explicit Blas(bool workspace = true) {
    REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasSetStream(handle, stream) == CUBLAS_STATUS_SUCCESS);
    if (workspace) REQUIRE(cublasSetWorkspace(handle, device_new<char>(1024), 1024) == CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t product(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c, int ldc,
                         float beta = 0) const {
    const float alpha = 1;
    return cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc);
  }
};
inline void wrong_leading_dimension(bool faulty) {
  const Blas blas;
  const float *a = to_device(numbers(12)), *b = to_device(numbers(8));
  auto* c = device_new<float>(6);
  REQUIRE(blas.product(3, 2, 4, a, faulty ? 4 : 3, b, 4, c, 3) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(cudaStreamSynchronize(blas.stream) == cudaSuccess);
  REQUIRE(to_host(c, 6)[0] == 0.5f * 0.5f + 3.5f * 1.5f + 6.5f * 2.5f + 9.5f * 3.5f);
}
inline void host_pointer_in_a_product(bool faulty) {
  const Blas blas;
  const std::vector<float> values = numbers(4);
  const float *a = to_device(values), *b = faulty ? values.data() : to_device(values);
  REQUIRE(blas.product(2, 2, 2, a, 2, b, 2, device_new<float>(4), 2) == CUBLAS_STATUS_SUCCESS);
}
/// A scalar on the device, which the handle takes for one on the host.
inline void device_scalar(bool faulty) {
  const Blas blas;
  const float one = 1, *a = to_device(numbers(1)), *scalar = faulty ? a : &one;
  REQUIRE(cublasSgemm(blas.handle, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, scalar, a, 1, a, 1, &one, to_device(numbers(1)),
                      1) == CUBLAS_STATUS_SUCCESS);
}
inline void unwritten_product(bool faulty) {
  const Blas blas;
  const float *a = to_device(numbers(4)), *b = faulty ? device_new<float>(4) : to_device(numbers(4));
  REQUIRE(blas.product(2, 2, 2, a, 2, b, 2, device_new<float>(4), 2) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(cudaStreamSynchronize(blas.stream) == cudaSuccess);
}
inline void unwritten_sum(bool faulty) {
  const Blas blas;
  const float *a = to_device(numbers(4)), *b = to_device(numbers(4));
  REQUIRE(blas.product(2, 2, 2, a, 2, b, 2, device_new<float>(4), 2, faulty ? 1.0f : 0.0f) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(cudaStreamSynchronize(blas.stream) == cudaSuccess);
}

/// What may not happen while a stream is captured happens inside (faulty) or behind the capture.
template <class Action>
void around_capture(bool faulty, bool workspace, Action action) {
  const Blas blas(workspace);
  const float *a = to_device(numbers(4)), *b = to_device(numbers(4));
  auto* c = device_new<float>(4);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(blas.stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  REQUIRE(launch(blas.stream, 1, 4, &twice<float>, a, c, 4) == cudaSuccess);
  if (faulty) action(blas, b, c);
  REQUIRE(cudaStreamEndCapture(blas.stream, &graph) == cudaSuccess);
  action(blas, b, c);
  cudaGraphExec_t executable = nullptr;
  REQUIRE(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  for (int i = 0; i < 2; ++i) REQUIRE(cudaGraphLaunch(executable, blas.stream) == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(blas.stream) == cudaSuccess);
  REQUIRE(to_host(c, 4)[1] == 3.0f);
}
inline void allocation_in_a_capture(bool faulty) {
  around_capture(faulty, true, [](const Blas&, const float*, float*) { device_new<float>(4); });
}
inline void release_in_a_capture(bool faulty) {
  around_capture(faulty, true, [](const Blas&, const float*, float*) { REQUIRE(cudaFree(nullptr) == cudaSuccess); });
}
inline void synchronise_in_a_capture(bool faulty) {
  around_capture(faulty, true, [](const Blas& blas, const float*, float*) {
    REQUIRE(cudaStreamSynchronize(blas.stream) == cudaSuccess);
  });
}
inline void synchronise_device_in_a_capture(bool faulty) {
  around_capture(faulty, true,
                 [](const Blas&, const float*, float*) { REQUIRE(cudaDeviceSynchronize() == cudaSuccess); });
}
inline void copy_from_the_host_in_a_capture(bool faulty) {
  around_capture(faulty, true, [](const Blas&, const float*, float* c) {
    const std::vector<float> values = numbers(4);
    REQUIRE(cudaMemcpy(c, values.data(), 4 * sizeof(float), cudaMemcpyHostToDevice) == cudaSuccess);
  });
}
inline void host_copy_in_a_capture(bool faulty) {
  around_capture(faulty, true, [](const Blas& blas, const float* b, float*) {
    float host[4];
    REQUIRE(cudaMemcpyAsync(host, b, sizeof host, cudaMemcpyDeviceToHost, blas.stream) == cudaSuccess);
  });
}
inline void product_in_a_capture(bool faulty) {
  around_capture(faulty, false, [](const Blas& blas, const float* b, float* c) {
    REQUIRE(blas.product(2, 2, 2, b, 2, b, 2, c, 2) == CUBLAS_STATUS_SUCCESS);
  });
}

inline const std::vector<Fault> faults {
  {"missing barrier", "unwritten device memory reached the host", missing_barrier, "data race"},
#if defined(__SANITIZE_THREAD__)
      {"missing second barrier", "(a data race, seen by ThreadSanitizer)", missing_second_barrier, "data race"},
      {"missing fence", "(a data race, seen by ThreadSanitizer)", missing_fence, "data race"},
#endif
      {"barrier after return", "rotate_some<float>: barrier not reached by all threads", barrier_after_return},
      {"two barriers for one", "rotate_some<float>: barrier not reached by all threads", two_barriers_for_one},
      {"partial shuffle", "sum_warp: shuffle not reached by all threads", partial_shuffle},
      {"shuffle mask", "a mask that is not full", shuffle_mask},
      {"out of bounds", "kernel store_at touched memory out of bounds, 3600 bytes past the end of an allocation of 400",
       out_of_bounds},
      {"read past the end",
       "what lies beside an allocation reached the host: cudaMemcpy at byte 28 of an allocation of 32",
       read_past_the_end, "use-after-poison"},
      {"just past the end", "0 bytes past the end of an allocation of 400 bytes", just_past_the_end,
       "use-after-poison"},
      {"just before the beginning", "before an allocation of 400 bytes", just_before_the_beginning, "use-after-poison"},
      {"freed memory", "pointer to freed or never allocated device memory passed to kernel twice<float>", freed_memory},
      {"unwritten read", "unwritten device memory reached the host: cudaMemcpy at byte 0 of an allocation of 32 bytes",
       unwritten_read},
      {"host pointer", "host pointer passed to kernel twice<float>", host_pointer},
      {"host pointer in a view", "host pointer passed to kernel twice_of", host_pointer_in_a_view},
      {"host pointer in a copy", "host pointer passed to cudaMemcpy as its device destination", host_pointer_in_a_copy},
      {"device pointer", "host code touched device memory", device_pointer},
      {"device pointer, test framework", "host code touched device memory", device_pointer_behind_a_handler},
      {"device scalar", "device pointer passed to cublasSgemm as a host scalar", device_scalar},
      {"unsynchronised read", "kernel twice<float>, still queued on another stream", unsynchronised_read},
      {"unsynchronised pinned read", "host code touched pinned memory that a queued copy still uses",
       unsynchronised_pinned_read},
      {"wrong leading dimension", "cublasSgemm as A (3 x 4, leading dimension 4) reaches 12 bytes past the end",
       wrong_leading_dimension},
      {"host pointer in a product", "host pointer passed to cublasSgemm as B", host_pointer_in_a_product},
      {"unwritten product", "cublasSgemm read unwritten device memory as B", unwritten_product},
      {"unwritten sum", "cublasSgemm read unwritten device memory as C with beta not 0", unwritten_sum},
      {"allocation in a capture", "cudaMalloc inside a stream capture", allocation_in_a_capture},
      {"release in a capture", "cudaFree inside a stream capture", release_in_a_capture},
      {"synchronise in a capture", "cudaStreamSynchronize inside a stream capture", synchronise_in_a_capture},
      {"synchronise device in a capture", "cudaDeviceSynchronize inside a stream capture",
       synchronise_device_in_a_capture},
      {"copy from the host in a capture", "host copy inside a stream capture: cudaMemcpy",
       copy_from_the_host_in_a_capture},
      {"host copy in a capture", "host copy inside a stream capture: cudaMemcpyAsync", host_copy_in_a_capture},
      {"product in a capture", "cublasSgemm inside a stream capture without a workspace", product_in_a_capture},
};
