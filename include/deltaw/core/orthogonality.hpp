#pragma once
// The penalty that keeps the ranks of a factor orthonormal, without a product of size in x in, and without waiting:
//   root = sqrt(||M||_F^2 + extra), M = A A^T - I (down: rank x in) or B^T B - I (up: out x rank)
//   loss += weight root,  dA += weight 2 M A / root,  dB += weight 2 B M / root
// AdaLoRA and IncreLoRA take weight / number of matrices, KaSA the weight itself. `extra` = n - rank makes ||M|| that of the
// n x n matrices A^T A - I or B B^T - I, which some published code forms.

#include <cmath>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/config.hpp"

namespace deltaw {

/// out + constant.
struct AddConstant {
  double constant = 0;
  template <class X>
  DELTAW_HD X operator()(X out) const {
    return out + static_cast<X>(constant);
  }
};
/// scale out / sqrt(in), or 0 where both are 0.
struct DivideByRoot {
  double scale = 1;
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return static_cast<X>(scale) * out / (std::sqrt(static_cast<X>(in)) + static_cast<X>(1e-12));
  }
};
/// out + scale sqrt(in).
struct AddRoot {
  double scale = 1;
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return out + static_cast<X>(scale) * std::sqrt(static_cast<X>(in));
  }
};

/// The penalty of one factor, whose ranks are `axis`; `loss` (1 x 1) may be empty.
template <class B, class T, class Space>
void add_orthogonality(typename B::Context& ctx, RankAxis axis, ConstMatrixView<T, Space> factor,
                       MatrixView<T, Space> gradient, double weight, MatrixView<T, Space> loss = {}, double extra = 0) {
  const bool rows = axis == RankAxis::Rows;
  const index_t rank = rows ? factor.rows : factor.cols;
  if (rank == 0 || weight == 0) return;
  typename Arena<Space>::Mark mark(ctx.arena);
  auto m = B::template temp<T>(ctx, rank, rank);
  if (rows)
    B::gemm(ctx, 1, factor, t(factor), 0, m);
  else
    B::gemm(ctx, 1, t(factor), factor, 0, m);
  B::map(ctx, AddConstant{-1}, MatrixView<T, Space>(m.data, rank, 1, rank + 1));  // the diagonal
  auto norm2 = B::template temp<T>(ctx, 1, 1);
  B::fill(ctx, norm2, extra);
  const ConstMatrixView<T, Space> flat(m.data, 1, rank * rank);
  B::row_dot(ctx, 1, flat, flat, norm2);
  const ConstMatrixView<T, Space> sum(norm2);
  if (is_given(loss)) B::map(ctx, AddRoot{weight}, loss, sum);
  B::map(ctx, DivideByRoot{2 * weight}, m, sum);
  if (rows)
    B::gemm(ctx, 1, m, factor, 1, gradient);
  else
    B::gemm(ctx, 1, factor, m, 1, gradient);
}

/// The same for the whole of a parameter that is trained.
template <class B, class T, class Space>
void add_orthogonality(typename B::Context& ctx, Parameter<T, Space>& p, double weight, MatrixView<T, Space> loss = {},
                       double extra = 0) {
  if (p.trained)
    add_orthogonality<B>(ctx, p.rank_axis, std::as_const(p.value).view(), p.gradient(), weight, loss, extra);
}

}  // namespace deltaw
