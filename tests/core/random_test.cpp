#include <Random123/philox.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <set>
#include <vector>

#include "catch.hpp"
#include "deltaw/core/random.hpp"
#include "known_random.hpp"

namespace dw = deltaw;
using deltaw_tests::known;

namespace {

// A generator of another kind (SplitMix64), for choosing test inputs.
struct SplitMix {
  std::uint64_t state = 1;
  std::uint64_t operator()() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint32_t word() { return static_cast<std::uint32_t>((*this)() >> 32); }
};

// Largest distance of fixed_log from the logarithm, in units in the last place.
double worst_log_error(double from, double to) {
  double worst = 0;
  for (double x = from; x < to; x *= 1.00003) {
    const long double exact = std::log(static_cast<long double>(x));
    const double size = std::abs(static_cast<double>(exact));
    const double ulp = std::nextafter(size, 1e300) - size;
    const double error = static_cast<double>(std::abs(dw::detail::fixed_log(x) - exact)) / ulp;
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

double correlation(dw::RandomKey a, dw::RandomKey b) {
  double sum = 0;
  constexpr int blocks = 20000;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const auto u = a.block(i, 0), v = b.block(i, 0);
    for (std::size_t w = 0; w < 4; ++w) sum += (dw::uniform01(u[w]) - 0.5) * (dw::uniform01(v[w]) - 0.5);
  }
  return 12 * sum / (4 * blocks);
}

}  // namespace

TEST_CASE("Philox gives the published answers") {
  CHECK(dw::philox({0, 0, 0, 0}, 0, 0) == dw::PhiloxBlock{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  constexpr std::uint32_t ones = 0xffffffffu;
  CHECK(dw::philox({ones, ones, ones, ones}, ones, ones) ==
        dw::PhiloxBlock{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(dw::philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u) ==
        dw::PhiloxBlock{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
  STATIC_REQUIRE(dw::philox({0, 0, 0, 0}, 0, 0)[0] == 0x6627e8d5u);
}

TEST_CASE("Philox equals Random123 on random counters and keys") {
  SplitMix random;
  int different = 0;
  for (int i = 0; i < 20000; ++i) {
    const dw::PhiloxBlock counter{random.word(), random.word(), random.word(), random.word()};
    const std::uint32_t key0 = random.word(), key1 = random.word();
    const philox4x32_ctr_t theirs =
        philox4x32_R(10, {{counter[0], counter[1], counter[2], counter[3]}}, {{key0, key1}});
    const auto ours = dw::philox(counter, key0, key1);
    for (std::size_t w = 0; w < 4; ++w) different += ours[w] == theirs.v[w] ? 0 : 1;
  }
  CHECK(different == 0);
}

TEST_CASE("a block is addressed by 64-bit row and column block") {
  const dw::RandomKey key{0x0123456789abcdefu};
  CHECK(key.block(0x1122334455667788u, 0x99aabbccddeeff00u) ==
        dw::philox({0x55667788u, 0x11223344u, 0xddeeff00u, 0x99aabbccu}, 0x89abcdefu, 0x01234567u));
}

TEST_CASE("64 known values of bits, uniform and normal numbers") {
  const auto key = dw::RandomKey{2026}.fold(3).fold(dw::name_hash("lora_A.weight"));
  CHECK(key.value == 0xbba973dd7c333321u);
  int different = 0;
  for (std::size_t i = 0; i < known.size(); ++i) {
    const auto bits = key.block(i % 16 / 4, i / 16)[i % 4];
    const bool same =
        bits == known[i].bits && dw::uniform01(bits) == known[i].uniform && dw::normal01(bits) == known[i].normal;
    different += same ? 0 : 1;
  }
  CHECK(different == 0);
}

TEST_CASE("uniform numbers are multiples of 2^-24 in [0, 1), the same as float and as double") {
  CHECK(dw::uniform01(0) == 0);
  CHECK(dw::uniform01(0xffffffffu) == 1 - 0x1p-24);
  SplitMix random;
  int wrong = 0;
  for (int i = 0; i < 10000; ++i) {
    const double u = dw::uniform01(random.word());
    wrong += static_cast<double>(static_cast<float>(u)) == u && u >= 0 && u < 1 ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("moments of uniform and normal numbers") {
  constexpr int blocks = 250000;
  constexpr double n = 4.0 * blocks;
  const dw::RandomKey key{99};
  double u1 = 0, u2 = 0, z1 = 0, z2 = 0, z3 = 0, z4 = 0;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const dw::PhiloxBlock block = key.block(i % 1000, i / 1000);
    for (const auto bits : block.words) {
      const double u = dw::uniform01(bits) - 0.5, z = dw::normal01(bits);
      u1 += u / n, u2 += u * u / n;
      z1 += z / n, z2 += z * z / n, z3 += z * z * z / n, z4 += z * z * z * z / n;
    }
  }
  // Five deviations of each estimate: sqrt(variance of the power / n).
  CHECK(std::abs(u1) < 5 * std::sqrt(1.0 / 12 / n));
  CHECK(std::abs(u2 - 1.0 / 12) < 5 * std::sqrt(1.0 / 180 / n));
  CHECK(std::abs(z1) < 5 * std::sqrt(1 / n));
  CHECK(std::abs(z2 - 1) < 5 * std::sqrt(2 / n));
  CHECK(std::abs(z3) < 5 * std::sqrt(15 / n));
  CHECK(std::abs(z4 - 3) < 5 * std::sqrt(96 / n));
}

TEST_CASE("the normal distribution function of a normal number gives back its uniform number") {
  double worst = 0;
  const auto check = [&](std::uint32_t bits) {
    const double u = (static_cast<double>(bits) + 0.5) * 0x1p-32, z = dw::normal01(bits);
    const double tail = 0.5 * std::erfc(std::abs(z) / std::numbers::sqrt2);  // of the side on which z lies
    const double expected = z < 0 ? u : 1 - u;
    const double error = std::abs(tail - expected) / expected;
    if (!(error <= worst)) worst = error;
  };
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 40009) check(static_cast<std::uint32_t>(bits));
  for (std::uint32_t i = 0; i < 1000; ++i) check(i), check(0xffffffffu - i);  // the last tails
  CHECK(worst < 3e-14);                                                       // |z| < 6.34 multiplies a rounding by z^2
  CHECK(dw::normal01(0) == -dw::normal01(0xffffffffu));
  CHECK(dw::normal01(0) > -6.34);
  CHECK(std::abs(dw::normal01(0x7fffffffu)) < 1e-9);
}

TEST_CASE("normal numbers grow with their bits") {
  int wrong = 0;
  double last = dw::normal01(0);
  for (std::uint64_t bits = 1 << 14; bits < 0x100000000u; bits += 1 << 14) {
    const double z = dw::normal01(static_cast<std::uint32_t>(bits));
    wrong += z > last ? 0 : 1;
    last = z;
  }
  CHECK(wrong == 0);
}

TEST_CASE("the logarithm is within two units in the last place where normal numbers use it") {
  CHECK(worst_log_error(0x1p-33, 0.075) < 2);
  CHECK(worst_log_error(0.075, 1) < 3);
}

TEST_CASE("folded keys differ, depend on the order, and name independent streams") {
  std::set<std::uint64_t> keys;
  for (std::uint64_t a = 0; a < 200; ++a)
    for (std::uint64_t b = 0; b < 200; ++b) keys.insert(dw::RandomKey{a}.fold(b).value);
  CHECK(keys.size() == 200 * 200);

  const dw::RandomKey seed{5};
  CHECK(seed.fold(1).fold(2).value != seed.fold(2).fold(1).value);
  CHECK(seed.fold(0).value != seed.value);
  CHECK(seed.fold(0).fold(0).value != seed.fold(0).value);

  const double five_deviations = 5 / std::sqrt(80000.0);
  CHECK(std::abs(correlation(seed, seed.fold(0))) < five_deviations);
  CHECK(std::abs(correlation(seed.fold(1), seed.fold(2))) < five_deviations);
  CHECK(std::abs(correlation(seed.fold(1).fold(2), seed.fold(2).fold(1))) < five_deviations);
  CHECK(std::abs(correlation(seed, dw::RandomKey{6})) < five_deviations);
  CHECK(correlation(seed, seed) > 0.95);  // so the measure does see what is equal
}

TEST_CASE("names hash by FNV-1a") {
  STATIC_REQUIRE(dw::name_hash("") == 0xcbf29ce484222325u);
  STATIC_REQUIRE(dw::name_hash("a") == 0xaf63dc4c8601ec8cu);
  STATIC_REQUIRE(dw::name_hash("foobar") == 0x85944171f73967e8u);
  CHECK(dw::name_hash("layers.1.q") != dw::name_hash("layers.2.q"));
}
