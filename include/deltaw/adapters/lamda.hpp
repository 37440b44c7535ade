#pragma once
// LaMDA: Y = X W^T + s D(X) A^T M^T B^T, A rank x in frozen, M rank x rank trained, B out x rank trained at first and then
// frozen column by column, s = alpha / rank. After step i of the first `freeze_until` of all steps, columns 0 ... t - 1 of B
// rest, t = floor(rank i / (freeze_until total)). LaMDA++ is the same with ranks by `allocate_ranks`.
// Azizi et al., "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation", 2024,
// arXiv 2406.12832.
// Cost a token: 2 rank (in + out + rank) FLOPs forward, 2 rank (in + 2 out + 3 rank) backward, less as B freezes. X is not kept.

#include <span>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/initial.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Lamda : public LowRank<P, B, Act, Core> {
  using Path = LowRank<P, B, Act, Core>;
  using Path::a_, Path::b_, Path::middle_, Path::shape_;

 public:
  using typename Path::Context;
  static constexpr std::string_view method = "lamda";

  struct Options {
    index_t rank = 8;
    double alpha = 8;
    double freeze_until = 0.3;  ///< the part of all steps after which B rests; 0: it is never trained
    double dropout = 0;         ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;     ///< of the dropout masks
    std::uint64_t layer = 0;    ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;      ///< allow rank > min(in_features, out_features), which spends parameters for nothing

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("freeze_until", freeze_until), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// All values are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  Lamda(LinearShape shape, Options options) : Path("Lamda", shape, checked(shape, options)), options_(options) {}

  /// At the start; rank^2 once B rests.
  static index_t parameter_count(LinearShape shape, const Options& o) { return o.rank * (o.rank + shape.out_features); }

  /// That of the authors' code: A as LoRA's, B = 0, M ~ U(-1/sqrt(rank), 1/sqrt(rank)). init::SpectralResidual is the paper's.
  void initialize(Context& ctx, std::uint64_t seed) {
    auto& m = middle_.parameter;
    fill_kaiming<B>(ctx, a_, shape_.in_total(), parameter_key(seed, *this, a_),
                    {0, static_cast<std::uint64_t>(shape_.shard.in_offset)});
    fill_kaiming<B>(ctx, m, m.value.cols(), parameter_key(seed, *this, m));
    B::fill(ctx, b_.value.view(), 0);
    b_.changed();
  }

  /// Which columns of B are still trained. Throws OptionError where the number of all steps is not known.
  static void begin_step(Context&, std::span<Lamda* const> layers, const StepInfo& info) {
    if (info.total_steps < 1)
      raise_mismatch<OptionError>("Lamda.begin_step", "total_steps", info.total_steps,
                                  "the number of all steps, by which B is frozen");
    for (Lamda* layer : layers) {
      const index_t ranks = layer->b_.value.cols();
      const double steps = layer->options_.freeze_until * static_cast<double>(info.total_steps);
      const double done = static_cast<double>(ranks) * static_cast<double>(info.step);
      const index_t resting = done < steps * static_cast<double>(ranks) ? static_cast<index_t>(done / steps) : ranks;
      layer->b_.window = {resting, ranks - resting};
    }
  }

  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Lamda", shape);
    check_low_rank_options("Lamda", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    if (!(o.freeze_until >= 0 && o.freeze_until <= 1))
      raise_mismatch<OptionError>("Lamda", "freeze_until", o.freeze_until, "0 to 1");
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "lora_M.weight",
            .train_down = false};
  }

  Options options_;
};

}  // namespace deltaw
