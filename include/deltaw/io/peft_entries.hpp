#pragma once
// What belongs to the checkpoint of one adapter of a set: its configuration, its tensors and their names, its base.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/io/peft_config.hpp"
#include "deltaw/io/peft_targets.hpp"
#include "deltaw/io/safetensors.hpp"
#include "deltaw/io/sha256.hpp"
#include "deltaw/model/adapter_set.hpp"

namespace deltaw::io {

/// "sha256:..." over the names and shapes of all layers of the set, in the order of their names: what is written beside
/// an adapter to know its base again.
template <class P, class B, class Act>
std::string base_digest(const AdapterSet<P, B, Act>& set) {
  auto names = set.layer_names();
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) {
    const LinearShape shape = set.layer(name).shape();
    text += name + "\n" + std::to_string(shape.out_total()) + " " + std::to_string(shape.in_total()) + "\n";
  }
  return "sha256:" + sha256(text);
}

namespace detail {

inline constexpr std::string_view peft_prefix = "base_model.model.";

/// A parameter of the set and the tensor that holds its value.
struct PeftEntry {
  std::string module, name;  // "blocks.0.query", "lora_A.weight"
  index_t rows = 0, cols = 0;
  bool flat = false;  // a vector: one dimension in the file
  RankAxis rank_axis = RankAxis::None;

  std::string key() const { return std::string(peft_prefix).append(module).append(".").append(name); }
  std::vector<std::uint64_t> shape() const { return flat ? make_shape(cols) : make_shape(rows, cols); }
};

template <class Param>
PeftEntry entry_of(std::string_view module, const Param& p) {
  const bool matrix = p.role == Role::Down || p.role == Role::Up || p.role == Role::Core || p.role == Role::Weight;
  return {std::string(module), p.name, p.value.rows(), p.value.cols(), p.value.rows() == 1 && !matrix, p.rank_axis};
}

/// Something that is no linear layer, by a name of its own such as "norm.weight"; one row is a vector in PEFT. A name
/// without a dot has no module, and no place in a checkpoint.
template <class Param>
PeftEntry extra_entry(const Param& p) {
  const std::size_t dot = p.name.rfind('.');
  const bool dotted = dot != std::string::npos;
  return {dotted ? p.name.substr(0, dot) : "",
          dotted ? p.name.substr(dot + 1) : p.name,
          p.value.rows(),
          p.value.cols(),
          p.value.rows() == 1,
          RankAxis::None};
}

/// f(entry, parameter) for all that belongs to the checkpoint of one adapter: its parameters on the layers `selected`,
/// then the parameters beside the layers that `wanted(module)`.
template <class Set, class Wanted, class F>
void for_each_peft_entry(Set& set, std::string_view adapter, const std::vector<Selected>& selected, Wanted wanted,
                         F f) {
  for (const Selected& s : selected)
    set.layer(s.name).adapter(adapter).for_each_parameter([&](auto& p) { f(entry_of(s.name, p), p); });
  set.for_each_extra([&](auto& p) {
    const PeftEntry entry = extra_entry(p);
    if (wanted(entry.module)) f(entry, p);
  });
}

/// Of the modules that no pattern names; 1 for what the method does not have.
inline std::pair<index_t, double> standard_rank_and_alpha(const PeftConfig& config) {
  std::pair<index_t, double> standard{1, 1};
  for (const PeftField& field : peft_method("PeftConfig", config.method).fields) {
    if (field.kind == PeftKind::Rank) standard.first = static_cast<index_t>(option_number(field, config.options));
    if (field.kind == PeftKind::Alpha) standard.second = option_number(field, config.options);
  }
  return standard;
}

inline void check_whole(std::string_view where, std::string_view name, const LinearShape& shape) {
  if (shape.shard.in_total > 0 || shape.shard.out_total > 0)
    raise_mismatch<UnsupportedError>(where, "layer " + quote(name), "a shard of a layer",
                                     "whole layers: gather the shards into a set of whole layers first");
}

/// The configuration of one adapter of the set, in words that PEFT reads as we do. Rank and alpha are those that the
/// adapter was made with, whatever its scale is at run time.
template <class Set>
PeftConfig config_of(const Set& set, std::string_view adapter, const PeftInfo& info) {
  const AdaptRequest& request = set.request(adapter);
  peft_method("save_peft", request.method);  // refuses what PEFT has not
  PeftConfig config{.method = request.method, .options = request.options, .targets = {}, .info = info};
  Names adapted, saved;
  std::vector<index_t> ranks;
  std::vector<double> alphas;
  for (const Selected& s : set.selected(adapter)) {
    (s.role == ModuleRole::Save ? saved : adapted).push_back(s.name);
    if (s.role == ModuleRole::Save) continue;
    ranks.push_back(s.rank);
    alphas.push_back(s.alpha);
  }
  config.targets = portable_targets(request.targets, set.layer_names(), adapted, saved);
  const auto [rank, alpha] = standard_rank_and_alpha(config);
  config.targets.rank_pattern = portable_patterns(config.targets.rank_pattern, adapted, ranks, rank);
  config.targets.alpha_pattern = portable_patterns(config.targets.alpha_pattern, adapted, alphas, alpha);
  set.for_each_extra([&](const auto& p) {
    auto& modules = config.targets.modules_to_save;
    const std::string module = extra_entry(p).module;
    if (module.empty())
      raise_mismatch<UnsupportedError>("save_peft", "name of a parameter beside the layers", quote(p.name),
                                       "the name of a module, a dot, and its own, such as 'norm.weight'");
    const bool listed = std::any_of(modules.begin(), modules.end(),
                                    [&](const std::string& entry) { return deltaw::detail::within(entry, module); });
    if (!listed) modules.push_back(module);
  });
  return config;
}

}  // namespace detail

}  // namespace deltaw::io
