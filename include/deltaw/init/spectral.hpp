#pragma once
// Frozen or trained factors from the largest singular triplets of the base's weight, W = U S V^T, for methods with a core
// between them. Signs are the solver's rule. Include backend/cpu_solver.hpp or backend/cuda_solver.hpp as well.

#include "deltaw/init/singular.hpp"

namespace deltaw::init {

/// LoRA-XS: A = S_r V_r^T, B = U_r, R ~ N(0, deviation^2). The weight stays.
struct Spectral {
  std::uint64_t seed = 0;
  double deviation = 1e-5;  ///< of R

  template <class A, class Base>
  void operator()(typename A::Backend::Context& ctx, A& adapter, const Base& base) const {
    using B = typename A::Backend;
    check_not_negative("Spectral", "deviation", deviation);
    auto& down = parameter_of(adapter, Role::Down, "Spectral", "down factor");
    auto& up = parameter_of(adapter, Role::Up, "Spectral", "up factor");
    auto& core = parameter_of(adapter, Role::Core, "Spectral", "core");
    const index_t rank = core.value.rows();
    check_decomposable("Spectral", rank, adapter.shape());
    const auto w = decompose<typename A::Scalar, B>(ctx, base.weight);
    B::map(ctx, ScaledProduct{1}, down.value.view(), w.right(0, rank), w.values(0, rank));
    B::copy(ctx, w.left(0, rank), up.value.view());
    down.changed(), up.changed();
    fill_gaussian<B>(ctx, core, deviation, parameter_key(seed, adapter, core));
  }
};

/// LaMDA: A = V_r^T, B = U_r, M = S_r / s, and W -= s B M A, so the output at the start is the base's up to rounding.
struct SpectralResidual {
  template <class A, class Base>
  auto operator()(typename A::Backend::Context& ctx, A& adapter, const Base& base) const {
    using B = typename A::Backend;
    using P = typename A::Scalar;
    auto& down = parameter_of(adapter, Role::Down, "SpectralResidual", "down factor");
    auto& up = parameter_of(adapter, Role::Up, "SpectralResidual", "up factor");
    auto& core = parameter_of(adapter, Role::Core, "SpectralResidual", "core");
    const index_t rank = core.value.rows();
    check_decomposable("SpectralResidual", rank, adapter.shape());
    const auto w = decompose<P, B>(ctx, base.weight);
    B::copy(ctx, w.right(0, rank), down.value.view());
    B::copy(ctx, w.left(0, rank), up.value.view());
    auto m = core.value.view();
    MatrixView<P, typename B::Space> diagonal(m.data, rank, 1, m.stride + 1);
    B::fill(ctx, m, 0);
    B::copy(ctx, w.values(0, rank), diagonal);
    B::map(ctx, Scale{1 / adapter.scale()}, diagonal);
    down.changed(), up.changed(), core.changed();

    BaseChange<P, typename B::Space> change;
    B::gemm(ctx, adapter.scale(), std::as_const(m), std::as_const(down.value).view(), 0,
            change.down.resize(rank, down.value.cols()));
    B::copy(ctx, up.value.view(), change.up.resize(up.value.rows(), rank));
    apply_change<B>(ctx, change, base.weight);
    return change;
  }
};

}  // namespace deltaw::init
