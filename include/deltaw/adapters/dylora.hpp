#pragma once
// DyLoRA: LoRA of which each step trains the first b ranks, b drawn uniformly from 1 ... rank:
//   Y = X W^T + s D(X) A_b^T B_b^T,  A_b the first b rows of A, B_b the first b columns of B,  s = alpha / b,
// so that cutting it to any rank afterwards gives an adapter that was trained at that rank. `frozen`: only rank b itself is
// trained in that step, the ranks before it take part as they are.
// Valipour et al., "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank
// Adaptation", 2022, arXiv 2210.07558.
// Cost a token at b: 2 b (in + out) FLOPs forward, 2 b (in + out) backward and 2 (in + out) for each rank trained.

#include <algorithm>
#include <span>

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/random.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class DyLora : public LowRank<P, B, Act> {
  using Path = LowRank<P, B, Act>;
  using Path::a_, Path::active_, Path::b_, Path::scale_;

 public:
  using typename Path::Context, typename Path::Space;
  static constexpr std::string_view method = "dylora";

  struct Options {
    index_t rank = 8;         ///< the greatest
    double alpha = 8;         ///< s = alpha / b
    bool frozen = true;       ///< train rank b alone instead of ranks 1 ... b
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the ranks drawn and of the dropout masks
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;    ///< allow rank > min(in_features, out_features), which spends parameters for nothing

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("frozen", frozen), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// Both factors are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  DyLora(LinearShape shape, Options options)
      : Path("DyLora", shape, checked(shape, options)), options_(options), alpha_(options.alpha) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features);
  }

  /// Draws the step's rank by the first layer's seed and the step, one for all layers; a layer of lower rank takes its own.
  static void begin_step(Context&, std::span<DyLora* const> layers, const StepInfo& info) {
    index_t greatest = 0;
    for (const DyLora* layer : layers) greatest = std::max(greatest, layer->greatest_rank());
    if (greatest == 0) return;
    const RandomKey key = RandomKey{layers.front()->options_.seed}.fold(name_hash("dylora.rank"));
    const std::uint64_t bits = key.block(0, static_cast<std::uint64_t>(info.step))[0];
    const auto rank = 1 + static_cast<index_t>(bits * static_cast<std::uint64_t>(greatest) >> 32);
    for (DyLora* layer : layers) layer->train_rank(std::min(rank, layer->greatest_rank()));
  }
  /// Back to the rank of `set_rank`.
  static void after_step(Context&, std::span<DyLora* const> layers, const StepInfo&) {
    for (DyLora* layer : layers) layer->use_rank(layer->chosen_rank());
  }

  /// The rank used, merged and exported between steps; all of them unless this is called. Throws OptionError.
  void set_rank(index_t rank) {
    check_rank(rank);
    chosen_ = rank;
    use_rank(rank);
  }
  /// After `resize_rank`: all ranks take part, at the scale there is.
  void rank_resized() {
    Path::rank_resized();
    chosen_ = 0;
    alpha_ = scale_ * static_cast<double>(active_);
  }
  index_t greatest_rank() const { return a_.value.rows(); }

  /// The plain LoRA of the first `rank` ranks: the same output as after `set_rank(rank)`.
  Lora<P, B, Act> truncated(Context& ctx, index_t rank) const {
    check_rank(rank);
    Lora<P, B, Act> lora(this->shape(), {.rank = rank,
                                         .alpha = options_.alpha,
                                         .dropout = options_.dropout,
                                         .seed = options_.seed,
                                         .layer = options_.layer,
                                         .any_rank = true});
    lora.set_scale(alpha_ / static_cast<double>(rank));
    lora.for_each_parameter([&](auto& p) {
      B::copy(ctx, p.role == Role::Down ? a_.value.view().row_range(0, rank) : b_.value.view().col_range(0, rank),
              p.value.view());
      p.changed();
    });
    return lora;
  }

  /// s at the present rank; that of another rank b is then alpha / b for the alpha that gives this.
  void set_scale(double scale) {
    Path::set_scale(scale);
    alpha_ = scale * static_cast<double>(active_);
  }
  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("DyLora", shape);
    check_low_rank_options("DyLora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer};
  }
  void check_rank(index_t rank) const {
    if (rank < 1 || rank > greatest_rank())
      raise_mismatch<OptionError>("DyLora", "rank", rank, "1 to " + std::to_string(greatest_rank()));
  }
  index_t chosen_rank() const { return chosen_ == 0 ? greatest_rank() : std::min(chosen_, greatest_rank()); }

  void use_rank(index_t rank, Window trained = {}) {
    active_ = rank;
    scale_ = alpha_ / static_cast<double>(rank);
    a_.window = b_.window = trained;
  }
  void train_rank(index_t rank) { use_rank(rank, options_.frozen ? Window{rank - 1, 1} : Window{0, rank}); }

  Options options_;
  double alpha_;
  index_t chosen_ = 0;  // 0: all
};

}  // namespace deltaw
