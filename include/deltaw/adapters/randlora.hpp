#pragma once
// RandLoRA: a full-rank update from random bases that layers share, of which only scalings are trained:
//   dW = s Bf P  (in <= out)  or  s (Bf P)^T  (in > out),  s = alpha / rank,
//   P[k nb + b, j] = lambda[k, b] a[k, j] gamma[b, j],  Bf the leading columns of b,
// mn = min(in, out), mx = max(in, out), nb = ceil(mn / rank): P is (rank nb) x mn, Bf mx x (rank nb). Rows of P go by (k, b) and
// columns of Bf by (b, k), paired by position: the reference's shuffle, kept so that files can be exchanged.
// Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", 2025, arXiv 2502.00987.
// P and dP live in tiles of 512 rows and never whole; for each tile, X being D(X) for in <= out:
//   in <= out  forward  Y += s (X P^T) Bf^T         backward  H = s dY Bf,  dX += D'(H P),  dP = H^T X
//   in > out   forward  Z = X Bf, Y += s Z P        backward  H = s dY P^T, dX += D'(H Bf^T), dP = s Z^T dY
//   dlambda[k, b] += sum_j dP a gamma,  dgamma[b, j] += sum_k dP a lambda
// Cost a token: 2 mn (in + out) FLOPs forward, 2 mn (in + out) + 2 mn^2 backward. Kept for backward: X where in <= out, else Z
// (tokens x rank nb). Where a has zeros, products with P run over the columns that row k of a has; where b has few, products
// with Bf are signed sums.

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/dropout.hpp"
#include "deltaw/core/options.hpp"
#include "deltaw/core/randlora_tiles.hpp"
#include "deltaw/core/wide_rows.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class RandLora {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Between = typename B::template Intermediate<P, Act>;
  using Shared = RandLoraBases<P, B>;
  static constexpr std::string_view method = "randlora";

  struct Options {
    index_t rank = 32;  ///< of one basis; a larger one means fewer bases and fewer parameters
    double alpha = 640;
    double dropout = 0;                     ///< probability that an input of the adapter is dropped, while training
    bool sparse = false;                    ///< bases of -1, 0, 1, a third of them not 0
    bool very_sparse = false;               ///< the same, one in sqrt(mn) not 0
    bool regenerate = false;                ///< draw dense bases again in every call instead of storing them
    double sparse_below = 0.0625;           ///< share of non-zeros below which products with Bf are sums over these
    std::uint64_t projection_prng_key = 0;  ///< seed of the bases; the sparse ones are PEFT's for the same seed
    std::uint64_t seed = 0;                 ///< of the dropout masks
    std::uint64_t layer = 0;                ///< tells this layer's masks from those of others with the same seed
    bool any_rank = false;                  ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("dropout", dropout), f("sparse", sparse), f("very_sparse", very_sparse);
      f("regenerate", regenerate), f("sparse_below", sparse_below), f("projection_prng_key", projection_prng_key);
      f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// What backward needs of one forward. Reuse one object a call from step to step: it then allocates nothing.
  struct Saved {
    Call call;
    index_t tokens = 0;
    Tensor<Between, Space> z;  ///< D(X) Bf (tokens x rank nb) where in > out
    Tensor<Between, Space> h;  ///< H, kept only between a `backward` without dx and its `backward_input`
  };

  /// Without `shared`, `attach` makes bases for this layer alone. Throws OptionError, ShapeError or UnsupportedError.
  RandLora(LinearShape shape, Options options, std::shared_ptr<const Shared> shared = nullptr)
      : shape_(shape),
        options_(checked(shape, options)),
        scale_(options.alpha / static_cast<double>(options.rank)),
        mn_(std::min(shape.in_features, shape.out_features)),
        mx_(std::max(shape.in_features, shape.out_features)),
        nb_((mn_ + options.rank - 1) / options.rank),
        lambda_("randlora_lambda", Role::Coefficient, RankAxis::None, options.rank, nb_),
        gamma_("randlora_gamma", Role::Coefficient, RankAxis::None, nb_, mn_),
        dropout_(options.dropout, options.seed, options.layer, shape) {
    const double start = 1 / static_cast<double>(std::max(nb_, mn_));
    gamma_.value = to_tensor<P, Space>(nb_, mn_, std::vector<double>(static_cast<std::size_t>(nb_ * mn_), start));
    if (shared) use(std::move(shared));
  }

  static index_t parameter_count(LinearShape shape, const Options& o) {
    const index_t mn = std::min(shape.in_features, shape.out_features);
    return (mn + o.rank - 1) / o.rank * (o.rank + mn);
  }

  /// Bases for layers of these shapes.
  static std::shared_ptr<const Shared> make_shared(Context& ctx, std::span<const LinearShape> shapes,
                                                   const Options& o) {
    for (const LinearShape& s : shapes) checked(s, o);
    return std::make_shared<Shared>(Shared::draw(
        ctx, shapes, {o.rank, o.projection_prng_key, o.sparse, o.very_sparse, o.regenerate, o.sparse_below}));
  }
  /// Bases that a checkpoint stores: randlora_A as rank x mn and randlora_B as mx x (bases rank).
  template <class T>
  static std::shared_ptr<const Shared> make_shared(ConstMatrixView<T, Host> a, ConstMatrixView<T, Host> b,
                                                   double sparse_below = Options{}.sparse_below) {
    const index_t cols = a.rows > 0 ? (a.cols + a.rows - 1) / a.rows * a.rows : 0;
    check_view("RandLora.make_shared", "b", b, b.rows, cols, "mx", "bases x rank");
    return std::make_shared<Shared>(a, b, sparse_below);
  }

  /// Takes the bases that other layers use. Throws ShapeError, before anything changes, where they do not cover this layer.
  void use(std::shared_ptr<const Shared> shared) {
    if (shared->rank() != options_.rank)
      raise_mismatch<ShapeError>("RandLora", "rank of the shared bases", shared->rank(), std::to_string(options_.rank));
    if (shared->a().cols() < mn_)
      raise_mismatch<ShapeError>("RandLora", "columns of the shared basis a", shared->a().cols(),
                                 "at least min(in_features, out_features) = " + std::to_string(mn_));
    if (shared->rows() < mx_)
      raise_mismatch<ShapeError>("RandLora", "rows of the shared basis b", shared->rows(),
                                 "at least max(in_features, out_features) = " + std::to_string(mx_));
    shared_ = std::move(shared);
    // Reading columns apart costs as much as 48 multiplications each.
    const double share = shared_->density_a();
    const auto bases = static_cast<double>(nb_);
    compact_ = share < 1 && (share < options_.sparse_below || share * (bases + 48) < bases);
  }
  const std::shared_ptr<const Shared>& shared() const { return shared_; }

  void attach(Context& ctx, const Base&) {
    if (!shared_) use(make_shared(ctx, std::span(&shape_, 1), options_));
  }

  void forward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved& saved) const {
    check_call("RandLora", shape_, x, "x", y, "y");
    const auto factors = tiles<Between>();
    saved.tokens = x.rows;
    saved.z.resize(widens() ? 0 : x.rows, ranks());
    factors.for_each_tile(ctx, {}, [&](const auto& tile) {
      for_each_rows(ctx, x.rows, saved.call, [&](index_t first, index_t rows, const Call& call) {
        auto z =
            widens() ? B::template temp<Between>(ctx, rows, tile.count) : part_of(saved.z.view(), tile, first, rows);
        dropout_.for_each_tile(ctx, x.row_range(first, rows), call, [&](auto xd, index_t) {
          if (widens()) factors.times_p_transposed(ctx, 1, xd, tile, z);
          if (!widens()) factors.times_b(ctx, 1, xd, tile, z);
        });
        const In<Between> through = z;
        if (widens()) factors.times_b_transposed(ctx, scale_, through, tile, 1, y.row_range(first, rows));
        if (!widens()) factors.times_p(ctx, scale_, through, tile, 1, y.row_range(first, rows));
      });
    });
  }

  /// x may be empty where `reads_input_in_backward()` is false; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_backward(x, dy, dx, saved);
    const auto factors = tiles<Between>();
    const bool trains = (lambda_.trained || gamma_.trained) && dy.rows > 0;
    saved.h.resize(is_given(dx) ? 0 : dy.rows, ranks());
    factors.for_each_tile(ctx, {!widens() || is_given(dx), widens() || is_given(dx)}, [&](const auto& tile) {
      auto dp = trains ? B::template temp<P>(ctx, 1, tile.size) : MatrixView<P, Space>{};
      for_each_rows(ctx, dy.rows, saved.call, [&](index_t first, index_t rows, const Call& call) {
        auto h = is_given(dx) ? B::template temp<Between>(ctx, rows, tile.count)
                              : part_of(saved.h.view(), tile, first, rows);
        const In<Act> g = dy.row_range(first, rows);
        if (widens()) factors.times_b(ctx, scale_, g, tile, h);              // H = s dY Bf
        if (!widens()) factors.times_p_transposed(ctx, scale_, g, tile, h);  // H = s dY P^T
        if (is_given(dx)) add_input(ctx, factors, h, tile, dx.row_range(first, rows), call);
        if (!trains) return;
        const double beta = first > 0 ? 1 : 0;
        if (!widens()) {
          const auto z = part_of(std::as_const(saved.z).view(), tile, first, rows);
          return factors.outer_product(ctx, scale_, z, g, tile, beta, dp);  // dP = s Z^T dY
        }
        dropout_.for_each_tile(ctx, x.row_range(first, rows), call, [&](auto xd, index_t) {
          factors.outer_product(ctx, 1, In<Between>(h), xd, tile, beta, dp);  // dP = H^T D(X)
        });
      });
      if (trains) factors.add_gradients(ctx, tile, dp, lambda_, gamma_);
    });
  }

  /// dX += D'(H P) or D'(H Bf^T), after a `backward` that was given no dx.
  void backward_input(Context& ctx, const Base&, MatrixView<Act, Space> dx, Saved& saved) const {
    if (saved.h.empty() && !dx.empty())
      raise<StaleError>("RandLora", "saved.h: got none, want a backward without dx just before backward_input");
    check_view("RandLora", "dx", dx, saved.h.rows(), shape_.in_features, "tokens", "in_features");
    const auto factors = tiles<Between>();
    factors.for_each_tile(ctx, {widens(), !widens()}, [&](const auto& tile) {
      for_each_rows(ctx, dx.rows, saved.call, [&](index_t first, index_t rows, const Call& call) {
        const auto h = part_of(std::as_const(saved.h).view(), tile, first, rows);
        add_input(ctx, factors, h, tile, dx.row_range(first, rows), call);
      });
    });
    saved.h.resize(0, ranks());
  }

  /// out = s Bf P, or its transpose.
  void delta_weight(Context& ctx, const Base&, MatrixView<P, Space> out) const {
    check_view("RandLora", "out", out, shape_.out_features, shape_.in_features, "out_features", "in_features");
    add_delta(ctx, 1, 0, out, 0);
  }
  /// W += dW, rounded once. `b` is left alone.
  template <class W>
  void merge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    add_rounded(ctx, 1, w);
  }
  /// W -= dW: exact only up to rounding. Keep a copy of W where the very bits must come back.
  template <class W>
  void unmerge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    add_rounded(ctx, -1, w);
  }

  template <class F>
  void for_each_parameter(F&& f) {
    f(lambda_), f(gamma_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(lambda_), f(gamma_);
  }

  LinearShape shape() const { return shape_; }
  const Options& options() const { return options_; }
  bool reads_input_in_backward() const { return widens() && (lambda_.trained || gamma_.trained); }
  double scale() const { return scale_; }
  /// s at run time: how much of the adapter is felt.
  void set_scale(double scale) {
    if (!std::isfinite(scale)) raise_mismatch<OptionError>("RandLora", "scale", scale, "a finite number");
    scale_ = scale;
  }

 private:
  template <class T>
  using In = ConstMatrixView<T, Space>;

  static Options checked(const LinearShape& shape, const Options& o) {
    check_shape("RandLora", shape);
    check_low_rank_options("RandLora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    check_not_negative("RandLora", "sparse_below", o.sparse_below);
    if (shape.in_total() != shape.in_features || shape.out_total() != shape.out_features)
      raise<UnsupportedError>("RandLora",
                              "shape.shard: got a part of a layer, want a whole one: its bases are not split");
    if (o.regenerate && (o.sparse || o.very_sparse))
      raise<OptionError>("RandLora",
                         "regenerate: got true with sparse bases, want dense ones: only those can be drawn in parts");
    return o;
  }
  void check_backward(In<Act> x, MatrixView<Act, Space> dy, MatrixView<Act, Space> dx, const Saved& saved) const {
    check_view("RandLora", "dy", dy, saved.tokens, shape_.out_features, "tokens of the forward", "out_features");
    if (reads_input_in_backward()) check_call("RandLora", shape_, x, "x", dy, "dy");
    if (is_given(dx)) check_call("RandLora", shape_, dx, "dx", dy, "dy");
    if (is_given(dx) && reads_input_in_backward()) check_no_alias("RandLora", "x", x, "dx", dx);
  }

  /// Whether P comes first, on the side of the input.
  bool widens() const { return shape_.in_features <= shape_.out_features; }
  index_t ranks() const { return options_.rank * nb_; }

  template <class E>
  RandLoraTiles<P, B, E> tiles() const {
    if (!shared_) raise<StaleError>("RandLora", "shared: got none, want attach after construction");
    return {*shared_, lambda_.value.view(), gamma_.value.view(), mx_, compact_, shared_->has_signs()};
  }
  template <class T, class Tile>
  static MatrixView<T, Space> part_of(MatrixView<T, Space> all, const Tile& tile, index_t first, index_t rows) {
    return all.row_range(first, rows).col_range(tile.first, tile.count);
  }
  // f(first, rows, call) for pieces of at most B::tile_rows rows, whose dropout is addressed by their own call.
  template <class F>
  static void for_each_rows(Context& ctx, index_t tokens, const Call& call, F f) {
    for (index_t first = 0; first < tokens; first += B::tile_rows) {
      typename Arena<Space>::Mark mark(ctx.arena);
      Call piece = call;
      piece.first_row += static_cast<std::uint64_t>(first);
      f(first, std::min(B::tile_rows, tokens - first), piece);
    }
  }
  // dX += D'(H P) or D'(H Bf^T).
  template <class Factors, class Tile>
  void add_input(Context& ctx, const Factors& factors, In<Between> h, const Tile& tile, MatrixView<Act, Space> dx,
                 const Call& call) const {
    const auto add = [&](auto part, index_t first, double beta) {
      const auto rows = h.row_range(first, part.rows);
      if (widens()) factors.times_p(ctx, 1, rows, tile, beta, part);
      if (!widens()) factors.times_b_transposed(ctx, 1, rows, tile, beta, part);
    };
    if (!dropout_.on(call)) return add(dx, 0, 1);
    dropout_.template add_tiles<P>(ctx, dx, call,
                                   [&](MatrixView<P, Space> part, index_t first) { add(part, first, 0); });
  }

  // w = keep w + sign dW, w being rows of the weight from `first` on, tile after tile; both factors dense.
  void add_delta(Context& ctx, double sign, double keep, MatrixView<P, Space> w, index_t first) const {
    auto factors = tiles<P>();
    factors.compact = factors.signs = false;
    factors.for_each_tile(ctx, {}, [&](const auto& tile) {
      const auto p = factors.matrix(tile, tile.p);
      const double s = sign * scale_, beta = tile.first > 0 ? 1 : keep;
      if (widens()) B::gemm(ctx, s, tile.b.row_range(first, w.rows), p, beta, w);
      if (!widens()) B::gemm(ctx, s, t(p.col_range(first, w.rows)), t(tile.b), beta, w);
    });
  }
  template <class W>
  void add_rounded(Context& ctx, double sign, MatrixView<W, Space> w) const {
    check_view("RandLora", "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    in_wide_rows<P, B>(ctx, w, [&](auto rows, index_t first) { add_delta(ctx, sign, 1, rows, first); });
  }

  LinearShape shape_;
  Options options_;
  double scale_ = 1;
  index_t mn_, mx_, nb_;
  Parameter<P, Space> lambda_, gamma_;
  InputDropout<P, B, Act> dropout_;
  std::shared_ptr<const Shared> shared_;
  bool compact_ = false;
};

}  // namespace deltaw
