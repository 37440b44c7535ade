#pragma once
// A linear layer with data around it, for tests of what stands above adapters.

#include <string>

#include "../support/primitives.hpp"
#include "deltaw/adapters/lora.hpp"
#include "deltaw/base/dense.hpp"
#include "guarded.hpp"

namespace deltaw_tests {

inline constexpr index_t tokens = 5, in_features = 7, out_features = 6;
inline constexpr dw::LinearShape shape{.in_features = in_features, .out_features = out_features};

template <class Act>
struct LinearProblem {
  dw::Cpu::Context ctx;
  Guarded<Act> w{out_features, in_features, 2}, bias{1, out_features};
  Guarded<Act> x{tokens, in_features, 1}, y{tokens, out_features, 3}, dy{tokens, out_features}, dx{tokens, in_features};

  explicit LinearProblem(std::uint32_t seed = 1) {
    for (auto* g : {&w, &bias, &x, &y, &dy, &dx}) g->fill(seed++);
  }
  dw::DenseLinear<Act, Act> dense() { return {w.view(), bias.view()}; }
  dw::DenseLinear<Act, Act> dense_without_bias() { return {w.view(), {}}; }
  bool intact() const { return w.intact() && bias.intact() && x.intact() && y.intact() && dy.intact() && dx.intact(); }
};

/// Numbers in [-1, 1) for every parameter.
template <class A>
void randomize(A& adapter, std::uint32_t seed) {
  Numbers numbers(seed);
  adapter.for_each_parameter([&](auto& p) {
    auto v = p.value.view();
    for (index_t i = 0; i < v.rows; ++i)
      for (index_t j = 0; j < v.cols; ++j) v(i, j) = static_cast<typename decltype(v)::value_type>(numbers());
    p.changed();
  });
}

template <class A>
A randomized(A adapter, std::uint32_t seed) {
  randomize(adapter, seed);
  return adapter;
}

/// The bits of every value and gradient, in order.
template <class A>
std::string parameter_bits(const A& adapter) {
  std::string bits;
  adapter.for_each_parameter([&](const auto& p) { bits += bits_of(p.value.view()) + bits_of(p.grad.view()); });
  return bits;
}

}  // namespace deltaw_tests
