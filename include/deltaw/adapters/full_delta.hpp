#pragma once
// Full fine-tuning as an adapter like the others: dW = dY^T X into a weight that is itself trained, db = colsum(dY).
// The weight is the base's own: the caller's product uses the trained values, so forward adds nothing.
// Cost a token: nothing forward, 2 in out FLOPs backward. Kept for backward: X.

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/adapter.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class FullDelta {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  static constexpr std::string_view method = "full";

  struct Options {
    bool bias = true;  ///< train the base's bias too, where it has one

    template <class F>
    void for_each(F&& f) {
      f("bias", bias);
    }
  };
  struct Saved {
    Call call;
  };

  FullDelta(LinearShape shape, Options options) : shape_(shape), options_(options) { check_shape("FullDelta", shape); }

  /// A copy trains no weight until it is bound: two would train one memory without knowing of each other.
  FullDelta(const FullDelta& other) : FullDelta(other.shape_, other.options_) {}
  FullDelta& operator=(const FullDelta& other) { return *this = FullDelta(other); }
  FullDelta(FullDelta&&) noexcept = default;
  FullDelta& operator=(FullDelta&&) noexcept = default;
  ~FullDelta() = default;

  static index_t parameter_count(LinearShape shape, const Options& o) {
    return shape.out_features * (shape.in_features + (o.bias ? 1 : 0));
  }

  /// Trains the caller's own weight and bias (the bias may be empty). Storage of type P is trained where it lies; 16-bit
  /// storage gets a master copy in P, and `prepare` writes it back rounded.
  template <class W>
  void bind_weight(Context& ctx, MatrixView<W, Space> weight, MatrixView<W, Space> bias) {
    check_view("FullDelta.bind_weight", "weight", weight, shape_.out_features, shape_.in_features, "out_features",
               "in_features");
    if (!bias.empty()) check_view("FullDelta.bind_weight", "bias", bias, 1, shape_.out_features, "1", "out_features");
    stored_weight_ = stored_bias_ = {};
    bind(ctx, weight_, "weight", Role::Weight, weight, stored_weight_);
    has_bias_ = options_.bias && !bias.empty();
    if (has_bias_) bind(ctx, bias_, "bias", Role::Bias, bias, stored_bias_);
  }

  /// 16-bit storage takes the rounded master values; otherwise there is nothing to do.
  void prepare(Context& ctx, const Base&) {
    if (!stored_weight_.empty()) B::copy(ctx, std::as_const(weight_.value).view(), stored_weight_);
    if (!stored_bias_.empty()) B::copy(ctx, std::as_const(bias_.value).view(), stored_bias_);
    prepared_ = version_of(*this);
  }

  void forward(Context&, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved&) const {
    check_bound("FullDelta.forward");
    check_call("FullDelta.forward", shape_, x, "x", y, "y");
    if (!stored_weight_.empty() && prepared_ != version_of(*this))
      raise<StaleError>("FullDelta.forward", "prepare: got parameters changed since, want prepare after each change");
  }

  /// dx gets nothing from here: the caller's own dx += dy W is the whole gradient.
  void backward(Context& ctx, const Base&, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space>, Saved&) {
    check_bound("FullDelta.backward");
    if (weight_.trained) {
      check_call("FullDelta.backward", shape_, x, "x", dy, "dy");
      B::gemm(ctx, 1, t(dy), x, 1, weight_.grad.view());  // dW += dY^T X
    }
    if (has_bias_ && bias_.trained) B::col_sum(ctx, 1, dy, bias_.grad.view());  // db += colsum(dY)
  }
  void backward_input(Context&, const Base&, MatrixView<Act, Space>, Saved&) const {}

  template <class F>
  void for_each_parameter(F&& f) {
    f(weight_);
    if (has_bias_) f(bias_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(weight_);
    if (has_bias_) f(bias_);
  }

  LinearShape shape() const { return shape_; }
  const Options& options() const { return options_; }
  bool reads_input_in_backward() const { return weight_.trained; }

 private:
  template <class W>
  void bind(Context& ctx, Parameter<P, Space>& p, const char* name, Role role, MatrixView<W, Space> memory,
            MatrixView<Act, Space>& stored) {
    p = {};
    p.name = name;
    p.role = role;
    p.grad.resize(memory.rows, memory.cols);
    if constexpr (std::is_same_v<W, P>) {
      p.value.bind(memory);
    } else {
      static_assert(std::is_same_v<W, Act>, "FullDelta trains a weight stored as the parameters or as the activations");
      B::copy(ctx, memory, p.value.resize(memory.rows, memory.cols));
      stored = memory;
    }
    p.changed();
  }
  void check_bound(std::string_view where) const {
    if (weight_.value.empty()) raise<StaleError>(where, "weight: got none, want bind_weight to be called first");
  }

  LinearShape shape_;
  Options options_;
  bool has_bias_ = false;
  std::uint64_t prepared_ = 0;
  Parameter<P, Space> weight_, bias_;
  MatrixView<Act, Space> stored_weight_, stored_bias_;  // 16-bit storage that `prepare` rounds into
};

}  // namespace deltaw
