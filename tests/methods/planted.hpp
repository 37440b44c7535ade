#pragma once
// Linear layers whose weights should change by planted matrices of known rank: what rank allocators are tested on.

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "../support/primitives.hpp"
#include "deltaw/deltaw.hpp"
#include "guarded.hpp"

namespace deltaw_tests {

namespace dw = deltaw;
using dw::index_t;

inline void fill_normal(dw::MatrixView<double> v, std::mt19937& random, double deviation = 1) {
  std::normal_distribution<double> normal(0, deviation);
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) v(i, j) = normal(random);
}

/// A layer with an adapter, and the outputs it should give: those of W + dW.
template <class A>
struct PlantedLayer {
  dw::Tensor<double> w, target, x, y, want, dy;
  dw::DenseLinear<double, double> base;
  A adapter;
  typename A::Saved saved;
  double noise = 0;             ///< deviation of what is added to the wanted outputs
  dw::Tensor<double> subspace;  ///< inputs are combinations of its rows, if there are any

  /// dW = U V / sqrt(rank in), with U, V ~ N(0, size^2): its entries do not depend on the rank.
  PlantedLayer(dw::LinearShape shape, index_t rank, double size, const typename A::Options& options,
               std::mt19937& random)
      : w(shape.out_features, shape.in_features),
        target(shape.out_features, shape.in_features),
        base(w.view(), {}),
        adapter(shape, options) {
    fill_normal(w.view(), random, 0.3);
    dw::Cpu::Context ctx;
    dw::Cpu::copy(ctx, std::as_const(w).view(), target.view());
    if (rank == 0) return;
    dw::Tensor<double> u(shape.out_features, rank), v(rank, shape.in_features);
    fill_normal(u.view(), random, size), fill_normal(v.view(), random, 1);
    dw::Cpu::gemm(ctx, 1 / std::sqrt(static_cast<double>(rank * shape.in_features)), u.view(), v.view(), 1,
                  target.view());
  }

  void draw(index_t tokens, std::mt19937& random) {
    dw::Cpu::Context ctx;
    fill_normal(x.resize(tokens, w.cols()), random);
    if (!subspace.empty()) {
      dw::Tensor<double> z(tokens, subspace.rows());
      fill_normal(z.view(), random);
      dw::Cpu::gemm(ctx, 1, z.view(), subspace.view(), 0, x.view());
    }
    fill_normal(want.resize(tokens, w.rows()), random, noise > 0 ? noise : 1);
    dw::Cpu::gemm(ctx, 1, std::as_const(x).view(), dw::t(std::as_const(target).view()), noise > 0 ? 1 : 0, want.view());
  }
  /// Half the squared error a token; dy becomes its gradient.
  double loss(dw::Cpu::Context& ctx) {
    const index_t tokens = x.rows();
    auto out = y.resize(tokens, w.rows());
    auto gradient = dy.resize(tokens, w.rows());
    base.forward(ctx, std::as_const(x).view(), out);
    saved.call.training = true;
    adapter.forward(ctx, base, x.view(), out, saved);
    double sum = 0;
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < w.rows(); ++j) {
        const double error = out(i, j) - want.view()(i, j);
        sum += error * error / 2;
        gradient(i, j) = error / static_cast<double>(tokens);
      }
    return sum / static_cast<double>(tokens);
  }
  void backward(dw::Cpu::Context& ctx) { adapter.backward(ctx, base, x.view(), dy.view(), {}, saved); }
};

/// A parameter by its name.
template <class A>
dw::Parameter<double>& parameter(A& adapter, std::string_view name) {
  dw::Parameter<double>* found = nullptr;
  adapter.for_each_parameter([&](auto& p) { found = p.name == name ? &p : found; });
  return *found;
}

/// What the adapter makes of a fixed base output and fixed inputs.
template <class A>
std::vector<double> output(const A& adapter) {
  dw::Cpu::Context ctx;
  dw::Tensor<double> x(5, adapter.shape().in_features), y(5, adapter.shape().out_features);
  std::mt19937 random(9);
  fill_normal(x.view(), random), fill_normal(y.view(), random);
  typename A::Saved saved;
  adapter.forward(ctx, {}, x.view(), y.view(), saved);
  return to_host(y.view());
}

/// The largest difference; 1 where the sizes differ, and never below NaN.
inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    if (!(std::abs(a[i] - b[i]) <= worst)) worst = std::abs(a[i] - b[i]);
  return worst;
}

/// Layers of one method, trained together.
template <class A>
struct PlantedModel {
  using Backend = dw::Cpu;
  using Scalar = double;
  dw::Cpu::Context ctx;
  std::mt19937 random;
  std::vector<std::unique_ptr<PlantedLayer<A>>> layers;
  std::vector<A*> adapters;
  dw::Optimizer<dw::AdamW> optimizer;
  double learning_rate;
  long steps = 0;

  explicit PlantedModel(unsigned seed, double rate, double weight_decay = 0)
      : random(seed), optimizer({.learning_rate = rate, .weight_decay = weight_decay}), learning_rate(rate) {}

  PlantedLayer<A>& add(dw::LinearShape shape, index_t rank, double size, typename A::Options options) {
    options.layer = layers.size();
    layers.push_back(std::make_unique<PlantedLayer<A>>(shape, rank, size, options, random));
    dw::init::Kaiming{.seed = random()}(ctx, layers.back()->adapter, layers.back()->base);
    dw::attach(ctx, layers.back()->adapter, layers.back()->base);
    adapters.push_back(&layers.back()->adapter);
    return *layers.back();
  }
  template <class F>
  void for_each_parameter(F&& f) {
    for (A* adapter : adapters) adapter->for_each_parameter(f);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    for (const A* adapter : adapters) adapter->for_each_parameter(f);
  }
  /// One step on fresh inputs (those there are, where tokens is 0); returns the mean loss of the layers.
  double step(long total_steps, index_t tokens = 32) {
    const dw::StepInfo info{.step = steps++, .total_steps = total_steps, .learning_rate = learning_rate};
    const std::span<A* const> all(adapters);
    dw::begin_step<A>(ctx, all, info);
    double loss = 0;
    for (auto& layer : layers) {
      dw::prepare(ctx, layer->adapter, layer->base);
      if (tokens > 0) layer->draw(tokens, random);
      loss += layer->loss(ctx);
      layer->backward(ctx);
      dw::finish(ctx, layer->adapter, layer->base);
    }
    dw::regularize<A>(ctx, all);
    optimizer.step(ctx, *this);
    dw::after_step<A>(ctx, all, info);
    dw::zero_grad(ctx, *this);
    return loss / static_cast<double>(layers.size());
  }
  double train(long count, long total_steps) {
    double loss = 0;
    for (long i = 0; i < count; ++i) loss = step(total_steps);
    return loss;
  }
};

}  // namespace deltaw_tests
