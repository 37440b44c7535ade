#pragma once
// The frozen random bases of RandLoRA, once for all layers: a (rank x mn) and b (mx x bases rank), mn and mx the lesser and
// the greater of the largest in_features and out_features, bases = ceil(mn / rank). A layer uses the leading columns of a, and
// the leading rows and columns of b.
//   dense        uniform with deviation 1, from Philox by address: it may be drawn again in tiles instead of stored
//   sparse       -1, 0, 1 over the deviation, P(1) = P(-1) = 1/6; very sparse: 1 / (2 sqrt(mn)); PEFT's for the same seed

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "deltaw/core/adapter.hpp"
#include "deltaw/core/random.hpp"
#include "deltaw/core/signed_columns.hpp"

namespace deltaw {

inline constexpr index_t randlora_tile = 512;  ///< columns of b, and rows of P, that are worked on at a time

struct RandLoraBasesOptions {
  index_t rank = 32;
  std::uint64_t seed = 0;
  bool sparse = false, very_sparse = false;
  bool regenerate = false;  ///< b is not stored
  double sparse_below = 0;  ///< share of non-zeros below which products are sums over these
};

/// The bases, with lists of their non-zeros where products use those.
template <class P, class B>
class RandLoraBases {
 public:
  using Space = typename B::Space;
  using Context = typename B::Context;

  /// Draws them for layers of these shapes. Sparse ones are drawn on the host, which waits for a device.
  static RandLoraBases draw(Context& ctx, std::span<const LinearShape> shapes, const RandLoraBasesOptions& o) {
    index_t in = 0, out = 0;
    for (const LinearShape& s : shapes) in = std::max(in, s.in_features), out = std::max(out, s.out_features);
    const index_t mn = std::min(in, out), mx = std::max(in, out), cols = (mn + o.rank - 1) / o.rank * o.rank;
    if (o.sparse || o.very_sparse) {
      const double third = o.very_sparse ? std::sqrt(static_cast<double>(mn)) : 3;
      TorchRandom random(o.seed);
      const auto a = signs(random, o.rank * mn, third), b = signs(random, mx * cols, third);
      using View = ConstMatrixView<float, Host>;
      return RandLoraBases(View{a.data(), o.rank, mn}, View{b.data(), mx, cols}, o.sparse_below);
    }
    RandLoraBases bases;
    bases.rank_ = o.rank, bases.rows_ = mx, bases.cols_ = cols;
    bases.key_ = RandomKey{o.seed}.fold(name_hash("randlora_B"));
    fill(ctx, RandomKey{o.seed}.fold(name_hash("randlora_A")), 0, bases.a_.resize(o.rank, mn));
    if (!o.regenerate) fill(ctx, bases.key_, 0, bases.b_.resize(mx, cols));
    return bases;
  }

  /// Those that a checkpoint stores, of which zeros are made use of.
  template <class T>
  RandLoraBases(ConstMatrixView<T, Host> a, ConstMatrixView<T, Host> b, double sparse_below)
      : rank_(a.rows), rows_(b.rows), cols_(b.cols), a_(to_tensor<P, Space>(a)), b_(to_tensor<P, Space>(b)) {
    index_t nonzero_a = 0, nonzero_b = 0;
    bool one_size = true;
    for (index_t i = 0; i < a.rows; ++i)
      for (index_t j = 0; j < a.cols; ++j) nonzero_a += a(i, j) != 0 ? 1 : 0;
    for (index_t i = 0; i < b.rows; ++i)
      for (index_t j = 0; j < b.cols; ++j) {
        const T size = std::abs(b(i, j));
        if (size == 0) continue;
        if (nonzero_b++ == 0) magnitude_ = static_cast<double>(static_cast<P>(size));
        one_size = one_size && static_cast<double>(static_cast<P>(size)) == magnitude_;
      }
    density_a_ = static_cast<double>(nonzero_a) / static_cast<double>(std::max<index_t>(a.size(), 1));
    const double density_b = static_cast<double>(nonzero_b) / static_cast<double>(std::max<index_t>(b.size(), 1));
    if (density_a_ < 1) list_a(a);
    if (one_size && density_b < sparse_below) list_b(b);
  }

  index_t rank() const { return rank_; }
  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  const Tensor<P, Space>& a() const { return a_; }
  /// Empty where it is regenerated.
  const Tensor<P, Space>& b() const { return b_; }

  /// The leading `rows` of columns [first, first + count) of b: its part, or drawn into the arena.
  ConstMatrixView<P, Space> b_tile(Context& ctx, index_t rows, index_t first, index_t count) const {
    if (!b_.empty()) return b_.view().row_range(0, rows).col_range(first, count);
    auto tile = B::template temp<P>(ctx, rows, count);
    fill(ctx, key_, first, tile);
    return tile;
  }

  // Sparse b: its non-zeros are +- `magnitude`.
  bool has_signs() const { return !down_.empty(); }
  double magnitude() const { return magnitude_; }
  /// The signs of b_tile.
  SignedColumns<Space> signs_down(index_t first, index_t count) const { return down_.columns(first, count); }
  /// The signs of b_tile^T; `first` is a multiple of `randlora_tile`.
  SignedColumns<Space> signs_up(index_t rows, index_t first) const {
    return up_.columns(first / randlora_tile * rows_, rows);
  }

  // Sparse a: row k has non-zeros in the columns `support(k, mn)`, those before mn.
  double density_a() const { return density_a_; }
  index_t support(index_t k, index_t mn) const {
    const auto first = support_.begin() + start(k), last = support_.begin() + start(k + 1);
    return std::lower_bound(first, last, mn) - first;
  }
  /// The non-zeros of row k.
  ConstMatrixView<P, Space> a_values(index_t k, index_t count) const {
    return a_values_.view().col_range(start(k), count);
  }
  /// S with X S = the columns of X where row k has its non-zeros.
  SignedColumns<Space> gather(index_t k, index_t count) const { return gather_.columns(start(k), count); }
  /// S^T, for X of mn columns.
  SignedColumns<Space> scatter(index_t k, index_t mn) const { return scatter_.columns(k * a_.cols(), mn); }

 private:
  RandLoraBases() = default;

  // -1 where torch.rand falls below 1 / (2 third), 1 above 1 - that, over the deviation of all.
  static std::vector<float> signs(TorchRandom& random, index_t count, double third) {
    const auto low = static_cast<float>(1 / (2 * third)), high = static_cast<float>(1 - 1 / (2 * third));
    std::vector<float> values(static_cast<std::size_t>(count));
    double sum = 0, squares = 0;
    for (float& v : values) {
      const float u = random.uniform01();
      v = u < low ? -1.0f : u > high ? 1.0f : 0.0f;
      sum += static_cast<double>(v), squares += std::abs(static_cast<double>(v));
    }
    const auto n = static_cast<double>(count);
    const auto deviation = static_cast<float>(std::sqrt((squares - sum * sum / n) / (n - 1)));
    if (!(deviation > 0)) return values;  // a single number, or no two that differ
    for (float& v : values) v /= deviation;
    return values;
  }
  static void fill(Context& ctx, RandomKey key, index_t first_col, MatrixView<P, Space> out) {
    const double bound = std::sqrt(3.0);
    B::fill_uniform(ctx, key, {0, static_cast<std::uint64_t>(first_col)}, -bound, bound, out);
  }

  index_t start(index_t k) const { return support_start_[static_cast<std::size_t>(k)]; }

  template <class T>
  void list_a(ConstMatrixView<T, Host> a) {
    typename SignedStorage<Space>::Writer gather, scatter;
    std::vector<T> values;
    support_start_.assign(1, 0);
    for (index_t k = 0; k < a.rows; ++k) {
      for (index_t j = 0; j < a.cols; ++j) {
        if (a(k, j) != 0) {
          gather.add(j), gather.end_column();
          scatter.add(static_cast<index_t>(support_.size()) - start(k));
          support_.push_back(j), values.push_back(a(k, j));
        }
        scatter.end_column();
      }
      support_start_.push_back(static_cast<index_t>(support_.size()));
    }
    values.push_back(0);  // a view of no columns still has a row
    a_values_ = to_tensor<P, Space>(1, static_cast<index_t>(values.size()), values);
    gather_ = gather.take(), scatter_ = scatter.take();
  }
  template <class T>
  void list_b(ConstMatrixView<T, Host> b) {
    typename SignedStorage<Space>::Writer down, up;
    for (index_t j = 0; j < b.cols; ++j) {
      for (index_t i = 0; i < b.rows; ++i)
        if (b(i, j) != 0) down.add(i, b(i, j) < 0);
      down.end_column();
    }
    for (index_t first = 0; first < b.cols; first += randlora_tile)
      for (index_t i = 0; i < b.rows; ++i) {
        for (index_t j = first; j < std::min(first + randlora_tile, b.cols); ++j)
          if (b(i, j) != 0) up.add(j - first, b(i, j) < 0);
        up.end_column();
      }
    down_ = down.take(), up_ = up.take();
  }

  index_t rank_ = 0, rows_ = 0, cols_ = 0;
  Tensor<P, Space> a_, b_;
  RandomKey key_;
  double density_a_ = 1, magnitude_ = 0;
  std::vector<index_t> support_, support_start_;
  Tensor<P, Space> a_values_;
  SignedStorage<Space> gather_, scatter_, down_, up_;
};

}  // namespace deltaw
