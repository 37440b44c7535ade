#pragma once
// LoRA: Y = X W^T + s (D(X) A^T B^T + b), A rank x in, B out x rank, s = alpha / rank.
// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685;
// s = alpha / sqrt(rank): Kalajdzievski, "A Rank Stabilization Scaling Factor ...", 2023, arXiv 2312.03732.
// Cost a token: 2 rank (in + out) FLOPs forward, 4 rank (in + out) backward. Kept for backward: X and Z (tokens x rank).

#include <cmath>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/dropout.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/core/options.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Lora {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Between = typename B::template Intermediate<P, Act>;
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

  /// What backward needs of one forward. Reuse one object a call from step to step: it then allocates nothing.
  struct Saved {
    Call call;
    Tensor<Between, Space> z;  ///< s D(X) A^T, tokens x rank
    Tensor<Between, Space> h;  ///< s dY B, kept only between a `backward` without dx and its `backward_input`
  };

  /// Both factors are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  Lora(LinearShape shape, Options options) : shape_(shape), options_(checked(shape, options)) {
    a_ = {"lora_A.weight", Role::Down, RankAxis::Rows, options_.rank, shape.in_features};
    b_ = {"lora_B.weight", Role::Up, RankAxis::Cols, shape.out_features, options_.rank};
    if (options_.bias) bias_ = {"lora_B.bias", Role::Bias, RankAxis::None, 1, shape.out_features};
    const auto rank = static_cast<double>(options_.rank);
    scale_ = options_.alpha / (options_.rslora ? std::sqrt(rank) : rank);
    dropout_ = {options_.dropout, options_.seed, options_.layer, shape};
  }

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features) + (o.bias ? shape.out_features : 0);
  }

  void forward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved& saved) const {
    check_call("Lora.forward", shape_, x, "x", y, "y");
    typename Arena<Space>::Mark mark(ctx.arena);
    auto z = saved.z.resize(x.rows, rank());
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      B::gemm(ctx, scale_, xd, t(a_.value.view()), 0, z.row_range(first, xd.rows));  // Z = s D(X) A^T
    });
    B::gemm(ctx, 1, z, t(b_.value.view()), 1, y);                              // Y += Z B^T
    if (options_.bias) B::map(ctx, AddScaled{scale_}, y, bias_.value.view());  // Y += s b
  }

  /// x may be empty where `reads_input_in_backward()` is false; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_backward(x, dy, dx, saved);
    typename Arena<Space>::Mark mark(ctx.arena);
    auto h = !is_given(dx) ? saved.h.resize(dy.rows, rank()) : B::template temp<Between>(ctx, dy.rows, rank());
    if (b_.trained) B::gemm(ctx, 1, t(dy), saved.z.view(), 1, b_.grad.view());           // dB += dY^T Z
    if (options_.bias && bias_.trained) B::col_sum(ctx, scale_, dy, bias_.grad.view());  // db += s colsum(dY)
    B::gemm(ctx, scale_, dy, b_.value.view(), 0, h);                                     // H = s dY B
    if (is_given(dx)) {
      dropout_.add_product(ctx, h, a_.value.view(), dx, saved.call);  // dX += D'(H A)
      saved.h.resize(0, 0);
    }
    if (!a_.trained) return;
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      B::gemm(ctx, 1, t(h.row_range(first, xd.rows)), xd, 1, a_.grad.view());  // dA += H^T D(X)
    });
  }

  /// dX += D'(H A), after a `backward` that was given no dx.
  void backward_input(Context& ctx, const Base&, MatrixView<Act, Space> dx, Saved& saved) const {
    if (saved.h.empty() && !dx.empty())
      raise<StaleError>("Lora.backward_input", "saved.h: got none, want a backward without dx just before");
    check_view("Lora.backward_input", "dx", dx, saved.h.rows(), shape_.in_features, "tokens", "in_features");
    dropout_.add_product(ctx, std::as_const(saved.h).view(), a_.value.view(), dx, saved.call);
    saved.h.resize(0, 0);
  }

  /// out = s B A.
  void delta_weight(Context& ctx, const Base&, MatrixView<P, Space> out) const {
    check_view("Lora.delta_weight", "out", out, shape_.out_features, shape_.in_features, "out_features", "in_features");
    B::gemm(ctx, scale_, b_.value.view(), a_.value.view(), 0, out);
  }
  /// W += s B A, b += s b', rounded once; `b` may be empty when the adapter trains no bias.
  template <class W>
  void merge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    add_delta(ctx, 1, w, b);
  }
  /// W -= s B A: exact only up to rounding. Keep a copy of W where the very bits must come back.
  template <class W>
  void unmerge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    add_delta(ctx, -1, w, b);
  }

  template <class F>
  void for_each_parameter(F&& f) {
    f(a_), f(b_);
    if (options_.bias) f(bias_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(a_), f(b_);
    if (options_.bias) f(bias_);
  }
  deltaw::Pair<P, Space> pair() { return {&a_, &b_, scale_}; }

  LinearShape shape() const { return shape_; }
  const Options& options() const { return options_; }
  index_t rank() const { return a_.value.rows(); }
  bool reads_input_in_backward() const { return a_.trained; }
  double scale() const { return scale_; }
  /// s at run time: how much of the adapter is felt.
  void set_scale(double scale) {
    if (!std::isfinite(scale)) raise_mismatch<OptionError>("Lora.set_scale", "scale", scale, "a finite number");
    scale_ = scale;
  }

 private:
  static Options checked(const LinearShape& shape, const Options& o) {
    check_shape("Lora", shape);
    check_low_rank_options("Lora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    return o;
  }

  void check_backward(ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy, MatrixView<Act, Space> dx,
                      const Saved& saved) const {
    check_view("Lora.backward", "dy", dy, saved.z.rows(), shape_.out_features, "tokens of the forward", "out_features");
    if (a_.trained) check_call("Lora.backward", shape_, x, "x", dy, "dy");
    if (is_given(dx)) check_call("Lora.backward", shape_, dx, "dx", dy, "dy");
    if (is_given(dx) && a_.trained) check_no_alias("Lora.backward", "x", x, "dx", dx);
  }

  template <class W>
  void add_delta(Context& ctx, double sign, MatrixView<W, Space> w, MatrixView<W, Space> b) const {
    check_view("Lora.merge", "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    if (options_.bias) check_view("Lora.merge", "b", b, 1, shape_.out_features, "1", "out_features");
    B::gemm(ctx, sign * scale_, b_.value.view(), a_.value.view(), 1, w);
    if (options_.bias) B::map(ctx, AddScaled{sign * scale_}, b, bias_.value.view());
  }

  LinearShape shape_;
  Options options_;
  double scale_ = 1;
  Parameter<P, Space> a_, b_, bias_;
  InputDropout<P, B, Act> dropout_;
};

}  // namespace deltaw
