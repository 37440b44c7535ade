#pragma once
// The backend that these tests run on, its memory, and the naive algebra in double that they compare with.

#if defined(DELTAW_TEST_CUDA)
#include "deltaw/backend/cuda_solver.hpp"
#else
#include "deltaw/backend/cpu_solver.hpp"
#endif

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../backend/guarded.hpp"
#include "deltaw/core/memory.hpp"

namespace deltaw_tests {

#if defined(DELTAW_TEST_CUDA)
using Tested = dw::Cuda;
using Solver = dw::CudaSolver;
/// Without the 32 MiB that cuBLAS would get and no solver uses.
struct Machine {
  Tested::Context context{dw::CudaOptions{.cublas_workspace_bytes = 4096}};
  Solver solver{context};
};
/// A call refuses bad numbers at once; where not, its outputs become NaN and `wait_and_check` refuses.
inline constexpr bool refuses_at_once = false;
inline void copy_bytes(void* to, const void* from, std::size_t bytes) {
  dw::cuda_detail::check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
#else
using Tested = dw::Cpu;
using Solver = dw::CpuSolver;
struct Machine {
  Tested::Context context;
  Solver solver{context};
};
inline constexpr bool refuses_at_once = true;
inline void copy_bytes(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
#endif

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

/// A matrix in the backend's memory: `gap` elements between its rows, `offset` before the first, NaN in both and behind.
template <class T>
class Placed {
 public:
  Placed(index_t rows, index_t cols, index_t gap = 0, index_t offset = 0)
      : rows_(rows), cols_(cols), stride_(cols + gap), first_(guard + offset) {
    bytes_.assign(static_cast<std::size_t>(first_ + rows * stride_ + guard),
                  T(std::numeric_limits<float>::quiet_NaN()));
    memory_.resize(1, static_cast<index_t>(bytes_.size()));
    put(Dense(rows, cols));
  }
  explicit Placed(const Dense& a, index_t gap = 0, index_t offset = 0) : Placed(a.rows, a.cols, gap, offset) { put(a); }

  /// Rounds `a` into the backend's memory.
  void put(const Dense& a) {
    for (index_t i = 0; i < rows_; ++i)
      for (index_t j = 0; j < cols_; ++j) bytes_[at(i, j)] = T(a(i, j));
    copy_bytes(memory_.view().data, bytes_.data(), memory_.bytes());
  }
  /// What is there now, once the work behind it is done.
  Dense get() {
    fetch();
    Dense a(rows_, cols_);
    for (index_t i = 0; i < rows_; ++i)
      for (index_t j = 0; j < cols_; ++j) a(i, j) = static_cast<double>(bytes_[at(i, j)]);
    return a;
  }
  std::string bits() {
    fetch();
    return bits_of(dw::ConstMatrixView<T>{bytes_.data() + first_, rows_, cols_, stride_});
  }
  /// Nothing beside the matrix was written.
  bool intact() {
    fetch();
    for (index_t k = 0; k < static_cast<index_t>(bytes_.size()); ++k) {
      const index_t from_first = k - first_;
      const bool inside = from_first >= 0 && from_first < rows_ * stride_ && from_first % stride_ < cols_;
      if (!inside && !std::isnan(static_cast<double>(bytes_[static_cast<std::size_t>(k)]))) return false;
    }
    return true;
  }

  dw::MatrixView<T, Tested::Space> view() { return {memory_.view().data + first_, rows_, cols_, stride_}; }
  dw::ConstMatrixView<T, Tested::Space> const_view() { return view(); }

 private:
  static constexpr index_t guard = 16;
  std::size_t at(index_t i, index_t j) const { return static_cast<std::size_t>(first_ + i * stride_ + j); }
  void fetch() { copy_bytes(bytes_.data(), memory_.view().data, memory_.bytes()); }

  index_t rows_, cols_, stride_, first_;
  std::vector<T> bytes_;
  dw::Tensor<T, Tested::Space> memory_;
};

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;

}  // namespace deltaw_tests
