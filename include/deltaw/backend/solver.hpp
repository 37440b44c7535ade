#pragma once
// What the solvers of all backends share: their options, the shapes they take and the words of their refusals.

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "deltaw/core/config.hpp"
#include "deltaw/core/half.hpp"
#include "deltaw/core/view.hpp"

namespace deltaw {

/// What is added to the diagonal of a symmetric matrix before it is solved: absolute + relative * trace / rows. The
/// relative part is free of the matrix's scale and needs no number of it on the host.
struct Damping {
  double absolute = 0;
  double relative = 0;
};

/// The solver of a backend, for what is written once over backends. A unit that decomposes includes the header that
/// defines it; no other unit pays for it.
template <class B>
struct SolverOf {
  static_assert(sizeof(B) == 0,
                "deltaw: this needs decompositions: include deltaw/backend/cpu_solver.hpp or "
                "deltaw/backend/cuda_solver.hpp in this unit");
};

namespace solver_detail {

/// Whether x is neither infinite nor NaN, by its bits, so that it holds under -ffast-math as well.
template <class T>
DELTAW_HD constexpr bool is_finite(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return (bit_copy<std::uint64_t>(x) >> 52 & 0x7ffu) != 0x7ffu;
  } else {
    return (bit_copy<std::uint32_t>(static_cast<float>(x)) >> 23 & 0xffu) != 0xffu;
  }
}

enum class Routine : int { Svd, Qr, Solve, Eigen };

/// Raises what is wrong with the numbers a routine was given, or with what it made of them.
[[noreturn]] inline void raise_failure(Routine routine, bool non_finite) {
  constexpr std::string_view names[] = {"svd", "qr", "solve", "eigen"};
  const std::string_view where = names[static_cast<int>(routine)];
  if (non_finite)
    raise_mismatch<NonFiniteError>(where, routine == Routine::Solve ? "a or x" : "a", "NaN or infinity",
                                   "finite numbers");
  if (routine == Routine::Solve)
    raise_mismatch<OptionError>(where, "a + damping", "a matrix that is not positive definite", "more damping");
  raise_mismatch<DeviceError>(where, "iteration", "no convergence", "convergence");
}

/// An output that is not wanted: `{}`.
template <class T, class Space>
bool left_out(MatrixView<T, Space> v) {
  return v.rows == 0 && v.cols == 0 && v.data == nullptr;
}

template <class T, class Space>
struct Output {
  std::string_view name;
  MatrixView<T, Space> view;
};
/// Throws AliasError unless the outputs share memory neither with `a` nor with each other.
template <class A, class T, class Space>
void check_separate(std::string_view where, MatrixView<A, Space> a, std::initializer_list<Output<T, Space>> outputs) {
  for (const auto* out = outputs.begin(); out != outputs.end(); ++out) {
    check_no_alias(where, "a", a, out->name, out->view);
    for (const auto* other = outputs.begin(); other != out; ++other)
      check_no_alias(where, other->name, other->view, out->name, out->view);
  }
}

/// The sizes of one of `count` matrices that are stacked in a view.
struct SvdShape {
  index_t rows = 0, cols = 0, least = 0;
};

template <class A, class T, class Space>
SvdShape check_svd(index_t count, MatrixView<A, Space> a, MatrixView<T, Space> u, MatrixView<T, Space> s,
                   MatrixView<T, Space> vt) {
  constexpr std::string_view where = "svd";
  if (count < 0) raise_mismatch<ShapeError>(where, "count", count, "0 or more");
  SvdShape shape{count == 0 ? 0 : a.rows / count, a.cols, 0};
  shape.least = std::min(shape.rows, shape.cols);
  check_view(where, "a", a, count * shape.rows, a.cols, "count x rows");
  if (!left_out(u)) check_view(where, "u", u, a.rows, shape.least, "a.rows", "the lesser size of a");
  check_view(where, "s", s, count, shape.least, "count", "the lesser size of a");
  check_view(where, "vt", vt, count * shape.least, a.cols, "count x the lesser size of a", "a.cols");
  check_separate<A, T>(where, a, {{"u", u}, {"s", s}, {"vt", vt}});
  return shape;
}

template <class A, class T, class Space>
void check_qr(MatrixView<A, Space> a, MatrixView<T, Space> q, MatrixView<T, Space> r) {
  check_view("qr", "a", a, a.rows, a.cols);
  if (a.rows < a.cols)
    raise_mismatch<ShapeError>("qr", "a.rows", a.rows, "at least a.cols, which is " + std::to_string(a.cols));
  check_view("qr", "q", q, a.rows, a.cols, "a.rows", "a.cols");
  if (!left_out(r)) check_view("qr", "r", r, a.cols, a.cols, "a.cols", "a.cols");
  check_no_alias("qr", "a", a, "r", r);
  check_no_alias("qr", "q", q, "r", r);
}

/// `x` as it is stored: its rows are those of a, or its columns are where it came as `t(view)`.
template <class A, class T, class Space>
void check_solve(MatrixView<A, Space> a, Damping damping, MatrixView<T, Space> x, bool transposed) {
  const auto check_factor = [](std::string_view name, double factor) {
    if (!is_finite(factor) || factor < 0)
      raise_mismatch<OptionError>("solve", name, factor, "a finite number, 0 or more");
  };
  check_factor("damping.absolute", damping.absolute);
  check_factor("damping.relative", damping.relative);
  check_view("solve", "a", a, a.rows, a.rows, "rows", "a.rows");
  if (transposed) {
    check_view("solve", "x", x, x.rows, a.rows, "right-hand sides", "a.rows");
  } else {
    check_view("solve", "x", x, a.rows, x.cols, "a.rows", "right-hand sides");
  }
}

template <class A, class T, class Space>
void check_eigen(MatrixView<A, Space> a, MatrixView<T, Space> w, MatrixView<T, Space> vt) {
  check_view("eigen", "a", a, a.rows, a.rows, "rows", "a.rows");
  check_view("eigen", "w", w, 1, a.rows, "rows", "a.rows");
  check_view("eigen", "vt", vt, a.rows, a.rows, "a.rows", "a.rows");
  check_separate<A, T>("eigen", a, {{"w", w}, {"vt", vt}});
}

}  // namespace solver_detail
}  // namespace deltaw
