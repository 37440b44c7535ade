#pragma once
// Small dense algebra on column-major matrices in double: the plain textbook loops behind the cuSOLVER stand-in.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

namespace standin {

struct Dense {
  int rows = 0, cols = 0;
  std::vector<double> values;

  Dense() = default;
  Dense(int rows_, int cols_)
      : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_)) {}
  double* column(int j) { return values.data() + static_cast<std::ptrdiff_t>(j) * rows; }
  const double* column(int j) const { return values.data() + static_cast<std::ptrdiff_t>(j) * rows; }
  double& operator()(int i, int j) { return column(j)[i]; }
  double operator()(int i, int j) const { return column(j)[i]; }
};

inline Dense identity(int n) {
  Dense a(n, n);
  for (int i = 0; i < n; ++i) a(i, i) = 1;
  return a;
}
inline Dense transposed(const Dense& a) {
  Dense b(a.cols, a.rows);
  for (int j = 0; j < a.cols; ++j)
    for (int i = 0; i < a.rows; ++i) b(j, i) = a(i, j);
  return b;
}
inline double dot(const double* a, const double* b, int n) { return std::inner_product(a, a + n, b, 0.0); }

/// Turns columns p and q of `a` by an angle given as cosine and sine.
inline void turn_columns(Dense& a, int p, int q, double c, double s) {
  for (int i = 0; i < a.rows; ++i) {
    const double x = a(i, p), y = a(i, q);
    a(i, p) = c * x - s * y;
    a(i, q) = s * x + c * y;
  }
}
inline void turn_rows(Dense& a, int p, int q, double c, double s) {
  for (int j = 0; j < a.cols; ++j) {
    const double x = a(p, j), y = a(q, j);
    a(p, j) = c * x - s * y;
    a(q, j) = s * x + c * y;
  }
}
/// The Jacobi turn that makes [[a, b], [b, d]] diagonal.
inline std::pair<double, double> jacobi_turn(double a, double b, double d) {
  const double zeta = (d - a) / (2 * b);
  const double t = std::copysign(1.0, zeta) / (std::fabs(zeta) + std::hypot(1.0, zeta));
  const double c = 1 / std::hypot(1.0, t);
  return {c, c * t};
}

/// The order of `keys`, largest first.
inline std::vector<int> descending(const std::vector<double>& keys) {
  std::vector<int> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)]; });
  return order;
}

/// Replaces the columns of `q` from `first` on by unit vectors orthogonal to all before: Gram-Schmidt, twice.
inline void complete_basis(Dense& q, int first) {
  for (int j = first; j < q.cols; ++j) {
    std::vector<double> best;
    double best_norm = 0;
    for (int e = 0; e < q.rows; ++e) {
      std::vector<double> v(static_cast<std::size_t>(q.rows));
      v[static_cast<std::size_t>(e)] = 1;
      for (int pass = 0; pass < 2; ++pass)
        for (int l = 0; l < j; ++l) {
          const double along = dot(q.column(l), v.data(), q.rows);
          for (int i = 0; i < q.rows; ++i) v[static_cast<std::size_t>(i)] -= along * q(i, l);
        }
      const double norm = std::sqrt(dot(v.data(), v.data(), q.rows));
      if (norm > best_norm) best = v, best_norm = norm;
    }
    for (int i = 0; i < q.rows; ++i) q(i, j) = best[static_cast<std::size_t>(i)] / best_norm;
  }
}

struct Svd {
  Dense u;  ///< rows x rows or, when economical, rows x least
  std::vector<double> s;
  Dense v;  ///< cols x cols or cols x least
};

/// A = U diag(s) V^T by one-sided Jacobi; s falls. Not economical: U and V are completed to squares.
inline Svd svd(const Dense& a, bool economical) {
  if (a.rows < a.cols) {
    Svd other = svd(transposed(a), economical);
    std::swap(other.u, other.v);
    return other;
  }
  Dense work = a, v = identity(a.cols);
  bool turned = true;
  for (int sweep = 0; turned && sweep < 60; ++sweep) {
    turned = false;
    for (int p = 0; p < a.cols; ++p)
      for (int q = p + 1; q < a.cols; ++q) {
        const double pp = dot(work.column(p), work.column(p), a.rows), qq = dot(work.column(q), work.column(q), a.rows);
        const double pq = dot(work.column(p), work.column(q), a.rows);
        if (std::fabs(pq) <= 1e-15 * std::sqrt(pp * qq) || std::fabs(pq) < 1e-290) continue;
        const auto [c, s] = jacobi_turn(pp, pq, qq);
        turn_columns(work, p, q, c, s);
        turn_columns(v, p, q, c, s);
        turned = true;
      }
  }
  std::vector<double> norms(static_cast<std::size_t>(a.cols));
  for (int j = 0; j < a.cols; ++j)
    norms[static_cast<std::size_t>(j)] = std::sqrt(dot(work.column(j), work.column(j), a.rows));
  Svd result{Dense(a.rows, economical ? a.cols : a.rows), {}, Dense(a.cols, a.cols)};
  int rank = 0;
  for (int j : descending(norms)) {
    const double s = norms[static_cast<std::size_t>(j)];
    const auto k = static_cast<int>(result.s.size());
    // Below rounding a column has no direction of its own.
    if (s > 1e-15 * (result.s.empty() ? s : result.s[0]) && s > 0) rank = k + 1;
    for (int i = 0; i < a.rows; ++i) result.u(i, k) = s > 0 ? work(i, j) / s : 0;
    for (int i = 0; i < a.cols; ++i) result.v(i, k) = v(i, j);
    result.s.push_back(s);
  }
  complete_basis(result.u, rank);
  return result;
}

/// Householder QR as LAPACK stores it: R above, the reflectors below with a first element of 1 left out.
inline std::vector<double> householder_qr(Dense& a) {
  std::vector<double> tau;
  for (int k = 0; k < std::min(a.rows, a.cols); ++k) {
    const double tail = std::sqrt(dot(a.column(k) + k + 1, a.column(k) + k + 1, a.rows - k - 1));
    const double alpha = a(k, k), beta = -std::copysign(std::hypot(alpha, tail), alpha);
    tau.push_back(tail == 0 ? 0 : (beta - alpha) / beta);
    if (tail == 0) continue;
    for (int i = k + 1; i < a.rows; ++i) a(i, k) /= alpha - beta;
    a(k, k) = beta;
    for (int j = k + 1; j < a.cols; ++j) {
      const double along = tau.back() * (a(k, j) + dot(a.column(k) + k + 1, a.column(j) + k + 1, a.rows - k - 1));
      a(k, j) -= along;
      for (int i = k + 1; i < a.rows; ++i) a(i, j) -= along * a(i, k);
    }
  }
  return tau;
}
/// c = Q c or Q^T c with Q from the first `tau.size()` reflectors of `a`.
inline void apply_q(const Dense& a, const std::vector<double>& tau, bool transpose, Dense& c) {
  const auto k = static_cast<int>(tau.size());
  for (int n = 0; n < k; ++n) {
    const int r = transpose ? n : k - 1 - n;
    for (int j = 0; j < c.cols; ++j) {
      double along = c(r, j);
      for (int i = r + 1; i < c.rows; ++i) along += a(i, r) * c(i, j);
      along *= tau[static_cast<std::size_t>(r)];
      c(r, j) -= along;
      for (int i = r + 1; i < c.rows; ++i) c(i, j) -= along * a(i, r);
    }
  }
}

/// The lower Cholesky factor in place of the lower triangle; 0, or the order of the first minor that is not positive.
inline int cholesky(Dense& a) {
  for (int j = 0; j < a.cols; ++j) {
    for (int l = 0; l < j; ++l) a(j, j) -= a(j, l) * a(j, l);
    if (!(a(j, j) > 0)) return j + 1;
    a(j, j) = std::sqrt(a(j, j));
    for (int i = j + 1; i < a.rows; ++i) {
      for (int l = 0; l < j; ++l) a(i, j) -= a(i, l) * a(j, l);
      a(i, j) /= a(j, j);
    }
  }
  return 0;
}
/// b = L^-1 b or L^-T b.
inline void solve_lower(const Dense& l, bool transpose, bool unit, Dense& b) {
  for (int c = 0; c < b.cols; ++c)
    for (int n = 0; n < l.cols; ++n) {
      const int i = transpose ? l.cols - 1 - n : n;
      for (int k = transpose ? i + 1 : 0; k < (transpose ? l.cols : i); ++k)
        b(i, c) -= (transpose ? l(k, i) : l(i, k)) * b(k, c);
      if (!unit) b(i, c) /= l(i, i);
    }
}

/// P A = L U in place, with pivots counted from 1; 0, or the place of the first pivot that is zero.
inline int lu(Dense& a, std::vector<int>& pivots) {
  int info = 0;
  for (int k = 0; k < std::min(a.rows, a.cols); ++k) {
    const double* column = a.column(k);
    const auto pivot = static_cast<int>(
        std::max_element(column + k, column + a.rows, [](double x, double y) { return std::fabs(x) < std::fabs(y); }) -
        column);
    pivots.push_back(pivot + 1);
    for (int j = 0; j < a.cols; ++j) std::swap(a(k, j), a(pivot, j));
    if (a(k, k) == 0) {
      if (info == 0) info = k + 1;
      continue;
    }
    for (int i = k + 1; i < a.rows; ++i) a(i, k) /= a(k, k);
    for (int j = k + 1; j < a.cols; ++j)
      for (int i = k + 1; i < a.rows; ++i) a(i, j) -= a(i, k) * a(k, j);
  }
  return info;
}

/// Eigenvalues of a symmetric matrix, rising, and its eigenvectors in place of it: cyclic Jacobi.
inline std::vector<double> symmetric_eigen(Dense& a) {
  Dense v = identity(a.rows);
  bool turned = true;
  for (int sweep = 0; turned && sweep < 60; ++sweep) {
    turned = false;
    for (int p = 0; p < a.rows; ++p)
      for (int q = p + 1; q < a.rows; ++q) {
        if (std::fabs(a(p, q)) <= 1e-16 * (std::fabs(a(p, p)) + std::fabs(a(q, q)))) continue;
        const auto [c, s] = jacobi_turn(a(p, p), a(p, q), a(q, q));
        turn_columns(a, p, q, c, s);
        turn_rows(a, p, q, c, s);
        turn_columns(v, p, q, c, s);
        turned = true;
      }
  }
  std::vector<double> diagonal, rising;
  for (int i = 0; i < a.rows; ++i) diagonal.push_back(-a(i, i));
  int k = 0;
  for (int j : descending(diagonal)) {
    rising.push_back(-diagonal[static_cast<std::size_t>(j)]);
    std::copy(v.column(j), v.column(j) + v.rows, a.column(k++));
  }
  return rising;
}

}  // namespace standin
