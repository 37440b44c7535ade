// The decompositions of one backend (tested.hpp says which) against what they must satisfy, in double.

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "message.hpp"
#include "tested.hpp"

using namespace deltaw_tests;

namespace {

struct Size {
  index_t rows, cols;
};

/// A matrix with these singular values.
Dense with_values(index_t rows, index_t cols, const std::vector<double>& s, std::uint32_t seed = 1) {
  const auto k = static_cast<index_t>(s.size());
  return times(times(random_basis(rows, k, seed), diagonal(s)), turned(random_basis(cols, k, seed + 1)));
}
Dense symmetric(const std::vector<double>& w, std::uint32_t seed = 1) {
  const auto n = static_cast<index_t>(w.size());
  const Dense v = random_basis(n, n, seed);
  return times(times(v, diagonal(w)), turned(v));
}
/// n values from 1 down, well apart.
std::vector<double> falling(index_t n) {
  std::vector<double> s;
  for (index_t i = 0; i < n; ++i) s.push_back(1 / (1 + 0.3 * static_cast<double>(i)));
  return s;
}

/// The values as one row, zeros behind them.
Dense row_of(const std::vector<double>& values, index_t cols) {
  Dense row(1, cols);
  std::copy(values.begin(), values.end(), row.values.begin());
  return row;
}
bool is_orthonormal(const Dense& columns, double tolerance) {
  return distance(times(turned(columns), columns), identity(columns.cols)) <= tolerance;
}
bool falls(const Dense& s) {
  for (std::size_t i = 1; i < s.values.size(); ++i)
    if (!(s.values[i] <= s.values[i - 1])) return false;
  return true;
}
/// In each row the element of greatest magnitude, the first of equals, is positive.
bool signs_hold(const Dense& vt) {
  for (index_t i = 0; i < vt.rows; ++i) {
    index_t greatest = 0;
    for (index_t j = 0; j < vt.cols; ++j)
      if (std::abs(vt(i, j)) > std::abs(vt(i, greatest))) greatest = j;
    if (!(vt(i, greatest) > 0)) return false;
  }
  return true;
}
bool all_nan(const Dense& a) {
  for (double x : a.values)
    if (!std::isnan(x)) return false;
  return true;
}

template <class T>
struct Svd {
  Placed<T> u, s, vt;
  Svd(index_t count, index_t rows, index_t cols, index_t gap = 0, index_t offset = 0)
      : u(count * rows, std::min(rows, cols), gap, offset),
        s(count, std::min(rows, cols), gap, offset),
        vt(count * std::min(rows, cols), cols, gap, offset) {}
  bool intact() { return u.intact() && s.intact() && vt.intact(); }
  std::string bits() { return u.bits() + "/" + s.bits() + "/" + vt.bits(); }
};

template <class T>
void check_svd(Machine& machine, const Dense& matrix, const std::vector<double>& want, index_t gap) {
  Placed<T> a(matrix, gap);
  Svd<T> out(1, matrix.rows, matrix.cols, 2 * gap, gap);
  machine.solver.svd(a.const_view(), out.u.view(), out.s.view(), out.vt.view());
  machine.solver.wait_and_check();
  INFO(matrix.rows << " x " << matrix.cols << ", gap " << gap);
  REQUIRE(out.intact());
  const Dense u = out.u.get(), s = out.s.get(), vt = out.vt.get(), input = a.get();
  CHECK(distance(times(times(u, diagonal(s.values)), vt), input) <= tolerance<T> * norm(input));
  CHECK(is_orthonormal(u, tolerance<T>));
  CHECK(is_orthonormal(turned(vt), tolerance<T>));
  CHECK(falls(s));
  CHECK(s.values.back() >= 0);
  CHECK(signs_hold(vt));
  CHECK(distance(s, row_of(want, s.cols)) <= tolerance<T> * norm(input));
}

}  // namespace

TEMPLATE_TEST_CASE("svd multiplies back, with orthonormal bases, known values and signs, over shapes and strides", "",
                   float, double) {
  Machine machine;
  const Size shapes[] = {{1, 1},   {1, 7},   {7, 1},   {2, 2},   {23, 9}, {9, 23},
                         {17, 17}, {33, 33}, {40, 34}, {34, 40}, {70, 5}, {5, 300}};
  for (const auto [rows, cols] : shapes)
    for (index_t gap : {0, 1, 3}) {
      const auto s = falling(std::min(rows, cols));
      check_svd<TestType>(machine, with_values(rows, cols, s), s, gap);
    }
}

TEMPLATE_TEST_CASE("svd of matrices of low rank, of equal and of graded values", "", float, double) {
  Machine machine;
  const Size shapes[] = {{20, 12}, {12, 20}, {40, 36}, {36, 40}, {36, 36}};
  for (const auto [rows, cols] : shapes) {
    const auto least = static_cast<std::size_t>(std::min(rows, cols));
    check_svd<TestType>(machine, with_values(rows, cols, {3, 2}), {3, 2}, 0);
    check_svd<TestType>(machine, with_values(rows, cols, {2, 2, 2, 1, 1}), {2, 2, 2, 1, 1}, 1);
    check_svd<TestType>(machine, with_values(rows, cols, std::vector<double>(least, 1)), std::vector<double>(least, 1),
                        0);
    std::vector<double> graded;
    for (std::size_t i = 0; i < least; ++i) graded.push_back(std::pow(0.5, static_cast<double>(i)));
    check_svd<TestType>(machine, with_values(rows, cols, graded), graded, 0);
    check_svd<TestType>(machine, Dense(rows, cols), {}, 0);
  }
  check_svd<TestType>(machine, identity(36), std::vector<double>(36, 1), 0);
}

TEMPLATE_TEST_CASE("of elements of equal magnitude the first becomes positive", "", float, double) {
  Machine machine;
  // Two equals with zeros between; element 0 is left alone, since a reflector may round it otherwise than the rest.
  const std::pair<index_t, index_t> places[] = {{1, 2}, {5, 6}, {5, 261}, {300, 301}, {7, 599}};
  for (const auto& [first, second] : places)
    for (const double sign : {1.0, -1.0}) {
      Dense matrix(1, second + 1);
      matrix(0, 0) = 1;
      matrix(0, first) = 5 * sign;
      matrix(0, second) = -5 * sign;
      Placed<TestType> a(matrix);
      Svd<TestType> out(1, 1, second + 1);
      machine.solver.svd(a.const_view(), out.u.view(), out.s.view(), out.vt.view());
      machine.solver.wait_and_check();
      CHECK(out.vt.get()(0, first) > 0);
      CHECK(out.vt.get()(0, second) < 0);
      CHECK(out.u.get()(0, 0) * sign > 0);
    }
}

TEMPLATE_TEST_CASE("svd without u has the same values and right vectors", "", float, double) {
  Machine machine;
  const Size shapes[] = {{9, 6}, {6, 9}, {30, 40}, {40, 30}};
  for (const auto [rows, cols] : shapes) {
    Placed<TestType> a(with_values(rows, cols, falling(std::min(rows, cols))));
    Svd<TestType> whole(1, rows, cols), right(1, rows, cols);
    machine.solver.svd(a.const_view(), whole.u.view(), whole.s.view(), whole.vt.view());
    machine.solver.svd(a.const_view(), {}, right.s.view(), right.vt.view());
    machine.solver.wait_and_check();
    CHECK(norm(right.u.get()) == 0);
    CHECK(distance(right.s.get(), whole.s.get()) <= tolerance<TestType>);
    CHECK(distance(right.vt.get(), whole.vt.get()) <= 10 * tolerance<TestType>);
  }
}

TEMPLATE_TEST_CASE("svd_batched equals svd, one by one", "", float, double) {
  Machine machine;
  const Size shapes[] = {{5, 3}, {3, 5}, {32, 32}, {1, 32}, {33, 4}, {4, 33}};
  const index_t count = 4;
  for (const auto [rows, cols] : shapes) {
    const index_t least = std::min(rows, cols);
    Placed<TestType> stack(count * rows, cols, 1);
    Dense all(count * rows, cols);
    for (index_t b = 0; b < count; ++b) {
      const Dense one = with_values(rows, cols, falling(least), static_cast<std::uint32_t>(2 * b + 1));
      std::copy(one.values.begin(), one.values.end(), &all(b * rows, 0));
    }
    stack.put(all);
    Svd<TestType> batch(count, rows, cols, 2), single(count, rows, cols);
    machine.solver.svd_batched(count, stack.const_view(), batch.u.view(), batch.s.view(), batch.vt.view());
    for (index_t b = 0; b < count; ++b)
      machine.solver.svd(stack.const_view().row_range(b * rows, rows), single.u.view().row_range(b * rows, rows),
                         single.s.view().row_range(b, 1), single.vt.view().row_range(b * least, least));
    machine.solver.wait_and_check();
    INFO(rows << " x " << cols);
    CHECK(batch.intact());
    CHECK(signs_hold(batch.vt.get()));
    CHECK(distance(batch.s.get(), single.s.get()) <= tolerance<TestType>);
    CHECK(distance(batch.vt.get(), single.vt.get()) <= 100 * tolerance<TestType>);
    CHECK(distance(batch.u.get(), single.u.get()) <= 100 * tolerance<TestType>);
  }
}

TEST_CASE("svd takes 16-bit matrices, with the bits of their values in float") {
  Machine machine;
  Placed<dw::bf16> narrow(random_matrix(9, 6, 3));
  Placed<float> wide(narrow.get());
  Svd<float> from_narrow(1, 9, 6), from_wide(1, 9, 6);
  machine.solver.svd(narrow.const_view(), from_narrow.u.view(), from_narrow.s.view(), from_narrow.vt.view());
  machine.solver.svd(wide.const_view(), from_wide.u.view(), from_wide.s.view(), from_wide.vt.view());
  machine.solver.wait_and_check();
  CHECK(norm(from_narrow.s.get()) > 1);
  CHECK(from_narrow.bits() == from_wide.bits());
}

TEMPLATE_TEST_CASE("qr multiplies back, with an orthonormal Q and a triangle of positive diagonal", "", float, double) {
  Machine machine;
  const Size shapes[] = {{1, 1}, {7, 1}, {2, 2}, {23, 9}, {40, 40}, {300, 5}};
  for (const auto [rows, cols] : shapes)
    for (index_t gap : {0, 1, 3})
      for (bool deficient : {false, true}) {
        Dense matrix = random_matrix(rows, cols, 5);
        for (index_t i = 0; deficient && i < rows; ++i) matrix(i, cols - 1) = cols > 2 ? 2 * matrix(i, 0) : 0;
        Placed<TestType> a(matrix, gap), q(rows, cols, 2 * gap, gap), r(cols, cols, gap + 1), in_place(matrix, gap);
        machine.solver.qr(a.const_view(), q.view(), r.view());
        machine.solver.qr(in_place.const_view(), in_place.view(), {});
        machine.solver.wait_and_check();
        INFO(rows << " x " << cols << ", gap " << gap << (deficient ? ", deficient" : ""));
        REQUIRE((q.intact() && r.intact() && in_place.intact()));
        const Dense found = q.get(), triangle = r.get(), input = a.get();
        CHECK(distance(times(found, triangle), input) <= tolerance<TestType> * norm(input));
        CHECK(is_orthonormal(found, tolerance<TestType>));
        for (index_t i = 0; i < cols; ++i) {
          CHECK((deficient ? triangle(i, i) >= 0 : triangle(i, i) > 0));
          for (index_t j = 0; j < i; ++j) CHECK(triangle(i, j) == 0);
        }
        CHECK(in_place.bits() == q.bits());
      }
}

TEMPLATE_TEST_CASE("solve takes both sides and both kinds of damping, and reads the lower triangle", "", float,
                   double) {
  Machine machine;
  for (index_t n : {1, 2, 9, 40}) {
    const Dense matrix = symmetric(falling(n)), sides = random_matrix(n, 7, 9);
    const dw::Damping damping{.absolute = 0.25, .relative = 0.5};
    Placed<TestType> a(matrix, 1), x(sides, 2, 1), y(turned(sides), 3), z(sides);
    Dense skew = a.get();
    for (index_t i = 0; i < n; ++i)
      for (index_t j = i + 1; j < n; ++j) skew(i, j) = 77;
    Placed<TestType> lower(skew);
    machine.solver.solve(a.const_view(), damping, x.view());
    machine.solver.solve(a.const_view(), damping, dw::t(y.view()));
    machine.solver.solve(lower.const_view(), damping, z.view());
    machine.solver.wait_and_check();
    INFO(n);
    REQUIRE((x.intact() && y.intact()));
    Dense damped = a.get();
    double trace = 0;
    for (index_t i = 0; i < n; ++i) trace += damped(i, i);
    for (index_t i = 0; i < n; ++i) damped(i, i) += 0.25 + 0.5 * trace / static_cast<double>(n);
    const Dense rounded = Placed<TestType>(sides).get();
    CHECK(distance(times(damped, x.get()), rounded) <= tolerance<TestType> * norm(rounded));
    CHECK(distance(times(y.get(), damped), turned(rounded)) <= tolerance<TestType> * norm(rounded));
    CHECK(z.bits() == x.bits());
  }
}

TEST_CASE("solve and eigen compute in double whatever the types") {
  Machine machine;
  // Eigenvalues 2 and 2^-20, on the rims of what a float's 24 bits can hold: in float one digit would be right.
  Dense close(2, 2), sides(2, 1);
  close.values = {1 + 0x1p-21, 1 - 0x1p-21, 1 - 0x1p-21, 1 + 0x1p-21};
  sides.values = {1, -1};
  Placed<float> a(close), x(sides), w(1, 2), vt(2, 2);
  machine.solver.solve(a.const_view(), {}, x.view());
  machine.solver.eigen(a.const_view(), w.view(), vt.view());
  machine.solver.wait_and_check();
  const Dense exact = a.get();  // what is left of `close` in float
  const double least = exact(0, 0) - exact(0, 1);
  CHECK(x.get()(0, 0) == Approx(1 / least).epsilon(1e-6));
  CHECK(w.get()(0, 1) == Approx(least).epsilon(1e-6));
}

TEMPLATE_TEST_CASE("eigen multiplies back, with falling values, orthonormal rows and their signs", "", float, double) {
  Machine machine;
  const std::vector<double> indefinite{3, 1, 0.5, 0, -0.25, -2};
  for (const auto& values :
       {std::vector<double>{-4}, {2, -2}, indefinite, {1, 1, 1, 0, 0}, {0, 0, 0}, falling(33), falling(70)})
    for (index_t gap : {0, 3}) {
      const auto n = static_cast<index_t>(values.size());
      Placed<TestType> a(symmetric(values), gap), w(1, n, 0, gap), vt(n, n, gap + 1);
      Dense skew = a.get();
      for (index_t i = 0; i < n; ++i)
        for (index_t j = i + 1; j < n; ++j) skew(j, i) = a.get()(i, j), skew(i, j) = 77;
      Placed<TestType> lower(skew);
      machine.solver.eigen(lower.const_view(), w.view(), vt.view());
      machine.solver.wait_and_check();
      INFO(n << ", gap " << gap);
      REQUIRE((w.intact() && vt.intact()));
      const Dense input = a.get(), v = turned(vt.get()), found = w.get();
      CHECK(distance(times(times(v, diagonal(found.values)), turned(v)), input) <= tolerance<TestType> * norm(input));
      CHECK(is_orthonormal(v, tolerance<TestType>));
      CHECK(falls(found));
      CHECK(signs_hold(vt.get()));
      CHECK(distance(found, row_of(values, n)) <= tolerance<TestType> * norm(input));
    }
}

TEMPLATE_TEST_CASE("empty matrices are legal and change nothing", "", float, double) {
  Machine machine;
  const Size shapes[] = {{0, 0}, {0, 5}, {5, 0}};
  for (const auto [rows, cols] : shapes)
    for (index_t count : {0, 1, 3}) {
      Placed<TestType> a(count * rows, cols);
      Svd<TestType> out(count, rows, cols);
      machine.solver.svd_batched(count, a.const_view(), out.u.view(), out.s.view(), out.vt.view());
      if (count == 1) machine.solver.svd(a.const_view(), {}, out.s.view(), out.vt.view());
      CHECK(out.intact());
    }
  Placed<TestType> tall(5, 0), nothing(0, 0), row(1, 0), sides(0, 4), none(3, 0), unit(identity(3));
  machine.solver.qr(tall.const_view(), tall.view(), nothing.view());
  machine.solver.solve(nothing.const_view(), {}, sides.view());
  machine.solver.solve(unit.const_view(), {}, none.view());
  machine.solver.eigen(nothing.const_view(), row.view(), nothing.view());
  machine.solver.wait_and_check();
  CHECK((tall.intact() && nothing.intact() && sides.intact() && none.intact()));
}

TEMPLATE_TEST_CASE("the same bits in two runs, wherever the memory lies", "", float, double) {
  const auto run = [](index_t offset) {
    Machine machine;
    Placed<TestType> a(random_matrix(20, 37, 1), 0, offset), b(random_matrix(37, 20, 2), offset), gram(20, 20);
    gram.put(symmetric(falling(20)));
    Svd<TestType> wide(1, 20, 37, offset, offset), tall(1, 37, 20, 0, offset);
    Placed<TestType> q(37, 20, offset), r(20, 20), x(random_matrix(20, 6, 3), offset), w(1, 20), vt(20, 20, offset);
    machine.solver.svd(a.const_view(), wide.u.view(), wide.s.view(), wide.vt.view());
    machine.solver.svd(b.const_view(), tall.u.view(), tall.s.view(), tall.vt.view());
    machine.solver.qr(b.const_view(), q.view(), r.view());
    machine.solver.solve(gram.const_view(), {}, x.view());
    machine.solver.eigen(gram.const_view(), w.view(), vt.view());
    machine.solver.wait_and_check();
    return wide.bits() + tall.bits() + q.bits() + r.bits() + x.bits() + w.bits() + vt.bits();
  };
  const std::string first = run(0);
  CHECK(first.size() > 1000);
  CHECK(run(1) == first);
  CHECK(run(3) == first);
}

namespace {

template <class T>
struct Refusal {
  Machine machine;
  Placed<T> a{random_matrix(6, 4, 1)}, u{6, 4}, s{1, 4}, vt{4, 4}, q{6, 4}, gram{identity(4)},
      x{random_matrix(4, 3, 2)};
  template <class E, class F>
  std::string message(F f) {
    return message_of<E>([&] {
      f(machine.solver);
      machine.solver.wait_and_check();
    });
  }
  /// What a call that was refused for its numbers leaves behind: nothing, or NaN.
  bool unusable(Placed<T>& out, const Dense& before) {
    return refuses_at_once ? distance(out.get(), before) == 0 : all_nan(out.get());
  }
};

}  // namespace

TEMPLATE_TEST_CASE("numbers that are not finite are refused, and what they reach is unusable", "", float, double) {
  Refusal<TestType> k;
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {std::nan(""), infinity, -infinity}) {
    Dense poisoned = random_matrix(6, 4, 1), square = identity(4), sides = random_matrix(4, 3, 2);
    poisoned(5, 3) = bad;
    square(2, 1) = bad;
    k.a.put(poisoned);
    k.gram.put(square);
    CHECK(k.template message<dw::NonFiniteError>([&](Solver& solver) {
      solver.svd(k.a.const_view(), k.u.view(), k.s.view(), k.vt.view());
    }) == "svd: a: got NaN or infinity, want finite numbers");
    CHECK(k.unusable(k.u, Dense(6, 4)));
    CHECK(k.unusable(k.s, Dense(1, 4)));
    CHECK(k.unusable(k.vt, Dense(4, 4)));
    CHECK(k.template message<dw::NonFiniteError>([&](Solver& solver) {
      solver.qr(k.a.const_view(), k.q.view(), k.vt.view());
    }) == "qr: a: got NaN or infinity, want finite numbers");
    CHECK(k.unusable(k.q, Dense(6, 4)));
    CHECK(k.unusable(k.vt, Dense(4, 4)));
    CHECK(k.template message<dw::NonFiniteError>([&](Solver& solver) {
      solver.eigen(k.gram.const_view(), k.s.view(), k.vt.view());
    }) == "eigen: a: got NaN or infinity, want finite numbers");
    CHECK(k.unusable(k.s, Dense(1, 4)));
    CHECK(k.unusable(k.vt, Dense(4, 4)));
    CHECK(k.template message<dw::NonFiniteError>([&](Solver& solver) {
      solver.solve(k.gram.const_view(), {}, k.x.view());
    }) == "solve: a or x: got NaN or infinity, want finite numbers");
    CHECK(k.unusable(k.x, Placed<TestType>(sides).get()));
    sides(3, 0) = bad;
    k.x.put(sides);
    k.gram.put(identity(4));
    CHECK(k.template message<dw::NonFiniteError>([&](Solver& solver) {
      solver.solve(k.gram.const_view(), {}, k.x.view());
    }) == "solve: a or x: got NaN or infinity, want finite numbers");
    k.x.put(random_matrix(4, 3, 2));
  }
  // Afterwards the solver works as before.
  const auto s = falling(4);
  check_svd<TestType>(k.machine, with_values(6, 4, s), s, 0);
}

TEMPLATE_TEST_CASE("of a batch only the matrices with bad numbers are lost", "", float, double) {
  Machine machine;
  for (const index_t rows : {5, 40}) {
    Dense stack = random_matrix(3 * rows, 4, 7);
    stack(rows + 2, 1) = std::nan("");
    Placed<TestType> a(stack);
    Svd<TestType> out(3, rows, 4);
    CHECK(message_of<dw::NonFiniteError>([&] {
            machine.solver.svd_batched(3, a.const_view(), out.u.view(), out.s.view(), out.vt.view());
            machine.solver.wait_and_check();
          }) == "svd: a: got NaN or infinity, want finite numbers");
    const Dense s = out.s.get();
    for (index_t b = 0; b < 3; ++b)
      for (index_t i = 0; i < 4; ++i)
        CHECK((refuses_at_once ? s(b, i) == 0 : b == 1 ? std::isnan(s(b, i)) : s(b, i) > 0.1));
  }
}

TEMPLATE_TEST_CASE("a matrix that is not positive definite asks for damping", "", float, double) {
  Refusal<TestType> k;
  Dense indefinite = identity(4);
  indefinite(3, 3) = -1;
  for (const Dense& matrix : {indefinite, Dense(4, 4)}) {
    const Dense sides = Placed<TestType>(random_matrix(4, 3, 2)).get();
    k.gram.put(matrix);
    k.x.put(sides);
    CHECK(k.template message<dw::OptionError>([&](Solver& solver) {
      solver.solve(k.gram.const_view(), {}, k.x.view());
    }) == "solve: a + damping: got a matrix that is not positive definite, want more damping");
    CHECK(k.unusable(k.x, sides));
    k.x.put(sides);
    k.machine.solver.solve(k.gram.const_view(), {.absolute = 2}, k.x.view());
    k.machine.solver.wait_and_check();
    CHECK(norm(k.x.get()) > 0);
  }
}

TEMPLATE_TEST_CASE("views and options that do not fit are refused by name, before anything is done", "", float,
                   double) {
  Refusal<TestType> k;
  const auto a = k.a.const_view();
  const auto u = k.u.view(), s = k.s.view(), vt = k.vt.view(), q = k.q.view(), x = k.x.view();
  const auto gram = k.gram.const_view();
  const auto shape = [&](auto f) { return k.template message<dw::ShapeError>(f); };
  CHECK(shape([&](Solver& y) { y.svd(a, u.col_range(0, 3), s, vt); }) ==
        "svd: u.cols (the lesser size of a): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.svd(a, u.row_range(0, 5), s, vt); }) == "svd: u.rows (a.rows): got 5, want 6");
  CHECK(shape([&](Solver& y) { y.svd(a, u, s.col_range(0, 3), vt); }) ==
        "svd: s.cols (the lesser size of a): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.svd(a, u, s, vt.row_range(0, 3)); }) ==
        "svd: vt.rows (count x the lesser size of a): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.svd(a, u, s, {}); }) == "svd: vt.rows (count x the lesser size of a): got 0, want 4");
  CHECK(shape([&](Solver& y) { y.svd_batched(-1, a, u, s, vt); }) == "svd: count: got -1, want 0 or more");
  CHECK(shape([&](Solver& y) { y.svd_batched(4, a, u, s, vt); }) == "svd: a.rows (count x rows): got 6, want 4");
  CHECK(shape([&](Solver& y) { y.svd_batched(2, a, u, s, vt); }) ==
        "svd: u.cols (the lesser size of a): got 4, want 3");
  CHECK(shape([&](Solver& y) { y.qr(a.row_range(0, 3), q.row_range(0, 3), vt); }) ==
        "qr: a.rows: got 3, want at least a.cols, which is 4");
  CHECK(shape([&](Solver& y) { y.qr(a, q.row_range(0, 4), vt); }) == "qr: q.rows (a.rows): got 4, want 6");
  CHECK(shape([&](Solver& y) { y.qr(a, q, vt.col_range(0, 3)); }) == "qr: r.cols (a.cols): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.solve(a, {}, x); }) == "solve: a.cols (a.rows): got 4, want 6");
  CHECK(shape([&](Solver& y) { y.solve(gram, {}, x.row_range(0, 3)); }) == "solve: x.rows (a.rows): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.solve(gram, {}, dw::t(x)); }) == "solve: x.cols (a.rows): got 3, want 4");
  CHECK(shape([&](Solver& y) { y.eigen(a, s, vt); }) == "eigen: a.cols (a.rows): got 4, want 6");
  CHECK(shape([&](Solver& y) { y.eigen(gram, s.col_range(0, 2), vt); }) == "eigen: w.cols (a.rows): got 2, want 4");
  CHECK(shape([&](Solver& y) { y.eigen(gram, s, q); }) == "eigen: vt.rows (a.rows): got 6, want 4");
  CHECK(k.template message<dw::OptionError>([&](Solver& y) { y.solve(gram, {.absolute = -1}, x); }) ==
        "solve: damping.absolute: got -1, want a finite number, 0 or more");
  CHECK(k.template message<dw::OptionError>([&](Solver& y) { y.solve(gram, {.relative = std::nan("")}, x); }) ==
        "solve: damping.relative: got nan, want a finite number, 0 or more");
  const auto alias = [&](auto f) { return k.template message<dw::AliasError>(f); };
  CHECK(alias([&](Solver& y) { y.svd(a, u, s, u.row_range(0, 4)); }) ==
        "svd: u and vt: got views that share memory, want separate ones");
  CHECK(alias([&](Solver& y) { y.svd(a, k.a.view(), s, vt); }) ==
        "svd: a and u: got views that share memory, want separate ones");
  CHECK(alias([&](Solver& y) { y.qr(a, q, q.row_range(0, 4)); }) ==
        "qr: q and r: got views that share memory, want separate ones");
  CHECK(alias([&](Solver& y) { y.eigen(gram, s, k.gram.view()); }) ==
        "eigen: a and vt: got views that share memory, want separate ones");
  CHECK(norm(k.u.get()) + norm(k.s.get()) + norm(k.vt.get()) + norm(k.q.get()) == 0);
  CHECK(distance(k.x.get(), Placed<TestType>(random_matrix(4, 3, 2)).get()) == 0);
}

#if defined(DELTAW_TEST_CUDA)
TEST_CASE("a borrowed cuSOLVER handle works on the context's stream and outlives the solver") {
  cusolverDnHandle_t handle = nullptr;
  REQUIRE(cusolverDnCreate(&handle) == CUSOLVER_STATUS_SUCCESS);
  Tested::Context context;
  {
    Solver solver(context, handle);
    Placed<double> a(random_matrix(5, 5, 1)), q(5, 5), r(5, 5);
    solver.qr(a.const_view(), q.view(), r.view());
    solver.wait_and_check();
    CHECK(is_orthonormal(q.get(), 1e-12));
  }
  cudaStream_t stream = nullptr;
  REQUIRE(cusolverDnGetStream(handle, &stream) == CUSOLVER_STATUS_SUCCESS);
  CHECK(stream == context.stream());
  CHECK(cusolverDnDestroy(handle) == CUSOLVER_STATUS_SUCCESS);
}
#endif
