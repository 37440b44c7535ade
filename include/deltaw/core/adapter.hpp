#pragma once
// What an adapter is. Contract of every method:
//   forward   y holds the base's output (bias included) and becomes the adapted output, in place;
//   backward  parameter gradients +=, dx += the adapter's part, dy becomes the gradient of the *base's* output, in place.
// It stands before the base's own dx += dy W. An engine that overwrites dx passes an empty dx to `backward` and calls
// `backward_input` after its product. Accumulating into one adapter is for one thread at a time; forward is const.
// A step is: begin_step, prepare, forward and backward of any number of calls, finish, regularize, optimizer, after_step,
// zero_grad. What a method does not have costs nothing: the free functions of these names then do nothing.

#include <concepts>
#include <span>
#include <string_view>
#include <utility>

#include "deltaw/core/call.hpp"
#include "deltaw/core/parameter.hpp"

namespace deltaw {

template <class Act, class P, class B>
class BaseRef;

namespace detail {
/// Stands for any visitor of parameters inside concepts (a named type: nvcc takes no lambda there).
struct AnyVisitor {
  template <class T>
  void operator()(T&&) const {}
};
}  // namespace detail

template <class A>
concept HasParameters = requires(A& a, const A& c, detail::AnyVisitor f) {
  typename A::Backend;
  a.for_each_parameter(f);
  c.for_each_parameter(f);
};

/// Options, Saved, forward, backward, backward_input, for_each_parameter, shape, reads_input_in_backward. All else is
/// optional and found by `requires`: initialize, attach, prepare, finish, pair, scale, delta_weight, merge, unmerge, check_unmerge,
/// bind_weight, and, static and for all layers of the method together, begin_step, regularize, after_step.
template <class A>
concept Adapter = HasParameters<A> &&
    requires(A& a, const A& c, typename A::Backend::Context& ctx, typename A::Saved& saved,
             const BaseRef<typename A::Activation, typename A::Scalar, typename A::Backend>& base,
             ConstMatrixView<typename A::Activation, typename A::Backend::Space> in,
             MatrixView<typename A::Activation, typename A::Backend::Space> out) {
  { A::method } -> std::convertible_to<std::string_view>;
  { saved.call } -> std::convertible_to<Call>;
  c.forward(ctx, base, in, out, saved);
  a.backward(ctx, base, in, out, out, saved);
  a.backward_input(ctx, base, out, saved);
  { c.shape() } -> std::convertible_to<LinearShape>;
  { c.reads_input_in_backward() } -> std::convertible_to<bool>;
};

/// Once, after the initializer; nothing for methods without the hook.
template <class A, class Context, class Base>
void attach(Context& ctx, A& adapter, const Base& base) {
  if constexpr (requires(const typename A::Base& b) { adapter.attach(ctx, b); })
    adapter.attach(ctx, typename A::Base(base));
}
/// After every change of parameters, before the step's first forward; nothing for methods without the hook.
template <class A, class Context, class Base>
void prepare(Context& ctx, A& adapter, const Base& base) {
  if constexpr (requires(const typename A::Base& b) { adapter.prepare(ctx, b); })
    adapter.prepare(ctx, typename A::Base(base));
}
/// Once a step, before the optimizer: derived gradients become parameter gradients; nothing without the hook.
template <class A, class Context, class Base>
void finish(Context& ctx, A& adapter, const Base& base) {
  if constexpr (requires(const typename A::Base& b) { adapter.finish(ctx, b); })
    adapter.finish(ctx, typename A::Base(base));
}
/// Before the step's `prepare`, for all layers of one method together: which ranks take part in this step.
template <class A>
void begin_step(typename A::Backend::Context& ctx, std::span<A* const> layers, const StepInfo& step) {
  if constexpr (requires { A::begin_step(ctx, layers, step); }) A::begin_step(ctx, layers, step);
}
/// Between `finish` and the optimizer: a method's own penalties add to the gradients and, where `loss` (1 x 1) is given,
/// their value to it.
template <class A>
void regularize(typename A::Backend::Context& ctx, std::span<A* const> layers,
                MatrixView<typename A::Scalar, typename A::Backend::Space> loss = {}) {
  if constexpr (requires { A::regularize(ctx, layers, loss); }) A::regularize(ctx, layers, loss);
}
/// After the optimizer and before `zero_grad`: gates are shrunk, ranks are dropped, moved between layers, or grown. It may
/// wait for the device.
template <class A>
void after_step(typename A::Backend::Context& ctx, std::span<A* const> layers, const StepInfo& step) {
  if constexpr (requires { A::after_step(ctx, layers, step); }) A::after_step(ctx, layers, step);
}
/// Whether the method trains the base's own weight (`bind_weight`): no initializer may touch that.
template <class A>
bool trains_base(const A& adapter) {
  using View = MatrixView<typename A::Activation, typename A::Backend::Space>;
  if constexpr (requires { adapter.trains_base(); }) {
    return adapter.trains_base();
  } else {
    return requires(A & a, typename A::Backend::Context & ctx, View w) { a.bind_weight(ctx, w, w); };
  }
}

/// All gradients to zero.
template <HasParameters A>
void zero_grad(typename A::Backend::Context& ctx, A& parameters) {
  parameters.for_each_parameter([&](auto& p) {
    if (!p.grad.empty()) A::Backend::fill(ctx, p.grad.view(), 0);
  });
}

/// Number of values in parameters that are trained.
template <HasParameters A>
index_t count_trained(const A& parameters) {
  index_t count = 0;
  parameters.for_each_parameter([&](const auto& p) { count += p.trained ? p.value.size() : 0; });
  return count;
}

/// Changes whenever any parameter's value does: the stale check compares it with what `prepare` saw.
template <HasParameters A>
std::uint64_t version_of(const A& parameters) {
  std::uint64_t sum = 0;
  parameters.for_each_parameter([&](const auto& p) { sum += p.version; });
  return sum;
}

/// Whether the caller gave a dx (or an x): a view of no memory and no rows stands for none.
template <class T, class Space>
bool is_given(MatrixView<T, Space> view) {
  return view.data != nullptr || view.rows != 0;
}

/// The checks every public forward and backward begins with, on host data only.
template <class T, class U, class Space>
void check_call(std::string_view where, const LinearShape& shape, MatrixView<T, Space> in, std::string_view in_name,
                MatrixView<U, Space> out, std::string_view out_name) {
  check_view(where, out_name, out, out.rows, shape.out_features, "tokens", "out_features");
  check_view(where, in_name, in, out.rows, shape.in_features, "tokens", "in_features");
  check_no_alias(where, in_name, in, out_name, out);
}

}  // namespace deltaw
