#pragma once
// What a row of tests/adapters.hpp is made of: naive matrices, the oracle's input, option sets, costs.

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/random.hpp"

namespace deltaw_tests {

namespace dw = deltaw;

/// A naive matrix of doubles.
struct Matrix {
  dw::index_t rows = 0, cols = 0;
  std::vector<double> values;
  Matrix() = default;
  Matrix(dw::index_t r, dw::index_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  double& operator()(dw::index_t i, dw::index_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(dw::index_t i, dw::index_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

/// a b^T.
inline Matrix times_transposed(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.rows);
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < b.rows; ++j)
      for (dw::index_t k = 0; k < a.cols; ++k) c(i, j) += a(i, k) * b(j, k);
  return c;
}
/// a + scale b; a b of one row is added to every row.
inline Matrix plus(Matrix a, const Matrix& b, double scale = 1) {
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < a.cols; ++j) a(i, j) += scale * b(b.rows == 1 ? 0 : i, j);
  return a;
}

/// a b.
inline Matrix times(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < b.cols; ++j)
      for (dw::index_t k = 0; k < a.cols; ++k) c(i, j) += a(i, k) * b(k, j);
  return c;
}
/// a with column j times the j-th element of `g` (of any shape), and scaled.
inline Matrix scale_columns(Matrix a, const Matrix& g, double scale = 1) {
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < a.cols; ++j) a(i, j) *= scale * g.values[static_cast<std::size_t>(j)];
  return a;
}

/// The values of a view, wherever it lies: what `add_inputs` puts into its map.
template <class T, class Space>
Matrix values_of(dw::MatrixView<T, Space> v) {
  Matrix m(v.rows, v.cols);
  std::vector<std::remove_const_t<T>> row(static_cast<std::size_t>(v.cols));
  for (dw::index_t i = 0; i < v.rows; ++i) {
    dw::Memory<Space>::to_host(row.data(), v.data + i * v.stride, row.size() * sizeof(T));
    for (dw::index_t j = 0; j < v.cols; ++j) m(i, j) = static_cast<double>(row[static_cast<std::size_t>(j)]);
  }
  return m;
}

struct OracleInput {
  Matrix x, w, bias = {};
  dw::Call call = {};
  std::map<std::string, Matrix> parameters = {};  ///< and what a row's `add_inputs` adds to them
  std::map<std::string, Matrix> held = {};  ///< those that the method takes as constants, where they are not the same
};

template <class Options>
struct Variant {
  std::string label;
  Options options;
  /// Parameters whose gradient is by definition not the true one: it is the oracle's with `OracleInput::held` as it was.
  std::vector<std::string> held_fixed = {};
  bool moves_at_start = false;  ///< not the base at the start, though the row's other variants are
};

/// What one forward and one backward cost: products and passes launched, FLOPs, bytes through memory, temporaries.
struct Cost {
  double flops = 0, bytes = 0;
  int launches = 0;
  double temporary_bytes = 0;
};

/// D(X), drawn element by element from its definition: dropped where a 32-bit number falls below p 2^32.
inline Matrix dropped_input(const OracleInput& in, double p, std::uint64_t seed, std::uint64_t layer) {
  if (!in.call.training || p == 0) return in.x;
  const auto key = dw::RandomKey{seed}.fold(layer).fold(in.call.step).fold(in.call.micro_batch);
  Matrix x = in.x;
  for (dw::index_t i = 0; i < x.rows; ++i)
    for (dw::index_t j = 0; j < x.cols; ++j) {
      const auto column = static_cast<std::uint64_t>(j);
      const std::uint32_t bits = key.block(column / 4, in.call.first_row + static_cast<std::uint64_t>(i))[column % 4];
      x(i, j) = static_cast<double>(bits) < p * 0x1p32 ? 0 : x(i, j) / (1 - p);
    }
  return x;
}

}  // namespace deltaw_tests
