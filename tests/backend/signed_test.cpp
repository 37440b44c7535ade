// gemm_signed: products with matrices of -1, 0 and 1.

#include <cstdint>
#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/core/signed_columns.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::f16;

namespace {
using Storage = dw::SignedStorage<Tested::Space>;

// A rows x cols matrix with that share of non-zeros, as plain numbers and as lists.
struct Signs {
  index_t rows, cols;
  std::vector<int> values;
  Storage storage;

  Signs(index_t r, index_t c, double share, std::uint32_t seed) : rows(r), cols(c) {
    Numbers numbers(seed);
    Storage::Writer writer;
    for (index_t j = 0; j < cols; ++j) {
      for (index_t i = 0; i < rows; ++i) {
        const double u = (numbers() + 1) / 2;
        const int sign = u < share / 2 ? -1 : u < share ? 1 : 0;
        if (sign != 0) writer.add(i, sign < 0);
        values.push_back(sign);
      }
      writer.end_column();
    }
    storage = writer.take();
  }
  int at(index_t i, index_t j) const { return values[static_cast<std::size_t>(j * rows + i)]; }
};

// 0.5 A S + beta C against plain sums, for `used` of the rows of S, and columns that begin at `first`.
template <class TA, class T>
int count_wrong(double share, double beta) {
  Tested::Context ctx;
  int wrong = 0;
  for (const index_t tokens : {0, 1, 15, 16, 17, 40})
    for (const index_t rows : {1, 7, 64, 130})
      for (const index_t cols : {1, 5, 33}) {
        const Signs signs(rows, cols, share, static_cast<std::uint32_t>(rows + cols));
        const index_t used = rows - rows / 3, first = cols / 4;
        Guarded<TA> a(tokens, used, 3);
        Guarded<T> c(tokens, cols - first, 2);
        a.fill(1), c.fill(2);
        if (beta == 0) c.fill_with(std::nan(""));
        const Guarded<T> before = c;
        Tested::gemm_signed(ctx, 0.5, a.const_view(), signs.storage.columns(first, cols - first), beta, c.view());
        for (index_t i = 0; i < tokens; ++i)
          for (index_t j = 0; j < cols - first; ++j) {
            double want = beta == 0 ? 0 : beta * before.at(i, j);
            for (index_t k = 0; k < used; ++k) want += 0.5 * a.at(i, k) * signs.at(k, first + j);
            const double tolerance = unit_in_last_place<dw::compute_t<T>>() * static_cast<double>(used + 4);
            wrong += within(c.at(i, j), want, tolerance + one_rounding<T>(want)) ? 0 : 1;
          }
        wrong += c.intact() && a.intact() ? 0 : 1;
      }
  return wrong;
}
}  // namespace

TEST_CASE("gemm_signed is the product with a matrix of -1, 0 and 1, dense or nearly empty") {
  for (double share : {0.0, 0.05, 0.4, 1.0})
    for (double beta : {0.0, 1.0, -0.5}) {
      INFO("share " << share << ", beta " << beta);
      CHECK(count_wrong<float, float>(share, beta) == 0);
      CHECK(count_wrong<double, double>(share, beta) == 0);
      CHECK(count_wrong<bf16, float>(share, beta) == 0);
      CHECK(count_wrong<float, bf16>(share, beta) == 0);
      CHECK(count_wrong<f16, f16>(share, beta) == 0);
    }
}

TEST_CASE("gemm_signed: its bits depend neither on addresses nor on how many columns are taken at once") {
  Tested::Context ctx;
  const Signs signs(90, 20, 0.5, 3);
  const auto bits = [&](index_t offset, index_t columns_at_once) {
    Guarded<float> a(33, 90, 3, offset), c(33, 20, 1, offset * 3 % 16);
    a.fill(1), c.fill(2);
    for (index_t j = 0; j < 20; j += columns_at_once)
      Tested::gemm_signed(ctx, 0.7, a.const_view(), signs.storage.columns(j, columns_at_once), 1,
                          c.view().col_range(j, columns_at_once));
    return c.bits();
  };
  const std::string expected = bits(0, 20);
  for (const index_t offset : {1, 5, 15}) CHECK(bits(offset, 20) == expected);
  CHECK(bits(0, 1) == expected);  // few non-zeros at a time: the rows are then read where they lie
  CHECK(bits(2, 5) == expected);
}

TEST_CASE("gemm_signed refuses views that do not fit or share memory") {
  Tested::Context ctx;
  const Signs signs(6, 5, 0.5, 1);
  Guarded<float> a(4, 6), c(4, 5), narrow(4, 4);
  CHECK(message_of<dw::ShapeError>([&] {
          Tested::gemm_signed(ctx, 1, a.const_view(), signs.storage.columns(0, 5), 0, narrow.view());
        }) == "gemm_signed: c.cols (columns): got 4, want 5");
  CHECK(message_of<dw::AliasError>([&] {
          Tested::gemm_signed(ctx, 1, a.const_view(), signs.storage.columns(0, 5), 0, a.view().col_range(0, 5));
        }) == "gemm_signed: a and c: got views that share memory, want separate ones");
}
