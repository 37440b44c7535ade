#pragma once
// What the rows of methods with a rank x rank core between their factors share.

#include "rows/row.hpp"

namespace deltaw_tests {

inline Matrix transposed(const Matrix& a) {
  Matrix b(a.cols, a.rows);
  for (dw::index_t i = 0; i < a.rows; ++i)
    for (dw::index_t j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  return b;
}
/// a^-1 by Gauss and Jordan, for a positive definite a.
inline Matrix inverse(Matrix a) {
  Matrix b(a.rows, a.rows);
  for (dw::index_t i = 0; i < a.rows; ++i) b(i, i) = 1;
  for (dw::index_t k = 0; k < a.rows; ++k)
    for (dw::index_t i = 0; i < a.rows; ++i) {
      const double factor = i == k ? 1 - 1 / a(k, k) : a(i, k) / a(k, k);
      for (dw::index_t j = 0; j < a.rows; ++j) b(i, j) -= factor * b(k, j);
      for (dw::index_t j = 0; j < a.rows; ++j) a(i, j) -= factor * a(k, j);
    }
  return b;
}

/// Y = X W^T + b + s D(X) A^T R^T B^T.
inline Matrix core_oracle(const OracleInput& in, const char* core, double s, double dropout, std::uint64_t seed,
                          std::uint64_t layer) {
  const Matrix z = times_transposed(dropped_input(in, dropout, seed, layer), in.parameters.at("lora_A.weight"));
  const Matrix v = times_transposed(z, in.parameters.at(core));
  return plus(plus(times_transposed(in.x, in.w), in.bias), times_transposed(v, in.parameters.at("lora_B.weight")), s);
}

/// Z, V, Y += V B^T, without dropout.
template <class P>
Cost core_forward_cost(double tokens, double in, double out, double r) {
  return {.flops = 2 * tokens * r * (in + out + r),
          .bytes = sizeof(P) * (tokens * in + r * in + tokens * r + 2 * tokens * r + r * r + tokens * r + out * r +
                                2 * tokens * out),
          .launches = 3,
          .temporary_bytes = sizeof(P) * tokens * r};
}

/// dV, dR, H and dX; with a trained B also V once more and dB.
template <class P>
Cost core_backward_cost(double tokens, double in, double out, double r, bool trains_up) {
  const double dv = tokens * out + out * r + tokens * r, dr = 2 * tokens * r + 2 * r * r, h = 2 * tokens * r + r * r;
  const double dx = tokens * r + r * in + 2 * tokens * in;
  const double v = 2 * tokens * r + r * r, db = tokens * out + tokens * r + 2 * out * r;
  return {.flops = 2 * tokens * r * (in + out + 2 * r) + (trains_up ? 2 * tokens * r * (r + out) : 0),
          .bytes = sizeof(P) * (dv + dr + h + dx + (trains_up ? v + db : 0)),
          .launches = trains_up ? 6 : 4,
          .temporary_bytes = sizeof(P) * tokens * r * (trains_up ? 3 : 2)};
}

}  // namespace deltaw_tests
