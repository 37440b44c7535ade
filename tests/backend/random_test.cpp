#include <cstdint>
#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/core/dropout.hpp"
#include "deltaw/core/functors.hpp"
#include "guarded.hpp"
#include "known_random.hpp"

using namespace deltaw_tests;
using dw::bf16;

namespace {

constexpr dw::RandomKey key{77};

template <class T>
Guarded<T> whole_mask(double p, index_t rows, index_t cols) {
  Tested::Context ctx;
  Guarded<T> in(rows, cols), out(rows, cols);
  in.fill_with(1);
  Tested::dropout(ctx, p, dw::CallKey{key}, {}, in.const_view(), out.view());
  return out;
}

// What `fill` writes into pieces of a matrix cut at `row` and `col`, put together.
template <class Fill>
Guarded<float> in_pieces(index_t rows, index_t cols, index_t row, index_t col, Fill fill) {
  Guarded<float> out(rows, cols, 3, 1);
  const auto origin = [](index_t i, index_t j) {
    return dw::RandomOrigin{static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(j)};
  };
  const auto piece = [&](index_t i, index_t j, index_t count_i, index_t count_j) {
    fill(origin(i, j), out.view().row_range(i, count_i).col_range(j, count_j));
  };
  piece(row, col, rows - row, cols - col);  // the last first: order must not matter
  piece(0, 0, row, col);
  piece(row, 0, rows - row, col);
  piece(0, col, row, cols - col);
  return out;
}

}  // namespace

TEST_CASE("every element of a random fill is the number of its row and column") {
  Tested::Context ctx;
  const dw::RandomOrigin origin{7, 10};
  Guarded<double> uniform(5, 131, 2, 1), normal(5, 131);
  Tested::fill_uniform(ctx, key, origin, -3, 5, uniform.view());
  Tested::fill_normal(ctx, key, origin, 0.25, normal.view());
  int different = 0;
  for (index_t i = 0; i < 5; ++i)
    for (index_t j = 0; j < 131; ++j) {
      const auto row = static_cast<std::uint64_t>(7 + i), col = static_cast<std::uint64_t>(10 + j);
      const std::uint32_t bits = key.block(col / 4, row)[col % 4];
      const bool same =
          uniform.at(i, j) == std::fma(dw::uniform01(bits), 8, -3) && normal.at(i, j) == 0.25 * dw::normal01(bits);
      different += same ? 0 : 1;
    }
  CHECK(different == 0);
  CHECK(uniform.intact());
  CHECK(normal.intact());
}

TEST_CASE("the 64 known uniform and normal numbers, in double, float and 16 bits") {
  Tested::Context ctx;
  const auto known_key = dw::RandomKey{2026}.fold(3).fold(dw::name_hash("lora_A.weight"));
  const auto count_different = [&]<class T>(T) {
    Guarded<T> uniform(4, 16, 1), normal(4, 16, 2);
    Tested::fill_uniform(ctx, known_key, {}, 0, 1, uniform.view());
    Tested::fill_normal(ctx, known_key, {}, 1, normal.view());
    int different = 0;
    for (std::size_t i = 0; i < known.size(); ++i) {
      const auto row = static_cast<index_t>(i / 16), col = static_cast<index_t>(i % 16);
      different += uniform.at(row, col) == static_cast<double>(T(known[i].uniform)) ? 0 : 1;
      different += normal.at(row, col) == static_cast<double>(T(known[i].normal)) ? 0 : 1;
    }
    return different;
  };
  CHECK(count_different(1.0) == 0);
  CHECK(count_different(1.0f) == 0);
  CHECK(count_different(bf16(1.0f)) == 0);
  CHECK(count_different(dw::f16(1.0f)) == 0);
}

TEST_CASE("a part of a matrix gets the same random numbers as in the whole") {
  Tested::Context ctx;
  const auto uniform = [&](dw::RandomOrigin origin, View<float> out) {
    Tested::fill_uniform(ctx, key, origin, -1, 1, out);
  };
  const auto normal = [&](dw::RandomOrigin origin, View<float> out) { Tested::fill_normal(ctx, key, origin, 1, out); };
  Guarded<float> whole_uniform(9, 150), whole_normal(9, 150);
  uniform({}, whole_uniform.view());
  normal({}, whole_normal.view());
  for (const index_t row : {0, 1, 4, 9})
    for (const index_t col : {0, 1, 2, 3, 4, 5, 63, 64, 65, 66, 149, 150}) {
      const auto u = in_pieces(9, 150, row, col, uniform), z = in_pieces(9, 150, row, col, normal);
      CHECK(u.bits() == whole_uniform.bits());
      CHECK(z.bits() == whole_normal.bits());
      CHECK(u.intact());
      CHECK(z.intact());
    }
}

TEST_CASE("float, double and 16-bit fills are roundings of the same numbers") {
  Tested::Context ctx;
  Guarded<double> exact(3, 70);
  Guarded<float> single(3, 70);
  Guarded<bf16> rounded(3, 70);
  Tested::fill_normal(ctx, key, {}, 1, exact.view());
  Tested::fill_normal(ctx, key, {}, 1, single.view());
  Tested::fill_normal(ctx, key, {}, 1, rounded.view());
  int different = 0;
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 70; ++j) {
      const double x = exact.at(i, j);
      different += single.at(i, j) == static_cast<double>(static_cast<float>(x)) ? 0 : 1;
      different += rounded.at(i, j) == static_cast<double>(static_cast<float>(bf16(x))) ? 0 : 1;
    }
  CHECK(different == 0);
}

TEST_CASE("a uniform fill stays within its bounds, other keys give other numbers") {
  Tested::Context ctx;
  Guarded<float> a(50, 100), b(50, 100);
  Tested::fill_uniform(ctx, key, {}, -0.125, 0.25, a.view());
  Tested::fill_uniform(ctx, key.fold(1), {}, -0.125, 0.25, b.view());
  double lowest = 1, highest = -1;
  int equal = 0;
  for (index_t i = 0; i < 50; ++i)
    for (index_t j = 0; j < 100; ++j) {
      lowest = std::min(lowest, a.at(i, j)), highest = std::max(highest, a.at(i, j));
      equal += a.at(i, j) == b.at(i, j) ? 1 : 0;
    }
  CHECK(lowest >= -0.125);
  CHECK(lowest < -0.124);
  CHECK(highest < 0.25);
  CHECK(highest > 0.249);
  CHECK(equal < 5);
}

TEST_CASE("dropout keeps the share that it should and scales what it keeps") {
  for (const double p : {0.1, 0.5, 0.9}) {
    const auto mask = whole_mask<double>(p, 200, 500);
    double kept = 0;
    int strange = 0;
    for (index_t i = 0; i < 200; ++i)
      for (index_t j = 0; j < 500; ++j) {
        kept += mask.at(i, j) > 0 ? 1 : 0;
        strange += mask.at(i, j) == 0 || mask.at(i, j) == 1 / (1 - p) ? 0 : 1;
      }
    CHECK(strange == 0);
    CHECK(std::abs(kept / 1e5 - (1 - p)) < 5 * std::sqrt(p * (1 - p) / 1e5));
  }
  const auto all = whole_mask<float>(0, 5, 70);
  int lost = 0;
  for (index_t i = 0; i < 5; ++i)
    for (index_t j = 0; j < 70; ++j) lost += all.at(i, j) == 1 ? 0 : 1;
  CHECK(lost == 0);
}

TEST_CASE("an element is dropped or kept wherever the tile that holds it begins") {
  Tested::Context ctx;
  const auto whole = whole_mask<float>(0.4, 9, 150);
  Guarded<float> ones(9, 150);
  ones.fill_with(1);
  for (const index_t row : {0, 1, 4, 9})
    for (const index_t col : {0, 1, 2, 3, 4, 64, 67, 150}) {
      const auto pieces = in_pieces(9, 150, row, col, [&](dw::RandomOrigin origin, View<float> out) {
        const auto in = ones.const_view().row_range(0, out.rows).col_range(0, out.cols);
        Tested::dropout(ctx, 0.4, dw::CallKey{key}, origin, in, out);
      });
      CHECK(pieces.bits() == whole.bits());
      CHECK(pieces.intact());
    }
}

TEST_CASE("dropout overwrites or accumulates, in place too, in mixed types") {
  Tested::Context ctx;
  const auto mask = whole_mask<double>(0.3, 6, 77);
  Guarded<bf16> in(6, 77, 2, 3);
  in.fill(3);
  Guarded<float> out(6, 77, 1, 5), sum(6, 77), place(6, 77, 4);
  out.fill_with(std::numeric_limits<double>::quiet_NaN());
  sum.fill(4);
  const Guarded<float> before = sum;
  Tested::copy(ctx, in.const_view(), place.view());
  Tested::dropout(ctx, 0.3, dw::CallKey{key}, {}, in.const_view(), out.view());
  Tested::dropout(ctx, 0.3, dw::CallKey{key}, {}, in.const_view(), sum.view(), true);
  Tested::dropout(ctx, 0.3, dw::CallKey{key}, {}, place.const_view(), place.view());
  int wrong = 0;
  for (index_t i = 0; i < 6; ++i)
    for (index_t j = 0; j < 77; ++j) {
      const double want = mask.at(i, j) * in.at(i, j);
      wrong += within(out.at(i, j), want, 2e-7 * std::abs(want)) ? 0 : 1;
      wrong += within(sum.at(i, j), before.at(i, j) + want, 4e-7) ? 0 : 1;
      wrong += place.at(i, j) == out.at(i, j) ? 0 : 1;
    }
  CHECK(wrong == 0);
  CHECK(out.intact());
  CHECK(sum.intact());
  CHECK(place.intact());
}

TEST_CASE("a dropped element is gone even where it is not finite") {
  Tested::Context ctx;
  const auto mask = whole_mask<float>(0.5, 1, 64);
  Guarded<float> in(1, 64), out(1, 64);
  in.fill_with(std::numeric_limits<double>::infinity());
  Tested::dropout(ctx, 0.5, dw::CallKey{key}, {}, in.const_view(), out.view());
  int wrong = 0;
  for (index_t j = 0; j < 64; ++j) wrong += std::isinf(out.at(0, j)) == (mask.at(0, j) != 0) ? 0 : 1;
  CHECK(wrong == 0);
}

TEST_CASE("input dropout depends on seed, layer, step, micro-batch and row, and on nothing else") {
  Tested::Context ctx;
  const dw::LinearShape shape{.in_features = 33, .out_features = 4};
  Guarded<float> ones(600, 33);  // more than two tiles
  ones.fill_with(1);
  const auto mask = [&](std::uint64_t seed, std::uint64_t layer, dw::Call call) {
    const dw::InputDropout<float, Tested> dropout(0.5, seed, layer, shape);
    std::string bits;
    dropout.for_each_tile(ctx, ones.const_view(), call, [&](ConstView<float> x, index_t first) {
      if (call.training) CHECK(x.rows <= Tested::tile_rows);
      CHECK(first % Tested::tile_rows == 0);
      bits += bits_of(x);
    });
    return bits;
  };
  const dw::Call call{.training = true, .step = 3, .micro_batch = 1};
  const std::string expected = mask(1, 2, call);
  REQUIRE(expected.size() == ones.bits().size());
  CHECK(mask(1, 2, call) == expected);
  CHECK(mask(2, 2, call) != expected);
  CHECK(mask(1, 3, call) != expected);
  CHECK(mask(1, 2, {.training = true, .step = 4, .micro_batch = 1}) != expected);
  CHECK(mask(1, 2, {.training = true, .step = 3, .micro_batch = 2}) != expected);
  const std::string shifted = mask(1, 2, {.training = true, .step = 3, .micro_batch = 1, .first_row = 10});
  const std::size_t ten_rows = expected.size() / 60;
  CHECK(shifted.substr(0, 59 * ten_rows) == expected.substr(ten_rows));

  const auto plain = mask(1, 2, {.training = false});
  CHECK(plain == ones.bits());
}

TEST_CASE("the product through dropout is the dropped product, tile by tile") {
  Tested::Context ctx;
  const dw::LinearShape shape{.in_features = 21, .out_features = 4, .shard = {.in_offset = 5, .in_total = 40}};
  const dw::InputDropout<double, Tested> dropout(0.25, 1, 2, shape);
  const dw::Call call{.training = true, .step = 3};
  const index_t rows = 300;
  Guarded<double> h(rows, 3), a(3, 21), dx(rows, 21, 2, 1), product(rows, 21), dropped(rows, 21);
  h.fill(1), a.fill(2), dx.fill(3);
  Guarded<double> want = dx;
  dropout.add_product(ctx, h.const_view(), a.const_view(), dx.view(), call);

  Tested::gemm(ctx, 1, h.const_view(), a.const_view(), 0, product.view());
  dropout.for_each_tile(ctx, product.const_view(), call, [&](ConstView<double> tile, index_t first) {
    Tested::copy(ctx, tile, dropped.view().row_range(first, tile.rows));
  });
  Tested::map(ctx, dw::Add{}, want.view(), dropped.const_view());
  CHECK(dx.bits() == want.bits());
  CHECK(dx.intact());
}
