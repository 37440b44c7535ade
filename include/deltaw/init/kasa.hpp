#pragma once
// KaSA's start: the base without its smallest singular triplets, and the method's own values. Include backend/cpu_solver.hpp or
// backend/cuda_solver.hpp as well.

#include "deltaw/init/kaiming.hpp"
#include "deltaw/init/singular.hpp"

namespace deltaw::init {

/// With W = U S V^T of k triplets: W <- its first k - rank ones, A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, d ~ N(0, 1). The
/// output at the start is that of the new W, not the old one's. The record says what was taken: B0 = U_d S_d, A0 = V_d^T.
struct Kasa {
  std::uint64_t seed = 0;

  template <class A, class Base>
  auto operator()(typename A::Backend::Context& ctx, A& adapter, const Base& base) const {
    using B = typename A::Backend;
    using P = typename A::Scalar;
    const index_t rank = parameter_of(adapter, Role::Gate, "Kasa", "gate").value.cols();
    check_decomposable("Kasa", rank, adapter.shape(), 1);
    const index_t kept = std::min(base.weight.rows, base.weight.cols) - rank;
    const auto w = decompose<P, B>(ctx, base.weight);
    Kaiming{seed}(ctx, adapter, base);
    BaseChange<P, typename B::Space> change;
    B::copy(ctx, w.right(kept, rank), change.down.resize(rank, base.weight.cols));
    B::map(ctx, ScaledProduct{1}, change.up.resize(base.weight.rows, rank), w.left(kept, rank),
           w.s.view().col_range(kept, rank));
    apply_change<B>(ctx, change, base.weight);
    return change;
  }
};

}  // namespace deltaw::init
