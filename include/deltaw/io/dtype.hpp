#pragma once
// The element types that tensor files name, their sizes, and their conversion to the types that we compute with.

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "deltaw/core/error.hpp"
#include "deltaw/core/half.hpp"

namespace deltaw::io {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian, and read without swapping");

/// Element types of safetensors. The order is that of its own writer, which sorts tensors by it, largest first.
enum class Dtype : std::uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64
};

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  unsigned bits;
};

/// One row a dtype, in the order of the enumeration.
inline constexpr std::array dtypes{
    DtypeInfo{Dtype::BOOL, "BOOL", 8},
    DtypeInfo{Dtype::F4, "F4", 4},
    DtypeInfo{Dtype::F6_E2M3, "F6_E2M3", 6},
    DtypeInfo{Dtype::F6_E3M2, "F6_E3M2", 6},
    DtypeInfo{Dtype::U8, "U8", 8},
    DtypeInfo{Dtype::I8, "I8", 8},
    DtypeInfo{Dtype::F8_E5M2, "F8_E5M2", 8},
    DtypeInfo{Dtype::F8_E4M3, "F8_E4M3", 8},
    DtypeInfo{Dtype::F8_E8M0, "F8_E8M0", 8},
    DtypeInfo{Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8},
    DtypeInfo{Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8},
    DtypeInfo{Dtype::I16, "I16", 16},
    DtypeInfo{Dtype::U16, "U16", 16},
    DtypeInfo{Dtype::F16, "F16", 16},
    DtypeInfo{Dtype::BF16, "BF16", 16},
    DtypeInfo{Dtype::I32, "I32", 32},
    DtypeInfo{Dtype::U32, "U32", 32},
    DtypeInfo{Dtype::F32, "F32", 32},
    DtypeInfo{Dtype::C64, "C64", 64},
    DtypeInfo{Dtype::F64, "F64", 64},
    DtypeInfo{Dtype::I64, "I64", 64},
    DtypeInfo{Dtype::U64, "U64", 64},
};

constexpr const DtypeInfo& dtype_info(Dtype dtype) { return dtypes[static_cast<std::size_t>(dtype)]; }
constexpr std::string_view dtype_name(Dtype dtype) { return dtype_info(dtype).name; }
constexpr unsigned dtype_bits(Dtype dtype) { return dtype_info(dtype).bits; }

/// The dtype of that name, if there is one.
constexpr std::optional<Dtype> find_dtype(std::string_view name) {
  for (const DtypeInfo& row : dtypes)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

/// C++ types that files can hold: bool, integers of 8 to 64 bits, float, double, f16, bf16.
template <class T>
concept Storable = std::integral<T> || std::same_as<T, float> || std::same_as<T, double> || is_half<T>;

/// The dtype that holds a T bit by bit.
template <Storable T>
consteval Dtype dtype_of() {
  if constexpr (std::same_as<T, bool>) return Dtype::BOOL;
  if constexpr (std::same_as<T, double>) return Dtype::F64;
  if constexpr (std::same_as<T, float>) return Dtype::F32;
  if constexpr (std::same_as<T, f16>) return Dtype::F16;
  if constexpr (std::same_as<T, bf16>) return Dtype::BF16;
  constexpr bool is_unsigned = std::is_unsigned_v<T>;
  if constexpr (sizeof(T) == 1) return is_unsigned ? Dtype::U8 : Dtype::I8;
  if constexpr (sizeof(T) == 2) return is_unsigned ? Dtype::U16 : Dtype::I16;
  if constexpr (sizeof(T) == 4) return is_unsigned ? Dtype::U32 : Dtype::I32;
  return is_unsigned ? Dtype::U64 : Dtype::I64;
}

constexpr std::optional<std::uint64_t> checked_multiply(std::uint64_t a, std::uint64_t b) {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) return std::nullopt;
  return a * b;
}

/// The product of the sizes (1 for rank 0); nothing if it does not fit 64 bits.
constexpr std::optional<std::uint64_t> element_count(std::span<const std::uint64_t> shape) {
  std::optional<std::uint64_t> count = 1;
  for (const std::uint64_t size : shape)
    if (count) count = checked_multiply(*count, size);
  return count;
}

/// `[2, 3]`, for messages.
inline std::string shape_text(std::span<const std::uint64_t> shape) {
  constexpr std::size_t shown = 16;
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size() && i < shown; ++i)
    text.append(i == 0 ? "" : ", ").append(std::to_string(shape[i]));
  return text.append(shape.size() > shown ? ", ...]" : "]");
}

/// Bytes of a packed tensor. Throws E, naming `name`, if the size overflows or is no whole number of bytes.
template <class E>
std::uint64_t packed_bytes(std::string_view where, std::string_view name, Dtype dtype,
                           std::span<const std::uint64_t> shape) {
  const auto count = element_count(shape);
  const auto bits = count ? checked_multiply(*count, dtype_bits(dtype)) : std::nullopt;
  auto fail = [&](std::string_view want) {
    raise_mismatch<E>(where, name, std::string(dtype_name(dtype)).append(" ").append(shape_text(shape)), want);
  };
  if (!bits) fail("a size that 64 bits can count");
  if (*bits % 8 != 0) fail("a whole number of bytes");
  return *bits / 8;
}

/// Dtypes that `convert_elements` reads.
constexpr bool is_convertible(Dtype dtype) {
  return dtype == Dtype::F64 || dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
}

/// Calls use(index, value) for each element of packed F64, F32, F16 or BF16 `bytes`, as a T rounded to nearest (an F64
/// beyond the range of float becomes infinity). The bytes may lie at any address.
template <std::floating_point T, class Use>
void convert_elements(Dtype dtype, std::span<const std::byte> bytes, Use use) {
  auto as = [&]<class From>(From element) {
    for (std::size_t i = 0; i < bytes.size() / sizeof(From); ++i) {
      std::memcpy(&element, bytes.data() + i * sizeof(From), sizeof(From));
      use(i, static_cast<T>(element));
    }
  };
  if (dtype == Dtype::F64) as(double{});
  if (dtype == Dtype::F32) as(float{});
  if (dtype == Dtype::F16) as(f16{});
  if (dtype == Dtype::BF16) as(bf16{});
}

/// By the bits, so that it holds with -ffast-math.
template <std::floating_point T>
constexpr bool is_finite_bits(T value) {
  if constexpr (sizeof(T) == 4) return (std::bit_cast<std::uint32_t>(value) & 0x7f800000u) != 0x7f800000u;
  if constexpr (sizeof(T) == 8) return (~std::bit_cast<std::uint64_t>(value) & 0x7ff0000000000000u) != 0;
}

}  // namespace deltaw::io
