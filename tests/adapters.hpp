#pragma once
// THE list: one row an adapter. Tests and bench read it; to add a method, add its include, its row, and its name to `Rows`.
// A row says: the type, the option sets to try, the naive dense oracle in double, what holds at the start and whether it
// merges, and what one call must cost.

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "deltaw/adapters/full_delta.hpp"
#include "deltaw/adapters/lora.hpp"

namespace deltaw_tests {

namespace dw = deltaw;

/// A naive matrix of doubles.
struct Matrix {
  dw::index_t rows = 0, cols = 0;
  std::vector<double> values;
  Matrix() = default;
  Matrix(dw::index_t r, dw::index_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  double& operator()(dw::index_t i, dw::index_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(dw::index_t i, dw::index_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

/// a b^T.
inline Matrix times_transposed(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.rows);
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < b.rows; ++j)
      for (dw::index_t k = 0; k < a.cols; ++k) c(i, j) += a(i, k) * b(j, k);
  return c;
}
/// a + scale b; a b of one row is added to every row.
inline Matrix plus(Matrix a, const Matrix& b, double scale = 1) {
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < a.cols; ++j) a(i, j) += scale * b(b.rows == 1 ? 0 : i, j);
  return a;
}

struct OracleInput {
  Matrix x, w, bias = {};
  dw::Call call = {};
  std::map<std::string, Matrix> parameters = {};
};

template <class Options>
struct Variant {
  std::string label;
  Options options;
};

/// What one forward and one backward cost: products and passes launched, FLOPs, bytes through memory, temporaries.
struct Cost {
  double flops = 0, bytes = 0;
  int launches = 0;
  double temporary_bytes = 0;
};

/// D(X), drawn element by element from its definition: dropped where a 32-bit number falls below p 2^32.
inline Matrix dropped_input(const OracleInput& in, double p, std::uint64_t seed, std::uint64_t layer) {
  if (!in.call.training || p == 0) return in.x;
  const auto key = dw::RandomKey{seed}.fold(layer).fold(in.call.step).fold(in.call.micro_batch);
  Matrix x = in.x;
  for (dw::index_t i = 0; i < x.rows; ++i)
    for (dw::index_t j = 0; j < x.cols; ++j) {
      const auto column = static_cast<std::uint64_t>(j);
      const std::uint32_t bits = key.block(column / 4, in.call.first_row + static_cast<std::uint64_t>(i))[column % 4];
      x(i, j) = static_cast<double>(bits) < p * 0x1p32 ? 0 : x(i, j) / (1 - p);
    }
  return x;
}

struct LoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::Lora<P, B, Act>;
  static constexpr const char* header = "lora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3, .alpha = 6}},
            {"rsLoRA with bias", {.rank = 4, .alpha = 3, .rslora = true, .bias = true}},
            {"dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// Y = X W^T + b + s (D(X) A^T B^T + b').
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const auto rank = static_cast<double>(o.rank);
    const double s = o.rslora ? o.alpha / std::sqrt(rank) : o.alpha / rank;
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    const Matrix z = times_transposed(xd, in.parameters.at("lora_A.weight"));
    Matrix y = plus(times_transposed(in.x, in.w), in.bias);
    y = plus(y, times_transposed(z, in.parameters.at("lora_B.weight")), s);
    return o.bias ? plus(y, in.parameters.at("lora_B.bias"), s) : y;
  }
  /// Without dropout and bias, all in type P.
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    return {.flops = 2 * tokens * r * (in + out),
            .bytes = sizeof(P) * (tokens * in + r * in + tokens * r + tokens * r + out * r + 2 * tokens * out),
            .launches = 2};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    const double db = tokens * out + tokens * r + 2 * out * r, h = tokens * out + out * r + tokens * r;
    const double dx = tokens * r + r * in + 2 * tokens * in, da = tokens * r + tokens * in + 2 * r * in;
    return {.flops = 4 * tokens * r * (in + out),
            .bytes = sizeof(P) * (db + h + dx + da),
            .launches = 4,
            .temporary_bytes = sizeof(P) * tokens * r};
  }
};

struct FullDeltaRow {
  template <class P, class B, class Act = P>
  using Method = dw::FullDelta<P, B, Act>;
  static constexpr const char* header = "full_delta.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = false;  // the weight it trains is the base's own

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"with bias", {.bias = true}}, {"weight only", {.bias = false}}};
  }
  /// Y = X W^T + b, with W and b trained where they lie.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options&) {
    const auto bias = in.parameters.find("bias");
    return plus(times_transposed(in.x, in.parameters.at("weight")),
                bias == in.parameters.end() ? in.bias : bias->second);
  }
  template <class P, class Options>
  static Cost forward_cost(double, double, double, const Options&) {
    return {};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const double bias = o.bias ? 1 : 0;
    return {.flops = 2 * tokens * in * out + bias * tokens * out,
            .bytes = sizeof(P) * (tokens * out + tokens * in + 2 * in * out + bias * (tokens * out + 2 * out)),
            .launches = o.bias ? 2 : 1};
  }
};

using Rows = std::tuple<LoraRow, FullDeltaRow>;

}  // namespace deltaw_tests
