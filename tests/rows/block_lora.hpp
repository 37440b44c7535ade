#pragma once
// The row of Block-LoRA.

#include "deltaw/adapters/block_lora.hpp"
#include "rows/lora.hpp"
#include "rows/row.hpp"

namespace deltaw_tests {

struct BlockLoraRow {
  template <class P, class B, class Act = P>
  using Method = dw::BlockLora<P, B, Act>;
  static constexpr const char* header = "block_lora.hpp";
  static constexpr bool identity_at_init = true;
  static constexpr bool mergeable = true;

  template <class Options>
  static std::vector<Variant<Options>> variants() {
    return {{"two blocks", {.rank = 6, .blocks = 2, .alpha = 4}},
            {"one block", {.rank = 3, .blocks = 1, .alpha = 6}},
            {"four blocks, dropout", {.rank = 8, .blocks = 4, .alpha = 5, .dropout = 0.3, .seed = 11, .layer = 4}}};
  }
  /// Y = X W^T + b + s sum_i D(X) A^T B_i^T, block by block.
  template <class Options>
  static Matrix oracle(const OracleInput& in, const Options& o) {
    const Matrix& b = in.parameters.at("lora_B.weight");
    const dw::index_t rank = o.rank / o.blocks;
    const Matrix z = times_transposed(dropped_input(in, o.dropout, o.seed, o.layer), in.parameters.at("lora_A.weight"));
    Matrix y = plus(times_transposed(in.x, in.w), in.bias);
    for (dw::index_t k = 0; k < o.blocks; ++k) {
      Matrix block(b.rows, rank);
      for (dw::index_t i = 0; i < b.rows; ++i)
        for (dw::index_t j = 0; j < rank; ++j) block(i, j) = b(i, k * rank + j);
      y = plus(y, times_transposed(z, block), o.alpha / static_cast<double>(o.rank));
    }
    return y;
  }
  template <class P, class Options>
  static Cost forward_cost(double tokens, double in, double out, Options o) {
    o.rank /= o.blocks;
    return LoraRow::forward_cost<P>(tokens, in, out, o);
  }
  template <class P, class Options>
  static Cost backward_cost(double tokens, double in, double out, Options o) {
    o.rank /= o.blocks;
    return LoraRow::backward_cost<P>(tokens, in, out, o);
  }
};

}  // namespace deltaw_tests
