#pragma once
// The row of RandLoRA.

#include <algorithm>

#include "deltaw/adapters/randlora.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct RandLoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::RandLora<P, B, Act>;
  static constexpr const char* header = "randlora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {
        {"dense", {.rank = 3, .alpha = 6}},
        {"dense, dropout", {.rank = 2, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}},
        {"regenerated", {.rank = 3, .alpha = 6, .regenerate = true, .projection_prng_key = 2}},
        {"sparse, all products dense", {.rank = 3, .alpha = 2, .sparse = true, .sparse_below = 0}},
        {"sparse, all products by non-zeros", {.rank = 2, .alpha = 3, .sparse = true, .sparse_below = 2}},
        {"very sparse, dropout", {.rank = 3, .alpha = 3, .dropout = 0.2, .very_sparse = true, .sparse_below = 2}},
    };
  }
  template <class A>
  static void add_inputs(const A& adapter, std::map<std::string, Matrix>& inputs) {
    inputs["a"] = values_of(adapter.shared()->a().view());
    typename A::Context ctx;
    typename dw::Arena<typename A::Space>::Mark mark(ctx.arena);
    inputs["b"] = values_of(adapter.shared()->b_tile(ctx, adapter.shared()->rows(), 0, adapter.shared()->cols()));
  }
  /// Y = X W^T + b + s D(X) dW^T, dW = sum over positions of (column of Bf) (row of P), or the transpose.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix &a = in.parameters.at("a"), &b = in.parameters.at("b"), &lambda = in.parameters.at("randlora_lambda"),
                 &gamma = in.parameters.at("randlora_gamma");
    const dw::index_t mn = std::min(in.w.rows, in.w.cols), mx = std::max(in.w.rows, in.w.cols), nb = gamma.rows;
    Matrix bp(mx, mn);
    for (dw::index_t k = 0; k < o.rank; ++k)
      for (dw::index_t n = 0; n < nb; ++n)
        for (dw::index_t i = 0; i < mx; ++i)
          for (dw::index_t j = 0; j < mn; ++j) bp(i, j) += b(i, k * nb + n) * lambda(k, n) * a(k, j) * gamma(n, j);
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    const Matrix update = in.w.cols <= in.w.rows ? times_transposed(xd, bp) : times(xd, bp);
    return plus(plus(times_transposed(in.x, in.w), in.bias), update, o.alpha / static_cast<double>(o.rank));
  }
  // Dense, without dropout, all in type P, in > out, at most 256 tokens, and P in two tiles: of the blocks of rows that
  // belong to one row of a, one is cut in two where the tiles meet inside it.
  struct Sizes {
    double n, tiles = 2, blocks;
    Sizes(double out, double rank) : n(rank * std::ceil(out / rank)), blocks(rank) {
      blocks += std::fmod(n / 2, std::ceil(out / rank)) != 0 ? 1 : 0;
    }
    double building(double out) const { return 2 * n * out + n * out + blocks * out + n; }
  };
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    const Sizes s(out, static_cast<double>(o.rank));
    const double z = s.tiles * tokens * in + in * s.n + tokens * s.n;
    const double y = tokens * s.n + s.n * out + s.tiles * 2 * tokens * out;
    return {.flops = s.n * out + 2 * tokens * s.n * (in + out),
            .bytes = sizeof(P) * (s.building(out) + z + y),
            .launches = static_cast<int>(s.blocks + 2 * s.tiles),
            .temporary_bytes = sizeof(P) * s.n * out};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const Sizes s(out, static_cast<double>(o.rank));
    const double n = s.n, h = s.tiles * tokens * out + n * out + tokens * n;
    const double dx = tokens * n + in * n + s.tiles * 2 * tokens * in;
    const double dp = tokens * n + s.tiles * tokens * out + n * out;
    const double scaled = 2 * n * out + s.blocks * out, gamma = 2 * n * out + n * out + n;
    const double lambda = 2 * n * out + 2 * n;
    return {.flops = n * out + 2 * tokens * n * (in + 2 * out) + 4 * n * out,
            .bytes = sizeof(P) * (s.building(out) + h + dx + dp + scaled + gamma + lambda),
            .launches = static_cast<int>(4 * s.blocks + 3 * s.tiles),
            .temporary_bytes = sizeof(P) * (2 * n * out + tokens * n)};
  }
};

}  // namespace deltaw_tests
