#include "deltaw/core/inverse.hpp"

#include <algorithm>
#include <vector>

#include "catch.hpp"

namespace dw = deltaw;
using dw::index_t;

TEST_CASE("the inverse of a positive definite matrix, from its lower triangle") {
  for (index_t n : {0, 1, 2, 5, 17}) {
    const auto at = [&](index_t i, index_t j) { return static_cast<std::size_t>(i * n + j); };
    std::vector<double> f(static_cast<std::size_t>(n * n)), a(f.size());
    for (std::size_t k = 0; k < f.size(); ++k) f[k] = std::sin(1.0 + 7.0 * static_cast<double>(k));
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j) {
        a[at(i, j)] = i == j ? 0.5 : 0;
        for (index_t k = 0; k < n; ++k) a[at(i, j)] += f[at(i, k)] * f[at(j, k)];
      }
    std::vector<double> inverse = a;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = i + 1; j < n; ++j) inverse[at(i, j)] = 1e300;  // is not read
    REQUIRE(dw::invert_positive_definite({inverse.data(), n, n}));
    double worst = 0;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j) {
        double sum = i == j ? -1 : 0;
        for (index_t k = 0; k < n; ++k) sum += a[at(i, k)] * inverse[at(k, j)];
        worst = std::max(worst, std::abs(sum));
      }
    CHECK(worst < 1e-12);
  }
}

TEST_CASE("a matrix that is not positive definite has no inverse here") {
  const auto inverts = [](std::vector<double> a) { return dw::invert_positive_definite({a.data(), 2, 2}); };
  CHECK(inverts({2, 0, 1, 2}));
  CHECK_FALSE(inverts({1, 0, 1, 1}));
  CHECK_FALSE(inverts({1, 0, 2, 1}));
  CHECK_FALSE(inverts({0, 0, 0, 1}));
  CHECK_FALSE(inverts({-1, 0, 0, 1}));
  CHECK_FALSE(inverts({1, 0, 0, std::nan("")}));
  CHECK_FALSE(inverts({INFINITY, 0, 0, 1}));
}
