#pragma once
// Inverted dropout on an adapter's input, never stored: the mask is a function of (seed, layer, step, micro-batch,
// element), so backward, a recomputed forward and every shard draw the same one.

#include <algorithm>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/random.hpp"

namespace deltaw {

/// D(X) = mask o X / (1 - p) while the call is training, X otherwise (Srivastava et al., 2014).
template <class P, class B, class Act = P>
class InputDropout {
 public:
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Between = typename B::template Intermediate<P, Act>;

  InputDropout() = default;
  InputDropout(double p, std::uint64_t seed, std::uint64_t layer, LinearShape shape)
      : p_(p), key_(RandomKey{seed}.fold(layer)), first_col_(static_cast<std::uint64_t>(shape.shard.in_offset)) {}

  bool on(const Call& call) const { return call.training && p_ > 0; }

  /// f(D(X) rows, first row) for pieces of at most B::tile_rows rows; without dropout once, with X itself.
  template <class F>
  void for_each_tile(Context& ctx, ConstMatrixView<Act, Space> x, const Call& call, F f) const {
    if (!on(call)) return f(x, index_t{0});
    for (index_t first = 0; first < x.rows; first += tile) {
      typename Arena<Space>::Mark mark(ctx.arena);
      const index_t rows = std::min(tile, x.rows - first);
      auto dropped = B::template temp<Between>(ctx, rows, x.cols);
      B::dropout(ctx, p_, key(call), origin(call, first), x.row_range(first, rows), dropped, false);
      f(ConstMatrixView<Between, Space>(dropped), first);
    }
  }

  /// dX += D'(H A): H (tokens x rank), A (rank x in_features).
  template <class T>
  void add_product(Context& ctx, ConstMatrixView<Between, Space> h, MatrixView<T, Space> a, MatrixView<Act, Space> dx,
                   const Call& call) const {
    if (!on(call)) return B::gemm(ctx, 1, h, a, 1, dx);
    add_tiles<P>(ctx, dx, call, [&](MatrixView<P, Space> product, index_t first) {
      B::gemm(ctx, 1, h.row_range(first, product.rows), a, 0, product);
    });
  }

  /// dX += D'(G), where `make(tile, first row)` writes G in pieces of at most B::tile_rows rows of type T. For calls with
  /// dropout on.
  template <class T, class F>
  void add_tiles(Context& ctx, MatrixView<Act, Space> dx, const Call& call, F make) const {
    for (index_t first = 0; first < dx.rows; first += tile) {
      typename Arena<Space>::Mark mark(ctx.arena);
      const index_t rows = std::min(tile, dx.rows - first);
      auto made = B::template temp<T>(ctx, rows, dx.cols);
      make(made, first);
      B::dropout(ctx, p_, key(call), origin(call, first), ConstMatrixView<T, Space>(made), dx.row_range(first, rows),
                 true);
    }
  }

 private:
  static constexpr index_t tile = B::tile_rows;

  CallKey key(const Call& call) const { return {key_, call.step, call.micro_batch}; }
  RandomOrigin origin(const Call& call, index_t row) const {
    return {call.first_row + static_cast<std::uint64_t>(row), first_col_};
  }

  double p_ = 0;
  RandomKey key_;
  std::uint64_t first_col_ = 0;
};

}  // namespace deltaw
