#pragma once
// Decompositions on the GPU, by cuSOLVER. Our matrices are row-major and cuSOLVER's column-major: what it sees is the
// transpose. Its input is destroyed, so a copy is made anyway, and that copy is turned where the transpose will not do.

#include <cusolverDn.h>

#include <limits>
#include <type_traits>

#include "deltaw/backend/cuda.hpp"
#include "deltaw/backend/cuda_solver_kernels.hpp"

namespace deltaw {
namespace cuda_detail {

inline void check(cusolverStatus_t code, std::string_view call,
                  const std::source_location& at = std::source_location::current()) {
  if (code != CUSOLVER_STATUS_SUCCESS)
    raise_mismatch<DeviceError>(call, "status", static_cast<int>(code), "CUSOLVER_STATUS_SUCCESS" + place(at));
}

/// The calls of one scalar type.
template <class T>
struct Solvers;
template <>
struct Solvers<float> {
  static constexpr auto gesvd = &cusolverDnSgesvd;
  static constexpr auto gesvd_size = &cusolverDnSgesvd_bufferSize;
  static constexpr auto gesvdj_batched = &cusolverDnSgesvdjBatched;
  static constexpr auto gesvdj_batched_size = &cusolverDnSgesvdjBatched_bufferSize;
  static constexpr auto geqrf = &cusolverDnSgeqrf;
  static constexpr auto geqrf_size = &cusolverDnSgeqrf_bufferSize;
  static constexpr auto orgqr = &cusolverDnSorgqr;
  static constexpr auto orgqr_size = &cusolverDnSorgqr_bufferSize;
};
template <>
struct Solvers<double> {
  static constexpr auto gesvd = &cusolverDnDgesvd;
  static constexpr auto gesvd_size = &cusolverDnDgesvd_bufferSize;
  static constexpr auto gesvdj_batched = &cusolverDnDgesvdjBatched;
  static constexpr auto gesvdj_batched_size = &cusolverDnDgesvdjBatched_bufferSize;
  static constexpr auto geqrf = &cusolverDnDgeqrf;
  static constexpr auto geqrf_size = &cusolverDnDgeqrf_bufferSize;
  static constexpr auto orgqr = &cusolverDnDorgqr;
  static constexpr auto orgqr_size = &cusolverDnDorgqr_bufferSize;
};

}  // namespace cuda_detail

/// The decompositions of CpuSolver on views of device memory, with the same shapes and signs. Shapes are refused at once.
/// Whether the numbers were finite and an iteration converged is known on the device only: where not, the outputs are NaN
/// and `wait_and_check` raises what CpuSolver raises. Work space comes from the context's arena. We wait for nothing;
/// cuSOLVER itself may wait inside `svd` and `eigen`.
class CudaSolver {
 public:
  using Backend = Cuda;

  /// With a handle of its own, or with the caller's, which is set to the context's stream.
  explicit CudaSolver(Cuda::Context& context, cusolverDnHandle_t borrowed = nullptr)
      : context_(context), handle_(borrowed), owns_handle_(borrowed == nullptr), status_(1, 1) {
    if (owns_handle_) cuda_detail::check(cusolverDnCreate(&handle_), "cusolverDnCreate");
    cuda_detail::check(cusolverDnSetStream(handle_, context.stream()), "cusolverDnSetStream");
    cuda_detail::check(cusolverDnCreateGesvdjInfo(&jacobi_), "cusolverDnCreateGesvdjInfo");
  }
  CudaSolver(const CudaSolver&) = delete;
  CudaSolver& operator=(const CudaSolver&) = delete;
  ~CudaSolver() {
    cudaStreamSynchronize(context_.stream());  // what is under way may still use our memory
    cusolverDnDestroyGesvdjInfo(jacobi_);
    if (owns_handle_) cusolverDnDestroy(handle_);
  }
  Cuda::Context& context() { return context_; }

  /// As CpuSolver::svd, by gesvd.
  template <class A, class T>
  void svd(MatrixView<A, Device> a, std::type_identity_t<MatrixView<T, Device>> u, MatrixView<T, Device> s,
           std::type_identity_t<MatrixView<T, Device>> vt) {
    svd_batched<A, T>(1, a, u, s, vt);
  }

  /// As CpuSolver::svd_batched: one call of gesvdjBatched up to 32 x 32, one gesvd after the other beyond.
  template <class A, class T>
  void svd_batched(index_t count, MatrixView<A, Device> a, std::type_identity_t<MatrixView<T, Device>> u,
                   MatrixView<T, Device> s, std::type_identity_t<MatrixView<T, Device>> vt) {
    static_assert(std::is_floating_point_v<T>, "deltaw: a decomposition is in float or double");
    const auto shape = solver_detail::check_svd(count, a, u, s, vt);
    const auto [rows, cols, least] = shape;
    if (least == 0) return;
    if (count > 1 && rows <= 32 && cols <= 32) return svd_jacobi(count, shape, a, u, s, vt);
    for (index_t b = 0; b < count; ++b)
      svd_one(shape, a.row_range(b * rows, rows), u.row_range(b * rows, rows), s.row_range(b, 1),
              vt.row_range(b * least, least));
  }

  /// As CpuSolver::qr, by geqrf and orgqr.
  template <class A, class T>
  void qr(MatrixView<A, Device> a, MatrixView<T, Device> q, std::type_identity_t<MatrixView<T, Device>> r) {
    static_assert(std::is_floating_point_v<T>, "deltaw: a decomposition is in float or double");
    using Library = cuda_detail::Solvers<T>;
    solver_detail::check_qr(a, q, r);
    if (a.empty()) return;
    Arena<Device>::Mark mark(context_.arena);
    const auto work = Cuda::temp<T>(context_, a.cols, a.rows);  // column-major A
    Cuda::copy_transposed(context_, a, work);
    Verdict verdict = clean(1, work);
    const int m = size(a.rows), n = size(a.cols);
    const auto tau = Cuda::temp<T>(context_, 1, n), signs = Cuda::temp<T>(context_, 1, n);
    int factor_size = 0, expand_size = 0;
    checked(Library::geqrf_size(handle_, m, n, work.data, m, &factor_size), "geqrf_bufferSize");
    checked(Library::orgqr_size(handle_, m, n, n, work.data, m, tau.data, &expand_size), "orgqr_bufferSize");
    const auto space = Cuda::temp<T>(context_, 1, std::max(factor_size, expand_size));
    checked(Library::geqrf(handle_, m, n, work.data, m, tau.data, space.data, factor_size, verdict.info.data), "geqrf");
    record(solver_detail::Routine::Qr, verdict);
    cuda_detail::launch(context_.stream(), dim3(static_cast<unsigned>(n)), cuda_detail::block_size,
                        &cuda_detail::triangle_kernel<T>, ConstMatrixView<T, Device>(work), verdict.failed.data,
                        signs.data, r);
    checked(Library::orgqr(handle_, m, n, n, work.data, m, tau.data, space.data, expand_size, verdict.info.data),
            "orgqr");
    Cuda::copy_transposed(context_, work, q);
    Cuda::map(context_, cuda_detail::TimesSign{}, q, signs);
  }

  /// As CpuSolver::solve, by potrf and potrs in double.
  template <class A, class T>
  void solve(MatrixView<A, Device> a, Damping damping, MatrixView<T, Device> x) {
    solve_stored(a, damping, x, false);
  }
  template <class A, class T>
  void solve(MatrixView<A, Device> a, Damping damping, Transposed<T, Device> x) {
    solve_stored(a, damping, x.base, true);
  }

  /// As CpuSolver::eigen, by syevd in double.
  template <class A, class T>
  void eigen(MatrixView<A, Device> a, MatrixView<T, Device> w, std::type_identity_t<MatrixView<T, Device>> vt) {
    solver_detail::check_eigen(a, w, vt);
    if (a.empty()) return;
    Arena<Device>::Mark mark(context_.arena);
    const auto work = in_double(a);
    Cuda::map(context_, Scale{-1}, work);  // of -A the rising values that cuSOLVER finds are those of A, falling
    Verdict verdict = clean(1, work);
    const int n = size(a.rows);
    const auto values = Cuda::temp<double>(context_, 1, n);
    int space_size = 0;
    checked(cusolverDnDsyevd_bufferSize(handle_, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n, work.data, n,
                                        values.data, &space_size),
            "syevd_bufferSize");
    const auto space = Cuda::temp<double>(context_, 1, space_size);
    checked(cusolverDnDsyevd(handle_, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n, work.data, n, values.data,
                             space.data, space_size, verdict.info.data),
            "syevd");
    record(solver_detail::Routine::Eigen, verdict);
    finish<double, T>({values.data, -1, {}, {work.data, 0, n, 1}, {}, w, vt}, verdict);
  }

  /// Waits for the stream and raises what has gone wrong first since the last call.
  void wait_and_check() {
    int code = 0;
    cuda_detail::check(cudaMemcpyAsync(&code, status_.view().data, sizeof code, cudaMemcpyDeviceToHost, stream()),
                       "cudaMemcpyAsync");
    context_.synchronize();
    if (code == 0) return;
    cuda_detail::check(cudaMemsetAsync(status_.view().data, 0, sizeof code, stream()), "cudaMemsetAsync");
    solver_detail::raise_failure(static_cast<solver_detail::Routine>((code - 1) / 2), code % 2 == 1);
  }

 private:
  // What the device knows of each matrix of a call: cuSOLVER's code, and whether anything was wrong.
  struct Verdict {
    MatrixView<int, Device> info, failed;
  };

  cudaStream_t stream() const { return context_.stream(); }
  static int size(index_t n) {
    constexpr index_t limit = std::numeric_limits<int>::max();
    if (n > limit) raise_mismatch<ShapeError>("CudaSolver", "size for cuSOLVER", n, "at most " + std::to_string(limit));
    return static_cast<int>(n);
  }
  static void checked(cusolverStatus_t code, std::string_view call) {
    cuda_detail::check(code, std::string("cusolverDn ").append(call));
  }

  template <class A>
  MatrixView<double, Device> in_double(MatrixView<A, Device> a) {
    auto copy = Cuda::temp<double>(context_, a.rows, a.cols);
    Cuda::copy(context_, a, copy);
    return copy;
  }

  // Notes which of `count` matrices, stacked in `work` without gaps, hold a number that is not finite.
  template <class T>
  Verdict clean(index_t count, MatrixView<T, Device> work) {
    Verdict verdict{Cuda::temp<int>(context_, 1, count), Cuda::temp<int>(context_, 1, count)};
    const auto bytes = static_cast<std::size_t>(count) * sizeof(int);
    cuda_detail::check(cudaMemsetAsync(verdict.failed.data, 0, bytes, stream()), "cudaMemsetAsync");
    add_unclean(work, work.size() / count, verdict);
    return verdict;
  }
  template <class T>
  void add_unclean(MatrixView<T, Device> work, index_t matrix_size, Verdict& verdict) {
    const index_t blocks = std::min<index_t>(work.size() / cuda_detail::block_size + 1, 4096);
    cuda_detail::launch(stream(), dim3(static_cast<unsigned>(blocks)), cuda_detail::block_size,
                        &cuda_detail::clean_kernel<T>, work.data, matrix_size, work.size(), verdict.failed.data);
  }
  void record(solver_detail::Routine routine, Verdict& verdict) {
    cuda_detail::launch(stream(), dim3(1), 1, &cuda_detail::record_kernel<int>, static_cast<int>(routine),
                        verdict.info.data, verdict.info.cols, verdict.failed.data, status_.view().data);
  }
  template <class C, class T>
  void finish(const cuda_detail::Spectrum<C, T>& spectrum, const Verdict& verdict) {
    cuda_detail::launch(stream(), dim3(static_cast<unsigned>(spectrum.s_out.size())), cuda_detail::block_size,
                        &cuda_detail::spectrum_kernel<C, T>, spectrum, verdict.failed.data);
  }

  // gesvd wants at least as many rows as columns. A wide A as it lies is a tall column-major A^T = V diag(s) U^T; a tall
  // one is turned.
  template <class A, class T>
  void svd_one(const solver_detail::SvdShape& shape, MatrixView<A, Device> a, MatrixView<T, Device> u,
               MatrixView<T, Device> s, MatrixView<T, Device> vt) {
    using Library = cuda_detail::Solvers<T>;
    const bool tall = shape.rows >= shape.cols;
    const int m = size(std::max(shape.rows, shape.cols)), n = size(shape.least);
    Arena<Device>::Mark mark(context_.arena);
    const auto work = Cuda::temp<T>(context_, tall ? a.cols : a.rows, m);
    if (tall) {
      Cuda::copy_transposed(context_, a, work);
    } else {
      Cuda::copy(context_, a, work);
    }
    Verdict verdict = clean(1, work);
    const auto values = Cuda::temp<T>(context_, 1, n);
    const auto left = Cuda::temp<T>(context_, n, m), right = Cuda::temp<T>(context_, n, n);
    int space_size = 0;
    checked(Library::gesvd_size(handle_, m, n, &space_size), "gesvd_bufferSize");
    const auto space = Cuda::temp<T>(context_, 1, space_size);
    checked(Library::gesvd(handle_, 'S', 'S', m, n, work.data, m, values.data, left.data, m, right.data, n, space.data,
                           space_size, nullptr, verdict.info.data),
            "gesvd");
    record(solver_detail::Routine::Svd, verdict);
    const cuda_detail::Vectors<T> long_ones{left.data, 0, m, 1}, short_ones{right.data, 0, 1, n};
    finish<T, T>({values.data, 1, tall ? long_ones : short_ones, tall ? short_ones : long_ones, u, s, vt}, verdict);
  }

  // The stacked matrices as they lie are column-major A^T = V diag(s) U^T; the bases come back square.
  template <class A, class T>
  void svd_jacobi(index_t count, const solver_detail::SvdShape& shape, MatrixView<A, Device> a, MatrixView<T, Device> u,
                  MatrixView<T, Device> s, MatrixView<T, Device> vt) {
    using Library = cuda_detail::Solvers<T>;
    const int m = size(shape.cols), n = size(shape.rows), batch = size(count);
    Arena<Device>::Mark mark(context_.arena);
    const auto work = Cuda::temp<T>(context_, a.rows, a.cols);
    Cuda::copy(context_, a, work);
    Verdict verdict = clean(count, work);
    const auto values = Cuda::temp<T>(context_, count, shape.least);
    const auto left = Cuda::temp<T>(context_, count * m, m), right = Cuda::temp<T>(context_, count * n, n);
    int space_size = 0;
    checked(Library::gesvdj_batched_size(handle_, CUSOLVER_EIG_MODE_VECTOR, m, n, work.data, m, values.data, left.data,
                                         m, right.data, n, &space_size, jacobi_, batch),
            "gesvdjBatched_bufferSize");
    const auto space = Cuda::temp<T>(context_, 1, space_size);
    checked(Library::gesvdj_batched(handle_, CUSOLVER_EIG_MODE_VECTOR, m, n, work.data, m, values.data, left.data, m,
                                    right.data, n, space.data, space_size, verdict.info.data, jacobi_, batch),
            "gesvdjBatched");
    record(solver_detail::Routine::Svd, verdict);
    finish<T, T>({values.data, 1, {right.data, n * index_t{n}, n, 1}, {left.data, m * index_t{m}, m, 1}, u, s, vt},
                 verdict);
  }

  // Rows of right-hand sides are what cuSOLVER calls columns, so `t(x)` is copied as it lies.
  template <class A, class T>
  void solve_stored(MatrixView<A, Device> a, Damping damping, MatrixView<T, Device> x, bool transposed) {
    solver_detail::check_solve(a, damping, x, transposed);
    if (x.empty()) return;
    Arena<Device>::Mark mark(context_.arena);
    const auto factor = in_double(a);
    const auto sides = Cuda::temp<double>(context_, x.size() / a.rows, a.rows);
    move(x, sides, transposed);
    Verdict verdict = clean(1, factor);
    add_unclean(sides, sides.size(), verdict);
    cuda_detail::launch(stream(), dim3(1), cuda_detail::block_size, &cuda_detail::damp_kernel<double>, factor, damping);
    const int n = size(a.rows);
    int space_size = 0;
    checked(cusolverDnDpotrf_bufferSize(handle_, CUBLAS_FILL_MODE_UPPER, n, factor.data, n, &space_size),
            "potrf_bufferSize");
    const auto space = Cuda::temp<double>(context_, 1, space_size);
    checked(
        cusolverDnDpotrf(handle_, CUBLAS_FILL_MODE_UPPER, n, factor.data, n, space.data, space_size, verdict.info.data),
        "potrf");
    record(solver_detail::Routine::Solve, verdict);
    checked(cusolverDnDpotrs(handle_, CUBLAS_FILL_MODE_UPPER, n, size(sides.rows), factor.data, n, sides.data, n,
                             verdict.info.data),
            "potrs");
    Cuda::map(context_, cuda_detail::NanWhereFailed{}, sides, verdict.failed);
    move(sides, x, transposed);
  }

  template <class U, class T>
  void move(MatrixView<U, Device> from, MatrixView<T, Device> to, bool as_it_is) {
    if (as_it_is) return Cuda::copy(context_, from, to);
    Cuda::copy_transposed(context_, from, to);
  }

  Cuda::Context& context_;
  cusolverDnHandle_t handle_;
  bool owns_handle_;
  gesvdjInfo_t jacobi_ = nullptr;
  Tensor<int, Device> status_;  // the first failure since `wait_and_check`
};

template <>
struct SolverOf<Cuda> {
  using type = CudaSolver;
};

}  // namespace deltaw
