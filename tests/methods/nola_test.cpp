// NOLA: what its coefficients mean, that the random matrices are the same whoever draws them and are never stored, and what
// the paper claims for few parameters.

#include "deltaw/adapters/nola.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/io/state.hpp"
#include "guarded.hpp"
#include "io/scratch.hpp"
#include "io/small_model.hpp"
#include "message.hpp"
#include "rows/nola.hpp"
#include "support/methods.hpp"

using namespace deltaw_tests;

namespace {

template <class P>
using NolaOf = dw::Nola<P, dw::Cpu>;
using Nola = NolaOf<double>;
using Lora = dw::Lora<double, dw::Cpu>;
using Options = Nola::Options;

constexpr Options small{.rank = 3, .alpha = 6, .k = 10, .l = 7, .seed = 5, .layer = 2};

template <class P>
Matrix matrix_of(dw::ConstMatrixView<P> v) {
  Matrix m(v.rows, v.cols);
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) m(i, j) = static_cast<double>(v(i, j));
  return m;
}
template <class P>
dw::Tensor<P> random(index_t rows, index_t cols, std::uint64_t seed) {
  dw::Cpu::Context ctx;
  dw::Tensor<P> t(rows, cols);
  dw::Cpu::fill_uniform(ctx, dw::RandomKey{seed}, {}, -1, 1, t.view());
  return t;
}
double norm(const Matrix& a) {
  double sum = 0;
  for (const double x : a.values) sum += x * x;
  return std::sqrt(sum);
}
/// ||a - b|| / ||b||.
double distance(const Matrix& a, const Matrix& b) { return norm(plus(a, b, -1)) / norm(b); }

/// An adapter on a base of zeros, so that the output is the adapter's own.
template <class A>
struct Layer {
  using P = typename A::Scalar;
  dw::Cpu::Context ctx;
  A adapter;
  typename A::Saved saved;

  Layer(dw::LinearShape shape, typename A::Options options) : adapter(shape, options) {}
  explicit Layer(A a) : adapter(std::move(a)) {}

  dw::Parameter<P>& parameter(dw::index_t number) {
    dw::Parameter<P>* found = nullptr;
    adapter.for_each_parameter([&](auto& p) {
      if (number-- == 0) found = &p;
    });
    return *found;
  }
  void set(index_t number, const Matrix& values) {
    auto& p = parameter(number);
    for (index_t n = 0; n < values.cols; ++n) p.value.view()(0, n) = static_cast<P>(values(0, n));
    p.changed();
  }
  void set_random() {
    for (index_t number : {0, 1})
      set(number,
          matrix_of<P>(random<P>(1, parameter(number).value.cols(), 40 + static_cast<std::uint64_t>(number)).view()));
    prepare();
  }
  void prepare() { dw::prepare(ctx, adapter, typename A::Base{}); }
  void finish() { dw::finish(ctx, adapter, typename A::Base{}); }
  Matrix gradient(index_t number) { return matrix_of<P>(parameter(number).grad.view()); }
  Matrix forward(dw::ConstMatrixView<P> x) {
    dw::Tensor<P> y(x.rows, adapter.shape().out_features);
    adapter.forward(ctx, {}, x, y.view(), saved);
    return matrix_of<P>(y.view());
  }
  Matrix backward(dw::ConstMatrixView<P> x, dw::Tensor<P>& dy) {
    dw::Tensor<P> dx(x.rows, x.cols);
    adapter.backward(ctx, {}, x, dy.view(), dx.view(), saved);
    return matrix_of<P>(dx.view());
  }
  Matrix delta() {
    dw::Tensor<P> d(adapter.shape().out_features, adapter.shape().in_features);
    adapter.delta_weight(ctx, {}, d.view());
    return matrix_of<P>(d.view());
  }
};
using NolaLayer = Layer<Nola>;

}  // namespace

TEST_CASE("NOLA: options outside their range are refused, naming option and value") {
  const auto make = [](Options o) { return Nola({8, 6}, o); };
  CHECK(message_of<dw::OptionError>([&] { make({.rank = 2, .k = 0}); }) == "Nola: k: got 0, want 1 or more");
  CHECK(message_of<dw::OptionError>([&] { make({.rank = 2, .l = -1}); }) == "Nola: l: got -1, want 1 or more");
  CHECK(message_of<dw::OptionError>([&] { make({.rank = 7}); }) ==
        "Nola: rank: got 7, want at most min(in_features, out_features) = 6, or any_rank = true for a layer of 8 -> 6");
  CHECK(message_of<dw::OptionError>([&] { make({.rank = 2, .alpha = 0}); }).starts_with("Nola: alpha: got 0"));
  CHECK(message_of<dw::OptionError>([&] { make({.rank = 2, .dropout = 1}); }).starts_with("Nola: dropout: got 1"));
  CHECK_NOTHROW(make({.rank = 7, .any_rank = true}));
  CHECK(Nola::parameter_count({4096, 4096}, {}) == 2048);
}

TEST_CASE(
    "NOLA: the GPT variant starts as the base, and only beta has a gradient there; the ViT variant moves at once") {
  const auto x = random<double>(4, 12, 1);
  for (const bool vit : {false, true}) {
    Options o = small;
    o.vit = vit;
    NolaLayer layer({12, 9}, o);
    dw::init::Kaiming{.seed = 3}(layer.ctx, layer.adapter, Nola::Base{});
    layer.prepare();
    const Matrix y = layer.forward(x.view());
    auto dy = random<double>(4, 9, 2);
    layer.backward(x.view(), dy);
    layer.finish();
    CHECK((norm(y) == 0) == !vit);
    CHECK((norm(layer.gradient(0)) == 0) == !vit);
    CHECK(norm(layer.gradient(1)) > 0);
    CHECK(layer.parameter(0).value.view()(0, 9) == (vit ? 1.0 / 10 : 0));
    CHECK(layer.parameter(1).value.view()(0, 6) == (vit ? 1.0 / 7 : 0));
  }
}

TEST_CASE("NOLA: dW is affine in alpha for a fixed beta, linear without offsets, and linear in beta") {
  for (const bool vit : {false, true}) {
    Options o = small;
    o.vit = vit;
    NolaLayer layer({12, 9}, o);
    const auto delta = [&](const Matrix& alpha, const Matrix& beta) {
      layer.set(0, alpha), layer.set(1, beta);
      layer.prepare();
      return layer.delta();
    };
    const Matrix a1 = matrix_of<double>(random<double>(1, 10, 1).view());
    const Matrix a2 = matrix_of<double>(random<double>(1, 10, 2).view());
    const Matrix b1 = matrix_of<double>(random<double>(1, 7, 3).view());
    const Matrix b2 = matrix_of<double>(random<double>(1, 7, 4).view());
    const Matrix origin = delta(Matrix(1, 10), b1);
    CHECK((norm(origin) == 0) == vit);
    const Matrix sum = plus(plus(delta(a1, b1), delta(a2, b1), 3), origin, -3);
    CHECK(distance(delta(plus(a1, a2, 3), b1), sum) <= 1e-14);
    CHECK(distance(delta(a1, plus(b1, b2, -2)), plus(delta(a1, b1), delta(a1, b2), -2)) <= 1e-14);
  }
}

TEST_CASE(
    "NOLA equals the LoRA of its factors, and its gradients are projections of that LoRA's on the random matrices") {
  Options o = small;
  o.dropout = 0.3;
  NolaLayer nola({12, 9}, o);
  nola.set_random();
  nola.adapter.set_scale(0.7);
  Layer<Lora> lora(nola.adapter.to_lora(nola.ctx));
  CHECK(lora.adapter.scale() == Approx(0.7).epsilon(1e-15));
  nola.saved.call = lora.saved.call = {.training = true, .step = 4};
  const auto x = random<double>(20, 12, 1);
  auto dy = random<double>(20, 9, 2);
  CHECK(distance(nola.forward(x.view()), lora.forward(x.view())) <= 1e-15);
  CHECK(distance(nola.backward(x.view(), dy), lora.backward(x.view(), dy)) <= 1e-15);
  nola.finish();

  const auto projected = [](const Matrix& g, std::string_view which, index_t count) {
    Matrix p(1, count);
    for (index_t n = 0; n < count; ++n)
      for (index_t i = 0; i < g.rows; ++i)
        for (index_t j = 0; j < g.cols; ++j)
          p(0, n) += g(i, j) * NolaRow::number(NolaRow::key(small, which), n, i, j, g.cols) /
                     std::sqrt(static_cast<double>(count));
    return p;
  };
  CHECK(distance(nola.gradient(0), projected(lora.gradient(0), "nola_alpha", 10)) <= 1e-14);
  CHECK(distance(nola.gradient(1), projected(lora.gradient(1), "nola_beta", 7)) <= 1e-14);
}

TEST_CASE("NOLA: many calls of a step need one finish, which leaves nothing behind for the next step") {
  NolaLayer whole({12, 9}, small), pieces({12, 9}, small);
  whole.set_random(), pieces.set_random();
  const auto x = random<double>(30, 12, 1);
  auto dy = random<double>(30, 9, 2);
  whole.forward(x.view());
  whole.backward(x.view(), dy);
  whole.finish();
  for (const index_t first : {0, 10, 20}) {
    dw::Tensor<double> part(10, 9);
    dw::Cpu::copy(pieces.ctx, dy.view().row_range(first, 10), part.view());
    pieces.forward(x.view().row_range(first, 10));
    pieces.backward(x.view().row_range(first, 10), part);
    CHECK(norm(pieces.gradient(0)) == 0);
  }
  pieces.finish();
  for (const index_t number : {0, 1}) {
    const Matrix once = pieces.gradient(number);
    CHECK(distance(once, whole.gradient(number)) <= 1e-14);
    pieces.finish();
    CHECK(pieces.gradient(number).values == once.values);
  }
}

TEST_CASE("NOLA: a call with coefficients that prepare has not seen is refused") {
  NolaLayer layer({12, 9}, small);
  const auto x = random<double>(2, 12, 1);
  auto dy = random<double>(2, 9, 1);
  dw::Tensor<double> w(9, 12);
  const auto refused = [&](const std::string& where, const std::function<void()>& call) {
    CHECK(message_of<dw::StaleError>(call) ==
          where + ": prepare: got coefficients changed since, want prepare after each change");
  };
  refused("Nola.forward", [&] { layer.forward(x.view()); });
  layer.prepare();
  CHECK_NOTHROW(layer.forward(x.view()));
  layer.parameter(1).changed();
  refused("Nola.forward", [&] { layer.forward(x.view()); });
  refused("Nola.backward", [&] { layer.backward(x.view(), dy); });
  refused("Nola.delta_weight", [&] { layer.delta(); });
  refused("Nola.merge", [&] { layer.adapter.merge(layer.ctx, {}, w.view()); });
  refused("Nola.unmerge", [&] { layer.adapter.unmerge(layer.ctx, {}, w.view()); });
  refused("Nola.to_lora", [&] { layer.adapter.to_lora(layer.ctx); });
}

namespace {
template <class P>
void check_cached(double tolerance) {
  for (const bool vit : {false, true}) {
    typename NolaOf<P>::Options o{.rank = 4, .alpha = 8, .k = 37, .l = 64, .vit = vit, .seed = 3};
    Layer<NolaOf<P>> drawn({150, 90}, o);
    o.cached = true;
    Layer<NolaOf<P>> cached({150, 90}, o);
    const auto x = random<P>(20, 150, 1);
    auto dy = random<P>(20, 90, 2);
    for (auto* layer : {&drawn, &cached}) {
      layer->set_random();
      layer->forward(x.view());
      layer->backward(x.view(), dy);
      layer->finish();
    }
    CHECK(distance(cached.delta(), drawn.delta()) <= tolerance);
    CHECK(distance(cached.gradient(0), drawn.gradient(0)) <= tolerance);
    CHECK(distance(cached.gradient(1), drawn.gradient(1)) <= tolerance);
    CHECK(cached.adapter.basis_digest() == drawn.adapter.basis_digest());
  }
}
}  // namespace

TEST_CASE("NOLA: cached and drawn again are the same numbers") {
  check_cached<double>(1e-14);
  check_cached<float>(1e-6);
}

TEST_CASE("NOLA: a step takes no memory for the random matrices, unless they are cached") {
  Layer<NolaOf<float>> layer({512, 512}, {.rank = 4, .k = 256, .l = 256});
  layer.set_random();
  layer.finish();
  const std::size_t matrices = 2 * 256 * 4 * 512 * sizeof(float);
  CHECK(layer.ctx.arena.high_water() <= matrices / 100);
}

TEST_CASE("NOLA on a layer that is cut in two: dW is in parts, gradients of the coefficients add up") {
  NolaLayer whole({12, 9}, small);
  whole.set_random();
  const auto x = random<double>(20, 12, 1);
  auto dy = random<double>(20, 9, 2);
  whole.forward(x.view());
  whole.backward(x.view(), dy);
  whole.finish();
  const Matrix delta = whole.delta();
  for (const bool cached : {false, true})
    for (const bool by_inputs : {false, true}) {
      Options o = small;
      o.cached = cached;
      Matrix sums[2] = {Matrix(1, 10), Matrix(1, 7)};
      for (const bool second : {false, true}) {
        const index_t first = second ? 5 : 0;
        const index_t count = second ? (by_inputs ? 7 : 4) : 5;
        const dw::LinearShape shape = by_inputs ? dw::LinearShape{count, 9, {.in_offset = first, .in_total = 12}}
                                                : dw::LinearShape{12, count, {.out_offset = first, .out_total = 9}};
        NolaLayer part(shape, o);
        part.set_random();
        const Matrix d = part.delta();
        int different = 0;
        for (index_t i = 0; i < d.rows; ++i)
          for (index_t j = 0; j < d.cols; ++j)
            different += std::abs(d(i, j) - (by_inputs ? delta(i, first + j) : delta(first + i, j))) <= 1e-14 ? 0 : 1;
        CHECK(different == 0);
        const auto xs = by_inputs ? x.view().col_range(first, count) : x.view();
        dw::Tensor<double> g(20, shape.out_features);
        dw::Cpu::copy(part.ctx, by_inputs ? dy.view() : dy.view().col_range(first, count), g.view());
        part.forward(xs);
        part.backward(xs, g);
        part.finish();
        for (const index_t number : {0, 1}) sums[number] = plus(sums[number], part.gradient(number));
        CHECK(part.adapter.basis_digest() == whole.adapter.basis_digest());
      }
      for (const index_t number : {0, 1}) CHECK(distance(sums[number], whole.gradient(number)) <= 1e-14);
    }
}

TEST_CASE("NOLA: the digest tells the random matrices apart, and never changes for the same ones") {
  const auto digest = [](Options o, dw::LinearShape shape = {12, 9}) { return Nola(shape, o).basis_digest(); };
  const std::uint64_t known = digest(small);
  CHECK(known == 0x58730d37a4c4321du);
  const auto changed = [](auto change) {
    Options o = small;
    change(o);
    return o;
  };
  CHECK(digest(changed([](Options& o) { o.seed = 6; })) != known);
  CHECK(digest(changed([](Options& o) { o.layer = 3; })) != known);
  CHECK(digest(changed([](Options& o) { o.rank = 4; })) != known);
  CHECK(digest(changed([](Options& o) { o.k = 11; })) != known);
  CHECK(digest(changed([](Options& o) { o.l = 8; })) != known);
  CHECK(digest(changed([](Options& o) { o.vit = true; })) != known);
  CHECK(digest(small, {13, 9}) != known);
  CHECK(digest(changed([](Options& o) { o.cached = true, o.dropout = 0.5, o.alpha = 3; })) == known);
}

TEST_CASE("NOLA: a training state is not read into other random matrices") {
  Scratch scratch;
  const auto request = [](const std::string& seed) {
    return dw::AdaptRequest{.method = "nola",
                            .options = {{"rank", "2"}, {"k", "5"}, {"l", "6"}, {"seed", seed}},
                            .targets = {.names = {"query", "value"}}};
  };
  SmallModel<float> saved, same, other;
  for (auto* model : {&saved, &same}) model->set.adapt(model->ctx, request("1"));
  other.set.adapt(other.ctx, request("2"));
  saved.shake(1);
  dw::io::save_state(scratch / "state", saved.set, {});
  dw::io::load_state(scratch / "state", same.set);
  CHECK(snapshot(same.set) == snapshot(saved.set));
  const auto before = snapshot(other.set);
  const std::string text = message_of<dw::OptionError>([&] { dw::io::load_state(scratch / "state", other.set); });
  CHECK_THAT(text, ContainsSubstring("basis_digest of adapter 'default' on layer 'blocks.0.query': got"));
  CHECK_THAT(text, ContainsSubstring("as saved: the same seed, layer, sizes and shape"));
  CHECK(snapshot(other.set) == before);
}

namespace {
/// A frozen layer of zeros under a frozen head of four outputs: targets of rank 4 in a few samples, as in few-shot tuning.
struct Toy {
  static constexpr index_t features = 64, samples = 16, outputs = 4;
  dw::Tensor<double> x, head, target;
  explicit Toy(std::uint64_t seed)
      : x(random<double>(samples, features, seed)),
        head(random<double>(outputs, features, seed + 100)),
        target(random<double>(samples, outputs, seed + 200)) {}

  /// ||Y head^T / 8 - target||^2 / ||target||^2 after training.
  template <class A>
  double train(typename A::Options options) const {
    Layer<A> layer({features, features}, options);
    dw::init::Kaiming{.seed = 1}(layer.ctx, layer.adapter, typename A::Base{});
    dw::Optimizer<dw::AdamW> adamw{{.learning_rate = 0.02, .weight_decay = 0}};
    dw::Tensor<double> y(samples, features), out(samples, outputs), dy(samples, features), dx(samples, features);
    double loss = 0;
    for (int step = 0; step < 400; ++step) {
      layer.prepare();
      dw::Cpu::fill(layer.ctx, y.view(), 0);
      layer.adapter.forward(layer.ctx, {}, x.view(), y.view(), layer.saved);
      dw::Cpu::copy(layer.ctx, target.view(), out.view());
      dw::Cpu::gemm(layer.ctx, 1.0 / 8, y.view(), dw::t(head.view()), -1, out.view());
      loss = dw::Cpu::norm2(layer.ctx, out.view()) / dw::Cpu::norm2(layer.ctx, target.view());
      dw::Cpu::gemm(layer.ctx, 1.0 / 8, out.view(), head.view(), 0, dy.view());
      layer.adapter.backward(layer.ctx, {}, x.view(), dy.view(), dx.view(), layer.saved);
      layer.finish();
      adamw.step(layer.ctx, layer.adapter);
      dw::zero_grad(layer.ctx, layer.adapter);
    }
    return loss;
  }
};
}  // namespace

TEST_CASE("NOLA reaches the loss of LoRA at rank 1 with fewer parameters", "[effect]") {
  for (const std::uint64_t seed : {1, 2, 3, 4}) {
    const Toy toy(seed);
    const Lora::Options lora{.rank = 1, .alpha = 1};
    const Options nola{.rank = 8, .alpha = 8, .k = 48, .l = 48, .seed = seed};
    const double lora_loss = toy.train<Lora>(lora), nola_loss = toy.train<Nola>(nola);
    INFO("LoRA " << lora_loss << ", NOLA " << nola_loss);
    CHECK(Nola::parameter_count({64, 64}, nola) * 4 == Lora::parameter_count({64, 64}, lora) * 3);
    CHECK(lora_loss < 0.7);
    CHECK(nola_loss < lora_loss);
  }
}
