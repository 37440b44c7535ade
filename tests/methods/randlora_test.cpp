// RandLoRA: its bases lie in memory once, sparse ones are PEFT's, products by non-zeros are the dense ones, and the update
// has full rank.

#include "deltaw/model/adapter_set.hpp"
#include "shared_bases.hpp"
#include "support/methods.hpp"
#include "wrapped_backend.hpp"

using namespace deltaw_tests;

namespace {
using RandLora = dw::RandLora<double, Cpu>;
using Shared = RandLora::Shared;

RandLora make(dw::LinearShape shape, RandLora::Options options, std::shared_ptr<const Shared> shared = nullptr) {
  Cpu::Context ctx;
  RandLora randlora(shape, options, std::move(shared));
  randlora.attach(ctx, {});
  return randlora;
}
RandLora trained(RandLora randlora, std::uint32_t seed) {
  for (const char* name : {"randlora_lambda", "randlora_gamma"}) {
    const auto& p = parameter(randlora, name);
    set(randlora, name, random_matrix(p.value.rows(), p.value.cols(), seed++));
  }
  return randlora;
}

// Y and every gradient of one call.
struct Pass {
  Matrix y, dx, dlambda, dgamma;

  Pass(RandLora& randlora, const Matrix& x, Matrix dy, bool overwriting_engine = false)
      : y(x.rows, randlora.shape().out_features), dx(x.rows, x.cols) {
    Cpu::Context ctx;
    RandLora::Saved saved;
    saved.call = {.training = true, .step = 2};
    dw::zero_grad(ctx, randlora);
    randlora.forward(ctx, {}, memory(x), memory(y), saved);
    const auto read = randlora.reads_input_in_backward() ? memory(x) : dw::ConstMatrixView<double>{};
    randlora.backward(ctx, {}, read, memory(dy), overwriting_engine ? dw::MatrixView<double>{} : memory(dx), saved);
    if (overwriting_engine) randlora.backward_input(ctx, {}, memory(dx), saved);
    dlambda = values_of(parameter(randlora, "randlora_lambda").grad.view());
    dgamma = values_of(parameter(randlora, "randlora_gamma").grad.view());
  }
};
double inner(const Matrix& a, const Matrix& b) {
  REQUIRE(a.values.size() == b.values.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}
double worst(const Pass& a, const Pass& b) {
  return std::max(
      {difference(a.y, b.y), difference(a.dx, b.dx), difference(a.dlambda, b.dlambda), difference(a.dgamma, b.dgamma)});
}
std::string signs_of(dw::ConstMatrixView<double> v) {
  std::string text;
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) text += v(i, j) < 0 ? '-' : v(i, j) > 0 ? '+' : '0';
  return text;
}
double deviation(const Matrix& m) {
  const auto n = static_cast<double>(m.values.size());
  double sum = 0;
  for (double value : m.values) sum += value;
  return std::sqrt((squares(m) - sum * sum / n) / (n - 1));
}
}  // namespace

// torch 2.15, as PEFT's RandLoraModel: rand (3, 1, 10), then rand (14, 4, 3), of one generator of seed 5.
TEST_CASE("RandLoRA: sparse bases are what PEFT draws for the same seed and shapes") {
  const RandLora sparse = make({10, 14}, {.rank = 3, .sparse = true, .projection_prng_key = 5});
  CHECK(signs_of(sparse.shared()->a().view()) == "0-+0+--0-+00-000+0-+00-0+-0000");
  CHECK(
      signs_of(sparse.shared()->b().view()) ==
      "-0-000+-0+00-0+++0+0+00000000+0000-+00+0+00+++0+000000+-00000000-000+00---00-0000+-00+-0+000+00+00-0--00-++-00-+"
      "00000000-0000-0-000000+0000+-+00-----0--0-00000000+00000");
  CHECK(sparse.shared()->a().view()(0, 2) == Approx(1.4461487531661987).epsilon(1e-7));
  CHECK(sparse.shared()->b().view()(0, 0) == Approx(-1.6686636209487915).epsilon(1e-7));
  const RandLora very = make({14, 10}, {.rank = 3, .very_sparse = true, .projection_prng_key = 5});
  CHECK(signs_of(very.shared()->a().view()) == "0-+0+-00-+00-000+0-+00-0+-0000");
  CHECK(
      signs_of(very.shared()->b().view()) ==
      "00-000+-0+00-0+++0+0+00000000+00000+00+0+00+++0+000000+-00000000-000+00---00-0000+-00+-0+000+00+00-0-000-++-00-+"
      "00000000-0000-0-000000+0000+-+00----00--0-00000000+00000");
  CHECK(very.shared()->a().view()(0, 2) == Approx(1.4954944849014282).epsilon(1e-7));
  CHECK(very.shared()->b().view()(0, 2) == Approx(-1.7272554636001587).epsilon(1e-7));
}

TEST_CASE("RandLoRA: bases have deviation 1, sparse ones a sixth of each sign, very sparse ones 1 / (2 sqrt(mn))") {
  const auto shares = [](const RandLora& randlora) {
    const std::string signs = signs_of(randlora.shared()->b().view());
    const auto share = [&](char c) {
      return static_cast<double>(std::count(signs.begin(), signs.end(), c)) / static_cast<double>(signs.size());
    };
    return std::pair(share('-'), share('+'));
  };
  const dw::LinearShape shape{400, 500};
  const RandLora dense = make(shape, {.rank = 20}), sparse = make(shape, {.rank = 20, .sparse = true}),
                 very = make(shape, {.rank = 20, .very_sparse = true});
  for (const RandLora* randlora : {&sparse, &very}) {
    CHECK(std::abs(deviation(values_of(randlora->shared()->a().view())) - 1) < 1e-6);
    CHECK(std::abs(deviation(values_of(randlora->shared()->b().view())) - 1) < 1e-6);
  }
  CHECK(std::abs(deviation(values_of(dense.shared()->b().view())) - 1) < 0.005);
  // 200000 draws: four deviations of a share of 1/6 are 0.0033, of 1/40 0.0014.
  CHECK(std::abs(shares(sparse).first - 1.0 / 6) < 0.0033);
  CHECK(std::abs(shares(sparse).second - 1.0 / 6) < 0.0033);
  CHECK(std::abs(shares(very).first - 1.0 / 40) < 0.0014);
  CHECK(std::abs(shares(very).second - 1.0 / 40) < 0.0014);
  CHECK_FALSE(sparse.shared()->has_signs());  // a third of them: a dense product is faster
  CHECK(very.shared()->has_signs());
}

TEST_CASE("RandLoRA: layers of different widths share their bases through AdapterSet, and use the leading part") {
  Cpu::Context ctx;
  Matrix wide_weight(14, 10), tall_weight(10, 14);
  dw::AdapterSet<double, Cpu> model;
  model.add_layer("wide", {memory(wide_weight), {}});
  model.add_layer("tall", {memory(tall_weight), {}});
  model.adapt(ctx, {.method = "randlora", .options = {{"rank", "3"}}, .targets = {.names = {"wide", "tall"}}});
  const auto* wide = model.layer("wide").adapter("default").get<RandLora>();
  const auto* tall = model.layer("tall").adapter("default").get<RandLora>();
  REQUIRE(wide != nullptr);
  REQUIRE(tall != nullptr);
  CHECK(wide->shared() == tall->shared());
  // PEFT stores (3, 1, 14) and (14, 5, 3) for these two.
  const Matrix a = values_of(wide->shared()->a().view()), b = values_of(wide->shared()->b().view());
  CHECK(a.cols == 14);
  CHECK(b.rows == 14);
  CHECK(b.cols == 15);
  for (RandLora randlora : {trained(*wide, 1), trained(*tall, 3)}) {
    const Matrix lambda = value_of(randlora, "randlora_lambda"), gamma = value_of(randlora, "randlora_gamma");
    CHECK(gamma.rows == 4);
    Matrix bp(14, 10);
    for (index_t position = 0; position < 12; ++position)
      for (index_t i = 0; i < 14; ++i)
        for (index_t j = 0; j < 10; ++j)
          bp(i, j) += randlora.scale() * b(i, position) * lambda(position / 4, position % 4) * a(position / 4, j) *
                      gamma(position % 4, j);
    const bool widens = randlora.shape().in_features == 10;
    CHECK(difference(delta_of(ctx, randlora), widens ? bp : transposed(bp)) < 1e-14);
  }
}

TEST_CASE("RandLoRA: a checkpoint's bases are taken as they are, zeros found by their values") {
  const RandLora drawn = trained(make({12, 15}, {.rank = 4, .sparse = true, .sparse_below = 2}), 3);
  const Matrix a = values_of(drawn.shared()->a().view()), b = values_of(drawn.shared()->b().view());
  const std::vector<float> a32(a.values.begin(), a.values.end()), b32(b.values.begin(), b.values.end());
  const dw::ConstMatrixView<float> a_view(a32.data(), 4, 12), b_view(b32.data(), 15, 12);
  const auto loaded = RandLora::make_shared(a_view, b_view, 2);
  CHECK(loaded->has_signs());
  CHECK_FALSE(RandLora::make_shared(a_view, b_view)->has_signs());
  RandLora one = drawn, other = trained(make({12, 15}, {.rank = 4, .sparse_below = 2}, loaded), 3);
  const Matrix x = random_matrix(6, 12, 1), dy = random_matrix(6, 15, 2);
  CHECK(worst(Pass(other, x, dy), Pass(one, x, dy)) == 0);
  CHECK(message_of<dw::ShapeError>([&] { RandLora::make_shared(a_view, b_view.col_range(0, 11)); }) ==
        "RandLora.make_shared: b.cols (bases x rank): got 11, want 12");
}

TEST_CASE("RandLoRA: the update has full rank; with one basis, the rank of that") {
  Cpu::Context ctx;
  for (dw::LinearShape shape : {dw::LinearShape{13, 17}, {17, 13}, {13, 13}}) {
    INFO(shape.in_features << " -> " << shape.out_features);
    CHECK(rank_of(delta_of(ctx, trained(make(shape, {.rank = 5}), 2))) == 13);
    CHECK(rank_of(delta_of(ctx, trained(make(shape, {.rank = 10, .sparse = true}), 2))) == 13);
    CHECK(rank_of(delta_of(ctx, make(shape, {.rank = 5}))) == 0);
  }
  RandLora one = trained(make({30, 9}, {.rank = 9}), 4);
  CHECK(parameter(one, "randlora_gamma").value.rows() == 1);
  CHECK(rank_of(delta_of(ctx, one)) == 9);
}

// A column where all of a is 0 stays 0 in P.
TEST_CASE("RandLoRA: very sparse bases give no full rank where a is nearly empty") {
  Cpu::Context ctx;
  const RandLora randlora = trained(make({100, 120}, {.rank = 4, .very_sparse = true}), 2);
  const Matrix a = values_of(randlora.shared()->a().view());
  index_t columns = 0;
  for (index_t j = 0; j < 100; ++j) {
    bool present = false;
    for (index_t k = 0; k < 4; ++k) present = present || a(k, j) != 0;
    columns += present ? 1 : 0;
  }
  CHECK(columns < 60);  // 100 (1 - 0.9^4) = 34 are expected
  CHECK(rank_of(delta_of(ctx, randlora)) <= columns);
}

// Several tiles of P and of tokens. The loss <dY, Y> is linear in lambda, in gamma and in X, so differences are exact.
TEST_CASE("RandLoRA: across tiles, forward is X dW^T and gradients are those of the loss") {
  Cpu::Context ctx;
  const RandLora::Options dense{.rank = 40, .alpha = 4};
  RandLora::Options regenerated = dense, sparse = dense, very_sparse = dense;
  regenerated.regenerate = sparse.sparse = very_sparse.very_sparse = true;
  for (dw::LinearShape shape : {dw::LinearShape{530, 560}, {560, 530}})
    for (const auto& options : {dense, regenerated, sparse, very_sparse})
      for (bool overwriting_engine : {false, true}) {
        INFO(shape.in_features << " -> " << shape.out_features << ", sparse " << options.sparse << options.very_sparse);
        RandLora randlora = trained(make(shape, options), 5);
        const Matrix x = random_matrix(260, shape.in_features, 6), dy = random_matrix(260, shape.out_features, 7);
        const Pass pass(randlora, x, dy, overwriting_engine);
        CHECK(difference(pass.y, times_transposed(x, delta_of(ctx, randlora))) < 1e-12);
        const double loss = inner(dy, pass.y);
        CHECK(std::abs(inner(pass.dlambda, value_of(randlora, "randlora_lambda")) / loss - 1) < 1e-9);
        CHECK(std::abs(inner(pass.dgamma, value_of(randlora, "randlora_gamma")) / loss - 1) < 1e-9);
        CHECK(std::abs(inner(pass.dx, x) / loss - 1) < 1e-9);
      }
}

TEST_CASE("RandLoRA: neither P nor dP is ever whole") {
  Cpu::Context ctx;
  const dw::LinearShape shape{530, 560};
  RandLora randlora = trained(make(shape, {.rank = 40}), 5);
  Matrix x(8, 530), y(8, 560), dx(8, 530);
  RandLora::Saved saved;
  const std::size_t whole = 560 * 530 * sizeof(double);
  randlora.forward(ctx, {}, memory(x), memory(y), saved);
  CHECK(ctx.arena.high_water() < whole * 6 / 10);
  randlora.backward(ctx, {}, memory(x), memory(y), memory(dx), saved);
  CHECK(ctx.arena.high_water() < whole * 11 / 10);
}

TEST_CASE("RandLoRA: regenerated bases give the bits of stored ones") {
  for (dw::LinearShape shape : {dw::LinearShape{23, 31}, {31, 23}, {700, 620}}) {
    const RandLora::Options stored{.rank = 4, .dropout = 0.2};
    RandLora::Options regenerated = stored;
    regenerated.regenerate = true;
    RandLora one = trained(make(shape, stored), 2), other = trained(make(shape, regenerated), 2);
    CHECK(one.shared()->b().rows() == std::max(shape.in_features, shape.out_features));
    CHECK(other.shared()->b().empty());
    const Matrix x = random_matrix(5, shape.in_features, 3), dy = random_matrix(5, shape.out_features, 4);
    CHECK(worst(Pass(other, x, dy), Pass(one, x, dy)) == 0);
  }
}

TEST_CASE("RandLoRA: products by non-zeros are the dense ones") {
  for (dw::LinearShape shape : {dw::LinearShape{40, 56}, {56, 40}, {40, 40}, {1, 7}})
    for (bool very_sparse : {false, true}) {
      RandLora::Options options{.rank = shape.in_features > 1 ? 6 : 1, .dropout = 0.3};
      options.sparse = !very_sparse, options.very_sparse = very_sparse;
      options.sparse_below = 0;
      RandLora dense = trained(make(shape, options), 2);
      options.sparse_below = 2;
      RandLora sparse = trained(make(shape, options), 2);
      CHECK(sparse.shared()->has_signs());
      CHECK(std::isfinite(squares(values_of(sparse.shared()->a().view()))));
      const Matrix x = random_matrix(19, shape.in_features, 3), dy = random_matrix(19, shape.out_features, 4);
      CHECK(worst(Pass(sparse, x, dy), Pass(dense, x, dy)) < 1e-12);
    }
}

TEST_CASE("RandLoRA: very sparse bases save most of the arithmetic, sparse ones never cost more than dense") {
  using Counted = dw::RandLora<float, Counting<Cpu>>;
  const auto flops = [](Counted::Options options) {
    Counting<Cpu>::Context ctx;
    Counted randlora({320, 320}, options);
    randlora.attach(ctx, {});
    dw::Tensor<float> x(64, 320), y(64, 320), dy(64, 320), dx(64, 320);
    Counted::Saved saved;
    ctx.hook = {};
    randlora.forward(ctx, {}, x.view(), y.view(), saved);
    randlora.backward(ctx, {}, x.view(), dy.view(), dx.view(), saved);
    return ctx.hook.flops;
  };
  const double dense = flops({.rank = 2});
  CHECK(dense > 5.0 * 2 * 64 * 320 * 320);
  CHECK(flops({.rank = 2, .very_sparse = true}) < 0.1 * dense);
  const double sparse = flops({.rank = 2, .sparse = true});
  CHECK(sparse < 0.65 * dense);  // three of five products, on a third of the columns
  CHECK(flops({.rank = 40, .sparse = true}) == flops({.rank = 40}));  // too few bases to read columns apart
}

TEST_CASE("RandLoRA: where the layer narrows, backward does not need X") {
  CHECK(make({8, 6}, {.rank = 2}).reads_input_in_backward() == false);
  CHECK(make({6, 8}, {.rank = 2}).reads_input_in_backward());
  CHECK(make({6, 6}, {.rank = 2}).reads_input_in_backward());
}

TEST_CASE("RandLoRA: bases that do not cover the layer, bad options, and a call before attach are refused") {
  Cpu::Context ctx;
  const dw::LinearShape shape{6, 9};
  const auto shared = RandLora::make_shared(ctx, std::span(&shape, 1), {.rank = 3});
  const auto uncovered = [&](dw::LinearShape s, index_t rank) {
    return message_of<dw::ShapeError>([&] { RandLora(s, {.rank = rank}, shared); });
  };
  CHECK(uncovered({6, 9}, 2) == "RandLora: rank of the shared bases: got 3, want 2");
  CHECK(uncovered({7, 8}, 3) ==
        "RandLora: columns of the shared basis a: got 6, want at least min(in_features, out_features) = 7");
  CHECK(uncovered({5, 10}, 3) ==
        "RandLora: rows of the shared basis b: got 9, want at least max(in_features, out_features) = 10");
  CHECK(uncovered({9, 6}, 3) == "nothing was thrown");
  const auto refused = [](RandLora::Options o) { return message_of<dw::OptionError>([&] { RandLora({8, 6}, o); }); };
  CHECK(refused({}) ==
        "RandLora: rank: got 32, want at most min(in_features, out_features) = 6, or any_rank = true for a layer of 8 "
        "-> 6");
  CHECK(refused({.rank = 2, .alpha = 0}).starts_with("RandLora: alpha: got 0"));
  CHECK(refused({.rank = 2, .sparse_below = -1}).starts_with("RandLora: sparse_below: got -1"));
  CHECK(refused({.rank = 2, .sparse = true, .regenerate = true}) ==
        "RandLora: regenerate: got true with sparse bases, want dense ones: only those can be drawn in parts");
  CHECK(message_of<dw::UnsupportedError>([] {
          RandLora({8, 6, {.in_total = 16}}, {.rank = 2});
        }) == "RandLora: shape.shard: got a part of a layer, want a whole one: its bases are not split");
  Matrix x(2, 8), y(2, 6);
  RandLora::Saved saved;
  CHECK(message_of<dw::StaleError>([&] {
          RandLora({8, 6}, {.rank = 2}).forward(ctx, {}, memory(x), memory(y), saved);
        }) == "RandLora: shared: got none, want attach after construction");
}

// The claim in small. An orthogonal matrix has no best directions: a LoRA of rank r explains r / 24 of it and no more.
TEST_CASE("RandLoRA fits a full-rank update that a LoRA of as many parameters cannot", "[effect]") {
  for (std::uint32_t seed : {1u, 2u, 3u}) {
    Cpu::Context ctx;
    const index_t n = 24;
    Matrix target = random_matrix(n, n, seed);
    for (index_t i = 0; i < n; ++i) {  // Gram-Schmidt
      for (index_t k = 0; k < i; ++k) {
        double along = 0;
        for (index_t j = 0; j < n; ++j) along += target(i, j) * target(k, j);
        for (index_t j = 0; j < n; ++j) target(i, j) -= along * target(k, j);
      }
      double norm = 0;
      for (index_t j = 0; j < n; ++j) norm += target(i, j) * target(i, j);
      for (index_t j = 0; j < n; ++j) target(i, j) /= std::sqrt(norm);
    }
    const auto loss_of = [&](auto adapter, double learning_rate) {
      dw::init::Kaiming{.seed = seed}(ctx, adapter, dw::BaseRef<double, double, Cpu>{});
      adapter.attach(ctx, {});
      return std::pair(fit(ctx, adapter, target, learning_rate, 1500), dw::count_trained(adapter));
    };
    INFO("seed " << seed);
    const auto lora_of = [&](index_t rank) {
      dw::Lora<double, Cpu> lora({n, n}, {.rank = rank, .alpha = static_cast<double>(rank)});
      dw::init::Kaiming{.seed = seed}(ctx, lora, dw::BaseRef<double, double, Cpu>{});
      const double loss = fit(ctx, lora, target, 0.01, 1500);
      return std::pair(loss, dw::count_trained(lora));
    };
    const auto [half_loss, half_count] =
        loss_of(RandLora({n, n}, {.rank = 2, .alpha = 2, .projection_prng_key = seed}), 0.01);
    const auto [lora_half_loss, lora_half_count] = lora_of(7);
    CHECK(half_count < lora_half_count);
    CHECK(half_loss < lora_half_loss - 0.1);
    const auto [loss, count] = loss_of(RandLora({n, n}, {.rank = 1, .alpha = 1, .projection_prng_key = seed}), 0.01);
    const auto [lora_loss, lora_count] = lora_of(13);
    CHECK(count < lora_count);
    CHECK(loss < 0.1);
    CHECK(lora_loss > 0.4);
  }
}
