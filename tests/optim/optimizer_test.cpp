#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "catch.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/optim/adamw.hpp"
#include "deltaw/optim/schedule.hpp"
#include "deltaw/optim/sgd.hpp"
#include "message.hpp"
#include "parameters.hpp"

using namespace deltaw_tests;
using dw::AdamW;
using dw::Cpu;
using dw::Decay;
using dw::Optimizer;
using dw::Schedule;
using dw::Sgd;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

// Everything that a step may change.
template <class T>
struct State {
  std::vector<std::vector<double>> tensors;
  std::vector<long> counts;
  explicit State(const Bag<T>& bag) {
    for (const auto& p : bag.parameters) {
      tensors.push_back(elements(p.value));
      for (const auto& slot : p.slots) tensors.push_back(elements(slot.value));
      counts.insert(counts.end(), {p.step, static_cast<long>(p.version), static_cast<long>(p.slots.size())});
    }
  }
  bool operator==(const State&) const = default;
};

}  // namespace

TEST_CASE("a step with a gradient that is not finite changes nothing, names the first and is counted") {
  Cpu::Context ctx;
  Bag<float> bag, other;
  bag.add("lora_A.weight", 3, 20, 1);
  auto& second = bag.add("lora_B.weight", 20, 3, 2);
  auto& third = other.add("bias", 1, 17, 3);
  second.owner = "blocks.0.query";
  third.owner = "head";
  Optimizer<AdamW> optimizer({.learning_rate = 0.1}, {.max_gradient_norm = 1});
  bag.fill_gradients(10), other.fill_gradients(20);
  CHECK_FALSE(optimizer.step(ctx, bag, other).skipped);
  const State before(bag), other_before(other);

  for (const double bad : {not_a_number, infinity, -infinity}) {
    bag.fill_gradients(30), other.fill_gradients(40);
    second.grad.view()(19, 2) = static_cast<float>(bad);
    third.grad.view()(0, 16) = static_cast<float>(bad);
    const auto report = optimizer.step(ctx, bag, other);
    CHECK(report.skipped);
    CHECK(report.non_finite == "blocks.0.query.lora_B.weight");
    CHECK_FALSE(std::isfinite(report.gradient_norm));
    CHECK(State(bag) == before);
    CHECK(State(other) == other_before);
  }
  second.grad.view()(19, 2) = 0;
  CHECK(optimizer.step(ctx, bag, other).non_finite == "head.bias");
  CHECK(optimizer.skipped() == 4);

  third.grad.view()(0, 16) = 0;
  bag.parameters[0].grad.view()(0, 0) = static_cast<float>(not_a_number);
  CHECK(optimizer.step(ctx, bag).non_finite == "lora_A.weight");
  bag.fill_gradients(30);
  CHECK_FALSE(optimizer.step(ctx, bag, other).skipped);
  CHECK_FALSE(State(bag) == before);
  CHECK(bag.parameters[0].step == 2);
  optimizer.set_skipped(7);
  CHECK(optimizer.skipped() == 7);
}

TEST_CASE("the first step may be the one that is skipped") {
  Cpu::Context ctx;
  Bag<double> bag;
  auto& p = bag.add("w", 2, 2, 1);
  p.grad.view()(1, 1) = not_a_number;
  const State before(bag);
  Optimizer<AdamW> optimizer;
  CHECK(optimizer.step(ctx, bag).skipped);
  CHECK(State(bag) == before);
  CHECK(p.slots.empty());
}

TEST_CASE("without skip_non_finite the step is taken, and NaN arrives") {
  Cpu::Context ctx;
  Bag<double> bag;
  auto& p = bag.add("w", 1, 2, 1);
  p.grad.view()(0, 1) = not_a_number;
  Optimizer<Sgd> optimizer({}, {.skip_non_finite = false});
  const auto report = optimizer.step(ctx, bag);
  CHECK_FALSE(report.skipped);
  CHECK(report.non_finite.empty());
  CHECK(std::isfinite(p.value.view()(0, 0)));
  CHECK(std::isnan(p.value.view()(0, 1)));
}

TEST_CASE("a parameter that is not trained is left alone, also where its gradient is not finite") {
  Cpu::Context ctx;
  Bag<double> bag;
  auto& frozen = bag.add("frozen", 2, 2, 1);
  frozen.trained = false;
  frozen.grad.view()(0, 0) = not_a_number;
  const State before(bag);
  bag.add("trained", 1, 1, 2).grad.view()(0, 0) = 3;
  Optimizer<AdamW> optimizer;
  const auto report = optimizer.step(ctx, bag);
  CHECK_FALSE(report.skipped);
  CHECK(report.gradient_norm == Approx(3).epsilon(1e-15));
  CHECK(bag.parameters[0].step == 0);
  bag.parameters.pop_back();
  CHECK(State(bag) == before);
}

TEST_CASE("a step counts, marks the parameter changed and leaves the gradient as it is") {
  Cpu::Context ctx;
  Bag<float> bag;
  auto& p = bag.add("w", 3, 5, 1);
  bag.fill_gradients(2);
  const auto gradient = elements(p.grad);
  Optimizer<AdamW> optimizer;
  for (int i = 0; i < 3; ++i) optimizer.step(ctx, bag);
  CHECK(p.step == 3);
  CHECK(p.version == 3);
  CHECK(elements(p.grad) == gradient);
  REQUIRE(p.slots.size() == 2);
  CHECK(p.slots[0].name == "exp_avg");
  CHECK(p.slots[1].name == "exp_avg_sq");
  dw::zero_grad(ctx, bag);
  CHECK(elements(p.grad) == std::vector<double>(15));
}

TEST_CASE("a gradient or a moment of another shape is refused, by name, before any parameter moves") {
  Cpu::Context ctx;
  Bag<double> bag;
  bag.add("first", 3, 2, 1);
  auto& second = bag.add("second", 3, 2, 2);
  second.owner = "head";
  bag.fill_gradients(3);
  const State before(bag);
  Optimizer<AdamW> optimizer;
  second.grad.resize(2, 3);
  CHECK(message_of<dw::ShapeError>([&] { optimizer.step(ctx, bag); }) ==
        "Optimizer.step: gradient of 'head.second': got 2 x 3, want 3 x 2");
  second.grad = {};
  CHECK(message_of<dw::ShapeError>([&] { optimizer.step(ctx, bag); }) ==
        "Optimizer.step: gradient of 'head.second': got 0 x 0, want 3 x 2");
  CHECK(State(bag) == before);

  second.grad.resize(3, 2);
  second.slot("exp_avg_sq").resize(2, 2);
  CHECK(message_of<dw::ShapeError>([&] { optimizer.step(ctx, bag); }) == "adamw: v.rows (rows): got 2, want 3");
  second.slot("momentum_buffer").resize(3, 1);
  CHECK(message_of<dw::ShapeError>([&] { Optimizer<Sgd>(Sgd{.momentum = 0.5}).step(ctx, bag); }) ==
        "sgd: momentum.cols (columns): got 1, want 2");
}

TEST_CASE("SGD keeps a momentum only if it has one") {
  Cpu::Context ctx;
  Bag<float> bag;
  auto& p = bag.add("w", 3, 5, 1);
  Optimizer<Sgd>().step(ctx, bag);
  CHECK(p.slots.empty());
  Optimizer<Sgd>(Sgd{.momentum = 0.5}).step(ctx, bag);
  REQUIRE(p.slots.size() == 1);
  CHECK(p.slots[0].name == "momentum_buffer");
}

TEST_CASE("a scaled loss moves the parameters as the plain one") {
  Cpu::Context ctx;
  Bag<float> plain, scaled;
  plain.add("w", 5, 33, 1), scaled.add("w", 5, 33, 1);
  Optimizer<AdamW> optimizer({}, {.max_gradient_norm = 0.1}), unscaling({}, {.max_gradient_norm = 0.1});
  unscaling.set_loss_scale(4096);
  for (std::uint32_t step = 0; step < 4; ++step) {
    plain.fill_gradients(step), scaled.fill_gradients(step);
    Cpu::map(ctx, dw::Scale{4096}, scaled.parameters[0].grad.view());
    const auto a = optimizer.step(ctx, plain), b = unscaling.step(ctx, scaled);
    CHECK(a.gradient_norm == b.gradient_norm);
  }
  CHECK(elements(plain.parameters[0].value) == elements(scaled.parameters[0].value));  // a power of two: to the bit
}

TEST_CASE("an optimizer refuses what it cannot use, by name, and keeps what it had") {
  CHECK(message_of<dw::OptionError>([] { Optimizer<AdamW>({}, {.max_gradient_norm = -1}); }) ==
        "Optimizer: max_gradient_norm: got -1, want 0 or more");
  CHECK(message_of<dw::OptionError>([] { Optimizer<AdamW>({}, {.max_gradient_norm = not_a_number}); }) ==
        "Optimizer: max_gradient_norm: got nan, want 0 or more");
  Optimizer<AdamW> optimizer;
  CHECK(message_of<dw::OptionError>([&] { optimizer.set_loss_scale(0); }) ==
        "Optimizer.set_loss_scale: scale: got 0, want finite, above 0, with a finite inverse");
  CHECK(message_of<dw::OptionError>([&] { optimizer.set_loss_scale(infinity); }) ==
        "Optimizer.set_loss_scale: scale: got inf, want finite, above 0, with a finite inverse");
  CHECK(message_of<dw::OptionError>([&] { optimizer.set_learning_rate(not_a_number); }) ==
        "AdamW: learning_rate: got nan, want finite and 0 or more");
  CHECK(optimizer.rule().learning_rate == 1e-3);
  optimizer.set_learning_rate(0.5);
  CHECK(optimizer.rule().learning_rate == 0.5);
}

TEST_CASE("the loss scale halves after a skipped step and doubles after enough good ones") {
  dw::LossScale scale{.value = 1024, .growth_interval = 3};
  const dw::StepReport good, bad{.skipped = true};
  scale.update(good), scale.update(good);
  CHECK(scale.value == 1024);
  scale.update(good);
  CHECK(scale.value == 2048);
  CHECK(scale.good_steps == 0);
  scale.update(good), scale.update(good), scale.update(bad);
  CHECK(scale.value == 1024);
  scale.update(good), scale.update(good);  // the count began anew
  CHECK(scale.value == 1024);
  scale.update(bad), scale.update(bad);
  CHECK(scale.value == 256);
  scale.update(good), scale.update(good), scale.update(good);
  CHECK(scale.value == 512);
}

TEST_CASE("the loss scale stays a number that an optimizer takes") {
  dw::LossScale scale{.value = 0x1p1023, .growth_interval = 1};
  scale.update({});
  scale.update({});
  CHECK(std::isfinite(scale.value));
  scale.value = 0x1p-1074;
  scale.update({.skipped = true});
  CHECK(scale.value > 0);
}

TEST_CASE("schedules follow their closed forms") {
  const Schedule constant{.peak = 2, .warmup_steps = 4, .decay = Decay::Constant};
  CHECK(constant(0) == 0.5);
  CHECK(constant(1) == 1);
  CHECK(constant(3) == 2);
  CHECK(constant(4) == 2);
  CHECK(constant(1000000) == 2);

  const Schedule linear{.peak = 1, .warmup_steps = 10, .total_steps = 110, .decay = Decay::Linear, .floor = 0.1};
  CHECK(linear(9) == 1);
  for (const long step : {10L, 11L, 35L, 60L, 109L, 110L})
    CHECK(linear(step) == Approx(0.1 + 0.9 * static_cast<double>(110 - step) / 100).epsilon(1e-14));
  CHECK(linear(111) == 0.1);
  CHECK(linear(100000) == 0.1);

  const Schedule cosine{.peak = 3, .warmup_steps = 0, .total_steps = 60, .floor = 0.5};
  CHECK(cosine(0) == 3);
  CHECK(cosine(20) == Approx(0.5 + 2.5 * 0.75).epsilon(1e-14));  // cos 60 degrees is 1/2
  CHECK(cosine(30) == Approx(0.5 + 2.5 * 0.5).epsilon(1e-14));
  CHECK(cosine(40) == Approx(0.5 + 2.5 * 0.25).epsilon(1e-14));
  CHECK(cosine(60) == Approx(0.5).epsilon(1e-14));
  CHECK(cosine(61) == cosine(60));
  for (long step = 1; step <= 60; ++step) {
    CHECK(cosine(step) < cosine(step - 1));
    CHECK(cosine(step) == Approx(0.5 + 1.25 * (1 + std::cos(std::numbers::pi * static_cast<double>(step) / 60))));
  }
}

TEST_CASE("schedules refuse options that make no sense, by name") {
  const auto message = [](Schedule s) { return message_of<dw::OptionError>([&] { s.check(); }); };
  CHECK(message({.peak = -1, .total_steps = 5}) == "Schedule: peak: got -1, want finite and 0 or more");
  CHECK(message({.peak = infinity, .total_steps = 5}) == "Schedule: peak: got inf, want finite and 0 or more");
  CHECK(message({.warmup_steps = -3, .total_steps = 5}) == "Schedule: warmup_steps: got -3, want 0 or more");
  CHECK(message({.warmup_steps = 5, .total_steps = 5}) ==
        "Schedule: total_steps: got 5, want more than warmup_steps = 5");
  CHECK(message({}) == "Schedule: total_steps: got 0, want more than warmup_steps = 0");
  CHECK(message({.peak = 1, .total_steps = 5, .floor = 2}) ==
        "Schedule: floor: got 2, want at least 0 and at most peak = 1");
  CHECK(message({.total_steps = 5, .floor = not_a_number}) ==
        "Schedule: floor: got nan, want at least 0 and at most peak = 0.001");
  CHECK(message({.decay = Decay::Constant}) == "nothing was thrown");
  CHECK(message_of<dw::OptionError>([] { Schedule{.total_steps = 5}(-1); }) ==
        "Schedule: step: got -1, want 0 or more");
}

TEST_CASE("a step refuses the same set twice, and a rule that was made wrong by hand") {
  Cpu::Context ctx;
  Bag<double> bag, other;
  bag.add("w", 1, 2, 1), other.add("v", 1, 2, 2);
  const State before(bag);
  Optimizer<AdamW> optimizer;
  CHECK(message_of<dw::AliasError>([&] { optimizer.step(ctx, bag, other, bag); }) ==
        "Optimizer.step: parameters: got the same set twice, want each once");
  optimizer.rule().learning_rate = not_a_number;
  CHECK(message_of<dw::OptionError>([&] { optimizer.step(ctx, bag); }) ==
        "AdamW: learning_rate: got nan, want finite and 0 or more");
  CHECK(State(bag) == before);
}
