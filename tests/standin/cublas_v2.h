#pragma once
// The stand-in for cuBLAS: column-major products by plain loops with sums in double, and cuBLAS's own argument checks.

#if defined(CUBLAS_API_H_)
#error "The stand-in and the real cuBLAS headers do not mix: put tests/standin first on the include path."
#endif

#include "cuda_runtime.h"
#include "standin/cublas_gemm.hpp"
#include "standin/cublas_types.hpp"

inline cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                                 cublasOperation_t transb, int m, int n, int k, const void* alpha,
                                                 const void* A, cudaDataType Atype, int lda, long long strideA,
                                                 const void* B, cudaDataType Btype, int ldb, long long strideB,
                                                 const void* beta, void* C, cudaDataType Ctype, int ldc,
                                                 long long strideC, int batchCount, cublasComputeType_t compute,
                                                 cublasGemmAlgo_t) {
  return standin::gemm(handle, "cublasGemmStridedBatchedEx", {transa, transb, m, n, k}, alpha, {A, Atype, lda, strideA},
                       {B, Btype, ldb, strideB}, beta, {C, Ctype, ldc, strideC}, batchCount, compute);
}
inline cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                                   int n, int k, const void* alpha, const void* A, cudaDataType Atype, int lda,
                                   const void* B, cudaDataType Btype, int ldb, const void* beta, void* C,
                                   cudaDataType Ctype, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
  return standin::gemm(handle, "cublasGemmEx", {transa, transb, m, n, k}, alpha, {A, Atype, lda, 0}, {B, Btype, ldb, 0},
                       beta, {C, Ctype, ldc, 0}, 1, compute);
}
inline cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                                  int n, int k, const float* alpha, const float* A, int lda, const float* B, int ldb,
                                  const float* beta, float* C, int ldc) {
  return standin::gemm(handle, "cublasSgemm", {transa, transb, m, n, k}, alpha, {A, CUDA_R_32F, lda, 0},
                       {B, CUDA_R_32F, ldb, 0}, beta, {C, CUDA_R_32F, ldc, 0}, 1, CUBLAS_COMPUTE_32F);
}
inline cublasStatus_t cublasDgemm(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                                  int n, int k, const double* alpha, const double* A, int lda, const double* B, int ldb,
                                  const double* beta, double* C, int ldc) {
  return standin::gemm(handle, "cublasDgemm", {transa, transb, m, n, k}, alpha, {A, CUDA_R_64F, lda, 0},
                       {B, CUDA_R_64F, ldb, 0}, beta, {C, CUDA_R_64F, ldc, 0}, 1, CUBLAS_COMPUTE_64F);
}
inline cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                                cublasOperation_t transb, int m, int n, int k, const float* alpha,
                                                const float* A, int lda, long long strideA, const float* B, int ldb,
                                                long long strideB, const float* beta, float* C, int ldc,
                                                long long strideC, int batchCount) {
  return standin::gemm(handle, "cublasSgemmStridedBatched", {transa, transb, m, n, k}, alpha,
                       {A, CUDA_R_32F, lda, strideA}, {B, CUDA_R_32F, ldb, strideB}, beta,
                       {C, CUDA_R_32F, ldc, strideC}, batchCount, CUBLAS_COMPUTE_32F);
}
inline cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                                cublasOperation_t transb, int m, int n, int k, const double* alpha,
                                                const double* A, int lda, long long strideA, const double* B, int ldb,
                                                long long strideB, const double* beta, double* C, int ldc,
                                                long long strideC, int batchCount) {
  return standin::gemm(handle, "cublasDgemmStridedBatched", {transa, transb, m, n, k}, alpha,
                       {A, CUDA_R_64F, lda, strideA}, {B, CUDA_R_64F, ldb, strideB}, beta,
                       {C, CUDA_R_64F, ldc, strideC}, batchCount, CUBLAS_COMPUTE_64F);
}
