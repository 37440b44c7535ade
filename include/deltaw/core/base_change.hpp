#pragma once
// What an initializer did to the base's weight. An adapter's file alone does not give the model back then: whoever
// initialises keeps the record, to restore the base or to export the adapter for the original one (model/to_lora.hpp).

#include "deltaw/core/memory.hpp"

namespace deltaw {

/// W has become W - up down, up out x rank, down rank x in; nothing where `empty`.
template <class P, class Space>
struct [[nodiscard]] BaseChange {
  Tensor<P, Space> down, up;

  bool empty() const { return up.empty(); }
};

/// w -= up down, from the factors as they are stored, and rounded once.
template <class B, class P, class W>
void apply_change(typename B::Context& ctx, const BaseChange<P, typename B::Space>& change,
                  MatrixView<W, typename B::Space> w) {
  if (!change.empty()) B::gemm(ctx, -1, change.up.view(), change.down.view(), 1, w);
}
/// w += up down: the original weight up to rounding. Keep a copy of it where the very bits must come back.
template <class B, class P, class W>
void undo_change(typename B::Context& ctx, const BaseChange<P, typename B::Space>& change,
                 MatrixView<W, typename B::Space> w) {
  if (!change.empty()) B::gemm(ctx, 1, change.up.view(), change.down.view(), 1, w);
}

}  // namespace deltaw
