#pragma once
// Ranks before training, by the spectra of the layers' weights (LaMDA++; Azizi et al., 2024, arXiv 2406.12832).

#include <algorithm>
#include <span>
#include <vector>

#include "deltaw/core/options.hpp"

namespace deltaw::init {

/// A rank for each layer, of the given mean. The energy of a layer at rank r is sum_{i <= r} s_i^2 / sum_i s_i^2, s its
/// singular values, falling; each rank there is to give goes to the layer whose energy is least, so a flat spectrum gets more
/// than a steep one. Each layer gets at least 1, and at most as many as it has singular values or `greatest`, if that is
/// above 0. The paper says no more than that a low energy calls for rank; this rule is ours. Throws OptionError.
inline std::vector<index_t> allocate_ranks(std::span<const std::vector<double>> spectra, index_t mean,
                                           index_t greatest = 0) {
  constexpr std::string_view where = "allocate_ranks";
  const auto count = static_cast<index_t>(spectra.size());
  std::vector<double> energy(spectra.size()), total(spectra.size());
  std::vector<index_t> ranks(spectra.size(), 1), limits(spectra.size());
  index_t room = 0;
  for (std::size_t l = 0; l < spectra.size(); ++l) {
    for (double s : spectra[l]) {
      check_not_negative(where, "a singular value", s);
      total[l] += s * s;
    }
    if (!(total[l] > 0)) raise_mismatch<OptionError>(where, "the spectrum of a layer", "no value above 0", "some");
    energy[l] = spectra[l][0] * spectra[l][0] / total[l];
    limits[l] = static_cast<index_t>(spectra[l].size());
    if (greatest > 0) limits[l] = std::min(limits[l], greatest);
    room += limits[l];
  }
  if (mean < 1) raise_mismatch<OptionError>(where, "mean", mean, "1 or more");
  if (mean * count > room)
    raise_mismatch<OptionError>(where, "mean", mean,
                                "at most " + std::to_string(room / count) + ", what the layers have room for");
  for (index_t left = (mean - 1) * count; left > 0; --left) {
    std::size_t least = spectra.size();
    for (std::size_t l = 0; l < spectra.size(); ++l)
      if (ranks[l] < limits[l] && (least == spectra.size() || energy[l] < energy[least])) least = l;
    const double s = spectra[least][static_cast<std::size_t>(ranks[least]++)];
    energy[least] += s * s / total[least];
  }
  return ranks;
}

}  // namespace deltaw::init
