#pragma once
// RandLoRA's factors P ((rank nb) x mn) and Bf (mx x (rank nb)) in tiles of at most 512 rows of P, with every product that one call
// takes with them, dense or by the non-zeros of sparse bases.

#include <algorithm>
#include <utility>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/core/randlora_bases.hpp"

namespace deltaw {

/// One layer's factors, as views for the time of one call. E is the type that P is made in.
template <class P, class B, class E>
struct RandLoraTiles {
  using Space = typename B::Space;
  using Context = typename B::Context;
  template <class T>
  using In = ConstMatrixView<T, Space>;
  template <class T>
  using Out = MatrixView<T, Space>;

  /// Rows [first, first + count) of P, and those columns of Bf.
  struct Tile {
    index_t first = 0, count = 0;
    index_t size = 0;  ///< elements of P: count x mn, or fewer where only those that are not 0 are kept
    In<E> p = {};      ///< 1 x size, or none
    In<P> b = {};      ///< mx x count, or none
  };
  /// Those rows of a tile that belong to row k of a: bases [base, base + count), over the `width` columns of that row.
  struct Segment {
    index_t k, base, count, row, width, offset;
    /// Its part of P or dP.
    template <class T>
    MatrixView<T, Space> of(MatrixView<T, Space> elements) const {
      return {elements.data + offset, count, width};
    }
  };
  /// Which factors a call needs.
  struct Needs {
    bool p = true, b = true;
  };

  const RandLoraBases<P, B>& bases;
  In<P> lambda, gamma;
  index_t mx;
  bool compact;  ///< P is kept without the columns where a is 0
  bool signs;    ///< products with Bf are signed sums

  index_t mn() const { return gamma.cols; }
  index_t nb() const { return gamma.rows; }

  /// P or dP of a tile as a matrix, where it is not compact.
  template <class T>
  MatrixView<T, Space> matrix(const Tile& tile, MatrixView<T, Space> elements) const {
    return {elements.data, tile.count, mn()};
  }

  template <class F>
  void for_each_tile(Context& ctx, Needs needs, F f) const {
    const index_t all = lambda.size(), step = tile_rows(all);
    for (index_t first = 0; first < all; first += step) {
      typename Arena<Space>::Mark mark(ctx.arena);
      Tile tile{first, std::min(step, all - first)};
      for_each_segment(tile, [&](const Segment& s) { tile.size += s.count * s.width; });
      if (needs.p) tile.p = make_p(ctx, tile);
      if (needs.b && !signs) tile.b = bases.b_tile(ctx, mx, tile.first, tile.count);
      f(std::as_const(tile));
    }
  }
  template <class F>
  void for_each_segment(const Tile& tile, F f) const {
    index_t offset = 0;
    for (index_t row = 0; row < tile.count;) {
      const index_t k = (tile.first + row) / nb(), base = (tile.first + row) % nb();
      const index_t count = std::min(nb() - base, tile.count - row);
      const index_t width = compact ? bases.support(k, mn()) : mn();
      f(Segment{k, base, count, row, width, offset});
      row += count, offset += count * width;
    }
  }

  /// Z = alpha V P^T.
  template <class T, class U>
  void times_p_transposed(Context& ctx, double alpha, In<T> v, const Tile& tile, Out<U> z) const {
    if (!compact) return B::gemm(ctx, alpha, v, t(matrix(tile, tile.p)), 0, z);
    for_each_segment(tile, [&](const Segment& s) {
      typename Arena<Space>::Mark mark(ctx.arena);
      B::gemm(ctx, alpha, columns(ctx, v, s), t(s.of(tile.p)), 0, z.col_range(s.row, s.count));
    });
  }
  /// out = alpha Z P + beta out.
  template <class U, class T>
  void times_p(Context& ctx, double alpha, In<U> z, const Tile& tile, double beta, Out<T> out) const {
    if (!compact) return B::gemm(ctx, alpha, z, matrix(tile, tile.p), beta, out);
    if (beta == 0) B::fill(ctx, out, 0);
    for_each_segment(tile, [&](const Segment& s) {
      typename Arena<Space>::Mark mark(ctx.arena);
      auto part = B::template temp<P>(ctx, z.rows, s.width);
      B::gemm(ctx, alpha, z.col_range(s.row, s.count), s.of(tile.p), 0, part);
      B::gemm_signed(ctx, 1, part, bases.scatter(s.k, mn()), 1, out);
    });
  }
  /// dP = alpha H^T V + beta dP.
  template <class U, class T>
  void outer_product(Context& ctx, double alpha, In<U> h, In<T> v, const Tile& tile, double beta, Out<P> dp) const {
    if (!compact) return B::gemm(ctx, alpha, t(h), v, beta, matrix(tile, dp));
    for_each_segment(tile, [&](const Segment& s) {
      typename Arena<Space>::Mark mark(ctx.arena);
      B::gemm(ctx, alpha, t(h.col_range(s.row, s.count)), columns(ctx, v, s), beta, s.of(dp));
    });
  }
  /// Z = alpha V Bf.
  template <class T, class U>
  void times_b(Context& ctx, double alpha, In<T> v, const Tile& tile, Out<U> z) const {
    if (!signs) return B::gemm(ctx, alpha, v, tile.b, 0, z);
    B::gemm_signed(ctx, alpha * bases.magnitude(), v, bases.signs_down(tile.first, tile.count), 0, z);
  }
  /// out = alpha Z Bf^T + beta out.
  template <class U, class T>
  void times_b_transposed(Context& ctx, double alpha, In<U> z, const Tile& tile, double beta, Out<T> out) const {
    if (!signs) return B::gemm(ctx, alpha, z, t(tile.b), beta, out);
    B::gemm_signed(ctx, alpha * bases.magnitude(), z, bases.signs_up(mx, tile.first), beta, out);
  }

  /// dlambda[k, b] += sum_j dP a gamma,  dgamma[b, j] += sum_k dP a lambda; dP is used up.
  void add_gradients(Context& ctx, const Tile& tile, Out<P> dp, Parameter<P, Space>& lambda_,
                     Parameter<P, Space>& gamma_) const {
    for_each_segment(tile, [&](const Segment& s) {
      typename Arena<Space>::Mark mark(ctx.arena);
      const auto scaling = segment_gamma(ctx, s);
      // A piece goes through three passes: small enough for a core's cache, large enough for a launch.
      const index_t piece = std::max<index_t>(1, B::tile_rows * 256 / std::max<index_t>(s.width, 1));
      for (index_t first = 0; first < s.count; first += piece) {
        const index_t count = std::min(piece, s.count - first);
        const auto d = s.of(dp).row_range(first, count);
        B::map(ctx, Multiply{}, d, segment_a(s));
        if (gamma_.trained)
          add_to_gamma(ctx, s, d, column(s).row_range(first, count),
                       gamma_.gradient().row_range(s.base + first, count));
        if (lambda_.trained)
          B::row_dot(ctx, 1, d, scaling.row_range(first, count),
                     lambda_.gradient().row_range(s.k, 1).col_range(s.base + first, count));
      }
    });
  }

 private:
  // Tiles of one size, at least two, so that P is never whole. The lists of signs are cut at multiples of 512.
  index_t tile_rows(index_t all) const {
    if (signs) return randlora_tile;
    const index_t tiles = std::max<index_t>(2, (all + randlora_tile - 1) / randlora_tile);
    return (all + tiles - 1) / tiles;
  }
  In<P> column(const Segment& s) const { return {lambda.data + s.k * lambda.stride + s.base, s.count, 1, 1}; }
  In<P> segment_a(const Segment& s) const {
    return compact ? bases.a_values(s.k, s.width) : bases.a().view().row_range(s.k, 1).col_range(0, s.width);
  }
  /// The columns of `v` that row k of a has.
  template <class T>
  In<T> columns(Context& ctx, In<T> v, const Segment& s) const {
    auto some = B::template temp<T>(ctx, v.rows, s.width);
    B::gemm_signed(ctx, 1, v, bases.gather(s.k, s.width), 0, some);
    return some;
  }
  In<P> segment_gamma(Context& ctx, const Segment& s) const {
    const auto rows = gamma.row_range(s.base, s.count);
    return compact ? columns(ctx, rows, s) : rows;
  }
  In<E> make_p(Context& ctx, const Tile& tile) const {
    auto p = B::template temp<E>(ctx, 1, tile.size);
    for_each_segment(tile, [&](const Segment& s) {
      typename Arena<Space>::Mark mark(ctx.arena);
      B::map(ctx, Product{}, s.of(p), segment_gamma(ctx, s), segment_a(s), column(s));
    });
    return p;
  }
  void add_to_gamma(Context& ctx, const Segment& s, In<P> d, In<P> factors, Out<P> gradient) const {
    if (!compact) return B::map(ctx, AddProduct{}, gradient, d, factors);
    typename Arena<Space>::Mark mark(ctx.arena);
    auto part = B::template temp<P>(ctx, d.rows, d.cols);
    B::map(ctx, Product{}, part, d, factors);
    B::gemm_signed(ctx, 1, part, bases.scatter(s.k, mn()), 1, gradient);
  }
};

}  // namespace deltaw
