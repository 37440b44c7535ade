#pragma once
// Checks of options that many methods share. Each message names the option, what was given and what was expected.

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "deltaw/core/call.hpp"

namespace deltaw {

/// value finite and 0 or more.
inline void check_not_negative(std::string_view where, std::string_view name, double value) {
  if (!(value >= 0 && std::isfinite(value))) raise_mismatch<OptionError>(where, name, value, "finite and 0 or more");
}

/// 1 <= rank <= min(in, out) of the whole layer (unless `any_rank`), alpha finite and not 0, dropout in [0, 1).
inline void check_low_rank_options(std::string_view where, const LinearShape& shape, index_t rank, double alpha,
                                   double dropout, bool any_rank) {
  if (rank < 1) raise_mismatch<OptionError>(where, "rank", rank, "1 or more");
  const index_t limit = std::min(shape.in_total(), shape.out_total());
  if (rank > limit && !any_rank)
    raise_mismatch<OptionError>(where, "rank", rank,
                                "at most min(in_features, out_features) = " + std::to_string(limit) +
                                    ", or any_rank = true for a layer of " + std::to_string(shape.in_total()) + " -> " +
                                    std::to_string(shape.out_total()));
  if (!std::isfinite(alpha) || alpha == 0) raise_mismatch<OptionError>(where, "alpha", alpha, "finite and not 0");
  if (!(dropout >= 0 && dropout < 1)) raise_mismatch<OptionError>(where, "dropout", dropout, "at least 0 and below 1");
}

}  // namespace deltaw
