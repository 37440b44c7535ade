// LaMDA: columns of B that come to rest, the spectral start, and LaMDA++'s ranks.

#include "deltaw/init/rank_allocation.hpp"
#include "deltaw/init/spectral.hpp"
#include "deltaw/model/to_lora.hpp"
#include "double_solver.hpp"
#include "toy_layer.hpp"

using namespace deltaw_tests;
using Layer = ToyLayer<dw::Lamda>;

namespace {
const std::vector<double> spectrum{5, 4, 3, 2, 1, 0.5};
Matrix column(const Matrix& m, index_t k) { return matrix_of(view_of(m).col_range(k, 1)); }
}  // namespace

TEST_CASE("LaMDA: B rests column by column, to the bit under AdamW, and M goes on") {
  const Matrix x = random_values(20, 7, 2), target = random_values(20, 6, 3);
  Layer layer(random_values(6, 7, 1), {.rank = 4, .freeze_until = 0.5});
  layer.adapter.initialize(layer.ctx, 5);
  layer.set(dw::Role::Up, random_values(6, 4, 6));
  dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.05, .weight_decay = 0.1}};
  const Matrix a = layer.value(dw::Role::Down);
  for (long step = 0; step < 20; ++step) {
    const Matrix b = layer.value(dw::Role::Up), m = layer.value(dw::Role::Core);
    layer.step(optimizer, x, target, {.step = step, .total_steps = 20});
    const Matrix b2 = layer.value(dw::Role::Up);
    const auto resting = std::min<index_t>(4, static_cast<index_t>(4 * step / 10));
    INFO("step " << step << ", resting " << resting);
    for (index_t k = 0; k < 4; ++k) CHECK((column(b, k).values == column(b2, k).values) == (k < resting));
    CHECK(m.values != layer.value(dw::Role::Core).values);
  }
  CHECK(a.values == layer.value(dw::Role::Down).values);

  Layer::A* const layers[] = {&layer.adapter};
  CHECK(message_of<dw::OptionError>([&] { dw::begin_step<Layer::A>(layer.ctx, layers, {.step = 3}); }) ==
        "Lamda.begin_step: total_steps: got 0, want the number of all steps, by which B is frozen");
}

TEST_CASE("LaMDA: with freeze_until = 0 B is never trained") {
  Layer layer(random_values(6, 7, 1), {.rank = 4, .freeze_until = 0});
  layer.adapter.initialize(layer.ctx, 5);
  layer.set(dw::Role::Up, random_values(6, 4, 6));
  Layer::A* const layers[] = {&layer.adapter};
  dw::begin_step<Layer::A>(layer.ctx, layers, {.total_steps = 10});
  layer.backward(random_values(20, 7, 2), random_values(20, 6, 3));
  CHECK(frobenius(layer.gradient(dw::Role::Up)) == 0);
  CHECK(frobenius(layer.gradient(dw::Role::Core)) > 0);
}

TEST_CASE("LaMDA: backward without x gives the same gradients to the bit") {
  Layer layer(random_values(6, 5, 1), {.rank = 2});
  layer.adapter.initialize(layer.ctx, 7);
  layer.set(dw::Role::Up, random_values(6, 2, 6));
  CHECK_FALSE(layer.adapter.reads_input_in_backward());
  const Matrix x = random_values(4, 5, 2);
  const auto gradients = [&](dw::ConstMatrixView<double> seen) {
    Matrix dy = layer.output(x, true), dx(4, 5);
    dw::zero_grad(layer.ctx, layer.adapter);
    layer.adapter.backward(layer.ctx, layer.base, seen, view_of(dy), view_of(dx), layer.saved);
    return std::pair{layer.gradient(dw::Role::Up).values, dx.values};
  };
  CHECK(gradients(view_of(x)) == gradients({}));
}

TEST_CASE("LaMDA: the spectral start moves the leading triplets out of the weight and changes nothing") {
  const Matrix w = with_singular_values(9, 6, spectrum, 3), x = random_values(5, 6, 2);
  Layer layer(w, {.rank = 3, .alpha = 5});
  const auto change = dw::init::SpectralResidual{}(layer.ctx, layer.adapter, layer.base);
  CHECK(frobenius(plus(layer.output(x), times_transposed(x, w), -1)) < 1e-13);
  const auto left = dw::init::spectrum<double, dw::Cpu>(layer.ctx, layer.base.weight);
  for (std::size_t i = 0; i < 6; ++i) CHECK(left[i] == Approx(i < 3 ? spectrum[i + 3] : 0).margin(1e-13));
  const Matrix m = layer.value(dw::Role::Core);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 3; ++j)
      CHECK(m(i, j) == Approx(i == j ? spectrum[static_cast<std::size_t>(i)] * 3 / 5 : 0).margin(1e-13));

  layer.set(dw::Role::Core, random_values(3, 3, 5));
  layer.set(dw::Role::Up, random_values(9, 3, 6));
  ToyLayer<dw::Lora> lora(w, {.rank = 6});
  lora.adapter = dw::to_lora(layer.ctx, layer.adapter, change);
  CHECK(frobenius(plus(lora.output(x), layer.output(x), -1)) < 1e-12);

  dw::undo_change<dw::Cpu>(layer.ctx, change, layer.base.weight);
  CHECK(frobenius(plus(layer.w, w, -1)) < 1e-13);
}

TEST_CASE("LaMDA: a trained B learns what a frozen one cannot, with a third of the steps for it", "[effect]") {
  for (std::uint32_t seed : {1u, 2u, 3u}) {
    const index_t in = 14, out = 12, rank = 3;
    const Matrix w = with_singular_values(out, in, {4, 3.5, 3, 1, 0.9, 0.8}, seed), x = random_values(80, in, seed + 1);
    const auto train = [&](double freeze_until) {
      Layer layer(w, {.rank = rank, .alpha = 3, .freeze_until = freeze_until});
      (void)dw::init::SpectralResidual{}(layer.ctx, layer.adapter, layer.base);
      const Matrix change = times(random_values(out, rank, seed + 2), layer.value(dw::Role::Down));
      const Matrix target = times_transposed(x, plus(w, change));
      const double first = layer.loss(x, target);
      dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.02, .weight_decay = 0}};
      for (long step = 0; step < 600; ++step) layer.step(optimizer, x, target, {.step = step, .total_steps = 600});
      return layer.loss(x, target) / first;
    };
    const double frozen = train(0), gradual = train(0.3);
    CHECK(frozen > 0.3);
    CHECK(gradual < 0.2 * frozen);
  }
}

TEST_CASE("LaMDA++: a flat spectrum gets more rank than a steep one, at the mean asked for") {
  const std::vector<double> flat(16, 1.0);
  std::vector<double> steep, middling;
  for (int i = 0; i < 16; ++i) steep.push_back(std::pow(0.4, i)), middling.push_back(std::pow(0.8, i));
  const std::vector<std::vector<double>> spectra{steep, flat, middling};
  for (index_t mean : {1, 2, 4, 8, 16}) {
    const auto ranks = dw::init::allocate_ranks(spectra, mean);
    CHECK(ranks[0] + ranks[1] + ranks[2] == 3 * mean);
    CHECK(ranks[0] >= 1);
    if (mean > 1 && mean < 16) {
      CHECK(ranks[1] > ranks[2]);
      CHECK((mean == 2 || ranks[2] > ranks[0]));  // at a mean of 2 all goes to the flat one
    }
  }
  CHECK(dw::init::allocate_ranks(std::vector(5, middling), 6) == std::vector<index_t>(5, 6));
  CHECK(dw::init::allocate_ranks(spectra, 4, 5) == std::vector<index_t>{2, 5, 5});
  CHECK(dw::init::allocate_ranks({}, 4).empty());

  const auto refused = [](const std::vector<std::vector<double>>& s, index_t mean) {
    return message_of<dw::OptionError>([&] { (void)dw::init::allocate_ranks(s, mean); });
  };
  CHECK(refused(spectra, 0) == "allocate_ranks: mean: got 0, want 1 or more");
  CHECK(refused(spectra, 17) == "allocate_ranks: mean: got 17, want at most 16, what the layers have room for");
  CHECK(refused({{}}, 1) == "allocate_ranks: the spectrum of a layer: got no value above 0, want some");
  CHECK(refused({{1, -1}}, 1) == "allocate_ranks: a singular value: got -1, want finite and 0 or more");
}

TEST_CASE("LaMDA: options outside their range are refused") {
  const auto refused = [](dw::Lamda<double, dw::Cpu>::Options o) {
    return message_of<dw::OptionError>([&] { dw::Lamda<double, dw::Cpu>({5, 4}, o); });
  };
  CHECK(refused({.rank = 0}) == "Lamda: rank: got 0, want 1 or more");
  CHECK(refused({.rank = 5}).starts_with("Lamda: rank: got 5, want at most"));
  CHECK(refused({.rank = 2, .freeze_until = 1.5}) == "Lamda: freeze_until: got 1.5, want 0 to 1");
  CHECK(refused({.rank = 2, .alpha = 0}).starts_with("Lamda: alpha: got 0"));
}
