// LoRA-SB: the optimal gradient of the core.

#include "rows/core.hpp"
#include "toy_layer.hpp"

using namespace deltaw_tests;
using Layer = ToyLayer<dw::LoraSb>;

namespace {
// Factors that are far from orthonormal: rows of sizes 1, 1/3, 1/9, ...
Matrix badly_scaled(index_t rows, index_t cols, std::uint32_t seed) {
  Matrix m = random_values(rows, cols, seed);
  double size = 1;
  for (index_t i = 0; i < rows; ++i, size /= 3)
    for (index_t j = 0; j < cols; ++j) m(i, j) *= size;
  return m;
}
void place(Layer& layer, index_t rank, std::uint32_t seed) {
  layer.set(dw::Role::Down, badly_scaled(rank, layer.w.cols, seed));
  layer.set(dw::Role::Up, turned(badly_scaled(rank, layer.w.rows, seed + 1)));
}
}  // namespace

TEST_CASE("LoRA-SB: s B H A is the projection of the whole gradient of W") {
  for (double s : {1.0, 0.6, -2.5}) {
    Layer layer(random_values(9, 11, 1), {.rank = 4, .scale = s});
    place(layer, 4, 5);
    layer.set(dw::Role::Core, random_values(4, 4, 9));
    const Matrix x = random_values(20, 11, 2), target = random_values(20, 9, 3);
    layer.backward(x, target);
    const Matrix a = layer.value(dw::Role::Down), b = layer.value(dw::Role::Up);
    const Matrix step = times(b, times(layer.gradient(dw::Role::Core), a));
    const Matrix dy = plus(layer.output(x), target, -1), g = times(turned(dy), x);  // times 20: the loss is a mean
    const Matrix q = orthonormal_rows(a), p = orthonormal_rows(turned(b));
    const Matrix projected = times(turned(p), times(times_transposed(times(p, g), q), q));
    CHECK(frobenius(plus(projected, step, -20 * s)) < 1e-12 * frobenius(projected));
    CHECK(frobenius(plus(projected, g, -1)) > 0.1 * frobenius(g));  // and not the gradient itself
  }
}

TEST_CASE("LoRA-SB: with dropout too, H is the gradient of the dropped inputs between the two inverses") {
  const auto with = [](bool optimal) {
    return dw::LoraSb<double, dw::Cpu>::Options{
        .rank = 4, .scale = 0.6, .optimal_gradient = optimal, .dropout = 0.3, .seed = 11, .layer = 4};
  };
  const Matrix w = random_values(9, 11, 1);
  Layer corrected(w, with(true)), plain(w, with(false));
  for (Layer* layer : {&corrected, &plain}) {
    place(*layer, 4, 5);
    layer->set(dw::Role::Core, random_values(4, 4, 9));
    layer->backward(random_values(20, 11, 2), random_values(20, 9, 3));
  }
  const Matrix a = plain.value(dw::Role::Down), b = turned(plain.value(dw::Role::Up));
  const Matrix between =
      times(times(inverse(times_transposed(b, b)), plain.gradient(dw::Role::Core)), inverse(times_transposed(a, a)));
  const Matrix h = corrected.gradient(dw::Role::Core);
  CHECK(frobenius(plus(h, between, -1 / (0.6 * 0.6))) < 1e-11 * frobenius(h));
  CHECK(frobenius(h) > 0);
}

TEST_CASE("LoRA-SB: orthonormal factors and s = 1 leave the gradient as it is") {
  const auto gradient = [](bool optimal) {
    Layer layer(random_values(6, 7, 1), {.rank = 3, .optimal_gradient = optimal});
    layer.set(dw::Role::Down, random_rows(3, 7, 2));
    layer.set(dw::Role::Up, turned(random_rows(3, 6, 4)));
    layer.backward(random_values(5, 7, 3), random_values(5, 6, 5));
    return layer.gradient(dw::Role::Core);
  };
  CHECK(frobenius(plus(gradient(true), gradient(false), -1)) < 1e-13);
  CHECK(frobenius(gradient(false)) > 0.01);
}

TEST_CASE("LoRA-SB: a second finish adds nothing, and a factor changed since prepare is noticed") {
  Layer layer(random_values(6, 7, 1), {.rank = 3, .scale = 2});
  layer.adapter.initialize(layer.ctx, 4);
  const Matrix x = random_values(5, 7, 3), target = random_values(5, 6, 5);
  layer.backward(x, target);
  const Matrix once = layer.gradient(dw::Role::Core);
  dw::finish(layer.ctx, layer.adapter, layer.base);
  CHECK(layer.gradient(dw::Role::Core).values == once.values);
  place(layer, 3, 8);
  CHECK(message_of<dw::StaleError>([&] { dw::finish(layer.ctx, layer.adapter, layer.base); }) ==
        "LoraSb.finish: prepare: got factors changed since, want it called again");
  CHECK_NOTHROW(layer.backward(x, target));

  Matrix a = layer.value(dw::Role::Down);
  for (index_t j = 0; j < a.cols; ++j) a(2, j) = a(0, j) - 2 * a(1, j);
  layer.set(dw::Role::Down, a);
  CHECK(message_of<dw::OptionError>([&] { dw::prepare(layer.ctx, layer.adapter, layer.base); }) ==
        "LoraSb.prepare: lora_A.weight: got a factor whose ranks are not independent, want one that an initializer has "
        "filled, or optimal_gradient = false");
}

TEST_CASE("LoRA-SB: with badly scaled factors a step goes further, each with its own best learning rate", "[effect]") {
  for (std::uint32_t seed : {1u, 2u, 3u}) {
    const index_t in = 12, out = 10, rank = 4;
    const Matrix w = random_values(out, in, seed), x = random_values(200, in, seed + 1);
    const auto final_loss = [&](bool optimal) {
      double best = 1e300;
      for (double rate : {0.03, 0.1, 0.3, 1.0, 3.0, 10.0}) {
        Layer layer(w, {.rank = rank, .optimal_gradient = optimal});
        place(layer, rank, seed + 2);
        const Matrix change = times(turned(orthonormal_rows(turned(layer.value(dw::Role::Up)))),
                                    orthonormal_rows(layer.value(dw::Role::Down)));
        const Matrix goal = times_transposed(x, plus(w, change));
        dw::Optimizer<dw::Sgd> optimizer{{.learning_rate = rate}};
        const double first = layer.loss(x, goal);
        for (int i = 0; i < 20; ++i) layer.step(optimizer, x, goal);
        const double last = layer.loss(x, goal) / first;
        if (last < best) best = last;
      }
      return best;
    };
    const double corrected = final_loss(true), plain = final_loss(false);
    CHECK(corrected < 1e-3);
    CHECK(corrected < 0.1 * plain);
  }
}

TEST_CASE("LoRA-SB: resized, its gradient is that of the ranks kept") {
  const Matrix x = random_values(5, 7, 3), target = random_values(5, 6, 5);
  Layer layer(random_values(6, 7, 1), {.rank = 3}), small(layer.w, {.rank = 2});
  layer.adapter.initialize(layer.ctx, 4);
  layer.backward(x, target);
  dw::zero_grad(layer.ctx, layer.adapter);
  dw::resize_rank(layer.ctx, layer.adapter, std::vector<index_t>{2, 0}, 0);
  for (dw::Role role : {dw::Role::Down, dw::Role::Up, dw::Role::Core}) small.set(role, layer.value(role));
  layer.backward(x, target);
  small.backward(x, target);
  CHECK(layer.gradient(dw::Role::Core).values == small.gradient(dw::Role::Core).values);
  CHECK(frobenius(small.gradient(dw::Role::Core)) > 0);
}

TEST_CASE("LoRA-SB: options outside their range are refused") {
  const auto refused = [](dw::LoraSb<double, dw::Cpu>::Options o) {
    return message_of<dw::OptionError>([&] { dw::LoraSb<double, dw::Cpu>({5, 4}, o); });
  };
  CHECK(refused({.rank = 0}) == "LoraSb: rank: got 0, want 1 or more");
  CHECK(refused({.rank = 2, .scale = 0}) == "LoraSb: scale: got 0, want finite and not 0");
  CHECK(refused({.rank = 5, .any_rank = true}) ==
        "LoraSb: rank: got 5, want at most 4 with optimal_gradient, since no more ranks are independent");
  CHECK(refused({.rank = 5, .optimal_gradient = false, .any_rank = true}) == "nothing was thrown");
  CHECK(refused({.rank = 2, .dropout = 1}).starts_with("LoraSb: dropout: got 1"));
}
