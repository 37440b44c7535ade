#pragma once
// LoRA-SB: Y = X W^T + s D(X) A^T R^T B^T, A rank x in and B out x rank frozen, R rank x rank trained. It is LoRA-XS with
// the step of R that comes nearest to a step of W itself: with dR = s B^T G A^T, G = dL/dW,
//   H = (1/s^2) (B^T B)^-1 dR (A A^T)^-1,  so that s B H A = P_B G P_A,
// P the projections onto the column space of B and the row space of A.
// Ponkshe et al., "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank
// Fine-Tuning", 2024, arXiv 2411.19557. Its initial values come from the gradient of W; with them A and B are orthonormal.
// Cost a token: 2 rank (in + out + rank) FLOPs forward, 2 rank (in + out + 2 rank) backward; a step: 4 rank^3.

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/initial.hpp"
#include "deltaw/core/inverse.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

/// A core whose gradient gathers apart from the parameter's until `finish` has corrected it.
template <class P, class B>
struct CorrectedCore : Core<P, B> {
  using typename Core<P, B>::Context, typename Core<P, B>::Space;
  using Core<P, B>::parameter;
  Tensor<P, Space> derived;  ///< dR of the calls since the last `finish`; of another size than R: none

  explicit CorrectedCore(const LowRankOptions& o) : Core<P, B>(o), derived(o.rank, o.rank) {}

  bool has_derived() const { return derived.rows() == parameter.value.rows(); }

  template <class T>
  void backward(Context& ctx, double scale, ConstMatrixView<T, Space> z, ConstMatrixView<T, Space> dv,
                MatrixView<T, Space> dz) {
    if (!has_derived()) derived = Tensor<P, Space>(parameter.value.rows(), parameter.value.cols());
    if (parameter.trained) B::gemm(ctx, scale, t(dv), z, 1, derived.view());
    B::gemm(ctx, scale, dv, std::as_const(parameter.value).view(), 0, dz);
  }
};

template <class P, class B, class Act = P>
class LoraSb : public LowRank<P, B, Act, CorrectedCore> {
  using Path = LowRank<P, B, Act, CorrectedCore>;
  using Path::a_, Path::b_, Path::middle_, Path::scale_;

 public:
  using Path::rank;
  using typename Path::Base, typename Path::Context, typename Path::Space;
  static constexpr std::string_view method = "lora_sb";

  struct Options {
    index_t rank = 8;
    double scale = 1;              ///< s; the paper has no alpha
    bool optimal_gradient = true;  ///< H in place of dR; they are equal where A and B are orthonormal and s = 1
    double dropout = 0;            ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;        ///< of the dropout masks
    std::uint64_t layer = 0;       ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;         ///< allow rank > min(in_features, out_features), without optimal_gradient only

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("scale", scale), f("optimal_gradient", optimal_gradient), f("dropout", dropout);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// All values are zero: let an initializer fill them before training. Throws OptionError or ShapeError.
  LoraSb(LinearShape shape, Options options) : Path("LoraSb", shape, checked(shape, options)), options_(options) {}

  static index_t parameter_count(LinearShape, const Options& o) { return o.rank * o.rank; }

  /// Random A and B and R ~ N(0, 1e-5^2), for those who have no gradient of W to start from.
  void initialize(Context& ctx, std::uint64_t seed) { fill_around_core<B>(ctx, *this, seed, 1e-5); }

  /// (B^T B)^-1 and (A A^T)^-1, once: it waits for the device where A or B has changed, which they do not in training.
  /// Throws OptionError where the rows of A or the columns of B are not independent.
  void prepare(Context& ctx, const Base& base) {
    Path::prepare(ctx, base);
    if (!options_.optimal_gradient || seen_ == factors_version()) return;
    typename Arena<Space>::Mark mark(ctx.arena);
    auto gram = B::template temp<double>(ctx, rank(), rank());
    B::gemm(ctx, 1, a_.value.view(), t(a_.value.view()), 0, gram);
    invert(gram, down_inverse_, a_.name);
    B::gemm(ctx, 1, t(b_.value.view()), b_.value.view(), 0, gram);
    invert(gram, up_inverse_, b_.name);
    seen_ = factors_version();
  }

  /// The core's gradient += H, or dR where `optimal_gradient` is off.
  void finish(Context& ctx, const Base&) {
    auto& core = middle_.parameter;
    if (!core.trained || !middle_.has_derived()) return;
    if (!options_.optimal_gradient) {
      B::map(ctx, Add{}, core.gradient(), middle_.derived.view());
    } else {
      if (seen_ != factors_version())
        raise<StaleError>("LoraSb.finish", "prepare: got factors changed since, want it called again");
      typename Arena<Space>::Mark mark(ctx.arena);
      auto half_way = B::template temp<double>(ctx, rank(), rank());
      auto h = B::template temp<double>(ctx, rank(), rank());
      const double factor = scale_ == 0 ? 0 : 1 / (scale_ * scale_);
      B::gemm(ctx, factor, up_inverse_.view(), middle_.derived.view(), 0, half_way);
      B::gemm(ctx, 1, half_way, down_inverse_.view(), 0, h);
      B::map(ctx, Add{}, core.gradient(), h);
    }
    B::fill(ctx, middle_.derived.view(), 0);
  }

  const Options& options() const { return options_; }

 private:
  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("LoraSb", shape);
    check_low_rank_options("LoraSb", shape, o.rank, 1, o.dropout, o.any_rank);
    const index_t limit = std::min(shape.in_total(), shape.out_total());
    if (o.optimal_gradient && o.rank > limit)
      raise_mismatch<OptionError>(
          "LoraSb", "rank", o.rank,
          "at most " + std::to_string(limit) + " with optimal_gradient, since no more ranks are independent");
    if (!std::isfinite(o.scale) || o.scale == 0)
      raise_mismatch<OptionError>("LoraSb", "scale", o.scale, "finite and not 0");
    return {.rank = o.rank,
            .scale = o.scale,
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .middle = "default_lora_latent_mapping.weight",
            .train_down = false,
            .train_up = false};
  }

  static void invert(MatrixView<double, Space> gram, Tensor<double, Space>& inverse, std::string_view name) {
    Tensor<double> host(gram.rows, gram.cols);
    Memory<Space>::to_host(host.view().data, gram.data, host.bytes());
    if (!invert_positive_definite(host.view()))
      raise_mismatch<OptionError>("LoraSb.prepare", name, "a factor whose ranks are not independent",
                                  "one that an initializer has filled, or optimal_gradient = false");
    inverse.resize(gram.rows, gram.cols);
    Memory<Space>::from_host(inverse.view().data, host.view().data, host.bytes());
  }

  std::uint64_t factors_version() const { return a_.version + b_.version + 1; }

  Options options_;
  Tensor<double, Space> down_inverse_, up_inverse_;
  std::uint64_t seen_ = 0;  // the factors that they are of
};

}  // namespace deltaw
