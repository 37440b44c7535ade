#pragma once
// IncreLoRA: Y = X W^T + s ((D(X) A^T) o e) B^T, dW = s B diag(e) A, whose rank grows from `init_rank` in the layers that need
// it, up to a bound. s = alpha / (ranks grown + 1e-5).
// Zhang et al., "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning", 2023,
// arXiv 2308.12043.
//   S = sum_ij |dW_ij (dL/d dW)_ij| / sqrt(in out) of a layer,  I~ = b1 I~ + (1 - b1) S,  U~ = b2 U~ + (1 - b2) |S - I~|
//   every `incre_interval` steps after `init_warmup` the `top_h` layers of largest I~ U~ each get h more ranks, until the
//   mean rank is `target_rank`
// With `advance_learn` each layer trains A and B of its next h ranks ahead, at a fixed e = 1e-5.
// Memory is that of the bound; ranks that have not grown cost nothing else.
// Cost a token: LoRA's of the ranks that take part, and rank. In steps that measure S (one in `score_every`, until all ranks
// have grown) 2 in out FLOPs more, in tiles of 64 output features: |.| leaves no shorter way.

#include <limits>

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/gated.hpp"
#include "deltaw/core/orthogonality.hpp"

namespace deltaw {

/// |out in|.
struct ProductMagnitude {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    const X product = out * static_cast<X>(in);
    return product < 0 ? -product : product;
  }
};
/// beta out + (1 - beta) in; stays where in is not finite.
struct AverageScore {
  double beta = 0;
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    const X score = static_cast<X>(in);
    return score - score == 0 ? static_cast<X>(beta) * out + static_cast<X>(1 - beta) * score : out;
  }
};
/// beta out + (1 - beta) |in - average|; stays where that is not finite.
struct AverageDeviation {
  double beta = 0;
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X out, Y in, Z average) const {
    const X deviation = static_cast<X>(in) - static_cast<X>(average);
    if (!(deviation - deviation == 0)) return out;
    return static_cast<X>(beta) * out + static_cast<X>(1 - beta) * (deviation < 0 ? -deviation : deviation);
  }
};

template <class P, class B, class Act = P>
class IncreLora : public GatedLowRank<P, B, Act> {
  using Path = GatedLowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::active_, Path::dropout_, Path::gates, Path::middle_, Path::scale_, Path::shape_;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "increlora";

  struct Options {
    index_t rank = 8;         ///< the most a layer can grow to; its memory is taken at once
    index_t init_rank = 1;    ///< at the start
    index_t target_rank = 2;  ///< mean over the layers, in the end
    index_t growth = 0;       ///< h, ranks a layer gets at a time; 0: target_rank / 2, at least 1
    double alpha = 32;
    index_t init_warmup = 100;     ///< steps before growing begins
    index_t incre_interval = 100;  ///< steps between two times that layers grow, each of which waits for the device
    index_t top_h = 6;             ///< layers that grow at a time
    index_t score_every = 10;      ///< steps between two measures of S; the authors measure in every step
    bool advance_learn = true;     ///< train the next ranks ahead
    double beta1 = 0.85;           ///< of the score's average
    double beta2 = 0.85;           ///< of its deviation's
    double orth_reg_weight = 0.1;  ///< of the penalty that keeps each block of h ranks of A and of B orthonormal
    double dropout = 0;            ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;        ///< of the dropout masks
    std::uint64_t layer = 0;       ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;         ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("init_rank", init_rank), f("target_rank", target_rank), f("growth", growth);
      f("alpha", alpha), f("init_warmup", init_warmup), f("incre_interval", incre_interval), f("top_h", top_h);
      f("score_every", score_every), f("advance_learn", advance_learn), f("beta1", beta1), f("beta2", beta2);
      f("orth_reg_weight", orth_reg_weight), f("dropout", dropout), f("seed", seed), f("layer", layer);
      f("any_rank", any_rank);
    }
  };

  /// Values are zero until `initialize`. Throws OptionError or ShapeError.
  IncreLora(LinearShape shape, Options options)
      : Path("IncreLora", shape, checked(shape, options)), options_(options), alpha_(options.alpha) {
    // Zeros stand for the ranks of the start. They are there from now on, so that a file finds them.
    gates().slots.push_back({"ranks", RankAxis::None, Tensor<P, Space>(1, 2)});         // grown, taking part
    gates().slots.push_back({"module_score", RankAxis::None, Tensor<P, Space>(1, 3)});  // S, its average, its deviation
    set_ranks(options.init_rank, with_reserve(options.init_rank));
  }

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features + 1);
  }

  /// A, B ~ N(0, 0.02^2), e = 0, and 1e-5 for the ranks to come (0 without `advance_learn`).
  void initialize(Context& ctx, std::uint64_t seed) {
    this->start_singular(ctx, *this, seed, 0.02);
    auto later = gates().value.view().col_range(options_.init_rank, options_.rank - options_.init_rank);
    B::fill(ctx, later, options_.advance_learn ? 1e-5 : 0);
  }

  /// Which ranks there are, after values came from elsewhere (a file); it waits for the device only then.
  void prepare(Context& ctx, const Base& base) {
    Path::prepare(ctx, base);
    if (seen_ == version_of(*this)) return;
    read_row(slot("ranks"), host_);
    if (host_[0] > 0) set_ranks(static_cast<index_t>(host_[0]), static_cast<index_t>(host_[1]));
    seen_ = version_of(*this);
  }
  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    if (seen_ != version_of(*this))
      raise<StaleError>("IncreLora", "prepare: got parameters changed since, want prepare after each change");
    Path::forward(ctx, base, x, y, saved);
  }
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    Path::backward(ctx, base, x, dy, dx, saved);
    if (scoring_ && a_.trained) add_score(ctx, x, dy, saved.call);
  }

  /// Whether this step measures S.
  static void begin_step(Context& ctx, std::span<IncreLora* const> layers, const StepInfo& step) {
    const bool growing = ranks_left(layers) > 0;
    for (IncreLora* layer : layers) {
      layer->scoring_ = growing && (step.step + 1) % layer->options_.score_every == 0;
      if (layer->scoring_) B::fill(ctx, layer->slot("module_score").col_range(0, 1), 0);
    }
  }
  /// The penalty on each block of h ranks, its mean over the blocks of A and B of all layers.
  static void regularize(Context& ctx, std::span<IncreLora* const> layers, MatrixView<P, Space> loss = {}) {
    index_t blocks = 0;
    for (const IncreLora* layer : layers) layer->for_each_block([&](index_t, index_t) { blocks += 2; });
    for (IncreLora* layer : layers)
      layer->for_each_block([&](index_t first, index_t count) {
        const double weight = layer->options_.orth_reg_weight / static_cast<double>(blocks);
        for (auto* p : {&layer->a_, &layer->b_})
          if (p->trained)
            add_orthogonality<B>(ctx, p->rank_axis, p->part(std::as_const(p->value).view(), {first, count}),
                                 p->part(p->gradient(), {first, count}), weight, loss);
      });
  }
  /// The averages of S and, every `incre_interval` steps, more ranks for the layers that need them.
  static void after_step(Context& ctx, std::span<IncreLora* const> layers, const StepInfo& step) {
    for (IncreLora* layer : layers) layer->average(ctx);
    const index_t taken = static_cast<index_t>(step.step) + 1;
    if (!layers.empty()) {
      const Options& o = layers.front()->options_;
      const index_t growing = taken - o.init_warmup;
      if (growing > 0 && growing % o.incre_interval == 0 && ranks_left(layers) > 0) grow(layers);
    }
    for (IncreLora* layer : layers) layer->seen_ = version_of(*layer);
  }

  /// Ranks whose singular value is trained.
  index_t grown() const { return grown_; }
  /// alpha at run time: s = alpha / (ranks grown + 1e-5) changes as ranks grow.
  double scale() const { return alpha_; }
  void set_scale(double alpha) {
    Path::set_scale(alpha / (static_cast<double>(grown_) + 1e-5));
    alpha_ = alpha;
  }
  /// The same function as a plain LoRA of the ranks whose singular value is not 0. Waits for the device.
  Lora<P, B, Act> compacted(Context& ctx) const {
    return this->template folded<Lora<P, B, Act>>(
        ctx, {.dropout = options_.dropout, .seed = options_.seed, .layer = options_.layer});
  }
  const Options& options() const { return options_; }

  // It decides itself which of its ranks take part.
  void rank_resized() = delete;
  void prune(Context&) = delete;

 private:
  static constexpr index_t score_rows = 64;

  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("IncreLora", shape);
    check_low_rank_options("IncreLora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    const auto in_range = [](std::string_view name, index_t value, index_t least, index_t most, std::string want) {
      if (value < least || value > most) raise_mismatch<OptionError>("IncreLora", name, value, want);
    };
    constexpr index_t any = std::numeric_limits<index_t>::max();
    in_range("init_rank", o.init_rank, 1, o.rank, "1 to rank = " + std::to_string(o.rank));
    in_range("target_rank", o.target_rank, o.init_rank, o.rank,
             "init_rank = " + std::to_string(o.init_rank) + " to rank = " + std::to_string(o.rank));
    in_range("growth", o.growth, 0, any, "0 or more");
    in_range("init_warmup", o.init_warmup, 0, any, "0 or more");
    in_range("incre_interval", o.incre_interval, 1, any, "1 or more");
    in_range("top_h", o.top_h, 1, any, "1 or more");
    in_range("score_every", o.score_every, 1, o.incre_interval,
             "1 to incre_interval = " + std::to_string(o.incre_interval));
    const std::pair<const char*, double> betas[] = {{"beta1", o.beta1},
                                                    {"beta2", o.beta2}};  // nvcc takes no list in a for
    for (const auto& [name, beta] : betas)
      if (!(beta > 0 && beta < 1)) raise_mismatch<OptionError>("IncreLora", name, beta, "above 0 and below 1");
    check_not_negative("IncreLora", "orth_reg_weight", o.orth_reg_weight);
    return {.rank = o.rank,
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .down = "lora_A",
            .up = "lora_B",
            .middle = "lora_E"};
  }

  MatrixView<P, Space> slot(std::string_view name) { return gates().slot(name).view(); }
  index_t growth() const {
    return options_.growth > 0 ? options_.growth : std::max<index_t>(1, options_.target_rank / 2);
  }
  index_t with_reserve(index_t grown) const {
    return options_.advance_learn ? std::min(grown + growth(), options_.rank) : grown;
  }
  // e of the first `grown` ranks is trained; A and B of the first `part` are, and these take part.
  void set_ranks(index_t grown, index_t part) {
    grown_ = grown;
    active_ = part;
    a_.window = b_.window = {0, part};
    gates().window = {0, grown};
    set_scale(alpha_);
  }
  void store_ranks() {
    const P ranks[] = {static_cast<P>(grown_), static_cast<P>(active_)};
    Memory<Space>::from_host(slot("ranks").data, ranks, sizeof ranks);
  }
  template <class F>
  void for_each_block(F f) const {
    for (index_t first = 0, count = options_.init_rank; first < active_; first += count, count = growth())
      f(first, std::min(count, active_ - first));
  }
  static index_t ranks_left(std::span<IncreLora* const> layers) {
    index_t left = 0;
    for (const IncreLora* layer : layers) left += layer->options_.target_rank - layer->grown_;
    return left;
  }

  // S += sum_ij |dW_ij (dY^T D(X))_ij| / sqrt(in out); of several calls in a step the absolute values add up.
  void add_score(Context& ctx, ConstMatrixView<Act, Space> x, ConstMatrixView<Act, Space> dy, const Call& call) {
    typename Arena<Space>::Mark mark(ctx.arena);
    const index_t in = shape_.in_features, out = shape_.out_features;
    auto ea = B::template temp<P>(ctx, active_, in);
    auto sums = B::template temp<P>(ctx, 1, in);
    auto delta = B::template temp<P>(ctx, std::min(score_rows, out), in);
    auto gradient = B::template temp<P>(ctx, std::min(score_rows, out), in);
    middle_.apply(ctx, scale_, this->down(), ea);  // s diag(e) A
    B::fill(ctx, sums, 0);
    for (index_t first = 0; first < out; first += score_rows) {
      const index_t rows = std::min(score_rows, out - first);
      auto dw = delta.row_range(0, rows), g = gradient.row_range(0, rows);
      B::gemm(ctx, 1, this->up().row_range(first, rows), std::as_const(ea), 0, dw);
      B::fill(ctx, g, 0);
      dropout_.for_each_tile(ctx, x, call, [&](auto xd, index_t row) {
        B::gemm(ctx, 1, t(dy.row_range(row, xd.rows).col_range(first, rows)), xd, 1, g);
      });
      B::map(ctx, ProductMagnitude{}, dw, ConstMatrixView<P, Space>(g));
      B::col_sum(ctx, 1, dw, sums);
    }
    const double mean = 1 / std::sqrt(static_cast<double>(in) * static_cast<double>(out));
    B::col_sum(ctx, mean, MatrixView<P, Space>(sums.data, in, 1, 1), slot("module_score").col_range(0, 1));
  }
  void average(Context& ctx) {
    if (!std::exchange(scoring_, false)) return;
    const auto score = slot("module_score").col_range(0, 1), mean = slot("module_score").col_range(1, 1);
    B::map(ctx, AverageScore{options_.beta1}, mean, ConstMatrixView<P, Space>(score));
    B::map(ctx, AverageDeviation{options_.beta2}, slot("module_score").col_range(2, 1),
           ConstMatrixView<P, Space>(score), ConstMatrixView<P, Space>(mean));
  }
  // The best `top_h` layers that are below their bound grow, best first; no rank more than the target.
  static void grow(std::span<IncreLora* const> layers) {
    std::vector<IncreLora*> best;
    for (IncreLora* layer : layers) {
      read_row(layer->slot("module_score"), layer->host_);
      if (layer->grown_ < layer->options_.rank) best.push_back(layer);
    }
    const auto need = [](const IncreLora* layer) { return layer->host_[1] * layer->host_[2]; };
    std::stable_sort(best.begin(), best.end(), [&](auto* a, auto* b) { return need(a) > need(b); });
    index_t left = ranks_left(layers), turns = layers.front()->options_.top_h;
    for (IncreLora* layer : best) {
      if (left == 0 || turns-- == 0) break;
      const index_t more = std::min({layer->growth(), layer->options_.rank - layer->grown_, left});
      layer->grow_to(layer->grown_ + more, layer->with_reserve(layer->grown_ + more));
      left -= more;
    }
    if (left == 0)  // nothing will grow any more: no reserve takes part
      for (IncreLora* layer : layers) layer->grow_to(layer->grown_, layer->grown_);
  }
  void grow_to(index_t grown, index_t part) {
    if (grown > grown_) gates().born(grown_, grown - grown_, options_.rank);
    for (auto* p : {&a_, &b_})
      if (part > active_) p->born(active_, part - active_, options_.rank);
    set_ranks(grown, part);
    store_ranks();
    gates().changed();  // what a call sees has changed
  }

  Options options_;
  double alpha_;
  index_t grown_ = 0;
  bool scoring_ = false;
  std::uint64_t seen_ = 0;  // the version whose ranks these are
  std::vector<P> host_;
};

}  // namespace deltaw
