// The hooks of methods reach every layer through AdaptedLinear and AdapterSet, in their order.

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "problem.hpp"
#include "support/methods.hpp"

using namespace deltaw_tests;

namespace {
using Set = dw::AdapterSet<double, dw::Cpu>;

/// Two layers of one shape, and a call through each.
struct Model {
  LinearProblem<double> first{1}, second{20};
  dw::Cpu::Context ctx;
  Set set;
  Set::Layer::Saved first_saved, second_saved;

  explicit Model(const std::string& method, std::vector<dw::OptionText> options = {{"rank", "2"}}) {
    set.add_layer("a.q", first.dense());
    set.add_layer("b.q", second.dense());
    set.adapt(ctx, {.method = method, .options = std::move(options), .targets = {.names = {"q"}}});
  }
  void forward() {
    set.layer("a.q").forward(ctx, first.x.view(), first.y.view(), first_saved);
    set.layer("b.q").forward(ctx, second.x.view(), second.y.view(), second_saved);
  }
  void backward() {
    set.layer("a.q").backward(ctx, first.x.view(), first.dy.view(), first.dx.view(), first_saved);
    set.layer("b.q").backward(ctx, second.x.view(), second.dy.view(), second.dx.view(), second_saved);
  }
  /// f(parameter) for those of that role, one a layer.
  template <class F>
  void for_each(dw::Role role, F f) {
    set.for_each_parameter([&](auto& p) {
      if (p.role == role) f(p);
    });
  }
};

double norm(dw::MatrixView<double> v) {
  double sum = 0;
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) sum += v(i, j) * v(i, j);
  return std::sqrt(sum);
}
}  // namespace

TEST_CASE("AdapterSet: adapt attaches, prepare prepares and finish finishes every layer") {
  Model m("dora");
  m.for_each(dw::Role::Magnitude, [](auto& p) { CHECK(norm(p.value.view()) > 0); });  // attach: m = ||W||
  CHECK_THROWS_AS(m.forward(), dw::StaleError);
  m.set.prepare(m.ctx);
  m.forward();
  Guarded<double> base(tokens, out_features);
  m.first.dense().forward(m.ctx, m.first.x.view(), base.view());
  for (index_t i = 0; i < tokens; ++i)
    for (index_t j = 0; j < out_features; ++j) CHECK(std::abs(m.first.y.at(i, j) - base.at(i, j)) < 1e-12);
  dw::zero_grad(m.ctx, m.set);
  m.backward();
  m.for_each(dw::Role::Magnitude, [](auto& p) { CHECK(norm(p.grad.view()) == 0); });
  m.set.finish(m.ctx);
  int finished = 0;
  m.for_each(dw::Role::Magnitude, [&](auto& p) { finished += norm(p.grad.view()) > 0; });
  CHECK(finished == 2);
}

TEST_CASE("AdapterSet: regularize and after_step see all layers of a method, disabled ones left out") {
  Model m("adalora", {{"rank", "2"}, {"target_rank", "1"}});
  dw::zero_grad(m.ctx, m.set);
  dw::Tensor<double> loss(1, 1);
  m.set.regularize(m.ctx, loss.view());
  CHECK(loss.view()(0, 0) > 0);
  int touched = 0;
  m.for_each(dw::Role::Down, [&](auto& p) { touched += norm(p.grad.view()) > 0; });
  CHECK(touched == 2);

  Model gated("sora", {{"rank", "2"}, {"lambda", "0.25"}});
  gated.for_each(dw::Role::Gate, [&](auto& p) { dw::Cpu::fill(gated.ctx, p.value.view(), 1); });
  gated.set.after_step(gated.ctx, {.step = 0, .total_steps = 10});
  gated.for_each(dw::Role::Gate, [](auto& p) { CHECK(p.value.view()(0, 0) == 0.75); });
  gated.set.layer("a.q").enable("default", false);
  gated.set.after_step(gated.ctx, {.step = 1, .total_steps = 10});
  std::vector<double> gates;
  gated.for_each(dw::Role::Gate, [&](auto& p) { gates.push_back(p.value.view()(0, 0)); });
  CHECK(gates == std::vector{0.75, 0.5});
}

// DoRA rescales what LoRA before it has added, so a backward in the wrong order gives wrong gradients.
TEST_CASE("AdaptedLinear: two adapters whose order matters have the gradients of central differences") {
  LinearProblem<double> p;
  Set::Layer layer(p.dense());
  layer.add(p.ctx, "first", randomized(dw::Lora<double, dw::Cpu>(shape, {.rank = 2}), 31));
  dw::Dora<double, dw::Cpu> dora(shape, {.rank = 2, .exact_gradient = true});
  randomize(dora, 32);
  layer.add(p.ctx, "second", dora);
  layer.adapter("second").attach(p.ctx, layer.base());
  layer.for_each_parameter([&](auto& q) {  // lengths other than the rows', so that DoRA changes what comes before it
    if (q.role == dw::Role::Magnitude) dw::Cpu::map(p.ctx, dw::Scale{1.5}, q.value.view()), q.changed();
  });
  Set::Layer::Saved saved;
  const Guarded<double> weights = p.dy;
  const auto loss = [&] {
    layer.prepare(p.ctx);
    layer.forward(p.ctx, p.x.view(), p.y.view(), saved);
    double sum = 0;
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < out_features; ++j) sum += p.y.at(i, j) * weights.at(i, j);
    return sum;
  };
  loss();
  p.dx.fill_with(0);
  layer.backward(p.ctx, p.x.view(), p.dy.view(), p.dx.view(), saved);
  layer.finish(p.ctx);
  const auto check = [&](dw::MatrixView<double> value, dw::MatrixView<double> gradient, auto changed) {
    double error = 0;
    for (index_t i = 0; i < value.rows; ++i)
      for (index_t j = 0; j < value.cols; ++j) {
        const double kept = value(i, j);
        const auto loss_at = [&](double v) {
          value(i, j) = v;
          changed();
          return loss();
        };
        const double up = loss_at(kept + 1e-5), difference = up - loss_at(kept - 1e-5);
        loss_at(kept);
        error += std::pow(difference / 2e-5 - gradient(i, j), 2);
      }
    CHECK(norm(gradient) > 0);
    CHECK(std::sqrt(error) <= 1e-7 * norm(gradient));
  };
  layer.for_each_parameter([&](auto& q) { check(q.value.view(), q.grad.view(), [&] { q.changed(); }); });
  check(p.x.view(), p.dx.view(), [] {});
}
