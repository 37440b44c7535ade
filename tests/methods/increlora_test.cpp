// IncreLoRA: the score, who grows and when, what a new rank's first update is, and resuming after ranks have grown.

#include <filesystem>
#include <string>

#include "../io/scratch.hpp"
#include "catch.hpp"
#include "deltaw/io/state.hpp"
#include "message.hpp"
#include "planted.hpp"
#include "support/methods.hpp"

using namespace deltaw_tests;

namespace {

using IncreLora = dw::IncreLora<double, dw::Cpu>;

std::vector<index_t> grown(const PlantedModel<IncreLora>& model) {
  std::vector<index_t> ranks;
  for (const IncreLora* adapter : model.adapters) ranks.push_back(adapter->grown());
  return ranks;
}
index_t sum(const std::vector<index_t>& ranks) {
  index_t total = 0;
  for (const index_t r : ranks) total += r;
  return total;
}
/// Three layers of which the second needs 4 ranks, with options for a training of 400 steps.
struct ThreeLayers : PlantedModel<IncreLora> {
  explicit ThreeLayers(unsigned seed, double rate = 1e-2) : PlantedModel<IncreLora>(seed, rate) {
    for (const index_t planted : {1, 4, 0})
      add({16, 12}, planted, 1,
          {.rank = 6, .alpha = 4, .init_warmup = 40, .incre_interval = 20, .top_h = 1, .score_every = 5})
          .noise = 0.1;
  }
};

}  // namespace

TEST_CASE("IncreLoRA: without ranks trained ahead it starts as the base, with them close to it") {
  for (const bool ahead : {false, true}) {
    PlantedModel<IncreLora> model(1, 1e-3);
    auto& layer = model.add({9, 70}, 0, 1, {.rank = 4, .advance_learn = ahead});
    layer.draw(5, model.random);
    dw::prepare(model.ctx, layer.adapter, layer.base);
    const double loss = layer.loss(model.ctx);
    CHECK((ahead ? loss > 0 && loss < 1e-6 : loss == 0));
    CHECK(layer.adapter.rank() == (ahead ? 2 : 1));
  }
}

TEST_CASE("IncreLoRA: the score is the mean of |dW o dL/dW|, over calls and tiles, with averages") {
  PlantedModel<IncreLora> model(1, 1e-3);
  auto& layer = model.add({9, 70}, 2, 1, {.rank = 4, .init_rank = 2, .target_rank = 4, .score_every = 2});
  auto& adapter = layer.adapter;
  adapter.for_each_parameter([&](auto& p) { fill_normal(p.value.view(), model.random), p.changed(); });
  IncreLora* all[] = {&adapter};
  const std::span<IncreLora* const> layers(all);
  const auto slot = [&] { return to_host(parameter(adapter, "lora_E").slot("module_score").view()); };
  double mean = 0, deviation = 0;
  for (long step = 0; step < 4; ++step) {
    dw::begin_step<IncreLora>(model.ctx, layers, {.step = step});
    dw::prepare(model.ctx, adapter, layer.base);
    dw::Tensor<double> delta(70, 9), gradient(70, 9);
    adapter.delta_weight(model.ctx, layer.base, delta.view());
    double score = 0;
    for (int call = 0; call < 2; ++call) {
      layer.draw(6, model.random);
      layer.loss(model.ctx);
      layer.backward(model.ctx);
      dw::Cpu::gemm(model.ctx, 1, dw::t(layer.dy.view()), layer.x.view(), 0, gradient.view());
      for (index_t i = 0; i < 70; ++i)
        for (index_t j = 0; j < 9; ++j)
          score += std::abs(delta.view()(i, j) * gradient.view()(i, j)) / std::sqrt(70.0 * 9.0);
    }
    dw::after_step<IncreLora>(model.ctx, layers, {.step = step});
    if (step % 2 == 1) {
      mean = 0.85 * mean + 0.15 * score;
      deviation = 0.85 * deviation + 0.15 * std::abs(score - mean);
      CHECK(slot()[0] == Approx(score).epsilon(1e-12));
    }
    CHECK(slot()[1] == Approx(mean).epsilon(1e-12));
    CHECK(slot()[2] == Approx(deviation).epsilon(1e-12));
  }
}

TEST_CASE("IncreLoRA: ranks grow when they are due, never above bound or target, and the reserve goes at the end") {
  ThreeLayers model(1);
  std::vector<index_t> before = grown(model);
  CHECK(before == std::vector<index_t>{1, 1, 1});
  for (long taken = 1; taken <= 200; ++taken) {
    model.step(200);
    const auto now = grown(model);
    INFO("step " << taken);
    const bool due = taken > 40 && taken % 20 == 0 && sum(before) < 6;
    CHECK(sum(now) == sum(before) + (due ? 1 : 0));
    for (const IncreLora* adapter : model.adapters) {
      CHECK(adapter->grown() <= 6);
      CHECK(adapter->rank() == (sum(now) < 6 ? std::min<index_t>(6, adapter->grown() + 1) : adapter->grown()));
    }
    before = now;
  }
  CHECK(sum(before) == 6);
}

TEST_CASE("IncreLoRA: a layer at its bound does not grow, and what others may get is not lost") {
  PlantedModel<IncreLora> model(1, 1e-2);
  for (const index_t planted : {3, 0})
    model.add({8, 7}, planted, 1,
              {.rank = 2, .alpha = 4, .init_warmup = 0, .incre_interval = 5, .top_h = 1, .score_every = 1});
  model.train(30, 30);
  CHECK(grown(model) == std::vector<index_t>{2, 2});
}

TEST_CASE("IncreLoRA: the first updates of grown ranks are not above the learning rate; those to come stay") {
  constexpr double rate = 5e-3;
  ThreeLayers model(2, rate);
  model.for_each_parameter([](auto& p) { p.step = 2000; });  // from where a first update would be 2.9 times the rate
  const auto values = [&] {
    std::vector<std::vector<double>> all;
    model.for_each_parameter([&](auto& p) { all.push_back(to_host(p.value.view())); });
    return all;
  };
  int births = 0;
  for (long taken = 1; taken <= 200; ++taken) {
    const auto ranks = grown(model);
    std::vector<index_t> parts;
    for (const IncreLora* adapter : model.adapters) parts.push_back(adapter->rank());
    const auto before = values();
    model.step(200);
    const auto after = values();
    std::size_t at = 0;
    for (std::size_t l = 0; l < 3; ++l)
      model.adapters[l]->for_each_parameter([&](auto& p) {
        const index_t trained = p.role == dw::Role::Gate ? ranks[l] : parts[l];
        const bool final = parts[l] > model.adapters[l]->rank();
        double worst = 0, untouched = 0;
        for (std::size_t i = 0; i < after[at].size(); ++i) {
          const auto cols = p.value.cols(), n = static_cast<index_t>(i);
          const index_t rank = p.rank_axis == dw::RankAxis::Rows ? n / cols : n % cols;
          const double moved = std::abs(after[at][i] - before[at][i]);
          if (rank >= trained) untouched = std::max(untouched, moved);
          // Born in the step before: AdamW's first update of such a rank.
          if (!p.births.empty() && rank < trained && p.births[static_cast<std::size_t>(rank)] == p.step - 1 &&
              p.step > 1)
            worst = std::max(worst, moved), ++births;
        }
        INFO(p.name << " of layer " << l << " in step " << taken);
        CHECK(worst <= rate * (1 + 1e-9));
        if (!final) CHECK(untouched == 0);
        ++at;
      });
  }
  CHECK(births == 2 * (16 + 12) + 3);  // A and B of two more reserves, e of three ranks
}

TEST_CASE("IncreLoRA: a run resumed after ranks have grown gives the same bits") {
  const Scratch scratch;
  const auto path = scratch / "state.safetensors";
  ThreeLayers whole(3);
  whole.train(90, 200);
  dw::io::save_state(path, whole, {.step = 90});
  ThreeLayers resumed(3);
  dw::io::load_state(path, resumed);
  CHECK(message_of<dw::StaleError>([&] {
          resumed.layers[0]->draw(2, resumed.random);
          resumed.layers[0]->loss(resumed.ctx);
        }) == "IncreLora: prepare: got parameters changed since, want prepare after each change");
  resumed.steps = whole.steps;
  resumed.random = whole.random;
  whole.train(60, 200);
  resumed.train(60, 200);
  CHECK(grown(resumed) == grown(whole));
  CHECK(sum(grown(whole)) > 3);
  std::vector<std::vector<double>> a, b;
  whole.for_each_parameter([&](auto& p) { a.push_back(to_host(p.value.view())); });
  resumed.for_each_parameter([&](auto& p) { b.push_back(to_host(p.value.view())); });
  CHECK(a == b);
}

TEST_CASE("IncreLoRA: alpha at run time is the scale, whatever has grown") {
  PlantedModel<IncreLora> model(1, 1e-3);
  auto& adapter = model.add({8, 7}, 1, 1, {.rank = 3, .alpha = 6, .advance_learn = false}).adapter;
  adapter.for_each_parameter([&](auto& p) { fill_normal(p.value.view(), model.random), p.changed(); });
  dw::prepare(model.ctx, adapter, model.layers[0]->base);
  const auto one = output(adapter);
  CHECK(adapter.scale() == 6);
  adapter.set_scale(0);
  const auto none = output(adapter);
  adapter.set_scale(12);
  const auto two = output(adapter);
  for (std::size_t i = 0; i < one.size(); ++i) CHECK(two[i] - one[i] == Approx(one[i] - none[i]).margin(1e-12));
}

TEST_CASE("IncreLoRA: bad options are refused by name, and its rank is its own affair") {
  const auto message = [](IncreLora::Options o) {
    return message_of<dw::OptionError>([&] { return IncreLora({8, 6}, o); });
  };
  CHECK(message({.rank = 4, .init_rank = 5}) == "IncreLora: init_rank: got 5, want 1 to rank = 4");
  CHECK(message({.rank = 4, .init_rank = 2, .target_rank = 1}) ==
        "IncreLora: target_rank: got 1, want init_rank = 2 to rank = 4");
  CHECK(message({.rank = 4, .top_h = 0}) == "IncreLora: top_h: got 0, want 1 or more");
  CHECK(message({.rank = 4, .incre_interval = 4, .score_every = 5}) ==
        "IncreLora: score_every: got 5, want 1 to incre_interval = 4");
  dw::Cpu::Context ctx;
  dw::AnyAdapter<double, dw::Cpu> any{IncreLora({8, 6}, {.rank = 4})};
  CHECK_FALSE(any.can_resize_rank());
}

// The paper: layers that need ranks get them. Seeds 1 to 5: all three ranks went to the second layer.
TEST_CASE("IncreLoRA: the layer with the planted ranks grows", "[effect]") {
  for (const unsigned seed : {1u, 2u, 3u}) {
    INFO("seed " << seed);
    ThreeLayers model(seed);
    PlantedModel<dw::Lora<double, dw::Cpu>> even(seed, 1e-2);
    for (const index_t planted : {1, 4, 0}) even.add({16, 12}, planted, 1, {.rank = 2, .alpha = 4}).noise = 0.1;
    const double loss = model.train(400, 400), even_loss = even.train(400, 400);
    CHECK(sum(grown(model)) == 6);
    CHECK(grown(model)[1] >= 3);
    INFO(loss << " against " << even_loss);
    CHECK(loss <= even_loss / 2);
    const auto before = output(*model.adapters[1]);
    CHECK(distance(output(model.adapters[1]->compacted(model.ctx)), before) <= 1e-13);
  }
}
