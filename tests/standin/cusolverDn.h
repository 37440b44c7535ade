#pragma once
// The stand-in for dense cuSOLVER: SVD and symmetric eigenvalues by Jacobi, QR by Householder, Cholesky and LU, in double
// whatever the type. See README.md for the list.

#if defined(CUSOLVER_COMMON_H_) || defined(CUSOLVERDN_H_)
#error "The stand-in and the real cuSOLVER headers do not mix: put tests/standin first on the include path."
#endif

#include "cublas_v2.h"
#include "standin/solver_call.hpp"

inline cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cusolverDnCreate");
  *handle = new cusolverDnContext;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnGetStream(cusolverDnHandle_t handle, cudaStream_t* stream) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  *stream = handle->stream;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t* info) {
  *info = new gesvdjInfo;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnDestroyGesvdjInfo(gesvdjInfo_t info) {
  delete info;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnXgesvdjSetTolerance(gesvdjInfo_t, double) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnXgesvdjSetMaxSweeps(gesvdjInfo_t, int) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnXgesvdjSetSortEig(gesvdjInfo_t, int sort) {
  return sort != 0 ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_NOT_SUPPORTED;  // always sorted
}
inline cusolverStatus_t cusolverDnCreateSyevjInfo(syevjInfo_t* info) {
  *info = new syevjInfo;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnDestroySyevjInfo(syevjInfo_t info) {
  delete info;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnXsyevjSetTolerance(syevjInfo_t, double) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnXsyevjSetMaxSweeps(syevjInfo_t, int) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnXsyevjSetSortEig(syevjInfo_t, int sort) {
  return sort != 0 ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_NOT_SUPPORTED;  // always sorted
}

#define DELTAW_STANDIN_T float
#define DELTAW_STANDIN_CALL(name) cusolverDnS##name
#include "standin/solver_functions.inl"
#undef DELTAW_STANDIN_T
#undef DELTAW_STANDIN_CALL
#define DELTAW_STANDIN_T double
#define DELTAW_STANDIN_CALL(name) cusolverDnD##name
#include "standin/solver_functions.inl"
#undef DELTAW_STANDIN_T
#undef DELTAW_STANDIN_CALL
