// Steady state: after the first step no call of ours allocates, and nothing of size tokens x features or out x in is taken.

#include "allocations.hpp"
#include "conformance.hpp"

using namespace deltaw_tests;

namespace {
template <class P, class Act>
void steps_allocate_nothing() {
  for_each_problem<P, dw::Cpu, Act>(Sizes{300, 24, 20}, [](auto& problem) {
    dw::Optimizer<dw::AdamW> adamw{{.learning_rate = 1e-3}, {.max_gradient_norm = 1}};
    dw::Optimizer<dw::Sgd> sgd{{.learning_rate = 1e-3, .momentum = 0.9}};
    auto& ctx = problem.ctx;
    auto& base = problem.base;
    auto& adapter = problem.adapter;
    auto& saved = problem.saved;
    const auto x = problem.x.view(), y = problem.y.view(), dy = problem.dy.view(), dx = problem.dx.view();
    const auto step = [&] {
      dw::prepare(ctx, adapter, base);
      base.forward(ctx, x, y);
      adapter.forward(ctx, base, x, y, saved);
      problem.zero_grad();
      adapter.backward(ctx, base, x, dy, dx, saved);
      adapter.backward(ctx, base, x, dy, {}, saved);
      base.backward_input(ctx, dy, dx);
      adapter.backward_input(ctx, base, dx, saved);
      dw::finish(ctx, adapter, base);
      adamw.step(ctx, adapter);
      sgd.step(ctx, adapter);
    };
    step();
    step();
    const long before = allocations;
    for (int i = 0; i < 3; ++i) step();
    CHECK(allocations - before == 0);
  });
}
}  // namespace

TEST_CASE("the counter of allocations counts") {
  const long before = allocations;
  const std::vector<int> one(1);
  dw::Tensor<float> tensor(3, 4);
  CHECK(one.size() == 1);
  CHECK(allocations - before == 2);
}

TEST_CASE("a step allocates nothing after warm-up") {
  steps_allocate_nothing<float, float>();
  steps_allocate_nothing<double, double>();
  steps_allocate_nothing<float, dw::bf16>();
}

TEST_CASE("a step works in exactly the caller's memory, and one byte less is refused by name") {
  for_each_problem<float, dw::Cpu, float>(Sizes{300, 24, 20}, [](auto& problem) {
    problem.forward();
    problem.backward();
    const std::size_t needed = problem.ctx.arena.high_water();
    if (needed == 0) return;
    dw::Tensor<unsigned char> memory(1, static_cast<dw::index_t>(needed));
    const auto run = [&](std::size_t bytes) {
      dw::Cpu::Context ctx(memory.view().data, bytes);
      problem.adapter.forward(ctx, problem.base, problem.x.view(), problem.y.view(), problem.saved);
      problem.adapter.backward(ctx, problem.base, problem.x.view(), problem.dy.view(), problem.dx.view(),
                               problem.saved);
    };
    CHECK_NOTHROW(run(needed));
    CHECK_THROWS_WITH(run(needed - 1), ContainsSubstring("Arena.take: workspace: got " + std::to_string(needed - 1) +
                                                         " bytes, want at least"));
  });
}

TEST_CASE("no temporary is of size tokens x features or out x in") {
  const Sizes sizes{4096, 80, 72};
  const auto check = [&](auto& problem) {
    problem.forward();
    problem.backward();
    // Rows of at most 256 tokens, and tokens x rank with the small ranks of the rows.
    const auto limit =
        (256 * std::max(sizes.in, sizes.out) + sizes.tokens * 8) * static_cast<dw::index_t>(sizeof(float));
    CHECK(static_cast<dw::index_t>(problem.ctx.arena.high_water()) <= limit);
    CHECK(limit < sizes.tokens * sizes.in * static_cast<dw::index_t>(sizeof(float)) / 2);
  };
  for_each_problem<float, dw::Cpu, float>(sizes, check);
  for_each_problem<float, dw::Cpu, dw::bf16>(sizes, check);
}
