#pragma once
// The conformance suite: what every row of tests/adapters.hpp passes, on every backend and scalar.

#include <tuple>

#include "catch.hpp"
#include "problem.hpp"
#include "wrapped_backend.hpp"

namespace deltaw_tests {

/// f(Problem) for every row, option set, and base with and without bias, at the given sizes.
template <class P, class B, class Act, class F>
void for_each_problem(Sizes sizes, F f) {
  for (const auto& row : all_cases<P, B, Act>())
    for (bool base_bias : {true, false}) {
      INFO(row.method << ", " << row.label << ", base bias " << base_bias);
      sizes.base_bias = base_bias;
      Problem<P, B, Act> problem(sizes, row);
      f(problem);
    }
}

template <class Act>
constexpr double forward_tolerance() {
  if constexpr (std::is_same_v<Act, double>) return 1e-12;
  if constexpr (std::is_same_v<Act, float>) return 1e-5;
  if constexpr (std::is_same_v<Act, dw::bf16>) return 0x1p-7;
  return 0x1p-10;
}

template <class P, class B, class Act = P>
void forward_equals_oracle() {
  for (const Sizes sizes : {Sizes{5, 7, 6}, Sizes{1, 9, 5}, Sizes{17, 4, 33}, Sizes{300, 5, 4}, Sizes{0, 5, 4}})
    for_each_problem<P, B, Act>(sizes, [&](auto& problem) {
      for (bool training : {true, false}) {
        problem.saved.call.training = training;
        problem.forward();
        const double error = relative_error(problem.y.view(), problem.oracle());
        CHECK(error <= forward_tolerance<Act>());
        CHECK(problem.guards_intact());
      }
    });
}

// Gradients of the row by two independent ways: backward, and differences of a forward that the oracle has checked.
template <class B>
void gradients_equal_differences() {
  for (const Sizes sizes : {Sizes{5, 7, 6}, Sizes{1, 5, 9}, Sizes{6, 4, 4}})
    for_each_problem<double, B, double>(sizes, [&](auto& problem) {
      const auto numeric = numeric_gradients(problem);
      CHECK(worst_error(analytic_gradients(problem), numeric) <= 1e-6);
      CHECK(worst_error(analytic_gradients(problem, true), numeric) <= 1e-6);
      CHECK(problem.guards_intact());
    });
}

// The same gradients in the narrower types, against double on the same (exactly representable) values.
template <class P, class B, class Act>
void gradients_equal_double() {
  const Sizes sizes{37, 19, 23};
  const auto& narrow = all_cases<P, B, Act>();
  const auto& wide = all_cases<double, B>();
  for (std::size_t v = 0; v < narrow.size(); ++v) {
    INFO(narrow[v].method << ", " << narrow[v].label);
    Problem<P, B, Act> problem(sizes, narrow[v]);
    Problem<double, B> reference(sizes, wide[v]);
    problem.forward();
    reference.forward();
    const auto want = analytic_gradients(reference);
    CHECK(worst_error(analytic_gradients(problem), want) <= 4 * forward_tolerance<Act>());
  }
}

// Every product of forward and backward in turn gets a wrong sign, and loses its scale: some check must fail each time.
template <class B>
void planted_faults_are_found() {
  for_each_problem<double, Faulty<B>, double>(Sizes{5, 7, 6}, [&](auto& problem) {
    const auto numeric = numeric_gradients(problem);
    const auto passes = [&] {
      problem.ctx.hook.begin();
      problem.forward();
      const double forward = relative_error(problem.y.view(), problem.oracle());
      return forward <= 1e-12 && worst_error(analytic_gradients(problem), numeric) <= 1e-6;
    };
    REQUIRE(passes());
    const int products = problem.ctx.hook.seen;
    REQUIRE(products > 0);
    int scales = 0;
    for (auto kind : {Fault::Kind::Sign, Fault::Kind::MissingScale})
      for (int target = 0; target < products; ++target) {
        problem.ctx.hook.kind = kind;
        problem.ctx.hook.target = target;
        const bool passed = passes();
        scales += kind == Fault::Kind::MissingScale && problem.ctx.hook.changed ? 1 : 0;
        INFO("product " << target << " of " << products);
        CHECK(passed == !problem.ctx.hook.changed);
      }
    if (problem.adapter.can_scale()) CHECK(scales > 0);
  });
}

template <class P, class B>
void starts_as_the_base() {
  for_each_problem<P, B, P>(Sizes{}, [&](auto& problem) {
    if (problem.row.identity_at_init) {
      problem.adapter = problem.row.make(problem.base.shape);  // as new: what no initializer touches is neutral
      problem.bind();
      problem.base.forward(problem.ctx, problem.x.view(), problem.y.view());
      const Matrix before = to_matrix(problem.y.view());
      dw::init::Kaiming{.seed = 3}(problem.ctx, problem.adapter, problem.base);
      dw::attach(problem.ctx, problem.adapter, problem.base);
      dw::prepare(problem.ctx, problem.adapter, problem.base);
      problem.forward();
      CHECK(relative_error(problem.y.view(), before) == 0);
    }
  });
}

template <class P, class B, class Act = P>
void merges() {
  for_each_problem<P, B, Act>(Sizes{9, 7, 6}, [&](auto& problem) {
    if (problem.row.mergeable) {
      problem.saved.call.training = false;
      bool trains_bias = false;
      problem.adapter.for_each_parameter([&](auto& p) { trains_bias = trains_bias || p.role == dw::Role::Bias; });
      if (trains_bias && !problem.sizes.base_bias) return;
      problem.forward();
      const Matrix adapted = to_matrix(problem.y.view()), weight = to_matrix(problem.w.view());
      dw::Tensor<P, typename B::Space> delta(problem.sizes.out, problem.sizes.in);
      problem.adapter.delta_weight(problem.ctx, problem.base, delta.view());
      problem.adapter.merge(problem.ctx, problem.base, problem.base.weight, problem.base.bias);
      problem.base.forward(problem.ctx, problem.x.view(), problem.y.view());
      CHECK(relative_error(problem.y.view(), adapted) <= 2 * forward_tolerance<Act>());
      CHECK(relative_error(problem.w.view(), plus(weight, to_matrix(delta.view()))) <= forward_tolerance<Act>());
      problem.adapter.unmerge(problem.ctx, problem.base, problem.base.weight, problem.base.bias);
      CHECK(relative_error(problem.w.view(), weight) <= 2 * forward_tolerance<Act>());
      CHECK(problem.guards_intact());
    }
  });
}

template <class P, class B>
void counts_its_parameters() {
  for_each_problem<P, B, P>(Sizes{}, [&](auto& problem) {
    if (!problem.sizes.base_bias) return;  // the formula is for a base that has one
    CHECK(dw::count_trained(problem.adapter) == problem.row.parameter_count(problem.base.shape));
  });
}

template <class P, class B>
void gradients_accumulate() {
  for_each_problem<P, B, P>(Sizes{}, [&](auto& problem) {
    problem.forward();
    auto once = analytic_gradients(problem);
    problem.zero_grad();
    problem.backward();
    problem.backward();
    dw::finish(problem.ctx, problem.adapter, problem.base);
    problem.adapter.for_each_parameter([&](auto& p) {
      const Matrix twice = plus(once[p.name], once[p.name]);
      CHECK(relative_error(p.grad.view(), twice) <= 2 * forward_tolerance<P>());
    });
  });
}

/// The same bits in two runs, and from a forward recomputed into a fresh Saved.
template <class P, class B>
void repeats_to_the_bit() {
  for_each_problem<P, B, P>(Sizes{270, 9, 8}, [&](auto& problem) {
    problem.forward();
    const Matrix y = to_matrix(problem.y.view());
    const auto gradients = analytic_gradients(problem);
    const dw::Call call = problem.saved.call;
    problem.saved = {};
    problem.saved.call = call;
    problem.forward();
    CHECK(to_matrix(problem.y.view()).values == y.values);
    const auto again = analytic_gradients(problem);
    for (const auto& [name, gradient] : gradients) CHECK(again.at(name).values == gradient.values);
  });
}

template <class P, class B>
void costs_what_the_row_states() {
  for (const auto& row : all_cases<P, Counting<B>>()) {
    if (!row.first) continue;
    INFO(row.method);
    Problem<P, Counting<B>> problem({24, 16, 12}, row);
    const auto check = [&](const Cost& want) {
      const Counts& got = problem.ctx.hook;
      CHECK(got.flops == want.flops);
      CHECK(got.bytes == want.bytes);
      CHECK(got.products + got.passes == want.launches);
      CHECK(got.temporary_bytes == want.temporary_bytes);
      problem.ctx.hook = {};
    };
    problem.ctx.hook = {};
    problem.adapter.forward(problem.ctx, problem.base, problem.x.view(), problem.y.view(), problem.saved);
    check(row.forward_cost(24, 16, 12));
    problem.adapter.backward(problem.ctx, problem.base, problem.x.view(), problem.dy.view(), problem.dx.view(),
                             problem.saved);
    check(row.backward_cost(24, 16, 12));
  }
}

/// The adapter in its own type gives the same bits as erased, hook by hook.
template <class A, class P, class B, class Act>
void erased_equals_typed(Problem<P, B, Act>& problem) {
  problem.forward();
  const Matrix y = to_matrix(problem.y.view());
  const auto gradients = analytic_gradients(problem);
  problem.base.forward(problem.ctx, problem.x.view(), problem.y.view());
  A typed(*problem.adapter.template get<A>());
  typename A::Saved saved;
  saved.call = problem.saved.call;
  if constexpr (requires { typed.bind_weight(problem.ctx, problem.base.weight, problem.base.bias); })
    typed.bind_weight(problem.ctx, problem.base.weight, problem.base.bias);
  dw::zero_grad(problem.ctx, typed);
  dw::attach(problem.ctx, typed, problem.base);
  std::map<std::string, Matrix> values;
  problem.adapter.for_each_parameter([&](auto& p) { values[p.name] = to_matrix(p.value.view()); });
  typed.for_each_parameter([&](auto& p) {
    assign(values.at(p.name), p.value.view());
    p.changed();
  });
  dw::prepare(problem.ctx, typed, problem.base);
  typed.forward(problem.ctx, problem.base, problem.x.view(), problem.y.view(), saved);
  CHECK(to_matrix(problem.y.view()).values == y.values);
  typed.backward(problem.ctx, problem.base, problem.x.view(), problem.dy.view(), problem.dx.view(), saved);
  problem.restore_dy();
  dw::finish(problem.ctx, typed, problem.base);
  std::size_t seen = 0;
  typed.for_each_parameter([&](auto& p) {
    if (!p.trained) return;
    CHECK(to_matrix(p.grad.view()).values == gradients.at(p.name).values);
    ++seen;
  });
  CHECK(seen + 1 == gradients.size());
  CHECK(problem.adapter.method_name() == A::method);
}
template <class P, class B, class Act = P>
void erased_equals_typed() {
  for_each_problem<P, B, Act>(Sizes{}, [&](auto& problem) {
    int matches = 0;
    const auto try_row = [&](auto row) {
      using A = typename decltype(row)::template Method<P, B, Act>;
      if (problem.adapter.template get<A>() == nullptr) return;
      ++matches;
      erased_equals_typed<A>(problem);
    };
    std::apply([&](auto... rows) { (try_row(rows), ...); }, Rows{});
    CHECK(matches == 1);
  });
}

/// A frozen parameter gets no gradient and, where all that read x are frozen, backward works without x.
template <class P, class B>
void frozen_parameters_stay() {
  for_each_problem<P, B, P>(Sizes{}, [&](auto& problem) {
    problem.forward();
    const auto all = analytic_gradients(problem);
    std::vector<std::string> names;
    problem.adapter.for_each_parameter([&](auto& p) {
      if (p.trained) names.push_back(p.name);
    });
    const auto trained = [&](const std::string& name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    for (const auto& frozen : names) {
      problem.adapter.for_each_parameter([&](auto& p) { p.trained = trained(p.name) && p.name != frozen; });
      problem.zero_grad();
      problem.restore_dy();
      const auto x = problem.adapter.reads_input_in_backward()
                         ? dw::ConstMatrixView<P, typename B::Space>(problem.x.view())
                         : dw::ConstMatrixView<P, typename B::Space>{};
      problem.adapter.backward(problem.ctx, problem.base, x, problem.dy.view(), problem.dx.view(), problem.saved);
      dw::finish(problem.ctx, problem.adapter, problem.base);
      problem.restore_dy();
      problem.adapter.for_each_parameter([&](auto& p) {
        if (!trained(p.name)) return;
        const Matrix got = to_matrix(p.grad.view());
        if (p.name == frozen)
          CHECK(got.values == Matrix(got.rows, got.cols).values);
        else
          CHECK(got.values == all.at(p.name).values);
      });
    }
    problem.adapter.for_each_parameter([&](auto& p) { p.trained = trained(p.name); });
  });
}

/// Wrong shapes, null and shared memory are refused by name, before anything is written.
template <class P, class B>
void refuses_bad_calls() {
  for_each_problem<P, B, P>(Sizes{}, [&](auto& problem) {
    problem.forward();
    const Matrix y = to_matrix(problem.y.view());
    const auto forward = [&](auto x, auto out) {
      problem.adapter.forward(problem.ctx, problem.base, x, out, problem.saved);
    };
    const auto x = problem.x.view();
    const auto out = problem.y.view();
    CHECK_THROWS_WITH(forward(x.col_range(0, 6), out), ContainsSubstring("x.cols (in_features): got 6, want 7"));
    CHECK_THROWS_WITH(forward(x.row_range(0, 4), out), ContainsSubstring("x.rows (tokens): got 4, want 5"));
    CHECK_THROWS_WITH(forward(x, out.col_range(0, 5)), ContainsSubstring("y.cols (out_features): got 5, want 6"));
    dw::MatrixView<P, typename B::Space> null(nullptr, x.rows, x.cols);
    CHECK_THROWS_WITH(forward(null, out), ContainsSubstring("x.data"));
    dw::MatrixView<P, typename B::Space> overlapping(x.data, out.rows, out.cols, x.stride);
    CHECK_THROWS_WITH(forward(x, overlapping), ContainsSubstring("x and y: got views that share memory"));
    dw::MatrixView<P, typename B::Space> narrow(x.data, x.rows, x.cols, 3);
    CHECK_THROWS_WITH(forward(narrow, out), ContainsSubstring("x.stride (elements): got 3, want at least 7"));
    CHECK(to_matrix(problem.y.view()).values == y.values);
    const auto gradients = analytic_gradients(problem);
    CHECK_THROWS_AS(problem.adapter.backward(problem.ctx, problem.base, x, problem.dy.view().col_range(0, 5),
                                             problem.dx.view(), problem.saved),
                    dw::ShapeError);
    problem.adapter.for_each_parameter([&](auto& p) {
      if (p.trained) CHECK(to_matrix(p.grad.view()).values == gradients.at(p.name).values);
    });
  });
}

}  // namespace deltaw_tests
