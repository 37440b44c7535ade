#pragma once
// What an optimizer, a checkpoint or a test sees of an adapter: named values with their gradients.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/core/memory.hpp"

namespace deltaw {

/// What a parameter is to its method; optimizers choose by it (LoRA+ gives `Up` another learning rate).
enum class Role { Down, Up, Gate, Magnitude, Core, Vector, Bias, Router, Coefficient, Weight };

/// Which axis of a tensor counts ranks, so that ranks can be cut or grown without knowing the method.
enum class RankAxis { None, Rows, Cols, Both };

/// State that an optimizer keeps beside a parameter ("exp_avg", ...); it may have a shape of its own.
template <class T, class Space = Host>
struct Slot {
  std::string name;
  RankAxis rank_axis = RankAxis::None;
  Tensor<T, Space> value;
};

/// Ranks [first, first + count) that backward and optimizers may touch, along the parameter's rank axis (of a core: its
/// columns); count < 0 means all from `first`.
struct Window {
  index_t first = 0;
  index_t count = -1;
};

template <class T, class Space = Host>
struct Parameter {
  std::string name;   ///< as the checkpoint has it, without the layer: "lora_A.weight"
  std::string owner;  ///< the layer it belongs to, once an AdapterSet has named it
  Role role = Role::Weight;
  RankAxis rank_axis = RankAxis::None;
  Tensor<T, Space> value;
  Tensor<T, Space> grad;  ///< backward adds to it until `zero_grad`
  bool trained = true;    ///< false: backward skips its product and optimizers leave it alone
  Window window;
  std::uint64_t version = 0;  ///< counts changes of the value; whoever writes it calls `changed`
  long step = 0;              ///< optimizer steps this parameter has taken
  /// Of each rank: the step at which it came. Empty where all were there from the start. AdamW counts a rank's steps from
  /// there, since fresh moments under an old step count would make the first update up to three times too long.
  std::vector<long> births;
  std::vector<Slot<T, Space>> slots;

  Parameter() = default;
  Parameter(std::string name_, Role role_, RankAxis axis, index_t rows, index_t cols)
      : name(std::move(name_)), role(role_), rank_axis(axis), value(rows, cols), grad(rows, cols) {}

  /// One whose values are saved but which nothing trains: it has no gradient.
  static Parameter frozen(std::string name, Role role, RankAxis axis, index_t rows, index_t cols) {
    Parameter p;
    p.name = std::move(name);
    p.role = role;
    p.rank_axis = axis;
    p.value.resize(rows, cols);
    p.trained = false;
    return p;
  }

  /// Where backward adds: made, and zero, at first use for what was frozen and is trained now.
  MatrixView<T, Space> gradient() {
    const bool fits = grad.rows() == value.rows() && grad.cols() == value.cols();
    return fits ? grad.view() : grad.resize(value.rows(), value.cols());
  }
  /// Ranks along the rank axis; 0 for what has none.
  index_t ranks() const {
    if (rank_axis == RankAxis::None) return 0;
    return rank_axis == RankAxis::Rows ? value.rows() : value.cols();
  }
  /// Those ranks of `whole`, which is the value, the gradient, or a slot of the same shape.
  template <class View>
  View part(View whole, const Window& ranks) const {
    if (ranks.count < 0 && ranks.first == 0) return whole;
    const bool rows = rank_axis == RankAxis::Rows;
    const index_t all = rows ? whole.rows : whole.cols;
    const index_t first = std::min(ranks.first, all);
    const index_t count = ranks.count < 0 ? all - first : std::min(ranks.count, all - first);
    return rows ? whole.row_range(first, count) : whole.col_range(first, count);
  }
  /// The ranks of `whole` that an optimizer may touch.
  template <class View>
  View trained_part(View whole) const {
    return part(whole, window);
  }
  /// f(ranks, steps they have taken, this one included) for each run of trained ranks of one age.
  template <class F>
  void for_each_age(F f) const {
    if (births.empty()) return f(window, step);
    const auto ranks = static_cast<index_t>(births.size());
    const index_t end = window.count < 0 ? ranks : std::min(ranks, window.first + window.count);
    const auto birth = [&](index_t rank) { return births[static_cast<std::size_t>(rank)]; };
    for (index_t first = window.first, last = first; first < end; first = last) {
      while (last < end && birth(last) == birth(first)) ++last;
      f(Window{first, last - first}, std::max(1L, step - birth(first)));
    }
  }
  /// Ranks [first, first + count) of `ranks` are new: they have taken no step yet.
  void born(index_t first, index_t count, index_t ranks) {
    births.resize(static_cast<std::size_t>(ranks));
    std::fill_n(births.begin() + first, count, step);
  }
  void changed() { ++version; }
  /// "layer.name", or the name alone where no AdapterSet has named the layer.
  std::string full_name() const { return owner.empty() ? name : owner + "." + name; }

  /// The slot of that name, made (zero, shaped as the value) at first use.
  Tensor<T, Space>& slot(std::string_view slot_name) {
    for (auto& s : slots)
      if (s.name == slot_name) return s.value;
    slots.push_back({std::string(slot_name), rank_axis, Tensor<T, Space>(value.rows(), value.cols())});
    return slots.back().value;
  }
};

/// The ranks of `p` that are trained, of the first `active`.
template <class T, class Space>
Window trained_ranks(const Parameter<T, Space>& p, index_t active) {
  const index_t first = std::min(p.window.first, active);
  const index_t all = active - first;
  return {first, p.window.count < 0 ? all : std::min(p.window.count, all)};
}

/// The two factors of a plain low-rank pair, dW = scale * up * down, for optimizers that need both (LoRA-Pro).
template <class T, class Space = Host>
struct Pair {
  Parameter<T, Space>* down = nullptr;
  Parameter<T, Space>* up = nullptr;
  double scale = 1;
};

}  // namespace deltaw
