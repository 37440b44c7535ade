#pragma once
// The adapters of a whole model: named layers, targets by PEFT's rules, heads trained whole, parameter counts.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/core/base_change.hpp"
#include "deltaw/core/rollback.hpp"
#include "deltaw/init/kaiming.hpp"
#include "deltaw/model/adapted_linear.hpp"
#include "deltaw/model/adapter_name.hpp"
#include "deltaw/model/registry.hpp"
#include "deltaw/model/targets.hpp"

namespace deltaw {

/// What to put on which layers.
struct AdaptRequest {
  std::string name = "default";          ///< of the adapter; a second request needs another
  std::string method = "lora";           ///< as the registry has it
  std::vector<OptionText> options = {};  ///< of the method: {{"rank", "8"}, {"alpha", "16"}}
  Targets targets = {};                  ///< which layers get the method, and which are trained whole
  std::vector<std::string> heads = {};   ///< the layers that `all_linear` leaves out
  /// The frozen bases of all layers, of the method's own type `Shared`, where they are not to be drawn.
  std::shared_ptr<const void> shared = nullptr;
};

struct ParameterCounts {
  index_t trained = 0;
  index_t all = 0;  ///< as PEFT counts: a module to save counts twice, frozen original and trained copy
};

/// Owns one AdaptedLinear a layer, over the user's weights, which it never copies. Layers keep their address.
template <class P, class B, class Act = P>
class AdapterSet {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Layer = AdaptedLinear<P, B, Act>;
  using Dense = DenseLinear<Act, Act, B>;
  using Any = AnyAdapter<P, B, Act>;
  using Change = BaseChange<P, Space>;

  /// Declares a linear layer of the model; the order is that of reports and checkpoints.
  Layer& add_layer(std::string name, Dense base) {
    if (name.empty()) raise_mismatch<NameError>("AdapterSet.add_layer", "name", quoted(name), "one not empty");
    if (find(name) != nullptr || is_extra(name))
      raise_mismatch<NameError>("AdapterSet.add_layer", "name", quoted(name), "one not taken yet");
    names_.push_back(std::move(name));
    layers_.push_back(std::make_unique<Layer>(std::move(base)));
    return *layers_.back();
  }

  /// Trains something that is no linear layer (a norm, an embedding) in the user's memory; write its gradient into
  /// `.grad` of the parameter returned.
  Parameter<P, Space>& add_parameter(std::string name, MatrixView<P, Space> value) {
    check_view("AdapterSet.add_parameter", "value of " + quoted(name), value, value.rows, value.cols);
    if (find(name) != nullptr || is_extra(name))
      raise_mismatch<NameError>("AdapterSet.add_parameter", "name", quoted(name), "one not taken yet");
    auto& p = *extra_.emplace_back(std::make_unique<Parameter<P, Space>>());
    p.name = std::move(name);
    p.value.bind(value);
    p.grad.resize(value.rows, value.cols);
    return p;
  }
  /// Parameters of the model that this set knows nothing of, for the counts.
  void add_frozen_count(index_t count) {
    if (count < 0) raise_mismatch<OptionError>("AdapterSet.add_frozen_count", "count", count, "0 or more");
    frozen_ += count;
  }

  /// Puts adapters on the layers that `request` selects, initialised by `init(ctx, adapter, base)`, and lists them. What the
  /// initializer did to the weights is kept (`base_change`), to be undone by `remove`. All is checked before anything
  /// changes: throws NameError where a target or pattern matches nothing, OptionError for options.
  template <class Init = init::Kaiming>
  std::vector<Selected> adapt(Context& ctx, AdaptRequest request, const Init& init = {}) {
    check_adapter_name(request.name);
    if (find_request(request.name) != nullptr)
      raise_mismatch<NameError>("AdapterSet.adapt", "name", quoted(request.name), "one not taken yet");
    const auto method = find_method<P, B, Act>(request.method);
    const LayerOptions defaults = method.defaults(request.options);
    auto selected =
        select(request.targets, defaults.rank.value_or(1), defaults.alpha.value_or(1), names_, request.heads);
    if (!defaults.rank && !request.targets.rank_pattern.empty())
      raise_mismatch<OptionError>("AdapterSet.adapt", "rank_pattern", "one for method " + quoted(request.method),
                                  "none: the method has no rank");
    if (!defaults.alpha && !request.targets.alpha_pattern.empty())
      raise_mismatch<OptionError>("AdapterSet.adapt", "alpha_pattern", "one for method " + quoted(request.method),
                                  "none: the method has no alpha");
    std::vector<LinearShape> shapes;
    for (const Selected& s : selected)
      if (s.role == ModuleRole::Adapt) shapes.push_back(layer(s.name).shape());
    const auto shared = request.shared ? request.shared : method.share(ctx, shapes, request.options);
    std::vector<Any> made;
    for (const Selected& s : selected) {
      const LinearShape shape = layer(s.name).shape();
      made.push_back(s.role == ModuleRole::Save
                         ? make_adapter<P, B, Act>("full", shape, {})
                         : method.make(shape, request.options, {s.rank, s.alpha, name_hash(s.name)}, shared));
      layer(s.name).check_add(request.name, made.back());
    }
    std::vector<Change> changes(selected.size());
    Rollback undo([&] {
      for (std::size_t i = 0; i < selected.size(); ++i) undo_change<B>(ctx, changes[i], weight(selected[i].name));
    });
    for (std::size_t i = 0; i < selected.size(); ++i) {
      if (made[i].trains_base()) continue;  // starts as the weight that `add` binds it to
      const Dense& base = layer(selected[i].name).base();
      if constexpr (std::is_void_v<decltype(init(ctx, made[i], base))>) {
        init(ctx, made[i], base);
      } else {
        changes[i] = init(ctx, made[i], base);
      }
      deltaw::attach(ctx, made[i], base);
    }
    for (std::size_t i = 0; i < selected.size(); ++i) {
      Layer& target = layer(selected[i].name);
      target.add(ctx, request.name, std::move(made[i]));
      target.adapter(request.name).for_each_parameter([&](auto& p) { p.owner = selected[i].name; });
    }
    requests_.push_back(std::move(request));
    selections_.push_back(selected);
    changes_.push_back(std::move(changes));
    undo.keep();
    return selected;
  }

  /// What the initializer of that adapter did to the layer's weight; empty where it did nothing.
  const Change& base_change(std::string_view name, std::string_view layer_name) const {
    const std::size_t index = request_index(name);
    for (std::size_t i = 0; i < selections_[index].size(); ++i)
      if (selections_[index][i].name == layer_name) return changes_[index][i];
    raise_mismatch<NameError>("AdapterSet.base_change", "layer", quoted(layer_name),
                              "one that has adapter " + quoted(name));
  }

  /// Takes the adapters of that name off all layers, none if one is merged, and gives back to the weights what their
  /// initializer took (up to rounding: keep a copy where the very bits must come back).
  void remove(Context& ctx, std::string_view name) {
    const std::size_t index = request_index(name);
    for (const Selected& s : selections_[index])
      if (layer(s.name).merged())
        raise<StaleError>("AdapterSet.remove", "layer " + quoted(s.name) + ": got a merged one, want unmerge first");
    for (std::size_t i = 0; i < selections_[index].size(); ++i) {
      const std::string& layer_name = selections_[index][i].name;
      layer(layer_name).remove(name);
      undo_change<B>(ctx, changes_[index][i], weight(layer_name));
    }
    requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(index));
    selections_.erase(selections_.begin() + static_cast<std::ptrdiff_t>(index));
    changes_.erase(changes_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  Layer& layer(std::string_view name) {
    if (Layer* found = find(name)) return *found;
    raise_mismatch<NameError>("AdapterSet.layer", "name", quoted(name),
                              "one of the " + std::to_string(names_.size()) + " layers added");
  }
  const Layer& layer(std::string_view name) const { return const_cast<AdapterSet*>(this)->layer(name); }
  const std::vector<std::string>& layer_names() const { return names_; }
  bool has(std::string_view adapter) const { return find_request(adapter) != nullptr; }
  /// Every `adapt` so far, in order.
  const std::vector<AdaptRequest>& requests() const { return requests_; }
  /// What `adapt` was asked for under that name, and what it selected.
  const AdaptRequest& request(std::string_view name) const { return requests_[request_index(name)]; }
  const std::vector<Selected>& selected(std::string_view name) const { return selections_[request_index(name)]; }

  void prepare(Context& ctx) {
    for (auto& l : layers_) l->prepare(ctx);
  }
  void finish(Context& ctx) {
    for (auto& l : layers_) l->finish(ctx);
  }
  /// The hooks of a step for all layers of each method together, see core/adapter.hpp.
  void begin_step(Context& ctx, const StepInfo& step) {
    for_each_group([&](auto layers) { Any::begin_step(ctx, layers, step); });
  }
  void regularize(Context& ctx, MatrixView<P, Space> loss = {}) {
    for_each_group([&](auto layers) { Any::regularize(ctx, layers, loss); });
  }
  void after_step(Context& ctx, const StepInfo& step) {
    for_each_group([&](auto layers) { Any::after_step(ctx, layers, step); });
  }
  /// Merges every layer, or none if one refuses.
  void merge(Context& ctx, MergeMode mode) {
    for (auto& l : layers_) l->check_merge(ctx);
    std::size_t done = 0;
    Rollback undo([&] {
      while (done-- > 0) layers_[done]->unmerge(ctx);
    });
    for (; done < layers_.size(); ++done) layers_[done]->merge(ctx, mode);
    undo.keep();
  }
  /// Unmerges every layer, or none if one is not merged.
  void unmerge(Context& ctx) {
    for (std::size_t i = 0; i < layers_.size(); ++i)
      if (!layers_[i]->merged())
        raise<StaleError>("AdapterSet.unmerge", "layer " + quoted(names_[i]) + ": got one not merged, want all merged");
    for (std::size_t i = layers_.size(); i-- > 0;) layers_[i]->unmerge(ctx);  // in reverse: two may share a weight
  }
  /// On every layer that has the adapter of that name, or on none if one is merged.
  void enable(std::string_view name, bool on) {
    for (const Selected& s : selected(name))
      if (layer(s.name).merged())
        raise<StaleError>("AdapterSet.enable", "layer " + quoted(s.name) + ": got a merged one, want unmerge first");
    for (const Selected& s : selected(name)) layer(s.name).enable(name, on);
  }

  template <class F>
  void for_each_parameter(F&& f) {
    for (auto& l : layers_) l->for_each_parameter(f);
    for_each_extra(f);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    for (const auto& l : layers_) std::as_const(*l).for_each_parameter(f);
    for_each_extra(f);
  }
  /// Only what `add_parameter` made.
  template <class F>
  void for_each_extra(F&& f) {
    for (auto& p : extra_) f(*p);
  }
  template <class F>
  void for_each_extra(F&& f) const {
    for (const auto& p : extra_) f(std::as_const(*p));
  }

  ParameterCounts counts() const {
    ParameterCounts c{.trained = count_trained(*this), .all = frozen_};
    for (const auto& l : layers_) {
      c.all += l->base().weight.size() + l->base().bias.size();
      std::as_const(*l).for_each_parameter([&](const auto& p) { c.all += p.value.size(); });
    }
    for (const auto& p : extra_) c.all += p->value.size();
    for (std::size_t i = 0; i < requests_.size(); ++i)  // a method that trains the weight where it lies adds none
      for (const Selected& s : selections_[i]) {
        const auto& adapter = layer(s.name).adapter(requests_[i].name);
        if (s.role == ModuleRole::Adapt && adapter.trains_base())
          adapter.for_each_parameter([&](const auto& p) { c.all -= p.value.size(); });
      }
    return c;
  }

 private:
  Layer* find(std::string_view name) {
    for (std::size_t i = 0; i < names_.size(); ++i)
      if (names_[i] == name) return layers_[i].get();
    return nullptr;
  }
  MatrixView<Act, Space> weight(std::string_view name) { return layer(name).base().weight; }
  bool is_extra(std::string_view name) const {
    for (const auto& p : extra_)
      if (p->name == name) return true;
    return false;
  }
  // f(the enabled adapters of one request), in memory that is kept from step to step.
  template <class F>
  void for_each_group(F f) {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      group_.clear();
      for (const Selected& s : selections_[i])
        if (s.role == ModuleRole::Adapt && layer(s.name).enabled(requests_[i].name))
          group_.push_back(&layer(s.name).adapter(requests_[i].name));
      f(std::span<Any* const>(group_));
    }
  }
  const AdaptRequest* find_request(std::string_view name) const {
    for (const auto& r : requests_)
      if (r.name == name) return &r;
    return nullptr;
  }
  std::size_t request_index(std::string_view name) const {
    if (const AdaptRequest* found = find_request(name)) return static_cast<std::size_t>(found - requests_.data());
    raise_mismatch<NameError>("AdapterSet", "adapter", quoted(name), "the name of an earlier `adapt`");
  }
  static std::string quoted(std::string_view name) { return std::string("'").append(name).append("'"); }

  std::vector<std::string> names_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::unique_ptr<Parameter<P, Space>>> extra_;
  std::vector<AdaptRequest> requests_;
  std::vector<std::vector<Selected>> selections_;
  std::vector<std::vector<Change>> changes_;  // of each selection
  std::vector<Any*> group_;
  index_t frozen_ = 0;
};

/// "trainable params: 294,912 || all params: 124,734,720 || trainable%: 0.2364", the line that PEFT prints.
inline std::string to_string(const ParameterCounts& counts) {
  const auto grouped = [](index_t n) {
    std::string digits = std::to_string(n);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
      digits.insert(static_cast<std::size_t>(at), ",");
    return digits;
  };
  char percent[32];
  std::snprintf(percent, sizeof percent, "%.4f",
                counts.all > 0 ? 100.0 * static_cast<double>(counts.trained) / static_cast<double>(counts.all) : 0.0);
  return "trainable params: " + grouped(counts.trained) + " || all params: " + grouped(counts.all) +
         " || trainable%: " + percent;
}

}  // namespace deltaw
