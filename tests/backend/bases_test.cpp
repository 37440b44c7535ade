// random_combine and random_project: sums over random matrices that are never stored.

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;

namespace {

constexpr dw::RandomKey key{2026};
const std::vector<index_t> counts{1, 3, 4, 5, 18};

dw::RandomBases bases_of(index_t cols, std::uint64_t first = 0) {
  return {key, first, static_cast<std::uint64_t>(cols)};
}

// Element `e` of U_n, from the definition.
double number(index_t n, std::uint64_t e) {
  const auto column = static_cast<std::uint64_t>(n);
  return 2 * dw::uniform01(key.block(column / 4, e)[column % 4]) - 1;
}

struct Shape {
  index_t rows, cols, gap, offset;
};
std::vector<Shape> shapes() {
  std::vector<Shape> list{{3, 1500, 0, 1}, {1, 4100, 0, 0}, {2, 4099, 3, 2}};  // more than one stretch
  index_t turn = 0;
  for (const index_t size : boundary_sizes)
    for (const index_t other : {1, 3}) {
      list.push_back({size, other, turn % 3, turn % 5});
      list.push_back({other, size, (turn + 1) % 3, turn % 7});
      ++turn;
    }
  return list;
}

template <class TC, class T>
int count_wrong_combinations(double beta) {
  Tested::Context ctx;
  int wrong = 0;
  for (const Shape& s : shapes())
    for (const index_t count : counts) {
      const std::uint64_t first = static_cast<std::uint64_t>(s.rows + count);
      const auto step = static_cast<std::uint64_t>(s.cols + s.gap);
      Guarded<TC> c(1, count);
      Guarded<T> out(s.rows, s.cols, s.gap, s.offset);
      c.fill(1);
      if (beta == 0)
        out.fill_with(std::numeric_limits<double>::quiet_NaN());
      else
        out.fill(2);
      const Guarded<T> before = out;
      Tested::random_combine(ctx, {key, first, step}, 1.5, c.const_view(), beta, out.view());
      bool right = out.intact();
      for (index_t i = 0; i < s.rows && right; ++i)
        for (index_t j = 0; j < s.cols && right; ++j) {
          double want = beta == 0 ? 0 : beta * before.at(i, j);
          const auto e = first + static_cast<std::uint64_t>(i) * step + static_cast<std::uint64_t>(j);
          for (index_t n = 0; n < count; ++n) want += 1.5 * c.at(0, n) * number(n, e);
          right = within(
              out.at(i, j), want,
              2 * static_cast<double>(count + 4) * unit_in_last_place<dw::compute_t<T>>() + one_rounding<T>(want));
        }
      wrong += right ? 0 : 1;
    }
  return wrong;
}

template <class TA, class T>
int count_wrong_projections() {
  Tested::Context ctx;
  int wrong = 0;
  for (const Shape& s : shapes())
    for (const index_t count : counts) {
      const std::uint64_t first = static_cast<std::uint64_t>(s.cols + count);
      const auto step = static_cast<std::uint64_t>(s.cols + s.gap);
      Guarded<TA> in(s.rows, s.cols, s.gap, s.offset);
      Guarded<T> out(1, count);
      in.fill(1), out.fill(2);
      const Guarded<T> before = out;
      Tested::random_project(ctx, {key, first, step}, -0.5, in.const_view(), out.view());
      bool right = out.intact();
      for (index_t n = 0; n < count && right; ++n) {
        double sum = 0, size = 0;
        for (index_t i = 0; i < s.rows; ++i)
          for (index_t j = 0; j < s.cols; ++j) {
            const auto e = first + static_cast<std::uint64_t>(i) * step + static_cast<std::uint64_t>(j);
            sum += in.at(i, j) * number(n, e), size += 1;
          }
        const double want = before.at(0, n) - 0.5 * sum;
        right = within(out.at(0, n), want,
                       4 * (std::sqrt(size) * 4 + 4) * unit_in_last_place<dw::compute_t<T>>() + one_rounding<T>(want));
      }
      wrong += right ? 0 : 1;
    }
  return wrong;
}

}  // namespace

TEST_CASE("random_combine adds up the matrices it says") {
  CHECK(count_wrong_combinations<double, double>(0) == 0);
  CHECK(count_wrong_combinations<double, double>(0.5) == 0);
  CHECK(count_wrong_combinations<float, float>(0) == 0);
  CHECK(count_wrong_combinations<float, float>(-2) == 0);
  CHECK(count_wrong_combinations<float, double>(1) == 0);
  CHECK(count_wrong_combinations<float, bf16>(1) == 0);
}

TEST_CASE("random_project adds the dot products with them") {
  CHECK(count_wrong_projections<double, double>() == 0);
  CHECK(count_wrong_projections<float, float>() == 0);
  CHECK(count_wrong_projections<bf16, float>() == 0);
  CHECK(count_wrong_projections<float, double>() == 0);
}

TEST_CASE("the matrices are the columns of one uniform fill, to the bit, in float as in double") {
  Tested::Context ctx;
  const auto count_different = [&]<class T>(T) {
    Guarded<T> all(3 * 37, 6), one(3, 37), c(1, 6);
    Tested::fill_uniform(ctx, key, {5, 0}, -1, 1, all.view());
    int different = 0;
    for (index_t n = 0; n < 6; ++n) {
      c.fill_with(0);
      c.set(0, n, 1);
      Tested::random_combine(ctx, bases_of(37, 5), 1, c.const_view(), 0, one.view());
      for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < 37; ++j) different += one.at(i, j) == all.at(i * 37 + j, n) ? 0 : 1;
    }
    return different;
  };
  CHECK(count_different(1.0f) == 0);
  CHECK(count_different(1.0) == 0);
}

TEST_CASE("a known element: what files mean by their coefficients never changes") {
  Tested::Context ctx;
  Guarded<double> c(1, 6), out(1, 1);
  c.set(0, 5, 1);
  Tested::random_combine(ctx, bases_of(10, 123456789012345u), 1, c.const_view(), 0, out.view());
  CHECK(out.at(0, 0) == number(5, 123456789012345u));
  CHECK(dw::RandomKey{2026}.block(1, 123456789012345u)[1] == 0x48f0cca1u);
}

TEST_CASE("a part of the matrices has the numbers of the whole") {
  Tested::Context ctx;
  Guarded<float> c(1, 7), whole(6, 75), parts(6, 75, 2, 1);
  c.fill(1);
  Tested::random_combine(ctx, bases_of(75), 1, c.const_view(), 0, whole.view());
  for (const index_t row : {0, 1, 6})
    for (const index_t col : {0, 1, 5, 32, 74, 75}) {
      const auto part = [&](index_t i, index_t j, index_t rows, index_t cols) {
        Tested::random_combine(ctx, bases_of(75, static_cast<std::uint64_t>(i * 75 + j)), 1, c.const_view(), 0,
                               parts.view().row_range(i, rows).col_range(j, cols));
      };
      parts.fill_with(0);
      part(row, col, 6 - row, 75 - col), part(0, 0, row, col), part(row, 0, 6 - row, col), part(0, col, row, 75 - col);
      CHECK(parts.bits() == whole.bits());
      CHECK(parts.intact());
    }
}

TEST_CASE("no matrices, no elements") {
  Tested::Context ctx;
  Guarded<float> none(1, 0), c(1, 3), out(2, 3), empty(0, 3);
  out.fill_with(4);
  Tested::random_combine(ctx, bases_of(3), 1, none.const_view(), 0.5, out.view());
  CHECK(out.at(1, 2) == 2);
  Tested::random_combine(ctx, bases_of(3), 1, none.const_view(), 0, out.view());
  CHECK(out.at(1, 2) == 0);
  Tested::random_combine(ctx, bases_of(3), 1, c.const_view(), 0, empty.view());
  c.fill_with(7);
  Tested::random_project(ctx, bases_of(3), 1, empty.const_view(), c.view());
  Tested::random_project(ctx, bases_of(3), 1, out.const_view(), none.view());
  CHECK(c.at(0, 2) == 7);
}

TEST_CASE("their bits do not depend on addresses") {
  Tested::Context ctx;
  const auto bits_at = [&](index_t gap, index_t offset) {
    Guarded<float> in(5, 67, gap, offset), out(5, 67, gap, offset * 3 % 16), sums(1, 6, 0, offset * 5 % 16), c(1, 6);
    in.fill(1), sums.fill(2), c.fill(3);
    Tested::random_project(ctx, bases_of(67), 0.7, in.const_view(), sums.view());
    Tested::random_combine(ctx, bases_of(67), 0.7, c.const_view(), 0, out.view());
    return sums.bits() + out.bits();
  };
  for (const index_t gap : {0, 3}) {
    const std::string expected = bits_at(gap, 0);
    for (index_t offset = 1; offset < 5; ++offset) CHECK(bits_at(gap, offset) == expected);
  }
}

TEST_CASE("random_combine and random_project refuse views that do not fit, by name") {
  Tested::Context ctx;
  Guarded<float> two(2, 4), row(1, 4), out(3, 5);
  const auto message = [&](auto call) { return message_of<dw::ShapeError>(call); };
  CHECK(message([&] { Tested::random_combine(ctx, bases_of(5), 1, two.const_view(), 0, out.view()); }) ==
        "random_combine: c.rows (rows): got 2, want 1");
  CHECK(message([&] { Tested::random_project(ctx, bases_of(5), 1, out.const_view(), two.view()); }) ==
        "random_project: out.rows (rows): got 2, want 1");
  CHECK(message_of<dw::AliasError>([&] {
          Tested::random_combine(ctx, bases_of(4), 1, row.const_view(), 0, row.view());
        }) == "random_combine: c and out: got views that share memory, want separate ones");
  CHECK(message_of<dw::AliasError>([&] {
          Tested::random_project(ctx, bases_of(4), 1, row.const_view(), row.view());
        }) == "random_project: in and out: got views that share memory, want separate ones");
}
