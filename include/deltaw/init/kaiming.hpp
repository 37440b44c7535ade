#pragma once
// The initial values of each method's reference code. Of LoRA, and of every method without values of its own:
// A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, so dW = 0 at the start.

#include <concepts>

#include "deltaw/core/initial.hpp"

namespace deltaw::init {

/// Down factors get `fill(parameter, key)`, which calls `changed`, up factors and biases 0, the rest stays, as does a base that is trained itself.
/// Shared by all inits of this kind.
template <class A, class Fill>
void fill_down_zero_up(typename A::Backend::Context& ctx, A& adapter, std::uint64_t seed, Fill fill) {
  if (trains_base(adapter)) return;
  adapter.for_each_parameter([&](auto& p) {
    if (p.role == Role::Down) return fill(p, parameter_key(seed, adapter, p));
    if (p.role == Role::Up || p.role == Role::Bias) A::Backend::fill(ctx, p.value.view(), 0);
    p.changed();
  });
}

/// The values that the method sets itself in `initialize`, else LoRA's. Of a sharded layer every process draws its part of
/// the same whole matrix; fan_in is the whole layer's.
struct Kaiming {
  std::uint64_t seed = 0;

  template <class A, class Base>
  void operator()(typename A::Backend::Context& ctx, A& adapter, const Base&) const {
    if (sets_own_values(ctx, adapter)) return;
    const LinearShape shape = adapter.shape();
    fill_down_zero_up(ctx, adapter, seed, [&](auto& p, RandomKey key) {
      fill_kaiming<typename A::Backend>(ctx, p, shape.in_total(), key,
                                        {0, static_cast<std::uint64_t>(shape.shard.in_offset)});
    });
  }

 private:
  template <class A>
  bool sets_own_values(typename A::Backend::Context& ctx, A& adapter) const {
    if constexpr (requires {
                    { adapter.initialize(ctx, seed) } -> std::same_as<bool>;
                  }) {
      return adapter.initialize(ctx, seed);  // a type-erased one says whether it has any
    } else if constexpr (requires { adapter.initialize(ctx, seed); }) {
      adapter.initialize(ctx, seed);
      return true;
    }
    return false;
  }
};

}  // namespace deltaw::init
