// CoDyRA: the threshold's schedule, the end of a task, and the two claims that hold on toys.

#include <type_traits>

#include "catch.hpp"
#include "message.hpp"
#include "planted.hpp"

using namespace deltaw_tests;

namespace {

using CoDyRA = dw::CoDyRA<double, dw::Cpu>;
using Lora = dw::Lora<double, dw::Cpu>;

struct Stream {
  std::vector<index_t> ranks;  ///< left open in each task
  double loss = 0;             ///< on the task just learned, the mean of all
  double drift = 0;            ///< how far outputs on inputs of before the first task have moved, squared
};

/// Three tasks of ranks 1, 2, 4, each on inputs of a 12-dimensional subspace of its own, one after the other; `few`: on 48
/// samples with noise instead of fresh ones.
template <class A>
Stream learn(unsigned seed, double rate, long steps, bool few, typename A::Options options) {
  Stream stream;
  PlantedModel<A> model(seed, rate);
  auto& layer = model.add({32, 24}, 0, 1, options);
  const dw::Tensor<double> before(layer.w);
  std::mt19937 tasks(seed + 100);
  const auto draw_subspace = [&](dw::Tensor<double>& s) { fill_normal(s.resize(12, 32), tasks, 1 / std::sqrt(12.0)); };
  dw::Tensor<double> old_inputs;
  draw_subspace(old_inputs);
  for (const index_t planted : {1, 2, 4}) {
    layer.target = before;
    dw::Tensor<double> u(24, planted), v(planted, 32);
    fill_normal(u.view(), tasks), fill_normal(v.view(), tasks);
    dw::Cpu::gemm(model.ctx, 1 / std::sqrt(static_cast<double>(planted * 32)), u.view(), v.view(), 1,
                  layer.target.view());
    draw_subspace(layer.subspace);
    model.steps = 0;
    layer.noise = few ? 0.5 : 0;
    if (few) layer.draw(48, model.random);
    for (long i = 0; i < steps; ++i) model.step(steps, few ? 0 : 32);
    layer.noise = 0;
    layer.draw(500, model.random);
    stream.loss += layer.loss(model.ctx) / 3;
    const auto next = static_cast<std::uint64_t>(planted) + 77;
    if constexpr (std::is_same_v<A, CoDyRA>) {
      const auto task = layer.adapter.merge_and_restart(model.ctx, layer.base, layer.w.view(), next);
      stream.ranks.push_back(task.rank());
    } else {
      layer.adapter.merge(model.ctx, layer.base, layer.w.view());
      dw::init::Kaiming{.seed = next}(model.ctx, layer.adapter, layer.base);
      layer.adapter.for_each_parameter([](auto& p) { p.slots.clear(), p.step = 0; });
    }
  }
  dw::Tensor<double> change(layer.w), moved(24, 12);
  dw::Cpu::map(model.ctx, dw::AddScaled{-1}, change.view(), before.view());
  dw::Cpu::gemm(model.ctx, 1, change.view(), dw::t(old_inputs.view()), 0, moved.view());
  stream.drift = dw::Cpu::norm2(model.ctx, moved.view());
  return stream;
}

}  // namespace

TEST_CASE("CoDyRA: the threshold is 0 in the first part and rises in stages to kappa") {
  const CoDyRA adapter({6, 7}, {.rank = 2, .kappa = 0.4, .stages = 5});
  const auto threshold = [&](long step) { return adapter.threshold({.step = step, .total_steps = 100}); };
  CHECK(threshold(0) == 0);
  CHECK(threshold(49) == 0);
  CHECK(threshold(50) == 0);
  CHECK(threshold(60) == Approx(0.1).epsilon(1e-14));
  CHECK(threshold(89) == Approx(0.3).epsilon(1e-14));
  CHECK(threshold(99) == 0.4);
}

TEST_CASE("CoDyRA: gates are shrunk in the second part, exactly or as the authors' code does") {
  for (const bool repo : {false, true}) {
    PlantedModel<CoDyRA> model(1, 1e-3);
    auto& adapter = model.add({6, 7}, 1, 1, {.rank = 3, .kappa = 0.4, .repo_threshold = repo}).adapter;
    from_host(std::vector<double>{1, -0.5, 0.3}, parameter(adapter, "gate").value.view());
    const auto after = [&](long step) {
      dw::after_step<CoDyRA>(model.ctx, std::span<CoDyRA* const>(model.adapters), {.step = step, .total_steps = 100});
      return to_host(parameter(adapter, "gate").value.view());
    };
    CHECK(after(10) == std::vector<double>{1, -0.5, 0.3});
    CHECK(distance(after(99), repo ? std::vector<double>{0.6, 0, 0} : std::vector<double>{0.6, -0.1, 0}) <= 1e-15);
  }
}

TEST_CASE("CoDyRA: the end of a task changes no output, and leaves a fresh adapter and a record") {
  PlantedModel<CoDyRA> model(2, 1e-2);
  auto& layer = model.add({9, 8}, 2, 1, {.rank = 4, .alpha = 4});
  model.train(20, 100);
  auto& adapter = layer.adapter;
  parameter(adapter, "gate").value.view()(0, 1) = 0;
  const bool prune = GENERATE(false, true);
  if (prune) adapter.prune(model.ctx);
  layer.loss(model.ctx);
  const auto before = to_host(layer.y.view());
  const dw::Tensor<double> w(layer.w);
  const Lora task = adapter.merge_and_restart(model.ctx, layer.base, layer.w.view(), 5);
  CHECK(task.rank() == 3);
  CHECK(adapter.rank() == 4);
  layer.loss(model.ctx);
  CHECK(distance(to_host(layer.y.view()), before) <= 1e-13);
  dw::Tensor<double> sum(w);
  task.merge(model.ctx, layer.base, sum.view());
  CHECK(distance(to_host(sum.view()), to_host(layer.w.view())) == 0);
  CoDyRA fresh({9, 8}, adapter.options());
  fresh.initialize(model.ctx, 5);
  adapter.for_each_parameter([&](auto& p) {
    CHECK(to_host(p.value.view()) == to_host(parameter(fresh, p.name).value.view()));
    CHECK(to_host(p.grad.view()) == std::vector<double>(static_cast<std::size_t>(p.value.size()), 0.0));
    CHECK((p.slots.empty() && p.step == 0));
  });
  CHECK_NOTHROW(model.step(100));
}

TEST_CASE("CoDyRA: bad options are refused by name") {
  const auto message = [](CoDyRA::Options o) { return message_of<dw::OptionError>([&] { return CoDyRA({8, 6}, o); }); };
  CHECK(message({.rank = 2, .kappa = -1}) == "CoDyRA: kappa: got -1, want finite and 0 or more");
  CHECK(message({.rank = 2, .stages = 1}) == "CoDyRA: stages: got 1, want 2 or more: the first threshold is 0");
  CHECK(message({.rank = 2, .dense_part = 1}) == "CoDyRA: dense_part: got 1, want at least 0 and below 1");
  PlantedModel<CoDyRA> model(1, 1e-3);
  model.add({8, 6}, 1, 1, {.rank = 2});
  CHECK(message_of<dw::OptionError>([&] { model.step(0); }) ==
        "CoDyRA: total_steps: got 0, want the steps of this task");
}

// Seeds 1 to 6: 5 to 7, 7 to 10, 10 to 12 ranks of 12.
TEST_CASE("CoDyRA: with plentiful data a task that needs more ranks keeps more", "[effect]") {
  for (const unsigned seed : {1u, 2u, 3u}) {
    const Stream stream = learn<CoDyRA>(seed, 3e-3, 1500, false, {.rank = 12, .alpha = 12, .kappa = 3e-3});
    INFO("seed " << seed << ": " << stream.ranks[0] << ", " << stream.ranks[1] << ", " << stream.ranks[2]);
    CHECK(stream.ranks[0] <= stream.ranks[1]);
    CHECK(stream.ranks[1] <= stream.ranks[2]);
    CHECK(stream.ranks[0] < stream.ranks[2]);
    CHECK(stream.loss <= 0.01);
  }
}

// Seeds 1 to 6: 0.56 to 0.74 of LoRA's drift at 0.7 to 1.6 of its loss.
TEST_CASE("CoDyRA: on few noisy samples less of what was before is forgotten than with LoRA", "[effect]") {
  for (const unsigned seed : {1u, 2u, 3u, 4u}) {
    const Stream gated = learn<CoDyRA>(seed, 2e-3, 1000, true, {.rank = 12, .alpha = 12, .kappa = 1e-2});
    const Stream plain = learn<Lora>(seed, 2e-3, 1000, true, {.rank = 12, .alpha = 12});
    INFO("seed " << seed << ": drift " << gated.drift << " of " << plain.drift << ", loss " << gated.loss << " of "
                 << plain.loss);
    CHECK(gated.drift <= 0.85 * plain.drift);
    CHECK(gated.loss <= 2 * plain.loss);
  }
}
