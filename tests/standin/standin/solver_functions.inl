// The calls of one scalar type. Included twice by cusolverDn.h, which says what DELTAW_STANDIN_T and _CALL are; hence no
// `#pragma once`.

inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvd_bufferSize)(cusolverDnHandle_t handle, int m, int n, int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (m < n || n < 0) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
/// As the real one, only for m >= n; jobs 'A', 'S' and 'N', of which A and S do not mix.
inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvd)(cusolverDnHandle_t handle, signed char jobu, signed char jobvt,
                                                   int m, int n, DELTAW_STANDIN_T* A, int lda, DELTAW_STANDIN_T* S,
                                                   DELTAW_STANDIN_T* U, int ldu, DELTAW_STANDIN_T* VT, int ldvt,
                                                   DELTAW_STANDIN_T* work, int lwork, DELTAW_STANDIN_T*, int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (m < n) return CUSOLVER_STATUS_INVALID_VALUE;
  const auto known = [](signed char job) { return job == 'A' || job == 'S' || job == 'N'; };
  if (!known(jobu) || !known(jobvt)) return CUSOLVER_STATUS_NOT_SUPPORTED;
  return standin::svd_call(handle, "cusolverDn gesvd", jobu != 'N', jobvt != 'N', jobu != 'A', true, m, n, A, lda, S, U,
                           ldu, VT, ldvt, work, lwork, info, 1);
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvdj_bufferSize)(cusolverDnHandle_t handle, cusolverEigMode_t, int, int m,
                                                               int n, const DELTAW_STANDIN_T*, int,
                                                               const DELTAW_STANDIN_T*, const DELTAW_STANDIN_T*, int,
                                                               const DELTAW_STANDIN_T*, int, int* lwork, gesvdjInfo_t) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (m < 0 || n < 0) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvdj)(cusolverDnHandle_t handle, cusolverEigMode_t jobz, int econ, int m,
                                                    int n, DELTAW_STANDIN_T* A, int lda, DELTAW_STANDIN_T* S,
                                                    DELTAW_STANDIN_T* U, int ldu, DELTAW_STANDIN_T* V, int ldv,
                                                    DELTAW_STANDIN_T* work, int lwork, int* info, gesvdjInfo_t params) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (params == nullptr) return CUSOLVER_STATUS_INVALID_VALUE;
  const bool vectors = jobz == CUSOLVER_EIG_MODE_VECTOR;
  return standin::svd_call(handle, "cusolverDn gesvdj", vectors, vectors, econ != 0, false, m, n, A, lda, S, U, ldu, V,
                           ldv, work, lwork, info, 1);
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvdjBatched_bufferSize)(cusolverDnHandle_t handle, cusolverEigMode_t,
                                                                      int m, int n, const DELTAW_STANDIN_T*, int,
                                                                      const DELTAW_STANDIN_T*, const DELTAW_STANDIN_T*,
                                                                      int, const DELTAW_STANDIN_T*, int, int* lwork,
                                                                      gesvdjInfo_t, int) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (m < 0 || n < 0 || m > 32 || n > 32) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
/// As the real one, only up to 32 x 32; U and V are square.
inline cusolverStatus_t DELTAW_STANDIN_CALL(gesvdjBatched)(cusolverDnHandle_t handle, cusolverEigMode_t jobz, int m,
                                                           int n, DELTAW_STANDIN_T* A, int lda, DELTAW_STANDIN_T* S,
                                                           DELTAW_STANDIN_T* U, int ldu, DELTAW_STANDIN_T* V, int ldv,
                                                           DELTAW_STANDIN_T* work, int lwork, int* info,
                                                           gesvdjInfo_t params, int batchSize) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (params == nullptr || m > 32 || n > 32) return CUSOLVER_STATUS_INVALID_VALUE;
  const bool vectors = jobz == CUSOLVER_EIG_MODE_VECTOR;
  return standin::svd_call(handle, "cusolverDn gesvdjBatched", vectors, vectors, false, false, m, n, A, lda, S, U, ldu,
                           V, ldv, work, lwork, info, batchSize);
}

inline cusolverStatus_t DELTAW_STANDIN_CALL(geqrf_bufferSize)(cusolverDnHandle_t handle, int m, int n,
                                                              DELTAW_STANDIN_T*, int lda, int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(geqrf)(cusolverDnHandle_t handle, int m, int n, DELTAW_STANDIN_T* A,
                                                   int lda, DELTAW_STANDIN_T* tau, DELTAW_STANDIN_T* work, int lwork,
                                                   int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda) || lwork < standin::workspace(m, n)) return CUSOLVER_STATUS_INVALID_VALUE;
  standin::SolverCall call(handle, "cusolverDn geqrf");
  call.matrix(A, m, n, lda, 1, "A");
  call.bytes(tau, sizeof *tau * static_cast<std::size_t>(std::min(m, n)), "tau");
  call.bytes(work, sizeof *work * static_cast<std::size_t>(lwork), "work");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    standin::Dense a = standin::load_matrix(A, m, n, lda, name);
    standin::store_vector(standin::householder_qr(a), tau);
    standin::store_matrix(a, A, m, n, lda);
    *info = 0;
  });
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(orgqr_bufferSize)(cusolverDnHandle_t handle, int m, int n, int k,
                                                              const DELTAW_STANDIN_T*, int lda, const DELTAW_STANDIN_T*,
                                                              int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda) || n > m || k > n || k < 0) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(orgqr)(cusolverDnHandle_t handle, int m, int n, int k, DELTAW_STANDIN_T* A,
                                                   int lda, const DELTAW_STANDIN_T* tau, DELTAW_STANDIN_T* work,
                                                   int lwork, int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda) || n > m || k > n || k < 0 || lwork < standin::workspace(m, n))
    return CUSOLVER_STATUS_INVALID_VALUE;
  standin::SolverCall call(handle, "cusolverDn orgqr");
  call.matrix(A, m, n, lda, 1, "A");
  call.bytes(tau, sizeof *tau * static_cast<std::size_t>(k), "tau");
  call.bytes(work, sizeof *work * static_cast<std::size_t>(lwork), "work");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    standin::Dense q(m, n);
    for (int i = 0; i < n; ++i) q(i, i) = 1;
    standin::apply_q(standin::load_matrix(A, m, k, lda, name), standin::load_vector(tau, k, name), false, q);
    standin::store_matrix(q, A, m, n, lda);
    *info = 0;
  });
}

inline cusolverStatus_t DELTAW_STANDIN_CALL(potrf_bufferSize)(cusolverDnHandle_t handle, cublasFillMode_t, int n,
                                                              DELTAW_STANDIN_T*, int lda, int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(n, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(potrf)(cusolverDnHandle_t handle, cublasFillMode_t fill, int n,
                                                   DELTAW_STANDIN_T* A, int lda, DELTAW_STANDIN_T* work, int lwork,
                                                   int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda) || lwork < standin::workspace(n, n)) return CUSOLVER_STATUS_INVALID_VALUE;
  standin::SolverCall call(handle, "cusolverDn potrf");
  call.matrix(A, n, n, lda, 1, "A");
  call.bytes(work, sizeof *work * static_cast<std::size_t>(lwork), "work");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    standin::Dense a = standin::load_matrix(A, n, n, lda, name, standin::part_of(fill));
    *info = standin::cholesky(a);
    const standin::Dense factor = fill == CUBLAS_FILL_MODE_LOWER ? a : standin::transposed(a);
    standin::store_matrix(factor, A, n, n, lda, standin::part_of(fill));
  });
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(potrs)(cusolverDnHandle_t handle, cublasFillMode_t fill, int n, int nrhs,
                                                   const DELTAW_STANDIN_T* A, int lda, DELTAW_STANDIN_T* B, int ldb,
                                                   int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda) || !standin::legal(n, nrhs, ldb)) return CUSOLVER_STATUS_INVALID_VALUE;
  standin::SolverCall call(handle, "cusolverDn potrs");
  call.matrix(A, n, n, lda, 1, "A");
  call.matrix(B, n, nrhs, ldb, 1, "B");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    const standin::Dense l = standin::load_matrix(A, n, n, lda, name, standin::part_of(fill));
    standin::Dense b = standin::load_matrix(B, n, nrhs, ldb, name);
    standin::solve_lower(l, false, false, b);
    standin::solve_lower(l, true, false, b);
    standin::store_matrix(b, B, n, nrhs, ldb);
    *info = 0;
  });
}

inline cusolverStatus_t DELTAW_STANDIN_CALL(getrf_bufferSize)(cusolverDnHandle_t handle, int m, int n,
                                                              DELTAW_STANDIN_T*, int lda, int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
/// With pivots: the real one's way to do without them, a null `pivots`, is not in the subset.
inline cusolverStatus_t DELTAW_STANDIN_CALL(getrf)(cusolverDnHandle_t handle, int m, int n, DELTAW_STANDIN_T* A,
                                                   int lda, DELTAW_STANDIN_T* work, int* pivots, int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(m, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  if (pivots == nullptr) return CUSOLVER_STATUS_NOT_SUPPORTED;
  standin::SolverCall call(handle, "cusolverDn getrf");
  call.matrix(A, m, n, lda, 1, "A");
  call.bytes(work, sizeof *work * static_cast<std::size_t>(standin::workspace(m, n)), "work");
  call.bytes(pivots, sizeof(int) * static_cast<std::size_t>(std::min(m, n)), "pivots");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    standin::Dense a = standin::load_matrix(A, m, n, lda, name);
    std::vector<int> order;
    *info = standin::lu(a, order);
    std::copy(order.begin(), order.end(), pivots);
    standin::store_matrix(a, A, m, n, lda);
  });
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(getrs)(cusolverDnHandle_t handle, cublasOperation_t op, int n, int nrhs,
                                                   const DELTAW_STANDIN_T* A, int lda, const int* pivots,
                                                   DELTAW_STANDIN_T* B, int ldb, int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda) || !standin::legal(n, nrhs, ldb)) return CUSOLVER_STATUS_INVALID_VALUE;
  standin::SolverCall call(handle, "cusolverDn getrs");
  call.matrix(A, n, n, lda, 1, "A");
  call.matrix(B, n, nrhs, ldb, 1, "B");
  call.bytes(pivots, sizeof(int) * static_cast<std::size_t>(n), "pivots");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    const standin::Dense factors = standin::load_matrix(A, n, n, lda, name), upper = standin::transposed(factors);
    standin::Dense b = standin::load_matrix(B, n, nrhs, ldb, name);
    const auto exchange = [&](int k) {
      for (int j = 0; j < nrhs; ++j) std::swap(b(k, j), b(pivots[k] - 1, j));
    };
    if (op == CUBLAS_OP_N) {
      for (int k = 0; k < n; ++k) exchange(k);
      standin::solve_lower(factors, false, true, b);
      standin::solve_lower(upper, true, false, b);
    } else {
      standin::solve_lower(upper, false, false, b);
      standin::solve_lower(factors, true, true, b);
      for (int k = n; k-- > 0;) exchange(k);
    }
    standin::store_matrix(b, B, n, nrhs, ldb);
    *info = 0;
  });
}

inline cusolverStatus_t DELTAW_STANDIN_CALL(syevd_bufferSize)(cusolverDnHandle_t handle, cusolverEigMode_t,
                                                              cublasFillMode_t, int n, const DELTAW_STANDIN_T*, int lda,
                                                              const DELTAW_STANDIN_T*, int* lwork) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(n, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(syevd)(cusolverDnHandle_t handle, cusolverEigMode_t jobz,
                                                   cublasFillMode_t fill, int n, DELTAW_STANDIN_T* A, int lda,
                                                   DELTAW_STANDIN_T* W, DELTAW_STANDIN_T* work, int lwork, int* info) {
  return standin::eigen_call(handle, "cusolverDn syevd", jobz, fill, n, A, lda, W, work, lwork, info);
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(syevj_bufferSize)(cusolverDnHandle_t handle, cusolverEigMode_t,
                                                              cublasFillMode_t, int n, const DELTAW_STANDIN_T*, int lda,
                                                              const DELTAW_STANDIN_T*, int* lwork, syevjInfo_t) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!standin::legal(n, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *lwork = standin::workspace(n, n);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t DELTAW_STANDIN_CALL(syevj)(cusolverDnHandle_t handle, cusolverEigMode_t jobz,
                                                   cublasFillMode_t fill, int n, DELTAW_STANDIN_T* A, int lda,
                                                   DELTAW_STANDIN_T* W, DELTAW_STANDIN_T* work, int lwork, int* info,
                                                   syevjInfo_t params) {
  if (params == nullptr) return CUSOLVER_STATUS_INVALID_VALUE;
  return standin::eigen_call(handle, "cusolverDn syevj", jobz, fill, n, A, lda, W, work, lwork, info);
}
