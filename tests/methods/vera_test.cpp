// VeRA: the pair is PEFT's, lies in memory once for all layers, and a layer uses its leading part.

#include "deltaw/model/adapter_set.hpp"
#include "shared_bases.hpp"
#include "support/methods.hpp"

using namespace deltaw_tests;

namespace {
using Vera = dw::Vera<double, Cpu>;

Vera make(dw::LinearShape shape, Vera::Options options, std::shared_ptr<const Vera::Shared> shared = nullptr) {
  Cpu::Context ctx;
  Vera vera(shape, options, std::move(shared));
  vera.attach(ctx, {});
  return vera;
}
Vera trained(Vera vera, std::uint32_t seed) {
  set(vera, "vera_lambda_b", random_matrix(1, vera.shape().out_features, seed));
  set(vera, "vera_lambda_d", random_matrix(1, vera.options().rank, seed + 1));
  return vera;
}
Matrix pair_a(const Vera& vera) { return values_of(vera.shared()->a.view()); }
Matrix pair_b(const Vera& vera) { return values_of(vera.shared()->b.view()); }
Matrix part(const Matrix& m, index_t rows, index_t cols) {
  Matrix result(rows, cols);
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j) result(i, j) = m(i, j);
  return result;
}
}  // namespace

// torch 2.15, as PEFT's VeraModel: A (3, 7) and then B (6, 3) from one generator of seed 12, bounds sqrt(6 / columns).
TEST_CASE("VeRA: the pair is what PEFT draws for the same seed and shapes") {
  const Vera vera = make({7, 6}, {.rank = 3, .projection_prng_key = 12});
  const Matrix a = pair_a(vera), b = pair_b(vera);
  CHECK(a(0, 0) == -0x1.043cbep-4);
  CHECK(a(0, 1) == -0x1.fab206p-2);
  CHECK(a(2, 6) == 0x1.2f7b1ep-2);
  CHECK(b(0, 0) == -0x1.41f03ep+0);
  CHECK(b(0, 1) == -0x1.f04aa6p-1);
  CHECK(b(5, 2) == -0x1.02243cp+0);
}

TEST_CASE("VeRA: layers of different widths share one pair through AdapterSet, and use its leading part") {
  Cpu::Context ctx;
  Matrix narrow_weight(6, 5), wide_weight(4, 9);
  dw::AdapterSet<double, Cpu> model;
  model.add_layer("narrow", {memory(narrow_weight), {}});
  model.add_layer("wide", {memory(wide_weight), {}});
  model.adapt(ctx, {.method = "vera", .options = {{"rank", "3"}}, .targets = {.names = {"narrow", "wide"}}});
  const auto* narrow = model.layer("narrow").adapter("default").get<Vera>();
  const auto* wide = model.layer("wide").adapter("default").get<Vera>();
  REQUIRE(narrow != nullptr);
  REQUIRE(wide != nullptr);
  CHECK(narrow->shared() == wide->shared());
  CHECK(narrow->shared()->a.cols() == 9);
  CHECK(narrow->shared()->b.rows() == 6);
  const Matrix a = pair_a(*narrow), b = pair_b(*narrow);
  for (const Vera& vera : {trained(*narrow, 1), trained(*wide, 2)}) {
    const index_t in = vera.shape().in_features, out = vera.shape().out_features;
    Vera copy = vera;
    const Matrix scaled_a = transposed(scale_columns(transposed(part(a, 3, in)), value_of(copy, "vera_lambda_d")));
    const Matrix scaled_b = transposed(scale_columns(transposed(part(b, out, 3)), value_of(copy, "vera_lambda_b")));
    CHECK(difference(delta_of(ctx, vera), times(scaled_b, scaled_a)) < 1e-14);
  }
}

TEST_CASE("VeRA: a checkpoint's pair is taken as it is") {
  std::vector<float> a(3 * 8), b(7 * 3);
  Numbers numbers(4);
  for (float& value : a) value = static_cast<float>(numbers());
  for (float& value : b) value = static_cast<float>(numbers());
  const auto shared =
      Vera::make_shared(dw::ConstMatrixView<float>(a.data(), 3, 8), dw::ConstMatrixView<float>(b.data(), 7, 3));
  const Vera vera = make({5, 7}, {.rank = 3}, shared);
  CHECK(vera.shared() == shared);
  CHECK(pair_a(vera)(1, 2) == static_cast<double>(a[10]));
  CHECK(pair_b(vera)(6, 1) == static_cast<double>(b[19]));
  CHECK(message_of<dw::ShapeError>([&] {
          Vera::make_shared(dw::ConstMatrixView<float>(a.data(), 3, 8), dw::ConstMatrixView<float>(b.data(), 5, 4));
        }) == "Vera.make_shared: b.cols (rank): got 4, want 3");
}

TEST_CASE("VeRA: a pair that does not cover the layer is refused") {
  Cpu::Context ctx;
  const dw::LinearShape shape{6, 5};
  const auto shared = Vera::make_shared(ctx, std::span(&shape, 1), {.rank = 3});
  const auto refused = [&](dw::LinearShape s, index_t rank) {
    return message_of<dw::ShapeError>([&] { Vera(s, {.rank = rank}, shared); });
  };
  CHECK(refused({6, 5}, 2) == "Vera: rank of the shared pair: got 3, want 2");
  CHECK(refused({7, 5}, 3) == "Vera: in_features of the shared pair: got 6, want at least 7");
  CHECK(refused({6, 8}, 3) == "Vera: out_features of the shared pair: got 5, want at least 8");
  CHECK(refused({6, 5}, 3) == "nothing was thrown");
}

TEST_CASE("VeRA: bad options, and a call before attach, are refused") {
  const auto refused = [](Vera::Options o) { return message_of<dw::OptionError>([&] { Vera({8, 6}, o); }); };
  CHECK(refused({.rank = 0}) == "Vera: rank: got 0, want 1 or more");
  CHECK(
      refused({}) ==
      "Vera: rank: got 256, want at most min(in_features, out_features) = 6, or any_rank = true for a layer of 8 -> 6");
  CHECK(refused({.rank = 2, .dropout = 1}) == "Vera: dropout: got 1, want at least 0 and below 1");
  CHECK(refused({.rank = 2, .d_initial = 0}).starts_with("Vera: d_initial: got 0, want finite and not 0"));
  CHECK(refused({.any_rank = true}) == "nothing was thrown");
  Cpu::Context ctx;
  Matrix x(2, 8), y(2, 6);
  Vera vera({8, 6}, {.rank = 2});
  Vera::Saved saved;
  CHECK(message_of<dw::StaleError>([&] { vera.forward(ctx, {}, memory(x), memory(y), saved); }) ==
        "Vera: shared: got none, want attach after construction");
}

TEST_CASE("VeRA: lambda_d starts at d_initial under every initializer, so lambda_b has a gradient at the start") {
  Cpu::Context ctx;
  Vera vera = make({8, 6}, {.rank = 2, .d_initial = 0.25});
  dw::init::Gaussian{.seed = 1}(ctx, vera, dw::BaseRef<double, double, Cpu>{});
  CHECK(value_of(vera, "vera_lambda_d").values == std::vector<double>(2, 0.25));
  CHECK(value_of(vera, "vera_lambda_b").values == std::vector<double>(6, 0));
}

TEST_CASE("VeRA: a LoRA of the scaled pair is the same map, dropout included") {
  Cpu::Context ctx;
  const Vera vera = trained(make({7, 6}, {.rank = 4, .dropout = 0.4, .seed = 3, .layer = 2}), 5);
  const auto lora = vera.to_lora(ctx);
  const Matrix x = random_matrix(300, 7, 8);
  const dw::Call call{.training = true, .step = 6};
  CHECK(difference(output_of(ctx, lora, x, call), output_of(ctx, vera, x, call)) < 1e-14);
  CHECK(difference(delta_of(ctx, lora), delta_of(ctx, vera)) < 1e-14);
}

TEST_CASE("VeRA: parts of a sharded layer add up and stand side by side") {
  Cpu::Context ctx;
  const Vera::Options options{.rank = 3, .dropout = 0.3, .seed = 2};
  const Vera whole = trained(make({11, 9}, options), 4);
  const Matrix x = random_matrix(20, 11, 1);
  const auto columns = [](const Matrix& m, index_t first, index_t count) {
    Matrix result(m.rows, count);
    for (index_t i = 0; i < m.rows; ++i)
      for (index_t j = 0; j < count; ++j) result(i, j) = m(i, first + j);
    return result;
  };
  const auto run = [&](index_t in0, index_t in, index_t out0, index_t out) {
    Vera piece = make({in, out, {in0, 11, out0, 9}}, options, whole.shared());
    Vera source = whole;
    set(piece, "vera_lambda_d", value_of(source, "vera_lambda_d"));
    set(piece, "vera_lambda_b", columns(value_of(source, "vera_lambda_b"), out0, out));
    return output_of(ctx, piece, columns(x, in0, in), {.training = true});
  };
  const Matrix y = output_of(ctx, whole, x, {.training = true});
  CHECK(difference(plus(run(0, 4, 0, 9), run(4, 7, 0, 9)), y) < 1e-14);
  CHECK(difference(run(0, 11, 0, 5), columns(y, 0, 5)) < 1e-14);
  CHECK(difference(run(0, 11, 5, 4), columns(y, 5, 4)) < 1e-14);
}

// The claim in small: where the wanted update is a scaling of the random pair, r + out numbers find it, and a LoRA that may
// spend more, but at rank 1, cannot.
TEST_CASE("VeRA: with fewer parameters than a LoRA of rank 1 it fits a full-rank update of its kind", "[effect]") {
  for (std::uint64_t seed : {1u, 2u, 3u, 4u, 5u}) {
    Cpu::Context ctx;
    const dw::LinearShape shape{16, 16};
    Vera vera = make(shape, {.rank = 8, .projection_prng_key = seed});
    const Matrix target = delta_of(ctx, trained(vera, static_cast<std::uint32_t>(seed)));
    dw::Lora<double, Cpu> lora(shape, {.rank = 1, .alpha = 1});
    dw::init::Kaiming{.seed = seed}(ctx, lora, dw::BaseRef<double, double, Cpu>{});
    INFO("seed " << seed);
    CHECK(dw::count_trained(vera) < dw::count_trained(lora));
    CHECK(fit(ctx, lora, target, 0.03, 600) > 0.3);
    CHECK(fit(ctx, vera, target, 0.03, 600) < 0.03);
  }
}
