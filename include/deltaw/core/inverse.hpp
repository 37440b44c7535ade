#pragma once
// The inverse of a small matrix on the host, for setting up. Decompositions of backends are in backend/solver.hpp.

#include <cmath>

#include "deltaw/core/view.hpp"

namespace deltaw {

/// a = a^-1 by Cholesky, a = L L^T, with a symmetric and positive definite; the lower triangle is read. False, with `a`
/// spoilt, where it is not positive definite to `tolerance` of its own diagonal.
inline bool invert_positive_definite(MatrixView<double> a, double tolerance = 1e-14) {
  const index_t n = a.rows;
  const auto dot = [&](index_t i, index_t j, index_t count) {
    double sum = 0;
    for (index_t k = 0; k < count; ++k) sum += a(i, k) * a(j, k);
    return sum;
  };
  for (index_t j = 0; j < n; ++j) {
    const double pivot = a(j, j) - dot(j, j, j);
    if (!(pivot > tolerance * a(j, j) && std::isfinite(pivot))) return false;
    a(j, j) = std::sqrt(pivot);
    for (index_t i = j + 1; i < n; ++i) a(i, j) = (a(i, j) - dot(i, j, j)) / a(j, j);
  }
  for (index_t j = 0; j < n; ++j) {  // the upper triangle becomes L^-T, column after column of L^-1
    a(j, j) = 1 / a(j, j);
    for (index_t i = j + 1; i < n; ++i) {
      double sum = 0;
      for (index_t k = j; k < i; ++k) sum += a(i, k) * a(j, k);
      a(j, i) = -sum / a(i, i);
    }
  }
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j <= i; ++j) {  // a^-1 = L^-T L^-1
      double sum = 0;
      for (index_t k = i; k < n; ++k) sum += a(i, k) * a(j, k);
      a(i, j) = sum;
    }
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < i; ++j) a(j, i) = a(i, j);
  return true;
}

}  // namespace deltaw
