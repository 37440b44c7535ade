// Each kernel of cuda.hpp that shares memory between threads, once and small: with real threads under ThreadSanitizer, which
// takes a while, a missing barrier shows by its line.

#include "../optim/parameters.hpp"
#include "catch.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/optim/adamw.hpp"
#include "guarded.hpp"

using namespace deltaw_tests;
using dw::Cuda;

TEST_CASE("reductions, a transpose, random numbers and a step, each in two blocks") {
  Cuda::Context ctx;
  Guarded<float> a(17, 34), turned(34, 17), sums(1, 34), dots(1, 17);
  a.fill(1), sums.fill_with(0), dots.fill_with(0);
  Cuda::copy_transposed(ctx, a.const_view(), turned.view());
  Cuda::col_sum(ctx, 1, a.const_view(), sums.view());
  Cuda::row_dot(ctx, 1, a.const_view(), a.const_view(), dots.view());
  CHECK(turned.at(33, 16) == a.at(16, 33));
  double sum = 0, dot = 0;
  for (index_t i = 0; i < 17; ++i) sum += a.at(i, 33);
  for (index_t j = 0; j < 34; ++j) dot += a.at(16, j) * a.at(16, j);
  CHECK(within(sums.at(0, 33), sum, 1e-5));
  CHECK(within(dots.at(0, 16), dot, 1e-5));

  Cuda::fill(ctx, turned.view(), 1);
  Cuda::dropout(ctx, 0.5, dw::CallKey{{7}, 1, 2}, {}, turned.const_view(), turned.view());
  const auto key = dw::RandomKey{7}.fold(1).fold(2);
  CHECK(turned.at(33, 1) == (key.block(0, 33)[1] < 0x80000000u ? 0 : 2));

  Guarded<float> projections(1, 5);  // five matrices are two blocks
  projections.fill_with(0);
  Cuda::random_project(ctx, {key, 0, 34}, 1, a.const_view(), projections.view());
  double projection = 0;
  for (index_t i = 0; i < 17; ++i)
    for (index_t j = 0; j < 34; ++j)
      projection += a.at(i, j) * (2 * dw::uniform01(key.block(1, static_cast<std::uint64_t>(i * 34 + j))[0]) - 1);
  CHECK(within(projections.at(0, 4), projection, 1e-4));

  Bag<float, Cuda> bag;
  bag.add("w", 1, 4097, 3);
  bag.fill_gradients(4);
  const auto gradient = elements(bag.parameters[0].grad), before = elements(bag.parameters[0].value);
  dw::Optimizer<dw::AdamW, Cuda> optimizer({.learning_rate = 0.5, .weight_decay = 0});
  optimizer.step(ctx, bag);
  double norm2 = 0;
  for (const double g : gradient) norm2 += g * g;
  CHECK(optimizer.settle(ctx, bag).gradient_norm == Approx(std::sqrt(norm2)).epsilon(1e-13));
  const auto after = elements(bag.parameters[0].value);
  for (const std::size_t i : {std::size_t{0}, std::size_t{4095}, std::size_t{4096}})
    CHECK(within(before[i] - after[i], gradient[i] > 0 ? 0.5 : -0.5, 1e-6));  // the first step of Adam is the sign
}

#if !defined(DELTAW_TEST_SMALL)  // a thread of the system for each of these would take minutes
TEST_CASE("rows beyond those that a grid has blocks for are taken too") {
  Cuda::Context ctx;
  Guarded<float> tall(1027, 1025), narrow(32770, 2), turned(2, 32770), noise(1027, 1025);
  tall.fill_with(1), narrow.fill(2);
  Cuda::map(ctx, dw::Scale{3}, tall.view());
  Cuda::copy_transposed(ctx, narrow.const_view(), turned.view());
  Cuda::fill_uniform(ctx, dw::RandomKey{7}, {}, 0, 1, noise.view());
  for (const index_t i : {0, 1023, 1024, 1026}) {
    CHECK(tall.at(i, 1024) == 3);
    CHECK(noise.at(i, 1024) == dw::uniform01(dw::RandomKey{7}.block(256, static_cast<std::uint64_t>(i))[0]));
  }
  for (const index_t i : {0, 32767, 32768, 32769}) CHECK(turned.at(1, i) == narrow.at(i, 1));
  CHECK(tall.intact());
  CHECK(turned.intact());
}
#endif
