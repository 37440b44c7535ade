#pragma once
// The row of VeRA.

#include "deltaw/adapters/vera.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct VeraRow {
  template <class P, class B, class Act = P>
  using Method = dw::Vera<P, B, Act>;
  static constexpr const char* header = "vera.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"plain", {.rank = 3}},
            {"another seed", {.rank = 4, .d_initial = 0.5, .projection_prng_key = 12}},
            {"dropout", {.rank = 2, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  template <class A>
  static void add_inputs(const A& adapter, std::map<std::string, Matrix>& inputs) {
    inputs["A"] = values_of(adapter.shared()->a.view());
    inputs["B"] = values_of(adapter.shared()->b.view());
  }
  /// Y = X W^T + b + lambda_b o ((lambda_d o (D(X) A^T)) B^T).
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix xd = dropped_input(in, o.dropout, o.seed, o.layer);
    const Matrix z = scale_columns(times_transposed(xd, in.parameters.at("A")), in.parameters.at("vera_lambda_d"));
    const Matrix update = scale_columns(times_transposed(z, in.parameters.at("B")), in.parameters.at("vera_lambda_b"));
    return plus(plus(times_transposed(in.x, in.w), in.bias), update);
  }
  /// Without dropout, all in type P.
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    const double u = 2 * out * r + out * r + out + r, z = tokens * in + r * in + tokens * r;
    return {.flops = out * r + 2 * tokens * r * (in + out),
            .bytes = sizeof(P) * (u + z + tokens * r + out * r + 2 * tokens * out),
            .launches = 3,
            .temporary_bytes = sizeof(P) * out * r};
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, const Options& o) {
    const auto r = static_cast<double>(o.rank);
    const double u = 2 * out * r + out * r + out + r, h = tokens * out + out * r + tokens * r;
    const double dx = tokens * r + r * in + 2 * tokens * in;
    const double f = tokens * out + tokens * r + out * r + 2 * out * r + out * r;
    const double vectors = r + out * r + 2 * out + out + out * r + 2 * r;
    return {.flops = out * r + 2 * tokens * r * (in + 2 * out) + out * r + 4 * out * r,
            .bytes = sizeof(P) * (u + h + dx + f + vectors),
            .launches = 7,
            .temporary_bytes = sizeof(P) * (tokens * r + 2 * out * r)};
  }
};

}  // namespace deltaw_tests
