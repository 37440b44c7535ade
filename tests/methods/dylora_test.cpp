// DyLoRA: which ranks a step draws, trains and leaves alone, and what a truncation is.

#include "toy_layer.hpp"

using namespace deltaw_tests;
using Layer = ToyLayer<dw::DyLora>;

namespace {
void begin(std::vector<Layer::A*> layers, long step) {
  dw::Cpu::Context ctx;
  Layer::A::begin_step(ctx, layers, {.step = step});
}
void end(std::vector<Layer::A*> layers) {
  dw::Cpu::Context ctx;
  Layer::A::after_step(ctx, layers, {});
}
Matrix rows(const Matrix& m, index_t first, index_t count) { return matrix_of(view_of(m).row_range(first, count)); }
}  // namespace

TEST_CASE("DyLoRA: ranks are drawn uniformly, by seed and step, one for all layers") {
  Layer::A wide({9, 8}, {.rank = 6, .seed = 4}), narrow({9, 8}, {.rank = 4, .seed = 4});
  std::vector<int> seen(7);
  for (long step = 0; step < 6000; ++step) {
    begin({&wide, &narrow}, step);
    const index_t b = wide.rank();
    ++seen[static_cast<std::size_t>(b)];
    if (narrow.rank() != std::min<index_t>(b, 4)) FAIL("rank of the narrow layer");
    if (wide.scale() != 8.0 / static_cast<double>(b)) FAIL("scale");
  }
  CHECK(seen[0] == 0);
  for (std::size_t b = 1; b <= 6; ++b) CHECK(std::abs(seen[b] - 1000) < 150);  // five deviations

  const auto drawn = [](std::uint64_t seed, long step) {
    Layer::A layer({9, 8}, {.rank = 6, .seed = seed});
    begin({&layer}, step);
    return layer.rank();
  };
  std::vector<index_t> first, again, other;
  for (long step = 0; step < 20; ++step)
    first.push_back(drawn(1, step)), again.push_back(drawn(1, step)), other.push_back(drawn(2, step));
  CHECK(first == again);
  CHECK(first != other);
}

TEST_CASE("DyLoRA: only the trained ranks get gradients, and AdamW leaves the others alone, to the bit") {
  const Matrix x = random_values(20, 7, 2), target = random_values(20, 6, 3);
  for (bool frozen : {true, false}) {
    Layer layer(random_values(6, 7, 1), {.rank = 4, .frozen = frozen, .seed = 9});
    layer.set(dw::Role::Down, random_values(4, 7, 5));
    layer.set(dw::Role::Up, random_values(6, 4, 6));
    dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.1, .weight_decay = 0.1}};
    bool partly = false;
    for (long step = 0; step < 12; ++step) {
      const Matrix a = layer.value(dw::Role::Down), b = turned(layer.value(dw::Role::Up));
      Layer::A* const layers[] = {&layer.adapter};
      dw::begin_step<Layer::A>(layer.ctx, layers, {.step = step});
      const index_t rank = layer.adapter.rank(), first = frozen ? rank - 1 : 0;
      partly = partly || rank < 4;
      layer.backward(x, target);
      const Matrix da = layer.gradient(dw::Role::Down), db = turned(layer.gradient(dw::Role::Up));
      optimizer.step(layer.ctx, layer.adapter);
      dw::after_step<Layer::A>(layer.ctx, layers, {});
      dw::zero_grad(layer.ctx, layer.adapter);
      CHECK(layer.adapter.rank() == 4);
      const Matrix a2 = layer.value(dw::Role::Down), b2 = turned(layer.value(dw::Role::Up));
      for (index_t k = 0; k < 4; ++k) {
        const bool trained = k >= first && k < rank;
        CHECK((frobenius(rows(da, k, 1)) > 0) == trained);
        CHECK((frobenius(rows(db, k, 1)) > 0) == trained);
        CHECK((rows(a, k, 1).values == rows(a2, k, 1).values) == !trained);
        CHECK((rows(b, k, 1).values == rows(b2, k, 1).values) == !trained);
      }
    }
    CHECK(partly);
  }
}

TEST_CASE("DyLoRA: a step's gradients are those of its rank, by central differences") {
  const Matrix x = random_values(8, 7, 2), target = random_values(8, 6, 3);
  Layer layer(random_values(6, 7, 1), {.rank = 4, .frozen = false, .seed = 9});
  layer.set(dw::Role::Down, random_values(4, 7, 5));
  layer.set(dw::Role::Up, random_values(6, 4, 6));
  long step = 0;
  while (layer.adapter.rank() != 2) begin({&layer.adapter}, step++);
  layer.backward(x, target);
  for (dw::Role role : {dw::Role::Down, dw::Role::Up}) {
    const Matrix value = layer.value(role), gradient = layer.gradient(role);
    for (std::size_t k = 0; k < value.values.size(); ++k) {
      const auto loss_at = [&](double change) {
        Matrix moved = value;
        moved.values[k] += change;
        layer.set(role, moved);
        return layer.loss(x, target);
      };
      CHECK(gradient.values[k] == Approx((loss_at(1e-5) - loss_at(-1e-5)) / 2e-5).margin(1e-8));
    }
    layer.set(role, value);
  }
}

TEST_CASE("DyLoRA: a truncation is a plain LoRA of the leading ranks, whatever the others hold") {
  Layer layer(random_values(6, 7, 1), {.rank = 4, .alpha = 6});
  layer.set(dw::Role::Down, random_values(4, 7, 5));
  layer.set(dw::Role::Up, random_values(6, 4, 6));
  const Matrix x = random_values(5, 7, 2), whole = layer.output(x);
  const dw::BaseRef<double, double, dw::Cpu> base = layer.base;
  for (index_t rank = 1; rank <= 4; ++rank) {
    layer.adapter.set_rank(rank);
    auto lora = layer.adapter.truncated(layer.ctx, rank);
    CHECK(lora.scale() == 6.0 / static_cast<double>(rank));
    CHECK(lora.rank() == rank);
    dw::Lora<double, dw::Cpu>::Saved saved;
    Matrix y(5, 6);
    layer.base.forward(layer.ctx, view_of(x), view_of(y));
    lora.forward(layer.ctx, base, view_of(x), view_of(y), saved);
    CHECK(y.values == layer.output(x).values);
    CHECK(frobenius(plus(times_transposed(x, plus(layer.w, layer.delta())), y, -1)) < 1e-13);
    Matrix a = layer.value(dw::Role::Down);
    for (index_t k = rank; k < 4; ++k)
      for (index_t j = 0; j < 7; ++j) a(k, j) = 100;
    const Matrix before = layer.value(dw::Role::Down);
    layer.set(dw::Role::Down, a);
    CHECK(y.values == layer.output(x).values);
    layer.set(dw::Role::Down, before);
  }
  layer.adapter.set_rank(2);
  begin({&layer.adapter}, 0);
  end({&layer.adapter});
  CHECK(layer.adapter.rank() == 2);
  layer.adapter.set_rank(4);
  CHECK(layer.output(x).values == whole.values);
  layer.adapter.set_scale(3);  // twice what it was
  layer.adapter.set_rank(2);
  CHECK(layer.adapter.scale() == 6);
  CHECK(message_of<dw::OptionError>([&] { layer.adapter.set_rank(5); }) == "DyLora: rank: got 5, want 1 to 4");
  CHECK(message_of<dw::OptionError>([&] { layer.adapter.set_rank(0); }) == "DyLora: rank: got 0, want 1 to 4");
  CHECK(message_of<dw::OptionError>([&] { (void)layer.adapter.truncated(layer.ctx, 5); }) ==
        "DyLora: rank: got 5, want 1 to 4");
}

TEST_CASE("DyLoRA: cut to half its ranks or fewer it does better than LoRA cut as far", "[effect]") {
  const index_t in = 12, out = 10, rank = 6;
  for (bool frozen : {true, false}) {
    for (std::uint32_t seed : {1u, 2u, 3u}) {
      const Matrix w = random_values(out, in, seed), x = random_values(100, in, seed + 1);
      const Matrix target =
          times_transposed(x, plus(w, with_singular_values(out, in, {3, 2.5, 2, 1.5, 1, 0.5}, seed + 2)));
      const auto train = [&](auto& layer) {
        dw::init::Kaiming{.seed = seed}(layer.ctx, layer.adapter, layer.base);
        dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.02, .weight_decay = 0}};
        for (long step = 0; step < 1500; ++step) layer.step(optimizer, x, target, {.step = step});
      };
      Layer dylora(w, {.rank = rank, .alpha = 6, .frozen = frozen, .seed = seed});
      ToyLayer<dw::Lora> lora(w, {.rank = rank, .alpha = 6});
      const double untrained = dylora.loss(x, target);
      train(dylora);
      train(lora);
      CHECK(lora.loss(x, target) < 1e-3 * untrained);
      double truncated = 0, lora_cut = 0;
      for (index_t b : {1, 2, 3}) {
        ToyLayer<dw::Lora> cut(w, {.rank = b, .alpha = static_cast<double>(b)});
        const Matrix a = lora.value(dw::Role::Down), up = turned(lora.value(dw::Role::Up));
        cut.set(dw::Role::Down, rows(a, 0, b));
        cut.set(dw::Role::Up, turned(rows(up, 0, b)));
        dylora.adapter.set_rank(b);
        truncated += dylora.loss(x, target);
        lora_cut += cut.loss(x, target);
      }
      INFO("frozen " << frozen << ", seed " << seed);
      CHECK(truncated < 0.92 * lora_cut);
    }
  }
}

TEST_CASE("DyLoRA: resized, it draws from the ranks there are, at the scale there was") {
  Layer layer(random_values(6, 7, 1), {.rank = 4, .alpha = 6});
  layer.adapter.set_rank(2);
  const std::vector<index_t> keep{0, 2};
  dw::resize_rank(layer.ctx, layer.adapter, keep, 1);
  CHECK(layer.adapter.rank() == 3);
  CHECK(layer.adapter.scale() == 3);
  for (long step = 0; step < 30; ++step) {
    begin({&layer.adapter}, step);
    CHECK(layer.adapter.rank() <= 3);
    CHECK(layer.adapter.scale() == 9.0 / static_cast<double>(layer.adapter.rank()));
  }
  end({&layer.adapter});
  CHECK(layer.adapter.scale() == 3);
}

TEST_CASE("DyLoRA: options outside their range are refused") {
  const auto refused = [](dw::DyLora<double, dw::Cpu>::Options o) {
    return message_of<dw::OptionError>([&] { dw::DyLora<double, dw::Cpu>({5, 4}, o); });
  };
  CHECK(refused({.rank = 0}) == "DyLora: rank: got 0, want 1 or more");
  CHECK(refused({.rank = 5}).starts_with("DyLora: rank: got 5, want at most"));
  CHECK(refused({.rank = 2, .alpha = 0}).starts_with("DyLora: alpha: got 0"));
  CHECK(refused({.rank = 2, .dropout = 1}).starts_with("DyLora: dropout: got 1"));
}
