#pragma once
// A frozen linear layer with named adapters on it: composition, merging, enabling, run-time scale, hot swap.

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "deltaw/base/dense.hpp"
#include "deltaw/core/rollback.hpp"
#include "deltaw/model/any_adapter.hpp"

namespace deltaw {

/// How `unmerge` will give the weight back.
enum class MergeMode {
  /// Restores the very bits; costs a copy of W while merged.
  KeepCopy,
  /// The method's own inverse, W - dW for LoRA: costs nothing, but W comes back only up to rounding (one unit in the last
  /// place in float; in 16 bits use KeepCopy), and a method that can destroy W says so in its page.
  Subtract,
};

/// What becomes of the dx that `AdaptedLinear::backward` is given.
enum class InputGradient { Add, Overwrite };

/// Y = X W^T + b, then each enabled adapter in the order added. W and b stay the user's memory, of type Act.
template <class P, class B, class Act = P>
class AdaptedLinear {
 public:
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Adapter = AnyAdapter<P, B, Act>;
  using Dense = DenseLinear<Act, Act, B>;

  struct Saved {
    Call call;
    std::vector<typename Adapter::Saved> adapters;
  };

  explicit AdaptedLinear(Dense base) : base_(std::move(base)) {}

  /// Puts an adapter on the layer. Throws NameError if the name is taken, ShapeError if it does not fit.
  void add(Context& ctx, std::string name, Adapter adapter) {
    check_add(name, adapter);
    if (adapter.trains_base()) adapter.bind_weight(ctx, base_.weight, base_.bias);
    entries_.push_back({std::move(name), std::move(adapter)});
  }
  /// Throws what `add` would, and changes nothing.
  void check_add(std::string_view name, const Adapter& adapter) const {
    check_unmerged("AdaptedLinear.add");
    if (has(name))
      raise_mismatch<NameError>("AdaptedLinear.add", "name", std::string("'").append(name).append("'"),
                                "one not taken yet");
    check_fit("AdaptedLinear.add", adapter, name);
  }
  /// Replaces an adapter in place, keeping its name, its order and what it is called in messages.
  void swap(Context& ctx, std::string_view name, Adapter adapter) {
    check_unmerged("AdaptedLinear.swap");
    Entry& e = entry("AdaptedLinear.swap", name);
    check_fit("AdaptedLinear.swap", adapter, name);
    if (adapter.trains_base()) adapter.bind_weight(ctx, base_.weight, base_.bias);
    std::string owner;
    e.adapter.for_each_parameter([&](const auto& p) { owner = p.owner; });
    adapter.for_each_parameter([&](auto& p) { p.owner = owner; });
    e.adapter = std::move(adapter);
    e.swapped = true;
  }
  /// Whether `swap` has put another adapter there than was added.
  bool swapped(std::string_view name) const {
    return const_cast<AdaptedLinear*>(this)->entry("AdaptedLinear.swapped", name).swapped;
  }
  void remove(std::string_view name) {
    check_unmerged("AdaptedLinear.remove");
    entries_.erase(entries_.begin() + (&entry("AdaptedLinear.remove", name) - entries_.data()));
  }
  void enable(std::string_view name, bool on) {
    check_unmerged("AdaptedLinear.enable");
    entry("AdaptedLinear.enable", name).enabled = on;
  }
  bool enabled(std::string_view name) const {
    return const_cast<AdaptedLinear*>(this)->entry("AdaptedLinear.enabled", name).enabled;
  }
  void set_scale(std::string_view name, double scale) {
    check_unmerged("AdaptedLinear.set_scale");
    entry("AdaptedLinear.set_scale", name).adapter.set_scale(scale);
  }

  /// Nothing while merged: the base is then not the one that the adapters stand on.
  void prepare(Context& ctx) {
    if (merged_) return;
    for_each_enabled([&](Entry& e) { e.adapter.prepare(ctx, base_); });
  }
  void finish(Context& ctx) {
    for_each_enabled([&](Entry& e) { e.adapter.finish(ctx, base_); });
  }

  /// y = the adapted output.
  void forward(Context& ctx, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y, Saved& saved) const {
    base_.forward(ctx, x, y);
    if (merged_) return saved.adapters.clear();  // so that a backward after `unmerge` finds nothing of an earlier call
    saved.adapters.resize(entries_.size());
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].enabled) {
        saved.adapters[i] = {};  // so that a backward after `enable` finds nothing of an earlier call
        continue;
      }
      saved.adapters[i].call = saved.call;
      entries_[i].adapter.forward(ctx, base_, x, y, saved.adapters[i]);
    }
  }
  /// Parameter gradients +=, dx += the whole gradient of x, or = it (none if dx is empty); dy is overwritten.
  void backward(Context& ctx, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy, MatrixView<Act, Space> dx,
                Saved& saved, InputGradient mode = InputGradient::Add) {
    check_unmerged("AdaptedLinear.backward");
    if (saved.adapters.size() != entries_.size())
      raise_mismatch<StaleError>("AdaptedLinear.backward", "saved.adapters", saved.adapters.size(),
                                 std::to_string(entries_.size()) + ", those of this layer's forward");
    const bool overwrite = mode == InputGradient::Overwrite && is_given(dx);
    const auto added = overwrite ? MatrixView<Act, Space>{} : dx;
    for (std::size_t i = entries_.size(); i-- > 0;)
      if (entries_[i].enabled) entries_[i].adapter.backward(ctx, base_, x, dy, added, saved.adapters[i]);
    if (is_given(dx)) base_.backward_input(ctx, dy, dx, overwrite ? 0 : 1);
    for (std::size_t i = 0; overwrite && i < entries_.size(); ++i)
      if (entries_[i].enabled) entries_[i].adapter.backward_input(ctx, base_, dx, saved.adapters[i]);
  }

  /// Adds every enabled adapter's dW to the user's weight; each is prepared first, which also brings a trained weight into
  /// its storage. Refused, with nothing changed, when already merged, when a method cannot merge, when a parameter is not
  /// finite, or when `Subtract` could not give the weight back.
  void merge(Context& ctx, MergeMode mode) {
    check_merge(ctx);
    prepare(ctx);
    if (mode == MergeMode::Subtract) for_each_enabled([&](Entry& e) { e.adapter.check_unmerge(ctx); });
    if (mode == MergeMode::KeepCopy) {
      B::copy(ctx, base_.weight, weight_copy_.resize(base_.weight.rows, base_.weight.cols));
      B::copy(ctx, base_.bias, bias_copy_.resize(base_.bias.rows, base_.bias.cols));
    }
    mode_ = mode;
    std::size_t done = 0;
    Rollback undo([&] { take_back(ctx, done); });
    for (; done < entries_.size(); ++done)
      if (adds_delta(entries_[done])) entries_[done].adapter.merge(ctx, base_, base_.weight, base_.bias);
    undo.keep();
    merged_ = true;
    merged_version_ = version_of_deltas();
  }
  /// Throws what `merge` would, and changes nothing.
  void check_merge(Context& ctx) {
    check_unmerged("AdaptedLinear.merge");
    for_each_enabled([&](Entry& e) { check_mergeable(ctx, e); });
  }
  /// Undoes `merge`, by the copy or by subtraction, as was chosen then. What is subtracted must be what was added: throws
  /// StaleError, with nothing changed, where a parameter has changed since.
  void unmerge(Context& ctx) {
    if (!merged_) raise<StaleError>("AdaptedLinear.unmerge", "state: got a layer that is not merged, want merge first");
    if (mode_ == MergeMode::Subtract && merged_version_ != version_of_deltas())
      raise<StaleError>("AdaptedLinear.unmerge",
                        "parameters: got ones changed since merge, want those that were added, or MergeMode::KeepCopy");
    take_back(ctx, entries_.size());
    merged_ = false;
  }
  bool merged() const { return merged_; }

  Adapter& adapter(std::string_view name) { return entry("AdaptedLinear.adapter", name).adapter; }
  const Adapter& adapter(std::string_view name) const {
    return const_cast<AdaptedLinear*>(this)->entry("AdaptedLinear.adapter", name).adapter;
  }
  bool has(std::string_view name) const {
    for (const auto& e : entries_)
      if (e.name == name) return true;
    return false;
  }
  std::size_t adapter_count() const { return entries_.size(); }
  const Dense& base() const { return base_; }
  LinearShape shape() const { return base_.shape; }

  /// Of all adapters, enabled or not.
  template <class F>
  void for_each_parameter(F&& f) {
    for (auto& e : entries_) e.adapter.for_each_parameter(f);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    for (const auto& e : entries_) e.adapter.for_each_parameter(f);
  }

 private:
  struct Entry {
    std::string name;
    Adapter adapter;
    bool enabled = true, swapped = false;
  };

  static bool adds_delta(const Entry& e) { return e.enabled && !e.adapter.trains_base(); }
  std::uint64_t version_of_deltas() const {
    std::uint64_t sum = 0;
    for (const Entry& e : entries_) sum += adds_delta(e) ? version_of(e.adapter) : 0;
    return sum;
  }
  // The weight as it was before the first `count` entries were merged.
  void take_back(Context& ctx, std::size_t count) {
    if (mode_ == MergeMode::KeepCopy) {
      B::copy(ctx, weight_copy_.view(), base_.weight);
      B::copy(ctx, bias_copy_.view(), base_.bias);
      weight_copy_ = {};
      bias_copy_ = {};
      return;
    }
    for (std::size_t i = count; i-- > 0;)
      if (adds_delta(entries_[i])) entries_[i].adapter.unmerge(ctx, base_, base_.weight, base_.bias);
  }

  template <class F>
  void for_each_enabled(F f) {
    for (auto& e : entries_)
      if (e.enabled) f(e);
  }
  // `name` is that of the adapter itself: a weight can be trained whole by one adapter only.
  void check_fit(std::string_view where, const Adapter& adapter, std::string_view name) const {
    const LinearShape got = adapter.shape(), want = base_.shape;
    if (got.in_features != want.in_features || got.out_features != want.out_features)
      raise_mismatch<ShapeError>(where, "adapter.shape",
                                 std::to_string(got.in_features) + " -> " + std::to_string(got.out_features),
                                 std::to_string(want.in_features) + " -> " + std::to_string(want.out_features));
    for (const auto& e : entries_)
      if (adapter.trains_base() && e.adapter.trains_base() && e.name != name)
        raise<NameError>(where, "adapter: got a second one that trains the weight itself, want only '" + e.name + "'");
  }
  void check_mergeable(Context& ctx, const Entry& e) const {
    if (!e.adapter.trains_base() && !e.adapter.can_merge())
      raise<UnsupportedError>("AdaptedLinear.merge", "adapter '" + e.name + "': got method '" +
                                                         std::string(e.adapter.method_name()) +
                                                         "', which cannot be merged, want one that can");
    e.adapter.for_each_parameter([&](const auto& p) {
      if (!std::isfinite(B::norm2(ctx, p.value.view())))
        raise<NonFiniteError>("AdaptedLinear.merge", "parameter '" + p.full_name() + "' of adapter '" + e.name +
                                                         "': got NaN or infinity, want finite");
      if (p.role == Role::Bias && base_.bias.empty())
        raise<UnsupportedError>("AdaptedLinear.merge",
                                "adapter '" + e.name + "': got a trained bias, want a base that has one to add it to");
    });
  }
  void check_unmerged(std::string_view where) const {
    if (merged_) raise<StaleError>(where, "state: got a merged layer, want unmerge first");
  }
  Entry& entry(std::string_view where, std::string_view name) {
    for (auto& e : entries_)
      if (e.name == name) return e;
    std::string known;
    for (const auto& e : entries_) known += (known.empty() ? "'" : ", '") + e.name + "'";
    raise_mismatch<NameError>(where, "name", "'" + std::string(name) + "'",
                              known.empty() ? "an adapter added before" : "one of " + known);
  }

  Dense base_;
  std::vector<Entry> entries_;
  bool merged_ = false;
  std::uint64_t merged_version_ = 0;
  MergeMode mode_ = MergeMode::KeepCopy;
  Tensor<Act, Space> weight_copy_, bias_copy_;
};

}  // namespace deltaw
