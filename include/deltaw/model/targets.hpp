#pragma once
// Which modules of a model get an adapter, which are trained whole, and with which rank and alpha: PEFT's rules, made
// strict. An entry that matches nothing is an error, never a silent no-op.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_set>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/core/view.hpp"
#include "deltaw/model/pattern.hpp"

namespace deltaw {

/// Which modules to adapt. A list names modules by their last segments: "q_proj" and "self_attn.q_proj" both name
/// "model.layers.0.self_attn.q_proj". Of `names`, `pattern` and `all_linear` at most one is set; none of them means that
/// only `modules_to_save` are trained.
struct Targets {
  std::vector<std::string> names = {};
  std::string pattern = {};               ///< must match the full name; PEFT's word "all-linear" sets `all_linear`
  bool all_linear = false;                ///< every module but the output heads
  std::vector<std::string> exclude = {};  ///< modules that get no adapter; an entry may match nothing
  std::string exclude_pattern = {};       ///< the same as a pattern of full names
  /// Modules trained whole, with all below them; they never get an adapter.
  std::vector<std::string> modules_to_save = {};
  /// Only layers of these indices, for modules that `names` gives by less than their full name. The index is the first
  /// segment of a name that is a number and has one after it.
  std::vector<index_t> layers_to_transform = {};
  std::vector<std::string> layers_pattern = {};  ///< patterns of what must stand before the index: "layers", "h"
  /// Ranks and alphas of their own. A key is a pattern of the full name or of what follows one of its dots. A key that
  /// is the full name decides, else the first that matches. The two lists are matched separately.
  std::vector<std::pair<std::string, index_t>> rank_pattern = {};
  std::vector<std::pair<std::string, double>> alpha_pattern = {};
};

enum class ModuleRole {
  Adapt,  ///< frozen, with an adapter
  Save    ///< trained whole
};

/// What `select` decided for one module. Rank and alpha are 0 for a module that is trained whole.
struct Selected {
  std::string name = {};
  ModuleRole role = ModuleRole::Adapt;
  index_t rank = 0;
  double alpha = 0;
};

namespace detail {

inline constexpr std::string_view select_name = "select";

/// True if `name` is `entry` or ends with "." + `entry`.
inline bool named_by(std::string_view entry, std::string_view name) {
  if (!name.ends_with(entry)) return false;
  return name.size() == entry.size() || name[name.size() - entry.size() - 1] == '.';
}

/// True if the segments of `entry` stand in `name` as they are: a module of that name, or one below it.
inline bool within(std::string_view entry, std::string_view name) {
  const std::string path = std::string(".").append(name).append(".");
  return path.find(std::string(".").append(entry).append(".")) != std::string::npos;
}

/// The first names of a list, cut short, for messages.
inline std::string some_of(std::span<const std::string> names) {
  constexpr std::size_t shown = 4, width = 64;
  std::string text;
  for (std::size_t i = 0; i < std::min(shown, names.size()); ++i) {
    text.append(i == 0 ? "" : ", ").append(names[i], 0, width);
    if (names[i].size() > width) text.append("...");
  }
  if (names.size() > shown) text.append(" and ").append(std::to_string(names.size() - shown)).append(" more");
  return text;
}

[[noreturn]] inline void raise_no_match(std::string_view option, std::string_view entry,
                                        std::span<const std::string> names) {
  raise<NameError>(select_name, std::string(option)
                                    .append(" ")
                                    .append(in_quotes(entry))
                                    .append(" matches none of the ")
                                    .append(std::to_string(names.size()))
                                    .append(" modules: ")
                                    .append(some_of(names)));
}

/// Raises unless every entry of a list matches a module.
inline void check_entries_match(std::string_view option, std::span<const std::string> entries,
                                std::span<const std::string> names, bool (*match)(std::string_view, std::string_view)) {
  for (const std::string& entry : entries)
    if (std::none_of(names.begin(), names.end(), [&](const std::string& name) { return match(entry, name); }))
      raise_no_match(option, entry, names);
}

/// Raises on an empty list, and on a name that is empty, too long or there twice.
inline void check_module_names(std::span<const std::string> names) {
  if (names.empty()) raise<NameError>(select_name, "module_names: got no module, want at least one");
  std::unordered_set<std::string_view> known;
  for (const std::string& name : names) {
    if (name.empty()) raise<NameError>(select_name, "module_names: got an empty name");
    if (name.size() > Pattern::max_name_length)
      raise_mismatch<NameError>(select_name, "module_names: length of a name", name.size(),
                                "at most " + std::to_string(Pattern::max_name_length) + " characters");
    if (!known.insert(name).second)
      raise<NameError>(select_name, "module_names: " + in_quotes(name) + " is there twice");
  }
}

inline void check_alpha(std::string_view what, double alpha) {
  if (!std::isfinite(alpha) || alpha == 0)
    raise_mismatch<OptionError>(select_name, what, alpha, "a finite number other than 0");
}

inline void check_rank(std::string_view what, index_t rank) {
  if (rank < 1) raise_mismatch<OptionError>(select_name, what, rank, "at least 1");
}

/// The keys of a rank or alpha pattern, ready to be matched.
template <class Value>
class PatternMap {
 public:
  PatternMap(std::string_view option, std::span<const std::pair<std::string, Value>> entries,
             void (*check_value)(std::string_view, Value))
      : option_(option) {
    const std::string where = std::string(select_name).append(": ").append(option);
    std::unordered_set<std::string_view> known;
    for (const auto& [key, value] : entries) {
      entries_.push_back({Pattern(key, where), value});
      const std::string what = std::string(option).append(" ").append(in_quotes(key));
      if (!known.insert(key).second) raise<OptionError>(select_name, what + " is there twice");
      check_value(what, value);
    }
  }

  /// The value of the key that is the name, else of the first key that matches it, else `otherwise`.
  Value find(std::string_view name, Value otherwise) const {
    for (const auto& [key, value] : entries_)
      if (key.text() == name) return value;
    for (const auto& [key, value] : entries_)
      if (key.matches_tail(name)) return value;
    return otherwise;
  }

  /// Raises unless every key matches one of the adapted modules.
  void check_keys_match(std::span<const std::string> adapted) const {
    for (const auto& [key, value] : entries_) {
      const auto match = [&pattern = key](const std::string& name) {
        return pattern.text() == name || pattern.matches_tail(name);
      };
      if (std::none_of(adapted.begin(), adapted.end(), match)) raise_no_match(option_, key.text(), adapted);
    }
  }

 private:
  std::string_view option_;
  std::vector<std::pair<Pattern, Value>> entries_;
};

/// The rule "only these layers".
class LayerRule {
 public:
  explicit LayerRule(const Targets& targets) : indices_(targets.layers_to_transform) {
    for (const std::string& text : targets.layers_pattern) before_.emplace_back(text, "select: layers_pattern");
  }

  bool allows(std::string_view name) const {
    if (indices_.empty()) return true;
    const std::optional<index_t> layer = index(name);
    return layer && std::find(indices_.begin(), indices_.end(), *layer) != indices_.end();
  }

  /// Raises unless every index and every pattern occurs in the model; a layer may still lack the modules that are named.
  void check_used(std::span<const std::string> modules) const {
    const auto occurs = [&](auto&& in) { return std::any_of(modules.begin(), modules.end(), in); };
    for (const Pattern& pattern : before_)
      if (!occurs([&](const std::string& name) { return index_after(&pattern, name).has_value(); }))
        raise_no_match("layers_pattern", pattern.text(), modules);
    for (const index_t layer : indices_)
      if (!occurs([&](const std::string& name) { return index(name) == layer; }))
        raise_no_match("layers_to_transform", std::to_string(layer), modules);
  }

 private:
  std::optional<index_t> index(std::string_view name) const {
    if (before_.empty()) return index_after(nullptr, name);
    for (const Pattern& pattern : before_)
      if (const auto layer = index_after(&pattern, name)) return layer;
    return std::nullopt;
  }

  /// The first segment that is a number, has a segment after it and, if there is a pattern, that pattern before it.
  static std::optional<index_t> index_after(const Pattern* before, std::string_view name) {
    for (std::size_t begin = 0, end = name.find('.'); end != std::string_view::npos;
         begin = end + 1, end = name.find('.', begin)) {
      const std::string_view segment = name.substr(begin, end - begin);
      if (segment.empty() || !std::all_of(segment.begin(), segment.end(), is_digit)) continue;
      if (before != nullptr && (begin == 0 || !before->matches_tail(name.substr(0, begin - 1)))) continue;
      index_t value = 0;
      const auto [rest, failure] = std::from_chars(segment.data(), segment.data() + segment.size(), value);
      return failure == std::errc() ? std::optional(value) : std::nullopt;  // a number too large is nobody's index
    }
    return std::nullopt;
  }

  std::vector<index_t> indices_;
  std::vector<Pattern> before_;
};

/// PEFT's spelling of `all_linear` as a pattern, in any case.
inline bool means_all_linear(const Targets& targets) {
  constexpr std::string_view word = "all-linear";
  const auto equal = [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; };
  return targets.all_linear ||
         std::equal(targets.pattern.begin(), targets.pattern.end(), word.begin(), word.end(), equal);
}

inline void check_list(std::string_view option, std::span<const std::string> entries) {
  for (const std::string& entry : entries) {
    if (entry.size() > Pattern::max_name_length)
      raise_mismatch<OptionError>(select_name, std::string(option).append(": length of an entry"), entry.size(),
                                  "at most " + std::to_string(Pattern::max_name_length) + " characters");
    if (entry.empty() || entry.front() == '.' || entry.back() == '.')
      raise_mismatch<OptionError>(select_name, option, in_quotes(entry),
                                  "a module name, or its last segments, without a dot at either end");
  }
}

inline int count_rules(const Targets& targets) {
  return int{!targets.names.empty()} + int{!targets.pattern.empty()} + int{targets.all_linear};
}

/// Raises on options that contradict each other or are outside their range.
inline void check_options(const Targets& targets) {
  const int rules = count_rules(targets);
  if (rules > 1) raise<OptionError>(select_name, "names, pattern and all_linear: got more than one of them, want one");
  if (rules == 0 && targets.modules_to_save.empty())
    raise<OptionError>(select_name, "got no names, no pattern, no all_linear and no modules_to_save, want one of them");
  if (!targets.exclude.empty() && !targets.exclude_pattern.empty())
    raise<OptionError>(select_name, "exclude and exclude_pattern: got both, want one");
  if (!targets.layers_to_transform.empty() && targets.names.empty())
    raise<OptionError>(select_name, "layers_to_transform works with a list of names only, got none");
  if (!targets.layers_pattern.empty() && targets.layers_to_transform.empty())
    raise<OptionError>(select_name, "layers_pattern needs layers_to_transform, got none");
  for (const index_t layer : targets.layers_to_transform)
    if (layer < 0) raise_mismatch<OptionError>(select_name, "layers_to_transform", layer, "at least 0");
  check_list("names", targets.names);
  check_list("exclude", targets.exclude);
  check_list("modules_to_save", targets.modules_to_save);
}

/// All rules but rank and alpha, ready to be asked about one module at a time.
class Selector {
 public:
  Selector(const Targets& targets, std::span<const std::string> heads)
      : targets_(targets), heads_(heads), all_linear_(means_all_linear(targets)), layers_(targets) {
    if (!targets.pattern.empty() && !all_linear_) pattern_.emplace(targets.pattern, "select: pattern");
    if (!targets.exclude_pattern.empty()) exclude_.emplace(targets.exclude_pattern, "select: exclude_pattern");
    check_list("head_names", heads);
  }

  bool saves(std::string_view name) const {
    const auto& saved = targets_.modules_to_save;
    return std::any_of(saved.begin(), saved.end(), [&](const std::string& entry) { return within(entry, name); });
  }

  bool adapts(std::string_view name) const {
    if (any_names(targets_.exclude, name) || (exclude_ && exclude_->matches(name))) return false;
    if (pattern_) return pattern_->matches(name);
    if (all_linear_) return !any_names(heads_, name);
    const auto& names = targets_.names;
    if (std::find(names.begin(), names.end(), name) != names.end()) return true;
    return any_names(names, name) && layers_.allows(name);
  }

  /// Raises NameError for the first entry that matches no module.
  void check_all_match(std::span<const std::string> modules) const {
    check_entries_match("names", targets_.names, modules, named_by);
    check_entries_match("modules_to_save", targets_.modules_to_save, modules, within);
    if (all_linear_) check_entries_match("head_names", heads_, modules, named_by);
    if (pattern_ && std::none_of(modules.begin(), modules.end(), [&](auto& name) { return pattern_->matches(name); }))
      raise_no_match("pattern", pattern_->text(), modules);
    layers_.check_used(modules);
  }

 private:
  static bool any_names(std::span<const std::string> entries, std::string_view name) {
    return std::any_of(entries.begin(), entries.end(), [&](const std::string& entry) { return named_by(entry, name); });
  }

  const Targets& targets_;
  std::span<const std::string> heads_;
  bool all_linear_;
  LayerRule layers_;
  std::optional<Pattern> pattern_, exclude_;
};

}  // namespace detail

/// Applies `targets` to the modules of a model, in their order; modules that no rule takes are left out. `all_linear`
/// takes every module except `head_names`, which name modules as a list does.
///
/// Raises OptionError for options that contradict each other or lie outside their range, and NameError where a target, a
/// module to save, a head of `all_linear`, a layer or a rank or alpha key matches no module, or where nothing is left to
/// adapt. Unlike PEFT: a root-level "layers.0.q" has a layer index; modules to save match whole segments, so "head"
/// does not take "lm_head"; a key of the full name beats an earlier pattern.
inline std::vector<Selected> select(const Targets& targets, index_t default_rank, double default_alpha,
                                    std::span<const std::string> module_names,
                                    std::span<const std::string> head_names = {}) {
  detail::check_options(targets);
  detail::check_rank("default_rank", default_rank);
  detail::check_alpha("default_alpha", default_alpha);
  const detail::PatternMap<index_t> ranks("rank_pattern", targets.rank_pattern, detail::check_rank);
  const detail::PatternMap<double> alphas("alpha_pattern", targets.alpha_pattern, detail::check_alpha);
  const detail::Selector selector(targets, head_names);
  detail::check_module_names(module_names);
  selector.check_all_match(module_names);

  std::vector<Selected> selected;
  std::vector<std::string> adapted;
  for (const std::string& name : module_names) {
    if (selector.saves(name)) {
      selected.push_back({.name = name, .role = ModuleRole::Save});
    } else if (selector.adapts(name)) {
      adapted.push_back(name);
      selected.push_back({.name = name,
                          .role = ModuleRole::Adapt,
                          .rank = ranks.find(name, default_rank),
                          .alpha = alphas.find(name, default_alpha)});
    }
  }
  if (adapted.empty() && detail::count_rules(targets) > 0)
    raise<NameError>("select",
                     "nothing is left to adapt: every module that the targets match is excluded, saved whole "
                     "or in a layer that is not listed; the modules are " +
                         detail::some_of(module_names));
  ranks.check_keys_match(adapted);
  alphas.check_keys_match(adapted);
  return selected;
}

}  // namespace deltaw
