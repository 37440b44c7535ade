// LoRA-XS and its spectral initial values.

#include "deltaw/init/spectral.hpp"
#include "double_solver.hpp"
#include "toy_layer.hpp"

using namespace deltaw_tests;
using Layer = ToyLayer<dw::LoraXs>;

TEST_CASE("LoRA-XS: spectral factors, and with R = I and s = 1 the best approximation of W at that rank") {
  const std::vector<double> values{5, 4, 3, 2, 1, 0.5};
  Layer layer(with_singular_values(9, 7, values, 3), {.rank = 3, .alpha = 3});
  dw::init::Spectral{.seed = 5}(layer.ctx, layer.adapter, layer.base);
  const Matrix a = layer.value(dw::Role::Down), b = layer.value(dw::Role::Up), r = layer.value(dw::Role::Core);
  Matrix squares(3, 3), identity(3, 3);
  for (index_t i = 0; i < 3; ++i) {
    squares(i, i) = values[static_cast<std::size_t>(i)] * values[static_cast<std::size_t>(i)];
    identity(i, i) = 1;
    const double* row = &a.values[static_cast<std::size_t>(i * a.cols)];
    CHECK(*std::max_element(row, row + a.cols, [](double x, double y) { return std::abs(x) < std::abs(y); }) > 0);
  }
  CHECK(frobenius(plus(times_transposed(a, a), squares, -1)) < 1e-12);
  CHECK(frobenius(plus(times(turned(b), b), identity, -1)) < 1e-13);
  CHECK(frobenius(r) > 1e-6);
  CHECK(frobenius(r) < 1e-4);

  const Matrix x = random_values(5, 7, 2);
  CHECK(frobenius(plus(layer.output(x), times_transposed(x, layer.w), -1)) <
        1e-3);  // s R is 1e-5 times a normal number

  layer.set(dw::Role::Core, identity);
  CHECK(frobenius(plus(layer.w, layer.delta(), -1)) == Approx(std::sqrt(4 + 1 + 0.25)).epsilon(1e-12));
  layer.set(dw::Role::Core, random_values(3, 3, 8));
  const Matrix delta = layer.delta();
  CHECK(frobenius(plus(delta, times(b, times(turned(b), delta)), -1)) < 1e-13 * frobenius(delta));
}

TEST_CASE("LoRA-XS: backward without x gives the same gradients to the bit") {
  Layer layer(random_values(6, 5, 1), {.rank = 2});
  layer.adapter.initialize(layer.ctx, 7);
  CHECK_FALSE(layer.adapter.reads_input_in_backward());
  const Matrix x = random_values(4, 5, 2);
  const auto gradients = [&](dw::ConstMatrixView<double> seen) {
    Matrix dy = layer.output(x, true), dx(4, 5);
    dw::zero_grad(layer.ctx, layer.adapter);
    layer.adapter.backward(layer.ctx, layer.base, seen, view_of(dy), view_of(dx), layer.saved);
    return std::pair{layer.gradient(dw::Role::Core).values, dx.values};
  };
  CHECK(gradients(view_of(x)) == gradients({}));
  CHECK(frobenius(layer.gradient(dw::Role::Core)) > 0);
}

TEST_CASE("LoRA-XS: a change within W's leading singular spaces is learnt by rank^2 numbers, not by as many elsewhere",
          "[effect]") {
  for (std::uint32_t seed : {1u, 2u, 3u}) {
    const index_t rank = 3, in = 16, out = 12;
    const Matrix w = with_singular_values(out, in, {4, 3.5, 3, 1, 0.9, 0.8, 0.7, 0.6}, seed);
    const Matrix x = random_values(64, in, seed + 10);
    const auto final_loss = [&](bool spectral) {
      Layer layer(w, {.rank = rank, .alpha = 3});
      dw::init::Spectral{.seed = seed}(layer.ctx, layer.adapter, layer.base);
      const Matrix change =
          times(layer.value(dw::Role::Up), times(random_values(rank, rank, seed + 20), layer.value(dw::Role::Down)));
      const Matrix target = times_transposed(x, plus(w, change));
      if (!spectral) layer.adapter.initialize(layer.ctx, seed);
      const double first = layer.loss(x, target);
      dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.05, .weight_decay = 0}};
      for (int i = 0; i < 400; ++i) layer.step(optimizer, x, target);
      return layer.loss(x, target) / first;
    };
    CHECK(final_loss(true) < 1e-4);
    CHECK(final_loss(false) > 0.3);
  }
}

TEST_CASE("LoRA-XS: options and factors that do not fit are refused") {
  const auto refused = [](dw::LoraXs<double, dw::Cpu>::Options o) {
    return message_of<dw::OptionError>([&] { dw::LoraXs<double, dw::Cpu>({5, 4}, o); });
  };
  CHECK(refused({.rank = 0}) == "LoraXs: rank: got 0, want 1 or more");
  CHECK(
      refused({.rank = 5}) ==
      "LoraXs: rank: got 5, want at most min(in_features, out_features) = 4, or any_rank = true for a layer of 5 -> 4");
  CHECK(refused({.rank = 2, .alpha = 0}).starts_with("LoraXs: alpha: got 0"));
  CHECK(refused({.rank = 2, .dropout = 1}).starts_with("LoraXs: dropout: got 1"));

  Layer wide(random_values(4, 5, 1), {.rank = 5, .any_rank = true});
  CHECK(message_of<dw::OptionError>([&] { dw::init::Spectral{}(wide.ctx, wide.adapter, wide.base); }) ==
        "Spectral: rank: got 5, want at most min(in_features, out_features) = 4");
  CHECK(message_of<dw::OptionError>([&] {
          dw::init::Spectral{.deviation = -1}(wide.ctx, wide.adapter, wide.base);
        }).starts_with("Spectral: deviation: got -1"));
  Matrix part = random_values(4, 5, 1);
  const dw::DenseLinear<double, double> shard(view_of(part), {}, {.in_total = 10});
  dw::LoraXs<double, dw::Cpu> sharded(shard.shape, {.rank = 2});
  CHECK(message_of<dw::UnsupportedError>([&] { dw::init::Spectral{}(wide.ctx, sharded, shard); }) ==
        "Spectral: shape: got a shard of a layer, want a whole layer, to decompose its weight");
  ToyLayer<dw::Lora> lora(random_values(4, 5, 1), {.rank = 2});
  CHECK(message_of<dw::UnsupportedError>([&] { dw::init::Spectral{}(lora.ctx, lora.adapter, lora.base); }) ==
        "Spectral: core: got a method without one, want one that has it");
}
