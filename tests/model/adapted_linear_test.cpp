#include <cmath>
#include <string>
#include <vector>

#include "catch.hpp"
#include "deltaw/adapters/full_delta.hpp"
#include "deltaw/model/adapted_linear.hpp"
#include "deltaw/optim/sgd.hpp"
#include "message.hpp"
#include "problem.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::Cpu;
using dw::MergeMode;

namespace {

using Layer = dw::AdaptedLinear<double, Cpu>;
using Lora = dw::Lora<double, Cpu>;
using FullDelta = dw::FullDelta<double, Cpu>;

Lora small(std::uint32_t seed) { return randomized(Lora(shape, {.rank = 2, .alpha = 4, .bias = true}), seed); }
Lora dropped(std::uint32_t seed) {
  return randomized(Lora(shape, {.rank = 3, .alpha = 5, .rslora = true, .dropout = 0.3, .seed = 9}), seed);
}

// y = x W^T + b + sum over `adapters` of scale (x A^T B^T + bias), by plain loops and without dropout.
std::vector<double> plain_output(const LinearProblem<double>& p, std::vector<const Lora*> adapters) {
  std::vector<double> y;
  for (index_t t = 0; t < tokens; ++t)
    for (index_t o = 0; o < out_features; ++o) {
      double sum = p.bias.at(0, o);
      for (index_t i = 0; i < in_features; ++i) sum += p.x.at(t, i) * p.w.at(o, i);
      for (const Lora* lora : adapters) {
        std::vector<dw::ConstMatrixView<double>> values;
        lora->for_each_parameter([&](const auto& parameter) { values.push_back(parameter.value.view()); });
        double delta = values.size() > 2 ? values[2](0, o) : 0;
        for (index_t r = 0; r < lora->rank(); ++r)
          for (index_t i = 0; i < in_features; ++i) delta += p.x.at(t, i) * values[0](r, i) * values[1](o, r);
        sum += lora->scale() * delta;
      }
      y.push_back(sum);
    }
  return y;
}

std::vector<double> rows_of(const Guarded<double>& m) {
  std::vector<double> values;
  for (index_t i = 0; i < m.const_view().rows; ++i)
    for (index_t j = 0; j < m.const_view().cols; ++j) values.push_back(m.at(i, j));
  return values;
}
double difference(const Guarded<double>& got, const std::vector<double>& want) {
  const auto v = got.view();
  double worst = 0;
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) {
      const double d = std::abs(v(i, j) - want[static_cast<std::size_t>(i * v.cols + j)]);
      if (!(d <= worst)) worst = std::isnan(d) ? 1e300 : d;
    }
  return worst;
}

struct Adapted : LinearProblem<double> {
  Layer layer{dense()};
  Layer::Saved saved;

  Adapted() {
    layer.add(ctx, "first", small(11));
    layer.add(ctx, "second", dropped(12));
  }
  void forward() { layer.forward(ctx, x.view(), y.view(), saved); }
  const Lora* lora(const char* name) { return layer.adapter(name).get<Lora>(); }
};

}  // namespace

TEST_CASE("AdaptedLinear: the output is the base's and that of every enabled adapter") {
  Adapted a;
  CHECK(a.layer.adapter_count() == 2);
  a.forward();
  CHECK(difference(a.y, plain_output(a, {a.lora("first"), a.lora("second")})) < 1e-13);

  a.layer.enable("first", false);
  a.forward();
  CHECK(difference(a.y, plain_output(a, {a.lora("second")})) < 1e-13);

  a.layer.enable("first", true);
  a.layer.set_scale("second", -0.25);
  CHECK(a.lora("second")->scale() == -0.25);
  a.forward();
  CHECK(difference(a.y, plain_output(a, {a.lora("first"), a.lora("second")})) < 1e-13);

  a.layer.swap(a.ctx, "first", dropped(13));
  a.forward();
  CHECK(difference(a.y, plain_output(a, {a.lora("first"), a.lora("second")})) < 1e-13);

  a.layer.remove("first");
  CHECK_FALSE(a.layer.has("first"));
  a.forward();
  CHECK(difference(a.y, plain_output(a, {a.lora("second")})) < 1e-13);
  a.layer.remove("second");
  a.forward();
  CHECK(difference(a.y, plain_output(a, {})) < 1e-13);
  CHECK(a.intact());
}

TEST_CASE("AdaptedLinear: gradients of all parameters and of the input equal central differences") {
  Adapted a;
  a.saved.call = {.training = true, .step = 4};
  a.forward();
  const Guarded<double> weights = a.dy;
  const auto loss = [&] {
    a.forward();
    double sum = 0;
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < out_features; ++j) sum += a.y.at(i, j) * weights.at(i, j);
    return sum;
  };
  a.dx.fill_with(0);
  a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved);

  double error2 = 0, norm2 = 0;
  const auto compare = [&](double& value, double gradient) {
    constexpr double h = 1e-5;
    const double kept = value;
    value = kept + h;
    const double up = loss();
    value = kept - h;
    const double expected = (up - loss()) / (2 * h);
    value = kept;
    error2 += (gradient - expected) * (gradient - expected);
    norm2 += expected * expected;
  };
  const auto compare_all = [&](auto value, auto gradient) {
    error2 = norm2 = 0;
    for (index_t i = 0; i < value.rows; ++i)
      for (index_t j = 0; j < value.cols; ++j) compare(value(i, j), gradient(i, j));
    CHECK(norm2 > 0);
    CHECK(std::sqrt(error2) <= 1e-7 * std::sqrt(norm2));
  };
  int count = 0;
  a.layer.for_each_parameter([&](auto& p) {
    compare_all(p.value.view(), p.grad.view());
    ++count;
  });
  CHECK(count == 5);
  compare_all(a.x.view(), a.dx.view());
  CHECK(a.intact());
}

TEST_CASE("AdaptedLinear: a dx that is overwritten holds what one that was zero gets by adding, from the same call") {
  Adapted added, over;
  for (auto* a : {&added, &over}) {
    a->saved.call = {.training = true, .step = 4};
    a->forward();
  }
  added.dx.fill_with(0);
  over.dx.fill_with(std::nan(""));
  added.layer.backward(added.ctx, added.x.view(), added.dy.view(), added.dx.view(), added.saved);
  over.layer.backward(over.ctx, over.x.view(), over.dy.view(), over.dx.view(), over.saved,
                      deltaw::InputGradient::Overwrite);
  CHECK(difference(over.dx, rows_of(added.dx)) < 1e-13);
  CHECK(over.dy.bits() == added.dy.bits());
  CHECK(over.intact());
}

TEST_CASE("AdaptedLinear: the caller's Call reaches every adapter") {
  Adapted a;
  a.saved.call = {.training = true, .step = 4, .micro_batch = 1, .first_row = 6};
  a.forward();
  LinearProblem<double> b;
  const auto dense = b.dense();
  dense.forward(b.ctx, b.x.view(), b.y.view());
  for (const char* name : {"first", "second"}) {
    Lora::Saved saved;
    saved.call = a.saved.call;
    a.lora(name)->forward(b.ctx, dense, b.x.view(), b.y.view(), saved);
  }
  CHECK(a.y.bits() == b.y.bits());
  a.saved.call.training = false;
  a.forward();
  CHECK(a.y.bits() != b.y.bits());
}

TEST_CASE("AdaptedLinear: a disabled adapter gets no gradient, and an empty dx is left out") {
  Adapted a;
  a.layer.enable("second", false);
  a.forward();
  a.layer.backward(a.ctx, a.x.view(), a.dy.view(), {}, a.saved);
  double first = 0, second = 0;
  a.layer.adapter("first").for_each_parameter([&](auto& p) { first += Cpu::norm2(a.ctx, p.grad.view()); });
  a.layer.adapter("second").for_each_parameter([&](auto& p) { second += Cpu::norm2(a.ctx, p.grad.view()); });
  CHECK(first > 0);
  CHECK(second == 0);
}

TEST_CASE("AdaptedLinear: merged and unmerged give the same output; a kept copy restores every bit") {
  Adapted a;
  const std::string w = a.w.bits(), bias = a.bias.bits();
  a.forward();
  const Guarded<double> unmerged = a.y;

  for (const auto mode : {MergeMode::KeepCopy, MergeMode::Subtract}) {
    a.layer.merge(a.ctx, mode);
    CHECK(a.layer.merged());
    CHECK(a.w.bits() != w);
    a.forward();
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < out_features; ++j) CHECK(a.y.at(i, j) == Approx(unmerged.at(i, j)).epsilon(1e-13));
    a.layer.unmerge(a.ctx);
    CHECK_FALSE(a.layer.merged());
    if (mode == MergeMode::KeepCopy) {
      CHECK(a.w.bits() == w);
      CHECK(a.bias.bits() == bias);
    }
  }
  LinearProblem<double> original;
  for (index_t i = 0; i < out_features; ++i)
    for (index_t j = 0; j < in_features; ++j) CHECK(std::abs(a.w.at(i, j) - original.w.at(i, j)) < 1e-14);
  CHECK(a.intact());
}

TEST_CASE("AdaptedLinear: only enabled adapters are merged") {
  Adapted a;
  a.layer.enable("second", false);
  a.layer.merge(a.ctx, MergeMode::KeepCopy);
  a.forward();
  const Guarded<double> merged = a.y;
  a.layer.unmerge(a.ctx);
  a.forward();
  for (index_t i = 0; i < tokens; ++i)
    for (index_t j = 0; j < out_features; ++j) CHECK(merged.at(i, j) == Approx(a.y.at(i, j)).epsilon(1e-13));
}

TEST_CASE("AdaptedLinear: a bf16 weight takes the merge rounded once, and comes back by its copy") {
  LinearProblem<bf16> p;
  dw::AdaptedLinear<float, Cpu, bf16> layer(p.dense());
  using HalfLora = dw::Lora<float, Cpu, bf16>;
  layer.add(p.ctx, "default", randomized(HalfLora(shape, {.rank = 2, .alpha = 4}), 3));
  const Guarded<bf16> before = p.w;
  const std::string bits = p.w.bits();
  dw::Tensor<float> delta(out_features, in_features);
  layer.adapter("default").delta_weight(p.ctx, layer.base(), delta.view());

  layer.merge(p.ctx, MergeMode::KeepCopy);
  for (index_t i = 0; i < out_features; ++i)
    for (index_t j = 0; j < in_features; ++j) {
      const double exact = before.at(i, j) + static_cast<double>(delta.view()(i, j));
      CHECK(std::abs(p.w.at(i, j) - exact) <= one_rounding<bf16>(exact) + 1e-6);
    }
  layer.unmerge(p.ctx);
  CHECK(p.w.bits() == bits);

  layer.merge(p.ctx, MergeMode::Subtract);
  layer.unmerge(p.ctx);
  double worst = 0;
  for (index_t i = 0; i < out_features; ++i)
    for (index_t j = 0; j < in_features; ++j) worst = std::max(worst, std::abs(p.w.at(i, j) - before.at(i, j)));
  CHECK(worst <= 0.04);  // two roundings of values below 4
  CHECK(p.intact());
}

TEST_CASE("AdaptedLinear: operations that its state does not allow are refused, and change nothing") {
  Adapted a;
  const auto stale = [](auto f) { return message_of<dw::StaleError>(f); };
  CHECK(stale([&] { a.layer.unmerge(a.ctx); }) ==
        "AdaptedLinear.unmerge: state: got a layer that is not merged, want merge first");
  a.forward();
  a.layer.merge(a.ctx, MergeMode::Subtract);
  const std::string merged = a.w.bits();
  const std::string tail = ": state: got a merged layer, want unmerge first";
  CHECK(stale([&] { a.layer.merge(a.ctx, MergeMode::KeepCopy); }) == "AdaptedLinear.merge" + tail);
  CHECK(stale([&] { a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved); }) ==
        "AdaptedLinear.backward" + tail);
  CHECK(stale([&] { a.layer.add(a.ctx, "third", small(1)); }) == "AdaptedLinear.add" + tail);
  CHECK(stale([&] { a.layer.swap(a.ctx, "first", small(1)); }) == "AdaptedLinear.swap" + tail);
  CHECK(stale([&] { a.layer.remove("first"); }) == "AdaptedLinear.remove" + tail);
  CHECK(stale([&] { a.layer.enable("first", false); }) == "AdaptedLinear.enable" + tail);
  CHECK(stale([&] { a.layer.set_scale("first", 2); }) == "AdaptedLinear.set_scale" + tail);
  CHECK(a.w.bits() == merged);
  CHECK(a.layer.adapter_count() == 2);
  a.layer.unmerge(a.ctx);
  CHECK(stale([&] { a.layer.unmerge(a.ctx); }) ==
        "AdaptedLinear.unmerge: state: got a layer that is not merged, want merge first");
}

TEST_CASE("AdaptedLinear: names and shapes that do not fit are refused") {
  Adapted a;
  CHECK(message_of<dw::NameError>([&] { a.layer.add(a.ctx, "first", small(1)); }) ==
        "AdaptedLinear.add: name: got 'first', want one not taken yet");
  const std::string tail = ": name: got 'third', want one of 'first', 'second'";
  CHECK(message_of<dw::NameError>([&] { a.layer.swap(a.ctx, "third", small(1)); }) == "AdaptedLinear.swap" + tail);
  CHECK(message_of<dw::NameError>([&] { a.layer.remove("third"); }) == "AdaptedLinear.remove" + tail);
  CHECK(message_of<dw::NameError>([&] { a.layer.enable("third", true); }) == "AdaptedLinear.enable" + tail);
  CHECK(message_of<dw::NameError>([&] { a.layer.set_scale("third", 1); }) == "AdaptedLinear.set_scale" + tail);
  CHECK(message_of<dw::NameError>([&] { a.layer.adapter("third"); }) == "AdaptedLinear.adapter" + tail);
  Layer bare(a.dense());
  CHECK(message_of<dw::NameError>([&] { bare.remove("x"); }) ==
        "AdaptedLinear.remove: name: got 'x', want an adapter added before");

  const Lora wide({.in_features = in_features, .out_features = 8}, {.rank = 2});
  CHECK(message_of<dw::ShapeError>([&] { a.layer.add(a.ctx, "wide", wide); }) ==
        "AdaptedLinear.add: adapter.shape: got 7 -> 8, want 7 -> 6");
  CHECK(message_of<dw::ShapeError>([&] { a.layer.swap(a.ctx, "first", wide); }) ==
        "AdaptedLinear.swap: adapter.shape: got 7 -> 8, want 7 -> 6");
  CHECK(message_of<dw::OptionError>([&] { a.layer.set_scale("first", std::nan("")); }) ==
        "Lora: scale: got nan, want a finite number");
  CHECK(a.layer.adapter_count() == 2);
}

TEST_CASE("AdaptedLinear: a merge that cannot be whole is refused before the weight changes") {
  Adapted a;
  const std::string w = a.w.bits();
  SECTION("a parameter that is not finite") {
    a.layer.adapter("second").pair()->up->value.view()(5, 2) = std::numeric_limits<double>::infinity();
    CHECK(message_of<dw::NonFiniteError>([&] { a.layer.merge(a.ctx, MergeMode::KeepCopy); }) ==
          "AdaptedLinear.merge: parameter 'lora_B.weight' of adapter 'second': got NaN or infinity, want finite");
    a.layer.enable("second", false);
    CHECK_NOTHROW(a.layer.check_merge(a.ctx));
  }
  SECTION("a trained bias without one in the base") {
    Layer bare(a.dense_without_bias());
    bare.add(a.ctx, "first", small(1));
    CHECK(message_of<dw::UnsupportedError>([&] { bare.merge(a.ctx, MergeMode::Subtract); }) ==
          "AdaptedLinear.merge: adapter 'first': got a trained bias, want a base that has one to add it to");
    CHECK_FALSE(bare.merged());
  }
  CHECK_FALSE(a.layer.merged());
  CHECK(a.w.bits() == w);
}

TEST_CASE("AdaptedLinear: backward wants the Saved of this layer's forward") {
  Adapted a;
  CHECK(message_of<dw::StaleError>([&] { a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved); }) ==
        "AdaptedLinear.backward: saved.adapters: got 0, want 2, those of this layer's forward");
  a.forward();
  a.layer.swap(a.ctx, "first", FullDelta(shape, {}));
  a.layer.swap(a.ctx, "first", small(3));
  Layer::Saved fresh;
  fresh.adapters.resize(2);
  CHECK(message_of<dw::ShapeError>([&] { a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), fresh); }) ==
        "Lora: dy.rows (tokens of the forward): got 5, want 0");
}

TEST_CASE("AdaptedLinear: one Saved serves adapters of other types and ranks, one after the other") {
  Adapted a;
  for (int round = 0; round < 2; ++round) {
    a.forward();
    a.layer.swap(a.ctx, "first", FullDelta(shape, {}));
    a.forward();
    a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved);
    a.layer.swap(a.ctx, "first", randomized(Lora(shape, {.rank = 5}), 3));
    a.forward();
    CHECK(difference(a.y, plain_output(a, {a.lora("first"), a.lora("second")})) < 1e-13);
    a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved);
  }
  CHECK(a.intact());
}

TEST_CASE("AdaptedLinear: an adapter enabled between forward and backward finds nothing of an earlier forward") {
  Adapted a;
  a.forward();
  a.layer.enable("first", false);
  a.forward();
  a.layer.enable("first", true);
  CHECK(message_of<dw::ShapeError>([&] { a.layer.backward(a.ctx, a.x.view(), a.dy.view(), a.dx.view(), a.saved); }) ==
        "Lora: dy.rows (tokens of the forward): got 5, want 0");
}

TEST_CASE("AdaptedLinear: a merge takes the trained values of a 16-bit weight, though prepare was not called") {
  LinearProblem<bf16> p;
  dw::AdaptedLinear<float, Cpu, bf16> layer(p.dense());
  layer.add(p.ctx, "full", dw::FullDelta<float, Cpu, bf16>(shape, {}));
  layer.adapter("full").for_each_parameter([](auto& parameter) {
    parameter.value.view()(0, 0) = 42.1f;
    parameter.changed();
  });
  layer.merge(p.ctx, MergeMode::KeepCopy);
  CHECK(p.w.at(0, 0) == 42);
  layer.unmerge(p.ctx);
  CHECK(p.w.at(0, 0) == 42);
  CHECK(p.bias.at(0, 0) == 42);
}

TEST_CASE("AdaptedLinear: full fine-tuning trains the user's weight where it lies, beside a LoRA") {
  LinearProblem<double> p;
  Layer layer(p.dense());
  layer.add(p.ctx, "full", FullDelta(shape, {}));
  layer.add(p.ctx, "lora", small(2));
  CHECK(message_of<dw::NameError>([&] { layer.add(p.ctx, "again", FullDelta(shape, {})); }) ==
        "AdaptedLinear.add: adapter: got a second one that trains the weight itself, want only 'full'");
  Layer::Saved saved;
  layer.forward(p.ctx, p.x.view(), p.y.view(), saved);
  const Guarded<double> dy = p.dy, before = p.w;
  layer.backward(p.ctx, p.x.view(), p.dy.view(), p.dx.view(), saved);
  dw::Optimizer<dw::Sgd>(dw::Sgd{.learning_rate = 0.5}).step(p.ctx, layer);
  for (index_t o = 0; o < out_features; ++o)
    for (index_t i = 0; i < in_features; ++i) {
      double gradient = 0;
      for (index_t t = 0; t < tokens; ++t) gradient += dy.at(t, o) * p.x.at(t, i);
      CHECK(p.w.at(o, i) == Approx(before.at(o, i) - 0.5 * gradient).margin(1e-13));
    }
  const std::string trained = p.w.bits();
  layer.merge(p.ctx, MergeMode::Subtract);  // the LoRA; the full update is in the weight already
  layer.unmerge(p.ctx);
  layer.enable("lora", false);
  layer.merge(p.ctx, MergeMode::KeepCopy);
  layer.unmerge(p.ctx);
  CHECK(p.intact());
  CHECK(message_of<dw::UnsupportedError>([&] { layer.set_scale("full", 2); }) ==
        "AnyAdapter: set_scale: got method 'full', which has none, want a method that offers it");
}
