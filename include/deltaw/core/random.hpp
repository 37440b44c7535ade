#pragma once
// Counter-based random numbers: each number is a function of (key, row, column), never of the order of calls, so every
// backend, shard and tile gets the same one. Philox4x32-10: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "deltaw/core/config.hpp"

namespace deltaw {

/// 128 bits as four words (std::array has no device code).
struct PhiloxBlock {
  std::uint32_t words[4];
  DELTAW_HD constexpr std::uint32_t operator[](std::size_t i) const { return words[i]; }
  friend constexpr bool operator==(const PhiloxBlock&, const PhiloxBlock&) = default;
};

/// The Philox4x32-10 block cipher: 10 rounds over a 128-bit counter with a 64-bit key.
DELTAW_HD constexpr PhiloxBlock philox(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// A 64-bit key; `fold` derives independent keys, so that (seed, layer, step, ...) name one stream each.
struct RandomKey {
  std::uint64_t value = 0;

  DELTAW_HD constexpr RandomKey fold(std::uint64_t data) const {
    const PhiloxBlock b = block(data, 0x64656c7461577631u);  // the row no matrix reaches: "deltaWv1"
    return {b[0] | static_cast<std::uint64_t>(b[1]) << 32};
  }
  /// Four 32-bit numbers: those of columns 4 * column_block ... 4 * column_block + 3 in `row`.
  DELTAW_HD constexpr PhiloxBlock block(std::uint64_t column_block, std::uint64_t row) const {
    return philox({{static_cast<std::uint32_t>(column_block), static_cast<std::uint32_t>(column_block >> 32),
                    static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(row >> 32)}},
                  static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32));
  }
};

/// The key of one call's masks. It is folded where the numbers are drawn, since a captured graph counts its steps there.
struct CallKey {
  RandomKey base;
  std::uint64_t step = 0, micro_batch = 0;

  DELTAW_HD constexpr RandomKey key(std::uint64_t further_steps = 0) const {
    return base.fold(step + further_steps).fold(micro_batch);
  }
};

/// A name as a number to fold into a key (FNV-1a, 64 bits).
constexpr std::uint64_t name_hash(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// Where a view lies in the whole matrix that the random numbers belong to (shards, tiles).
struct RandomOrigin {
  std::uint64_t row = 0;
  std::uint64_t col = 0;
};

/// Uniform in [0, 1): the top 24 bits times 2^-24, so float and double get the very same number.
DELTAW_HD constexpr double uniform01(std::uint32_t bits) { return static_cast<double>(bits >> 8) * 0x1p-24; }

/// Random matrices U_0, U_1, ... that are drawn where they are used and never stored: element (i, j) of U_n is the number of
/// `fill_uniform` in [-1, 1) under `key`, at row first + i row_step + j and column n. So one block of Philox has an element of
/// four matrices, and all of them together are one filled matrix, elements x matrices, for who would rather store them.
struct RandomBases {
  RandomKey key;
  std::uint64_t first = 0;     ///< of the element (0, 0): not 0 where a view is a part of the whole
  std::uint64_t row_step = 0;  ///< columns of the whole

  template <class Index>
  DELTAW_HD constexpr std::uint64_t element(Index i, Index j) const {
    return first + static_cast<std::uint64_t>(i) * row_step + static_cast<std::uint64_t>(j);
  }
};

/// 2^23 times that number: a whole one, which float holds exactly.
DELTAW_HD constexpr std::int32_t signed24(std::uint32_t bits) {
  return static_cast<std::int32_t>(bits ^ 0x80000000u) >> 8;
}

namespace detail {

// log(x) for x in (0, 1), by explicit fma only: the same bits wherever fma, + and / round correctly, whatever a
// compiler contracts. x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).
DELTAW_HD inline double fixed_log(double x) {
  const auto bits = bit_copy<std::uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = bit_copy<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double sum = 1.0 / 23;
  for (int n = 21; n >= 1; n -= 2) sum = std::fma(sum, s2, 1.0 / n);
  return std::fma(static_cast<double>(exponent), 0.6931471805599453, 2 * s * sum);
}

template <std::size_t N>
DELTAW_HD inline double polynomial(const double (&c)[N], double x) {
  double sum = c[N - 1];
  for (std::size_t i = N - 1; i-- > 0;) sum = std::fma(sum, x, c[i]);
  return sum;
}

}  // namespace detail

/// Standard normal by the inverse of the distribution function at (bits + 1/2) * 2^-32 (Wichura, "The Percentage Points of
/// the Normal Distribution", Applied Statistics 37, 1988, AS 241): no libm, so no platform differs; |z| < 6.34.
DELTAW_HD inline double normal01(std::uint32_t bits) {
  constexpr double a[] = {3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
                          45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727};
  constexpr double b[] = {1.0,
                          42.313330701600911252,
                          687.18700749205790830,
                          5394.1960214247511077,
                          21213.794301586595867,
                          39307.895800092710610,
                          28729.085735721942674,
                          5226.4952788528545610};
  constexpr double c[] = {1.42343711074968357734,   4.63033784615654529590,   5.76949722146069140550,
                          3.64784832476320460504,   1.27045825245236838258,   0.241780725177450611770,
                          0.0227238449892691845833, 7.74545014278341407640e-4};
  constexpr double d[] = {1.0,
                          2.05319162663775882187,
                          1.67638483018380384940,
                          0.689767334985100004550,
                          0.148103976427480074590,
                          0.0151986665636164571966,
                          5.47593808499534494600e-4,
                          1.05075007164441684324e-9};
  constexpr double e[] = {6.65790464350110377720,    5.46378491116411436990,   1.78482653991729133580,
                          0.296560571828504891230,   0.0265321895265761230930, 0.00124266094738807843860,
                          2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double f[] = {1.0,
                          0.599832206555887937690,
                          0.136929880922735805310,
                          0.0148753612908506148525,
                          7.86869131145613259100e-4,
                          1.84631831751005468180e-5,
                          1.42151175831644588870e-7,
                          2.04426310338993978564e-15};
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-32;
  const double q = u - 0.5;
  if (q <= 0.425 && q >= -0.425) {
    const double r = std::fma(-q, q, 0.180625);
    return q * (detail::polynomial(a, r) / detail::polynomial(b, r));
  }
  const double r = std::sqrt(-detail::fixed_log(q < 0 ? u : 1 - u));
  const double z = r <= 5 ? detail::polynomial(c, r - 1.6) / detail::polynomial(d, r - 1.6)
                          : detail::polynomial(e, r - 5) / detail::polynomial(f, r - 5);
  return q < 0 ? -z : z;
}

}  // namespace deltaw
