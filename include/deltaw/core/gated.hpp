#pragma once
// What methods with one gate a rank share: Y += s ((D(X) A^T) o g) B^T. Gates start at N(0, 1), are shrunk by a proximal
// step after the optimizer's, and ranks whose gate is 0 can be dropped, or the rest folded into a plain LoRA.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "deltaw/core/initial.hpp"
#include "deltaw/core/low_rank.hpp"
#include "deltaw/core/rank.hpp"

namespace deltaw {

/// The elements of a vector on the host. Waits for the device.
template <class T, class Space>
void read_row(MatrixView<T, Space> row, std::vector<std::remove_const_t<T>>& values) {
  values.resize(static_cast<std::size_t>(row.size()));
  if (!row.empty()) Memory<Space>::to_host(values.data(), row.data, values.size() * sizeof(T));
}

/// How a threshold goes from `first` to `last` in stages: by equal steps, by equal steps of its exponential, or by equal
/// factors.
enum class Rise { Linear, LogLinear, ExpLinear };

/// Thresholds of a proximal step that rise in `stages` equal parts of a training.
struct ThresholdSchedule {
  double first = 0, last = 0;
  index_t stages = 1;
  Rise rise = Rise::Linear;

  void check(std::string_view where) const {
    check_not_negative(where, "first threshold", first);
    check_not_negative(where, "last threshold", last);
    if (stages < 1) raise_mismatch<OptionError>(where, "stages", stages, "1 or more");
    if (rise == Rise::ExpLinear && !(first > 0 && last > 0))
      raise_mismatch<OptionError>(where, "thresholds of equal factors", first > 0 ? last : first, "above 0");
  }
  /// Of the stage number `stage`, counted from 0; the last one from there on.
  double of_stage(index_t stage) const {
    if (stages == 1) return first;
    const double done =
        static_cast<double>(std::clamp<index_t>(stage, 0, stages - 1)) / static_cast<double>(stages - 1);
    if (rise == Rise::LogLinear) return std::log(std::exp(first) + done * (std::exp(last) - std::exp(first)));
    if (rise == Rise::ExpLinear) return first * std::pow(last / first, done);
    return first + done * (last - first);
  }
  /// After `done` of `total` steps.
  double operator()(long done, long total) const {
    return stages == 1 ? first : of_stage(static_cast<index_t>(done) * stages / static_cast<index_t>(total));
  }
};

/// g <- sign(g) max(|g| - threshold, 0). With `twice`, gates below 2 threshold become 0 too: what the published code of
/// SoRA and CoDyRA does, which tests after it has shrunk.
template <class B, class Param>
void shrink_gates(typename B::Context& ctx, Param& gates, double threshold, bool twice = false) {
  B::map(ctx, SoftThreshold{threshold, twice ? 2 * threshold : threshold}, gates.trained_part(gates.value.view()));
  gates.changed();
}

template <class P, class B, class Act = P>
class GatedLowRank : public LowRank<P, B, Act, Gate> {
  using Path = LowRank<P, B, Act, Gate>;

 public:
  using typename Path::Context, typename Path::Space;

  /// Ranks whose gate is not 0. Waits for the device.
  std::vector<index_t> open_ranks() const {
    std::vector<P> gates;
    read_row(middle_.parameter.value.view().col_range(0, active_), gates);
    std::vector<index_t> open;
    for (std::size_t k = 0; k < gates.size(); ++k)
      if (gates[k] != 0) open.push_back(static_cast<index_t>(k));
    return open;
  }
  /// Drops the ranks whose gate is 0, which changes neither the function nor the state of the others. See `resize_rank`.
  void prune(Context& ctx) { resize_rank(ctx, *this, open_ranks(), 0); }

 protected:
  using Path::a_, Path::b_, Path::middle_, Path::active_, Path::shape_, Path::scale_;
  using Path::Path;

  Parameter<P, Space>& gates() { return middle_.parameter; }
  const Parameter<P, Space>& gates() const { return middle_.parameter; }

  /// A as LoRA's, B = 0, g ~ N(0, 1). `self` is the adapter.
  template <class Self>
  void start_gated(Context& ctx, const Self& self, std::uint64_t seed) {
    fill_kaiming<B>(ctx, a_, shape_.in_total(), parameter_key(seed, self, a_),
                    {0, static_cast<std::uint64_t>(shape_.shard.in_offset)});
    B::fill(ctx, b_.value.view(), 0);
    b_.changed();
    fill_gaussian<B>(ctx, gates(), 1, parameter_key(seed, self, gates()));
  }
  /// A, B ~ N(0, deviation^2), g = 0.
  template <class Self>
  void start_singular(Context& ctx, const Self& self, std::uint64_t seed, double deviation) {
    fill_gaussian<B>(ctx, a_, deviation, parameter_key(seed, self, a_),
                     {0, static_cast<std::uint64_t>(shape_.shard.in_offset)});
    fill_gaussian<B>(ctx, b_, deviation, parameter_key(seed, self, b_),
                     {static_cast<std::uint64_t>(shape_.shard.out_offset), 0});
    B::fill(ctx, gates().value.view(), 0);
    gates().changed();
  }

  /// The same function as a `Plain` LoRA of the ranks whose gate is not 0: A' their rows, B' = B o g, alpha' = s rank'.
  /// `o` says the rest.
  template <class Plain>
  Plain folded(Context& ctx, typename Plain::Options o) const {
    const auto open = open_ranks();
    o.rank = std::max<index_t>(1, static_cast<index_t>(open.size()));
    o.alpha = (scale_ == 0 ? 1 : scale_) * static_cast<double>(o.rank);
    o.any_rank = true;
    Plain plain(shape_, o);
    plain.set_scale(scale_);  // alpha' / rank' may be rounded
    if (open.empty()) resize_rank(ctx, plain, {}, 0);
    plain.for_each_parameter([&](auto& p) {
      for (std::size_t i = 0; i < open.size(); ++i) {
        const auto to = static_cast<index_t>(i);
        if (p.role == Role::Down) B::copy(ctx, a_.value.view().row_range(open[i], 1), p.value.view().row_range(to, 1));
        if (p.role == Role::Up)
          B::map(ctx, ScaledProduct{1}, p.value.view().col_range(to, 1), b_.value.view().col_range(open[i], 1),
                 gates().value.view().col_range(open[i], 1));
      }
      p.changed();
    });
    return plain;
  }
};

}  // namespace deltaw
