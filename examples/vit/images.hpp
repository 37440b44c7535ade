#pragma once
// Images as the model takes them: 49 patches of 4 x 4 pixels, normalised; upright as they come, or shifted, a quarter turn
// to the left and inverted, which is the task that the demo adapts to.

#include <array>
#include <span>
#include <vector>

#include "common/fashion_mnist.hpp"
#include "vit/vit.hpp"

namespace vit {

enum class Look { Upright, Shifted };

/// A batch, whose memory is reused from batch to batch.
class PatchBatch {
 public:
  void fill(const examples::LabelledImages& images, std::span<const index_t> chosen, Look look) {
    constexpr index_t side = examples::image_side, patch = 4, across = side / patch;
    const auto count = static_cast<index_t>(chosen.size());
    const auto out = patches_.resize(count * across * across, patch * patch);
    labels_.resize(chosen.size());
    examples::parallel_for(count, [&](index_t n, int) {
      const auto image = images.image(chosen[static_cast<std::size_t>(n)]);
      for (index_t i = 0; i < side; ++i)
        for (index_t j = 0; j < side; ++j) {
          const index_t from = look == Look::Upright ? i * side + j : j * side + (side - 1 - i);
          const int value = image[static_cast<std::size_t>(from)];
          out((n * across + i / patch) * across + j / patch, i % patch * patch + j % patch) =
              normalised(look == Look::Upright ? value : 255 - value);
        }
    });
    for (std::size_t n = 0; n < chosen.size(); ++n) labels_[n] = images.labels[static_cast<std::size_t>(chosen[n])];
  }

  ConstView<float> patches() const { return patches_.view(); }
  std::span<const int> labels() const { return labels_; }

 private:
  // By mean and deviation of the pixels of the upright training images.
  static float normalised(int value) { return (static_cast<float>(value) / 255 - 0.2860f) / 0.3530f; }

  dw::Tensor<float> patches_;
  std::vector<int> labels_;
};

/// The share of the images whose label the model finds; `on_batch(done)` is called after each batch.
template <class OnBatch>
double accuracy(Vit<float>& model, const examples::LabelledImages& images, std::span<const index_t> chosen, Look look,
                OnBatch on_batch) {
  constexpr std::size_t batch = 64;
  PatchBatch patches;
  index_t correct = 0;
  model.set().prepare(model.context());
  for (std::size_t first = 0; first < chosen.size(); first += batch) {
    const auto part = chosen.subspan(first, std::min(batch, chosen.size() - first));
    patches.fill(images, part, look);
    correct += count_correct<float>(model.forward(patches.patches()), patches.labels());
    on_batch(static_cast<long>(first + part.size()));
  }
  return static_cast<double>(correct) / static_cast<double>(chosen.size());
}

}  // namespace vit
