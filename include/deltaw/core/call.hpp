#pragma once
// Shapes of a linear layer and what the caller says about one call.

#include <cstdint>
#include <span>
#include <string>

#include "deltaw/core/view.hpp"

namespace deltaw {

/// Where this process's part of a tensor-parallel layer lies in the whole; totals of 0 mean "not sharded".
struct Shard {
  index_t in_offset = 0, in_total = 0;
  index_t out_offset = 0, out_total = 0;
};

/// Y (tokens x out_features) = X (tokens x in_features) W^T, with W out_features x in_features.
struct LinearShape {
  index_t in_features = 0;
  index_t out_features = 0;
  Shard shard = {};

  index_t in_total() const { return shard.in_total > 0 ? shard.in_total : in_features; }
  index_t out_total() const { return shard.out_total > 0 ? shard.out_total : out_features; }
};

inline void check_shape(std::string_view where, const LinearShape& shape) {
  if (shape.in_features <= 0) raise_mismatch<ShapeError>(where, "shape.in_features", shape.in_features, "1 or more");
  if (shape.out_features <= 0) raise_mismatch<ShapeError>(where, "shape.out_features", shape.out_features, "1 or more");
}

/// One call of forward and its backward. `forward` finds it in `Saved`, so a recomputation with the same Call gives the
/// same bits. Dropout acts only while `training`, and is addressed by (step, micro_batch, first_row + row).
struct Call {
  bool training = false;
  std::uint64_t step = 0;
  std::uint64_t micro_batch = 0;
  std::uint64_t first_row = 0;        ///< of this call's rows in the micro-batch, where a batch is cut in pieces
  std::span<const int> row_ids = {};  ///< which adapter each row uses, for banks of adapters
};

/// Where training stands, for methods that follow a schedule.
struct StepInfo {
  long step = 0;         ///< counted from 0, of the optimizer step that is about to be taken or was just taken
  long total_steps = 0;  ///< 0: not known; methods whose schedule needs it refuse that
  double learning_rate = 0;
};

}  // namespace deltaw
