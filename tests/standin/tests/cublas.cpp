// The cuBLAS stand-in against naive products: types, transposes, strides, batches, beta, refusals and captures.

#include "library_test.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

template <class T>
constexpr cudaDataType type() {
  if constexpr (std::is_same_v<T, double>) return CUDA_R_64F;
  if constexpr (std::is_same_v<T, float>) return CUDA_R_32F;
  if constexpr (std::is_same_v<T, __half>) return CUDA_R_16F;
  return CUDA_R_16BF;
}

template <class T>
Host rounded(Host a) {
  for (double& value : a.values) value = static_cast<double>(T(value));
  return a;
}

/// Two batches, every pair of transposes, odd leading dimensions, alpha and beta; `tolerance` for the result's rounding.
template <class T, class C>
void products(cublasHandle_t handle, double tolerance) {
  using Factor = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int m = 5, n = 7, k = 6, lda = 9, ldb = 8, ldc = 6, batches = 2;
  for (cublasOperation_t ta : {CUBLAS_OP_N, CUBLAS_OP_T})
    for (cublasOperation_t tb : {CUBLAS_OP_N, CUBLAS_OP_T})
      for (Factor beta : {Factor(0), Factor(0.5)}) {
        const int a_cols = ta == CUBLAS_OP_N ? k : m, b_cols = tb == CUBLAS_OP_N ? n : k;
        const Host a = rounded<T>(random_matrix(lda, a_cols * batches, 1)),
                   b = rounded<T>(random_matrix(ldb, b_cols * batches, 2));
        const Host c = rounded<C>(random_matrix(ldc, n * batches, 3));
        const Factor alpha = Factor(1.5);
        const auto *da = upload<T>(a), *db = upload<T>(b);
        auto* dc = upload<C>(c);
        REQUIRE(cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, &alpha, da, type<T>(), lda, lda * a_cols, db,
                                           type<T>(), ldb, ldb * b_cols, &beta, dc, type<C>(), ldc, ldc * n, batches,
                                           std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                           CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
        const Host got = download(dc, ldc, n * batches);
        for (int batch = 0; batch < batches; ++batch)
          for (int j = 0; j < n; ++j)
            for (int i = 0; i < ldc; ++i) {
              double want = c(i, batch * n + j);
              if (i < m) {
                double sum = 0;
                for (int l = 0; l < k; ++l)
                  sum += (ta == CUBLAS_OP_N ? a(i, batch * a_cols + l) : a(l, batch * a_cols + i)) *
                         (tb == CUBLAS_OP_N ? b(l, batch * b_cols + j) : b(j, batch * b_cols + l));
                want = 1.5 * sum + (beta == 0 ? 0 : static_cast<double>(beta) * want);
              }
              REQUIRE(std::fabs(got(i, batch * n + j) - want) <= tolerance * std::max(1.0, std::fabs(want)));
            }
      }
}

void refusals(cublasHandle_t handle) {
  const float one = 1, zero = 0;
  const auto *a = to_device(std::vector<float>(16, 1.0f)), *b = a;
  auto* c = to_device(std::vector<float>(16, 1.0f));
  const auto f32 = [&](cublasOperation_t ta, int m, int n, int k, int lda, int ldb, int ldc) {
    return cublasSgemm(handle, ta, CUBLAS_OP_N, m, n, k, &one, a, lda, b, ldb, &zero, c, ldc);
  };
  REQUIRE(f32(CUBLAS_OP_N, 4, 2, 3, 4, 3, 4) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(f32(CUBLAS_OP_N, 4, 2, 3, 3, 3, 4) == CUBLAS_STATUS_INVALID_VALUE);  // lda < m
  REQUIRE(f32(CUBLAS_OP_T, 4, 2, 3, 3, 3, 4) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(f32(CUBLAS_OP_T, 4, 2, 3, 2, 3, 4) == CUBLAS_STATUS_INVALID_VALUE);  // lda < k
  REQUIRE(f32(CUBLAS_OP_N, 4, 2, 3, 4, 2, 4) == CUBLAS_STATUS_INVALID_VALUE);  // ldb < k
  REQUIRE(f32(CUBLAS_OP_N, 4, 2, 3, 4, 3, 3) == CUBLAS_STATUS_INVALID_VALUE);  // ldc < m
  REQUIRE(f32(CUBLAS_OP_N, -1, 2, 3, 4, 3, 4) == CUBLAS_STATUS_INVALID_VALUE);
  REQUIRE(f32(CUBLAS_OP_N, 0, 2, 3, 0, 3, 4) == CUBLAS_STATUS_INVALID_VALUE);  // a leading dimension is at least 1
  REQUIRE(f32(CUBLAS_OP_N, 0, 2, 3, 1, 3, 4) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(cublasSgemm(nullptr, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &one, a, 1, b, 1, &zero, c, 1) ==
          CUBLAS_STATUS_NOT_INITIALIZED);
  REQUIRE(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, nullptr, a, 1, b, 1, &zero, c, 1) ==
          CUBLAS_STATUS_INVALID_VALUE);
  const auto mixed = [&](cudaDataType ta, cudaDataType tb, cudaDataType tc, cublasComputeType_t compute) {
    return cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, 0, 0, 0, &one, a, ta, 1, b, tb, 1, &zero, c, tc, 1, compute,
                        CUBLAS_GEMM_DEFAULT);
  };
  REQUIRE(mixed(CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(mixed(CUDA_R_16BF, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
  REQUIRE(mixed(CUDA_R_32F, CUDA_R_32F, CUDA_R_16F, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
  REQUIRE(mixed(CUDA_R_16F, CUDA_R_16F, CUDA_R_16BF, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
  REQUIRE(mixed(CUDA_R_64F, CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
}

/// beta = 0 reads no C, k = 0 and alpha = 0 read no A and B: unwritten memory there must not matter.
void unread(cublasHandle_t handle) {
  const double zero = 0, one = 1;
  const auto* ones = to_device(std::vector<double>(4, 1.0));
  auto *fresh = device_new<double>(4), *c = device_new<double>(4);
  REQUIRE(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, ones, 2, ones, 2, &zero, c, 2) ==
          CUBLAS_STATUS_SUCCESS);
  REQUIRE(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &zero, fresh, 2, fresh, 2, &one, c, 2) ==
          CUBLAS_STATUS_SUCCESS);
  REQUIRE(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 0, &one, fresh, 2, fresh, 1, &one, c, 2) ==
          CUBLAS_STATUS_SUCCESS);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE(to_host(c, 4)[3] == 2.0);
}

/// alpha is read when the work is done in device mode, and at the call in host mode: a graph keeps the latter.
void captured(cublasHandle_t handle, cudaStream_t stream) {
  const auto* ones = to_device(std::vector<double>(4, 1.0));
  auto *alpha = to_device(std::vector<double>{1.0}), *zero = to_device(std::vector<double>{0.0}),
       *c = device_new<double>(4);
  REQUIRE(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_DEVICE) == CUBLAS_STATUS_SUCCESS);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  REQUIRE(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, alpha, ones, 2, ones, 2, zero, c, 2) ==
          CUBLAS_STATUS_SUCCESS);
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  for (double a : {3.0, 4.0}) {
    REQUIRE(cudaMemcpy(alpha, &a, sizeof a, cudaMemcpyHostToDevice) == cudaSuccess);
    REQUIRE(cudaGraphLaunch(executable, stream) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    REQUIRE(to_host(c, 4)[0] == 2 * a);
  }
  REQUIRE(cudaGraphExecDestroy(executable) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
}

/// Every 16-bit pattern survives the way to float and back; halves round to even.
void half_types() {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto b = static_cast<std::uint16_t>(bits);
    const float h = __half2float(__ushort_as_half(b)), f = __bfloat162float(__ushort_as_bfloat16(b));
    REQUIRE(std::isnan(h) || __half_as_ushort(__float2half(h)) == b);
    REQUIRE(std::isnan(f) || __bfloat16_as_ushort(__float2bfloat16(f)) == b);
  }
  REQUIRE(__half_as_ushort(__float2half(65519.0f)) == 0x7bff && __half_as_ushort(__float2half(65520.0f)) == 0x7c00);
  REQUIRE(__half_as_ushort(__float2half(0x1p-25f)) == 0 && __half_as_ushort(__float2half(0x1.8p-25f)) == 1);
  REQUIRE(__half_as_ushort(__float2half(1 + 0x1p-11f)) == 0x3c00 &&
          __half_as_ushort(__float2half(1 + 0x1.8p-10f)) == 0x3c02);
  REQUIRE(__bfloat16_as_ushort(__float2bfloat16(1 + 0x1p-8f)) == 0x3f80 &&
          __bfloat16_as_ushort(__float2bfloat16(1 + 0x1.8p-7f)) == 0x3f82);
}

}  // namespace

int main() {
  cublasHandle_t handle = nullptr;
  REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  const cudaStream_t stream = new_stream();
  REQUIRE(cublasSetStream(handle, stream) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(cublasSetWorkspace(handle, device_new<char>(4096), 4096) == CUBLAS_STATUS_SUCCESS);
  products<double, double>(handle, 1e-14);
  products<float, float>(handle, 1e-6);
  products<__half, __half>(handle, 0x1p-11);
  products<__half, float>(handle, 1e-6);
  products<__nv_bfloat16, __nv_bfloat16>(handle, 0x1p-8);
  products<__nv_bfloat16, float>(handle, 1e-6);
  refusals(handle);
  unread(handle);
  half_types();
  captured(handle, stream);
  REQUIRE(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  std::puts("cublas: all hold");
}
