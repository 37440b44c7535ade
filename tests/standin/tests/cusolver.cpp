// The cuSOLVER stand-in: factors multiply back to what they came from, bases are orthogonal, refusals are the real ones.

#include <algorithm>

#include "library_test.hpp"

namespace {

struct Solver {
  cusolverDnHandle_t handle = nullptr;
  double* work = device_new<double>(1000);
  int* info = device_new<int>(8);
  Solver() { REQUIRE(cusolverDnCreate(&handle) == CUSOLVER_STATUS_SUCCESS); }
  ~Solver() { cusolverDnDestroy(handle); }
  int status() const { return to_host(info, 1)[0]; }
};

Host diagonal(const std::vector<double>& s, int rows, int cols) {
  Host d(rows, cols);
  for (std::size_t i = 0; i < s.size(); ++i) d(static_cast<int>(i), static_cast<int>(i)) = s[i];
  return d;
}

void check_svd(const Host& a, const Host& u, const std::vector<double>& s, const Host& vt) {
  REQUIRE(distance(times(times(u, diagonal(s, u.cols, vt.rows)), vt), a) < 1e-12);
  REQUIRE(from_orthogonal(u) < 1e-12);
  REQUIRE(from_orthogonal(turned(vt)) < 1e-12);
  REQUIRE(std::is_sorted(s.rbegin(), s.rend()) && s.back() >= 0);
}

/// Rank-deficient on purpose where `rank` is less than both sizes.
Host of_rank(int rows, int cols, int rank) { return times(random_matrix(rows, rank, 4), random_matrix(rank, cols, 5)); }

void gesvd(const Solver& x, const Host& a, char job) {
  const int m = a.rows, n = a.cols, cols = job == 'A' ? m : n;
  auto *da = upload<double>(a), *s = device_new<double>(static_cast<std::size_t>(n));
  auto *u = device_new<double>(static_cast<std::size_t>(m * cols)),
       *vt = device_new<double>(static_cast<std::size_t>(n * n));
  int lwork = 0;
  REQUIRE(cusolverDnDgesvd_bufferSize(x.handle, m, n, &lwork) == CUSOLVER_STATUS_SUCCESS);
  const auto j = static_cast<signed char>(job);
  REQUIRE(cusolverDnDgesvd(x.handle, j, j, m, n, da, m, s, u, m, vt, n, x.work, lwork - 1, nullptr, x.info) ==
          CUSOLVER_STATUS_INVALID_VALUE);
  REQUIRE(cusolverDnDgesvd(x.handle, j, j, m, n, da, m, s, u, m, vt, n, x.work, lwork, nullptr, x.info) ==
          CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  check_svd(a, download(u, m, cols), to_host(s, static_cast<std::size_t>(n)), download(vt, n, n));
}

void gesvdj(const Solver& x, const Host& a, bool economical) {
  const int m = a.rows, n = a.cols, least = std::min(m, n), u_cols = economical ? least : m,
            v_cols = economical ? least : n;
  auto *da = upload<double>(a), *s = device_new<double>(static_cast<std::size_t>(least));
  auto *u = device_new<double>(static_cast<std::size_t>(m * u_cols)),
       *v = device_new<double>(static_cast<std::size_t>(n * v_cols));
  gesvdjInfo_t parameters = nullptr;
  REQUIRE(cusolverDnCreateGesvdjInfo(&parameters) == CUSOLVER_STATUS_SUCCESS);
  int lwork = 0;
  REQUIRE(cusolverDnDgesvdj_bufferSize(x.handle, CUSOLVER_EIG_MODE_VECTOR, economical, m, n, da, m, s, u, m, v, n,
                                       &lwork, parameters) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDgesvdj(x.handle, CUSOLVER_EIG_MODE_VECTOR, economical, m, n, da, m, s, u, m, v, n, x.work, lwork,
                            x.info, parameters) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  check_svd(a, download(u, m, u_cols), to_host(s, static_cast<std::size_t>(least)), turned(download(v, n, v_cols)));
  cusolverDnDestroyGesvdjInfo(parameters);
}

void gesvdj_batched(const Solver& x) {
  const int m = 6, n = 4, batches = 3;
  const Host a = random_matrix(m, n * batches, 6);
  auto *da = upload<double>(a), *s = device_new<double>(n * batches), *u = device_new<double>(m * m * batches),
       *v = device_new<double>(n * n * batches);
  gesvdjInfo_t parameters = nullptr;
  cusolverDnCreateGesvdjInfo(&parameters);
  int lwork = 0;
  REQUIRE(cusolverDnDgesvdjBatched_bufferSize(x.handle, CUSOLVER_EIG_MODE_VECTOR, m, n, da, m, s, u, m, v, n, &lwork,
                                              parameters, batches) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDgesvdjBatched(x.handle, CUSOLVER_EIG_MODE_VECTOR, m, n, da, m, s, u, m, v, n, x.work, lwork,
                                   x.info, parameters, batches) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  for (int b = 0; b < batches; ++b) {
    Host one(m, n);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < m; ++i) one(i, j) = a(i, b * n + j);
    check_svd(one, download(u + b * m * m, m, m), to_host(s + b * n, n), turned(download(v + b * n * n, n, n)));
  }
  REQUIRE(cusolverDnDgesvdjBatched_bufferSize(x.handle, CUSOLVER_EIG_MODE_VECTOR, 33, n, da, 33, s, u, 33, v, n, &lwork,
                                              parameters, batches) == CUSOLVER_STATUS_INVALID_VALUE);
  cusolverDnDestroyGesvdjInfo(parameters);
}

void qr(const Solver& x, int m, int n) {
  const Host a = random_matrix(m, n, 7);
  auto *da = upload<double>(a), *tau = device_new<double>(static_cast<std::size_t>(n));
  int lwork = 0;
  REQUIRE(cusolverDnDgeqrf_bufferSize(x.handle, m, n, da, m, &lwork) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDgeqrf(x.handle, m, n, da, m, tau, x.work, lwork, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  Host r = download(da, n, n, m), square(n, n);
  for (int j = 0; j < n; ++j)
    for (int i = 0; i <= j; ++i) square(i, j) = r(i, j);
  REQUIRE(cusolverDnDorgqr_bufferSize(x.handle, m, n, n, da, m, tau, &lwork) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDorgqr(x.handle, m, n, n, da, m, tau, x.work, lwork, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  const Host q = download(da, m, n);
  REQUIRE(from_orthogonal(q) < 1e-12);
  REQUIRE(distance(times(q, square), a) < 1e-12);
}

Host positive(int n) {
  Host a = times(random_matrix(n, n + 3, 8), turned(random_matrix(n, n + 3, 8)));
  for (int i = 0; i < n; ++i) a(i, i) += 1;
  return a;
}

/// The half that is not named holds rubbish and keeps it.
void cholesky(const Solver& x, cublasFillMode_t fill, int n) {
  const Host a = positive(n), b = random_matrix(n, 2, 9);
  Host half = a;
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < n; ++i)
      if (fill == CUBLAS_FILL_MODE_LOWER ? i < j : i > j) half(i, j) = 77;
  auto *da = upload<double>(half), *db = upload<double>(b);
  int lwork = 0;
  REQUIRE(cusolverDnDpotrf_bufferSize(x.handle, fill, n, da, n, &lwork) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDpotrf(x.handle, fill, n, da, n, x.work, lwork, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  REQUIRE(cusolverDnDpotrs(x.handle, fill, n, 2, da, n, db, n, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  REQUIRE(distance(times(a, download(db, n, 2)), b) < 1e-12);
  const Host factor = download(da, n, n);
  REQUIRE(n == 1 ||
          factor(fill == CUBLAS_FILL_MODE_LOWER ? 0 : n - 1, fill == CUBLAS_FILL_MODE_LOWER ? n - 1 : 0) == 77);

  Host indefinite = a;
  indefinite(n - 1, n - 1) = -1;
  REQUIRE(cusolverDnDpotrf(x.handle, fill, n, upload<double>(indefinite), n, x.work, lwork, x.info) ==
          CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == n);
}

void lu(const Solver& x, cublasOperation_t op, int n) {
  const Host a = random_matrix(n, n, 10), b = random_matrix(n, 3, 11);
  auto *da = upload<double>(a), *db = upload<double>(b);
  auto* pivots = device_new<int>(static_cast<std::size_t>(n));
  REQUIRE(cusolverDnDgetrf(x.handle, n, n, da, n, x.work, pivots, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  REQUIRE(cusolverDnDgetrs(x.handle, op, n, 3, da, n, pivots, db, n, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  REQUIRE(distance(times(op == CUBLAS_OP_N ? a : turned(a), download(db, n, 3)), b) < 1e-12);
  auto* zero = upload<double>(Host(n, n));
  REQUIRE(cusolverDnDgetrf(x.handle, n, n, zero, n, x.work, pivots, x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 1);
}

void eigen(const Solver& x, int n) {
  const Host a = positive(n);
  auto *da = upload<double>(a), *w = device_new<double>(static_cast<std::size_t>(n));
  int lwork = 0;
  REQUIRE(cusolverDnDsyevd_bufferSize(x.handle, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, da, n, w,
                                      &lwork) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(cusolverDnDsyevd(x.handle, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, da, n, w, x.work, lwork,
                           x.info) == CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  const std::vector<double> values = to_host(w, static_cast<std::size_t>(n));
  const Host v = download(da, n, n);
  REQUIRE(std::is_sorted(values.begin(), values.end()));
  REQUIRE(from_orthogonal(v) < 1e-12);
  REQUIRE(distance(times(times(v, diagonal(values, n, n)), turned(v)), a) < 1e-12);
}

void single_precision(const Solver& x) {
  const int n = 5;
  const Host a = random_matrix(n, n, 12);
  auto *da = upload<float>(a), *s = device_new<float>(n), *u = device_new<float>(n * n), *vt = device_new<float>(n * n),
       *work = device_new<float>(10);
  REQUIRE(cusolverDnSgesvd(x.handle, 'S', 'S', n, n, da, n, s, u, n, vt, n, work, 10, nullptr, x.info) ==
          CUSOLVER_STATUS_SUCCESS);
  REQUIRE(x.status() == 0);
  const std::vector<float> values = to_host(s, n);
  const Host d = diagonal({values.begin(), values.end()}, n, n);
  REQUIRE(distance(times(times(download(u, n, n), d), download(vt, n, n)), a) < 1e-5);
}

}  // namespace

int main() {
  const Solver x;
  for (char job : {'S', 'A'}) {
    gesvd(x, random_matrix(9, 6, 1), job);
    gesvd(x, of_rank(9, 6, 2), job);
    gesvd(x, random_matrix(1, 1, 1), job);
  }
  for (bool economical : {true, false}) {
    gesvdj(x, random_matrix(6, 11, 2), economical);
    gesvdj(x, random_matrix(11, 6, 2), economical);
    gesvdj(x, of_rank(7, 7, 3), economical);
    gesvdj(x, Host(3, 2), economical);
  }
  REQUIRE(cusolverDnDgesvd(x.handle, 'S', 'S', 2, 3, x.work, 2, x.work, x.work, 2, x.work, 3, x.work, 10, nullptr,
                           x.info) == CUSOLVER_STATUS_INVALID_VALUE);
  gesvdj_batched(x);
  qr(x, 9, 5);
  qr(x, 5, 5);
  qr(x, 1, 1);
  for (int n : {1, 2, 9}) {
    cholesky(x, CUBLAS_FILL_MODE_LOWER, n);
    cholesky(x, CUBLAS_FILL_MODE_UPPER, n);
    lu(x, CUBLAS_OP_N, n);
    lu(x, CUBLAS_OP_T, n);
    eigen(x, n);
  }
  eigen(x, 40);
  single_precision(x);
  std::puts("cusolver: all hold");
}
