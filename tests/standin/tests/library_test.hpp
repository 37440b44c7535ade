#pragma once
// Random matrices and naive references in double for the tests of the two libraries.

#include <cusolverDn.h>

#include <cmath>
#include <random>

#include "support.hpp"

/// A column-major matrix on the host, with a leading dimension of its own.
struct Host {
  int rows, cols, ld;
  std::vector<double> values;
  Host(int rows_, int cols_, int ld_ = 0)
      : rows(rows_),
        cols(cols_),
        ld(ld_ == 0 ? rows_ : ld_),
        values(static_cast<std::size_t>(ld) * static_cast<std::size_t>(cols_)) {}
  double& operator()(int i, int j) {
    return values[static_cast<std::size_t>(j) * static_cast<std::size_t>(ld) + static_cast<std::size_t>(i)];
  }
  double operator()(int i, int j) const {
    return values[static_cast<std::size_t>(j) * static_cast<std::size_t>(ld) + static_cast<std::size_t>(i)];
  }
};

inline Host random_matrix(int rows, int cols, unsigned seed, int ld = 0) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Host a(rows, cols, ld);
  for (double& value : a.values) value = uniform(bits);
  return a;
}
inline Host turned(const Host& a) {
  Host b(a.cols, a.rows);
  for (int i = 0; i < a.rows; ++i)
    for (int j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  return b;
}
inline Host times(const Host& a, const Host& b) {
  Host c(a.rows, b.cols);
  for (int i = 0; i < a.rows; ++i)
    for (int j = 0; j < b.cols; ++j)
      for (int l = 0; l < a.cols; ++l) c(i, j) += a(i, l) * b(l, j);
  return c;
}
/// The largest element of a - b; infinite where a NaN is.
inline double distance(const Host& a, const Host& b) {
  double largest = 0;
  for (int i = 0; i < a.rows; ++i)
    for (int j = 0; j < a.cols; ++j) {
      const double d = std::fabs(a(i, j) - b(i, j));
      largest = d <= largest ? largest : std::isnan(d) ? INFINITY : d;
    }
  return largest;
}
inline double from_orthogonal(const Host& q) {
  Host one(q.cols, q.cols);
  for (int i = 0; i < q.cols; ++i) one(i, i) = 1;
  return distance(times(turned(q), q), one);
}

template <class T>
T* upload(const Host& a) {
  return to_device(std::vector<T>(a.values.begin(), a.values.end()));
}
template <class T>
Host download(const T* p, int rows, int cols, int ld = 0) {
  Host a(rows, cols, ld);
  std::vector<T> column(static_cast<std::size_t>(rows));
  for (int j = 0; j < cols; ++j) {
    column = to_host(p + static_cast<std::ptrdiff_t>(j) * a.ld, column.size());
    for (int i = 0; i < rows; ++i) a(i, j) = static_cast<double>(column[static_cast<std::size_t>(i)]);
  }
  return a;
}
