#pragma once
// An adapter as a user would write one: Y = Y o (1 + g), with the hooks of the lifecycle and no other capability.

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/adapter.hpp"

namespace deltaw_tests {

struct GrowBy {
  template <class X, class Y>
  X operator()(X out, Y gain) const {
    return out * (1 + static_cast<X>(gain));
  }
};

template <class P, class B, class Act = P>
class Gain {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = deltaw::BaseRef<Act, P, B>;
  using In = deltaw::ConstMatrixView<Act, Space>;
  using Out = deltaw::MatrixView<Act, Space>;
  static constexpr std::string_view method = "gain";
  struct Options {};
  struct Saved {
    deltaw::Call call;
    deltaw::Tensor<Act, Space> y;
  };

  int attached = 0, prepared = 0, finished = 0;

  explicit Gain(deltaw::LinearShape shape)
      : shape_(shape), gain_("gain", deltaw::Role::Vector, deltaw::RankAxis::None, 1, shape.out_features) {}

  void attach(Context&, const Base&) { ++attached; }
  void prepare(Context&, const Base&) { ++prepared; }
  void finish(Context&, const Base&) { ++finished; }
  void forward(Context& ctx, const Base&, In, Out y, Saved& saved) const {
    B::copy(ctx, y, saved.y.resize(y.rows, y.cols));
    B::map(ctx, GrowBy{}, y, gain_.value.view());
  }
  void backward(Context& ctx, const Base&, In, Out dy, Out, Saved& saved) {
    B::col_dot(ctx, 1, dy, saved.y.view(), gain_.grad.view());
    B::map(ctx, GrowBy{}, dy, gain_.value.view());
  }
  void backward_input(Context&, const Base&, Out, Saved&) const {}
  template <class F>
  void for_each_parameter(F&& f) {
    f(gain_);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(gain_);
  }
  deltaw::LinearShape shape() const { return shape_; }
  bool reads_input_in_backward() const { return false; }

 private:
  deltaw::LinearShape shape_;
  deltaw::Parameter<P, Space> gain_;
};

}  // namespace deltaw_tests
