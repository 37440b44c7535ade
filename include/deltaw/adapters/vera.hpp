#pragma once
// VeRA: Y = X W^T + b + lambda_b o ((lambda_d o (D(X) A^T)) B^T), with one frozen random pair A (rank x in_max),
// B (out_max x rank) for all layers, of which a layer uses the leading columns and rows. Trained: one number an output
// and one a rank.
// Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023, arXiv 2310.11454.
//   U = diag(lambda_b) B diag(lambda_d)   (out x rank, made in every call: cheaper than any tokens x out temporary)
//   forward   Z = D(X) A^T,  Y += Z U^T
//   backward  H = dY U,  dX += D'(H A),  F = (dY^T Z) o B,  dlambda_b += F lambda_d,  dlambda_d += F^T lambda_b
// Cost a token: 2 rank (in + out) FLOPs forward, 2 rank (in + 2 out) backward. Kept for backward: Z (tokens x rank) alone.

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "deltaw/adapters/lora.hpp"
#include "deltaw/core/torch_random.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Vera {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Between = typename B::template Intermediate<P, Act>;
  static constexpr std::string_view method = "vera";

  struct Options {
    index_t rank = 256;
    double d_initial = 0.1;                 ///< lambda_d at the start
    double dropout = 0;                     ///< probability that an input of the adapter is dropped, while training
    std::uint64_t projection_prng_key = 0;  ///< seed of A and B, which are PEFT's for the same seed
    std::uint64_t seed = 0;                 ///< of the dropout masks
    std::uint64_t layer = 0;                ///< tells this layer's masks from those of others with the same seed
    bool any_rank = false;                  ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("d_initial", d_initial), f("dropout", dropout);
      f("projection_prng_key", projection_prng_key), f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// The frozen pair, once for all layers.
  struct Shared {
    Tensor<P, Space> a;  ///< rank x the largest in_features
    Tensor<P, Space> b;  ///< the largest out_features x rank
  };

  /// What backward needs of one forward. Reuse one object a call from step to step: it then allocates nothing.
  struct Saved {
    Call call;
    Tensor<Between, Space> z;  ///< D(X) A^T (tokens x rank)
    Tensor<Between, Space> h;  ///< dY U, kept only between a `backward` without dx and its `backward_input`
  };

  /// Without `shared`, `attach` makes a pair for this layer alone. Throws OptionError or ShapeError.
  Vera(LinearShape shape, Options options, std::shared_ptr<const Shared> shared = nullptr)
      : shape_(shape),
        options_(checked(shape, options)),
        lambda_b_("vera_lambda_b", Role::Vector, RankAxis::None, 1, shape.out_features),
        lambda_d_("vera_lambda_d", Role::Vector, RankAxis::Cols, 1, options.rank),
        dropout_(options.dropout, options.seed, options.layer, shape) {
    const auto rank = static_cast<std::size_t>(options.rank);
    lambda_d_.value = to_tensor<P, Space>(1, options.rank, std::vector<double>(rank, options.d_initial));
    if (shared) use(std::move(shared));
  }

  static index_t parameter_count(LinearShape shape, const Options& o) { return o.rank + shape.out_features; }

  /// The pair that PEFT draws for layers of these shapes: A, then B, uniform with Kaiming's bound for a gain of sqrt(2).
  static std::shared_ptr<const Shared> make_shared(Context&, std::span<const LinearShape> shapes, const Options& o) {
    index_t in = 0, out = 0;
    for (const LinearShape& s : shapes) {
      checked(s, o);
      in = std::max(in, s.in_total()), out = std::max(out, s.out_total());
    }
    TorchRandom random(o.projection_prng_key);
    const auto draw = [&](index_t rows, index_t cols) {
      const auto bound = static_cast<float>(std::sqrt(3.0) * (std::sqrt(2.0) / std::sqrt(static_cast<double>(cols))));
      std::vector<float> values(static_cast<std::size_t>(rows * cols));
      for (float& v : values) v = random.uniform(bound);
      return to_tensor<P, Space>(rows, cols, values);
    };
    auto shared = std::make_shared<Shared>();
    shared->a = draw(o.rank, in);
    shared->b = draw(out, o.rank);
    return shared;
  }
  /// A pair that a checkpoint stores.
  template <class T>
  static std::shared_ptr<const Shared> make_shared(ConstMatrixView<T, Host> a, ConstMatrixView<T, Host> b) {
    check_view("Vera.make_shared", "b", b, b.rows, a.rows, "out_max", "rank");
    auto shared = std::make_shared<Shared>();
    shared->a = to_tensor<P, Space>(a);
    shared->b = to_tensor<P, Space>(b);
    return shared;
  }

  /// Takes the pair that other layers use. Throws ShapeError, before anything changes, where it does not cover this layer.
  void use(std::shared_ptr<const Shared> shared) {
    if (shared->a.rows() != options_.rank)
      raise_mismatch<ShapeError>("Vera", "rank of the shared pair", shared->a.rows(), std::to_string(options_.rank));
    if (shared->a.cols() < shape_.in_total())
      raise_mismatch<ShapeError>("Vera", "in_features of the shared pair", shared->a.cols(),
                                 "at least " + std::to_string(shape_.in_total()));
    if (shared->b.rows() < shape_.out_total())
      raise_mismatch<ShapeError>("Vera", "out_features of the shared pair", shared->b.rows(),
                                 "at least " + std::to_string(shape_.out_total()));
    shared_ = std::move(shared);
  }
  const std::shared_ptr<const Shared>& shared() const { return shared_; }

  void attach(Context& ctx, const Base&) {
    if (!shared_) shared_ = make_shared(ctx, std::span(&shape_, 1), options_);
  }

  void forward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved& saved) const {
    check_attached();
    check_call("Vera", shape_, x, "x", y, "y");
    typename Arena<Space>::Mark mark(ctx.arena);
    auto z = saved.z.resize(x.rows, options_.rank);
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      B::gemm(ctx, 1, xd, t(down()), 0, z.row_range(first, xd.rows));  // Z = D(X) A^T
    });
    B::gemm(ctx, 1, z, t(scaled_up<Between>(ctx)), 1, y);  // Y += Z U^T
  }

  /// x is not read; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base&, ConstMatrixView<Act, Space>, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_attached();
    check_view("Vera", "dy", dy, saved.z.rows(), shape_.out_features, "tokens of the forward", "out_features");
    if (is_given(dx)) check_call("Vera", shape_, dx, "dx", dy, "dy");
    typename Arena<Space>::Mark mark(ctx.arena);
    auto h =
        is_given(dx) ? B::template temp<Between>(ctx, dy.rows, options_.rank) : saved.h.resize(dy.rows, options_.rank);
    B::gemm(ctx, 1, dy, scaled_up<Between>(ctx), 0, h);  // H = dY U
    if (is_given(dx)) {
      dropout_.add_product(ctx, h, down(), dx, saved.call);  // dX += D'(H A)
      saved.h.resize(0, 0);
    }
    if (!lambda_b_.trained && !lambda_d_.trained) return;
    auto f = B::template temp<P>(ctx, shape_.out_features, options_.rank);
    B::gemm(ctx, 1, t(dy), std::as_const(saved.z).view(), 0, f);
    B::map(ctx, Multiply{}, f, up());                                                   // F = (dY^T Z) o B
    if (lambda_b_.trained) B::gemm(ctx, 1, lambda_d(), t(f), 1, lambda_b_.gradient());  // dlambda_b += F lambda_d
    if (lambda_d_.trained) {
      const Window w = trained_ranks(lambda_d_, options_.rank);
      B::gemm(ctx, 1, lambda_b(), f.col_range(w.first, w.count), 1,
              lambda_d_.gradient().col_range(w.first, w.count));  // dlambda_d += F^T lambda_b
    }
  }

  /// dX += D'(H A), after a `backward` that was given no dx.
  void backward_input(Context& ctx, const Base&, MatrixView<Act, Space> dx, Saved& saved) const {
    if (saved.h.empty() && !dx.empty())
      raise<StaleError>("Vera", "saved.h: got none, want a backward without dx just before backward_input");
    check_view("Vera", "dx", dx, saved.h.rows(), shape_.in_features, "tokens", "in_features");
    dropout_.add_product(ctx, std::as_const(saved.h).view(), down(), dx, saved.call);
    saved.h.resize(0, 0);
  }

  /// out = U A.
  void delta_weight(Context& ctx, const Base&, MatrixView<P, Space> out) const { add_delta(ctx, "out", 1, 0, out); }
  /// W += U A, rounded once. `b` is left alone.
  template <class W>
  void merge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    add_delta(ctx, "w", 1, 1, w);
  }
  /// W -= U A: exact only up to rounding. Keep a copy of W where the very bits must come back.
  template <class W>
  void unmerge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    add_delta(ctx, "w", -1, 1, w);
  }

  /// The same map as a LoRA with factors diag(lambda_d) A and diag(lambda_b) B, for tools that know only that.
  Lora<P, B, Act> to_lora(Context& ctx) const {
    check_attached();
    const auto rank = static_cast<double>(options_.rank);
    Lora<P, B, Act> lora(shape_, {.rank = options_.rank,
                                  .alpha = rank,
                                  .dropout = options_.dropout,
                                  .seed = options_.seed,
                                  .layer = options_.layer,
                                  .any_rank = true});
    const auto pair = lora.pair();
    B::map(ctx, Product{}, pair.down->value.view(), down(), column(lambda_d()));
    B::map(ctx, Product{}, pair.up->value.view(), up(), column(lambda_b()));
    pair.down->changed(), pair.up->changed();
    return lora;
  }

  template <class F>
  void for_each_parameter(F&& f) {
    f(lambda_b_), f(lambda_d_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(lambda_b_), f(lambda_d_);
  }

  LinearShape shape() const { return shape_; }
  const Options& options() const { return options_; }
  bool reads_input_in_backward() const { return false; }

 private:
  static Options checked(const LinearShape& shape, const Options& o) {
    check_shape("Vera", shape);
    check_low_rank_options("Vera", shape, o.rank, 1, o.dropout, o.any_rank);
    if (!std::isfinite(o.d_initial) || o.d_initial == 0)
      raise_mismatch<OptionError>("Vera", "d_initial", o.d_initial, "finite and not 0");
    return o;
  }
  void check_attached() const {
    if (!shared_) raise<StaleError>("Vera", "shared: got none, want attach after construction");
  }

  // This layer's part of the pair.
  ConstMatrixView<P, Space> down() const {
    return shared_->a.view().col_range(shape_.shard.in_offset, shape_.in_features);
  }
  ConstMatrixView<P, Space> up() const {
    return shared_->b.view().row_range(shape_.shard.out_offset, shape_.out_features);
  }
  ConstMatrixView<P, Space> lambda_b() const { return lambda_b_.value.view(); }
  ConstMatrixView<P, Space> lambda_d() const { return lambda_d_.value.view(); }
  static ConstMatrixView<P, Space> column(ConstMatrixView<P, Space> row) { return {row.data, row.cols, 1, 1}; }

  // U = diag(lambda_b) B diag(lambda_d), in the arena.
  template <class T>
  MatrixView<T, Space> scaled_up(Context& ctx) const {
    auto u = B::template temp<T>(ctx, shape_.out_features, options_.rank);
    B::map(ctx, Product{}, u, up(), column(lambda_b()), lambda_d());
    return u;
  }

  // w = keep w + sign U A.
  template <class W>
  void add_delta(Context& ctx, std::string_view name, double sign, double keep, MatrixView<W, Space> w) const {
    check_attached();
    check_view("Vera", name, w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    typename Arena<Space>::Mark mark(ctx.arena);
    B::gemm(ctx, sign, scaled_up<P>(ctx), down(), keep, w);
  }

  LinearShape shape_;
  Options options_;
  Parameter<P, Space> lambda_b_, lambda_d_;
  InputDropout<P, B, Act> dropout_;
  std::shared_ptr<const Shared> shared_;
};

}  // namespace deltaw
