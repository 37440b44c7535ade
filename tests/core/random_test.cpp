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

namespace dw = deltaw;

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

struct Known {
  std::uint32_t bits;
  double uniform;
  double normal;
};

// Rows 0 to 3, columns 0 to 15 under the key (2026, 3, "lora_A.weight"). Printed once by this library on x86-64 (g++ 12,
// and clang 14 with fma, which agreed); a checkpoint that stores a seed relies on these never changing.
constexpr std::array<Known, 64> known = {{
    {0x86cd2c80u, 0x1.0d9a58p-1, 0x1.10fb4ecdcddb3p-4},  {0x8694c599u, 0x1.0d298ap-1, 0x1.0820614c83cf1p-4},
    {0x365af323u, 0x1.b2d798p-3, -0x1.98c522ff808bcp-1}, {0x5534f4b0u, 0x1.54d3dp-2, -0x1.ba74deba7cfacp-2},
    {0xd104b3e5u, 0x1.a20966p-1, 0x1.cdd61f7617d8ap-1},  {0xbf9fb4a8u, 0x1.7f3f68p-1, 0x1.56f99c71bfdb9p-1},
    {0x55c37d0au, 0x1.570df4p-2, -0x1.b455f3182b3bep-2}, {0x23bf1260u, 0x1.1df89p-3, -0x1.14fb96d8ea97fp+0},
    {0xeff09350u, 0x1.dfe126p-1, 0x1.883ee3702266ap+0},  {0x7069e2c1u, 0x1.c1a788p-2, -0x1.39c7067cc35e9p-3},
    {0xa375c3b4u, 0x1.46eb86p-1, 0x1.6b00815d06b38p-2},  {0x3e351da1u, 0x1.f1a8e8p-3, -0x1.64b4bb07cf163p-1},
    {0x63767c75u, 0x1.8dd9fp-2, -0x1.21f4f6165a15ep-2},  {0x09be5366u, 0x1.37ca6p-5, -0x1.c60e098454199p+0},
    {0x50181216u, 0x1.406048p-2, -0x1.f371e8006bb94p-2}, {0x2069d6b8u, 0x1.034ebp-3, -0x1.247d73b8e6ad3p+0},
    {0x176deaf0u, 0x1.76deap-4, -0x1.54d9b8793a21bp+0},  {0xcedaf038u, 0x1.9db5ep-1, 0x1.bdc642113d9f6p-1},
    {0xdb092ea1u, 0x1.b6125cp-1, 0x1.0f90601479653p+0},  {0xfc9f9ce2u, 0x1.f93f38p-1, 0x1.1c3c2af67adadp+1},
    {0x9102d09eu, 0x1.2205ap-1, 0x1.56b6fa6d3d043p-3},   {0x4081731eu, 0x1.0205ccp-2, -0x1.5629b272338afp-1},
    {0x45f37bf5u, 0x1.17cdecp-2, -0x1.34bf7f66b3403p-1}, {0x16487825u, 0x1.64878p-4, -0x1.5bf3d5adef0f5p+0},
    {0x5a28dc9bu, 0x1.68a37p-2, -0x1.848816ad53244p-2},  {0x2c802be1u, 0x1.640158p-3, -0x1.e0d64a9494fc6p-1},
    {0xd03f60dbu, 0x1.a07ecp-1, 0x1.c80fc35ae5b5dp-1},   {0x933c02a7u, 0x1.267804p-1, 0x1.840463c559271p-3},
    {0xe3adcedeu, 0x1.c75b9cp-1, 0x1.3922eaff2802dp+0},  {0x4b0fd3b5u, 0x1.2c3f4cp-2, -0x1.168b299aea84ep-1},
    {0x3e5fa479u, 0x1.f2fd2p-3, -0x1.63a52b67423b6p-1},  {0x35114836u, 0x1.a88a4p-3, -0x1.a1b62e29d79fap-1},
    {0xb33bb6f0u, 0x1.66776cp-1, 0x1.0caf34e2f69bdp-1},  {0x412c8777u, 0x1.04b21cp-2, -0x1.51fc5a2bf2d99p-1},
    {0x17387a4fu, 0x1.7387ap-4, -0x1.561fd0b733e5bp+0},  {0x1c4abe24u, 0x1.c4abep-4, -0x1.394a62f5eb763p+0},
    {0x5f3a3274u, 0x1.7ce8c8p-2, -0x1.4e729ff2e3d14p-2}, {0xc28c2c2eu, 0x1.851858p-1, 0x1.698bfc043b24ap-1},
    {0x833e7cfbu, 0x1.067cf8p-1, 0x1.044269f167343p-5},  {0x7180a36fu, 0x1.c6028cp-2, -0x1.23b3c1b086573p-3},
    {0x07be0a4bu, 0x1.ef828p-6, -0x1.e091e93b5c2c9p+0},  {0xe165b4a7u, 0x1.c2cb68p-1, 0x1.2d623c2169f99p+0},
    {0x8cf790f8u, 0x1.19ef2p-1, 0x1.04bb37b29732fp-3},   {0x8fdebb57u, 0x1.1fbd76p-1, 0x1.3f88bd13873ccp-3},
    {0x2b2a5db6u, 0x1.5952e8p-3, -0x1.eb57805f75f63p-1}, {0x1e37b7dau, 0x1.e37b7p-4, -0x1.2f528ebcb8d35p+0},
    {0xa03ade7cu, 0x1.4075bcp-1, 0x1.48b69f49b970ep-2},  {0x40b87a41u, 0x1.02e1e8p-2, -0x1.54d11bb57c159p-1},
    {0xa9421a87u, 0x1.528434p-1, 0x1.a99eb48673e25p-2},  {0x868a32a4u, 0x1.0d1464p-1, 0x1.06776b6793e0cp-4},
    {0xdb55d22fu, 0x1.b6aba4p-1, 0x1.10e281202d3c1p+0},  {0x6e95dab2u, 0x1.ba5768p-2, -0x1.5eed0025282cdp-3},
    {0x5f00d0bau, 0x1.7c034p-2, -0x1.50d1b6a8b6793p-2},  {0x6a3f4170u, 0x1.a8fd04p-2, -0x1.b79032c5a0f5ap-3},
    {0x14c8c4b3u, 0x1.4c8c4p-4, -0x1.65a9c54559486p+0},  {0x4c97e897u, 0x1.325fap-2, -0x1.0daea6f0bfcf6p-1},
    {0xb22fd860u, 0x1.645fbp-1, 0x1.06aec3a907e3ap-1},   {0x89a093a2u, 0x1.134126p-1, 0x1.82af498c4f703p-4},
    {0xe5e094f0u, 0x1.cbc128p-1, 0x1.451edf109c96fp+0},  {0x24d71a1du, 0x1.26b8dp-3, -0x1.101c1479d3ea2p+0},
    {0xcf7457a7u, 0x1.9ee8aep-1, 0x1.c22df51606a42p-1},  {0x51f1cba4u, 0x1.47c72cp-2, -0x1.dea63eba04d62p-2},
    {0x36156c0fu, 0x1.b0ab6p-3, -0x1.9aa53aad75375p-1},  {0x80f9ae54u, 0x1.01f35cp-1, 0x1.38eef6e4008b7p-7},
}};

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
