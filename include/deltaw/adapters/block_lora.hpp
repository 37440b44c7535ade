#pragma once
// Block-LoRA: Y = X W^T + s D(X) A^T (sum_i B_i)^T, A (rank / blocks) x in shared by all blocks B_i of B (out x rank),
// s = alpha / rank. Since sum_i B_i A = (sum_i B_i) A, the blocks are added once a step and a call costs LoRA's at rank / blocks.
// "Accelerating Vision-Language Models few-shot adaptation with Block-LoRA", 2025, arXiv 2501.16720. What is here beyond the
// paper's abstract is our derivation, see the page.
// Cost a token: 2 (rank / blocks) (in + out) FLOPs forward, twice that backward; a step: rank out additions each way.

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class BlockLora {
  /// LoRA at rank / blocks, on A and the sum of the blocks.
  struct Path : LowRank<P, B, Act> {
    Path(LinearShape shape, const LowRankOptions& o) : LowRank<P, B, Act>("BlockLora", shape, o) {}
    using LowRank<P, B, Act>::a_, LowRank<P, B, Act>::b_;
  };

 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Saved = typename Path::Saved;
  static constexpr std::string_view method = "block_lora";

  struct Options {
    index_t rank = 8;         ///< of all blocks together: B is out x rank
    index_t blocks = 2;       ///< must divide the rank; with 1 this is LoRA
    double alpha = 8;         ///< s = alpha / rank
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the dropout masks
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;    ///< allow rank / blocks > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("blocks", blocks), f("alpha", alpha), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// All values are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  BlockLora(LinearShape shape, Options options)
      : options_(options),
        path_(shape, checked(shape, options)),
        b_("lora_B.weight", Role::Up, RankAxis::None, shape.out_features, options.rank) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank / o.blocks * shape.in_features + o.rank * shape.out_features;
  }

  /// The sum of the blocks.
  void prepare(Context& ctx, const Base& base = {}) {
    const auto sum = path_.b_.value.view();
    B::copy(ctx, block(std::as_const(b_.value).view(), 0), sum);
    for (index_t i = 1; i < options_.blocks; ++i) B::map(ctx, Add{}, sum, block(std::as_const(b_.value).view(), i));
    path_.b_.changed();
    path_.prepare(ctx, base);
    prepared_ = version_of(*this);
  }
  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    check_prepared("BlockLora.forward");
    path_.forward(ctx, base, x, y, saved);
  }
  /// x may be empty where `reads_input_in_backward()` is false; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_prepared("BlockLora.backward");
    path_.b_.trained = b_.trained;
    path_.backward(ctx, base, x, dy, dx, saved);
    pending_ = pending_ || b_.trained;
  }
  void backward_input(Context& ctx, const Base& base, MatrixView<Act, Space> dx, Saved& saved) const {
    path_.backward_input(ctx, base, dx, saved);
  }
  /// dB_i += the gradient of the sum, for every block, and clears that.
  void finish(Context& ctx, const Base& = {}) {
    if (!pending_) return;
    const auto gradient = path_.b_.gradient();
    for (index_t i = 0; i < options_.blocks; ++i)
      B::map(ctx, Add{}, block(b_.gradient(), i), ConstMatrixView<P, Space>(gradient));
    B::fill(ctx, gradient, 0);
    pending_ = false;
  }

  /// out = s (sum_i B_i) A.
  void delta_weight(Context& ctx, const Base& base, MatrixView<P, Space> out) const {
    check_prepared("BlockLora.delta_weight");
    path_.delta_weight(ctx, base, out);
  }
  /// W += s (sum_i B_i) A, rounded once. `b` is left alone.
  template <class W>
  void merge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_prepared("BlockLora.merge");
    path_.merge(ctx, base, w);
  }
  /// W -= s (sum_i B_i) A: exact only up to rounding.
  template <class W>
  void unmerge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_prepared("BlockLora.unmerge");
    path_.unmerge(ctx, base, w);
  }

  template <class F>
  void for_each_parameter(F&& f) {
    f(path_.a_), f(b_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(path_.a_), f(b_);
  }
  LinearShape shape() const { return path_.shape(); }
  bool reads_input_in_backward() const { return path_.reads_input_in_backward(); }
  double scale() const { return path_.scale(); }
  void set_scale(double scale) { path_.set_scale(scale); }
  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("BlockLora", shape);
    if (o.blocks < 1) raise_mismatch<OptionError>("BlockLora", "blocks", o.blocks, "1 or more");
    if (o.rank < 1 || o.rank % o.blocks != 0)
      raise_mismatch<OptionError>("BlockLora", "rank", o.rank, "a multiple of blocks = " + std::to_string(o.blocks));
    check_low_rank_options("BlockLora", shape, o.rank / o.blocks, o.alpha, o.dropout, o.any_rank);
    return {.rank = o.rank / o.blocks,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer};
  }
  void check_prepared(std::string_view where) const {
    if (prepared_ != version_of(*this))
      raise<StaleError>(where, "prepare: got parameters changed since, want prepare after each change");
  }
  template <class T>
  MatrixView<T, Space> block(MatrixView<T, Space> whole, index_t i) const {
    const index_t rank = options_.rank / options_.blocks;
    return whole.col_range(i * rank, rank);
  }

  Options options_;
  Path path_;
  Parameter<P, Space> b_;  // [B_1, ..., B_blocks]
  std::uint64_t prepared_ = std::numeric_limits<std::uint64_t>::max();
  bool pending_ = false;
};

}  // namespace deltaw
