#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "catch.hpp"
#include "deltaw/core/half.hpp"

namespace dw = deltaw;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

// Calls f(bits, h) for all 65,536 values.
template <class H, class F>
void for_each_half(F f) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
    f(static_cast<std::uint16_t>(bits), H::from_bits(static_cast<std::uint16_t>(bits)));
}

// The number of values that do not come back: NaN must stay NaN of its sign, all else must keep every bit.
template <class H>
int count_broken_round_trips() {
  int broken = 0;
  for_each_half<H>([&](std::uint16_t bits, H h) {
    const auto value = static_cast<float>(h);
    const H back(value);
    const bool kept = std::isnan(value) ? std::isnan(static_cast<float>(back)) && (back.bits ^ bits) < 0x8000
                                        : back.bits == bits && H(static_cast<double>(value)).bits == bits;
    broken += kept ? 0 : 1;
  });
  return broken;
}

// Compares the rounding of some four million floats, spread over all bit patterns, with Eigen's type.
template <class H, class EigenHalf>
int count_different_from_eigen() {
  int different = 0;
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 1009) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const auto ours = H(value).bits;
    const EigenHalf theirs(value);
    const auto expected = Eigen::numext::bit_cast<std::uint16_t>(theirs);
    const bool same = std::isnan(value) ? std::isnan(static_cast<float>(H::from_bits(ours))) : ours == expected;
    different += same ? 0 : 1;
  }
  return different;
}

template <class H, class EigenHalf>
int count_different_values() {
  int different = 0;
  for_each_half<H>([&](std::uint16_t bits, H h) {
    const auto ours = static_cast<float>(h);
    const auto theirs = static_cast<float>(Eigen::numext::bit_cast<EigenHalf>(bits));
    const bool same = std::isnan(theirs) ? std::isnan(ours)
                                         : std::bit_cast<std::uint32_t>(ours) == std::bit_cast<std::uint32_t>(theirs);
    different += same ? 0 : 1;
  });
  return different;
}

// For every two finite neighbours: their middle goes to the even one, a hair to either side to the nearer one.
template <class H>
int count_wrong_at_ties(std::uint16_t largest) {
  int wrong = 0;
  for (std::uint16_t bits = 0; bits < largest; ++bits) {
    const auto low = static_cast<double>(static_cast<float>(H::from_bits(bits)));
    const auto high = static_cast<double>(static_cast<float>(H::from_bits(static_cast<std::uint16_t>(bits + 1))));
    const auto middle = static_cast<float>((low + high) / 2);       // exact: one bit more than the type has
    if (static_cast<double>(middle) != (low + high) / 2) continue;  // below float's own smallest number
    const std::uint16_t even = bits % 2 == 0 ? bits : static_cast<std::uint16_t>(bits + 1);
    const bool right = H(middle).bits == even && H(std::nextafter(middle, -infinity)).bits == bits &&
                       H(std::nextafter(middle, infinity)).bits == bits + 1 && H(-middle).bits == (even | 0x8000);
    wrong += right ? 0 : 1;
  }
  return wrong;
}

}  // namespace

TEST_CASE("16-bit values survive the way through float") {
  CHECK(count_broken_round_trips<dw::bf16>() == 0);
  CHECK(count_broken_round_trips<dw::f16>() == 0);
}

TEST_CASE("16-bit values mean the same to Eigen") {
  CHECK(count_different_values<dw::bf16, Eigen::bfloat16>() == 0);
  CHECK(count_different_values<dw::f16, Eigen::half>() == 0);
}

TEST_CASE("floats round to 16 bits as Eigen rounds them") {
  CHECK(count_different_from_eigen<dw::bf16, Eigen::bfloat16>() == 0);
  CHECK(count_different_from_eigen<dw::f16, Eigen::half>() == 0);
}

TEST_CASE("ties go to the even neighbour") {
  CHECK(count_wrong_at_ties<dw::bf16>(0x7f7f) == 0);
  CHECK(count_wrong_at_ties<dw::f16>(0x7bff) == 0);
}

TEST_CASE("what is too large becomes infinity, from half a step above the largest value") {
  CHECK(dw::f16(65504.0f).bits == 0x7bff);
  CHECK(dw::f16(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
  CHECK(dw::f16(65520.0f).bits == 0x7c00);
  CHECK(dw::f16(-1e30f).bits == 0xfc00);
  CHECK(dw::f16(infinity).bits == 0x7c00);
  CHECK(dw::bf16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(dw::bf16(std::bit_cast<float>(0x7f7f7fffu)).bits == 0x7f7f);
  CHECK(dw::bf16(-infinity).bits == 0xff80);
}

TEST_CASE("subnormals and zeros keep their size and sign") {
  CHECK(dw::f16(0x1p-24f).bits == 1);
  CHECK(dw::f16(0x1p-25f).bits == 0);  // half of the smallest: to even
  CHECK(dw::f16(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(dw::f16(-0x1p-24f).bits == 0x8001);
  CHECK(dw::f16(0x1.ff8p-15f).bits == 0x03ff);  // the largest subnormal
  CHECK(dw::f16(0x1p-14f).bits == 0x0400);
  CHECK(dw::f16(-0.0f).bits == 0x8000);
  CHECK(dw::bf16(-0.0f).bits == 0x8000);
  CHECK(dw::bf16(std::bit_cast<float>(0x00018000u)).bits == 2);
}

TEST_CASE("NaN stays NaN, also where its payload lies in the bits that are cut off") {
  for (const std::uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffbfffffu}) {
    const auto value = std::bit_cast<float>(bits);
    CHECK(std::isnan(static_cast<float>(dw::bf16(value))));
    CHECK(std::isnan(static_cast<float>(dw::f16(value))));
  }
  CHECK(std::isnan(static_cast<float>(dw::f16(static_cast<double>(not_a_number)))));
}

TEST_CASE("conversions are constant expressions") {
  STATIC_REQUIRE(dw::f16(1.0f).bits == 0x3c00);
  STATIC_REQUIRE(dw::bf16(1.0f).bits == 0x3f80);
  STATIC_REQUIRE(float(dw::f16(0.1f)) == 0x1.998p-4f);
  STATIC_REQUIRE(float(dw::bf16::from_bits(0x4049)) == 3.140625f);
  STATIC_REQUIRE(sizeof(dw::f16) == 2 && sizeof(dw::bf16) == 2);
  STATIC_REQUIRE(std::is_same_v<dw::compute_t<dw::bf16>, float> && std::is_same_v<dw::compute_t<double>, double>);
}
