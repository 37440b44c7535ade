#pragma once
// The row of DoRA.

#include <cmath>

#include "deltaw/adapters/dora.hpp"
#include "rows/lora.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct DoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::Dora<P, B, Act>;
  static constexpr const char* header = "dora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    const std::vector<std::string> factors{"lora_A.weight", "lora_B.weight"};
    return {
        {"plain", {.rank = 3, .alpha = 6}, factors},
        {"exact", {.rank = 3, .alpha = 6, .exact_gradient = true}},
        {"rsLoRA, dropout", {.rank = 2, .alpha = 1, .rslora = true, .dropout = 0.5, .seed = 11, .layer = 4}, factors},
        {"exact, dropout", {.rank = 4, .alpha = 3, .exact_gradient = true, .dropout = 0.5, .seed = 5}},
    };
  }
  /// s B A of what is given.
  template <class Options>
  static Matrix product(const std::map<std::string, Matrix>& parameters, const Options& o) {
    const auto rank = static_cast<double>(o.rank);
    const double s = o.rslora ? o.alpha / std::sqrt(rank) : o.alpha / rank;
    return times(plus(Matrix(parameters.at("lora_B.weight").rows, o.rank), parameters.at("lora_B.weight"), s),
                 parameters.at("lora_A.weight"));
  }
  /// Y = X W^T + b + (c - 1) o (Xd W^T) + c o (Xd (s B A)^T), c = m / ||W + s B A||, the norm of dense rows.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const bool fixed = !o.exact_gradient && !in.held.empty();
    const Matrix v = plus(in.w, product(fixed ? in.held : in.parameters, o));
    Matrix c(1, v.rows), less(1, v.rows);
    for (dw::index_t i = 0; i < v.rows; ++i) {
      double square = 0;
      for (dw::index_t j = 0; j < v.cols; ++j) square += v(i, j) * v(i, j);
      c(0, i) = in.parameters.at("lora_magnitude_vector")(0, i) / std::sqrt(square);
      less(0, i) = c(0, i) - 1;
    }
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    Matrix y = plus(times_transposed(in.x, in.w), in.bias);
    y = plus(y, scale_columns(times_transposed(xd, in.w), less));
    return plus(y, scale_columns(times_transposed(xd, product(in.parameters, o)), c));
  }
  /// LoRA's, U = Y - b and Y += (c - 1) o (Y - b).
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    Cost cost = LoraRow::forward_cost<P>(tokens, in, out, o);
    cost.flops += 2 * tokens * out;
    cost.bytes += sizeof(P) * (5 * tokens * out + 3 * out);
    cost.launches += 2;
    return cost;
  }
  /// LoRA's, h += colsum(dY o U) and dY <- c o dY.
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    Cost cost = LoraRow::backward_cost<P>(tokens, in, out, o);
    cost.flops += 3 * tokens * out;
    cost.bytes += sizeof(P) * (4 * tokens * out + 3 * out);
    cost.launches += 2;
    return cost;
  }
};

}  // namespace deltaw_tests
