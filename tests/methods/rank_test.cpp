// resize_rank: what belongs to a rank moves with it, for any adapter and for the optimizer's state.

#include <map>
#include <string>

#include "catch.hpp"
#include "message.hpp"
#include "planted.hpp"

using namespace deltaw_tests;

namespace {

using Sora = dw::Sora<double, dw::Cpu>;
using Lora = dw::Lora<double, dw::Cpu>;

/// Every value, gradient and slot by name; of the ranks `keep`, where it has ranks.
template <class A>
std::map<std::string, std::vector<double>> state_of(const A& adapter, std::vector<index_t> keep) {
  std::map<std::string, std::vector<double>> state;
  const auto add = [&](const std::string& name, const auto& tensor, dw::RankAxis axis) {
    auto& values = state[name];
    const auto v = tensor.view();
    const auto count = static_cast<index_t>(keep.size());
    for (index_t i = 0; i < (axis == dw::RankAxis::Rows ? count : v.rows); ++i)
      for (index_t j = 0; j < (axis == dw::RankAxis::Cols ? count : v.cols); ++j)
        values.push_back(v(axis == dw::RankAxis::Rows ? keep[static_cast<std::size_t>(i)] : i,
                           axis == dw::RankAxis::Cols ? keep[static_cast<std::size_t>(j)] : j));
  };
  adapter.for_each_parameter([&](const auto& p) {
    add(p.name, p.value, p.rank_axis);
    add(p.name + " gradient", p.grad, p.rank_axis);
    for (const auto& slot : p.slots) add(p.name + " " + slot.name, slot.value, slot.rank_axis);
  });
  return state;
}

}  // namespace

TEST_CASE("resize_rank keeps values, gradients and slots of the ranks that stay, to the bit; fresh ones are zero") {
  PlantedModel<Sora> model(1, 1e-2);
  auto& layer = model.add({7, 6}, 2, 1, {.rank = 5, .alpha = 5});
  model.train(5, 5);
  layer.loss(model.ctx);
  layer.backward(model.ctx);  // gradients that are not zero
  Sora& adapter = layer.adapter;
  const auto before = state_of(adapter, {3, 0, 1});
  const double scale = adapter.scale();
  const std::uint64_t version = dw::version_of(adapter);
  dw::resize_rank(model.ctx, adapter, std::vector<index_t>{3, 0, 1}, 2);
  CHECK(adapter.rank() == 5);
  CHECK(adapter.scale() == scale);
  CHECK(dw::version_of(adapter) > version);
  CHECK(state_of(adapter, {0, 1, 2}) == before);
  CHECK(before.size() == 3 * 4);
  for (const auto& [name, values] : state_of(adapter, {3, 4})) CHECK(values == std::vector<double>(values.size(), 0.0));
  layer.draw(4, model.random);
  CHECK_NOTHROW(model.step(10, 0));
}

TEST_CASE("SoRA pruned after 5 AdamW steps and trained 5 more equals the run with those gates held at 0") {
  const auto run = [](bool prune) {
    PlantedModel<Sora> model(3, 1e-2, 0.01);
    auto& layer = model.add({9, 8}, 2, 1, {.rank = 6, .alpha = 6, .lambda = 0, .l1_weight = 0});
    model.train(5, 10);
    auto& adapter = layer.adapter;
    const auto hold = [&] {
      adapter.for_each_parameter([&](auto& p) {
        if (p.role != dw::Role::Gate) return;
        for (const index_t k : {1, 2, 5}) p.value.view()(0, k) = 0;
        p.changed();
      });
    };
    hold();
    if (prune) adapter.prune(model.ctx);
    CHECK(adapter.rank() == (prune ? 3 : 6));
    std::vector<double> losses;
    for (int i = 0; i < 5; ++i) {
      losses.push_back(model.step(10));
      if (!prune) hold();
    }
    return losses;
  };
  const auto whole = run(false), pruned = run(true);
  for (std::size_t i = 0; i < 5; ++i) CHECK(std::abs(pruned[i] - whole[i]) <= 1e-14 * whole[i]);
  CHECK(whole[4] != whole[0]);
}

TEST_CASE("rank 0 is legal: the adapter adds nothing, trains nothing, and can grow again") {
  PlantedModel<Lora> model(2, 1e-2);
  auto& layer = model.add({7, 6}, 1, 1, {.rank = 3, .alpha = 3});
  model.train(3, 10);
  dw::resize_rank(model.ctx, layer.adapter, {}, 0);
  CHECK(layer.adapter.rank() == 0);
  const double loss = model.step(10, 0);
  CHECK(model.step(10, 0) == loss);
  layer.base.forward(model.ctx, std::as_const(layer.x).view(), layer.want.view());
  layer.loss(model.ctx);
  CHECK(to_host(layer.y.view()) == to_host(layer.want.view()));
  dw::resize_rank(model.ctx, layer.adapter, {}, 2);
  CHECK(layer.adapter.rank() == 2);
}

TEST_CASE("the first update of a fresh rank is not above the learning rate") {
  constexpr double rate = 1e-3;
  PlantedModel<Lora> model(5, rate);
  auto& adapter = model.add({7, 6}, 3, 1, {.rank = 2, .alpha = 2}).adapter;
  model.train(2000, 2000);
  dw::resize_rank(model.ctx, adapter, std::vector<index_t>{0, 1}, 1);
  adapter.for_each_parameter([&](auto& p) {  // a rank that gets a gradient
    if (p.role == dw::Role::Down) fill_normal(p.value.view().row_range(2, 1), model.random);
  });
  const auto up = [&] {
    std::vector<double> values;
    adapter.for_each_parameter([&](auto& p) {
      if (p.role == dw::Role::Up) values = to_host(p.value.view().col_range(2, 1));
    });
    return values;
  };
  auto before = up();
  for (int step = 0; step < 3; ++step) {
    model.step(2000);
    const auto after = up();
    double largest = 0;
    for (std::size_t i = 0; i < after.size(); ++i) largest = std::max(largest, std::abs(after[i] - before[i]));
    CHECK(largest <= (step == 0 ? 1 : 1.05) * rate);
    CHECK(largest >= 0.5 * rate);
    before = after;
  }
}

TEST_CASE("resize_rank works on erased adapters, and refuses what it cannot do before anything changes") {
  dw::Cpu::Context ctx;
  using Any = dw::AnyAdapter<double, dw::Cpu>;
  Any any{Lora({7, 6}, {.rank = 4})};
  CHECK(any.can_resize_rank());
  dw::resize_rank(ctx, any, std::vector<index_t>{0, 2}, 1);
  CHECK(any.get<Lora>()->rank() == 3);
  Any full{dw::FullDelta<double, dw::Cpu>({7, 6}, {})};
  CHECK_FALSE(full.can_resize_rank());
  const auto message = [&]<class E>(Any& a, std::vector<index_t> keep, index_t fresh, const E*) {
    return message_of<E>([&] { dw::resize_rank(ctx, a, keep, fresh); });
  };
  const dw::ShapeError* shape = nullptr;
  const dw::OptionError* option = nullptr;
  const dw::UnsupportedError* unsupported = nullptr;
  CHECK(message(full, {}, 0, unsupported) ==
        "resize_rank: method: got 'full', whose rank cannot change, want one that has ranks");
  CHECK(message(any, {0, 3}, 0, shape) == "resize_rank: keep: got 3, want different ranks of 0 to 2");
  CHECK(message(any, {1, 1}, 0, shape) == "resize_rank: keep: got 1 twice, want different ranks of 0 to 2");
  CHECK(message(any, {1}, -1, option) == "resize_rank: fresh: got -1, want 0 or more");
  dw::Tensor<double> memory(3, 7);
  any.for_each_parameter([&](auto& p) {
    if (p.role == dw::Role::Down) p.value.bind(memory.view());
  });
  CHECK(message_of<dw::MemoryError>([&] { dw::resize_rank(ctx, any, std::vector<index_t>{0}, 0); }) ==
        "resize_rank: memory of 'lora_A.weight': got the caller's, want our own");
  CHECK(any.get<Lora>()->rank() == 3);
}
