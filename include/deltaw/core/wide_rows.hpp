#pragma once
// Several element-wise steps and products on a weight, rounded once at the end.

#include <algorithm>

#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"

namespace deltaw {

/// f(rows, first row) for pieces of w: w itself, or, of 16-bit storage, B::tile_rows rows at a time in P, which are written back
/// afterwards.
template <class P, class B, class W, class F>
void in_wide_rows(typename B::Context& ctx, MatrixView<W, typename B::Space> w, F f) {
  if constexpr (!is_half<W>) {
    f(w, index_t{0});
  } else {
    for (index_t first = 0; first < w.rows; first += B::tile_rows) {
      typename Arena<typename B::Space>::Mark mark(ctx.arena);
      const auto rows = w.row_range(first, std::min(B::tile_rows, w.rows - first));
      auto wide = B::template temp<P>(ctx, rows.rows, rows.cols);
      B::copy(ctx, rows, wide);
      f(wide, first);
      B::copy(ctx, wide, rows);
    }
  }
}

}  // namespace deltaw
