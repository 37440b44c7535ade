#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/base/dense.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::Cpu;

namespace {

constexpr index_t tokens = 5, in_features = 7, out_features = 6;
constexpr dw::LinearShape shape{.in_features = in_features, .out_features = out_features};

template <class W, class Act>
struct Layer {
  Cpu::Context ctx;
  Guarded<W> w{out_features, in_features, 3};
  Guarded<Act> bias{1, out_features}, x{tokens, in_features, 1}, y{tokens, out_features, 2};
  Guarded<Act> dy{tokens, out_features}, dx{tokens, in_features, 4};
  dw::DenseLinear<const W, const Act> dense{w.fill(1).const_view(), bias.fill(2).const_view()};
  dw::DenseLinear<const W, const Act> without_bias{w.const_view(), {}};

  Layer() { x.fill(3), y.fill(4), dy.fill(5), dx.fill(6); }

  double product(index_t t, index_t o) const {
    double sum = 0;
    for (index_t i = 0; i < in_features; ++i) sum += x.at(t, i) * w.at(o, i);
    return sum;
  }
  double product_back(index_t t, index_t i) const {
    double sum = 0;
    for (index_t o = 0; o < out_features; ++o) sum += dy.at(t, o) * w.at(o, i);
    return sum;
  }
};

// Of sums of at most 8 products in float, and one rounding to T.
template <class T, class F>
bool equals(const Guarded<T>& got, F want) {
  const auto v = got.view();
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j)
      if (!within(got.at(i, j), want(i, j), 1e-6 + one_rounding<T>(want(i, j)))) return false;
  return got.intact();
}

template <class W, class Act>
void check_layer() {
  Layer<W, Act> l;
  const auto before = l.dx;
  l.dense.forward(l.ctx, l.x.const_view(), l.y.view());
  // A 16-bit output is rounded once for the bias alone, and again with the product.
  const double twice = std::is_same_v<Act, bf16> ? 0x1p-8 : 0;
  const auto v = l.y.view();
  for (index_t t = 0; t < v.rows; ++t)
    for (index_t o = 0; o < v.cols; ++o) {
      const double want = l.product(t, o) + l.bias.at(0, o);
      CHECK(within(l.y.at(t, o), want, 1e-6 + twice + one_rounding<Act>(want)));
    }
  l.y.fill_with(std::numeric_limits<double>::quiet_NaN());
  l.without_bias.forward(l.ctx, l.x.const_view(), l.y.view());
  CHECK(equals(l.y, [&](index_t t, index_t o) { return l.product(t, o); }));
  l.dense.backward_input(l.ctx, l.dy.const_view(), l.dx.view());
  CHECK(equals(l.dx, [&](index_t t, index_t i) { return before.at(t, i) + l.product_back(t, i); }));
}

// Every entry of a BaseRef over weights of type W, activations Act and parameters P.
template <class W, class Act, class P>
void check_base() {
  Layer<W, Act> l;
  const dw::BaseRef<Act, P, Cpu> base = l.dense;
  CHECK(base.shape.out_features == out_features);
  CHECK(base.bias.data == l.bias.view().data);

  const auto y = l.y;
  base.apply(l.ctx, 2, l.x.view(), 0.5, l.y.view());
  CHECK(equals(l.y, [&](index_t t, index_t o) { return 2 * l.product(t, o) + 0.5 * y.at(t, o); }));
  const auto dx = l.dx;
  base.apply_transposed(l.ctx, -1, l.dy.view(), 1, l.dx.view());
  CHECK(equals(l.dx, [&](index_t t, index_t i) { return dx.at(t, i) - l.product_back(t, i); }));

  Guarded<P> a(3, in_features, 1), p(3, out_features), back(3, in_features), norms(1, out_features);
  a.fill(7), norms.fill(8);
  base.apply_param(l.ctx, 1, a.view(), 0, p.view());
  CHECK(equals(p, [&](index_t r, index_t o) {
    double sum = 0;
    for (index_t i = 0; i < in_features; ++i) sum += a.at(r, i) * l.w.at(o, i);
    return sum;
  }));
  base.apply_param_transposed(l.ctx, 1, p.view(), 0, back.view());
  CHECK(equals(back, [&](index_t r, index_t i) {
    double sum = 0;
    for (index_t o = 0; o < out_features; ++o) sum += p.at(r, o) * l.w.at(o, i);
    return sum;
  }));
  base.row_norms2(l.ctx, norms.view());
  CHECK(equals(norms, [&](index_t, index_t o) {
    double sum = 0;
    for (index_t i = 0; i < in_features; ++i) sum += l.w.at(o, i) * l.w.at(o, i);
    return sum;
  }));
  CHECK(l.w.intact());
}

}  // namespace

TEST_CASE("a dense layer's output and gradient of its input") {
  check_layer<double, double>();
  check_layer<float, float>();
  check_layer<bf16, float>();
  check_layer<bf16, bf16>();
}

TEST_CASE("what adapters ask of a dense base, in the precision of activations and of parameters") {
  check_base<double, double, double>();
  check_base<float, float, float>();
  check_base<bf16, float, float>();
  check_base<bf16, bf16, float>();
  check_base<dw::f16, dw::f16, float>();
}

TEST_CASE("a dense base over raw memory") {
  std::vector<float> w(42), b(6);
  CHECK(dw::dense(w.data(), b.data(), shape).bias.data == b.data());
  CHECK(dw::dense(w.data(), nullptr, shape).bias.data == nullptr);
  const dw::LinearShape shard{.in_features = 7, .out_features = 6, .shard = {.in_offset = 7, .in_total = 14}};
  CHECK(dw::dense(w.data(), nullptr, shard).shape.in_total() == 14);
  CHECK(message_of<dw::ShapeError>([&] { dw::dense(w.data(), nullptr, {.in_features = 0, .out_features = 6}); }) ==
        "dense: shape.in_features: got 0, want 1 or more");
  float* none = nullptr;
  CHECK(message_of<dw::ShapeError>([&] { dw::dense(none, nullptr, shape); }) ==
        "DenseLinear: weight.data (pointer): got null, want memory for 42");
}

TEST_CASE("a dense layer refuses views that do not fit, by name") {
  Layer<float, float> l;
  const auto wide = dw::vector_view(l.bias.view().data, out_features + 1);
  CHECK(message_of<dw::ShapeError>([&] {
          dw::DenseLinear<float, float>{l.w.view(), wide};
        }) == "DenseLinear: bias.cols (out_features): got 7, want 6");
  CHECK(message_of<dw::ShapeError>([&] { l.dense.forward(l.ctx, l.dy.const_view(), l.y.view()); }) ==
        "DenseLinear.forward: x.cols (in_features): got 6, want 7");
  CHECK(message_of<dw::ShapeError>([&] { l.dense.forward(l.ctx, l.x.const_view(), l.dx.view()); }) ==
        "DenseLinear.forward: y.cols (out_features): got 7, want 6");
  CHECK(message_of<dw::ShapeError>([&] { l.dense.forward(l.ctx, l.x.const_view().row_range(0, 4), l.y.view()); }) ==
        "DenseLinear.forward: x.rows (tokens): got 4, want 5");
  CHECK(message_of<dw::ShapeError>([&] { l.dense.backward_input(l.ctx, l.x.const_view(), l.dx.view()); }) ==
        "DenseLinear.backward_input: dy.cols (out_features): got 7, want 6");
  CHECK(message_of<dw::ShapeError>([&] { l.dense.backward_input(l.ctx, l.dy.const_view(), l.y.view()); }) ==
        "DenseLinear.backward_input: dx.cols (in_features): got 6, want 7");
}

TEST_CASE("an output that shares memory with the input is refused before it is written") {
  std::vector<float> w(49, 1), memory(70, 2);
  const auto dense = dw::dense(w.data(), w.data(), {.in_features = 7, .out_features = 7});
  Cpu::Context ctx;
  const dw::MatrixView<float> x{memory.data(), 5, 7};
  CHECK(message_of<dw::AliasError>([&] { dense.forward(ctx, x, x); }) ==
        "DenseLinear.forward: x and y: got views that share memory, want separate ones");
  CHECK(memory == std::vector<float>(70, 2));
}

TEST_CASE("a base names the entry that it lacks") {
  using Base = dw::BaseRef<float, float, Cpu>;
  Layer<float, float> l;
  const dw::BaseFunctions<float, float, Cpu> only_apply{.apply = [](const void*, Cpu::Context&, double,
                                                                    dw::ConstMatrixView<float>, double,
                                                                    dw::MatrixView<float> y) { y(0, 0) = 42; }};
  const Base base(shape, {}, nullptr, &only_apply);
  base.apply(l.ctx, 1, l.x.view(), 0, l.y.view());
  CHECK(l.y.at(0, 0) == 42);
  const auto check = [](const std::string& entry, auto call) {
    CHECK(message_of<dw::UnsupportedError>(call) ==
          "BaseRef: entry '" + entry +
              "': got a base without it, want a base that offers it (a DenseLinear has all; a callback base must fill "
              "it in)");
  };
  check("apply_transposed", [&] { base.apply_transposed(l.ctx, 1, l.dy.view(), 0, l.dx.view()); });
  check("apply_param", [&] { base.apply_param(l.ctx, 1, l.x.view(), 0, l.y.view()); });
  check("apply_param_transposed", [&] { base.apply_param_transposed(l.ctx, 1, l.dy.view(), 0, l.dx.view()); });
  check("row_norms2", [&] { base.row_norms2(l.ctx, l.bias.view()); });
  check("apply", [&] { Base().apply(l.ctx, 1, l.x.view(), 0, l.y.view()); });
}

TEST_CASE("a bias of another type than the activations' is refused") {
  Layer<float, float> l;
  Guarded<bf16> half_bias(1, out_features);
  const dw::DenseLinear<const float, bf16> dense(l.w.const_view(), half_bias.view());
  using Base = dw::BaseRef<float, float, Cpu>;
  CHECK(message_of<dw::UnsupportedError>([&] { static_cast<void>(static_cast<Base>(dense)); }) ==
        "DenseLinear: bias: got another type than the activations', want the same");
}
