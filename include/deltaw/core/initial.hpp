#pragma once
// How initial values are drawn: keyed by (seed, layer, parameter), so that no order of calls changes them.

#include <cmath>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/random.hpp"

namespace deltaw {

/// Key of one parameter's random numbers: (seed, layer, name), so layers that share a seed differ.
template <class A, class Param>
RandomKey parameter_key(std::uint64_t seed, const A& adapter, const Param& p) {
  std::uint64_t layer = 0;
  if constexpr (requires { adapter.options().layer; }) layer = adapter.options().layer;
  if constexpr (requires { adapter.layer(); }) layer = adapter.layer();  // of a type-erased one
  return RandomKey{seed}.fold(layer).fold(name_hash(p.name));
}

/// U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's kaiming_uniform_ with a = sqrt(5) (He et al., 2015, arXiv 1502.01852).
template <class B, class Param>
void fill_kaiming(typename B::Context& ctx, Param& p, index_t fan_in, RandomKey key, RandomOrigin origin = {}) {
  const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
  B::fill_uniform(ctx, key, origin, -bound, bound, p.value.view());
  p.changed();
}

/// N(0, deviation^2).
template <class B, class Param>
void fill_gaussian(typename B::Context& ctx, Param& p, double deviation, RandomKey key, RandomOrigin origin = {}) {
  B::fill_normal(ctx, key, origin, deviation, p.value.view());
  p.changed();
}

/// Random factors that stay as they are, and a core small enough that dW is next to nothing: A ~ U(-1/sqrt(in), 1/sqrt(in)),
/// B ~ U(-1/sqrt(rank), 1/sqrt(rank)), R ~ N(0, deviation^2).
template <class B, class A>
void fill_around_core(typename B::Context& ctx, A& adapter, std::uint64_t seed, double deviation) {
  const LinearShape shape = adapter.shape();
  adapter.for_each_parameter([&](auto& p) {
    const RandomKey key = parameter_key(seed, adapter, p);
    if (p.role == Role::Down)
      fill_kaiming<B>(ctx, p, shape.in_total(), key, {0, static_cast<std::uint64_t>(shape.shard.in_offset)});
    if (p.role == Role::Up)
      fill_kaiming<B>(ctx, p, p.value.cols(), key, {static_cast<std::uint64_t>(shape.shard.out_offset), 0});
    if (p.role == Role::Core) fill_gaussian<B>(ctx, p, deviation, key);
  });
}

}  // namespace deltaw
