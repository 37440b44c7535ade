#pragma once
// The penalty that keeps the ranks of a factor orthonormal, without a product of size in x in, and without waiting:
//   root = sqrt(||M||_F^2 + extra), M = A A^T - I (down: rank x in) or B^T B - I (up: out x rank)
//   loss += weight root,  dA += weight 2 M A / root,  dB += weight 2 B M / root
// AdaLoRA and IncreLoRA take weight / number of matrices, KaSA the weight itself. `extra` = n - rank makes ||M|| that of the
// n x n matrices A^T A - I or B B^T - I, which some published code forms.

#include <cmath>

#include "deltaw/core/adapter.hpp"

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
// The pull of a factor's ranks towards orthonormal ones, which KaSA and AdaLoRA add to the loss.
#include "deltaw/core/config.hpp"
#include "deltaw/core/parameter.hpp"
/// out weight / (sqrt(norm2 + extra) + epsilon).
struct OverRoot {
  double weight = 1, extra = 0, epsilon = 0;
  DELTAW_HD X operator()(X out, Y norm2) const {
    return out * static_cast<X>(weight / (std::sqrt(static_cast<double>(norm2) + extra) + epsilon));
/// out + weight sqrt(norm2 + extra).
  double weight = 1, extra = 0;
  DELTAW_HD X operator()(X out, Y norm2) const {
    return out + static_cast<X>(weight * std::sqrt(static_cast<double>(norm2) + extra));
/// loss += weight root with root = sqrt(||M||^2 + extra): M = F F^T - I of a factor whose ranks are rows, F^T F - I of one
/// whose ranks are columns. The gradient += weight 2 M F (or F M) / (root + 1e-12), where it is trained. `loss` is 1 x 1, or
/// empty. Nothing waits, and nothing is larger than rank x rank: ||F^T F - I||^2 is ||F F^T - I||^2 + cols - rows.
template <class B, class P>
void add_orthogonality(typename B::Context& ctx, Parameter<P, typename B::Space>& factor, double weight,
                       double extra = 0, MatrixView<P, typename B::Space> loss = {}) {
  using Space = typename B::Space;
  const auto f = std::as_const(factor.value).view();
  const bool by_rows = factor.rank_axis == RankAxis::Rows;
  const index_t ranks = by_rows ? f.rows : f.cols;
  auto m = B::template temp<P>(ctx, ranks, ranks);
  auto norm2 = B::template temp<P>(ctx, 1, 1);
  B::fill(ctx, m, 0);
  B::fill(ctx, MatrixView<P, Space>(m.data, ranks, 1, ranks + 1), 1);
  by_rows ? B::gemm(ctx, 1, f, t(f), -1, m) : B::gemm(ctx, 1, t(f), f, -1, m);
  const ConstMatrixView<P, Space> elements(m.data, 1, ranks * ranks);
  B::fill(ctx, norm2, 0);
  B::row_dot(ctx, 1, elements, elements, norm2);
  if (!loss.empty()) B::map(ctx, AddRoot{weight, extra}, loss, norm2);
  if (!factor.trained) return;
  B::map(ctx, OverRoot{2 * weight, extra, 1e-12}, m, norm2);
  by_rows ? B::gemm(ctx, 1, m, f, 1, factor.gradient()) : B::gemm(ctx, 1, f, m, 1, factor.gradient());
}

}  // namespace deltaw
