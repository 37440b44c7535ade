#pragma once
// DoRA: Y = b + c o (X W^T + s X A^T B^T), c = m / n, n_o = ||W_o + s (B A)_o||: a trained length m for every row of the
// weight, and LoRA for its direction. With dropout Y = X W^T + b + s Xd A^T B^T + (c - 1) o (Xd W^T + s Xd A^T B^T), Xd = D(X).
// Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv 2402.09353. The default holds n fixed in backward
// (section 4.3 of the paper); `exact_gradient` does not.
// Cost a token: LoRA's, and 8 out values moved in four passes; with dropout a second base product each way.
// Cost a step: 2 rank in out FLOPs for n (twice that with `exact_gradient`). Kept for backward: X, Z and U (tokens x out).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/low_rank.hpp"
#include "deltaw/core/wide_rows.hpp"

namespace deltaw {

namespace dora_detail {

/// sqrt(n^2), n^2 at least `relative` w^2: below that it is rounding, and it may even be negative.
struct Norm {
  double relative;
  template <class X, class Y>
  DELTAW_HD X operator()(X n2, Y w2) const {
    const X least = static_cast<X>(relative) * static_cast<X>(w2);
    return std::sqrt(n2 > least ? n2 : least);
  }
};
/// out = 1 where c = 0 has lost a row of W that was not zero.
struct IsLost {
  template <class X, class C, class N>
  DELTAW_HD X operator()(X, C c, N n) const {
    return static_cast<X>(c) == 0 && static_cast<X>(n) != 0 ? X(1) : X(0);
  }
};

}  // namespace dora_detail

template <class P, class B, class Act = P>
class Dora : public LowRank<P, B, Act> {
  using Path = LowRank<P, B, Act>;
  using Path::a_, Path::b_, Path::dropout_, Path::scale_, Path::shape_;

 public:
  using typename Path::Base, typename Path::Between, typename Path::Context, typename Path::Space;
  static constexpr std::string_view method = "dora";

  struct Options {
    index_t rank = 8;
    double alpha = 8;
    bool rslora = false;          ///< s = alpha / sqrt(rank) instead of alpha / rank
    bool exact_gradient = false;  ///< differentiate n too, which costs a second product of rank rows a step
    double dropout = 0;           ///< probability that an input of the adapter is dropped, while training
    std::uint64_t seed = 0;       ///< of the dropout masks
    std::uint64_t layer = 0;      ///< tells this layer's random numbers from those of others with the same seed
    bool any_rank = false;        ///< allow rank > min(in_features, out_features)

    template <class F>
    void for_each(F&& f) {
      f("rank", rank), f("alpha", alpha), f("rslora", rslora), f("exact_gradient", exact_gradient);
      f("dropout", dropout), f("seed", seed), f("layer", layer), f("any_rank", any_rank);
    }
  };

  struct Saved : Path::Saved {
    Tensor<Act, Space> u;  ///< D(X) W^T + Z B^T (tokens x out)
    Tensor<Act, Space> g;  ///< with dropout: c o dY, then (c - 1) o dY, which waits for `backward_input`
  };

  /// All values are zero: the initializer fills the factors and `attach` the magnitudes. Throws OptionError, ShapeError, or
  /// UnsupportedError for a layer whose inputs lie in several processes.
  Dora(LinearShape shape, Options options)
      : Path("Dora", shape, checked(shape, options)),
        options_(options),
        magnitude_("lora_magnitude_vector", Role::Magnitude, RankAxis::None, 1, shape.out_features),
        h_(1, shape.out_features) {}

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return o.rank * (shape.in_features + shape.out_features) + shape.out_features;
  }

  /// m = n, and ||W_o||^2, which is read here only: call it again (it sets m anew) when the base's values have changed.
  void attach(Context& ctx, const Base& base) {
    base.row_norms2(ctx, w2_.resize(1, shape_.out_features));
    norms(ctx, base);
    B::copy(ctx, n_.view(), magnitude_.value.view());
    magnitude_.changed();
    prepared_ = never;
  }

  /// n and c = m / n of the present values. Not between `merge` and `unmerge`: the base is another one then.
  void prepare(Context& ctx, const Base& base) {
    if (w2_.empty()) raise<StaleError>("Dora.prepare", "attach: got none, want attach before the first prepare");
    Path::prepare(ctx, base);
    norms(ctx, base);
    B::copy(ctx, magnitude_.value.view(), c_.resize(1, shape_.out_features));
    B::map(ctx, Divide{}, c_.view(), n_view());
    prepared_ = version_of(*this);
  }

  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    check_prepared("Dora.forward");
    Path::forward(ctx, base, x, y, saved);  // Y += Z B^T
    auto u = saved.u.resize(y.rows, y.cols);
    if (dropout_.on(saved.call)) {
      scale_dropped(ctx, base, x, y, saved);
    } else if (base.bias.empty()) {
      B::copy(ctx, y, u);                       // U = Y
      B::map(ctx, ScaleAround{}, y, c_view());  // Y += (c - 1) o U
    } else {
      B::map(ctx, Difference{}, u, read(y), base.bias);    // U = Y - b
      B::map(ctx, ScaleAround{}, y, c_view(), base.bias);  // Y += (c - 1) o U, U read from Y
    }
  }

  /// x may be empty where `reads_input_in_backward()` is false; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_prepared("Dora.backward");
    Path::check_backward(x, dy, dx, saved);
    if (reads_output()) {
      B::col_dot(ctx, 1, dy, std::as_const(saved.u).view(), h_.view());  // h += colsum(dY o U)
      pending_ = true;
    }
    if (!dropout_.on(saved.call)) {
      B::map(ctx, Multiply{}, dy, c_view());  // dY <- c o dY, which the base's output gets too
      return Path::backward(ctx, base, x, dy, dx, saved);
    }
    auto g = saved.g.resize(dy.rows, dy.cols);
    const auto given = read(dy);
    B::map(ctx, ScaledProduct{}, g, given, c_view());  // Gc = c o dY
    Path::backward(ctx, base, x, g, dx, saved);
    B::map(ctx, Excess{}, g, c_view(), given);
    if (is_given(dx)) add_dropped_input(ctx, base, dx, saved);
  }

  /// dX += D'(H A), and with dropout D'(((c - 1) o dY) W), after a `backward` that was given no dx.
  void backward_input(Context& ctx, const Base& base, MatrixView<Act, Space> dx, Saved& saved) const {
    Path::backward_input(ctx, base, dx, saved);
    if (dropout_.on(saved.call)) add_dropped_input(ctx, base, dx, saved);
  }

  /// dm += h / n; with `exact_gradient` what n adds to dA and dB. Clears h.
  void finish(Context& ctx, const Base& base) {
    if (!pending_) return;
    check_prepared("Dora.finish");
    B::map(ctx, Divide{}, h_.view(), n_view());
    if (magnitude_.trained) B::map(ctx, Add{}, magnitude_.gradient(), std::as_const(h_).view());
    if (options_.exact_gradient) add_norm_gradients(ctx, base);
    B::fill(ctx, h_.view(), 0);
    pending_ = false;
  }

  /// out = c o (W + s B A) - W, reading W in tiles of rows.
  void delta_weight(Context& ctx, const Base& base, MatrixView<P, Space> out) const {
    check_prepared("Dora.delta_weight");
    check_view("Dora", "out", out, shape_.out_features, shape_.in_features, "out_features", "in_features");
    typename Arena<Space>::Mark mark(ctx.arena);
    const index_t most = std::min(B::tile_rows, out.rows);
    auto identity = B::template temp<P>(ctx, most, out.rows);
    for (index_t first = 0; first < out.rows; first += most) {
      const index_t rows = std::min(most, out.rows - first);
      B::fill(ctx, identity, 0);
      B::fill(ctx, MatrixView<P, Space>(identity.data + first, rows, 1, identity.stride + 1), 1);  // its diagonal
      base.apply_param_transposed(ctx, 1, identity.row_range(0, rows), 0, out.row_range(first, rows));
    }
    auto scaled_up = B::template temp<P>(ctx, out.rows, this->rank());
    B::map(ctx, ScaledProduct{}, scaled_up, b_.value.view(), c_column());
    B::map(ctx, Excess{}, out, c_column(), read(out));
    B::gemm(ctx, scale_, std::as_const(scaled_up), a_.value.view(), 1, out);
  }
  /// W <- c o (W + s B A), rounded once. `b` is left alone: DoRA never scales a bias.
  template <class W>
  void merge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_prepared("Dora.merge");
    check_view("Dora", "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    in_wide_rows<P, B>(ctx, w, [&](auto rows, index_t first) {
      B::gemm(ctx, scale_, b_.value.view().row_range(first, rows.rows), a_.value.view(), 1, rows);
      B::map(ctx, Multiply{}, rows, c_column(first, rows.rows));
    });
  }
  /// W <- W / c - s B A with the c of `merge`: exact only up to rounding. Throws UnsupportedError, with nothing changed,
  /// where c = 0 has lost a row.
  template <class W>
  void unmerge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_unmerge(ctx);
    check_view("Dora", "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    in_wide_rows<P, B>(ctx, w, [&](auto rows, index_t first) {
      B::map(ctx, Divide{}, rows, c_column(first, rows.rows));
      B::gemm(ctx, -scale_, b_.value.view().row_range(first, rows.rows), a_.value.view(), 1, rows);
    });
  }
  /// Throws what `unmerge` would. It waits for the device.
  void check_unmerge(Context& ctx) const {
    check_prepared("Dora.unmerge");
    typename Arena<Space>::Mark mark(ctx.arena);
    auto lost = B::template temp<P>(ctx, 1, shape_.out_features);
    B::map(ctx, dora_detail::IsLost{}, lost, c_view(), n_view());
    if (const double count = B::norm2(ctx, lost); count != 0)
      raise<UnsupportedError>("Dora.unmerge", "lora_magnitude_vector: got 0 in " + std::to_string(std::lround(count)) +
                                                  " rows, which loses those of W, want MergeMode::KeepCopy");
  }

  template <class F>
  void for_each_parameter(F&& f) {
    Path::for_each_parameter(f);
    f(magnitude_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    Path::for_each_parameter(f);
    f(magnitude_);
  }
  deltaw::Pair<P, Space> pair() { return {&a_, &b_, scale_}; }
  const Options& options() const { return options_; }
  /// s at run time. It changes n: call `prepare` afterwards.
  void set_scale(double scale) {
    Path::set_scale(scale);
    prepared_ = never;
  }

 private:
  static constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

  static LowRankOptions checked(const LinearShape& shape, const Options& o) {
    check_shape("Dora", shape);
    check_low_rank_options("Dora", shape, o.rank, o.alpha, o.dropout, o.any_rank);
    if (shape.in_total() != shape.in_features)
      raise_mismatch<UnsupportedError>(
          "Dora", "shape.shard.in_total", shape.in_total(),
          std::to_string(shape.in_features) + ": the length of a row needs all its inputs in one process");
    const auto rank = static_cast<double>(o.rank);
    return {.rank = o.rank,
            .scale = o.alpha / (o.rslora ? std::sqrt(rank) : rank),
            .dropout = o.dropout,
            .seed = o.seed,
            .layer = o.layer};
  }
  void check_prepared(std::string_view where) const {
    if (prepared_ != version_of(*this))
      raise<StaleError>(where, "prepare: got parameters changed since, want prepare after each change");
  }
  // Whether anything trained needs h.
  bool reads_output() const { return magnitude_.trained || (options_.exact_gradient && (a_.trained || b_.trained)); }
  template <class T>
  static ConstMatrixView<T, Space> read(MatrixView<T, Space> view) {
    return view;
  }
  ConstMatrixView<P, Space> c_view() const { return c_.view(); }
  ConstMatrixView<P, Space> n_view() const { return n_.view(); }
  ConstMatrixView<P, Space> c_column() const { return c_column(0, shape_.out_features); }
  ConstMatrixView<P, Space> c_column(index_t first, index_t rows) const { return {c_.view().data + first, rows, 1, 1}; }

  // n_o = ||V_o||, V = W + s B A, without V: n^2 = ||W||^2 + s rowdot(W A^T, B) + s rowdot(V A^T, B), and
  // V A^T = W A^T + s B (A A^T). All is laid out rank x out, since A W^T is the faster of the two ways to multiply.
  void norms(Context& ctx, const Base& base) {
    typename Arena<Space>::Mark mark(ctx.arena);
    const index_t rank = a_.value.rows(), out = shape_.out_features;
    const auto a = std::as_const(a_.value).view();
    auto gram = B::template temp<P>(ctx, rank, rank), up = B::template temp<P>(ctx, rank, out);
    auto va = options_.exact_gradient ? va_.resize(rank, out) : B::template temp<P>(ctx, rank, out);
    auto n = n_.resize(1, out);
    B::gemm(ctx, 1, a, t(a), 0, gram);
    B::copy_transposed(ctx, std::as_const(b_.value).view(), up);
    B::copy(ctx, w2_.view(), n);
    base.apply_param(ctx, 1, a, 0, va);
    B::col_dot(ctx, scale_, va, up, n);
    B::gemm(ctx, scale_, gram, up, 1, va);
    B::col_dot(ctx, scale_, va, up, n);
    B::map(ctx, dora_detail::Norm{std::numeric_limits<P>::epsilon()}, n, std::as_const(w2_).view());
  }

  // U = D(X) W^T + Z B^T, the second base product, and Y += (c - 1) o U, a tile after the other.
  void scale_dropped(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
                     Saved& saved) const {
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      const auto z = std::as_const(saved.z).view().row_range(first, xd.rows);
      const auto u = saved.u.view().row_range(first, xd.rows);
      const auto scale = [&](auto product) {
        B::gemm(ctx, 1, z, t(b_.value.view()), 1, product);
        B::map(ctx, AddExcess{}, y.row_range(first, xd.rows), c_view(), read(product));
      };
      if constexpr (std::is_same_v<typename decltype(xd)::value_type, Act>) {
        base.apply(ctx, 1, xd, 0, u);
        scale(u);
      } else {
        auto product = B::template temp<P>(ctx, u.rows, u.cols);
        base.apply_param(ctx, 1, xd, 0, product);
        scale(product);
        B::copy(ctx, product, u);
      }
    });
  }
  // dX += D'(((c - 1) o dY) W).
  void add_dropped_input(Context& ctx, const Base& base, MatrixView<Act, Space> dx, Saved& saved) const {
    const auto g = read(saved.g.view());
    dropout_.template add_tiles<Between>(ctx, dx, saved.call, [&](MatrixView<Between, Space> product, index_t first) {
      const auto rows = g.row_range(first, product.rows);
      if constexpr (std::is_same_v<Between, Act>) {
        base.apply_transposed(ctx, 1, rows, 0, product);
      } else {
        auto wide = B::template temp<P>(ctx, rows.rows, rows.cols);
        B::copy(ctx, rows, wide);
        base.apply_param_transposed(ctx, 1, wide, 0, product);
      }
    });
    saved.g.resize(0, 0);
  }

  // n's own share, q = h o c / n^2, of which h_ holds h / n: dB -= s q o (V A^T), dA -= s (q o B)^T V.
  void add_norm_gradients(Context& ctx, const Base& base) {
    typename Arena<Space>::Mark mark(ctx.arena);
    const index_t rank = a_.value.rows(), out = shape_.out_features;
    const auto b = std::as_const(b_.value).view();
    B::map(ctx, Multiply{}, h_.view(), c_view());
    B::map(ctx, Divide{}, h_.view(), n_view());
    const auto q = std::as_const(h_).view();
    if (a_.trained) {
      auto up = B::template temp<P>(ctx, rank, out), core = B::template temp<P>(ctx, rank, rank);
      B::copy_transposed(ctx, b, up);
      B::map(ctx, Multiply{}, up, q);
      B::gemm(ctx, 1, up, b, 0, core);
      base.apply_param_transposed(ctx, -scale_, up, 1, a_.gradient());
      B::gemm(ctx, -scale_ * scale_, core, std::as_const(a_.value).view(), 1, a_.gradient());
    }
    if (b_.trained) {
      auto va = B::template temp<P>(ctx, out, rank);
      B::copy_transposed(ctx, std::as_const(va_).view(), va);
      B::map(ctx, Multiply{}, va, ConstMatrixView<P, Space>(q.data, out, 1, 1));
      B::map(ctx, AddScaled{-scale_}, b_.gradient(), read(va));
    }
  }

  Options options_;
  Parameter<P, Space> magnitude_;
  Tensor<P, Space> w2_, n_, c_;  // ||W||^2, n and c = m / n of the present values (1 x out)
  Tensor<P, Space> h_;           // colsum(dY o U) of the calls since the last `finish`
  Tensor<P, Space> va_;          // (V A^T)^T, for the exact gradient
  std::uint64_t prepared_ = never;
  bool pending_ = false;
};

}  // namespace deltaw
