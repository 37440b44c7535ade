#pragma once
// Changing the rank of any adapter, without knowing its method: `Parameter::rank_axis` says what belongs to a rank.

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "deltaw/core/adapter.hpp"

namespace deltaw {

namespace detail {

/// The rows (or columns) `keep` of `from`, in that order, and `fresh` zero ones after them.
template <class B, class T>
Tensor<T, typename B::Space> gathered(typename B::Context& ctx, const Tensor<T, typename B::Space>& from, bool rows,
                                      std::span<const index_t> keep, index_t fresh) {
  const auto kept = static_cast<index_t>(keep.size());
  Tensor<T, typename B::Space> to(rows ? kept + fresh : from.rows(), rows ? from.cols() : kept + fresh);
  const auto part = [&](auto view, index_t first, index_t count) {
    return rows ? view.row_range(first, count) : view.col_range(first, count);
  };
  for (index_t first = 0, last = 0; first < kept; first = last) {  // neighbours travel together
    const auto at = [&](index_t i) { return keep[static_cast<std::size_t>(i)]; };
    while (last < kept && at(last) == at(first) + last - first) ++last;
    B::copy(ctx, part(from.view(), at(first), last - first), part(to.view(), first, last - first));
  }
  return to;
}

/// `tensor` with the ranks `keep` and `fresh` new ones; one that is empty, or has no ranks, stays.
template <class B, class T>
void resize_ranks(typename B::Context& ctx, Tensor<T, typename B::Space>& tensor, RankAxis axis,
                  std::span<const index_t> keep, index_t fresh) {
  if (tensor.rows() == 0 && tensor.cols() == 0) return;
  if (axis == RankAxis::Rows || axis == RankAxis::Both) tensor = gathered<B>(ctx, tensor, true, keep, fresh);
  if (axis == RankAxis::Cols || axis == RankAxis::Both) tensor = gathered<B>(ctx, tensor, false, keep, fresh);
}

inline void check_kept(index_t rank, std::span<const index_t> keep, index_t fresh) {
  const std::string limit = "different ranks of 0 to " + std::to_string(rank - 1);
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (keep[i] < 0 || keep[i] >= rank) raise_mismatch<ShapeError>("resize_rank", "keep", keep[i], limit);
    if (std::find(keep.begin(), keep.begin() + static_cast<std::ptrdiff_t>(i), keep[i]) !=
        keep.begin() + static_cast<std::ptrdiff_t>(i))
      raise_mismatch<ShapeError>("resize_rank", "keep", std::to_string(keep[i]) + " twice", limit);
  }
  if (fresh < 0) raise_mismatch<OptionError>("resize_rank", "fresh", fresh, "0 or more");
}

/// All parameters of one rank, in memory of ours; returns the rank.
template <class A>
index_t checked_rank(const A& adapter) {
  index_t rank = -1;
  adapter.for_each_parameter([&](const auto& p) {
    if (p.rank_axis == RankAxis::None) return;
    if (rank >= 0 && p.ranks() != rank)
      raise_mismatch<ShapeError>("resize_rank", "rank of '" + p.full_name() + "'", p.ranks(), std::to_string(rank));
    if (!p.value.owns() && !p.value.empty())
      raise<MemoryError>("resize_rank", "memory of '" + p.full_name() + "': got the caller's, want our own");
    rank = p.ranks();
  });
  return rank;
}

}  // namespace detail

/// Makes the adapter one of the ranks `keep` (in that order) and `fresh` new ones after them. Values, gradients and the
/// optimizer's slots of the ranks kept stay to the bit, those of new ranks are zero, and the scale stays as it is. Rank 0
/// is legal: the adapter then adds nothing. Calls under way end before: a Saved of another rank does not fit. On a device
/// `Optimizer::settle` first. It takes memory anew, so a captured graph is void.
///
/// Throws, before anything changes, UnsupportedError for a method whose rank cannot change, ShapeError for ranks that are
/// not there or stand twice, MemoryError for parameters bound to the caller's memory.
template <class A>
void resize_rank(typename A::Backend::Context& ctx, A& adapter, std::span<const index_t> keep, index_t fresh) {
  if constexpr (requires { adapter.resize_rank(ctx, keep, fresh); }) {
    adapter.resize_rank(ctx, keep, fresh);  // a type-erased one
  } else if constexpr (requires { adapter.rank_resized(); }) {
    detail::check_kept(detail::checked_rank(adapter), keep, fresh);
    const auto kept = static_cast<index_t>(keep.size());
    adapter.for_each_parameter([&](auto& p) {
      if (p.rank_axis != RankAxis::None) {
        detail::resize_ranks<typename A::Backend>(ctx, p.value, p.rank_axis, keep, fresh);
        detail::resize_ranks<typename A::Backend>(ctx, p.grad, p.rank_axis, keep, fresh);
        auto births = std::exchange(p.births, {});
        if (!births.empty())
          for (const index_t rank : keep) p.births.push_back(births[static_cast<std::size_t>(rank)]);
        if (fresh > 0 && p.step > 0) p.born(kept, fresh, kept + fresh);
        p.window = {};
      }
      for (auto& slot : p.slots)
        detail::resize_ranks<typename A::Backend>(ctx, slot.value, slot.rank_axis, keep, fresh);
      p.changed();
    });
    adapter.rank_resized();
  } else {
    raise<UnsupportedError>(
        "resize_rank",
        std::string("method: got '").append(A::method).append("', whose rank cannot change, want one that has ranks"));
  }
}

}  // namespace deltaw
