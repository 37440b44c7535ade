#pragma once
// Whether a directory of PEFT's fits the set that it is read into: which request it stands for, and what is refused.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "deltaw/backend/cpu_solver.hpp"
#include "deltaw/core/rank.hpp"
#include "deltaw/init/kasa.hpp"
#include "deltaw/io/file.hpp"
#include "deltaw/io/peft_bases.hpp"
#include "deltaw/io/peft_config.hpp"
#include "deltaw/io/peft_entries.hpp"
#include "deltaw/io/safetensors.hpp"
#include "deltaw/io/values.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "deltaw/version.hpp"

namespace deltaw::io {

inline constexpr std::string_view peft_tensor_file = "adapter_model.safetensors";

namespace detail {

// Our entry in the metadata of the tensors.
inline constexpr std::string_view note_key = "deltaw";
inline constexpr std::uint64_t note_format = 1;

}  // namespace detail

namespace detail {

inline SafetensorsReader open_peft_tensors(const std::filesystem::path& dir) {
  const auto path = dir / peft_tensor_file, pickle = dir / "adapter_model.bin";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored) && std::filesystem::exists(pickle, ignored))
    raise_mismatch<FormatError>(
        pickle.string(), "format", "a pickle, which may run any program when it is read",
        std::string(peft_tensor_file) + ": load the pickle in PEFT and save it with safe_serialization=True");
  return SafetensorsReader::open(path);
}

inline bool lists_module(const Names& modules_to_save, std::string_view module) {
  return std::any_of(modules_to_save.begin(), modules_to_save.end(),
                     [&](const std::string& entry) { return deltaw::detail::within(entry, module); });
}

/// PEFT lists modules to save that a model may not have ("classifier", "score"), and lists what is no linear layer.
/// What is left are the entries that name layers of the set, and those for which the file has tensors that nobody
/// takes.
template <class Set>
Names layers_to_save(const Names& listed, const Set& set, const SafetensorsReader& reader) {
  Names kept;
  for (const std::string& entry : listed) {
    const auto names = [&](std::string_view module) { return deltaw::detail::within(entry, module); };
    const auto& layers = set.layer_names();
    const bool is_layer = std::any_of(layers.begin(), layers.end(), names);
    bool is_extra = false;
    set.for_each_extra([&](const auto& p) { is_extra = is_extra || names(extra_entry(p).module); });
    const bool has_tensor = std::any_of(reader.tensors().begin(), reader.tensors().end(), [&](const TensorInfo& info) {
      const std::string_view name = info.name;
      return name.starts_with(peft_prefix) &&
             names(name.substr(peft_prefix.size(), name.rfind('.') - peft_prefix.size()));
    });
    if (is_layer || (has_tensor && !is_extra)) kept.push_back(entry);
  }
  return kept;
}

/// Which modules get which rank and alpha by PEFT's own rules, as a request that `AdapterSet::adapt` reads the same
/// way.
template <class Set>
AdaptRequest request_of(const PeftConfig& config, std::string_view adapter, const Set& set,
                        const SafetensorsReader& reader) {
  AdaptRequest request{.name = std::string(adapter),
                       .method = config.method,
                       .options = config.options,
                       .targets = config.targets,
                       .heads = {}};
  if (peft_method(reader.file(), config.method).any_rank)
    request.options.emplace_back("any_rank", "true");  // whoever trained it has decided; the tensors' shapes must fit
  request.targets.modules_to_save = layers_to_save(config.targets.modules_to_save, set, reader);
  const auto [rank, alpha] = standard_rank_and_alpha(config);
  Names adapted;
  std::vector<index_t> ranks;
  std::vector<double> alphas;
  for (const Selected& s : select(request.targets, rank, alpha, set.layer_names())) {
    if (s.role == ModuleRole::Save) continue;
    adapted.push_back(s.name);
    ranks.push_back(s.rank);
    alphas.push_back(s.alpha);
  }
  // PEFT takes the first key that matches, even where a later one is the module's full name.
  const auto peft_ranks = first_matches(config.targets.rank_pattern, adapted, rank);
  const auto peft_alphas = first_matches(config.targets.alpha_pattern, adapted, alpha);
  if (peft_ranks != ranks) request.targets.rank_pattern = exact_patterns(adapted, peft_ranks, rank);
  if (peft_alphas != alphas) request.targets.alpha_pattern = exact_patterns(adapted, peft_alphas, alpha);
  return request;
}

/// Whether the field, one for all modules, decides what the adapter computes; the rest guide a training.
inline bool decides(const PeftField& field) {
  return field.kind == PeftKind::Flag || field.option == "projection_prng_key";
}

/// Throws OptionError unless the file describes the adapter that the set has under that name.
inline void check_same_adapter(std::string_view file, const PeftConfig& config, const AdaptRequest& request,
                               const std::vector<Selected>& selected) {
  const std::string made = ", as adapter " + quote(request.name) + " was made";
  if (config.method != request.method)
    raise_mismatch<OptionError>(file, "method", quote(config.method), quote(request.method) + made);
  for (const PeftField& field : peft_method(file, config.method).fields)
    if (decides(field) && option_value(field, config.options) != option_value(field, request.options))
      raise_mismatch<OptionError>(file, field.key, option_value(field, config.options),
                                  std::string(option_value(field, request.options)) + made);
  const auto [rank, alpha] = standard_rank_and_alpha(config);
  for (const Selected& s : selected) {
    if (s.role == ModuleRole::Save) continue;
    const index_t got_rank = first_matches(config.targets.rank_pattern, {s.name}, rank).front();
    const double got_alpha = first_matches(config.targets.alpha_pattern, {s.name}, alpha).front();
    if (got_rank != s.rank)
      raise_mismatch<OptionError>(file, "rank of " + quote(s.name), got_rank, std::to_string(s.rank) + made);
    if (got_alpha != s.alpha)
      raise_mismatch<OptionError>(file, "alpha of " + quote(s.name), number_text(got_alpha),
                                  number_text(s.alpha) + made);
  }
}

/// Of the ranks that a module was made with, those that the file keeps.
inline index_t kept_rank(const PeftConfig& config, const Selected& s) {
  for (const auto& [module, kept] : config.kept_ranks)
    if (module == s.name) return kept;
  return s.rank;
}

/// Throws NameError where the file keeps ranks of a module that has none.
inline void check_kept_ranks(std::string_view file, const PeftConfig& config, const std::vector<Selected>& selected) {
  for (const auto& [module, kept] : config.kept_ranks)
    if (std::none_of(selected.begin(), selected.end(), [&, name = std::string_view(module)](const Selected& s) {
          return s.role == ModuleRole::Adapt && s.name == name;
        }))
      raise_mismatch<NameError>(file, "field 'rank_pattern'", quote(module), "modules that have the adapter");
}

/// The tensors of an adapter that the set does not have yet.
template <class P, class B, class Act>
std::vector<PeftEntry> entries_to_be(const AdapterSet<P, B, Act>& set, const AdaptRequest& request,
                                     const PeftConfig& config, const std::vector<Selected>& selected) {
  const auto method = find_method<P, B, Act>(request.method);
  std::vector<PeftEntry> entries;
  for (const Selected& s : selected) {
    const auto& base = set.layer(s.name).base();
    if (s.role == ModuleRole::Adapt) {
      const auto adapter =
          method.make(base.shape, request.options, {s.rank, s.alpha, name_hash(s.name)}, request.shared);
      const index_t kept = kept_rank(config, s);
      adapter.for_each_parameter([&](const auto& p) {
        const PeftEntry entry = entry_of(s.name, p);
        entries.push_back(kept == s.rank ? entry : entry.of_rank(kept));
      });
      continue;
    }
    entries.push_back({s.name, "weight", base.shape.out_features, base.shape.in_features});
    if (!base.bias.empty()) entries.push_back({s.name, "bias", 1, base.shape.out_features, PeftLayout::Vector});
  }
  return entries;
}

/// Throws NameError unless the file has just the tensors of `entries`, and those that PEFT adds without need.
inline void check_keys(const SafetensorsReader& reader, const std::vector<PeftEntry>& entries, const Names& shared) {
  const std::set<std::string> taken(shared.begin(), shared.end());
  std::set<std::string> expected;
  Names missing, unexpected;
  for (const PeftEntry& entry : entries) {
    expected.insert(entry.key());
    if (!reader.contains(entry.key())) missing.push_back(entry.key());
  }
  for (const TensorInfo& info : reader.tensors()) {
    const auto copy_in = [&](std::string_view suffix) {
      return info.name.ends_with(suffix) &&
             expected.contains(info.name.substr(0, info.name.size() - suffix.size()).append(".bias"));
    };
    if (!expected.contains(info.name) && !taken.contains(info.name) && !copy_in(".original_module.bias") &&
        !copy_in(".modules_to_save.bias"))
      unexpected.push_back(info.name);
  }
  const std::string all = "all " + std::to_string(expected.size()) + " tensors of the adapter and no others";
  if (!missing.empty())
    raise_mismatch<NameError>(
        reader.file(), "tensors",
        "none named " + first_names(missing) + (unexpected.empty() ? "" : ", but " + first_names(unexpected)), all);
  if (!unexpected.empty())
    raise_mismatch<NameError>(reader.file(), "tensors", first_names(unexpected) + ", which nothing here takes", all);
}

/// Throws ShapeError where the tensors of one module disagree on its rank, or agree on another than the
/// configuration's.
inline void check_ranks(const SafetensorsReader& reader, const std::vector<PeftEntry>& entries) {
  struct Rank {
    std::uint64_t got;
    index_t want;
    std::string source;
  };
  std::map<std::string, Rank> ranks;
  for (const PeftEntry& entry : entries) {
    const TensorInfo& info = reader.at(entry.key());
    if (entry.layout != PeftLayout::Matrix || info.shape.size() != 2) continue;
    if (entry.rank_axis != RankAxis::Rows && entry.rank_axis != RankAxis::Cols) continue;
    const bool rows = entry.rank_axis == RankAxis::Rows;
    const Rank rank{info.shape[rows ? 0 : 1], rows ? entry.rows : entry.cols,
                    entry.name + " " + shape_text(info.shape)};
    const Rank& first = ranks.emplace(entry.module, rank).first->second;
    if (first.got != rank.got)
      raise_mismatch<ShapeError>(reader.file(), "rank of " + quote(entry.module),
                                 std::to_string(first.got) + " from " + first.source + " and " +
                                     std::to_string(rank.got) + " from " + rank.source,
                                 "the same from both");
  }
  for (const auto& [module, rank] : ranks)
    if (std::cmp_not_equal(rank.got, rank.want))
      raise_mismatch<ShapeError>(
          reader.file(), "rank of " + quote(module), rank.source,
          "rank " + std::to_string(rank.want) + ", as " + std::string(peft_config_file) + " has it");
}

/// Throws FormatError if our entry in the metadata is newer than this library, or names another base.
inline void check_note(const SafetensorsReader& reader, const std::string& base, bool any_base) {
  const auto found = reader.metadata().find(std::string(note_key));
  if (found == reader.metadata().end()) return;
  const std::string where = reader.file() + ": metadata " + quote(note_key);
  const auto note = parse_json(where, found->second);
  const auto text = [&](const char* key) {
    if (!note.is_object() || !note.contains(key) || !note[key].is_string())
      raise_mismatch<FormatError>(where, key, "none", "a text");
    return note[key].get<std::string>();
  };
  const std::string writer = text("version"), saved_base = text("base");
  if (!note.contains("format") || !note["format"].is_number_unsigned() || note["format"] > note_format)
    raise_mismatch<FormatError>(where, "format", note.value("format", nlohmann::json()).dump(),
                                "at most " + std::to_string(note_format) + "; the file was written by deltaw " +
                                    quote(writer) + ", this is " + std::string(version));
  if (!any_base && saved_base != base)
    raise_mismatch<FormatError>(where, "base", quote(saved_base),
                                base +
                                    ", the names and shapes of this set's layers: the adapter was trained on another "
                                    "base (PeftLoadOptions::any_base loads it all the same)");
}

}  // namespace detail

}  // namespace deltaw::io
