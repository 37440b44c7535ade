#pragma once
// A frozen dense weight in the user's memory: float, double, or 16-bit storage.

#include <type_traits>

#include "deltaw/backend/cpu.hpp"
#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/functors.hpp"

namespace deltaw {

/// Y = X W^T + b over borrowed memory: W is out_features x in_features, row-major; b has out_features elements or is null.
/// W may be of another type than the activations (bf16 under float). `const` element types make a base that cannot be
/// merged into.
template <class W, class Bias, class B = Cpu>
class DenseLinear {
 public:
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Storage = std::remove_const_t<W>;

  LinearShape shape;
  MatrixView<W, Space> weight;
  MatrixView<Bias, Space> bias;

  DenseLinear(MatrixView<W, Space> weight_, MatrixView<Bias, Space> bias_, Shard shard = {})
      : shape{weight_.cols, weight_.rows, shard}, weight(weight_), bias(bias_) {
    check_shape("DenseLinear", shape);
    check_view("DenseLinear", "weight", weight, shape.out_features, shape.in_features, "out_features", "in_features");
    if (bias.data != nullptr) check_view("DenseLinear", "bias", bias, 1, shape.out_features, "1", "out_features");
  }

  /// y = x W^T + b.
  template <class X, class Act>
  requires(std::is_same_v<std::remove_const_t<X>, Act>) void forward(Context& ctx, MatrixView<X, Space> x,
                                                                     MatrixView<Act, Space> y) const {
    check_view("DenseLinear.forward", "x", x, y.rows, shape.in_features, "tokens", "in_features");
    check_view("DenseLinear.forward", "y", y, x.rows, shape.out_features, "tokens", "out_features");
    check_no_alias("DenseLinear.forward", "x", x, "y", y);
    if (bias.data != nullptr) B::map(ctx, Assign{}, y, ConstMatrixView<std::remove_const_t<Bias>, Space>(bias));
    B::gemm(ctx, 1, x, t(weight), bias.data != nullptr ? 1 : 0, y);
  }
  /// dx = dy W + keep dx.
  template <class Y, class Act>
  requires(std::is_same_v<std::remove_const_t<Y>, Act>) void backward_input(Context& ctx, MatrixView<Y, Space> dy,
                                                                            MatrixView<Act, Space> dx,
                                                                            double keep = 1) const {
    check_view("DenseLinear.backward_input", "dy", dy, dx.rows, shape.out_features, "tokens", "out_features");
    check_view("DenseLinear.backward_input", "dx", dx, dy.rows, shape.in_features, "tokens", "in_features");
    B::gemm(ctx, 1, dy, weight, keep, dx);
  }

  /// What adapters take. The DenseLinear must outlive it.
  template <class Act, class P>
  operator BaseRef<Act, P, B>() const {
    using BiasValue = std::remove_const_t<Bias>;
    ConstMatrixView<Act, Space> seen;
    if constexpr (std::is_same_v<BiasValue, Act>) {
      seen = bias;
    } else if (bias.data != nullptr) {
      raise<UnsupportedError>("DenseLinear", "bias: got another type than the activations', want the same");
    }
    return {shape, seen, this, &functions<Act, P>};
  }

 private:
  template <class T>
  using Const = ConstMatrixView<T, Space>;
  template <class T>
  using View = MatrixView<T, Space>;

  template <class T>
  static void apply(const void* self, Context& ctx, double alpha, Const<T> x, double beta, View<T> y) {
    B::gemm(ctx, alpha, x, t(static_cast<const DenseLinear*>(self)->weight), beta, y);
  }
  template <class T>
  static void apply_transposed(const void* self, Context& ctx, double alpha, Const<T> dy, double beta, View<T> dx) {
    B::gemm(ctx, alpha, dy, static_cast<const DenseLinear*>(self)->weight, beta, dx);
  }
  template <class T>
  static void row_norms2(const void* self, Context& ctx, View<T> out) {
    const auto w = Const<Storage>(static_cast<const DenseLinear*>(self)->weight);
    B::fill(ctx, out, 0);
    B::row_dot(ctx, 1, w, w, out);
  }

  template <class Act, class P>
  static constexpr BaseFunctions<Act, P, B> functions{apply<Act>, apply_transposed<Act>, apply<P>, apply_transposed<P>,
                                                      row_norms2<P>};
};

/// A view of the user's weight: `dense(W, b, {.in_features = 768, .out_features = 3072})`; `b` may be nullptr.
template <class B = Cpu, class W, class Bias>
DenseLinear<W, Bias, B> dense(W* weight, Bias* bias, LinearShape shape) {
  using Space = typename B::Space;
  check_shape("dense", shape);
  return {MatrixView<W, Space>{weight, shape.out_features, shape.in_features},
          bias == nullptr ? MatrixView<Bias, Space>{} : vector_view<Bias, Space>(bias, shape.out_features),
          shape.shard};
}
template <class B = Cpu, class W>
DenseLinear<W, W, B> dense(W* weight, std::nullptr_t, LinearShape shape) {
  return dense<B>(weight, static_cast<W*>(nullptr), shape);
}

}  // namespace deltaw
