#pragma once
// AdaLoRA: Y = X W^T + s ((D(X) A^T) o e) B^T, an SVD-like dW = s B diag(e) A whose singular values e are dropped by
// importance until a budget of ranks is left over all layers. s = alpha / (rank + 1e-5).
// Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv 2303.10512.
//   loss += w mean over all A, B of ||A A^T - I||_F, ||B^T B - I||_F
//   I = |p dL/dp|,  I~ = b1 I~ + (1 - b1) I,  U~ = b2 U~ + (1 - b2) |I - I~|,  score(p) = I~ o U~
//   S_k = score(e_k) + mean_j score(A_kj) + mean_i score(B_ik); the least go to e_k = 0 until budget(t) are left,
//   budget(t) = target + (init - target) (1 - (t - tinit) / (total - tfinal - tinit))^3
// Cost a token: LoRA's and rank. Kept for backward: X and Z (tokens x rank). In training each value of A and B has four more.

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/gated.hpp"
#include "deltaw/core/orthogonality.hpp"

namespace deltaw {

/// beta out + (1 - beta) |value gradient|; stays where that is not finite.
struct AverageSensitivity {
  double beta = 0;
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X out, Y value, Z gradient) const {
    const X product = static_cast<X>(value) * static_cast<X>(gradient);
    const X sensitivity = product < 0 ? -product : product;
    if (!(sensitivity - sensitivity == 0)) return out;
    return static_cast<X>(beta) * out + static_cast<X>(1 - beta) * sensitivity;
  }
};
/// beta out + (1 - beta) | |value gradient| - average |; stays where that is not finite.
struct AverageUncertainty {
  double beta = 0;
  template <class X, class Y, class Z, class V>
  DELTAW_HD X operator()(X out, Y value, Z gradient, V average) const {
    const X product = static_cast<X>(value) * static_cast<X>(gradient);
    const X deviation = (product < 0 ? -product : product) - static_cast<X>(average);
    if (!(deviation - deviation == 0)) return out;
    return static_cast<X>(beta) * out + static_cast<X>(1 - beta) * (deviation < 0 ? -deviation : deviation);
  }
};

template <class P, class B, class Act = P>
class AdaLora : public GatedLowRank<P, B, Act> {
  using Path = GatedLowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::gates, Path::shape_;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "adalora";

  struct Options {
    index_t rank = 12;        ///< at the start
    index_t target_rank = 8;  ///< mean over the layers, in the end
    double alpha = 8;
    index_t tinit = 0;             ///< steps before the first rank is dropped
    index_t tfinal = 0;            ///< steps in the end with the ranks as they are
    index_t delta_t = 1;           ///< steps between two allocations, each of which waits for the device
    double beta1 = 0.85;           ///< of the importance's average
    double beta2 = 0.85;           ///< of its uncertainty's
    double orth_reg_weight = 0.5;  ///< of the penalty that keeps A and B orthonormal
    double dropout = 0;            ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;        ///< of the dropout masks
    std::uint64_t layer = 0;       ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;         ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("target_rank", target_rank), f("alpha", alpha), f("tinit", tinit), f("tfinal", tfinal);
      f("delta_t", delta_t), f("beta1", beta1), f("beta2", beta2), f("orth_reg_weight", orth_reg_weight);
      f("dropout", dropout), f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// Values are zero until `initialize`. Throws OptionError or ShapeError.
  AdaLora(LinearShape shape, Options options) : Path("AdaLora", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features + 1);
  }

  /// A, B ~ N(0, 0.02^2), e = 0.
  void initialize(Context& ctx, std::uint64_t seed) { this->start_singular(ctx, *this, seed, 0.02); }

  /// That the training is long enough for its schedule.
  static void begin_step(Context&, std::span<AdaLora* const> layers, const StepInfo& step) {
    for (const AdaLora* layer : layers) layer->check_steps(step);
  }
  /// The penalty on A and B, its mean over the matrices of all layers.
  static void regularize(Context& ctx, std::span<AdaLora* const> layers, MatrixView<P, Space> loss = {}) {
    for (AdaLora* layer : layers) {
      const double weight = layer->options_.orth_reg_weight / static_cast<double>(2 * layers.size());
      add_orthogonality<B>(ctx, layer->a_, weight, loss);
      add_orthogonality<B>(ctx, layer->b_, weight, loss);
    }
  }
  /// Importance, and every `delta_t` steps who keeps its singular value; gradients must still be there. The number of steps
  /// taken, t, counts this one.
  static void after_step(Context& ctx, std::span<AdaLora* const> layers, const StepInfo& step) {
    begin_step(ctx, layers, step);
    if (layers.empty()) return;
    const Options& o = layers.front()->options_;
    const index_t taken = static_cast<index_t>(step.step) + 1;
    const index_t last = static_cast<index_t>(step.total_steps) - o.tfinal;
    if (taken < last)
      for (AdaLora* layer : layers) layer->observe(ctx);
    if (taken == last || (taken < last && taken > o.tinit && taken % o.delta_t == 0))
      allocate(layers.front()->candidates_, ctx, layers, budget(layers, step));
    if (taken >= last)
      for (AdaLora* layer : layers) layer->hold(ctx);
  }

  /// Ranks that all layers may keep after this step.
  static index_t budget(std::span<AdaLora* const> layers, const StepInfo& step) {
    index_t init = 0, target = 0;
    for (const AdaLora* layer : layers) init += layer->options_.rank, target += layer->options_.target_rank;
    const Options& o = layers.front()->options_;
    const index_t taken = static_cast<index_t>(step.step) + 1;
    const index_t last = static_cast<index_t>(step.total_steps) - o.tfinal;
    if (taken <= o.tinit) return init;
    if (taken >= last) return target;
    const double left = 1 - static_cast<double>(taken - o.tinit) / static_cast<double>(last - o.tinit);
    return static_cast<index_t>(static_cast<double>(target) + static_cast<double>(init - target) * left * left * left);
  }
  /// The same function as a plain LoRA of the ranks whose singular value is not 0. Waits for the device.
  Lora<P, B, Act> compacted(Context& ctx) const {
    return this->template folded<Lora<P, B, Act>>(
        ctx, {.dropout = options_.dropout, .seed = options_.seed, .layer = options_.layer});
  }
  const Options& options() const { return options_; }

 private:
  struct Candidate {
    P score;
    std::size_t layer, rank;
    friend bool operator<(const Candidate& a, const Candidate& b) {
      if (a.score != b.score) return a.score < b.score;
      return a.rank != b.rank ? a.rank > b.rank : a.layer > b.layer;  // of equals the last ranks go first
    }
  };

  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("AdaLora", shape);
    check_low_rank_options("AdaLora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    if (o.target_rank < 1 || o.target_rank > o.rank)
      raise_mismatch<OptionError>("AdaLora", "target_rank", o.target_rank, "1 to rank = " + std::to_string(o.rank));
    if (o.tinit < 0) raise_mismatch<OptionError>("AdaLora", "tinit", o.tinit, "0 or more");
    if (o.tfinal < 0) raise_mismatch<OptionError>("AdaLora", "tfinal", o.tfinal, "0 or more");
    if (o.delta_t < 1) raise_mismatch<OptionError>("AdaLora", "delta_t", o.delta_t, "1 or more");
    const std::pair<const char*, double> betas[] = {{"beta1", o.beta1},
                                                    {"beta2", o.beta2}};  // nvcc takes no list in a for
    for (const auto& [name, beta] : betas)
      if (!(beta > 0 && beta < 1)) raise_mismatch<OptionError>("AdaLora", name, beta, "above 0 and below 1");
    check_not_negative("AdaLora", "orth_reg_weight", o.orth_reg_weight);
    return {.rank = o.rank,
            .scale = o.alpha / (static_cast<double>(o.rank) + 1e-5),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .down = "lora_A",
            .up = "lora_B",
            .middle = "lora_E"};
  }
  void check_steps(const StepInfo& step) const {
    const index_t least = options_.tinit + options_.tfinal;
    if (static_cast<index_t>(step.total_steps) <= least)
      raise_mismatch<OptionError>("AdaLora", "total_steps", step.total_steps,
                                  "the steps of the training, more than tinit + tfinal = " + std::to_string(least));
  }

  template <class F>
  void for_each_scored(F f) {
    for (auto* p : {&a_, &b_, &gates()})
      if (p->trained) f(*p);
  }
  void observe(Context& ctx) {
    for_each_scored([&](auto& p) {
      p.slot("importance");  // both are made before either is looked at: a new slot may move the other
      auto uncertainty = p.slot("uncertainty").view(), importance = p.slot("importance").view();
      const auto value = std::as_const(p.value).view(), gradient = std::as_const(p.grad).view();
      B::map(ctx, AverageSensitivity{options_.beta1}, importance, value, gradient);
      B::map(ctx, AverageUncertainty{options_.beta2}, uncertainty, value, gradient,
             ConstMatrixView<P, Space>(importance));
    });
  }
  // S_k of every rank, on the host.
  void read_scores(Context& ctx) {
    typename Arena<Space>::Mark mark(ctx.arena);
    auto scores = B::template temp<P>(ctx, 1, this->rank());
    B::fill(ctx, scores, 0);
    for_each_scored([&](auto& p) {
      p.slot("importance");
      const auto uncertainty = p.slot("uncertainty").view(), importance = p.slot("importance").view();
      if (p.rank_axis == RankAxis::Rows)
        B::row_dot(ctx, 1 / static_cast<double>(p.value.cols()), importance, uncertainty, scores);
      else
        B::col_dot(ctx, 1 / static_cast<double>(p.value.rows()), importance, uncertainty, scores);
    });
    read_row(scores, host_);
  }
  // All but the `budget` best ranks of all layers get e = 0.
  static void allocate(std::vector<Candidate>& candidates, Context& ctx, std::span<AdaLora* const> layers,
                       index_t budget) {
    candidates.clear();
    for (std::size_t l = 0; l < layers.size(); ++l) {
      layers[l]->read_scores(ctx);
      auto& host = layers[l]->host_;
      for (std::size_t k = 0; k < host.size(); ++k) candidates.push_back({host[k] >= 0 ? host[k] : P(0), l, k});
      std::fill(host.begin(), host.end(), P(1));
    }
    const auto dropped = static_cast<std::ptrdiff_t>(candidates.size()) - std::max<index_t>(budget, 0);
    if (dropped > 0) {
      std::nth_element(candidates.begin(), candidates.begin() + dropped - 1, candidates.end());
      for (std::ptrdiff_t i = 0; i < dropped; ++i) {
        const Candidate& c = candidates[static_cast<std::size_t>(i)];
        layers[c.layer]->host_[c.rank] = 0;
      }
    }
    for (AdaLora* layer : layers) layer->keep(ctx);
  }
  // e <- e o mask, with the mask that the host has made.
  void keep(Context& ctx) {
    auto mask = gates().slot("mask").view();
    if (!host_.empty()) Memory<Space>::from_host(mask.data, host_.data(), host_.size() * sizeof(P));
    apply_mask(ctx);
  }
  // The ranks are final: what they were chosen by is no longer needed.
  void hold(Context& ctx) {
    for_each_scored([](auto& p) {
      std::erase_if(p.slots, [](const auto& s) { return s.name == "importance" || s.name == "uncertainty"; });
    });
    apply_mask(ctx);
  }
  void apply_mask(Context& ctx) {
    auto& e = gates();
    B::map(ctx, Multiply{}, e.value.view(), ConstMatrixView<P, Space>(e.slot("mask").view()));
    e.changed();
  }

  Options options_;
  std::vector<P> host_;                // scores, then the mask
  std::vector<Candidate> candidates_;  // of all layers, in the first one's memory
};

}  // namespace deltaw
