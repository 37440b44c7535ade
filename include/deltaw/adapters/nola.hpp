#pragma once
// NOLA: LoRA whose factors are sums of random matrices with trained weights; k + l numbers are trained, whatever the size.
//   Y = X W^T + b + s D(X) F_A^T F_B^T,   F_A = A0 + sum_i alpha_i A_i,   F_B = B0 + sum_j beta_j B_j,   s = alpha / rank
// Koohpayegani et al., "NOLA: Compressing LoRA using Linear Combination of Random Basis", 2024, arXiv 2310.02556.
// The default is the authors' GPT and LLaMA variant: A_i, B_j in U(+-1) / sqrt(k), A0 in U(+-1 / sqrt(in)), B0 = 0, and all
// coefficients 0, so dW = 0 at the start. Their ViT variant (`vit`): no offsets, A_i in U(+-1 / sqrt(in rank)), B_j in
// U(+-1 / sqrt(rank out)), alpha_i = 1/k and beta_j = 1/l: dW is not 0 at the start.
// The matrices are drawn again in `prepare` and in `finish`, once a step each, and never stored unless `cached`.
// Cost: a step 4 rank (k in + l out) FLOPs and as many random numbers by half; a token what LoRA costs. Kept: X and Z as LoRA,
// and F_A, F_B with their gradients.

#include "deltaw/adapters/lora.hpp"
#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/low_rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class Nola : public LowRank<P, B, Act> {
  using Path = LowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::scale_, Path::shape_;

 public:
  using typename Path::Base, typename Path::Context, typename Path::Saved, typename Path::Space;
  static constexpr std::string_view method = "nola";

  struct Options {
    index_t rank = 16;
    double alpha = 1;         ///< s = alpha / rank
    index_t k = 1024;         ///< random matrices that A is made of
    index_t l = 1024;         ///< random matrices that B is made of
    bool vit = false;         ///< the authors' variant for ViT, which is not the base at the start
    bool cached = false;      ///< keep the random matrices: rank (k in + l out) numbers of memory for fewer operations
    double dropout = 0;       ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;   ///< of the random matrices and the dropout masks: part of what a checkpoint means
    std::uint64_t layer = 0;  ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;    ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("k", k), f("l", l), f("vit", vit), f("cached", cached);
      f("dropout", dropout), f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  /// All coefficients are zero: `initialize` sets those of the ViT variant. Throws OptionError or ShapeError.
  Nola(LinearShape shape, Options options)
      : Path("Nola", shape, checked(shape, options)),
        options_(options),
        alpha_("nola_alpha", Role::Coefficient, RankAxis::None, 1, options.k),
        beta_("nola_beta", Role::Coefficient, RankAxis::None, 1, options.l) {
    const auto rank = static_cast<double>(options.rank);
    const auto in = static_cast<double>(shape.in_total()), out = static_cast<double>(shape.out_total());
    const auto columns = static_cast<std::uint64_t>(shape.in_total());
    a_basis_.bases = {key("nola_alpha"), static_cast<std::uint64_t>(shape.shard.in_offset), columns};
    a_basis_.bound = 1 / std::sqrt(options.vit ? in * rank : static_cast<double>(options.k));
    const auto ranks = static_cast<std::uint64_t>(options.rank);
    b_basis_.bases = {key("nola_beta"), static_cast<std::uint64_t>(shape.shard.out_offset) * ranks, ranks};
    b_basis_.bound = 1 / std::sqrt(options.vit ? rank * out : static_cast<double>(options.l));
  }

  static index_t parameter_count(LinearShape, const Options& o) { return o.k + o.l; }

  /// alpha = beta = 0; with `vit` 1/k and 1/l. The random matrices follow `Options::seed`, not this one.
  void initialize(Context& ctx, std::uint64_t) {
    for (auto* p : {&alpha_, &beta_}) {
      B::fill(ctx, p->value.view(), options_.vit ? 1 / static_cast<double>(p->value.cols()) : 0);
      p->changed();
    }
  }

  /// F_A = A0 + sum_i alpha_i A_i, F_B = sum_j beta_j B_j.
  void prepare(Context& ctx, const Base& base) {
    if (!options_.vit) draw_offset(ctx);
    combine(ctx, a_basis_, alpha_, options_.vit ? 0 : 1, a_);
    combine(ctx, b_basis_, beta_, 0, b_);
    Path::prepare(ctx, base);
    prepared_ = version_of(*this);
  }

  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    check_prepared("Nola.forward");
    Path::forward(ctx, base, x, y, saved);
  }
  /// Gradients of F_A and F_B, which `finish` projects.
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_prepared("Nola.backward");
    a_.trained = alpha_.trained;
    b_.trained = beta_.trained;
    Path::backward(ctx, base, x, dy, dx, saved);
  }
  /// dalpha_i += <A_i, dF_A>, dbeta_j += <B_j, dF_B>, for all calls of the step at once; dF_A = dF_B = 0.
  void finish(Context& ctx, const Base&) {
    project(ctx, a_basis_, a_, alpha_);
    project(ctx, b_basis_, b_, beta_);
  }

  void delta_weight(Context& ctx, const Base& base, MatrixView<P, Space> out) const {
    check_prepared("Nola.delta_weight");
    Path::delta_weight(ctx, base, out);
  }
  /// W += s F_B F_A, rounded once.
  template <class W>
  void merge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    check_prepared("Nola.merge");
    Path::merge(ctx, base, w, b);
  }
  /// W -= s F_B F_A: exact only up to rounding.
  template <class W>
  void unmerge(Context& ctx, const Base& base, MatrixView<W, Space> w, MatrixView<W, Space> b = {}) const {
    check_prepared("Nola.unmerge");
    Path::unmerge(ctx, base, w, b);
  }

  /// The same function as a plain LoRA: A = F_A, B = F_B, alpha = s rank. For files that others read.
  Lora<P, B, Act> to_lora(Context& ctx) const {
    check_prepared("Nola.to_lora");
    Lora<P, B, Act> lora(shape_, {.rank = options_.rank,
                                  .alpha = scale_ * static_cast<double>(options_.rank),
                                  .dropout = options_.dropout,
                                  .seed = options_.seed,
                                  .layer = options_.layer,
                                  .any_rank = options_.any_rank});
    lora.for_each_parameter([&](auto& p) {
      B::copy(ctx, (p.role == Role::Down ? a_ : b_).value.view(), p.value.view());
      p.changed();
    });
    return lora;
  }

  /// Differs where the random matrices do: of the numbers that say which they are and of the first that are drawn. Training
  /// states carry it, so that coefficients are not read into other matrices.
  std::uint64_t basis_digest() const {
    RandomKey digest{name_hash(options_.vit ? "nola vit" : "nola")};
    const index_t sizes[] = {options_.rank, options_.k, options_.l, shape_.in_total(), shape_.out_total()};
    for (const index_t n : sizes) digest = digest.fold(static_cast<std::uint64_t>(n));
    const RandomKey keys[] = {a_basis_.bases.key, b_basis_.bases.key, key("A0")};
    for (const RandomKey& drawn : keys) {
      const PhiloxBlock first = drawn.block(0, 0);
      for (int n = 0; n < 4; ++n) digest = digest.fold(first[static_cast<std::size_t>(n)]);
    }
    return digest.value;
  }

  template <class F>
  void for_each_parameter(F&& f) {
    f(alpha_), f(beta_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(alpha_), f(beta_);
  }
  bool reads_input_in_backward() const { return alpha_.trained; }
  const Options& options() const { return options_; }

 private:
  /// The matrices `bound` times U_n, and all their numbers, matrices x elements, where they are cached.
  struct Basis {
    RandomBases bases;
    double bound = 1;
    Tensor<P, Space> numbers;
  };

  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Nola", shape);
    check_low_rank_options("Nola", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    if (o.k < 1) raise_mismatch<OptionError>("Nola", "k", o.k, "1 or more");
    if (o.l < 1) raise_mismatch<OptionError>("Nola", "l", o.l, "1 or more");
    return {.rank = o.rank,
            .scale = o.alpha / static_cast<double>(o.rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer,
            .down = "F_A",
            .up = "F_B"};
  }
  RandomKey key(std::string_view which) const {
    return RandomKey{options_.seed}.fold(options_.layer).fold(name_hash(which));
  }
  void check_prepared(std::string_view where) const {
    if (prepared_ != version_of(*this))
      raise<StaleError>(where, "prepare: got coefficients changed since, want prepare after each change");
  }

  // F_A = A0 in U(-1/sqrt(in), 1/sqrt(in)).
  void draw_offset(Context& ctx) {
    const double bound = 1 / std::sqrt(static_cast<double>(shape_.in_total()));
    B::fill_uniform(ctx, key("A0"), {0, static_cast<std::uint64_t>(shape_.shard.in_offset)}, -bound, bound,
                    a_.value.view());
  }

  // f = keep f + bound sum_n c_n U_n.
  void combine(Context& ctx, Basis& basis, const Parameter<P, Space>& c, double keep, Parameter<P, Space>& f) {
    const auto out = f.value.view();
    if (!options_.cached) return B::random_combine(ctx, basis.bases, basis.bound, c.value.view(), keep, out);
    if (basis.numbers.empty()) draw(ctx, basis, out, c.value.cols());
    B::gemm(ctx, basis.bound, c.value.view(), std::as_const(basis.numbers).view(), keep, as_row(out));
  }
  // dc_n += bound <U_n, df>, df = 0.
  void project(Context& ctx, const Basis& basis, Parameter<P, Space>& f, Parameter<P, Space>& c) {
    const auto df = f.gradient();
    if (c.trained && !options_.cached)
      B::random_project(ctx, basis.bases, basis.bound, df, c.gradient());
    else if (c.trained && !basis.numbers.empty())
      B::gemm(ctx, basis.bound, as_row(df), t(basis.numbers.view()), 1, c.gradient());
    B::fill(ctx, df, 0);
  }
  // All the numbers, matrices x elements, in tiles that do not leave a row of a shard, since its rows do not follow each other
  // in the whole.
  static void draw(Context& ctx, Basis& basis, MatrixView<P, Space> f, index_t count) {
    constexpr index_t tile = 256;
    const auto numbers = basis.numbers.resize(count, f.size());
    const bool whole = basis.bases.row_step == static_cast<std::uint64_t>(f.cols);
    const index_t row = whole ? f.size() : f.cols;
    for (index_t start = 0; start < f.size(); start += row)
      for (index_t j = 0; j < row; j += tile) {
        typename Arena<Space>::Mark mark(ctx.arena);
        const auto part = B::template temp<P>(ctx, std::min(tile, row - j), count);
        B::fill_uniform(ctx, basis.bases.key, {basis.bases.element(start / f.cols, j), 0}, -1, 1, part);
        B::copy_transposed(ctx, part, numbers.col_range(start + j, part.rows));
      }
  }
  static MatrixView<P, Space> as_row(MatrixView<P, Space> m) { return {m.data, 1, m.size()}; }

  Options options_;
  Parameter<P, Space> alpha_, beta_;
  Basis a_basis_, b_basis_;
  std::uint64_t prepared_ = ~std::uint64_t{0};
};

}  // namespace deltaw
