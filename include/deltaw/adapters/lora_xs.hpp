#pragma once
// LoRA-XS: Y = X W^T + s D(X) A^T R^T B^T, A rank x in and B out x rank frozen, R rank x rank trained, s = alpha / rank.
// Balazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", 2024, arXiv 2405.17604.
// A and B come from the singular vectors of W (init/spectral.hpp). X is not kept for backward, only Z = D(X) A^T.
// Cost a token: 2 rank (in + out + rank) FLOPs forward, 2 rank (in + out + 2 rank) backward.

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/initial.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class LoraXs : public LowRank<P, B, Act, Core> {
  using Path = LowRank<P, B, Act, Core>;

 public:
  using typename Path::Context;
  static constexpr std::string_view method = "lora_xs";

  struct Options {
    index_t rank = 8;
    double alpha = 16;
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the dropout masks
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;    ///< allow rank > min(in_features, out_features), which spends parameters for nothing

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// All values are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  LoraXs(LinearShape shape, Options options) : Path("LoraXs", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape, const Options& o) { return o.rank * o.rank; }

  /// The paper's ablation, which needs no decomposition: random A and B, R ~ N(0, 1e-5^2).
  void initialize(Context& ctx, std::uint64_t seed) { fill_around_core<B>(ctx, *this, seed, 1e-5); }

  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("LoraXs", shape);
    check_low_rank_options("LoraXs", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "default_lora_latent_mapping.weight",
            .train_down = false,
            .train_up = false};
  }

  Options options_;
};

}  // namespace deltaw
