#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/core/functors.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::f16;

namespace {

struct TimesPlus {
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X out, Y factor, Z summand) const {
    return out * static_cast<X>(factor) + static_cast<X>(summand);
  }
};

// Calls check(rows, cols, gap, offset) for every boundary size on either axis.
template <class F>
void for_each_shape(F check) {
  index_t turn = 0;
  for (const index_t size : boundary_sizes)
    for (const index_t other : {1, 3, 18}) {
      check(size, other, turn % 3, turn % 5);
      check(other, size, (turn + 1) % 3, turn % 7);
      ++turn;
    }
}

// How many of the shapes for which `agrees(rows, cols, gap, offset)` does not hold.
template <class F>
int count_wrong(F agrees) {
  int wrong = 0;
  for_each_shape([&](auto... shape) { wrong += agrees(shape...) ? 0 : 1; });
  return wrong;
}

template <class T, class Want>
bool all_within(const Guarded<T>& got, Want want, double tolerance) {
  const auto v = got.view();
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) {
      const double expected = want(i, j);
      if (!within(got.at(i, j), expected, tolerance + one_rounding<T>(expected))) return false;
    }
  return got.intact();
}

template <class T, class In>
void check_map() {
  Tested::Context ctx;
  const double tolerance = 4 * unit_in_last_place<dw::compute_t<T>>();
  const auto broadcast = [&](bool one_row, bool one_col) {
    return count_wrong([&](index_t rows, index_t cols, index_t gap, index_t offset) {
      Guarded<T> out(rows, cols, gap, offset);
      Guarded<In> factor(one_row ? 1 : rows, one_col ? 1 : cols, gap + 1), summand(rows, cols, gap);
      out.fill(1), factor.fill(2), summand.fill(3);
      const Guarded<T> before = out;
      Tested::map(ctx, TimesPlus{}, out.view(), factor.const_view(), summand.const_view());
      return all_within(
          out,
          [&](index_t i, index_t j) {
            return before.at(i, j) * factor.at(one_row ? 0 : i, one_col ? 0 : j) + summand.at(i, j);
          },
          tolerance);
    });
  };
  CHECK(broadcast(false, false) == 0);
  CHECK(broadcast(true, false) == 0);
  CHECK(broadcast(false, true) == 0);
  CHECK(broadcast(true, true) == 0);
}

template <class T, class In>
void check_copies() {
  Tested::Context ctx;
  CHECK(count_wrong([&](index_t rows, index_t cols, index_t gap, index_t offset) {
          Guarded<In> in(rows, cols, gap + 1);
          Guarded<T> out(rows, cols, gap, offset), turned(cols, rows, gap + 2, offset);
          in.fill(4);
          Tested::copy(ctx, in.const_view(), out.view());
          Tested::copy_transposed(ctx, in.const_view(), turned.view());
          return all_within(
                     out, [&](index_t i, index_t j) { return in.at(i, j); }, 0) &&
                 all_within(
                     turned, [&](index_t i, index_t j) { return in.at(j, i); }, 0);
        }) == 0);
}

// The tolerance of a sum of n products of numbers in [-1, 1).
template <class C>
double sum_tolerance(index_t n) {
  return unit_in_last_place<C>() * static_cast<double>(n + 4);
}

template <class TA, class TB, class T>
void check_reductions() {
  Tested::Context ctx;
  using C = dw::compute_t<T>;
  CHECK(count_wrong([&](index_t rows, index_t cols, index_t gap, index_t offset) {
          Guarded<TA> a(rows, cols, gap, offset);
          Guarded<TB> b(rows, cols, gap + 2);
          a.fill(5), b.fill(6);
          Guarded<T> dots(1, cols), sums(1, cols), row_dots(1, rows, 0, offset);
          dots.fill(7), sums.fill(8), row_dots.fill(9);
          const Guarded<T> dots_before = dots, sums_before = sums, row_dots_before = row_dots;
          Tested::col_dot(ctx, 0.5, a.const_view(), b.const_view(), dots.view());
          Tested::col_sum(ctx, -2, a.const_view(), sums.view());
          Tested::row_dot(ctx, 1.5, a.const_view(), b.const_view(), row_dots.view());
          const auto dot = [&](index_t, index_t j) {
            double sum = 0;
            for (index_t i = 0; i < rows; ++i) sum += a.at(i, j) * b.at(i, j);
            return dots_before.at(0, j) + 0.5 * sum;
          };
          const auto column_sum = [&](index_t, index_t j) {
            double sum = 0;
            for (index_t i = 0; i < rows; ++i) sum += a.at(i, j);
            return sums_before.at(0, j) - 2 * sum;
          };
          const auto row_dot = [&](index_t, index_t i) {
            double sum = 0;
            for (index_t j = 0; j < cols; ++j) sum += a.at(i, j) * b.at(i, j);
            return row_dots_before.at(0, i) + 1.5 * sum;
          };
          return all_within(dots, dot, sum_tolerance<C>(rows)) &&
                 all_within(sums, column_sum, 2 * sum_tolerance<C>(rows)) &&
                 all_within(row_dots, row_dot, 1.5 * sum_tolerance<C>(cols));
        }) == 0);
}

template <class T>
void check_norm() {
  Tested::Context ctx;
  CHECK(count_wrong([&](index_t rows, index_t cols, index_t gap, index_t offset) {
          Guarded<T> a(rows, cols, gap, offset);
          a.fill(10);
          long double sum = 0;
          for (index_t i = 0; i < rows; ++i)
            for (index_t j = 0; j < cols; ++j) sum += static_cast<long double>(a.at(i, j)) * a.at(i, j);
          const auto want = static_cast<double>(sum);
          return within(Tested::norm2(ctx, a.const_view()), want, 1e-14 * want);
        }) == 0);
}

}  // namespace

TEST_CASE("map applies a functor to every element, with inputs broadcast along rows, columns or both") {
  check_map<float, float>();
  check_map<double, double>();
  check_map<bf16, bf16>();
  check_map<f16, f16>();
  check_map<bf16, float>();  // a float bias under 16-bit activations
  check_map<float, bf16>();
}

TEST_CASE("the functors that adapters share") {
  Tested::Context ctx;
  Guarded<float> out(2, 3), in(2, 3);
  out.fill_with(2), in.fill_with(5);
  Tested::map(ctx, dw::Add{}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == 7);
  Tested::map(ctx, dw::AddScaled{0.5}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == 9.5);
  Tested::map(ctx, dw::Scale{-2}, out.view());
  CHECK(out.at(1, 2) == -19);
  Tested::map(ctx, dw::Multiply{}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == -95);
  Tested::map(ctx, dw::Divide{}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == -19);
  Guarded<float> factor(1, 3);
  factor.fill_with(3);
  Tested::map(ctx, dw::AddExcess{}, out.view(), factor.const_view(), in.const_view());
  CHECK(out.at(1, 2) == -9);
  Tested::map(ctx, dw::ScaleAround{}, out.view(), factor.const_view(), in.const_view());
  CHECK(out.at(1, 2) == 5 + 3 * (-9 - 5));
  Tested::map(ctx, dw::ScaleAround{}, out.view(), factor.const_view());
  CHECK(out.at(1, 2) == -111);
  Tested::map(ctx, dw::Excess{}, out.view(), factor.const_view(), in.const_view());
  CHECK(out.at(1, 2) == 10);
  Tested::map(ctx, dw::Difference{}, out.view(), in.const_view(), factor.const_view());
  CHECK(out.at(1, 2) == 2);
  in.fill_with(0);
  Tested::map(ctx, dw::Divide{}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == 0);
  out.fill_with(-95);
  Tested::map(ctx, dw::SoftThreshold{90}, out.view());
  CHECK(out.at(1, 2) == -5);
  Tested::map(ctx, dw::SoftThreshold{2, 6}, out.view());
  CHECK(out.at(1, 2) == 0);
  in.fill_with(-3);
  Tested::map(ctx, dw::Sign{}, out.view(), in.const_view());
  CHECK(out.at(1, 2) == -1);
  out.fill_with(-19), in.fill_with(5);
  Tested::map(ctx, dw::AddProduct{}, out.view(), in.const_view(), in.const_view());
  CHECK(out.at(1, 2) == 6);
  Tested::map(ctx, dw::Product{}, out.view(), out.const_view(), in.const_view(), in.const_view());
  CHECK(out.at(1, 2) == 150);
}

TEST_CASE("fill writes the view and nothing else") {
  Tested::Context ctx;
  const auto check = [&]<class T>(T) {
    return count_wrong([&](index_t rows, index_t cols, index_t gap, index_t offset) {
      Guarded<T> out(rows, cols, gap, offset);
      Tested::fill(ctx, out.view(), 0.3);
      return all_within(
          out, [](index_t, index_t) { return 0.3; }, 0);
    });
  };
  CHECK(check(1.0f) == 0);
  CHECK(check(1.0) == 0);
  CHECK(check(bf16(1.0f)) == 0);
  CHECK(check(f16(1.0f)) == 0);
}

TEST_CASE("copy and copy_transposed move and convert every element") {
  check_copies<float, float>();
  check_copies<double, float>();
  check_copies<float, double>();
  check_copies<bf16, float>();
  check_copies<float, bf16>();
  check_copies<f16, f16>();
  check_copies<f16, double>();
}

TEST_CASE("copy keeps NaN, infinity and the sign of zero") {
  Tested::Context ctx;
  Guarded<float> in(1, 4);
  in.set(0, 0, std::numeric_limits<float>::quiet_NaN());
  in.set(0, 1, -std::numeric_limits<float>::infinity());
  in.set(0, 2, -0.0f);
  in.set(0, 3, 1e20f);
  Guarded<f16> out(1, 4);
  Tested::copy(ctx, in.const_view(), out.view());
  CHECK(std::isnan(out.at(0, 0)));
  CHECK(out.at(0, 1) == -std::numeric_limits<double>::infinity());
  CHECK(std::signbit(out.at(0, 2)));
  CHECK(std::isinf(out.at(0, 3)));
}

TEST_CASE("col_dot, col_sum and row_dot add to their output what plain sums give") {
  check_reductions<float, float, float>();
  check_reductions<double, double, double>();
  check_reductions<bf16, bf16, float>();
  check_reductions<f16, float, float>();
  check_reductions<float, float, double>();
  check_reductions<bf16, bf16, bf16>();
}

TEST_CASE("norm2 is the sum of squares in double") {
  check_norm<float>();
  check_norm<double>();
  check_norm<bf16>();
  check_norm<f16>();
}

TEST_CASE("norm2 neither overflows where float would nor hides what is not finite") {
  Tested::Context ctx;
  Guarded<float> a(3, 37);
  a.fill_with(1e30);
  CHECK(Tested::norm2(ctx, a.const_view()) == Approx(111e60));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()})
    for (const index_t at : {0, 15, 16, 36}) {
      a.fill_with(1);
      a.set(1, at, bad);
      CHECK_FALSE(std::isfinite(Tested::norm2(ctx, a.const_view())));
    }
}

TEST_CASE("the bits of reductions do not depend on addresses") {
  Tested::Context ctx;
  const auto bits_at = [&]<class T>(T, index_t rows, index_t cols, index_t offset) {
    Guarded<T> a(rows, cols, 3, offset), b(rows, cols, 5, offset * 7 % 16);
    Guarded<float> out(1, cols, 0, offset * 5 % 16), row_out(1, rows, 0, offset * 3 % 16);
    a.fill(1), b.fill(2), out.fill(3), row_out.fill(4);
    Tested::col_dot(ctx, 0.7, a.const_view(), b.const_view(), out.view());
    Tested::col_sum(ctx, 0.7, a.const_view(), out.view());
    Tested::row_dot(ctx, 0.7, a.const_view(), b.const_view(), row_out.view());
    const double norm = Tested::norm2(ctx, a.const_view());
    return out.bits() + row_out.bits() + bits_of(dw::MatrixView<const double>{&norm, 1, 1});
  };
  // A pack of a kernel has 4 floats. A device's memory takes long to reach: fewer shapes there.
  constexpr bool on_host = std::is_same_v<Tested, dw::Cpu>;
  constexpr index_t offsets = on_host ? 16 : 5;
  const std::vector<index_t> row_counts = on_host ? boundary_sizes : std::vector<index_t>{1, 17, 65};
  const std::vector<index_t> col_counts =
      on_host ? std::vector<index_t>{1, 7, 16, 33, 65, 130} : std::vector<index_t>{7, 33, 130};
  const auto count_different = [&](auto type) {
    int different = 0;
    for (const index_t rows : row_counts)
      for (const index_t cols : col_counts) {
        const std::string expected = bits_at(type, rows, cols, 0);
        for (index_t offset = 1; offset < offsets; ++offset)
          different += bits_at(type, rows, cols, offset) == expected ? 0 : 1;
      }
    return different;
  };
  CHECK(count_different(1.0f) == 0);
  CHECK(count_different(1.0) == 0);
  CHECK(count_different(bf16(1.0f)) == 0);
}

TEST_CASE("primitives refuse views that do not fit, by name") {
  Tested::Context ctx;
  Guarded<float> a(4, 5), b(4, 6), row(1, 5), wide(1, 6);
  const auto message = [&](auto call) { return message_of<dw::ShapeError>(call); };
  CHECK(message([&] { Tested::map(ctx, dw::Add{}, a.view(), b.const_view()); }) ==
        "map: input.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::map(ctx, dw::Add{}, a.view(), wide.const_view()); }) ==
        "map: input.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::copy(ctx, a.const_view(), b.view()); }) == "copy: out.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::copy_transposed(ctx, a.const_view(), b.view()); }) ==
        "copy_transposed: out.rows (rows): got 4, want 5");
  CHECK(message([&] { Tested::col_dot(ctx, 1, a.const_view(), b.const_view(), row.view()); }) ==
        "col_dot: b.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::col_dot(ctx, 1, a.const_view(), a.const_view(), wide.view()); }) ==
        "col_dot: out.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::col_sum(ctx, 1, a.const_view(), wide.view()); }) ==
        "col_sum: out.cols (columns): got 6, want 5");
  CHECK(message([&] { Tested::row_dot(ctx, 1, a.const_view(), a.const_view(), row.view()); }) ==
        "row_dot: out.cols (columns): got 5, want 4");
  CHECK(message([&] { Tested::dropout(ctx, 0.5, dw::CallKey{{1}}, {}, a.const_view(), b.view()); }) ==
        "dropout: out.cols (columns): got 6, want 5");
}

TEST_CASE("a transpose into its own memory is refused") {
  Tested::Context ctx;
  Guarded<float> a(4, 4);
  a.fill(1);
  const std::string before = a.bits();
  CHECK(message_of<dw::AliasError>([&] { Tested::copy_transposed(ctx, a.const_view(), a.view()); }) ==
        "copy_transposed: in and out: got views that share memory, want separate ones");
  CHECK(a.bits() == before);
}
