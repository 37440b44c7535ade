#pragma once
// A model of five small layers and a norm, in memory of its own, for the tests of checkpoints.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "deltaw/deltaw.hpp"
#include "deltaw/model/adapter_set.hpp"

namespace deltaw_tests {

template <class P>
struct SmallModel {
  using Set = deltaw::AdapterSet<P, deltaw::Cpu>;

  struct Linear {
    std::string name;
    deltaw::LinearShape shape;
    std::vector<P> weight, bias;
  };
  std::vector<Linear> layers;
  std::vector<P> norm;
  deltaw::Cpu::Context ctx;
  Set set;

  explicit SmallModel(bool with_norm = false, std::string_view prefix = "") : norm(6, P(1)) {
    for (const char* name : {"blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value"})
      layers.push_back({std::string(prefix) + name, {.in_features = 6, .out_features = 5}, {}, {}});
    layers.push_back({std::string(prefix) + "head", {.in_features = 5, .out_features = 3}, {}, {}});
    double angle = 0;
    for (auto& [name, shape, weight, bias] : layers) {
      for (deltaw::index_t i = 0; i < shape.in_features * shape.out_features; ++i)
        weight.push_back(static_cast<P>(std::sin(angle += 1)));
      for (deltaw::index_t i = 0; i < shape.out_features; ++i) bias.push_back(static_cast<P>(std::sin(angle += 1)));
      set.add_layer(name, deltaw::dense(weight.data(), bias.data(), shape));
    }
    if (with_norm) set.add_parameter("norm.weight", deltaw::vector_view(norm.data(), 6));
  }
  SmallModel(const SmallModel&) = delete;
  SmallModel& operator=(const SmallModel&) = delete;

  /// Every parameter something of its own.
  void shake(double start) {
    set.for_each_parameter([&](auto& p) {
      for (deltaw::index_t i = 0; i < p.value.size(); ++i)
        p.value.view().data[i] = static_cast<P>(std::sin(start += 1));
      p.changed();
    });
  }
};

/// All values, slots and steps of a set, to be compared bit by bit.
template <class Parameters>
auto snapshot(const Parameters& parameters) {
  using P = typename Parameters::Scalar;
  std::vector<std::pair<std::string, std::vector<P>>> all;
  const auto copy = [&](std::string name, const auto& tensor) {
    const auto view = tensor.view();
    all.emplace_back(std::move(name), std::vector<P>(view.data, view.data + view.size()));
  };
  parameters.for_each_parameter([&](const auto& p) {
    copy(p.owner + "." + p.name + " after " + std::to_string(p.step), p.value);
    for (const auto& slot : p.slots) copy(p.owner + "." + p.name + "#" + slot.name, slot.value);
  });
  return all;
}

}  // namespace deltaw_tests
