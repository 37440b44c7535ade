#pragma once
// The product of the Cpu backend: a BLAS where the build found one, Eigen otherwise, 16-bit storage through float tiles.

#include <Eigen/Core>
#include <algorithm>
#include <limits>
#include <type_traits>

#include "deltaw/core/config.hpp"
#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"
#if DELTAW_CBLAS
#include <cblas.h>
#endif

namespace deltaw {
#if DELTAW_CBLAS
inline namespace cpu_with_cblas {
#else
inline namespace cpu_with_eigen {
#endif
namespace cpu_detail {

/// One operand as it lies in memory; `transposed` says that the product uses its transpose.
template <class T>
struct Operand {
  const T* data;
  index_t rows, cols;  // of the operand as the product sees it
  index_t stride;
  bool transposed;

  Operand rows_from(index_t first, index_t count) const {
    return {data + (transposed ? first : first * stride), count, cols, stride, transposed};
  }
  Operand cols_from(index_t first, index_t count) const {
    return {data + (transposed ? first * stride : first), rows, count, stride, transposed};
  }
  /// As it lies in memory.
  ConstMatrixView<T, Host> stored() const { return {data, transposed ? cols : rows, transposed ? rows : cols, stride}; }
};

template <class T>
Operand<std::remove_const_t<T>> operand(MatrixView<T, Host> v) {
  return {v.data, v.rows, v.cols, v.stride, false};
}
template <class T>
Operand<std::remove_const_t<T>> operand(Transposed<T, Host> v) {
  return {v.base.data, v.base.cols, v.base.rows, v.base.stride, true};
}

template <class T>
using EigenRows = Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, Eigen::Unaligned,
                             Eigen::OuterStride<>>;
template <class T>
using EigenConstRows = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>,
                                  Eigen::Unaligned, Eigen::OuterStride<>>;

/// C = beta C, where beta = 0 never reads C.
template <class T>
void scale_rows(double beta, MatrixView<T, Host> c) {
  if (beta == 1) return;
  for (index_t i = 0; i < c.rows; ++i) {
    T* row = c.data + i * c.stride;
    if (beta == 0) {
      std::fill_n(row, c.cols, T{});
    } else {
      for (index_t j = 0; j < c.cols; ++j) row[j] = T(static_cast<compute_t<T>>(beta) * compute_t<T>(row[j]));
    }
  }
}

#if DELTAW_CBLAS
// C = alpha A B + beta C in one type through the BLAS; sizes are checked against its int before anything is written.
template <class T>
void product(double alpha, Operand<T> a, Operand<T> b, double beta, MatrixView<T, Host> c) {
  constexpr index_t limit = std::numeric_limits<int>::max();
  for (index_t size : {c.rows, c.cols, a.cols, a.stride, b.stride, c.stride})
    if (size > limit) raise_mismatch<ShapeError>("gemm", "size for BLAS", size, "at most " + std::to_string(limit));
  const auto flag = [](bool transposed) { return transposed ? CblasTrans : CblasNoTrans; };
  const auto n = [](index_t size) { return static_cast<int>(size); };
  const auto leading = [&](index_t stride, index_t cols) { return n(std::max<index_t>({stride, cols, 1})); };
  const int lda = leading(a.stride, a.transposed ? a.rows : a.cols);
  const int ldb = leading(b.stride, b.transposed ? b.rows : b.cols);
  const int ldc = leading(c.stride, c.cols);
  if (c.rows == 1) {  // reads B once, where a general product first copies it into blocks
    scale_rows(beta, c);
    const int step = a.transposed ? leading(a.stride, 1) : 1;
    const auto stored = b.transposed ? CblasNoTrans : CblasTrans;
    const int rows = n(b.transposed ? b.cols : b.rows), cols = n(b.transposed ? b.rows : b.cols);
    if constexpr (std::is_same_v<T, float>) {
      cblas_sgemv(CblasRowMajor, stored, rows, cols, static_cast<float>(alpha), b.data, ldb, a.data, step, 1, c.data,
                  1);
    } else {
      cblas_dgemv(CblasRowMajor, stored, rows, cols, alpha, b.data, ldb, a.data, step, 1, c.data, 1);
    }
    return;
  }
  if constexpr (std::is_same_v<T, float>) {
    cblas_sgemm(CblasRowMajor, flag(a.transposed), flag(b.transposed), n(c.rows), n(c.cols), n(a.cols),
                static_cast<float>(alpha), a.data, lda, b.data, ldb, static_cast<float>(beta), c.data, ldc);
  } else {
    cblas_dgemm(CblasRowMajor, flag(a.transposed), flag(b.transposed), n(c.rows), n(c.cols), n(a.cols), alpha, a.data,
                lda, b.data, ldb, beta, c.data, ldc);
  }
}
#else
// C = alpha A B + beta C in one type through Eigen: four products a type and always `+=`, so that little is compiled.
template <class T>
void product(double alpha, Operand<T> a, Operand<T> b, double beta, MatrixView<T, Host> c) {
  scale_rows(beta, c);
  const auto stored = [](const Operand<T>& o) {
    return EigenConstRows<T>(o.data, o.transposed ? o.cols : o.rows, o.transposed ? o.rows : o.cols,
                             Eigen::OuterStride<>(o.stride));
  };
  const auto factor = static_cast<T>(alpha);
  EigenRows<T> out(c.data, c.rows, c.cols, Eigen::OuterStride<>(c.stride));
  const auto left = stored(a), right = stored(b);
  if (a.transposed && b.transposed) {
    out.noalias() += factor * (left.transpose() * right.transpose());
  } else if (a.transposed) {
    out.noalias() += factor * (left.transpose() * right);
  } else if (b.transposed) {
    out.noalias() += factor * (left * right.transpose());
  } else {
    out.noalias() += factor * (left * right);
  }
}
#endif

/// `o` itself where it is of type C already, else its values converted into the arena.
template <class C, class T>
Operand<C> converted(Arena<Host>& arena, Operand<T> o) {
  if constexpr (std::is_same_v<C, T>) {
    return o;
  } else {
    const index_t rows = o.transposed ? o.cols : o.rows, cols = o.transposed ? o.rows : o.cols;
    auto tile = arena.template take<C>(rows, cols);
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < cols; ++j) tile.data[i * cols + j] = static_cast<C>(o.data[i * o.stride + j]);
    return {tile.data, o.rows, o.cols, cols, o.transposed};
  }
}

inline constexpr index_t tile_size = 256;  ///< no tile is larger, either way

/// C = alpha A B + beta C for any mix of types: tiles of at most 256 x 256 are converted to the wider type.
template <class TA, class TB, class TC>
void mixed_product(Arena<Host>& arena, double alpha, Operand<TA> a, Operand<TB> b, double beta,
                   MatrixView<TC, Host> c) {
  using C = std::common_type_t<compute_t<TA>, compute_t<TB>, compute_t<TC>>;
  constexpr bool same_a = std::is_same_v<C, TA>, same_b = std::is_same_v<C, TB>, same_c = std::is_same_v<C, TC>;
  const index_t row_step = same_a && same_c ? c.rows : tile_size;
  const index_t col_step = same_b && same_c ? c.cols : tile_size;
  const index_t inner_step = same_a && same_b ? a.cols : tile_size;
  for (index_t j = 0; j < c.cols; j += col_step)
    for (index_t i = 0; i < c.rows; i += row_step) {
      Arena<Host>::Mark mark(arena);
      const index_t rows = std::min(row_step, c.rows - i), cols = std::min(col_step, c.cols - j);
      const auto block = c.row_range(i, rows).col_range(j, cols);
      const auto sum = [&] {
        if constexpr (same_c) return block;
        if constexpr (!same_c) return arena.template take<C>(rows, cols);
      }();
      for (index_t k = 0; k < a.cols; k += inner_step) {
        Arena<Host>::Mark tile(arena);
        const index_t inner = std::min(inner_step, a.cols - k);
        const auto left = converted<C>(arena, a.rows_from(i, rows).cols_from(k, inner));
        const auto right = converted<C>(arena, b.rows_from(k, inner).cols_from(j, cols));
        product<C>(alpha, left, right, k > 0 ? 1 : same_c ? beta : 0, sum);
      }
      if constexpr (!same_c)
        for (index_t u = 0; u < rows; ++u)
          for (index_t v = 0; v < cols; ++v)
            block(u, v) = TC(beta == 0 ? sum(u, v) : sum(u, v) + static_cast<C>(beta) * C(block(u, v)));
    }
}

/// C = alpha A B + beta C. Shapes are checked, C may share no memory with A or B, and beta = 0 never reads C.
template <class TA, class TB, class TC>
void gemm(Arena<Host>& arena, double alpha, Operand<TA> a, Operand<TB> b, double beta, MatrixView<TC, Host> c) {
  const ConstMatrixView<TA, Host> a_view = a.stored();
  const ConstMatrixView<TB, Host> b_view = b.stored();
  if (a.cols != b.rows) raise_mismatch<ShapeError>("gemm", "b.rows", b.rows, std::to_string(a.cols));
  check_view("gemm", "a", a_view, a_view.rows, a_view.cols);
  check_view("gemm", "b", b_view, b_view.rows, b_view.cols);
  check_view("gemm", "c", c, a.rows, b.cols);
  check_no_alias("gemm", "a", a_view, "c", c);
  check_no_alias("gemm", "b", b_view, "c", c);
  if (c.empty()) return;
  if (a.cols == 0 || alpha == 0) return scale_rows(beta, c);
  if constexpr (std::is_same_v<TA, TB> && std::is_same_v<TA, TC> && !is_half<TA>) {
    product<TA>(alpha, a, b, beta, c);
  } else {
    mixed_product(arena, alpha, a, b, beta, c);
  }
}

}  // namespace cpu_detail
}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
