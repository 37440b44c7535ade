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

/// How the file holds what is a matrix here: as it is, a row as a vector, or a row as a matrix of one column.
enum class PeftLayout { Matrix, Vector, Column };

/// A parameter of the set and the tensor that holds its value.
struct PeftEntry {
  std::string module, name;  // "blocks.0.query", "lora_A.weight"
  index_t rows = 0, cols = 0;
  PeftLayout layout = PeftLayout::Matrix;
  RankAxis rank_axis = RankAxis::None;

  std::string key() const { return std::string(peft_prefix).append(module).append(".").append(name); }
  std::vector<std::uint64_t> shape() const {
    if (layout == PeftLayout::Vector) return make_shape(cols);
    return layout == PeftLayout::Column ? make_shape(cols, 1) : make_shape(rows, cols);
  }
  /// The same with so many ranks.
  PeftEntry of_rank(index_t rank) const {
    PeftEntry entry = *this;
    if (rank_axis == RankAxis::Rows) entry.rows = rank;
    if (rank_axis == RankAxis::Cols) entry.cols = rank;
    return entry;
  }
};

template <class Param>
PeftEntry entry_of(std::string_view module, const Param& p) {
  const bool matrix = p.role == Role::Down || p.role == Role::Up || p.role == Role::Core || p.role == Role::Weight ||
                      p.role == Role::Coefficient;
  PeftLayout layout = p.value.rows() == 1 && !matrix ? PeftLayout::Vector : PeftLayout::Matrix;
  if (p.name == "lora_E") layout = PeftLayout::Column;
  return {std::string(module), p.name, p.value.rows(), p.value.cols(), layout, p.rank_axis};
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
          p.value.rows() == 1 ? PeftLayout::Vector : PeftLayout::Matrix,
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

inline bool is_alpha(PeftKind kind) { return kind == PeftKind::Alpha || kind == PeftKind::PositiveAlpha; }

/// Of the modules that no pattern names; 1 for what the method does not have.
inline std::pair<index_t, double> standard_rank_and_alpha(const PeftConfig& config) {
  std::pair<index_t, double> standard{1, 1};
  for (const PeftField& field : peft_method("PeftConfig", config.method).fields) {
    if (field.kind == PeftKind::Rank) standard.first = static_cast<index_t>(option_number(field, config.options));
    if (is_alpha(field.kind)) standard.second = option_number(field, config.options);
  }
  return standard;
}

inline void check_whole(std::string_view where, std::string_view name, const LinearShape& shape) {
  if (shape.shard.in_total > 0 || shape.shard.out_total > 0)
    raise_mismatch<UnsupportedError>(where, "layer " + quote(name), "a shard of a layer",
                                     "whole layers: gather the shards into a set of whole layers first");
}

/// Of the ranks that the adapter was made with, those it has now.
template <class Adapter>
index_t present_rank(const Adapter& adapter, index_t made) {
  index_t rank = made;
  adapter.for_each_parameter([&](const auto& p) {
    if (p.rank_axis == RankAxis::Rows) rank = p.value.rows();
  });
  return rank;
}

inline bool same_ranks(const std::vector<std::pair<std::string, index_t>>& present, const std::vector<index_t>& made) {
  return std::equal(present.begin(), present.end(), made.begin(), made.end(),
                    [](const auto& p, index_t rank) { return p.second == rank; });
}

/// Throws UnsupportedError where the file cannot say which ranks a module has.
inline void check_made_ranks(const PeftMethod& method, const std::vector<std::pair<std::string, index_t>>& present,
                             const std::vector<index_t>& made) {
  for (std::size_t i = 0; i < made.size(); ++i) {
    const bool resized = method.ranks != PeftRanks::Masks && present[i].second != made[i];
    const bool uneven = method.ranks != PeftRanks::Patterns && made[i] != made.front();
    if (resized || uneven)
      raise_mismatch<UnsupportedError>(
          "save_peft", "rank of " + quote(present[i].first), present[i].second,
          std::to_string(resized ? made[i] : made.front()) +
              (resized ? ", as it was made" : ", as the other modules have: PEFT has no other"));
  }
}

/// The configuration of one adapter of the set, in words that PEFT reads as we do. Rank and alpha are those that the
/// adapter was made with, whatever its scale is at run time.
template <class Set>
PeftConfig config_of(const Set& set, std::string_view adapter, const PeftInfo& info) {
  const AdaptRequest& request = set.request(adapter);
  const PeftMethod& method = peft_method("save_peft", request.method);  // refuses what PEFT has not
  PeftConfig config{.method = request.method, .options = request.options, .targets = {}, .info = info};
  Names adapted, saved;
  std::vector<index_t> ranks;
  std::vector<double> alphas;
  for (const Selected& s : set.selected(adapter)) {
    (s.role == ModuleRole::Save ? saved : adapted).push_back(s.name);
    if (s.role == ModuleRole::Save) continue;
    ranks.push_back(s.rank);
    alphas.push_back(s.alpha);
    config.kept_ranks.emplace_back(s.name, present_rank(set.layer(s.name).adapter(adapter), s.rank));
  }
  check_made_ranks(method, config.kept_ranks, ranks);
  if (same_ranks(config.kept_ranks, ranks)) config.kept_ranks.clear();
  config.targets = portable_targets(request.targets, set.layer_names(), adapted, saved, method.excludes);
  const auto [rank, alpha] = standard_rank_and_alpha(config);
  config.targets.rank_pattern = portable_patterns(config.targets.rank_pattern, adapted, ranks, rank);
  config.targets.alpha_pattern = portable_patterns(config.targets.alpha_pattern, adapted, alphas, alpha);
  if (method.ranks != PeftRanks::Patterns && !config.targets.alpha_pattern.empty())
    raise_mismatch<UnsupportedError>("save_peft", "alpha_pattern", quote(config.targets.alpha_pattern.front().first),
                                     "none: PEFT has one alpha for all modules of this method");
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
