#pragma once
// CoDyRA, for tasks that come one after the other: Y = X W^T + s ((D(X) A^T) o g) B^T, with a gate g (one number a rank) that
// a proximal step shrinks in the second part of each task; what is left is merged into W, and the next task starts afresh.
// Lu et al., "Adaptive Rank, Reduced Forgetting: Knowledge Retention in Continual Learning Vision-Language Models with
// Dynamic Rank-Selective LoRA", 2024, arXiv 2412.01004.
//   after each step of the second part  g <- sign(g) max(|g| - kappa, 0), kappa rising from 0 to `kappa` in `stages`
//   end of a task                       W += s B diag(g) A; then A, B, g anew
// Cost a token: LoRA's and rank. Kept for backward: X and Z (tokens x rank).

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/gated.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class CoDyRA : public GatedLowRank<P, B, Act> {
  using Path = GatedLowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::gates, Path::shape_;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "codyra";

  struct Options {
    index_t rank = 16;
    double alpha = 16;            ///< s = alpha / rank; the authors have s = 1
    double kappa = 7e-4;          ///< the last threshold of a step
    index_t stages = 50;          ///< in which it rises from 0
    double dense_part = 0.5;      ///< of the steps of a task, before the first gate is shrunk
    bool repo_threshold = false;  ///< gates below 2 kappa become 0 too, as the authors' code has it
    double dropout = 0;           ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;       ///< of the dropout masks
    std::uint64_t layer = 0;      ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;        ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("kappa", kappa), f("stages", stages), f("dense_part", dense_part);
      f("repo_threshold", repo_threshold), f("dropout", dropout), f("seed", seed), f("layer", layer);
      f("any_rank", any_rank);
    }
  };

  /// Values are zero until `initialize`. Throws OptionError or ShapeError.
  CoDyRA(LinearShape shape, Options options) : Path("CoDyRA", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features + 1);
  }

  /// A as LoRA's, B = 0, g ~ N(0, 1).
  void initialize(Context& ctx, std::uint64_t seed) { this->start_gated(ctx, *this, seed); }

  /// That the length of the task is known: `StepInfo` counts the steps of one task.
  static void begin_step(Context&, std::span<CoDyRA* const> layers, const StepInfo& step) {
    for (const CoDyRA* layer : layers) layer->check_step(step);
  }
  /// The proximal step.
  static void after_step(Context& ctx, std::span<CoDyRA* const> layers, const StepInfo& step) {
    begin_step(ctx, layers, step);
    for (CoDyRA* layer : layers)
      if (const double threshold = layer->threshold(step); threshold > 0)
        shrink_gates<B>(ctx, layer->gates(), threshold, layer->options_.repo_threshold);
  }
  /// The threshold of one step; 0 in the first part of the task.
  double threshold(const StepInfo& step) const {
    const long dense = static_cast<long>(options_.dense_part * static_cast<double>(step.total_steps));
    return step.step < dense ? 0 : schedule(options_)(step.step - dense, step.total_steps - dense);
  }

  /// Ends a task: merges into W, and starts anew as `initialize(ctx, seed)`, without gradients and optimizer state. Returns
  /// what was merged as a plain LoRA of the ranks whose gate is not 0, to keep as a record. Waits for the device.
  template <class W>
  [[nodiscard]] Lora<P, B, Act> merge_and_restart(Context& ctx, const Base& base, MatrixView<W, Space> w,
                                                  std::uint64_t seed) {
    Lora<P, B, Act> task = learned(ctx);
    task.merge(ctx, base, w);
    if (this->rank() != options_.rank) resize_rank(ctx, *this, {}, options_.rank);  // it was pruned
    this->for_each_parameter([&](auto& p) {
      p.slots.clear();
      p.births.clear();
      p.step = 0;
    });
    zero_grad(ctx, *this);
    initialize(ctx, seed);
    return task;
  }
  /// The same function as a plain LoRA of the ranks whose gate is not 0. Waits for the device.
  Lora<P, B, Act> learned(Context& ctx) const {
    return this->template folded<Lora<P, B, Act>>(
        ctx, {.dropout = options_.dropout, .seed = options_.seed, .layer = options_.layer});
  }
  const Options& options() const { return options_; }

 private:
  static ThresholdSchedule schedule(const Options& o) { return {.first = 0, .last = o.kappa, .stages = o.stages}; }
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("CoDyRA", shape);
    check_low_rank_options("CoDyRA", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    check_not_negative("CoDyRA", "kappa", o.kappa);
    if (o.stages < 2) raise_mismatch<OptionError>("CoDyRA", "stages", o.stages, "2 or more: the first threshold is 0");
    if (!(o.dense_part >= 0 && o.dense_part < 1))
      raise_mismatch<OptionError>("CoDyRA", "dense_part", o.dense_part, "at least 0 and below 1");
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "gate"};
  }
  void check_step(const StepInfo& step) const {
    if (step.total_steps < 1)
      raise_mismatch<OptionError>("CoDyRA", "total_steps", step.total_steps, "the steps of this task");
  }

  Options options_;
};

}  // namespace deltaw
