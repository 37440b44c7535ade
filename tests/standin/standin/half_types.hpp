#pragma once
// The 16-bit types: storage and conversions. Arithmetic on them is written in float by whoever wants it.

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16_raw {
  std::uint16_t x;
};
struct __half_raw {
  std::uint16_t x;
};

namespace standin {

inline std::uint16_t bf16_bits(float value) {
  std::uint32_t u;
  std::memcpy(&u, &value, 4);
  if (std::isnan(value)) return static_cast<std::uint16_t>(u >> 16 | 0x40u);
  const std::uint32_t low = u & 0xffffu;
  u >>= 16;
  if (low > 0x8000u || (low == 0x8000u && (u & 1u) != 0)) ++u;
  return static_cast<std::uint16_t>(u);
}
inline float bf16_value(std::uint16_t bits) {
  const std::uint32_t u = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &u, 4);
  return value;
}

/// By value, not by bits: the significand is scaled to an integer, whose rounding is that of the current mode.
inline std::uint16_t f16_bits(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000u : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7fffu);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude == 0) return sign;
  int exponent = std::ilogb(magnitude) < -14 ? -14 : std::ilogb(magnitude);
  auto significand = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  if (significand == 2048) significand = 1024, ++exponent;
  const std::uint32_t field = significand < 1024 ? 0 : static_cast<std::uint32_t>(exponent + 15);
  return static_cast<std::uint16_t>(sign | field << 10 | (significand & 1023u));
}
inline float f16_value(std::uint16_t bits) {
  const int field = bits >> 10 & 31;
  const auto significand = static_cast<float>(bits & 1023);
  if (field == 31 && significand != 0) {  // the payload of a NaN moves to the top of the longer one
    const std::uint32_t u = (bits & 0x8000u) << 16 | 0x7f800000u | (bits & 1023u) << 13;
    float nan;
    std::memcpy(&nan, &u, 4);
    return nan;
  }
  const float magnitude = field == 31  ? INFINITY
                          : field == 0 ? std::ldexp(significand, -24)
                                       : std::ldexp(1024 + significand, field - 25);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

}  // namespace standin

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(const __nv_bfloat16_raw& raw) : bits(raw.x) {}
  __nv_bfloat16(float value) : bits(standin::bf16_bits(value)) {}
  __nv_bfloat16(double value) : bits(standin::bf16_bits(static_cast<float>(value))) {}
  operator float() const { return standin::bf16_value(bits); }
};
struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(const __half_raw& raw) : bits(raw.x) {}
  __half(float value) : bits(standin::f16_bits(value)) {}
  __half(double value) : bits(standin::f16_bits(static_cast<float>(value))) {}
  operator float() const { return standin::f16_value(bits); }
};
using nv_bfloat16 = __nv_bfloat16;
using half = __half;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline std::uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(std::uint16_t bits) { return __nv_bfloat16_raw{bits}; }
inline __half __ushort_as_half(std::uint16_t bits) { return __half_raw{bits}; }
