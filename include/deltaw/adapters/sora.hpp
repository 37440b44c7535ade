#pragma once
// SoRA: Y = X W^T + s ((D(X) A^T) o g) B^T, with a gate g (one number a rank) that a proximal step sends to 0.
// Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", 2023, arXiv 2311.11696.
//   after each step  g <- sign(g) max(|g| - t, 0), t = lambda (times the learning rate by `scale_by_learning_rate`)
// Ranks whose gate is 0 add nothing: `prune` drops them, `pruned` gives the plain LoRA of the rest.
// Cost a token: LoRA's and rank. Kept for backward: X and Z (tokens x rank).

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/gated.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Sora : public GatedLowRank<P, B, Act> {
  using Path = GatedLowRank<P, B, Act>;
  using Path::gates;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "sora";

  struct Options {
    index_t rank = 16;
    double alpha = 16;
    double lambda = 1e-3;                 ///< the threshold of a step
    double max_lambda = 0;                ///< above 0: the threshold rises to this in `lambda_stages`
    index_t lambda_stages = 10;           ///< equal parts of the training
    bool log_linear = false;              ///< rise by equal steps of exp(lambda) instead of lambda
    bool exp_linear = false;              ///< rise by equal factors
    bool scale_by_learning_rate = false;  ///< t = learning rate * lambda: the theory, far too slow at lambda = 1e-3
    bool repo_threshold = false;          ///< gates below 2 t become 0 too, as the authors' code has it
    double l1_weight = 1e-3;              ///< the loss gains this times the mean of |g| over all layers
    double dropout = 0;                   ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;               ///< of the dropout masks
    std::uint64_t layer = 0;              ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;                ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("lambda", lambda), f("max_lambda", max_lambda);
      f("lambda_stages", lambda_stages), f("log_linear", log_linear), f("exp_linear", exp_linear);
      f("scale_by_learning_rate", scale_by_learning_rate), f("repo_threshold", repo_threshold);
      f("l1_weight", l1_weight), f("dropout", dropout), f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// Values are zero until `initialize`. Throws OptionError or ShapeError.
  Sora(LinearShape shape, Options options) : Path("Sora", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features + 1);
  }

  /// A as LoRA's, B = 0, g ~ N(0, 1).
  void initialize(Context& ctx, std::uint64_t seed) { this->start_gated(ctx, *this, seed); }

  /// That the schedule knows how long the training is.
  static void begin_step(Context&, std::span<Sora* const> layers, const StepInfo& step) {
    for (const Sora* layer : layers) layer->check_step(step);
  }
  /// dg += w sign(g), loss += w sum |g|, w = l1_weight / gates of all layers.
  static void regularize(Context& ctx, std::span<Sora* const> layers, MatrixView<P, Space> loss = {}) {
    index_t count = 0;
    for (const Sora* layer : layers) count += layer->rank();
    for (Sora* layer : layers) layer->add_l1(ctx, layer->options_.l1_weight / static_cast<double>(count), loss);
  }
  /// The proximal step.
  static void after_step(Context& ctx, std::span<Sora* const> layers, const StepInfo& step) {
    for (const Sora* layer : layers) layer->check_step(step);
    for (Sora* layer : layers)
      shrink_gates<B>(ctx, layer->gates(), layer->threshold(step), layer->options_.repo_threshold);
  }

  /// The threshold of one step.
  double threshold(const StepInfo& step) const {
    return schedule(options_)(step.step, step.total_steps) * (options_.scale_by_learning_rate ? step.learning_rate : 1);
  }
  /// Another lambda, constant from here on: the next stage of a schedule of the caller's own.
  void set_lambda(double lambda) {
    check_not_negative("Sora", "lambda", lambda);
    options_.lambda = lambda;
    options_.max_lambda = 0;
  }
  /// The same function as a plain LoRA of the ranks whose gate is not 0. Waits for the device.
  Lora<P, B, Act> pruned(Context& ctx) const {
    return this->template folded<Lora<P, B, Act>>(
        ctx, {.dropout = options_.dropout, .seed = options_.seed, .layer = options_.layer});
  }
  const Options& options() const { return options_; }

 private:
  static ThresholdSchedule schedule(const Options& o) {
    const Rise rise = o.exp_linear ? Rise::ExpLinear : o.log_linear ? Rise::LogLinear : Rise::Linear;
    if (o.max_lambda == 0) return {.first = o.lambda};
    return {.first = o.lambda, .last = o.max_lambda, .stages = o.lambda_stages, .rise = rise};
  }
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Sora", shape);
    check_low_rank_options("Sora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    check_not_negative("Sora", "lambda", o.lambda);
    check_not_negative("Sora", "max_lambda", o.max_lambda);
    check_not_negative("Sora", "l1_weight", o.l1_weight);
    if (o.log_linear && o.exp_linear)
      raise<OptionError>("Sora", "log_linear and exp_linear: got both, want at most one");
    schedule(o).check("Sora");
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "gate"};
  }
  void check_step(const StepInfo& step) const {
    if (options_.max_lambda > 0 && step.total_steps < 1)
      raise_mismatch<OptionError>("Sora", "total_steps", step.total_steps, "the steps of the training: lambda rises");
  }
  void add_l1(Context& ctx, double weight, MatrixView<P, Space> loss) {
    if (weight == 0 || this->rank() == 0 || !gates().trained) return;
    typename Arena<Space>::Mark mark(ctx.arena);
    const auto value = gates().value.view();
    auto sign = B::template temp<P>(ctx, 1, value.cols);
    B::map(ctx, Sign{}, sign, value);
    B::map(ctx, AddScaled{weight}, gates().gradient(), sign);
    if (is_given(loss)) B::row_dot(ctx, weight, sign, value, loss);
  }

  Options options_;
};

}  // namespace deltaw
