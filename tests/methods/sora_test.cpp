// SoRA: gates are closed by the exact proximal step, closed ranks can go, and those that stay are as many as are needed.

#include <algorithm>

#include "catch.hpp"
#include "message.hpp"
#include "planted.hpp"

using namespace deltaw_tests;

namespace {

using Sora = dw::Sora<double, dw::Cpu>;

std::vector<double> gates(Sora& adapter) { return to_host(parameter(adapter, "gate").value.view()); }
void after_step(Sora& adapter, const dw::StepInfo& step) {
  dw::Cpu::Context ctx;
  Sora* all[] = {&adapter};
  dw::after_step<Sora>(ctx, std::span<Sora* const>(all), step);
}
Sora with_gates(std::vector<double> values, Sora::Options o) {
  o.rank = static_cast<index_t>(values.size());
  Sora adapter({6, 7}, o);
  from_host(values, parameter(adapter, "gate").value.view());
  return adapter;
}

}  // namespace

TEST_CASE("the soft threshold minimises (x - g)^2 / 2 + t |x|, and keeps NaN") {
  dw::Cpu::Context ctx;
  constexpr double t = 0.3;
  dw::Tensor<double> x(1, 201);
  for (index_t i = 0; i < 201; ++i) x.view()(0, i) = 0.01 * static_cast<double>(i - 100);
  const auto before = to_host(x.view());
  dw::Cpu::map(ctx, dw::SoftThreshold{t}, x.view());
  for (index_t i = 0; i < 201; ++i) {
    const double g = before[static_cast<std::size_t>(i)], got = x.view()(0, i);
    const auto cost = [&](double v) { return (v - g) * (v - g) / 2 + t * std::abs(v); };
    int lower = 0;
    for (int k = -1000; k <= 1000; ++k) lower += cost(got) <= cost(0.001 * k) + 1e-12 ? 0 : 1;
    CHECK(lower == 0);
  }
  x.view()(0, 0) = std::nan("");
  dw::Cpu::map(ctx, dw::SoftThreshold{t}, x.view());
  CHECK(std::isnan(x.view()(0, 0)));
}

TEST_CASE("SoRA: a step shrinks gates by lambda, by the learning rate too, or as the authors' code does") {
  const std::vector<double> start = {1, 0.3, -0.15, 0.05, -0.5};
  const dw::StepInfo step{.step = 3, .total_steps = 10, .learning_rate = 0.5};
  const auto shrunk = [&](Sora::Options o) {
    Sora adapter = with_gates(start, o);
    after_step(adapter, step);
    return gates(adapter);
  };
  CHECK(distance(shrunk({.lambda = 0.1}), {0.9, 0.2, -0.05, 0, -0.4}) <= 1e-15);
  CHECK(distance(shrunk({.lambda = 0.1, .scale_by_learning_rate = true}), {0.95, 0.25, -0.1, 0, -0.45}) <= 1e-15);
  CHECK(distance(shrunk({.lambda = 0.1, .repo_threshold = true}), {0.9, 0.2, 0, 0, -0.4}) <= 1e-15);
}

TEST_CASE("SoRA: the threshold rises in stages, linear, log-linear or by equal factors") {
  const auto thresholds = [](Sora::Options o) {
    o.lambda = 0.1, o.max_lambda = 0.8, o.lambda_stages = 4;
    const Sora adapter({6, 7}, o);
    std::vector<double> values;
    for (long step : {0, 24, 25, 50, 99, 150}) values.push_back(adapter.threshold({.step = step, .total_steps = 100}));
    return values;
  };
  const double third = 0.7 / 3;
  CHECK(distance(thresholds({.rank = 2}), {0.1, 0.1, 0.1 + third, 0.1 + 2 * third, 0.8, 0.8}) <= 1e-15);
  CHECK(distance(thresholds({.rank = 2, .exp_linear = true}), {0.1, 0.1, 0.2, 0.4, 0.8, 0.8}) <= 1e-15);
  const double a = std::exp(0.1), b = std::exp(0.8);
  CHECK(distance(thresholds({.rank = 2, .log_linear = true}),
                 {0.1, 0.1, std::log(a + (b - a) / 3), std::log(a + (b - a) * 2 / 3), 0.8, 0.8}) <= 1e-15);
  Sora adapter({6, 7}, {.rank = 2, .max_lambda = 0.8});
  CHECK(message_of<dw::OptionError>([&] { after_step(adapter, {.step = 1}); }) ==
        "Sora: total_steps: got 0, want the steps of the training: lambda rises");
  adapter.set_lambda(0.25);
  CHECK(adapter.threshold({.step = 7}) == 0.25);
}

TEST_CASE("SoRA: the penalty adds w sign(g) to the gradient and w sum |g| to the loss") {
  dw::Cpu::Context ctx;
  Sora one = with_gates({1, -2, 0}, {.l1_weight = 10}), two = with_gates({0.5, -1}, {.l1_weight = 10});
  Sora* all[] = {&one, &two};
  dw::Tensor<double> loss(1, 1);
  dw::regularize<Sora>(ctx, std::span<Sora* const>(all), loss.view());
  CHECK(distance(to_host(parameter(one, "gate").grad.view()), {2, -2, 0}) == 0);
  CHECK(distance(to_host(parameter(two, "gate").grad.view()), {2, -2}) == 0);
  CHECK(loss.view()(0, 0) == Approx(2 * 4.5).epsilon(1e-14));
}

TEST_CASE("SoRA: pruned gives a plain LoRA of the open ranks that computes the same") {
  dw::Cpu::Context ctx;
  const auto check = [&](std::vector<double> values, index_t rank) {
    Sora adapter = with_gates(std::move(values), {.alpha = 3});
    std::mt19937 random(4);
    fill_normal(parameter(adapter, "lora_A.weight").value.view(), random);
    fill_normal(parameter(adapter, "lora_B.weight").value.view(), random);
    const auto before = output(adapter);
    const auto lora = adapter.pruned(ctx);
    CHECK(lora.rank() == rank);
    CHECK(lora.scale() == adapter.scale());
    CHECK(distance(output(lora), before) <= 1e-14);
    adapter.prune(ctx);
    CHECK(adapter.rank() == rank);
    CHECK(distance(output(adapter), before) <= 1e-14);
    adapter.prune(ctx);
    CHECK(adapter.rank() == rank);
  };
  check({0.5, 0, -2, 0, 0, 1}, 3);
  check({0.5, 1}, 2);
  check({0, 0}, 0);
}

TEST_CASE("SoRA: bad options are refused by name") {
  const auto message = [](Sora::Options o) { return message_of<dw::OptionError>([&] { return Sora({8, 6}, o); }); };
  CHECK(message({.rank = 7}).find("Sora: rank: got 7, want at most min(in_features, out_features) = 6") == 0);
  CHECK(message({.rank = 2, .lambda = -1}) == "Sora: lambda: got -1, want finite and 0 or more");
  CHECK(message({.rank = 2, .max_lambda = 1, .lambda_stages = 0}) == "Sora: stages: got 0, want 1 or more");
  CHECK(message({.rank = 2, .lambda = 0, .max_lambda = 1, .exp_linear = true}) ==
        "Sora: thresholds of equal factors: got 0, want above 0");
  CHECK(message({.rank = 2, .log_linear = true, .exp_linear = true}) ==
        "Sora: log_linear and exp_linear: got both, want at most one");
}

// The paper: the rank that is left fits the task. Seeds 1 to 5 gave the planted rank or one more.
TEST_CASE("SoRA: the ranks left open are the planted ones, or one more", "[effect]") {
  for (const unsigned seed : {1u, 2u, 3u})
    for (const index_t planted : {1, 2, 4}) {
      INFO("seed " << seed << ", planted rank " << planted);
      PlantedModel<Sora> model(seed, 1e-2);
      auto& adapter = model.add({16, 12}, planted, 1, {.rank = 8, .alpha = 8, .lambda = 6e-3}).adapter;
      const double loss = model.train(1500, 1500);
      const auto open = static_cast<index_t>(adapter.open_ranks().size());
      CHECK(open >= planted);
      CHECK(open <= planted + 1);
      CHECK(loss <= 0.01);
    }
}
