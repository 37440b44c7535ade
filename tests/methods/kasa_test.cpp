// KaSA: the truncated base, the penalties, the way back to plain LoRA.

#include "deltaw/init/kasa.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "deltaw/model/to_lora.hpp"
#include "double_solver.hpp"
#include "support/methods.hpp"
#include "toy_layer.hpp"

using namespace deltaw_tests;
using Layer = ToyLayer<dw::Kasa>;

namespace {
const std::vector<double> spectrum{5, 4, 3, 2, 1, 0.5};

// The penalty as it is written down: of rank x rank matrices, or of the large ones.
double penalty(Layer& layer, bool large) {
  const auto& o = layer.adapter.options();
  const auto distance = [](Matrix m) {
    for (index_t i = 0; i < m.rows; ++i) m(i, i) -= 1;
    return frobenius(m);
  };
  const Matrix a = layer.value(dw::Role::Down), bt = turned(layer.value(dw::Role::Up));
  const double d = frobenius(layer.value(dw::Role::Gate));
  const auto of = [&](const Matrix& f) { return distance(large ? times(turned(f), f) : times_transposed(f, f)); };
  return o.beta * d * d + o.gamma * (of(a) + of(bt));
}
void fill(Layer& layer, std::uint32_t seed) {
  for (dw::Role role : {dw::Role::Down, dw::Role::Up, dw::Role::Gate}) {
    const Matrix old = layer.value(role);
    layer.set(role, random_values(old.rows, old.cols, seed++));
  }
}
}  // namespace

TEST_CASE("KaSA: the base loses its smallest singular triplets, and the record gives them back") {
  const Matrix w = with_singular_values(9, 6, spectrum, 3);
  Layer layer(w, {.rank = 2});
  const auto change = dw::init::Kasa{.seed = 4}(layer.ctx, layer.adapter, layer.base);
  const auto left = dw::init::spectrum<double, dw::Cpu>(layer.ctx, layer.base.weight);
  for (std::size_t i = 0; i < 6; ++i) CHECK(left[i] == Approx(i < 4 ? spectrum[i] : 0).margin(1e-13));

  const Matrix x = random_values(5, 6, 2);
  CHECK(layer.output(x).values == [&] {
    Matrix y(5, 9);
    layer.base.forward(layer.ctx, view_of(x), view_of(y));
    return y.values;
  }());
  CHECK(frobenius(plus(layer.output(x), times_transposed(x, w), -1)) > 0.1);  // and not what it was

  dw::undo_change<dw::Cpu>(layer.ctx, change, layer.base.weight);
  CHECK(frobenius(plus(layer.w, w, -1)) < 1e-13);
  const Matrix b0 = matrix_of(change.up.view()), a0 = matrix_of(change.down.view());
  CHECK(frobenius(times_transposed(a0, a0)) == Approx(std::sqrt(2.0)));  // V_d^T is orthonormal
  CHECK(frobenius(b0) == Approx(std::sqrt(1 + 0.25)));
}

TEST_CASE("KaSA: the penalties and their gradients are those of the formula, in both forms") {
  for (bool reference : {false, true}) {
    Layer first(random_values(7, 5, 1), {.rank = 3, .beta = 0.3, .gamma = 0.7, .reference_form = reference});
    Layer second(random_values(4, 8, 2), {.rank = 2, .beta = 0.2, .gamma = 0.4, .reference_form = reference});
    fill(first, 10), fill(second, 20);
    Layer::A* const layers[] = {&first.adapter, &second.adapter};
    const auto value = [&] { return (penalty(first, reference) + penalty(second, reference)) / (reference ? 2 : 1); };
    dw::Tensor<double> loss(1, 1);
    dw::regularize<Layer::A>(first.ctx, layers, loss.view());
    CHECK(loss.view()(0, 0) == Approx(value()).epsilon(1e-13));
    for (Layer* layer : {&first, &second})
      for (dw::Role role : {dw::Role::Down, dw::Role::Up, dw::Role::Gate}) {
        const Matrix before = layer->value(role), gradient = layer->gradient(role);
        for (std::size_t k = 0; k < before.values.size(); ++k) {
          const auto at = [&](double step) {
            Matrix moved = before;
            moved.values[k] += step;
            layer->set(role, moved);
            return value();
          };
          CHECK(gradient.values[k] == Approx((at(1e-5) - at(-1e-5)) / 2e-5).margin(1e-8));
        }
        layer->set(role, before);
      }
  }
}

TEST_CASE("KaSA: penalties leave alone what is frozen, and are finite at B = 0 and at orthonormal factors") {
  Layer layer(random_values(7, 5, 1), {.rank = 3, .gamma = 1});
  layer.adapter.initialize(layer.ctx, 2);
  layer.set(dw::Role::Down, random_rows(3, 5, 3));
  layer.parameter(dw::Role::Gate).trained = false;
  Layer::A* const layers[] = {&layer.adapter};
  dw::regularize<Layer::A>(layer.ctx, layers);
  CHECK(frobenius(layer.gradient(dw::Role::Up)) == 0);
  CHECK(frobenius(layer.gradient(dw::Role::Down)) < 10);  // at the kink itself any subgradient is right
  CHECK(frobenius(layer.gradient(dw::Role::Gate)) == 0);
  layer.parameter(dw::Role::Down).trained = false;
  dw::zero_grad(layer.ctx, layer.adapter);
  layer.set(dw::Role::Down, random_values(3, 5, 3));
  dw::regularize<Layer::A>(layer.ctx, layers);
  CHECK(frobenius(layer.gradient(dw::Role::Down)) == 0);
}

TEST_CASE("KaSA: exported as LoRA of twice the rank, it fits the original weight") {
  const Matrix w = with_singular_values(9, 6, spectrum, 3), x = random_values(5, 6, 2);
  Layer layer(w, {.rank = 2, .alpha = 3});
  const auto change = dw::init::Kasa{.seed = 4}(layer.ctx, layer.adapter, layer.base);
  fill(layer, 30);
  ToyLayer<dw::Lora> lora(w, {.rank = 4});
  lora.adapter = dw::to_lora(layer.ctx, layer.adapter, change);
  CHECK(lora.adapter.rank() == 4);
  CHECK(lora.adapter.options().alpha == 6);
  CHECK(frobenius(plus(lora.output(x), layer.output(x), -1)) < 1e-13 * frobenius(layer.output(x)));
  CHECK(frobenius(plus(lora.delta(), layer.delta(), -1)) > 0.1);
  lora.adapter = dw::to_lora(layer.ctx, layer.adapter);
  CHECK(lora.adapter.rank() == 2);
  CHECK(frobenius(plus(lora.delta(), layer.delta(), -1)) < 1e-13);
  layer.adapter.set_scale(0);
  CHECK(message_of<dw::OptionError>([&] { (void)dw::to_lora(layer.ctx, layer.adapter); }) ==
        "to_lora: scale: got 0, want another number than 0");
}

TEST_CASE("KaSA: a set keeps what was taken from each weight, and gives it back on removal") {
  dw::Cpu::Context ctx;
  dw::AdapterSet<double, dw::Cpu> set;
  Matrix q = with_singular_values(9, 6, spectrum, 3), v = with_singular_values(6, 6, spectrum, 5);
  const Matrix q0 = q, v0 = v;
  set.add_layer("q", dw::dense(q.values.data(), nullptr, {.in_features = 6, .out_features = 9}));
  set.add_layer("v", dw::dense(v.values.data(), nullptr, {.in_features = 6, .out_features = 6}));
  const auto request = [](const char* rank) {
    return dw::AdaptRequest{.method = "kasa", .options = {{"rank", rank}}, .targets = {.names = {"q", "v"}}};
  };
  CHECK_THROWS_AS(set.adapt(ctx, request("6"), dw::init::Kasa{.seed = 1}), dw::OptionError);
  CHECK(q.values == q0.values);
  set.adapt(ctx, request("2"), dw::init::Kasa{.seed = 1});
  CHECK(frobenius(plus(q, q0, -1)) == Approx(std::sqrt(1 + 0.25)));
  CHECK(frobenius(plus(v, v0, -1)) == Approx(std::sqrt(1 + 0.25)));
  CHECK(set.base_change("default", "v").down.rows() == 2);
  set.remove(ctx, "default");
  CHECK(frobenius(plus(q, q0, -1)) < 1e-13);
  CHECK(frobenius(plus(v, v0, -1)) < 1e-13);
}

TEST_CASE("KaSA: it learns a change of low rank, and its penalty keeps the factors nearer to orthonormal", "[effect]") {
  for (std::uint32_t seed : {1u, 2u, 3u}) {
    const Matrix w = random_values(10, 12, seed), x = random_values(100, 12, seed + 1);
    const Matrix target = times_transposed(x, plus(w, with_singular_values(10, 12, {2, 1.5}, seed + 2)));
    const auto train = [&](double gamma) {
      Layer layer(w, {.rank = 4, .alpha = 8, .gamma = gamma});
      (void)dw::init::Kasa{.seed = seed}(layer.ctx, layer.adapter, layer.base);
      const double first = layer.loss(x, target);
      dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.02, .weight_decay = 0}};
      for (int i = 0; i < 600; ++i) layer.step(optimizer, x, target);
      Layer bare(w, {.rank = 4, .beta = 0, .gamma = 1});
      for (dw::Role role : {dw::Role::Down, dw::Role::Up}) bare.set(role, layer.value(role));
      return std::pair{layer.loss(x, target) / first, penalty(bare, false)};
    };
    const auto [loss, distance] = train(1e-3);
    CHECK(loss < 0.2);
    CHECK(train(3e-2).second < 0.5 * train(0).second);
    CHECK(distance <= 1.05 * train(0).second);
  }
}

TEST_CASE("KaSA: options and adapters that do not fit are refused") {
  const auto refused = [](dw::Kasa<double, dw::Cpu>::Options o) {
    return message_of<dw::OptionError>([&] { dw::Kasa<double, dw::Cpu>({5, 4}, o); });
  };
  CHECK(refused({.rank = 0}) == "Kasa: rank: got 0, want 1 or more");
  CHECK(
      refused({.rank = 4}) ==
      "Kasa: rank: got 4, want below min(in_features, out_features) = 4, the singular triplets of which it takes some "
      "away");
  CHECK(refused({.rank = 2, .beta = -1}) == "Kasa: beta: got -1, want finite and 0 or more");
  CHECK(refused({.rank = 2, .gamma = std::nan("")}) == "Kasa: gamma: got nan, want finite and 0 or more");
  ToyLayer<dw::Lora> lora(random_values(4, 5, 1), {.rank = 2});
  CHECK(message_of<dw::UnsupportedError>([&] { (void)dw::init::Kasa{}(lora.ctx, lora.adapter, lora.base); }) ==
        "Kasa: gate: got a method without one, want one that has it");
}
