#pragma once
// Between our rules of targeting and PEFT's: what a set selected, said so that PEFT selects the same, and back.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/model/pattern.hpp"
#include "deltaw/model/targets.hpp"

namespace deltaw::io::detail {

using Names = std::vector<std::string>;
template <class Value>
using PatternList = std::vector<std::pair<std::string, Value>>;

/// A pattern that only this name matches.
inline std::string exact_pattern(std::string_view name) {
  std::string pattern;
  for (const char c : name) {
    const bool plain = deltaw::detail::is_letter(c) || deltaw::detail::is_digit(c) || c == '_';
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

/// For each name the value that PEFT finds: that of the first key, in order, that matches it or what follows a dot of
/// it.
template <class Value>
std::vector<Value> first_matches(const PatternList<Value>& entries, const Names& names, Value otherwise) {
  std::vector<Pattern> patterns;
  for (const auto& [key, value] : entries) patterns.emplace_back(key, "PEFT pattern");
  std::vector<Value> values;
  for (const std::string& name : names) {
    const auto found = std::find_if(patterns.begin(), patterns.end(), [&](auto& p) { return p.matches_tail(name); });
    values.push_back(found == patterns.end() ? otherwise
                                             : entries[static_cast<std::size_t>(found - patterns.begin())].second);
  }
  return values;
}

/// One key a name, for the names whose value is not `otherwise`.
template <class Value>
PatternList<Value> exact_patterns(const Names& names, const std::vector<Value>& values, Value otherwise) {
  PatternList<Value> entries;
  for (std::size_t i = 0; i < names.size(); ++i)
    if (values[i] != otherwise) entries.emplace_back("^" + exact_pattern(names[i]), values[i]);
  return entries;
}

/// `entries` sorted by key, as they stand in a file, if PEFT reads them as `values`, one a name; otherwise one key a
/// name.
template <class Value>
PatternList<Value> portable_patterns(PatternList<Value> entries, const Names& names, const std::vector<Value>& values,
                                     Value otherwise) {
  std::sort(entries.begin(), entries.end());
  if (first_matches(entries, names, otherwise) == values) return entries;
  return exact_patterns(names, values, otherwise);
}

/// Whether every version of PEFT finds the same layer index in `name` as we do: old ones take the last number, new ones
/// the first, and without `layers_pattern` neither looks at the first two segments.
inline bool has_plain_index(std::string_view name) {
  std::size_t segments = 0, numbers = 0, begin = 0;
  for (std::size_t end = name.find('.'); end != std::string_view::npos; begin = end + 1, end = name.find('.', begin)) {
    const std::string_view segment = name.substr(begin, end - begin);
    const bool number = !segment.empty() && std::all_of(segment.begin(), segment.end(), deltaw::detail::is_digit);
    if (number && segments < 2) return false;
    numbers += number;
    ++segments;
  }
  return numbers == 1;
}

/// The targets as PEFT must be told them to adapt just `adapted` of `layers` and to save `saved`. Names, patterns and
/// layers stay as they were asked for where PEFT reads them as we do; otherwise modules are named in full, also where PEFT
/// does not have `exclude_modules`.
inline Targets portable_targets(Targets targets, const Names& layers, const Names& adapted, const Names& saved,
                                bool has_excludes) {
  using deltaw::detail::named_by;
  const auto listed = [&](const Names& names, const std::string& layer) {
    return std::find(names.begin(), names.end(), layer) != names.end();
  };
  const bool plain_layers =
      targets.layers_to_transform.empty() ||
      (targets.layers_pattern.empty() && std::all_of(layers.begin(), layers.end(), [&](const std::string& layer) {
         return std::none_of(targets.names.begin(), targets.names.end(),
                             [&](const std::string& entry) { return named_by(entry, layer); }) ||
                has_plain_index(layer);
       }));
  const bool excludes = !targets.exclude.empty() || !targets.exclude_pattern.empty();
  if (deltaw::detail::means_all_linear(targets) || !plain_layers || (excludes && !has_excludes)) {
    targets.all_linear = false;
    if (!has_excludes) targets.exclude.clear(), targets.exclude_pattern.clear();
    targets.pattern.clear();
    targets.layers_to_transform.clear();
    targets.layers_pattern.clear();
    targets.names = adapted;
    const bool takes_more = std::any_of(layers.begin(), layers.end(), [&](const std::string& layer) {
      return !listed(adapted, layer) && std::any_of(adapted.begin(), adapted.end(),
                                                    [&](const std::string& name) { return named_by(name, layer); });
    });
    if (takes_more) {
      targets.names.clear();
      for (const std::string& name : adapted)
        targets.pattern.append(targets.pattern.empty() ? "" : "|").append(exact_pattern(name));
    }
  }
  // PEFT also saves modules whose name merely ends with the text of an entry: "head" takes "lm_head".
  const bool saves_more = std::any_of(layers.begin(), layers.end(), [&](const std::string& layer) {
    return !listed(saved, layer) && std::any_of(targets.modules_to_save.begin(), targets.modules_to_save.end(),
                                                [&](const std::string& entry) { return layer.ends_with(entry); });
  });
  if (saves_more) targets.modules_to_save = saved;
  return targets;
}

}  // namespace deltaw::io::detail
