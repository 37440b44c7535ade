#pragma once
// Decompositions on the Cpu, by Eigen. Not part of deltaw.hpp: a unit that calls `svd` takes half a minute to compile.
// Eigen allocates workspace of its own, though none in a `solve` of some tens of rows: they are for setting up, and for
// small matrices once a step.

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <cmath>
#include <type_traits>

#include "deltaw/backend/cpu.hpp"
#include "deltaw/backend/solver.hpp"

namespace deltaw {

/// Decompositions on views of host memory, with temporaries from the context's arena. One solver per calling thread.
/// Inputs may be of any type, 16-bit ones too; outputs are float or double. Outputs share no memory,
/// but that q of `qr` may be a itself. Non-finite input raises NonFiniteError before anything is changed.
class CpuSolver {
 public:
  using Backend = Cpu;

  explicit CpuSolver(Cpu::Context& context) : context_(context) {}
  Cpu::Context& context() { return context_; }

  /// A = U diag(s) V^T with k = min(m, n): a m x n, u m x k or `{}` where it is not wanted, s 1 x k and falling, vt k x n;
  /// all in the precision of s. Of each row of vt the element of greatest magnitude, the first of equals, is positive.
  /// Throws DeviceError without convergence.
  template <class A, class T>
  void svd(MatrixView<A, Host> a, std::type_identity_t<MatrixView<T, Host>> u, MatrixView<T, Host> s,
           std::type_identity_t<MatrixView<T, Host>> vt) {
    svd_batched<A, T>(1, a, u, s, vt);
  }

  /// `svd` of `count` matrices of one size, stacked: a (count m) x n, u (count m) x k, s count x k, vt (count k) x n.
  template <class A, class T>
  void svd_batched(index_t count, MatrixView<A, Host> a, std::type_identity_t<MatrixView<T, Host>> u,
                   MatrixView<T, Host> s, std::type_identity_t<MatrixView<T, Host>> vt) {
    static_assert(std::is_floating_point_v<T>, "deltaw: a decomposition is in float or double");
    const auto [rows, cols, least] = solver_detail::check_svd(count, a, u, s, vt);
    if (least == 0) return;
    check_finite<T>(solver_detail::Routine::Svd, a);
    for (index_t b = 0; b < count; ++b)
      svd_one(a.row_range(b * rows, rows), u.row_range(b * rows, rows), s.row_range(b, 1),
              vt.row_range(b * least, least));
  }

  /// A = Q R with R(i, i) >= 0: a m x n with m >= n, q m x n, r n x n upper triangular or `{}` where it is not wanted.
  template <class A, class T>
  void qr(MatrixView<A, Host> a, MatrixView<T, Host> q, std::type_identity_t<MatrixView<T, Host>> r) {
    static_assert(std::is_floating_point_v<T>, "deltaw: a decomposition is in float or double");
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
    solver_detail::check_qr(a, q, r);
    if (a.empty()) return;
    check_finite<T>(solver_detail::Routine::Qr, a);
    Matrix packed(a.rows, a.cols);
    Cpu::copy_transposed(context_, a, MatrixView<T, Host>{packed.data(), a.cols, a.rows});
    const Eigen::HouseholderQR<Eigen::Ref<Matrix>> factors(packed);
    const Matrix columns = factors.householderQ() * Matrix::Identity(a.rows, a.cols);
    for (index_t j = 0; j < q.cols; ++j) {
      const T sign = packed(j, j) < 0 ? T(-1) : T(1);
      for (index_t i = 0; i < q.rows; ++i) q(i, j) = sign * columns(i, j);
      if (!solver_detail::left_out(r))
        for (index_t i = 0; i < r.cols; ++i) r(j, i) = i < j ? T(0) : sign * packed(j, i);
    }
  }

  /// x = (A + lambda I)^-1 x with A symmetric, n x n, lambda from `damping`, by Cholesky in double. x is n x c, or `t(x)`
  /// with x c x n: x (A + lambda I)^-1. The lower triangle of a is read. Throws OptionError where A + lambda I is not
  /// positive definite.
  template <class A, class T>
  void solve(MatrixView<A, Host> a, Damping damping, MatrixView<T, Host> x) {
    solve_stored(a, damping, x, false);
  }
  template <class A, class T>
  void solve(MatrixView<A, Host> a, Damping damping, Transposed<T, Host> x) {
    solve_stored(a, damping, x.base, true);
  }

  /// A = V diag(w) V^T with A symmetric, n x n, in double: w 1 x n and falling, vt n x n with the signs of `svd`. The
  /// lower triangle of a is read. Throws DeviceError without convergence.
  template <class A, class T>
  void eigen(MatrixView<A, Host> a, MatrixView<T, Host> w, std::type_identity_t<MatrixView<T, Host>> vt) {
    solver_detail::check_eigen(a, w, vt);
    if (a.empty()) return;
    check_finite<double>(solver_detail::Routine::Eigen, a);
    Arena<Host>::Mark mark(context_.arena);
    eigen_.compute(rows_of(in_double(a)));
    if (eigen_.info() != Eigen::Success) solver_detail::raise_failure(solver_detail::Routine::Eigen, false);
    for (index_t i = 0; i < a.rows; ++i) {
      const index_t rising = a.rows - 1 - i;
      w(0, i) = static_cast<T>(eigen_.eigenvalues()(rising));
      const double* v = eigen_.eigenvectors().data() + rising * a.rows;
      write_signed(sign_of_greatest(v, a.rows), v, vt.row_range(i, 1));
    }
  }

  /// Raises what has gone wrong since the last call. Here everything is raised at once, and there is nothing to wait for.
  void wait_and_check() const {}

 private:
  using Rows = Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
  static Rows rows_of(MatrixView<double, Host> a) { return {a.data, a.rows, a.cols}; }

  // Whether all elements are finite as numbers of type T.
  template <class T, class A>
  static void check_finite(solver_detail::Routine routine, MatrixView<A, Host> a) {
    for (index_t i = 0; i < a.rows; ++i)
      for (index_t j = 0; j < a.cols; ++j)
        if (!solver_detail::is_finite(static_cast<T>(a(i, j)))) solver_detail::raise_failure(routine, true);
  }

  template <class A>
  MatrixView<double, Host> in_double(MatrixView<A, Host> a) {
    auto copy = Cpu::temp<double>(context_, a.rows, a.cols);
    Cpu::copy(context_, a, copy);
    return copy;
  }

  template <class T>
  static T sign_of_greatest(const T* v, index_t size) {
    index_t greatest = 0;
    for (index_t j = 1; j < size; ++j)
      if (std::abs(v[j]) > std::abs(v[greatest])) greatest = j;
    return v[greatest] < 0 ? T(-1) : T(1);
  }
  template <class C, class T>
  static void write_signed(C sign, const C* v, MatrixView<T, Host> row) {
    for (index_t j = 0; j < row.cols; ++j) row(0, j) = static_cast<T>(sign * v[j]);
  }

  // Row-major A is column-major A^T = V diag(s) U^T, so what Eigen calls U is V.
  template <class A, class T>
  void svd_one(MatrixView<A, Host> a, MatrixView<T, Host> u, MatrixView<T, Host> s, MatrixView<T, Host> vt) {
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
    const bool u_wanted = u.data != nullptr;
    Matrix turned(a.cols, a.rows);
    Cpu::copy(context_, a, MatrixView<T, Host>{turned.data(), a.rows, a.cols});
    const Eigen::BDCSVD<Matrix> found(turned, Eigen::ComputeThinU | (u_wanted ? Eigen::ComputeThinV : 0));
    if (found.info() != Eigen::Success) solver_detail::raise_failure(solver_detail::Routine::Svd, false);
    for (index_t i = 0; i < s.cols; ++i) {
      const T* v = found.matrixU().data() + i * a.cols;
      const T sign = sign_of_greatest(v, a.cols);
      s(0, i) = found.singularValues()(i);
      write_signed(sign, v, vt.row_range(i, 1));
      if (u_wanted)
        for (index_t j = 0; j < a.rows; ++j) u(j, i) = sign * found.matrixV()(j, i);
    }
  }

  template <class A, class T>
  void solve_stored(MatrixView<A, Host> a, Damping damping, MatrixView<T, Host> x, bool transposed) {
    solver_detail::check_solve(a, damping, x, transposed);
    if (x.empty()) return;
    check_finite<double>(solver_detail::Routine::Solve, a);
    check_finite<double>(solver_detail::Routine::Solve, x);
    Arena<Host>::Mark mark(context_.arena);
    const auto factor = in_double(a);
    const double lambda = damping.absolute + damping.relative * rows_of(factor).trace() / static_cast<double>(a.rows);
    rows_of(factor).diagonal().array() += lambda;
    Rows stored = rows_of(factor);
    Eigen::LLT<Eigen::Ref<Rows::PlainObject>> cholesky(stored);
    if (cholesky.info() != Eigen::Success) solver_detail::raise_failure(solver_detail::Routine::Solve, false);
    // The right-hand sides as rows, in which Eigen sees columns.
    const auto sides = Cpu::temp<double>(context_, x.size() / a.rows, a.rows);
    move(x, sides, transposed);
    Eigen::Map<Eigen::MatrixXd> columns(sides.data, sides.cols, sides.rows);
    cholesky.solveInPlace(columns);
    move(sides, x, transposed);
  }

  template <class U, class T>
  void move(MatrixView<U, Host> from, MatrixView<T, Host> to, bool as_it_is) {
    if (as_it_is) return Cpu::copy(context_, from, to);
    Cpu::copy_transposed(context_, from, to);
  }

  Cpu::Context& context_;
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen_;  // kept, with its memory, for the next of the same size
};

template <>
struct SolverOf<Cpu> {
  using type = CpuSolver;
};

}  // namespace deltaw
