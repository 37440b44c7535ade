// What DoRA promises beyond the conformance suite: invariances, both gradients, zero rows, merging, refusals, its effect.

#include <cmath>
#include <limits>
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
using Dora = dw::Dora<double, Cpu>;
using Lora = dw::Lora<double, Cpu>;
using Layer = dw::AdaptedLinear<double, Cpu>;

template <class A>
auto& parameter(A& adapter, std::string_view name) {
  dw::Parameter<double>* found = nullptr;
  adapter.for_each_parameter([&](auto& p) {
    if (p.name == name) found = &p;
  });
  REQUIRE(found != nullptr);
  return *found;
}
template <class A>
Matrix value(A& adapter, std::string_view name) {
  return to_matrix(parameter(adapter, name).value.view());
}
template <class A>
Matrix gradient(A& adapter, std::string_view name) {
  return to_matrix(parameter(adapter, name).grad.view());
}
Matrix turned(const Matrix& a) {
  Matrix b(a.cols, a.rows);
  for (index_t i = 0; i < a.rows; ++i)
    for (index_t j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  return b;
}
/// Row lengths, 1 x rows.
Matrix lengths(const Matrix& v) {
  Matrix n(1, v.rows);
  for (index_t i = 0; i < v.rows; ++i) {
    for (index_t j = 0; j < v.cols; ++j) n(0, i) += v(i, j) * v(i, j);
    n(0, i) = std::sqrt(n(0, i));
  }
  return n;
}

/// DoRA with random values on a random layer, attached and prepared.
struct Attached : LinearProblem<double> {
  dw::DenseLinear<double, double> base = dense();
  Dora dora;
  Dora::Saved saved;
  Guarded<double> dy0 = dy;

  explicit Attached(Dora::Options options = {.rank = 3, .alpha = 6}) : dora(shape, options) {
    dw::attach(ctx, dora, base);
    randomize(dora, 77);
    prepare();
  }
  void prepare() { dw::prepare(ctx, dora, base); }
  Matrix forward() {
    base.forward(ctx, x.view(), y.view());
    dora.forward(ctx, base, x.view(), y.view(), saved);
    return to_matrix(y.view());
  }
  /// Gradients of sum(dY o Y).
  void backward() {
    forward();
    dw::zero_grad(ctx, dora);
    dy = dy0;
    dx.fill_with(0);
    dora.backward(ctx, base, x.view(), dy.view(), dx.view(), saved);
    dw::finish(ctx, dora, base);
  }
  /// W + s B A.
  Matrix directions() {
    return plus(to_matrix(w.view()), times(value(dora, "lora_B.weight"), value(dora, "lora_A.weight")), dora.scale());
  }
};
}  // namespace

TEST_CASE("DoRA: attach sets the magnitudes to the row lengths of W + s B A, also of factors that are not zero") {
  Attached a;
  dw::attach(a.ctx, a.dora, a.base);
  CHECK(relative_error(value(a.dora, "lora_magnitude_vector"), lengths(a.directions())) <= 1e-14);
  a.prepare();
  Lora lora(shape, {.rank = 3, .alpha = 6});  // so at first DoRA is LoRA, whatever an initializer has put there
  for (const char* name : {"lora_A.weight", "lora_B.weight"})
    parameter(lora, name).value = parameter(a.dora, name).value;
  a.base.forward(a.ctx, a.x.view(), a.y.view());
  Lora::Saved saved;
  lora.forward(a.ctx, a.base, a.x.view(), a.y.view(), saved);
  const Matrix want = to_matrix(a.y.view());
  CHECK(relative_error(a.forward(), want) <= 1e-14);
}

TEST_CASE("DoRA: multiplying the magnitudes by t multiplies Y - b by t") {
  Attached a;
  const Matrix bias = to_matrix(a.bias.view());
  const Matrix before = plus(a.forward(), bias, -1);
  auto& m = parameter(a.dora, "lora_magnitude_vector");
  Cpu::map(a.ctx, dw::Scale{-2.5}, m.value.view());
  m.changed();
  a.prepare();
  CHECK(relative_error(plus(a.forward(), bias, -1), plus(Matrix(before.rows, before.cols), before, -2.5)) <= 1e-13);
}

TEST_CASE("DoRA: rows of the merged weight are as long as |m|, and the bias is not scaled") {
  Attached a;
  const Matrix bias = to_matrix(a.bias.view());
  a.dora.merge(a.ctx, a.base, a.w.view(), a.bias.view());
  Matrix m = value(a.dora, "lora_magnitude_vector");
  for (double& x : m.values) x = std::abs(x);
  CHECK(relative_error(lengths(to_matrix(a.w.view())), m) <= 1e-13);
  CHECK(to_matrix(a.bias.view()).values == bias.values);
}

TEST_CASE("DoRA: the default gradient is the dense formula with n constant, the exact one is not") {
  for (const bool exact : {false, true}) {
    Attached a({.rank = 3, .alpha = 6, .exact_gradient = exact});
    a.backward();
    const Matrix n = lengths(a.directions());
    Matrix c = value(a.dora, "lora_magnitude_vector");
    for (std::size_t i = 0; i < c.values.size(); ++i) c.values[i] /= n.values[i];
    const Matrix gc = scale_columns(to_matrix(a.dy0.view()), c);  // dV = Gc^T X, as if c were a number
    const Matrix dv = times(turned(gc), to_matrix(a.x.view()));
    const Matrix da = times(turned(value(a.dora, "lora_B.weight")), dv);
    const Matrix db = times_transposed(dv, value(a.dora, "lora_A.weight"));
    const double error_a = relative_error(gradient(a.dora, "lora_A.weight"), plus(Matrix(3, da.cols), da, 2));
    const double error_b = relative_error(gradient(a.dora, "lora_B.weight"), plus(Matrix(db.rows, 3), db, 2));
    CHECK((error_a <= 1e-12) == !exact);
    CHECK((error_b <= 1e-12) == !exact);
    CHECK(std::max(error_a, error_b) <= (exact ? 10 : 1e-12));
    CHECK(relative_error(to_matrix(a.dy.view()), gc) <= 1e-14);  // what the base's own product gets
  }
}

TEST_CASE("DoRA: along a row of V itself the exact gradient is zero, the detached one is not") {
  for (const bool exact : {false, true}) {
    Attached a({.rank = 3, .alpha = 6, .exact_gradient = exact});
    Guarded<double> b0(out_features, 3);
    b0.fill(5);
    const auto down = std::as_const(parameter(a.dora, "lora_A.weight").value).view();
    Cpu::gemm(a.ctx, a.dora.scale(), b0.view(), down, 0, a.w.view());  // W = s B0 A, so V = s (B0 + B) A
    dw::attach(a.ctx, a.dora, a.base);
    parameter(a.dora, "lora_magnitude_vector").changed();
    a.prepare();
    a.backward();
    const Matrix db = gradient(a.dora, "lora_B.weight"), b = value(a.dora, "lora_B.weight");
    double along = 0, size = 0;
    for (index_t i = 0; i < db.rows; ++i)
      for (index_t k = 0; k < 3; ++k) {
        const double part = db(i, k) * (b0.at(i, k) + b(i, k));
        along += std::abs(part) > 0 ? part : 0;
        size += std::abs(part);
      }
    CHECK((std::abs(along) <= 1e-10 * size) == exact);
    double worst = 0;  // and in each row alone
    for (index_t i = 0; i < db.rows; ++i) {
      double row = 0;
      for (index_t k = 0; k < 3; ++k) row += db(i, k) * (b0.at(i, k) + b(i, k));
      worst = std::max(worst, std::abs(row));
    }
    CHECK((worst <= 1e-10 * size) == exact);
  }
}

TEST_CASE("DoRA: prepare forms nothing of out x in, and costs rank rows of the base's product") {
  using Counted = Counting<Cpu>;
  for (const bool exact : {false, true}) {
    constexpr index_t in = 64, out = 48, rank = 4;
    Counted::Context ctx;
    dw::Tensor<float> w(out, in);
    Cpu::fill_normal(ctx, {1}, {}, 1, w.view());
    const dw::DenseLinear<float, float, Counted> base(w.view(), {});
    dw::Dora<float, Counted> dora({in, out}, {.rank = rank, .exact_gradient = exact});
    dw::attach(ctx, dora, base);
    ctx.hook = {};
    dw::prepare(ctx, dora, base);
    const double small = 2 * rank * rank * (in + out) + 2 * 2 * rank * out + 2 * out;
    CHECK(ctx.hook.flops == 2 * rank * in * out + small);
    CHECK(ctx.hook.temporary_bytes == sizeof(float) * (rank * rank + (exact ? 1 : 2) * rank * out));
  }
}

TEST_CASE("DoRA: a row of W that is zero stays zero, without NaN") {
  Attached a({.rank = 3, .alpha = 6, .exact_gradient = GENERATE(false, true)});
  for (index_t j = 0; j < in_features; ++j) a.w.view()(2, j) = 0;
  Cpu::fill(a.ctx, parameter(a.dora, "lora_B.weight").value.view(), 0);
  parameter(a.dora, "lora_B.weight").changed();
  dw::attach(a.ctx, a.dora, a.base);
  a.prepare();
  CHECK(value(a.dora, "lora_magnitude_vector")(0, 2) == 0);
  const Matrix y = a.forward();
  for (index_t i = 0; i < tokens; ++i) CHECK(y(i, 2) == a.bias.at(0, 2));
  a.backward();
  for (const char* name : {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"})
    for (double g : gradient(a.dora, name).values) CHECK(std::isfinite(g));
  CHECK(gradient(a.dora, "lora_magnitude_vector")(0, 2) == 0);
  for (index_t k = 0; k < 3; ++k) CHECK(gradient(a.dora, "lora_B.weight")(2, k) == 0);
  const Matrix before = to_matrix(a.w.view());
  a.dora.merge(a.ctx, a.base, a.w.view());
  a.dora.unmerge(a.ctx, a.base, a.w.view());
  CHECK(relative_error(a.w.view(), before) <= 1e-14);
  for (index_t j = 0; j < in_features; ++j) CHECK(a.w.at(2, j) == 0);
}

TEST_CASE("DoRA: where s B A cancels W the length is held above its rounding") {
  Attached a({.rank = 6, .alpha = 6});
  const auto& b = parameter(a.dora, "lora_B.weight").value;
  const auto& down = parameter(a.dora, "lora_A.weight").value;
  Cpu::gemm(a.ctx, -a.dora.scale(), b.view(), down.view(), 0, a.w.view());  // V = 0 up to rounding
  const double w_length = lengths(to_matrix(a.w.view()))(0, 1);
  dw::attach(a.ctx, a.dora, a.base);
  for (double m : value(a.dora, "lora_magnitude_vector").values) CHECK((m > 0 && std::isfinite(m)));
  CHECK(value(a.dora, "lora_magnitude_vector")(0, 1) >=
        0.9 * std::sqrt(std::numeric_limits<double>::epsilon()) * w_length);
  parameter(a.dora, "lora_magnitude_vector").changed();
  a.prepare();
  for (double v : a.forward().values) CHECK(std::isfinite(v));
}

TEST_CASE("DoRA: a magnitude of 0 loses its row, so unmerge is refused before anything changes") {
  Attached a;
  parameter(a.dora, "lora_magnitude_vector").value.view()(0, 4) = 0;
  parameter(a.dora, "lora_magnitude_vector").changed();
  a.prepare();
  const char* refusal =
      "Dora.unmerge: lora_magnitude_vector: got 0 in 1 rows, which loses those of W, want MergeMode::KeepCopy";
  const Guarded<double> w = a.w;
  Layer layer(a.base);
  layer.add(a.ctx, "dora", a.dora);
  CHECK(message_of<dw::UnsupportedError>([&] { layer.merge(a.ctx, dw::MergeMode::Subtract); }) == refusal);
  CHECK_FALSE(layer.merged());
  CHECK(to_matrix(a.w.view()).values == to_matrix(w.view()).values);
  layer.merge(a.ctx, dw::MergeMode::KeepCopy);
  for (index_t j = 0; j < in_features; ++j) CHECK(a.w.at(4, j) == 0);
  layer.unmerge(a.ctx);
  CHECK(to_matrix(a.w.view()).values == to_matrix(w.view()).values);

  a.dora.merge(a.ctx, a.base, a.w.view());
  const Matrix merged = to_matrix(a.w.view());
  CHECK(message_of<dw::UnsupportedError>([&] { a.dora.unmerge(a.ctx, a.base, a.w.view()); }) == refusal);
  CHECK(to_matrix(a.w.view()).values == merged.values);
}

TEST_CASE("DoRA: beside other adapters a merged layer gives what its forward gave, and W comes back") {
  LinearProblem<double> p;
  Layer layer(p.dense());
  const Matrix weight = to_matrix(p.w.view());
  Dora first(shape, {.rank = 2}), second(shape, {.rank = 3, .alpha = 4});
  for (Dora* dora : {&first, &second}) {
    dw::attach(p.ctx, *dora, p.dense());
    randomize(*dora, dora == &first ? 3 : 4);
  }
  layer.add(p.ctx, "first", first);
  layer.add(p.ctx, "lora", randomized(Lora(shape, {.rank = 2}), 9));
  layer.add(p.ctx, "second", second);
  layer.prepare(p.ctx);
  Layer::Saved saved;
  layer.forward(p.ctx, p.x.view(), p.y.view(), saved);
  const Matrix want = to_matrix(p.y.view());
  layer.merge(p.ctx, dw::MergeMode::Subtract);
  layer.prepare(p.ctx);  // must not take the merged weight for the base
  layer.forward(p.ctx, p.x.view(), p.y.view(), saved);
  CHECK(relative_error(p.y.view(), want) <= 1e-13);
  layer.unmerge(p.ctx);
  CHECK(relative_error(p.w.view(), weight) <= 1e-12);
  layer.forward(p.ctx, p.x.view(), p.y.view(), saved);
  CHECK(relative_error(p.y.view(), want) <= 1e-12);
}

TEST_CASE("DoRA: 16-bit weights are merged with one rounding") {
  LinearProblem<dw::bf16> p;
  const dw::DenseLinear<dw::bf16, dw::bf16> base = p.dense();
  dw::Dora<float, Cpu, dw::bf16> dora(shape, {.rank = 3});
  dw::attach(p.ctx, dora, base);
  randomize(dora, 5);
  dw::prepare(p.ctx, dora, base);
  dw::Tensor<float> delta(out_features, in_features);
  dora.delta_weight(p.ctx, base, delta.view());
  const Matrix want = plus(to_matrix(p.w.view()), to_matrix(delta.view()));
  dora.merge(p.ctx, base, p.w.view());
  for (index_t i = 0; i < out_features; ++i)
    for (index_t j = 0; j < in_features; ++j)
      CHECK(std::abs(p.w.at(i, j) - want(i, j)) <= 0x1.01p-8 * std::abs(want(i, j)) + 1e-6);
}

TEST_CASE("DoRA: dropout acts only while training") {
  Attached plain, dropping({.rank = 3, .alpha = 6, .dropout = 0.5, .seed = 3});
  const Matrix want = plain.forward();
  CHECK(relative_error(dropping.forward(), want) <= 1e-14);
  dropping.saved.call.training = true;
  CHECK(relative_error(dropping.forward(), want) > 1e-3);
}

TEST_CASE("DoRA: what is stale is refused by name") {
  Attached a;
  a.forward();
  const Matrix y = to_matrix(a.y.view());
  a.dora.set_scale(1);
  const auto refusal = [](const char* where) {
    return std::string("Dora.") + where + ": prepare: got parameters changed since, want prepare after each change";
  };
  const auto refused = [&](auto call) { return message_of<dw::StaleError>(call); };
  const auto forward = [&] { a.dora.forward(a.ctx, a.base, a.x.view(), a.y.view(), a.saved); };
  CHECK(refused(forward) == refusal("forward"));
  CHECK(to_matrix(a.y.view()).values == y.values);
  a.prepare();
  CHECK_NOTHROW(a.backward());
  for (const char* name : {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}) {
    a.forward();
    a.dora.backward(a.ctx, a.base, a.x.view(), a.dy.view(), a.dx.view(), a.saved);
    parameter(a.dora, name).changed();
    CHECK(refused(forward) == refusal("forward"));
    CHECK(refused([&] { a.dora.backward(a.ctx, a.base, a.x.view(), a.dy.view(), a.dx.view(), a.saved); }) ==
          refusal("backward"));
    CHECK(refused([&] { dw::finish(a.ctx, a.dora, a.base); }) == refusal("finish"));
    CHECK(refused([&] { a.dora.merge(a.ctx, a.base, a.w.view()); }) == refusal("merge"));
    CHECK(refused([&] { a.dora.unmerge(a.ctx, a.base, a.w.view()); }) == refusal("unmerge"));
    CHECK(refused([&] { a.dora.delta_weight(a.ctx, a.base, a.w.view()); }) == refusal("delta_weight"));
    a.prepare();
  }
  Dora fresh(shape, {.rank = 2});
  CHECK(refused([&] { dw::prepare(a.ctx, fresh, a.base); }) ==
        "Dora.prepare: attach: got none, want attach before the first prepare");
}

TEST_CASE("DoRA: a base without what its norms need is refused by name") {
  using Functions = dw::BaseFunctions<double, double, Cpu>;
  Attached a;
  const dw::BaseRef<double, double, Cpu> whole = a.base;
  static constexpr Functions nothing{};
  static constexpr Functions with_norms{
      .row_norms2 = [](const void*, Cpu::Context& ctx, dw::MatrixView<double> out) { Cpu::fill(ctx, out, 1); }};
  const auto refused = [&](const Functions& functions) {
    return message_of<dw::UnsupportedError>(
        [&] { a.dora.attach(a.ctx, dw::BaseRef<double, double, Cpu>(whole.shape, whole.bias, nullptr, &functions)); });
  };
  const auto refusal = [](const std::string& name) {
    return "BaseRef: entry '" + name +
           "': got a base without it, want a base that offers it (a DenseLinear has all; a callback base must fill it "
           "in)";
  };
  CHECK(refused(nothing) == refusal("row_norms2"));
  CHECK(refused(with_norms) == refusal("apply_param"));
}

TEST_CASE("DoRA: options outside their range are refused") {
  const auto make = [](Dora::Options o, dw::LinearShape s = shape) { return [o, s] { (void)Dora(s, o); }; };
  CHECK(message_of<dw::OptionError>(make({.rank = 0})) == "Dora: rank: got 0, want 1 or more");
  CHECK(message_of<dw::OptionError>(make({.rank = 7})) ==
        "Dora: rank: got 7, want at most min(in_features, out_features) = 6, or any_rank = true for a layer of 7 -> 6");
  CHECK_NOTHROW(make({.rank = 7, .any_rank = true})());
  CHECK_THROWS_WITH(make({.rank = 2, .alpha = 0})(), ContainsSubstring("Dora: alpha: got 0"));
  CHECK_THROWS_WITH(make({.rank = 2, .dropout = 1})(), ContainsSubstring("Dora: dropout: got 1"));
  CHECK(message_of<dw::ShapeError>(make({}, {0, 6})) == "Dora: shape.in_features: got 0, want 1 or more");
  CHECK(message_of<dw::UnsupportedError>(make({.rank = 2}, {7, 6, {.in_offset = 7, .in_total = 14}})) ==
        "Dora: shape.shard.in_total: got 14, want 7: the length of a row needs all its inputs in one process");
  CHECK(Dora(shape, {.rank = 4, .alpha = 6}).scale() == 1.5);
  CHECK(Dora(shape, {.rank = 4, .alpha = 6, .rslora = true}).scale() == 3);
}

namespace {
/// Loss after AdamW on targets Y = X (W*)^T, started as the base W.
template <class A>
double trained_loss(A adapter, const Matrix& weight, const Matrix& target, unsigned seed) {
  constexpr index_t samples = 64;
  Cpu::Context ctx;
  dw::Tensor<double> w(weight.rows, weight.cols), x(samples, weight.cols), y(samples, weight.rows),
      dx(samples, weight.cols);
  assign(weight, w.view());
  Cpu::fill_normal(ctx, dw::RandomKey{seed}, {}, 1, x.view());
  const Matrix want = times_transposed(to_matrix(x.view()), target);
  const dw::DenseLinear<double, double> base(w.view(), {});
  dw::init::Kaiming{.seed = seed}(ctx, adapter, base);
  dw::attach(ctx, adapter, base);
  dw::Optimizer<dw::AdamW> adamw{{.learning_rate = 0.02, .weight_decay = 0}};
  typename A::Saved saved;
  double loss = 0;
  for (int step = 0; step < 1200; ++step) {
    dw::prepare(ctx, adapter, base);
    base.forward(ctx, x.view(), y.view());
    adapter.forward(ctx, base, x.view(), y.view(), saved);
    loss = 0;
    for (index_t i = 0; i < samples; ++i)
      for (index_t j = 0; j < weight.rows; ++j) {
        const double error = y.view()(i, j) - want(i, j);
        loss += error * error / samples;
        y.view()(i, j) = 2 * error / samples;
      }
    dw::zero_grad(ctx, adapter);
    adapter.backward(ctx, base, x.view(), y.view(), dx.view(), saved);
    dw::finish(ctx, adapter, base);
    adamw.step(ctx, adapter);
  }
  return loss;
}
}  // namespace

// The paper's reason for a magnitude of its own: rescaling rows is a full-rank change of W, which LoRA cannot make with as
// many numbers, and DoRA makes with m alone.
TEST_CASE("DoRA: with fewer parameters than LoRA it reaches a weight whose rows have other lengths", "[effect]") {
  constexpr index_t size = 12;
  const dw::LinearShape square{size, size};
  const Dora::Options dora{.rank = 1, .alpha = 1};
  const Lora::Options lora{.rank = 2, .alpha = 2};
  CHECK(Dora::parameter_count(square, dora) < Lora::parameter_count(square, lora));
  for (unsigned seed = 1; seed <= 4; ++seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    Matrix weight(size, size), target(size, size);
    for (double& v : weight.values) v = uniform(random);
    for (index_t i = 0; i < size; ++i) {
      const double factor = 1 + uniform(random);  // between 0 and 2
      for (index_t j = 0; j < size; ++j) target(i, j) = factor * weight(i, j);
    }
    const double with_dora = trained_loss(Dora(square, dora), weight, target, seed);
    const double with_lora = trained_loss(Lora(square, lora), weight, target, seed);
    INFO("seed " << seed << ": DoRA " << with_dora << ", LoRA " << with_lora);
    CHECK(with_dora < 0.01 * with_lora);
  }
}
