#pragma once
// New device memory is filled with one quiet NaN, the same in every 16-bit half, so that it is a NaN in all four scalar
// types. Arithmetic keeps the bits of a NaN that it reads, and conversions shorten or lengthen them in a known way: a value
// that comes from unwritten memory is recognised when it reaches a library call or the host.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace standin {

inline constexpr std::uint16_t unwritten_half = 0xfff9u;
inline constexpr std::uint32_t word_of_nothing = 0xffffffffu;  // a NaN: what stands alone is believed

/// Whether these four bytes came out of unwritten memory: as it lies there, or after a conversion between the types.
inline bool is_unwritten_word(std::uint32_t word) {
  return word == 0xfff9fff9u      // any type as it lies; two neighbours that float rounded to bf16
         || word == 0xfff90000u   // bf16 -> float
         || word == 0xffff2000u   // f16 -> float; bf16 -> double, the upper half
         || word == 0xffff3fffu   // float -> double, the upper half
         || word == 0xffcfffcfu;  // double -> float
}

/// What lies beside an allocation is a NaN too, of a few that are never new memory's: two neighbours rarely have the same.
inline constexpr std::uint16_t first_canary_half = 0xfff0u, canary_halves = 8;
inline bool is_canary_word(std::uint32_t word) {
  const std::uint32_t half = word >> 16;
  return half == (word & 0xffffu) && half >= first_canary_half && half < first_canary_half + canary_halves;
}

/// The lower half of a double may be any word, and is one of the converted ones by chance where sums are short: there the
/// word beside it has to be such a NaN too. (A lone float at that place passes, and is a NaN.)
inline bool is_found(std::uint32_t word, bool lower_half, std::uint32_t beside) {
  const auto is_nan = [](std::uint32_t w) { return (w & 0x7fffffffu) > 0x7f800000u; };
  return (is_unwritten_word(word) || is_canary_word(word)) && (!lower_half || word == 0xfff9fff9u || is_nan(beside));
}

/// Offset of the first value among `bytes` bytes at a multiple of four that is unwritten, or was read beside an
/// allocation; `bytes` where there is none.
inline std::size_t find_unwritten(const void* begin, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(begin);
  for (std::size_t i = 0; i + 4 <= bytes; i += 4) {
    std::uint32_t word, beside = word_of_nothing;
    std::memcpy(&word, p + i, 4);
    if ((word >> 16) < 0xffc0u) continue;
    const bool lower_half = reinterpret_cast<std::uintptr_t>(p + i) % 8 == 0;
    if (i + 8 <= bytes) std::memcpy(&beside, p + i + 4, 4);
    if (is_found(word, lower_half, beside)) return i;
  }
  return bytes;
}

/// Whether one element, as it lies in memory, was never written.
template <std::size_t Size>
bool is_unwritten_element(const void* element) {
  std::uint16_t halves[Size / 2];
  std::memcpy(halves, element, Size);
  for (std::uint16_t half : halves)
    if (half != unwritten_half) return false;
  return true;
}

}  // namespace standin
