#pragma once
// Values of parameters on their way to and from files: whatever is wrong with them is found before anything is written.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/core/memory.hpp"
#include "deltaw/core/view.hpp"
#include "deltaw/io/safetensors.hpp"

namespace deltaw::io::detail {

/// Throws NonFiniteError, naming the element, if the matrix holds NaN or infinity.
template <class T>
void check_finite_values(std::string_view where, std::string_view name, ConstMatrixView<T, Host> values) {
  for (index_t i = 0; i < values.rows; ++i)
    for (index_t j = 0; j < values.cols; ++j)
      if (!is_finite_bits(values(i, j)))
        raise_mismatch<NonFiniteError>(
            where, "element (" + std::to_string(i) + ", " + std::to_string(j) + ") of " + quote(name),
            std::to_string(values(i, j)), "a finite number");
}

/// The rows one after the other, in memory of the host.
template <class T, class Space>
std::vector<T> packed_rows(ConstMatrixView<T, Space> values) {
  std::vector<T> packed(static_cast<std::size_t>(values.size()));
  const index_t rows = values.contiguous() ? std::min<index_t>(values.rows, 1) : values.rows;
  const index_t cols = values.contiguous() ? values.size() : values.cols;
  for (index_t i = 0; i < rows && cols > 0; ++i)
    Memory<Space>::to_host(packed.data() + i * cols, values.data + i * values.stride,
                           static_cast<std::size_t>(cols) * sizeof(T));
  return packed;
}

/// Adds the matrix to the file as `shape`; it must keep its memory and its values until the file is written.
template <class T, class Space>
void add_values(SafetensorsWriter& writer, std::string name, std::vector<std::uint64_t> shape,
                ConstMatrixView<T, Space> values) {
  if constexpr (std::is_same_v<Space, Host>) {
    check_finite_values("save", name, values);
    if (values.contiguous())
      return writer.add(std::move(name), std::move(shape),
                        std::span<const T>(values.data, static_cast<std::size_t>(values.size())));
    writer.add(std::move(name), std::move(shape), packed_rows(values));
  } else {
    auto packed = packed_rows(values);
    check_finite_values("save", name, ConstMatrixView<T, Host>{packed.data(), values.rows, values.cols});
    writer.add(std::move(name), std::move(shape), std::move(packed));
  }
}

/// Packed rows into a matrix of just as many elements.
template <class T, class Space>
void unpack(std::span<const T> packed, MatrixView<T, Space> values) {
  const index_t rows = values.contiguous() ? std::min<index_t>(values.rows, 1) : values.rows;
  const index_t cols = values.contiguous() ? values.size() : values.cols;
  for (index_t i = 0; i < rows && cols > 0; ++i)
    Memory<Space>::from_host(values.data + i * values.stride, packed.data() + i * cols,
                             static_cast<std::size_t>(cols) * sizeof(T));
}

/// The first few names, for messages: 'a', 'b' and 3 more.
inline std::string first_names(std::span<const std::string> names) {
  constexpr std::size_t shown_names = 3;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < shown_names; ++i)
    text.append(i == 0 ? "" : ", ").append(quote(names[i]));
  if (names.size() > shown_names)
    text.append(" and ").append(std::to_string(names.size() - shown_names)).append(" more");
  return text;
}

}  // namespace deltaw::io::detail
