#pragma once
// The row of NOLA. Its ViT variant starts with alpha_i = 1/k and beta_j = 1/l and has no offsets, so F_A and F_B are averages
// of random matrices there and dW = s F_B F_A is not 0: that variant is not the base at the start. (The GPT variant has
// beta = 0 and B0 = 0, so F_B = 0.)

#include <cmath>
#include <cstdint>
#include <string_view>

#include "deltaw/adapters/nola.hpp"
#include "rows/lora.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct NolaRow {
  template <class P, class B, class Act = P>
  using Method = dw::Nola<P, B, Act>;
  static constexpr const char* header = "nola.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6, .k = 18, .l = 13, .seed = 3}},
            {"cached", {.rank = 4, .alpha = 2, .k = 3, .l = 9, .cached = true, .seed = 6}},
            {"ViT", {.rank = 2, .alpha = 9, .k = 4, .l = 7, .vit = true, .layer = 2}, {}, true},
            {"ViT, cached", {.rank = 3, .alpha = 9, .k = 4, .l = 1, .vit = true, .cached = true}, {}, true},
            {"dropout", {.rank = 2, .alpha = 5, .k = 5, .l = 8, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }

  /// Number n of element (i, j) of rows of `cols`, in [-1, 1): the word of column n in row i cols + j.
  static double number(dw::RandomKey key, dw::index_t n, dw::index_t i, dw::index_t j, dw::index_t cols) {
    const auto column = static_cast<std::uint64_t>(n), element = static_cast<std::uint64_t>(i * cols + j);
    return 2 * dw::uniform01(key.block(column / 4, element)[column % 4]) - 1;
  }
  template <class Options>
  static dw::RandomKey key(const Options& o, std::string_view which) {
    return dw::RandomKey{o.seed}.fold(o.layer).fold(dw::name_hash(which));
  }
  /// sum_n c_n bound U_n.
  static Matrix combination(dw::RandomKey key, const Matrix& c, double bound, dw::index_t rows, dw::index_t cols) {
    Matrix f(rows, cols);
    for (dw::index_t i = 0; i < rows; ++i)
      for (dw::index_t j = 0; j < cols; ++j)
        for (dw::index_t n = 0; n < c.cols; ++n) f(i, j) += c(0, n) * bound * number(key, n, i, j, cols);
    return f;
  }
  template <class Options>
  static Matrix factor_a(const Matrix& c, dw::index_t in, const Options& o) {
    const double size = static_cast<double>(in);
    const double bound = 1 / std::sqrt(o.vit ? size * static_cast<double>(o.rank) : static_cast<double>(o.k));
    Matrix f = combination(key(o, "nola_alpha"), c, bound, o.rank, in);
    for (dw::index_t i = 0; i < o.rank && !o.vit; ++i)
      for (dw::index_t j = 0; j < in; ++j) {  // A0
        const auto row = static_cast<std::uint64_t>(i), column = static_cast<std::uint64_t>(j);
        f(i, j) += (2 * dw::uniform01(key(o, "A0").block(column / 4, row)[column % 4]) - 1) / std::sqrt(size);
      }
    return f;
  }
  template <class Options>
  static Matrix factor_b(const Matrix& c, dw::index_t out, const Options& o) {
    const double size = static_cast<double>(out);
    const double bound = 1 / std::sqrt(o.vit ? size * static_cast<double>(o.rank) : static_cast<double>(o.l));
    return combination(key(o, "nola_beta"), c, bound, out, o.rank);
  }

  /// Y = X W^T + b + s D(X) F_A^T F_B^T.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    const Matrix z = times_transposed(xd, factor_a(in.parameters.at("nola_alpha"), in.x.cols, o));
    const Matrix y = plus(times_transposed(in.x, in.w), in.bias);
    return plus(y, times_transposed(z, factor_b(in.parameters.at("nola_beta"), in.w.rows, o)),
                o.alpha / static_cast<double>(o.rank));
  }
  /// A call costs what LoRA's does; the random matrices are the step's.
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    return LoraRow::forward_cost<P>(tokens, in, out, o);
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    return LoraRow::backward_cost<P>(tokens, in, out, o);
  }
};

}  // namespace deltaw_tests
