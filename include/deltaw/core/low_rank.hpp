#pragma once
// The path that low-rank methods share: Y += s M(D(X) A^T) B^T, with A rank x in, B out x rank, and M what a method puts
// between its factors: nothing (LoRA), one number a rank (gates, masks, singular values), or a rank x rank core.
//   forward   Z = D(X) A^T,  V = s M(Z),  Y += V B^T
//   backward  dB += dY^T V,  H = s M'(dY B),  dX += D'(H A),  dA += H^T D(X)
// Cost a token: 2 rank (in + out) FLOPs forward, 4 rank (in + out) backward, and M's. Kept for backward: Z, and X where A
// is trained. A method derives from it, adds its options and hooks, and is an Adapter.

#include <algorithm>
#include <cmath>
#include <string_view>
#include <type_traits>
#include <utility>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/dropout.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/core/options.hpp"

namespace deltaw {

/// What a method tells its path. A factor that is not trained is saved with the rest but has no gradient.
struct LowRankOptions {
  index_t rank = 8;
  double scale = 1;
  double dropout = 0;
  std::uint64_t seed = 0, layer = 0;
  const char* down = "lora_A.weight";
  const char* up = "lora_B.weight";
  const char* middle = "";  ///< name of the gate or core
  Role gate_role = Role::Gate;
  bool train_down = true, train_up = true;
};

/// M = 1.
template <class P, class B>
struct NoMiddle {
  static constexpr bool exists = false;
  explicit NoMiddle(const LowRankOptions&) {}
};

/// M(Z) = Z o g, g one number a rank (1 x rank).
template <class P, class B>
struct Gate {
  static constexpr bool exists = true;
  using Space = typename B::Space;
  using Context = typename B::Context;
  Parameter<P, Space> parameter;

  explicit Gate(const LowRankOptions& o) : parameter(o.middle, o.gate_role, RankAxis::Cols, 1, o.rank) {}

  /// v = s z o g.
  template <class T>
  void forward(Context& ctx, double scale, ConstMatrixView<T, Space> z, MatrixView<T, Space> v) const {
    B::map(ctx, ScaledProduct{scale}, v, z, parameter.value.view().col_range(0, z.cols));
  }
  /// dg += s colsum(dv o z), dz = s dv o g.
  template <class T>
  void backward(Context& ctx, double scale, ConstMatrixView<T, Space> z, ConstMatrixView<T, Space> dv,
                MatrixView<T, Space> dz) {
    if (parameter.trained) {
      const Window w = trained_ranks(parameter, z.cols);
      B::col_dot(ctx, scale, dv.col_range(w.first, w.count), z.col_range(w.first, w.count),
                 parameter.gradient().col_range(w.first, w.count));
    }
    B::map(ctx, ScaledProduct{scale}, dz, dv, std::as_const(parameter.value).view().col_range(0, z.cols));
  }
  /// out = s diag(g) a.
  template <class T>
  void apply(Context& ctx, double scale, ConstMatrixView<T, Space> a, MatrixView<T, Space> out) const {
    const ConstMatrixView<P, Space> column(parameter.value.view().data, a.rows, 1, 1);
    B::map(ctx, ScaledProduct{scale}, out, a, column);
  }
};

/// M(Z) = Z R^T, R rank x rank.
template <class P, class B>
struct Core {
  static constexpr bool exists = true;
  using Space = typename B::Space;
  using Context = typename B::Context;
  Parameter<P, Space> parameter;

  explicit Core(const LowRankOptions& o) : parameter(o.middle, Role::Core, RankAxis::Both, o.rank, o.rank) {}

  /// v = s z R^T.
  template <class T>
  void forward(Context& ctx, double scale, ConstMatrixView<T, Space> z, MatrixView<T, Space> v) const {
    B::gemm(ctx, scale, z, t(parameter.value.view()), 0, v);
  }
  /// dR += s dv^T z, dz = s dv R.
  template <class T>
  void backward(Context& ctx, double scale, ConstMatrixView<T, Space> z, ConstMatrixView<T, Space> dv,
                MatrixView<T, Space> dz) {
    if (parameter.trained) B::gemm(ctx, scale, t(dv), z, 1, parameter.gradient());
    B::gemm(ctx, scale, dv, std::as_const(parameter.value).view(), 0, dz);
  }
  /// out = s R a.
  template <class T>
  void apply(Context& ctx, double scale, ConstMatrixView<T, Space> a, MatrixView<T, Space> out) const {
    B::gemm(ctx, scale, parameter.value.view(), a, 0, out);
  }
};

template <class P, class B, class Act = P, template <class, class> class Middle = NoMiddle>
class LowRank {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Between = typename B::template Intermediate<P, Act>;

  /// What backward needs of one forward. Reuse one object a call from step to step: it then allocates nothing.
  struct Saved {
    Call call;
    Tensor<Between, Space> z;  ///< D(X) A^T (tokens x rank), times s where nothing lies between the factors
    Tensor<Between, Space> h;  ///< s M'(dY B), kept only between a `backward` without dx and its `backward_input`
  };

  /// Rounds A and B once a step where the backend's products want 16-bit operands. Left out, each call rounds them: the
  /// same bits, more launches. A captured graph must hold it if any step does.
  void prepare(Context& ctx, const Base&) {
    if constexpr (rounds) {
      a_rounded_.update(ctx, a_);
      b_rounded_.update(ctx, b_);
    }
  }

  void forward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved& saved) const {
    check_call(name_, shape_, x, "x", y, "y");
    typename Arena<Space>::Mark mark(ctx.arena);
    const auto a = factor_of(ctx, a_, a_rounded_).row_range(0, active_);
    const auto b = factor_of(ctx, b_, b_rounded_).col_range(0, active_);
    auto z = saved.z.resize(x.rows, active_);
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      B::gemm(ctx, outer_scale(), xd, t(a), 0, z.row_range(first, xd.rows));  // Z = D(X) A^T
    });
    B::gemm(ctx, 1, between(ctx, z), t(b), 1, y);  // Y += V B^T
  }

  /// x may be empty where `reads_input_in_backward()` is false; dx may be empty, see core/adapter.hpp.
  void backward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    check_backward(x, dy, dx, saved);
    typename Arena<Space>::Mark mark(ctx.arena);
    const auto b = factor_of(ctx, b_, b_rounded_).col_range(0, active_);
    auto h = !is_given(dx) ? saved.h.resize(dy.rows, active_) : B::template temp<Between>(ctx, dy.rows, active_);
    const auto z = std::as_const(saved.z).view();
    if (const Window w = trained_ranks(b_, active_); b_.trained && w.count > 0) {
      typename Arena<Space>::Mark v_mark(ctx.arena);  // V is not needed longer
      const auto v = between(ctx, z).col_range(w.first, w.count);
      B::gemm(ctx, 1, t(dy), v, 1, b_.gradient().col_range(w.first, w.count));  // dB += dY^T V
    }
    if constexpr (middle_exists) {
      auto dv = B::template temp<Between>(ctx, dy.rows, active_);
      B::gemm(ctx, 1, dy, b, 0, dv);
      middle_.backward(ctx, scale_, z, ConstMatrixView<Between, Space>(dv), h);
    } else {
      B::gemm(ctx, scale_, dy, b, 0, h);  // H = s M'(dY B)
    }
    if (is_given(dx)) {
      add_input_gradient(ctx, h, dx, saved.call);
      saved.h.resize(0, 0);
    }
    if (!a_.trained) return;
    const Window w = trained_ranks(a_, active_);
    dropout_.for_each_tile(ctx, x, saved.call, [&](auto xd, index_t first) {
      const auto part = h.row_range(first, xd.rows).col_range(w.first, w.count);
      B::gemm(ctx, 1, t(part), xd, 1, a_.gradient().row_range(w.first, w.count));  // dA += H^T D(X)
    });
  }

  /// dX += D'(H A), after a `backward` that was given no dx.
  void backward_input(Context& ctx, const Base&, MatrixView<Act, Space> dx, Saved& saved) const {
    if (saved.h.empty() && !dx.empty())
      raise<StaleError>(name_, "saved.h: got none, want a backward without dx just before backward_input");
    check_view(name_, "dx", dx, saved.h.rows(), shape_.in_features, "tokens", "in_features");
    typename Arena<Space>::Mark mark(ctx.arena);
    add_input_gradient(ctx, std::as_const(saved.h).view(), dx, saved.call);
    saved.h.resize(0, 0);
  }

  /// out = s B M A.
  void delta_weight(Context& ctx, const Base&, MatrixView<P, Space> out) const {
    check_view(name_, "out", out, shape_.out_features, shape_.in_features, "out_features", "in_features");
    add_delta(ctx, 1, 0, out);
  }
  /// W += s B M A, rounded once. `b` is left alone.
  template <class W>
  void merge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_view(name_, "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    add_delta(ctx, 1, 1, w);
  }
  /// W -= s B M A: exact only up to rounding. Keep a copy of W where the very bits must come back.
  template <class W>
  void unmerge(Context& ctx, const Base&, MatrixView<W, Space> w, MatrixView<W, Space> = {}) const {
    check_view(name_, "w", w, shape_.out_features, shape_.in_features, "out_features", "in_features");
    add_delta(ctx, -1, 1, w);
  }

  /// down = M A, up = B of the ranks that take part, so that dW = s up down.
  void copy_factors(Context& ctx, MatrixView<P, Space> down_out, MatrixView<P, Space> up_out) const {
    if constexpr (middle_exists) {
      middle_.apply(ctx, 1, down(), down_out);
    } else {
      B::copy(ctx, down(), down_out);
    }
    B::copy(ctx, up(), up_out);
  }

  template <class F>
  void for_each_parameter(F&& f) {
    visit(*this, f);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    visit(*this, f);
  }

  LinearShape shape() const { return shape_; }
  /// Ranks that take part.
  index_t rank() const { return active_; }
  /// All ranks take part after `resize_rank`.
  void rank_resized() { active_ = a_.value.rows(); }
  bool reads_input_in_backward() const { return a_.trained; }
  double scale() const { return scale_; }
  /// s at run time: how much of the adapter is felt.
  void set_scale(double scale) {
    if (!std::isfinite(scale)) raise_mismatch<OptionError>(name_, "scale", scale, "a finite number");
    scale_ = scale;
  }

 protected:
  static constexpr bool rounds = !std::is_same_v<Between, P>;
  /// A parameter in the type of the products, and which version of it.
  struct Rounded {
    Tensor<Between, Space> value;
    std::uint64_t version = 0;

    bool is_of(const Parameter<P, Space>& p) const { return !value.empty() && version == p.version; }
    void update(Context& ctx, const Parameter<P, Space>& p) {
      B::copy(ctx, p.value.view(), value.resize(p.value.rows(), p.value.cols()));
      version = p.version;
    }
  };
  static constexpr bool middle_exists = Middle<P, B>::exists;

  /// `name` stands in messages and must outlive the adapter. All values are zero: let an initializer fill them.
  LowRank(std::string_view name, LinearShape shape, const LowRankOptions& o)
      : name_(name),
        shape_(shape),
        scale_(o.scale),
        active_(o.rank),
        a_(factor(o.train_down, o.down, Role::Down, RankAxis::Rows, o.rank, shape.in_features)),
        b_(factor(o.train_up, o.up, Role::Up, RankAxis::Cols, shape.out_features, o.rank)),
        middle_(o),
        dropout_(o.dropout, o.seed, o.layer, shape) {}

  // A and B of the ranks that take part, as the optimizer has them.
  auto down() const { return a_.value.view().row_range(0, active_); }
  auto up() const { return b_.value.view().col_range(0, active_); }

  /// What `backward` checks first, for methods that have something to do before it.
  void check_backward(ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy, MatrixView<Act, Space> dx,
                      const Saved& saved) const {
    check_view(name_, "dy", dy, saved.z.rows(), shape_.out_features, "tokens of the forward", "out_features");
    if (a_.trained) check_call(name_, shape_, x, "x", dy, "dy");
    if (is_given(dx)) check_call(name_, shape_, dx, "dx", dy, "dy");
    if (is_given(dx) && a_.trained) check_no_alias(name_, "x", x, "dx", dx);
  }

  std::string_view name_;
  LinearShape shape_;
  double scale_ = 1;
  index_t active_ = 0;
  Parameter<P, Space> a_, b_;
  Middle<P, B> middle_;
  InputDropout<P, B, Act> dropout_;
  Rounded a_rounded_, b_rounded_;

 private:
  static Parameter<P, Space> factor(bool trained, const char* name, Role role, RankAxis axis, index_t rows,
                                    index_t cols) {
    return trained ? Parameter<P, Space>(name, role, axis, rows, cols)
                   : Parameter<P, Space>::frozen(name, role, axis, rows, cols);
  }
  double outer_scale() const { return middle_exists ? 1 : scale_; }

  // A factor in the type of the products: as `prepare` has rounded it, or, where it has changed since, rounded now.
  static ConstMatrixView<Between, Space> factor_of(Context& ctx, const Parameter<P, Space>& p, const Rounded& rounded) {
    if constexpr (rounds) {
      if (rounded.is_of(p)) return rounded.value.view();
      auto now = B::template temp<Between>(ctx, p.value.rows(), p.value.cols());
      B::copy(ctx, p.value.view(), now);
      return now;
    } else {
      return p.value.view();
    }
  }
  // dX += D'(H A).
  void add_input_gradient(Context& ctx, ConstMatrixView<Between, Space> h, MatrixView<Act, Space> dx,
                          const Call& call) const {
    dropout_.add_product(ctx, h, factor_of(ctx, a_, a_rounded_).row_range(0, active_), dx, call);
  }

  // V = s M(Z), in the arena; Z itself where nothing lies between, since it has the scale already.
  ConstMatrixView<Between, Space> between(Context& ctx, ConstMatrixView<Between, Space> z) const {
    if constexpr (middle_exists) {
      auto v = B::template temp<Between>(ctx, z.rows, z.cols);
      middle_.forward(ctx, scale_, z, v);
      return v;
    } else {
      return z;
    }
  }

  // w = keep w + sign s B M A.
  template <class W>
  void add_delta(Context& ctx, double sign, double keep, MatrixView<W, Space> w) const {
    if constexpr (middle_exists) {
      typename Arena<Space>::Mark mark(ctx.arena);
      auto ma = B::template temp<P>(ctx, active_, shape_.in_features);
      middle_.apply(ctx, sign * scale_, down(), ma);
      B::gemm(ctx, 1, up(), std::as_const(ma), keep, w);
    } else {
      B::gemm(ctx, sign * scale_, up(), down(), keep, w);
    }
  }

  template <class Self, class F>
  static void visit(Self& self, F& f) {
    f(self.a_), f(self.b_);
    if constexpr (middle_exists) f(self.middle_.parameter);
  }
};

}  // namespace deltaw
