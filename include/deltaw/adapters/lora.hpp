#pragma once
// LoRA: Y = X W^T + s (D(X) A^T B^T + b), A rank x in, B out x rank, s = alpha / rank.
// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685;
// s = alpha / sqrt(rank): Kalajdzievski, "A Rank Stabilization Scaling Factor ...", 2023, arXiv 2312.03732.
// Cost a token: 2 rank (in + out) FLOPs forward, 4 rank (in + out) backward. Kept for backward: X and Z (tokens x rank).

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Lora : public LowRank<P, B, Act> {
  using Path = LowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::scale_, Path::shape_;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "lora";

  struct Options {
    index_t rank = 8;
    double alpha = 8;
    bool rslora = false;      ///< s = alpha / sqrt(rank) instead of alpha / rank
    bool bias = false;        ///< train b (out), added inside the scale
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the dropout masks
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;    ///< allow rank > min(in_features, out_features), which spends parameters for nothing

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("rslora", rslora), f("bias", bias), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// Both factors are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  Lora(LinearShape shape, Options options) : Path("Lora", shape, checked(shape, options)), options_(options) {
    if (options.bias) bias_ = {"lora_B.bias", Role::Bias, RankAxis::None, 1, shape.out_features};
  }

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features) + (o.bias ? shape.out_features : 0);
  }

  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    Path::forward(ctx, base, x, y, saved);
    if (options_.bias) B::map(ctx, AddScaled{scale_}, y, bias_.value.view());  // Y += s b
  }
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    Path::backward(ctx, base, x, dy, dx, saved);
    if (options_.bias && bias_.trained) B::col_sum(ctx, scale_, dy, bias_.gradient());  // db += s colsum(dY)
  }

  /// W += s B A, b += s b', rounded once; `b` may be empty when the adapter trains no bias.
  template <class W>
  void merge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    if (options_.bias) check_view("Lora", "b", b, 1, shape_.out_features, "1", "out_features");
    Path::merge(ctx, base, w);
    if (options_.bias) B::map(ctx, AddScaled{scale_}, b, bias_.value.view());
  }
  /// W -= s B A: exact only up to rounding. Keep a copy of W where the very bits must come back.
  template <class W>
  void unmerge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    if (options_.bias) check_view("Lora", "b", b, 1, shape_.out_features, "1", "out_features");
    Path::unmerge(ctx, base, w);
    if (options_.bias) B::map(ctx, AddScaled{-scale_}, b, bias_.value.view());
  }

  template <class F>
  void for_each_parameter(F&& f) {
    Path::for_each_parameter(f);
    if (options_.bias) f(bias_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    Path::for_each_parameter(f);
    if (options_.bias) f(bias_);
  }
  deltaw::Pair<P, Space> pair() { return {&a_, &b_, scale_}; }
  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Lora", shape);
    check_low_rank_options("Lora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    const auto rank = static_cast<double>(o.rank);
    return {.rank = o.rank,
            .scale = o.alpha / (o.rslora ? std::sqrt(rank) : rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer};
  }

  Options options_;
  Parameter<P, Space> bias_;
};

}  // namespace deltaw
