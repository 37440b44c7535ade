#pragma once
// KaSA: Y = X W_world^T + s ((D(X) A^T) o d) B^T, A rank x in, B out x rank, d the learned singular values, s = alpha / rank.
// W_world is W without its `rank` smallest singular triplets, which init::Kasa takes away (init/kasa.hpp). To the loss it adds
//   beta sum d^2 + gamma (||B^T B - I||_F + ||A A^T - I||_F), summed over the layers.
// Wang et al., "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models", 2024, arXiv 2412.06071.
// Cost a token: 2 rank (in + out) FLOPs forward, 4 rank (in + out) backward; a step: 4 rank^2 (in + out) for the penalties.

#include <span>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/gated.hpp"
#include "deltaw/core/orthogonality.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Kasa : public GatedLowRank<P, B, Act> {
  using Path = GatedLowRank<P, B, Act>;
  using Path::a_, Path::b_;

 public:
  using typename Path::Context, typename Path::Space;
  static constexpr std::string_view method = "kasa";

  struct Options {
    index_t rank = 8;
    double alpha = 16;
    double beta = 1e-4;   ///< weight of sum d^2
    double gamma = 1e-3;  ///< weight of the distance from orthonormal factors
    /// The penalties of the authors' code: of ||B B^T - I||_F and ||A^T A - I||_F (out x out, in x in), over the number of
    /// layers. The pull has the same direction and is weaker, up to sqrt(out / rank) times at the start.
    bool reference_form = false;
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the dropout masks
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("beta", beta), f("gamma", gamma), f("reference_form", reference_form);
      f("dropout", dropout), f("seed", seed), f("layer", layer);
    }
  };

  /// All values are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  Kasa(LinearShape shape, Options options) : Path("Kasa", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features + 1);
  }

  /// A as LoRA's, B = 0, d ~ N(0, 1). The base is another matter: see init::Kasa.
  void initialize(Context& ctx, std::uint64_t seed) { Path::start_gated(ctx, *this, seed); }

  /// beta sum d^2 + gamma (||B^T B - I||_F + ||A A^T - I||_F) of every layer, for what is trained; ||B B^T - I||^2 = ||B^T B - I||^2 + out - rank.
  static void regularize(Context& ctx, std::span<Kasa* const> layers, MatrixView<P, Space> loss = {}) {
    for (Kasa* layer : layers) {
      const Options& o = layer->options_;
      const double share = o.reference_form ? 1 / static_cast<double>(layers.size()) : 1;
      auto& d = layer->gates();
      const auto values = std::as_const(d.value).view();
      if (d.trained && is_given(loss)) B::row_dot(ctx, o.beta * share, values, values, loss);
      if (d.trained) B::map(ctx, AddScaled{2 * o.beta * share}, d.gradient(), values);
      for (auto* factor : {&layer->a_, &layer->b_}) {
        const index_t longer = std::max(factor->value.rows(), factor->value.cols());
        const double extra = o.reference_form ? static_cast<double>(longer - values.cols) : 0;
        add_orthogonality<B>(ctx, *factor, o.gamma * share, loss, extra);
      }
    }
  }

  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Kasa", shape);
    check_low_rank_options("Kasa", shape, o.rank, o.alpha, o.dropout, true);
    const index_t limit = std::min(shape.in_total(), shape.out_total());
    if (o.rank >= limit)
      raise_mismatch<OptionError>("Kasa", "rank", o.rank,
                                  "below min(in_features, out_features) = " + std::to_string(limit) +
                                      ", the singular triplets of which it takes some away");
    check_not_negative("Kasa", "beta", o.beta);
    check_not_negative("Kasa", "gamma", o.gamma);
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "lora_diag"};
  }

  Options options_;
};

}  // namespace deltaw
