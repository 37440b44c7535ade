// Initial values: the distribution, layers that differ, shards that are parts of one whole.

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "message.hpp"

namespace dw = deltaw;

namespace {
using Lora = dw::Lora<double, dw::Cpu>;

template <class Init>
std::vector<double> values(const Init& init, dw::LinearShape shape, Lora::Options options, dw::Role role) {
  dw::Cpu::Context ctx;
  Lora lora(shape, options);
  lora.for_each_parameter([](auto& p) {
    for (dw::index_t i = 0; i < p.value.size(); ++i) p.value.view().data[i] = 9;
  });
  init(ctx, lora, dw::BaseRef<double, double, dw::Cpu>{});
  std::vector<double> found;
  lora.for_each_parameter([&](auto& p) {
    if (p.role == role) found.assign(p.value.view().data, p.value.view().data + p.value.size());
    CHECK(p.version == 1);
  });
  return found;
}

struct Moments {
  double mean = 0, deviation = 0, largest = 0;
};
Moments moments(const std::vector<double>& v) {
  Moments m;
  for (double x : v) m.mean += x / static_cast<double>(v.size());
  for (double x : v) m.deviation += (x - m.mean) * (x - m.mean) / static_cast<double>(v.size());
  m.deviation = std::sqrt(m.deviation);
  for (double x : v) m.largest = std::max(m.largest, std::abs(x));
  return m;
}
}  // namespace

TEST_CASE("Kaiming: A uniform within 1/sqrt(in), B and bias zero") {
  const dw::LinearShape shape{400, 300};
  const Lora::Options options{.rank = 100, .bias = true};
  const auto a = moments(values(dw::init::Kaiming{.seed = 5}, shape, options, dw::Role::Down));
  const double bound = 1 / std::sqrt(400.0);
  CHECK(std::abs(a.mean) < 5 * bound / std::sqrt(3.0 * 40000));
  CHECK(a.deviation == Approx(bound / std::sqrt(3.0)).epsilon(0.01));
  CHECK(a.largest <= bound);
  CHECK(a.largest > 0.999 * bound);
  for (auto role : {dw::Role::Up, dw::Role::Bias})
    CHECK(moments(values(dw::init::Kaiming{.seed = 5}, shape, options, role)).largest == 0);
}

TEST_CASE("Gaussian: A normal with deviation 1/rank or the caller's, B zero") {
  const dw::LinearShape shape{400, 300};
  const auto a = moments(values(dw::init::Gaussian{.seed = 5}, shape, {.rank = 100}, dw::Role::Down));
  CHECK(std::abs(a.mean) < 5 * 0.01 / std::sqrt(40000.0));
  CHECK(a.deviation == Approx(0.01).epsilon(0.02));
  CHECK(a.largest > 0.035);
  const auto wide = dw::init::Gaussian{.seed = 5, .deviation = 0.5};
  CHECK(moments(values(wide, shape, {.rank = 100}, dw::Role::Down)).deviation == Approx(0.5).epsilon(0.02));
  CHECK(moments(values(wide, shape, {.rank = 100}, dw::Role::Up)).largest == 0);
}

TEST_CASE("seed and layer choose the numbers, and nothing else does") {
  const dw::LinearShape shape{40, 30};
  const auto draw = [&](std::uint64_t seed, std::uint64_t layer) {
    return values(dw::init::Kaiming{.seed = seed}, shape, {.rank = 4, .layer = layer}, dw::Role::Down);
  };
  CHECK(draw(1, 2) == draw(1, 2));
  CHECK(draw(1, 2) != draw(1, 3));
  CHECK(draw(1, 2) != draw(2, 2));
  const auto more = values(dw::init::Kaiming{.seed = 1}, shape, {.rank = 8, .layer = 2}, dw::Role::Down);
  CHECK(std::equal(more.begin(), more.begin() + 4 * 40, draw(1, 2).begin()));
}

TEST_CASE("a shard draws its part of the whole matrix, with the whole layer's fan-in") {
  const auto whole = values(dw::init::Kaiming{.seed = 1}, {40, 30}, {.rank = 4}, dw::Role::Down);
  const auto part =
      values(dw::init::Kaiming{.seed = 1}, {17, 30, {.in_offset = 23, .in_total = 40}}, {.rank = 4}, dw::Role::Down);
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < 17; ++j) CHECK(part[i * 17 + j] == whole[i * 40 + 23 + j]);
}

TEST_CASE("Gaussian refuses a deviation that is none, before anything is drawn") {
  dw::Cpu::Context ctx;
  Lora lora({4, 3}, {.rank = 2});
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    CHECK(deltaw_tests::message_of<dw::OptionError>([&] {
            dw::init::Gaussian{.deviation = bad}(ctx, lora, dw::BaseRef<double, double, dw::Cpu>{});
          }).starts_with("Gaussian: deviation: got "));
  lora.for_each_parameter([](auto& p) { CHECK(p.version == 0); });
}
