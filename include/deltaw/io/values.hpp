#pragma once
// Values of parameters on their way to and from files: whatever is wrong with them is found before anything is written.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
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

/// Adds the matrix to the file as `shape`; it must keep its memory and its values until the file is written.
template <class T>
void add_values(SafetensorsWriter& writer, std::string name, std::vector<std::uint64_t> shape,
                ConstMatrixView<T, Host> values) {
  check_finite_values("save", name, values);
  if (values.contiguous())
    return writer.add(std::move(name), std::move(shape),
                      std::span<const T>(values.data, static_cast<std::size_t>(values.size())));
  std::vector<T> packed;
  for (index_t i = 0; i < values.rows; ++i)
    packed.insert(packed.end(), values.data + i * values.stride, values.data + i * values.stride + values.cols);
  writer.add(std::move(name), std::move(shape), std::move(packed));
}

/// Packed rows into a matrix of just as many elements.
template <class T>
void unpack(std::span<const T> packed, MatrixView<T, Host> values) {
  auto next = packed.begin();
  for (index_t i = 0; i < values.rows; ++i)
    for (index_t j = 0; j < values.cols; ++j) values(i, j) = *next++;
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
