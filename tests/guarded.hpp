#pragma once
// Matrices for tests of primitives: strided views inside memory that is filled with NaN. Who reads beside the view gets
// NaN into the result; who writes there is found by `intact`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"
#include "tested_backend.hpp"

namespace deltaw_tests {

/// Uniform in [-1, 1) by a linear congruential generator, which has nothing to do with the library's own.
class Numbers {
 public:
  explicit Numbers(std::uint32_t seed) : state_(seed * 2654435761u + 1) {}
  double operator()() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<double>(state_ >> 8) * 0x1p-23 - 1;
  }

 private:
  std::uint32_t state_;
};

/// The bits of every element, row after row, in hexadecimal: two views hold the same bits where these are equal.
template <class T, class Space>
std::string bits_of(dw::MatrixView<T, Space> v) {
  constexpr const char* digits = "0123456789abcdef";
  const auto values = to_host(v);
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  std::string text(2 * values.size() * sizeof(T), '0');
  for (std::size_t k = 0; k < text.size() / 2; ++k) {
    text[2 * k] = digits[bytes[k] / 16];
    text[2 * k + 1] = digits[bytes[k] % 16];
  }
  return text;
}

/// In memory of the tested backend; `at` and `intact` read a copy of it on the host.
template <class T, class Space = Tested::Space>
class Guarded {
 public:
  Guarded() : Guarded(0, 0) {}
  /// rows x cols, `gap` elements between the rows, the first element at `offset` after a guard of 64 elements.
  Guarded(index_t rows, index_t cols, index_t gap = 0, index_t offset = 0)
      : rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        first_(guard + offset),
        memory_(1, first_ + rows * stride_ + guard) {
    from_host(std::vector<T>(static_cast<std::size_t>(memory_.size()), guard_value()), memory_.view());
    fill_with(0);
  }

  dw::MatrixView<T, Space> view() {
    stale_ = true;
    return {memory_.view().data + first_, rows_, cols_, stride_};
  }
  dw::ConstMatrixView<T, Space> view() const { return {memory_.view().data + first_, rows_, cols_, stride_}; }
  dw::ConstMatrixView<T, Space> const_view() const { return view(); }
  double at(index_t i, index_t j) const { return static_cast<double>(elements()[first_ + i * stride_ + j]); }
  void set(index_t i, index_t j, double value) {
    from_host(std::vector<T>{T(value)}, view().row_range(i, 1).col_range(j, 1));
  }

  Guarded& fill(std::uint32_t seed) {
    Numbers numbers(seed);
    return fill_from([&] { return T(numbers()); });
  }
  Guarded& fill_with(double constant) {
    return fill_from([&] { return T(constant); });
  }

  /// Nothing outside the view has been written.
  bool intact() const {
    const T expected = guard_value();
    const T* memory = elements();
    for (index_t at = 0; at < memory_.size(); ++at) {
      const index_t from_first = at - first_;
      const bool inside = from_first >= 0 && from_first < rows_ * stride_ && from_first % stride_ < cols_;
      if (!inside && std::memcmp(memory + at, &expected, sizeof(T)) != 0) return false;
    }
    return true;
  }

  /// The elements' bits, row after row.
  std::string bits() const { return bits_of(const_view()); }

 private:
  static constexpr index_t guard = 64;
  static T guard_value() { return T(std::numeric_limits<float>::quiet_NaN()); }

  template <class F>
  Guarded& fill_from(F next) {
    std::vector<T> values(static_cast<std::size_t>(rows_ * cols_));
    for (T& value : values) value = next();
    from_host(values, view());
    return *this;
  }
  const T* elements() const {
    if constexpr (std::is_same_v<Space, dw::Host>) {
      return memory_.view().data;
    } else {
      if (std::exchange(stale_, false)) host_ = to_host(memory_.view());
      return host_.data();
    }
  }

  index_t rows_, cols_, stride_, first_;
  dw::Tensor<T, Space> memory_;
  mutable std::vector<T> host_;  // of memory that the host cannot read
  mutable bool stale_ = true;    // `view` may have been written through since `host_` was read
};

/// The step from 1 to the next number of T.
template <class T>
constexpr double unit_in_last_place() {
  if constexpr (std::is_same_v<T, dw::bf16>) {
    return 0x1p-7;
  } else if constexpr (std::is_same_v<T, dw::f16>) {
    return 0x1p-10;
  } else {
    return static_cast<double>(std::numeric_limits<T>::epsilon());
  }
}

/// The step between the smallest numbers of T, where rounding is no longer relative.
template <class T>
constexpr double smallest_step() {
  return std::is_same_v<T, dw::f16> ? 0x1p-24 : std::is_same_v<T, double> ? 0 : 0x1p-133;
}

/// What one rounding of `value` to T may change.
template <class T>
double one_rounding(double value) {
  return 0.501 * std::max(unit_in_last_place<T>() * std::abs(value), smallest_step<T>());
}

/// A bound that NaN does not pass.
inline bool within(double got, double want, double tolerance) { return std::abs(got - want) <= tolerance; }

/// Sizes around every block and vector boundary.
inline const std::vector<index_t> boundary_sizes{0, 1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257};

}  // namespace deltaw_tests
