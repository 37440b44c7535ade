#pragma once
// What a Transformer has beside its linear layers, forward and backward: layer norm, GELU, softmax attention, softmax
// cross entropy. Rows are tokens. Every loop makes one pass over memory and is in the scalar that it is called with.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "common/parallel.hpp"
#include "deltaw/backend/cpu.hpp"
#include "deltaw/core/parameter.hpp"

namespace vit {

namespace dw = deltaw;
using dw::index_t;
template <class T>
using View = dw::MatrixView<T>;
template <class T>
using ConstView = dw::ConstMatrixView<T>;
template <class T>
using Row = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
template <class T>
using ConstRow = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>>;

template <class T>
Row<T> row(View<T> v, index_t i) {
  return Row<T>(v.data + i * v.stride, v.cols);
}
template <class T>
ConstRow<T> row(ConstView<T> v, index_t i) {
  return ConstRow<T>(v.data + i * v.stride, v.cols);
}

template <class T>
void set_zero(View<T> v) {
  examples::parallel_for(v.rows, [&](index_t i, int) { row(v, i).setZero(); });
}

/// Pre-norm on a residual stream: stream = previous + added, y = (stream - mean) / sqrt(variance + epsilon) o gain + bias.
template <class T>
struct LayerNorm {
  static constexpr T epsilon = T(1e-5);

  View<T> gain, bias;                                                    ///< 1 x width
  dw::Parameter<T>*gain_parameter = nullptr, *bias_parameter = nullptr;  ///< null while frozen

  struct Saved {
    dw::Tensor<T> stream, y;
    dw::Tensor<T> statistics;  ///< a row of mean and 1 / deviation for each token
  };

  /// `added` may have fewer rows than `previous`: they repeat (a position embedding).
  void forward(ConstView<T> previous, ConstView<T> added, Saved& saved) const {
    const auto stream = saved.stream.resize(previous.rows, previous.cols), y = saved.y.resize(stream.rows, stream.cols);
    const auto statistics = saved.statistics.resize(stream.rows, 2);
    examples::parallel_for(stream.rows, [&](index_t i, int) {
      auto s = row(stream, i);
      s = row(previous, i) + row(added, i % added.rows);
      const T mean = s.mean();
      const T scale = 1 / std::sqrt((s - mean).square().mean() + epsilon);
      row(y, i) = (s - mean) * scale * row(gain, 0) + row(bias, 0);
      statistics(i, 0) = mean;
      statistics(i, 1) = scale;
    });
  }

  /// d_stream += the gradient through y; `copy`, if there is one, becomes the same as d_stream.
  void backward(ConstView<T> dy, View<T> d_stream, View<T> copy, const Saved& saved) const {
    const auto stream = saved.stream.view(), statistics = saved.statistics.view();
    examples::parallel_for(stream.rows, [&](index_t i, int) {
      const T mean = statistics(i, 0), scale = statistics(i, 1);
      const auto normal = (row(stream, i) - mean) * scale;
      const auto d_normal = row(dy, i) * row(gain, 0);
      const T a = d_normal.mean(), b = (d_normal * normal).mean();
      auto d = row(d_stream, i);
      d += scale * (d_normal - a - normal * b);
      if (copy.data != nullptr) row(copy, i) = d;
    });
    if (gain_parameter != nullptr) add_parameter_gradients(dy, saved);
  }

 private:
  // Pieces of fixed size, added in order: the same bits for any number of threads.
  void add_parameter_gradients(ConstView<T> dy, const Saved& saved) const {
    constexpr index_t piece = 196;
    const auto stream = saved.stream.view(), statistics = saved.statistics.view();
    const index_t pieces = (dy.rows + piece - 1) / piece;
    dw::Tensor<T> sums(2 * pieces, dy.cols);
    const auto partial = sums.view();
    examples::parallel_for(pieces, [&](index_t p, int) {
      for (index_t i = p * piece; i < std::min((p + 1) * piece, dy.rows); ++i) {
        row(partial, 2 * p) += row(dy, i) * (row(stream, i) - statistics(i, 0)) * statistics(i, 1);
        row(partial, 2 * p + 1) += row(dy, i);
      }
    });
    for (index_t p = 0; p < pieces; ++p) {
      row(gain_parameter->grad.view(), 0) += row(partial, 2 * p);
      row(bias_parameter->grad.view(), 0) += row(partial, 2 * p + 1);
    }
  }
};

/// GELU in its tanh form (Hendrycks and Gimpel, 2016): y = x s(2u), s the logistic function, u = sqrt(2 / pi) (x + 0.044715
/// x^3). x is overwritten by dy/dx, so that backward is one product.
template <class T>
void gelu_forward(View<T> x, View<T> y) {
  constexpr T root = T(1.5957691216057308), cubic = T(0.044715);  // 2 sqrt(2 / pi)
  constexpr index_t tile = 512;
  examples::parallel_for(x.rows, [&](index_t i, int) {
    for (index_t first = 0; first < x.cols; first += tile) {
      const index_t count = std::min(tile, x.cols - first);
      Row<T> in(x.data + i * x.stride + first, count), out(y.data + i * y.stride + first, count);
      Eigen::Array<T, Eigen::Dynamic, 1, 0, tile, 1> s = 1 / (1 + (-root * in * (1 + cubic * in.square())).exp());
      out = in * s;
      in = s + out * (1 - s) * root * (1 + 3 * cubic * in.square());  // d(x s)/dx, ds/dx = s (1 - s) d(2u)/dx
    }
  });
}

/// Softmax(Q K^T / sqrt(d)) V for each head of each image; a head is a group of neighbouring columns.
template <class T>
struct Attention {
  index_t tokens = 0, heads = 0;

  /// out (images * tokens x width); `probabilities` holds tokens x tokens for each image and head.
  void forward(std::span<dw::Cpu::Context> contexts, ConstView<T> q, ConstView<T> k, ConstView<T> v,
               dw::Tensor<T>& probabilities, View<T> out) const {
    const index_t count = q.rows / tokens * heads;
    const auto all = probabilities.resize(count * tokens, tokens);
    examples::parallel_for(count, [&](index_t n, int thread) {
      auto& ctx = contexts[static_cast<std::size_t>(thread)];
      const auto p = all.row_range(n * tokens, tokens);
      dw::Cpu::gemm(ctx, scale(q), head(q, n), t(head(k, n)), 0, p);
      for (index_t i = 0; i < tokens; ++i) row(p, i) -= row(p, i).maxCoeff();
      Row<T> elements(p.data, p.size());
      elements = elements.exp();
      for (index_t i = 0; i < tokens; ++i) row(p, i) /= row(p, i).sum();
      dw::Cpu::gemm(ctx, 1, p, head(v, n), 0, head(out, n));
    });
  }

  void backward(std::span<dw::Cpu::Context> contexts, ConstView<T> q, ConstView<T> k, ConstView<T> v,
                const dw::Tensor<T>& probabilities, ConstView<T> d_out, View<T> dq, View<T> dk, View<T> dv) const {
    const auto all = probabilities.view();
    examples::parallel_for(q.rows / tokens * heads, [&](index_t n, int thread) {
      auto& ctx = contexts[static_cast<std::size_t>(thread)];
      dw::Arena<>::Mark mark(ctx.arena);
      const auto p = all.row_range(n * tokens, tokens);
      const auto ds = dw::Cpu::temp<T>(ctx, tokens, tokens);
      dw::Cpu::gemm(ctx, 1, t(p), head(d_out, n), 0, head(dv, n));  // dV = P^T dO
      dw::Cpu::gemm(ctx, 1, head(d_out, n), t(head(v, n)), 0, ds);  // dP = dO V^T
      for (index_t i = 0; i < tokens; ++i)                          // dS = P o (dP - rowsum(P o dP))
        row(ds, i) = row(p, i) * (row(ds, i) - (row(p, i) * row(ds, i)).sum());
      dw::Cpu::gemm(ctx, scale(q), ds, head(k, n), 0, head(dq, n));     // dQ = dS K / sqrt(d)
      dw::Cpu::gemm(ctx, scale(q), t(ds), head(q, n), 0, head(dk, n));  // dK = dS^T Q / sqrt(d)
    });
  }

 private:
  template <class U>
  View<U> head(View<U> m, index_t n) const {
    const index_t width = m.cols / heads;
    return m.row_range(n / heads * tokens, tokens).col_range(n % heads * width, width);
  }
  double scale(ConstView<T> q) const { return 1 / std::sqrt(static_cast<double>(q.cols / heads)); }
};

/// Sum over the rows of -log softmax(logits)[label], over `images`, the rows of the whole batch that these are part of.
/// `gradient`, if there is one, becomes that of the logits.
template <class T>
double cross_entropy(ConstView<T> logits, std::span<const int> labels, index_t images, View<T> gradient = {}) {
  double loss = 0;
  Eigen::Array<T, Eigen::Dynamic, 1, 0, 64, 1> p(logits.cols);  // at most 64 classes
  for (index_t i = 0; i < logits.rows; ++i) {
    const index_t label = labels[static_cast<std::size_t>(i)];
    p = (row(logits, i) - row(logits, i).maxCoeff()).exp();
    p /= p.sum();
    loss -= std::log(std::max(static_cast<double>(p[label]), 1e-300));
    if (gradient.data == nullptr) continue;
    p[label] -= 1;
    row(gradient, i) = p / T(images);
  }
  return loss / static_cast<double>(images);
}

/// How many rows have their largest element at the label.
template <class T>
index_t count_correct(ConstView<T> logits, std::span<const int> labels) {
  index_t correct = 0;
  for (index_t i = 0; i < logits.rows; ++i) {
    index_t best = 0;
    row(logits, i).maxCoeff(&best);
    correct += best == labels[static_cast<std::size_t>(i)];
  }
  return correct;
}

}  // namespace vit
