#pragma once
// Views over memory that somebody else owns. All matrices are row-major: element (i, j) is data[i * stride + j].

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "deltaw/core/error.hpp"

namespace deltaw {

using index_t = std::ptrdiff_t;

struct Host {};    ///< memory that the CPU reads
struct Device {};  ///< memory that a GPU reads; a host pointer never converts to it

/// Pointer, rows, columns and row stride (in elements). Trivially copyable, never owns. A vector is a matrix of one row.
template <class T, class Space = Host>
struct MatrixView {
  using value_type = std::remove_const_t<T>;
  using space = Space;

  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;

  constexpr MatrixView() = default;
  constexpr MatrixView(T* data_, index_t rows_, index_t cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  constexpr MatrixView(T* data_, index_t rows_, index_t cols_, index_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  /// A view that may write converts to one that only reads.
  template <class U>
  requires(std::is_same_v<const U, T>) constexpr MatrixView(const MatrixView<U, Space>& other)
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  constexpr bool empty() const { return rows == 0 || cols == 0; }
  constexpr index_t size() const { return rows * cols; }
  constexpr bool contiguous() const { return stride == cols || rows <= 1; }
  constexpr T& operator()(index_t row, index_t col) const requires(std::is_same_v<Space, Host>) {
    return data[row * stride + col];
  }

  /// Rows [first, first + count), all columns.
  constexpr MatrixView row_range(index_t first, index_t count) const {
    return {data + first * stride, count, cols, stride};
  }
  /// Columns [first, first + count), all rows.
  constexpr MatrixView col_range(index_t first, index_t count) const { return {data + first, rows, count, stride}; }
};

template <class T, class Space = Host>
using ConstMatrixView = MatrixView<const T, Space>;

/// The transpose of a view, as an operand of `gemm`: nothing moves.
template <class T, class Space>
struct Transposed {
  MatrixView<T, Space> base;
};

template <class T, class Space>
constexpr Transposed<T, Space> t(MatrixView<T, Space> view) {
  return {view};
}

/// How a batch of equal products lies in memory: operand k begins k times its step after the first, in elements. A step of
/// 0 uses one operand for all.
struct BatchSteps {
  index_t count = 1;
  index_t a = 0, b = 0, c = 0;
};

/// The same view `elements` further in memory.
template <class T, class Space>
constexpr MatrixView<T, Space> moved(MatrixView<T, Space> view, index_t elements) {
  return {view.data + elements, view.rows, view.cols, view.stride};
}
template <class T, class Space>
constexpr Transposed<T, Space> moved(Transposed<T, Space> view, index_t elements) {
  return {moved(view.base, elements)};
}

/// A vector of `size` elements as a view of one row.
template <class T, class Space = Host>
constexpr MatrixView<T, Space> vector_view(T* data, index_t size) {
  return {data, 1, size, size};
}

/// What this library calls an Eigen matrix, without naming Eigen: a type that knows its own storage order.
template <class M>
concept DenseMatrixLike = requires(M& m) {
  m.data();
  m.rows();
  m.cols();
  m.outerStride();
  { M::IsRowMajor } -> std::convertible_to<bool>;
};

namespace detail {
template <DenseMatrixLike M>
void check_inner_stride(std::string_view where, M& matrix, std::string_view what) {
  if constexpr (requires { matrix.innerStride(); })
    if (matrix.innerStride() != 1)
      raise_mismatch<ShapeError>(where, "inner stride", matrix.innerStride(),
                                 std::string("1: the elements of a ").append(what).append(" side by side"));
}
}  // namespace detail

/// A row-major matrix of another library (Eigen::Matrix<T, -1, -1, RowMajor>, a Map or a Block) as a view.
template <DenseMatrixLike M>
auto view(M& matrix) {
  static_assert(
      M::IsRowMajor,
      "deltaw::view wants a row-major matrix. A column-major matrix of features x tokens is the same memory as "
      "our tokens x features: use deltaw::view_transposed. A column-major weight W (out x in) is not: store it "
      "row-major or copy it once.");
  detail::check_inner_stride("view", matrix, "row");
  return MatrixView<std::remove_pointer_t<decltype(matrix.data())>>{matrix.data(), matrix.rows(), matrix.cols(),
                                                                    matrix.outerStride()};
}

/// A column-major matrix of features x tokens seen as tokens x features: the same memory, no copy.
template <DenseMatrixLike M>
auto view_transposed(M& matrix) {
  static_assert(!M::IsRowMajor,
                "deltaw::view_transposed wants a column-major matrix of features x tokens; for a row-major one use "
                "deltaw::view");
  detail::check_inner_stride("view_transposed", matrix, "column");
  return MatrixView<std::remove_pointer_t<decltype(matrix.data())>>{matrix.data(), matrix.cols(), matrix.rows(),
                                                                    matrix.outerStride()};
}

/// Throws unless the view is `rows` x `cols`, has a legal stride and is not null. `name` stands in the message.
template <class T, class Space>
void check_view(std::string_view where, std::string_view name, MatrixView<T, Space> v, index_t rows, index_t cols,
                std::string_view rows_name = "rows", std::string_view cols_name = "columns") {
  auto label = [&](std::string_view part, std::string_view meaning) {
    return std::string(name).append(".").append(part).append(" (").append(meaning).append(")");
  };
  if (v.rows < 0) raise_mismatch<ShapeError>(where, label("rows", rows_name), v.rows, "0 or more");
  if (v.cols < 0) raise_mismatch<ShapeError>(where, label("cols", cols_name), v.cols, "0 or more");
  if (v.rows != rows) raise_mismatch<ShapeError>(where, label("rows", rows_name), v.rows, std::to_string(rows));
  if (v.cols != cols) raise_mismatch<ShapeError>(where, label("cols", cols_name), v.cols, std::to_string(cols));
  if (v.rows > 1 && v.stride < v.cols)
    raise_mismatch<ShapeError>(where, label("stride", "elements"), v.stride, "at least " + std::to_string(v.cols));
  if (!v.empty() && v.data == nullptr)
    raise_mismatch<ShapeError>(where, label("data", "pointer"), "null", "memory for " + std::to_string(v.size()));
}

/// True where the two views touch a common byte range. Column blocks of one matrix count as overlapping only if they do.
template <class T, class U, class Space>
bool overlap(MatrixView<T, Space> a, MatrixView<U, Space> b) {
  if (a.empty() || b.empty()) return false;
  auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  auto last = [&](auto v) { return address(v.data + (v.rows - 1) * v.stride + v.cols); };
  if (last(a) <= address(b.data) || last(b) <= address(a.data)) return false;
  const auto a_stride = static_cast<std::uintptr_t>(a.stride) * sizeof(T);
  const auto b_stride = static_cast<std::uintptr_t>(b.stride) * sizeof(U);
  const bool one_grid = a.rows == 1 || b.rows == 1 || a_stride == b_stride;
  const std::uintptr_t stride = a.rows > 1 ? a_stride : b.rows > 1 ? b_stride : 0;
  if (!one_grid || stride == 0) return true;
  const std::uintptr_t shift = (address(b.data) + stride - address(a.data) % stride) % stride;
  const auto a_width = static_cast<std::uintptr_t>(a.cols) * sizeof(T);
  const auto b_width = static_cast<std::uintptr_t>(b.cols) * sizeof(U);
  return shift < a_width || shift + b_width > stride;
}

template <class T, class U, class Space>
void check_no_alias(std::string_view where, std::string_view a_name, MatrixView<T, Space> a, std::string_view b_name,
                    MatrixView<U, Space> b) {
  if (overlap(a, b))
    raise<AliasError>(where, std::string(a_name).append(" and ").append(b_name).append(
                                 ": got views that share memory, want separate ones"));
}

/// That a batch counts forwards and that its outputs, which start with `c`, do not overlap.
template <class T, class Space>
void check_batch(std::string_view where, const BatchSteps& steps, MatrixView<T, Space> c) {
  if (steps.count < 0) raise_mismatch<ShapeError>(where, "steps.count", steps.count, "0 or more");
  if (steps.a < 0) raise_mismatch<ShapeError>(where, "steps.a", steps.a, "0 or more");
  if (steps.b < 0) raise_mismatch<ShapeError>(where, "steps.b", steps.b, "0 or more");
  bool apart = steps.c > 0 || steps.count <= 1 || c.empty();
  for (index_t k = 1; apart && !c.empty() && k < steps.count; ++k) apart = !overlap(c, moved(c, k * steps.c));
  if (!apart) raise_mismatch<AliasError>(where, "steps.c", steps.c, "a step that keeps the outputs apart");
}

}  // namespace deltaw
