#pragma once
// Low-rank adapters of any kind as plain LoRA, which everything reads.

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/base_change.hpp"

namespace deltaw {

/// The plain LoRA with the same dW = s B M A: A' = M A, B' = B. Where the adapter's initializer has changed the base's
/// weight, give its record too: the LoRA is then for the *original* weight, with the ranks taken away as ranks more,
/// A' = [M A; A0], B' = [B, -B0 / s], and the same s, so alpha' = s rank'. Throws OptionError where s = 0.
template <class A>
auto to_lora(typename A::Backend::Context& ctx, const A& adapter,
             const BaseChange<typename A::Scalar, typename A::Backend::Space>& change = {}) {
  using B = typename A::Backend;
  const double s = adapter.scale();
  if (s == 0) raise_mismatch<OptionError>("to_lora", "scale", s, "another number than 0");
  const index_t rank = adapter.rank(), more = change.down.rows();
  Lora<typename A::Scalar, B, typename A::Activation> lora(
      adapter.shape(), {.rank = rank + more, .alpha = s * static_cast<double>(rank + more), .any_rank = true});
  lora.set_scale(s);  // alpha' / rank' may be rounded
  Parameter<typename A::Scalar, typename A::Backend::Space>*down = nullptr, *up = nullptr;
  lora.for_each_parameter([&](auto& p) { (p.role == Role::Down ? down : up) = &p; });
  adapter.copy_factors(ctx, down->value.view().row_range(0, rank), up->value.view().col_range(0, rank));
  if (!change.empty()) {
    B::copy(ctx, change.down.view(), down->value.view().row_range(rank, more));
    B::copy(ctx, change.up.view(), up->value.view().col_range(rank, more));
    B::map(ctx, Scale{-1 / s}, up->value.view().col_range(rank, more));
  }
  down->changed(), up->changed();
  return lora;
}

}  // namespace deltaw
