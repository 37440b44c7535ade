#pragma once
// PEFT's init_lora_weights = "gaussian": A ~ N(0, 1/rank^2), B = 0 (or a deviation of the caller's).

#include "deltaw/core/options.hpp"
#include "deltaw/init/kaiming.hpp"

namespace deltaw::init {

struct Gaussian {
  std::uint64_t seed = 0;
  double deviation = 0;  ///< of A; 0 means 1 / rank

  template <class A, class Base>
  void operator()(typename A::Backend::Context& ctx, A& adapter, const Base&) const {
    check_not_negative("Gaussian", "deviation", deviation);
    const auto origin = RandomOrigin{0, static_cast<std::uint64_t>(adapter.shape().shard.in_offset)};
    fill_down_zero_up(ctx, adapter, seed, [&](auto& p, RandomKey key) {
      const double sigma = deviation > 0 ? deviation : 1 / static_cast<double>(p.value.rows());
      fill_gaussian<typename A::Backend>(ctx, p, sigma, key, origin);
    });
  }
};

}  // namespace deltaw::init
