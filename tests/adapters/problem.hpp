#pragma once
// One adapter with everything around it: guarded buffers with odd strides, a dense base, random values, an oracle.

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "adapters.hpp"
#include "deltaw/deltaw.hpp"

namespace deltaw_tests {

/// A matrix view inside memory that is watched: a band before and after, and a gap in every row.
template <class T>
class Guarded {
 public:
  Guarded() = default;
  Guarded(dw::index_t rows, dw::index_t cols, dw::index_t gap = 3) : rows_(rows), cols_(cols), stride_(cols + gap) {
    bytes_.assign(static_cast<std::size_t>(2 * band + rows * stride_) * sizeof(T), watch);
  }
  dw::MatrixView<T> view() { return {reinterpret_cast<T*>(bytes_.data()) + band, rows_, cols_, stride_}; }
  dw::ConstMatrixView<T> view() const {
    return {reinterpret_cast<const T*>(bytes_.data()) + band, rows_, cols_, stride_};
  }
  /// True while nothing was written outside the view.
  bool intact() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      const auto element = static_cast<dw::index_t>(i / sizeof(T)) - band;
      const bool inside = element >= 0 && element < rows_ * stride_ && element % stride_ < cols_;
      if (!inside && bytes_[i] != watch) return false;
    }
    return true;
  }

 private:
  static constexpr dw::index_t band = 8;
  static constexpr unsigned char watch = 0xAB;
  dw::index_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::vector<unsigned char> bytes_;
};

template <class T>
Matrix to_matrix(dw::MatrixView<T> v) {
  Matrix m(v.rows, v.cols);
  for (dw::index_t i = 0; i < v.rows; ++i)
    for (dw::index_t j = 0; j < v.cols; ++j) m(i, j) = static_cast<double>(v(i, j));
  return m;
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
template <class T>
double relative_error(dw::MatrixView<T> a, const Matrix& b) {
  return relative_error(to_matrix(a), b);
}

struct Sizes {
  dw::index_t tokens = 5, in = 7, out = 6;
  bool base_bias = true;
};

/// The adapter of `Row` over backend B, on random data. The values of one seed are the same for every type.
template <class Row, class P, class B, class Act = P>
struct Problem {
  using Adapter = typename Row::template Method<P, B, Act>;
  using Options = typename Adapter::Options;
  using RowType = Row;

  Sizes sizes;
  Options options;
  typename B::Context ctx;
  Guarded<Act> x, w, bias, y, dy, dx;
  Matrix dy_before;
  dw::DenseLinear<Act, Act, B> base;
  Adapter adapter;
  typename Adapter::Saved saved;

  explicit Problem(Sizes s, Options o = Row::template variants<Options>().front().options, unsigned seed = 1)
      : sizes(s),
        options(o),
        x(s.tokens, s.in),
        w(s.out, s.in),
        bias(1, s.out),
        y(s.tokens, s.out),
        dy(s.tokens, s.out),
        dx(s.tokens, s.in),
        base(w.view(), s.base_bias ? bias.view() : dw::MatrixView<Act>{}),
        adapter(base.shape, o) {
    std::mt19937 random(seed);
    for (auto* g : {&x, &w, &bias, &dy, &dx}) fill_random(g->view(), random);
    bind();
    adapter.for_each_parameter([&](auto& p) {
      fill_random(p.value.view(), random);
      p.changed();
    });
    dw::attach(ctx, adapter, base);
    dw::prepare(ctx, adapter, base);
    dy_before = to_matrix(dy.view());
    saved.call = {.training = true, .step = 3, .micro_batch = 1};
  }

  /// The weight that methods like full fine-tuning train.
  void bind() {
    if constexpr (requires { adapter.bind_weight(ctx, w.view(), w.view()); })
      adapter.bind_weight(ctx, base.weight, base.bias);
  }

  template <class T>
  static void fill_random(dw::MatrixView<T> v, std::mt19937& random) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (dw::index_t i = 0; i < v.rows; ++i)
      for (dw::index_t j = 0; j < v.cols; ++j) v(i, j) = T(dw::bf16(uniform(random)));  // exact in every type
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
    for (dw::index_t i = 0; i < sizes.tokens; ++i)
      for (dw::index_t j = 0; j < sizes.in; ++j) dx.view()(i, j) = Act(0.0);
    fault(true);
    adapter.backward(ctx, base, x.view(), dy.view(), overwriting_engine ? dw::MatrixView<Act>{} : dx.view(), saved);
    fault(false);
    base.backward_input(ctx, dy.view(), dx.view());
    fault(true);
    if (overwriting_engine) adapter.backward_input(ctx, base, dx.view(), saved);
    fault(false);
    restore_dy();
  }
  void restore_dy() {
    for (dw::index_t i = 0; i < sizes.tokens; ++i)
      for (dw::index_t j = 0; j < sizes.out; ++j) dy.view()(i, j) = Act(dy_before(i, j));
  }
  void zero_grad() { dw::zero_grad(ctx, adapter); }

  Matrix oracle() {
    OracleInput in{.x = to_matrix(x.view()), .w = to_matrix(w.view()), .call = saved.call};
    in.bias = sizes.base_bias ? to_matrix(bias.view()) : Matrix(1, sizes.out);
    adapter.for_each_parameter([&](auto& p) { in.parameters[p.name] = to_matrix(p.value.view()); });
    return Row::oracle(in, options);
  }
  /// sum(dY o Y) of the present values: its gradient is what backward computes.
  double loss() {
    dw::prepare(ctx, adapter, base);
    forward();
    double sum = 0;
    for (dw::index_t i = 0; i < sizes.tokens; ++i)
      for (dw::index_t j = 0; j < sizes.out; ++j) sum += static_cast<double>(y.view()(i, j)) * dy_before(i, j);
    return sum;
  }
  Matrix central_differences(dw::MatrixView<Act> v) {
    constexpr double h = 1e-5;
    Matrix g(v.rows, v.cols);
    for (dw::index_t i = 0; i < v.rows; ++i)
      for (dw::index_t j = 0; j < v.cols; ++j) {
        const Act old = v(i, j);
        v(i, j) = Act(static_cast<double>(old) + h);
        const double up = loss();
        v(i, j) = Act(static_cast<double>(old) - h);
        g(i, j) = (up - loss()) / (2 * h);
        v(i, j) = old;
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
    if (p.trained) gradients[p.name] = problem.central_differences(p.value.view());
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
/// The largest relative error over all tensors; NaN stays NaN, so `worst <= tolerance` fails on it.
inline double worst_error(const std::map<std::string, Matrix>& got, const std::map<std::string, Matrix>& want) {
  double worst = got.size() == want.size() ? 0 : std::nan("");
  for (const auto& [name, matrix] : want) {
    const double e = got.contains(name) ? relative_error(got.at(name), matrix) : std::nan("");
    if (!(e <= worst)) worst = e;
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

}  // namespace deltaw_tests
