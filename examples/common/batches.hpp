#pragma once
// Which images a training run sees, as functions of (seed, step): there is no state to save, so a resumed run goes on with
// the very images that an uninterrupted one would have seen.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "deltaw/core/random.hpp"
#include "deltaw/core/view.hpp"

namespace examples {

using deltaw::index_t;

/// 0 ... count - 1 in a random order.
inline std::vector<index_t> shuffled(index_t count, deltaw::RandomKey key) {
  std::vector<std::uint64_t> draws(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < draws.size(); ++i) draws[i] = key.fold(i).value;
  std::vector<index_t> order(draws.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    return draws[static_cast<std::size_t>(a)] < draws[static_cast<std::size_t>(b)];
  });
  return order;
}

/// `count` of the images, as many of each label, in a random order: the first `count` / labels of each label in the order
/// of `shuffled`, dealt in turn, so that every stretch of it is balanced too.
inline std::vector<index_t> balanced_choice(std::span<const int> labels, index_t count, deltaw::RandomKey key) {
  const int classes = 1 + *std::max_element(labels.begin(), labels.end());
  std::vector<std::vector<index_t>> by_label(static_cast<std::size_t>(classes));
  for (const index_t i : shuffled(static_cast<index_t>(labels.size()), key))
    by_label[static_cast<std::size_t>(labels[static_cast<std::size_t>(i)])].push_back(i);
  std::vector<index_t> chosen;
  for (std::size_t round = 0; static_cast<index_t>(chosen.size()) < count; ++round) {
    const std::size_t before = chosen.size();
    for (const auto& images : by_label)
      if (round < images.size() && static_cast<index_t>(chosen.size()) < count) chosen.push_back(images[round]);
    if (chosen.size() == before)
      deltaw::raise_mismatch<deltaw::OptionError>("balanced_choice", "count", count,
                                                  "at most the " + std::to_string(chosen.size()) + " images there are");
  }
  return chosen;
}

/// The images of each step: epochs over `images`, each in its own random order, cut in batches that may cross epochs.
class Batches {
 public:
  Batches(std::vector<index_t> images, index_t batch, std::uint64_t seed)
      : images_(std::move(images)), batch_(batch), key_(deltaw::RandomKey{seed}.fold(deltaw::name_hash("batches"))) {
    if (images_.empty()) deltaw::raise_mismatch<deltaw::OptionError>("Batches", "images", 0, "1 or more");
    if (batch < 1) deltaw::raise_mismatch<deltaw::OptionError>("Batches", "batch", batch, "1 or more");
  }

  std::span<const index_t> operator()(long step) {
    const auto count = static_cast<index_t>(images_.size());
    chosen_.clear();
    for (index_t i = 0; i < batch_; ++i) {
      const index_t place = step * batch_ + i;
      if (place / count != epoch_) {
        epoch_ = place / count;
        order_ = shuffled(count, key_.fold(static_cast<std::uint64_t>(epoch_)));
      }
      chosen_.push_back(images_[static_cast<std::size_t>(order_[static_cast<std::size_t>(place % count)])]);
    }
    return chosen_;
  }

 private:
  std::vector<index_t> images_, order_, chosen_;
  index_t batch_, epoch_ = -1;
  deltaw::RandomKey key_;
};

}  // namespace examples
