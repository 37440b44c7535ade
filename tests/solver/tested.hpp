#pragma once
// The solver of the tested backend, matrices in its memory, and the naive algebra in double that they are compared with.

#include "guarded.hpp"
#if defined(DELTAW_TEST_CUDA)
#include "deltaw/backend/cuda_solver.hpp"
#else
#include "deltaw/backend/cpu_solver.hpp"
#endif

namespace deltaw_tests {

#if defined(DELTAW_TEST_CUDA)
using Solver = dw::CudaSolver;
/// A call refuses bad numbers at once; where not, its outputs become NaN and `wait_and_check` refuses.
inline constexpr bool refuses_at_once = false;
#else
using Solver = dw::CpuSolver;
inline constexpr bool refuses_at_once = true;
#endif

struct Machine {
  Tested::Context context;
  Solver solver{context};
};

/// A row-major matrix of doubles.
struct Dense {
  index_t rows = 0, cols = 0;
  std::vector<double> values;

  Dense(index_t rows_, index_t cols_)
      : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_)) {}
  double& operator()(index_t i, index_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(index_t i, index_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

inline Dense turned(const Dense& a) {
  Dense b(a.cols, a.rows);
  for (index_t i = 0; i < a.rows; ++i)
    for (index_t j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  return b;
}
inline Dense times(const Dense& a, const Dense& b) {
  Dense c(a.rows, b.cols);
  for (index_t i = 0; i < a.rows; ++i)
    for (index_t k = 0; k < a.cols; ++k)
      for (index_t j = 0; j < b.cols; ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}
inline Dense diagonal(const std::vector<double>& values) {
  const auto n = static_cast<index_t>(values.size());
  Dense d(n, n);
  for (index_t i = 0; i < n; ++i) d(i, i) = values[static_cast<std::size_t>(i)];
  return d;
}
inline Dense identity(index_t n) { return diagonal(std::vector<double>(static_cast<std::size_t>(n), 1.0)); }
inline double norm(const Dense& a) {
  double sum = 0;
  for (double x : a.values) sum += x * x;
  return std::sqrt(sum);
}
/// The Frobenius norm of a - b; NaN where a value is.
inline double distance(Dense a, const Dense& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] -= b.values[i];
  return norm(a);
}
inline Dense random_matrix(index_t rows, index_t cols, std::uint32_t seed) {
  Dense a(rows, cols);
  Numbers numbers(seed);
  for (double& x : a.values) x = numbers();
  return a;
}
/// Orthonormal columns: Gram-Schmidt, twice.
inline Dense random_basis(index_t rows, index_t cols, std::uint32_t seed) {
  Dense q = turned(random_matrix(rows, cols, seed));
  for (int pass = 0; pass < 2; ++pass)
    for (index_t j = 0; j < cols; ++j) {
      double* column = &q(j, 0);
      const auto dot = [&](const double* other) {
        double sum = 0;
        for (index_t i = 0; i < rows; ++i) sum += column[i] * other[i];
        return sum;
      };
      for (index_t l = 0; l < j; ++l) {
        const double along = dot(&q(l, 0));
        for (index_t i = 0; i < rows; ++i) column[i] -= along * q(l, i);
      }
      const double length = std::sqrt(dot(column));
      for (index_t i = 0; i < rows; ++i) column[i] /= length;
    }
  return turned(q);
}

/// A guarded matrix that is filled from, and read as, a dense one.
template <class T>
class Placed : public Guarded<T> {
 public:
  using Guarded<T>::Guarded;
  explicit Placed(const Dense& a, index_t gap = 0, index_t offset = 0) : Guarded<T>(a.rows, a.cols, gap, offset) {
    put(a);
  }

  /// Rounds `a` into the backend's memory.
  void put(const Dense& a) {
    std::vector<T> values;
    for (double x : a.values) values.push_back(T(x));
    from_host(values, this->view());
  }
  Dense get() const {
    const auto v = this->const_view();
    Dense a(v.rows, v.cols);
    const auto values = to_host(v);
    for (std::size_t i = 0; i < values.size(); ++i) a.values[i] = static_cast<double>(values[i]);
    return a;
  }
};

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;

}  // namespace deltaw_tests
