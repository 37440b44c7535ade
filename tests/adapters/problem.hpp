#pragma once
// One adapter with everything around it: guarded buffers with odd strides, a dense base, random values, an oracle.

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "adapters.hpp"
#include "deltaw/deltaw.hpp"
#include "guarded.hpp"

namespace deltaw_tests {

template <class T, class Space>
Matrix to_matrix(dw::MatrixView<T, Space> v) {
  Matrix m(v.rows, v.cols);
  const auto values = to_host(v);
  for (std::size_t i = 0; i < values.size(); ++i) m.values[i] = static_cast<double>(values[i]);
  return m;
}
template <class T, class Space>
void assign(const Matrix& m, dw::MatrixView<T, Space> v) {
  std::vector<T> values(m.values.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = T(m.values[i]);
  from_host(values, v);
}

/// ||a - b|| / ||b|| (or ||a|| where b is 0); NaN where either holds one.
inline double relative_error(const Matrix& a, const Matrix& b) {
  if (a.rows != b.rows || a.cols != b.cols) return std::nan("");
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    difference += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
    norm += b.values[i] * b.values[i];
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}
template <class T, class Space>
double relative_error(dw::MatrixView<T, Space> a, const Matrix& b) {
  return relative_error(to_matrix(a), b);
}

struct Sizes {
  dw::index_t tokens = 5, in = 7, out = 6;
  bool base_bias = true;
};

/// One option set of one row, without its type: the suite is compiled once a backend and scalar, not once a method.
template <class P, class B, class Act = P>
struct Case {
  using Any = dw::AnyAdapter<P, B, Act>;
  std::string method, label;
  bool first = false;  ///< of its row
  bool identity_at_init = false, mergeable = false;
  std::vector<std::string> held_fixed;
  std::function<Any(dw::LinearShape)> make;
  std::function<Matrix(const OracleInput&)> oracle;
  std::function<void(const Any&, std::map<std::string, Matrix>&)> add_inputs;
  std::function<dw::index_t(dw::LinearShape)> parameter_count;
  std::function<Cost(double tokens, double in, double out)> forward_cost, backward_cost;
};

template <class Row, class P, class B, class Act>
void add_cases(std::vector<Case<P, B, Act>>& cases) {
  using A = typename Row::template Method<P, B, Act>;
  using Options = typename A::Options;
  bool first = true;
  for (const auto& variant : Row::template variants<Options>()) {
    const Options o = variant.options;
    auto& c = cases.emplace_back();
    c.method = A::method;
    c.label = variant.label;
    c.first = std::exchange(first, false);
    c.identity_at_init = Row::identity_at_init && !variant.moves_at_start;
    c.mergeable = Row::mergeable;
    static_assert(
        !Row::mergeable || requires { &A::delta_weight; },
        "a row that is mergeable wants delta_weight, merge and unmerge");
    c.held_fixed = variant.held_fixed;
    c.make = [o](dw::LinearShape shape) { return dw::AnyAdapter<P, B, Act>(A(shape, o)); };
    c.oracle = [o](const OracleInput& in) { return Row::oracle(in, o); };
    c.add_inputs = [](const dw::AnyAdapter<P, B, Act>& any, std::map<std::string, Matrix>& inputs) {
      if constexpr (requires(const A& a) { Row::add_inputs(a, inputs); })
        Row::add_inputs(*any.template get<A>(), inputs);
    };
    c.parameter_count = [o](dw::LinearShape shape) { return A::parameter_count(shape, o); };
    c.forward_cost = [o](double tokens, double in, double out) {
      return Row::template forward_cost<P>(tokens, in, out, o);
    };
    c.backward_cost = [o](double tokens, double in, double out) {
      return Row::template backward_cost<P>(tokens, in, out, o);
    };
  }
}
/// Every option set of every row.
template <class P, class B, class Act = P>
const std::vector<Case<P, B, Act>>& all_cases() {
  static const auto cases = [] {
    std::vector<Case<P, B, Act>> list;
    std::apply([&](auto... rows) { (add_cases<decltype(rows)>(list), ...); }, Rows{});
    return list;
  }();
  return cases;
}

/// An adapter over backend B, on random data. The values of one seed are the same for every type.
template <class P, class B, class Act = P>
struct Problem {
  using Space = typename B::Space;
  using Adapter = dw::AnyAdapter<P, B, Act>;
  template <class T>
  using View = dw::MatrixView<T, Space>;
  static constexpr dw::index_t gap = 3;  // no row begins where vectors like it

  Sizes sizes;
  Case<P, B, Act> row;
  typename B::Context ctx;
  Guarded<Act, Space> x, w, bias, y, dy, dx;
  Matrix dy_before;
  dw::DenseLinear<Act, Act, B> base;
  Adapter adapter;
  typename Adapter::Saved saved;

  Problem(Sizes s, const Case<P, B, Act>& c, unsigned seed = 1)
      : sizes(s),
        row(c),
        ctx(make_context()),
        x(s.tokens, s.in, gap),
        w(s.out, s.in, gap),
        bias(1, s.out, gap),
        y(s.tokens, s.out, gap),
        dy(s.tokens, s.out, gap),
        dx(s.tokens, s.in, gap),
        base(w.view(), s.base_bias ? bias.view() : View<Act>{}),
        adapter(c.make(base.shape)) {
    std::mt19937 random(seed);
    for (auto* g : {&x, &w, &bias, &dy, &dx}) fill_random(g->view(), random);
    bind();
    dw::attach(ctx, adapter, base);
    adapter.for_each_parameter([&](auto& p) {  // after attach, which may set some
      fill_random(p.value.view(), random);
      p.changed();
    });
    dw::prepare(ctx, adapter, base);
    dy_before = to_matrix(dy.view());
    saved.call = {.training = true, .step = 3, .micro_batch = 1};
  }

  /// On a device with one small workspace for the library's products, shared by all: a context's own is large.
  static typename B::Context make_context() {
    if constexpr (std::is_same_v<Space, dw::Host>) {
      return typename B::Context();
    } else {
      static auto* workspace = new dw::Tensor<unsigned char, Space>(1, 1 << 20);
      return typename B::Context({.cublas_workspace = workspace->view().data, .cublas_workspace_bytes = 1 << 20});
    }
  }

  /// The weight that methods like full fine-tuning train.
  void bind() {
    if (adapter.trains_base()) adapter.bind_weight(ctx, base.weight, base.bias);
  }

  template <class T>
  static void fill_random(View<T> v, std::mt19937& random) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    Matrix values(v.rows, v.cols);
    for (double& value : values.values) value = static_cast<double>(dw::bf16(uniform(random)));  // exact in every type
    assign(values, v);
  }

  /// y = base and adapter.
  void forward() {
    fault(false);
    base.forward(ctx, x.view(), y.view());
    fault(true);
    adapter.forward(ctx, base, x.view(), y.view(), saved);
    fault(false);
  }
  /// dx = 0, then the adapter's part, then dy W. dy is restored afterwards.
  void backward(bool overwriting_engine = false) {
    dx.fill_with(0);
    fault(true);
    adapter.backward(ctx, base, x.view(), dy.view(), overwriting_engine ? View<Act>{} : dx.view(), saved);
    fault(false);
    base.backward_input(ctx, dy.view(), dx.view());
    fault(true);
    if (overwriting_engine) adapter.backward_input(ctx, base, dx.view(), saved);
    fault(false);
    restore_dy();
  }
  void restore_dy() { assign(dy_before, dy.view()); }
  void zero_grad() { dw::zero_grad(ctx, adapter); }

  OracleInput oracle_input() {
    OracleInput in{.x = to_matrix(x.view()), .w = to_matrix(w.view()), .call = saved.call};
    in.bias = sizes.base_bias ? to_matrix(bias.view()) : Matrix(1, sizes.out);
    adapter.for_each_parameter([&](auto& p) { in.parameters[p.name] = to_matrix(p.value.view()); });
    row.add_inputs(adapter, in.parameters);
    return in;
  }
  Matrix oracle() { return row.oracle(oracle_input()); }
  /// sum(dY o Y) of the present values: its gradient is what backward computes.
  double loss() {
    dw::prepare(ctx, adapter, base);
    forward();
    const Matrix output = to_matrix(y.view());
    return std::inner_product(output.values.begin(), output.values.end(), dy_before.values.begin(), 0.0);
  }
  static constexpr double h = 1e-5;
  Matrix central_differences(View<Act> v) {
    const Matrix values = to_matrix(v);
    Matrix g(v.rows, v.cols);
    for (dw::index_t i = 0; i < v.rows; ++i)
      for (dw::index_t j = 0; j < v.cols; ++j) {
        const auto put = [&](double value) {
          from_host(std::vector<Act>{Act(value)}, v.row_range(i, 1).col_range(j, 1));
        };
        const auto loss_at = [&](double value) {
          put(value);
          return loss();
        };
        const double up = loss_at(values(i, j) + h);
        g(i, j) = (up - loss_at(values(i, j) - h)) / (2 * h);
        put(values(i, j));
      }
    return g;
  }
  /// Those of the oracle, all that it takes as constant being held at the present values.
  Matrix central_differences_held(const std::string& name) {
    OracleInput in = oracle_input();
    in.held = in.parameters;
    const Matrix values = in.parameters.at(name);
    Matrix g(values.rows, values.cols);
    for (std::size_t i = 0; i < values.values.size(); ++i) {
      const auto loss_at = [&](double value) {
        in.parameters.at(name).values[i] = value;
        const Matrix output = row.oracle(in);
        return std::inner_product(output.values.begin(), output.values.end(), dy_before.values.begin(), 0.0);
      };
      const double up = loss_at(values.values[i] + h);
      g.values[i] = (up - loss_at(values.values[i] - h)) / (2 * h);
      in.parameters.at(name).values[i] = values.values[i];
    }
    return g;
  }
  bool guards_intact() const {
    return x.intact() && w.intact() && bias.intact() && y.intact() && dy.intact() && dx.intact();
  }

 private:
  // Faults are planted in the adapter's own products only, counted from its forward.
  void fault(bool on) {
    if constexpr (requires { ctx.hook.active; }) ctx.hook.active = on;
  }
};

/// Every gradient by name ("dX" too), numerically.
template <class Prob>
std::map<std::string, Matrix> numeric_gradients(Prob& problem) {
  std::map<std::string, Matrix> gradients;
  problem.adapter.for_each_parameter([&](auto& p) {
    const auto& fixed = problem.row.held_fixed;
    if (!p.trained) return;
    const bool held = std::find(fixed.begin(), fixed.end(), p.name) != fixed.end();
    gradients[p.name] = held ? problem.central_differences_held(p.name) : problem.central_differences(p.value.view());
  });
  gradients["dX"] = problem.central_differences(problem.x.view());
  problem.loss();
  return gradients;
}
/// The same by backward.
template <class Prob>
std::map<std::string, Matrix> analytic_gradients(Prob& problem, bool overwriting_engine = false) {
  problem.zero_grad();
  problem.backward(overwriting_engine);
  dw::finish(problem.ctx, problem.adapter, problem.base);
  std::map<std::string, Matrix> gradients;
  problem.adapter.for_each_parameter([&](auto& p) {
    if (p.trained) gradients[p.name] = to_matrix(p.grad.view());
  });
  gradients["dX"] = to_matrix(problem.dx.view());
  return gradients;
}
/// The largest relative error over all tensors; NaN stays NaN, so `worst <= tolerance` fails on it, as on a tensor that only
/// one side has.
inline double worst_error(const std::map<std::string, Matrix>& got, const std::map<std::string, Matrix>& want) {
  double worst = !want.empty() && got.size() == want.size() ? 0 : std::nan("");
  for (const auto& [name, matrix] : want) {
    const double e = got.contains(name) ? relative_error(got.at(name), matrix) : std::nan("");
    if (!(e <= worst)) worst = e;
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

}  // namespace deltaw_tests
