#pragma once
// The initial values of LoRA's reference code: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, so dW = 0 at the start.
// (PyTorch's kaiming_uniform_ with a = sqrt(5); He et al., 2015, arXiv 1502.01852.)

#include <cmath>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/random.hpp"

namespace deltaw::init {

/// Key of one parameter's random numbers: (seed, layer, name), so layers that share a seed differ.
template <class A, class Param>
RandomKey parameter_key(std::uint64_t seed, const A& adapter, const Param& p) {
  std::uint64_t layer = 0;
  if constexpr (requires { adapter.options().layer; }) layer = adapter.options().layer;
  if constexpr (requires { adapter.layer(); }) layer = adapter.layer();  // of a type-erased one
  return RandomKey{seed}.fold(layer).fold(name_hash(p.name));
}

/// Down factors get `fill(parameter, key)`, up factors and biases 0, the rest stays, as does a base that is trained itself. Shared by all inits of this kind.
template <class A, class Fill>
void fill_down_zero_up(typename A::Backend::Context& ctx, A& adapter, std::uint64_t seed, Fill fill) {
  if (trains_base(adapter)) return;
  adapter.for_each_parameter([&](auto& p) {
    if (p.role == Role::Down) fill(p, parameter_key(seed, adapter, p));
    if (p.role == Role::Up || p.role == Role::Bias) A::Backend::fill(ctx, p.value.view(), 0);
    p.changed();
  });
}

/// Of a sharded layer every process draws its part of the same whole matrix; fan_in is the whole layer's.
struct Kaiming {
  std::uint64_t seed = 0;

  template <class A, class Base>
  void operator()(typename A::Backend::Context& ctx, A& adapter, const Base&) const {
    const LinearShape shape = adapter.shape();
    const double bound = 1 / std::sqrt(static_cast<double>(shape.in_total()));
    fill_down_zero_up(ctx, adapter, seed, [&](auto& p, RandomKey key) {
      A::Backend::fill_uniform(ctx, key, {0, static_cast<std::uint64_t>(shape.shard.in_offset)}, -bound, bound,
                               p.value.view());
    });
  }
};

}  // namespace deltaw::init
