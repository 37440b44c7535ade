#pragma once
// 16-bit storage types. They hold bits and convert; arithmetic is done in float by the backend.

#include <cstdint>
#include <type_traits>

#include "deltaw/core/config.hpp"

namespace deltaw {

namespace detail {
/// A float whose last bit is set where anything was lost, so that rounding it again rounds `value` itself correctly.
DELTAW_HD constexpr float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  const double back = nearest;
  const auto bits = bit_copy<std::uint32_t>(nearest);
  if (back == value || value != value || (bits & 1u) != 0) return nearest;
  const bool away = (back > value) == (value > 0);  // the float is farther from 0 than the value
  return bit_copy<float>(away ? bits - 1 : bits + 1);
}
}  // namespace detail

/// bfloat16: the upper half of a float, rounded to nearest even; NaN stays NaN.
struct bf16 {
  std::uint16_t bits = 0;

  constexpr bf16() = default;
  DELTAW_HD constexpr explicit bf16(float value) : bits(round(bit_copy<std::uint32_t>(value))) {}
  DELTAW_HD constexpr explicit bf16(double value) : bf16(detail::round_to_odd(value)) {}
  DELTAW_HD constexpr operator float() const { return bit_copy<float>(static_cast<std::uint32_t>(bits) << 16); }
  DELTAW_HD static constexpr bf16 from_bits(std::uint16_t b) {
    bf16 h;
    h.bits = b;
    return h;
  }

 private:
  DELTAW_HD static constexpr std::uint16_t round(std::uint32_t u) {
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t nearest_even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u : nearest_even);
  }
};

/// IEEE binary16, rounded to nearest even, with subnormals; NaN stays NaN.
struct f16 {
  std::uint16_t bits = 0;

  constexpr f16() = default;
  DELTAW_HD constexpr explicit f16(float value) : bits(round(value)) {}
  DELTAW_HD constexpr explicit f16(double value) : f16(detail::round_to_odd(value)) {}
  DELTAW_HD constexpr operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7fffu;
    const std::uint32_t exponent = magnitude >> 10;
    if (exponent == 0)  // zero and subnormals: magnitude * 2^-24 is exact
      return bit_copy<float>(bit_copy<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f) | sign);
    const std::uint32_t rebased = exponent == 31 ? 0x38000000u + 0x38000000u : 0x38000000u;
    return bit_copy<float>(sign | ((magnitude << 13) + rebased));
  }
  DELTAW_HD static constexpr f16 from_bits(std::uint16_t b) {
    f16 h;
    h.bits = b;
    return h;
  }

 private:
  DELTAW_HD static constexpr std::uint16_t round(float value) {
    const auto u = bit_copy<std::uint32_t>(value);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude >= 0x7f800000u)
      return static_cast<std::uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above: infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 aligns the last bit to 2^-24 and rounds to even
      const float shifted = bit_copy<float>(magnitude) + 0.5f;
      return static_cast<std::uint16_t>(sign | (bit_copy<std::uint32_t>(shifted) - 0x3f000000u));
    }
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
};

template <class T>
inline constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

template <class T>
inline constexpr bool is_scalar = std::is_floating_point_v<T> || is_half<T>;

/// The type arithmetic on T is carried out in: float for 16-bit storage, T itself otherwise.
template <class T>
using compute_t = std::conditional_t<is_half<T>, float, T>;

}  // namespace deltaw
