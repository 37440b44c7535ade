#pragma once
// The frozen weight as an adapter sees it: one concrete, non-owning type, whatever the base is made of.

#include <string>
#include <string_view>

#include "deltaw/core/call.hpp"

namespace deltaw {

/// What a base can do. A callback base fills in what it has; calling an absent entry throws and names it.
/// `self` is handed back to every function.
template <class Act, class P, class B>
struct BaseFunctions {
  using Context = typename B::Context;
  template <class T>
  using Const = ConstMatrixView<T, typename B::Space>;
  template <class T>
  using View = MatrixView<T, typename B::Space>;

  /// y = alpha x W^T + beta y, without bias, on activations.
  void (*apply)(const void* self, Context&, double alpha, Const<Act> x, double beta, View<Act> y) = nullptr;
  /// dx = alpha dy W + beta dx, on activations.
  void (*apply_transposed)(const void* self, Context&, double alpha, Const<Act> dy, double beta,
                           View<Act> dx) = nullptr;
  /// p = alpha a W^T + beta p, in the precision of parameters.
  void (*apply_param)(const void* self, Context&, double alpha, Const<P> a, double beta, View<P> p) = nullptr;
  /// p = alpha g W + beta p, in the precision of parameters.
  void (*apply_param_transposed)(const void* self, Context&, double alpha, Const<P> g, double beta,
                                 View<P> p) = nullptr;
  /// out_i = ||W_i||^2 (out: one row of out_features).
  void (*row_norms2)(const void* self, Context&, View<P> out) = nullptr;
};

template <class Act, class P, class B>
class BaseRef {
 public:
  using Functions = BaseFunctions<Act, P, B>;
  using Context = typename B::Context;
  template <class T>
  using Const = ConstMatrixView<T, typename B::Space>;
  template <class T>
  using View = MatrixView<T, typename B::Space>;

  LinearShape shape;
  Const<Act> bias;  ///< one row of out_features, or empty

  BaseRef() = default;
  /// `self` and `functions` are borrowed and must outlive every use.
  BaseRef(LinearShape shape_, Const<Act> bias_, const void* self, const Functions* functions)
      : shape(shape_), bias(bias_), self_(self), functions_(functions) {}

  void apply(Context& ctx, double alpha, Const<Act> x, double beta, View<Act> y) const {
    entry(&Functions::apply, "apply")(self_, ctx, alpha, x, beta, y);
  }
  void apply_transposed(Context& ctx, double alpha, Const<Act> dy, double beta, View<Act> dx) const {
    entry(&Functions::apply_transposed, "apply_transposed")(self_, ctx, alpha, dy, beta, dx);
  }
  void apply_param(Context& ctx, double alpha, Const<P> a, double beta, View<P> p) const {
    entry(&Functions::apply_param, "apply_param")(self_, ctx, alpha, a, beta, p);
  }
  void apply_param_transposed(Context& ctx, double alpha, Const<P> g, double beta, View<P> p) const {
    entry(&Functions::apply_param_transposed, "apply_param_transposed")(self_, ctx, alpha, g, beta, p);
  }
  void row_norms2(Context& ctx, View<P> out) const { entry(&Functions::row_norms2, "row_norms2")(self_, ctx, out); }

 private:
  template <class F>
  F entry(F Functions::*member, std::string_view name) const {
    if (functions_ == nullptr || functions_->*member == nullptr)
      raise<UnsupportedError>("BaseRef", std::string("entry '").append(name).append(
                                             "': got a base without it, want a base that offers it (a DenseLinear has "
                                             "all; a callback base must fill it in)"));
    return functions_->*member;
  }

  const void* self_ = nullptr;
  const Functions* functions_ = nullptr;
};

}  // namespace deltaw
