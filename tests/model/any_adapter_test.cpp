#include <string>
#include <type_traits>
#include <utility>

#include "catch.hpp"
#include "deltaw/adapters/full_delta.hpp"
#include "deltaw/init/kaiming.hpp"
#include "deltaw/model/adapted_linear.hpp"
#include "deltaw/model/any_adapter.hpp"
#include "gain.hpp"
#include "message.hpp"
#include "problem.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::Cpu;

namespace {

template <class A>
using Any = dw::AnyAdapter<typename A::Scalar, typename A::Backend, typename A::Activation>;

// Everything that a step of `adapter` writes, as bits: outputs, gradients, parameters.
template <class A, class Act>
std::string bits_of_a_step(A adapter, LinearProblem<Act> p, bool with_dx) {
  using P = typename A::Scalar;
  const auto dense = p.dense();
  const dw::BaseRef<Act, P, Cpu> base = dense;
  if constexpr (requires { adapter.bind_weight(p.ctx, dense.weight, dense.bias); })
    if (adapter.trains_base()) adapter.bind_weight(p.ctx, dense.weight, dense.bias);
  typename A::Saved saved;
  saved.call = {.training = true, .step = 5, .micro_batch = 2, .first_row = 3};
  dw::attach(p.ctx, adapter, base);
  dw::prepare(p.ctx, adapter, base);
  for (int call = 0; call < 2; ++call) {
    adapter.forward(p.ctx, base, p.x.view(), p.y.view(), saved);
    adapter.backward(p.ctx, base, p.x.view(), p.dy.view(), with_dx ? p.dx.view() : dw::MatrixView<Act>{}, saved);
    if (!with_dx) adapter.backward_input(p.ctx, base, p.dx.view(), saved);
  }
  dw::finish(p.ctx, adapter, base);
  CHECK(p.intact());
  return p.y.bits() + p.dy.bits() + p.dx.bits() + p.w.bits() + p.bias.bits() + parameter_bits(adapter);
}

// FullDelta under the same calls: a typed one has no `trains_base`, so it is told.
template <class P, class Act>
struct TypedFull : dw::FullDelta<P, Cpu, Act> {
  using dw::FullDelta<P, Cpu, Act>::FullDelta;
  bool trains_base() const { return true; }
};

template <class P, class Act>
void check_lora() {
  using Lora = dw::Lora<P, Cpu, Act>;
  const auto lora =
      randomized(Lora(shape, {.rank = 3, .alpha = 5, .rslora = true, .bias = true, .dropout = 0.4, .seed = 3}), 7);
  for (const bool with_dx : {true, false})
    CHECK(bits_of_a_step(lora, LinearProblem<Act>(), with_dx) ==
          bits_of_a_step(Any<Lora>(lora), LinearProblem<Act>(), with_dx));
}

template <class P, class Act>
void check_full() {
  const TypedFull<P, Act> typed(shape, {});
  const dw::AnyAdapter<P, Cpu, Act> erased(dw::FullDelta<P, Cpu, Act>(shape, {}));
  CHECK(bits_of_a_step(typed, LinearProblem<Act>(), true) == bits_of_a_step(erased, LinearProblem<Act>(), true));
}

using Lora = dw::Lora<double, Cpu>;
using AnyDouble = dw::AnyAdapter<double, Cpu>;

}  // namespace

TEST_CASE("AnyAdapter: erased steps equal typed ones to the bit") {
  check_lora<double, double>();
  check_lora<float, float>();
  check_lora<float, bf16>();
  check_full<double, double>();
  check_full<float, float>();
  check_full<float, bf16>();
  const auto gain = randomized(Gain<float, Cpu>(shape), 3);
  CHECK(bits_of_a_step(gain, LinearProblem<float>(), true) ==
        bits_of_a_step(Any<Gain<float, Cpu>>(gain), LinearProblem<float>(), true));
}

TEST_CASE("AnyAdapter: an initializer gives it the numbers that it gives the typed adapter") {
  LinearProblem<double> p;
  const auto dense = p.dense();
  Lora lora(shape, {.rank = 2, .layer = 12});
  AnyDouble any(lora), other(Lora(shape, {.rank = 2, .layer = 13}));
  const dw::init::Kaiming kaiming{.seed = 5};
  kaiming(p.ctx, lora, dense), kaiming(p.ctx, any, dense), kaiming(p.ctx, other, dense);
  CHECK(parameter_bits(any) == parameter_bits(lora));
  CHECK(parameter_bits(any) != parameter_bits(other));
  CHECK(any.layer() == 12);
  CHECK(AnyDouble(Gain<double, Cpu>(shape)).layer() == 0);
}

TEST_CASE("AnyAdapter: it is itself an adapter, and never wraps itself") {
  STATIC_REQUIRE(dw::Adapter<AnyDouble>);
  STATIC_REQUIRE(dw::Adapter<Gain<double, Cpu>>);
  STATIC_REQUIRE_FALSE(dw::Adapter<int>);
  const AnyDouble inner(Lora(shape, {.rank = 2}));
  const AnyDouble outer(inner);
  CHECK(outer.method_name() == "lora");
}

TEST_CASE("AnyAdapter: every hook and capability reaches the typed adapter") {
  LinearProblem<double> p;
  const auto dense = p.dense();
  const auto lora = randomized(Lora(shape, {.rank = 2, .alpha = 3, .bias = true}), 4);
  AnyDouble any(lora);
  CHECK(any.method_name() == "lora");
  CHECK(any.shape().out_features == out_features);
  CHECK(any.can_merge());
  CHECK(any.can_scale());
  CHECK_FALSE(any.trains_base());
  CHECK(any.reads_input_in_backward());
  CHECK(any.scale() == 1.5);

  REQUIRE(any.pair().has_value());
  CHECK(any.pair()->up->name == "lora_B.weight");
  any.pair()->down->trained = false;
  CHECK_FALSE(any.reads_input_in_backward());

  dw::Tensor<double> typed_delta(out_features, in_features), erased_delta(out_features, in_features);
  lora.delta_weight(p.ctx, dense, typed_delta.view());
  any.delta_weight(p.ctx, dense, erased_delta.view());
  for (index_t i = 0; i < out_features; ++i)
    for (index_t j = 0; j < in_features; ++j) CHECK(typed_delta.view()(i, j) == erased_delta.view()(i, j));

  LinearProblem<double> q;
  lora.merge(p.ctx, dense, p.w.view(), p.bias.view());
  any.merge(q.ctx, dense, q.w.view(), q.bias.view());
  CHECK(p.w.bits() == q.w.bits());
  CHECK(p.bias.bits() == q.bias.bits());
  lora.unmerge(p.ctx, dense, p.w.view(), p.bias.view());
  any.unmerge(q.ctx, dense, q.w.view(), q.bias.view());
  CHECK(p.w.bits() == q.w.bits());
  CHECK(p.bias.bits() == q.bias.bits());

  any.set_scale(0.25);
  CHECK(any.get<Lora>()->scale() == 0.25);
  CHECK(any.get<dw::FullDelta<double, Cpu>>() == nullptr);
  CHECK(std::as_const(any).get<Lora>()->options().rank == 2);
}

TEST_CASE("AnyAdapter: the lifecycle reaches a user's adapter, and what it lacks is named") {
  LinearProblem<double> p;
  const auto dense = p.dense();
  AnyDouble any{Gain<double, Cpu>(shape)};
  dw::attach(p.ctx, any, dense);
  dw::prepare(p.ctx, any, dense), dw::prepare(p.ctx, any, dense);
  dw::finish(p.ctx, any, dense), dw::finish(p.ctx, any, dense), dw::finish(p.ctx, any, dense);
  const auto* gain = any.get<Gain<double, Cpu>>();
  REQUIRE(gain != nullptr);
  CHECK(gain->attached == 1);
  CHECK(gain->prepared == 2);
  CHECK(gain->finished == 3);

  CHECK_FALSE(any.can_merge());
  CHECK_FALSE(any.can_scale());
  CHECK_FALSE(any.trains_base());
  CHECK_FALSE(any.pair().has_value());
  const auto check = [](const std::string& member, auto call) {
    CHECK(message_of<dw::UnsupportedError>(call) ==
          "AnyAdapter: " + member + ": got method 'gain', which has none, want a method that offers it");
  };
  dw::Tensor<double> delta(out_features, in_features);
  check("scale", [&] { any.scale(); });
  check("set_scale", [&] { any.set_scale(2); });
  check("delta_weight", [&] { any.delta_weight(p.ctx, dense, delta.view()); });
  check("merge", [&] { any.merge(p.ctx, dense, p.w.view()); });
  check("unmerge", [&] { any.unmerge(p.ctx, dense, p.w.view()); });
  check("bind_weight", [&] { any.bind_weight(p.ctx, p.w.view(), p.bias.view()); });

  dw::AdaptedLinear<double, Cpu> layer(p.dense());
  layer.add(p.ctx, "mine", any);
  CHECK(message_of<dw::UnsupportedError>([&] { layer.merge(p.ctx, dw::MergeMode::KeepCopy); }) ==
        "AdaptedLinear.merge: adapter 'mine': got method 'gain', which cannot be merged, want one that can");
}

TEST_CASE("AnyAdapter: copies are their own, moves hand on") {
  AnyDouble any(randomized(Lora(shape, {.rank = 2}), 4));
  const std::string before = parameter_bits(any);
  AnyDouble copy = any;
  randomize(copy, 5);
  copy.set_scale(7);
  CHECK(parameter_bits(any) == before);
  CHECK(any.scale() == 4);

  AnyDouble other{Gain<double, Cpu>(shape)};
  other = any;
  CHECK(other.method_name() == "lora");
  CHECK(parameter_bits(other) == before);
  auto& same = other;
  other = same;
  CHECK(parameter_bits(other) == before);

  const auto* address = any.get<Lora>();
  const AnyDouble moved = std::move(any);
  CHECK(moved.get<Lora>() == address);
}

TEST_CASE("AnyAdapter: one Saved serves other types, one after the other, and is never shared") {
  STATIC_REQUIRE(std::is_move_constructible_v<AnyDouble::Saved>);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<AnyDouble::Saved>);
  LinearProblem<double> p;
  const auto dense = p.dense();
  AnyDouble lora(randomized(Lora(shape, {.rank = 2}), 4)), gain(randomized(Gain<double, Cpu>(shape), 5));
  AnyDouble::Saved mixed, fresh;
  const void* of_lora = nullptr;
  for (int round = 0; round < 3; ++round) {
    AnyDouble& any = round == 1 ? gain : lora;
    LinearProblem<double> a, b;
    any.forward(p.ctx, dense, a.x.view(), a.y.view(), mixed);
    any.backward(p.ctx, dense, a.x.view(), a.dy.view(), a.dx.view(), mixed);
    fresh = {};
    if (round == 0) of_lora = mixed.type;
    CHECK((mixed.type == of_lora) == (round != 1));  // so it holds what this adapter keeps, not what the last one did
    any.forward(p.ctx, dense, b.x.view(), b.y.view(), fresh);
    any.backward(p.ctx, dense, b.x.view(), b.dy.view(), b.dx.view(), fresh);
    CHECK(a.y.bits() == b.y.bits());
    CHECK(a.dy.bits() == b.dy.bits());
    CHECK(a.dx.bits() == b.dx.bits());
  }
}

TEST_CASE("AnyAdapter: the parameters are those of the typed adapter, constant where it is") {
  const AnyDouble any(Lora(shape, {.rank = 2, .bias = true}));
  std::string names;
  any.for_each_parameter([&](const auto& p) {
    STATIC_REQUIRE(std::is_const_v<std::remove_reference_t<decltype(p)>>);
    names += p.name + " ";
  });
  CHECK(names == "lora_A.weight lora_B.weight lora_B.bias ");
  CHECK(dw::count_trained(any) == 2 * (in_features + out_features) + out_features);
}
