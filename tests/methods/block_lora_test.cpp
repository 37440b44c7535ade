// What Block-LoRA promises beyond the conformance suite: it is LoRA on the sum of its blocks, and costs no more.

#include <array>
#include <string>

#include "adapters/problem.hpp"
#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "message.hpp"
#include "wrapped_backend.hpp"

#include "../model/problem.hpp"  // after the others, whose arguments its names would hide

using namespace deltaw_tests;

namespace {
using Cpu = dw::Cpu;
using Lora = dw::Lora<double, Cpu>;
using BlockLora = dw::BlockLora<double, Cpu>;

template <class A>
auto& parameter(A& adapter, dw::Role role) {
  typename dw::Parameter<typename A::Scalar, typename A::Space>* found = nullptr;
  adapter.for_each_parameter([&](auto& p) {
    if (p.role == role) found = &p;
  });
  REQUIRE(found != nullptr);
  return *found;
}
Matrix columns(const Matrix& m, index_t first, index_t count) {
  Matrix part(m.rows, count);
  for (index_t i = 0; i < m.rows; ++i)
    for (index_t j = 0; j < count; ++j) part(i, j) = m(i, first + j);
  return part;
}

/// Outputs and gradients of one call with dropout.
struct Step {
  Matrix y, dx, da, db;

  template <class A>
  Step(LinearProblem<double> p, A& adapter) : y(), dx(), da(), db() {
    const auto base = p.dense();
    typename A::Saved saved;
    saved.call = {.training = true, .step = 4};
    dw::prepare(p.ctx, adapter, base);
    base.forward(p.ctx, p.x.view(), p.y.view());
    adapter.forward(p.ctx, base, p.x.view(), p.y.view(), saved);
    y = to_matrix(p.y.view());
    dw::zero_grad(p.ctx, adapter);
    p.dx.fill_with(0);
    adapter.backward(p.ctx, base, p.x.view(), p.dy.view(), p.dx.view(), saved);
    dw::finish(p.ctx, adapter, base);
    dx = to_matrix(p.dx.view());
    da = to_matrix(parameter(adapter, dw::Role::Down).grad.view());
    db = to_matrix(parameter(adapter, dw::Role::Up).grad.view());
  }
};
}  // namespace

TEST_CASE("Block-LoRA: it is LoRA on A and the sum of the blocks, and every block gets the same gradient") {
  constexpr index_t rank = 6, blocks = 3, part = rank / blocks;
  auto block = randomized(BlockLora(shape, {.rank = rank, .blocks = blocks, .alpha = 4, .dropout = 0.3, .seed = 2}), 5);
  Lora lora(shape, {.rank = part, .alpha = 4.0 / blocks, .dropout = 0.3, .seed = 2});
  CHECK(lora.scale() == block.scale());
  parameter(lora, dw::Role::Down).value = parameter(block, dw::Role::Down).value;
  const Matrix b = to_matrix(parameter(block, dw::Role::Up).value.view());
  Matrix sum(out_features, part);
  for (index_t k = 0; k < blocks; ++k) sum = plus(sum, columns(b, k * part, part));
  assign(sum, parameter(lora, dw::Role::Up).value.view());

  const Step got(LinearProblem<double>(1), block), want(LinearProblem<double>(1), lora);
  CHECK(got.y.values == want.y.values);
  CHECK(got.dx.values == want.dx.values);
  CHECK(got.da.values == want.da.values);
  for (index_t k = 0; k < blocks; ++k) CHECK(columns(got.db, k * part, part).values == want.db.values);
}

TEST_CASE("Block-LoRA: with one block it is LoRA, to the bit") {
  const auto block = [](auto options) { return randomized(BlockLora(shape, options), 8); };
  auto one = block(BlockLora::Options{.rank = 4, .blocks = 1, .alpha = 3});
  auto lora = randomized(Lora(shape, {.rank = 4, .alpha = 3}), 8);
  const Step got(LinearProblem<double>(2), one), want(LinearProblem<double>(2), lora);
  CHECK(got.y.values == want.y.values);
  CHECK(got.dx.values == want.dx.values);
  CHECK(got.da.values == want.da.values);
  CHECK(got.db.values == want.db.values);
}

TEST_CASE("Block-LoRA: the products that become additions are gone") {
  using Counted = Counting<Cpu>;
  constexpr double tokens = 24, in = 16, out = 12, rank = 8;
  const auto count = [&](index_t blocks) {
    Counted::Context ctx;
    dw::Tensor<float> w(12, 16), x(24, 16), y(24, 12), dx(24, 16);
    const dw::DenseLinear<float, float, Counted> base(w.view(), {});
    dw::BlockLora<float, Counted> adapter({16, 12}, {.rank = 8, .blocks = blocks});
    typename decltype(adapter)::Saved saved;
    std::array<Counts, 4> stages;
    std::size_t done = 0;
    const auto stage = [&](auto run) {
      ctx.hook = {};
      run();
      stages[done++] = ctx.hook;
    };
    stage([&] { dw::prepare(ctx, adapter, base); });
    stage([&] { adapter.forward(ctx, base, x.view(), y.view(), saved); });
    stage([&] { adapter.backward(ctx, base, x.view(), y.view(), dx.view(), saved); });
    stage([&] { dw::finish(ctx, adapter, base); });
    return stages;
  };
  for (const index_t blocks : {1, 2, 4, 8}) {
    const double n = static_cast<double>(blocks);
    const auto [prepare, forward, backward, finish] = count(blocks);
    CHECK(forward.flops == tokens * 2 * (rank / n) * (in + out));
    CHECK(forward.products == 2);
    CHECK(backward.flops == tokens * 4 * (rank / n) * (in + out));
    CHECK(backward.products == 4);
    CHECK(prepare.flops == (n - 1) * out * rank / n);
    CHECK(prepare.products == 0);
    CHECK(finish.flops == out * rank);
    CHECK(finish.products == 0);
  }
}

TEST_CASE("Block-LoRA: a step by SGD moves the sum of n blocks n times as far as LoRA's B") {
  constexpr index_t blocks = 4;
  LinearProblem<double> p(3);
  auto block = randomized(BlockLora(shape, {.rank = 8, .blocks = blocks, .alpha = 8}), 6);
  const Step before(LinearProblem<double>(3), block);
  const Matrix b0 = to_matrix(parameter(block, dw::Role::Up).value.view());
  dw::Optimizer<dw::Sgd> sgd{{.learning_rate = 0.01}};
  sgd.step(p.ctx, block);
  const Matrix moved = plus(to_matrix(parameter(block, dw::Role::Up).value.view()), b0, -1);
  Matrix sum(out_features, 2);
  for (index_t k = 0; k < blocks; ++k) sum = plus(sum, columns(moved, 2 * k, 2));
  const Matrix gradient = columns(before.db, 0, 2);
  CHECK(relative_error(sum, plus(Matrix(out_features, 2), gradient, -0.01 * blocks)) <= 1e-12);
}

TEST_CASE("Block-LoRA: what is stale is refused by name") {
  LinearProblem<double> p;
  const auto base = p.dense();
  BlockLora adapter(shape, {.rank = 4, .blocks = 2});
  BlockLora::Saved saved;
  const auto refusal = [](const char* where) {
    return std::string("BlockLora.") + where +
           ": prepare: got parameters changed since, want prepare after each change";
  };
  const auto refused = [&](auto call) { return message_of<dw::StaleError>(call); };
  const auto forward = [&] { adapter.forward(p.ctx, base, p.x.view(), p.y.view(), saved); };
  CHECK(refused(forward) == refusal("forward"));
  dw::prepare(p.ctx, adapter, base);
  CHECK_NOTHROW(forward());
  parameter(adapter, dw::Role::Up).changed();
  CHECK(refused(forward) == refusal("forward"));
  CHECK(refused([&] { adapter.backward(p.ctx, base, p.x.view(), p.dy.view(), p.dx.view(), saved); }) ==
        refusal("backward"));
  CHECK(refused([&] { adapter.delta_weight(p.ctx, base, p.w.view()); }) == refusal("delta_weight"));
  CHECK(refused([&] { adapter.merge(p.ctx, base, p.w.view()); }) == refusal("merge"));
  CHECK(refused([&] { adapter.unmerge(p.ctx, base, p.w.view()); }) == refusal("unmerge"));
}

TEST_CASE("Block-LoRA: options outside their range are refused") {
  const auto make = [](BlockLora::Options o) { return [o] { (void)BlockLora(shape, o); }; };
  CHECK(message_of<dw::OptionError>(make({.blocks = 0})) == "BlockLora: blocks: got 0, want 1 or more");
  CHECK(message_of<dw::OptionError>(make({.rank = 8, .blocks = 3})) ==
        "BlockLora: rank: got 8, want a multiple of blocks = 3");
  CHECK(message_of<dw::OptionError>(make({.rank = 0, .blocks = 3})) ==
        "BlockLora: rank: got 0, want a multiple of blocks = 3");
  CHECK_NOTHROW(make({.rank = 12, .blocks = 2})());  // what counts is the rank of a block
  CHECK_THROWS_WITH(make({.rank = 14, .blocks = 2})(), ContainsSubstring("BlockLora: rank: got 7, want at most"));
  CHECK_THROWS_WITH(make({.rank = 4, .alpha = 0})(), ContainsSubstring("BlockLora: alpha: got 0"));
  CHECK_THROWS_WITH(make({.rank = 4, .dropout = 1})(), ContainsSubstring("BlockLora: dropout: got 1"));
}

namespace {
/// Loss after AdamW on targets Y = X (W + dW)^T with dW of rank 2, started as the base.
template <class A>
double trained_loss(A adapter, unsigned seed) {
  constexpr index_t samples = 64, size = 12;
  Cpu::Context ctx;
  dw::Tensor<double> w(size, size), u(size, 2), v(2, size), target(size, size), x(samples, size), want(samples, size);
  dw::Tensor<double> y(samples, size), dx(samples, size);
  std::uint64_t stream = 100 * seed;
  for (auto* m : {&w, &u, &v, &x}) Cpu::fill_normal(ctx, dw::RandomKey{stream++}, {}, 1, m->view());
  Cpu::copy(ctx, w.view(), target.view());
  Cpu::gemm(ctx, 0.3, u.view(), v.view(), 1, target.view());
  Cpu::gemm(ctx, 1, x.view(), dw::t(target.view()), 0, want.view());
  const dw::DenseLinear<double, double> base(w.view(), {});
  dw::init::Kaiming{.seed = seed}(ctx, adapter, base);
  dw::attach(ctx, adapter, base);
  dw::Optimizer<dw::AdamW> adamw{{.learning_rate = 0.01, .weight_decay = 0}};
  typename A::Saved saved;
  double loss = 0;
  for (int step = 0; step < 1500; ++step) {
    dw::prepare(ctx, adapter, base);
    base.forward(ctx, x.view(), y.view());
    adapter.forward(ctx, base, x.view(), y.view(), saved);
    Cpu::map(ctx, dw::AddScaled{-1}, y.view(), want.view());
    loss = Cpu::norm2(ctx, y.view()) / samples;
    Cpu::map(ctx, dw::Scale{2.0 / samples}, y.view());
    dw::zero_grad(ctx, adapter);
    adapter.backward(ctx, base, x.view(), y.view(), dx.view(), saved);
    dw::finish(ctx, adapter, base);
    adamw.step(ctx, adapter);
  }
  return loss;
}
}  // namespace

// The paper's claim, as far as it goes without its data: the same quality at fewer parameters and FLOPs than LoRA of that
// rank. It holds where what must be learnt has the rank of a block, which a toy can grant.
TEST_CASE("Block-LoRA: a change of rank r / n is learnt as LoRA of rank r does, with fewer parameters", "[effect]") {
  const dw::LinearShape square{12, 12};
  const BlockLora::Options block{.rank = 8, .blocks = 4};
  const Lora::Options lora{.rank = 8};
  CHECK(BlockLora::parameter_count(square, block) == 2 * 12 + 8 * 12);
  CHECK(BlockLora::parameter_count(square, block) < Lora::parameter_count(square, lora));
  for (unsigned seed = 1; seed <= 4; ++seed) {
    const double with_block = trained_loss(BlockLora(square, block), seed);
    const double with_lora = trained_loss(Lora(square, lora), seed);
    INFO("seed " << seed << ": Block-LoRA " << with_block << ", LoRA " << with_lora);
    CHECK(with_block < 1e-3);
    CHECK(with_lora < 1e-3);
  }
}
