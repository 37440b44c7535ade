#pragma once
// Matrices of -1, 0 and 1, column by column, as an operand of the primitive `gemm_signed`: a product is then a sum of signed
// inputs, and costs what it has non-zeros. A column that selects (one 1) copies, an empty one adds nothing.

#include <cstdint>
#include <vector>

#include "deltaw/core/torch_random.hpp"

namespace deltaw {

/// The non-zeros of column j are row_of[begin[j]] ... row_of[begin[j + 1] - 1], rows ascending: i for 1 and ~i for -1.
template <class Space = Host>
struct SignedColumns {
  const std::int32_t* begin = nullptr;
  const std::int32_t* row_of = nullptr;
  index_t cols = 0;
  index_t non_zeros = 0;  ///< of all columns
};

/// Several such matrices one after the other in one memory, written once on the host.
template <class Space>
class SignedStorage {
 public:
  /// Writes columns on the host; `take` moves them to their space.
  class Writer {
   public:
    void add(index_t row, bool negative = false) {
      const auto i = static_cast<std::int32_t>(row);
      row_of_.push_back(negative ? ~i : i);
    }
    void end_column() { begin_.push_back(static_cast<std::int32_t>(row_of_.size())); }
    /// A matrix that is written next begins at this column of the whole.
    index_t columns() const { return static_cast<index_t>(begin_.size()) - 1; }
    SignedStorage take() {
      SignedStorage storage;
      storage.bounds_.assign(begin_.begin(), begin_.end());
      if (row_of_.empty()) row_of_.push_back(0);
      storage.begin_ = to_tensor<std::int32_t, Space>(1, static_cast<index_t>(begin_.size()), begin_);
      storage.row_of_ = to_tensor<std::int32_t, Space>(1, static_cast<index_t>(row_of_.size()), row_of_);
      return storage;
    }

   private:
    std::vector<std::int32_t> begin_{0}, row_of_;
  };

  bool empty() const { return bounds_.empty(); }
  /// Columns [first, first + count) of the whole as a matrix.
  SignedColumns<Space> columns(index_t first, index_t count) const {
    const auto at = [&](index_t j) { return bounds_[static_cast<std::size_t>(j)]; };
    return {begin_.view().data + first, row_of_.view().data, count, at(first + count) - at(first)};
  }
  std::size_t bytes() const { return begin_.bytes() + row_of_.bytes(); }

 private:
  Tensor<std::int32_t, Space> begin_, row_of_;
  std::vector<std::int32_t> bounds_;  // begin_ for the host
};

}  // namespace deltaw
