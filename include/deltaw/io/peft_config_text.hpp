#pragma once
// adapter_config.json, written so that old versions of PEFT take it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/io/json.hpp"
#include "deltaw/io/peft_config.hpp"

namespace deltaw::io {

namespace detail {

/// A number as Python would have written it: alphas that are whole numbers are integers there.
inline nlohmann::json whole_if_possible(double value) {
  constexpr double exact = 9007199254740992;  // 2^53
  if (value == std::floor(value) && std::abs(value) < exact) return static_cast<std::int64_t>(value);
  return value;
}

inline nlohmann::json field_json(const PeftField& field, std::span<const std::pair<std::string, std::string>> options) {
  if (field.kind == PeftKind::Flag) return option_value(field, options) == "true";
  const double value = option_number(field, options);
  if (field.kind == PeftKind::PositiveAlpha && !(value > 0))
    raise_mismatch<UnsupportedError>("peft_config_text", field.option, number_text(value),
                                     "above 0: PEFT takes the rank for it otherwise");
  if (field.kind == PeftKind::Count) return option_count(field, options);
  return field.kind == PeftKind::Probability || field.kind == PeftKind::Number ? nlohmann::json(value)
                                                                               : whole_if_possible(value);
}

/// Where the field goes: into the object before its dot, if it has one.
inline nlohmann::json& place_of(nlohmann::json& fields, std::string_view key) {
  const std::size_t dot = key.find('.');
  if (dot == std::string_view::npos) return fields[std::string(key)];
  return fields[std::string(key.substr(0, dot))][std::string(key.substr(dot + 1))];
}

template <class List>
nlohmann::json list_or_null(const List& list) {
  return list.empty() ? nlohmann::json() : nlohmann::json(list);
}

/// What AdaLoRA has of its own: the length of the training, which PEFT wants to know, and which ranks were kept.
inline void add_masked_fields(const PeftConfig& config, const PeftMethod& method, nlohmann::json& fields) {
  const auto number = [&](std::string_view key) {
    for (const PeftField& field : method.fields)
      if (field.key == key) return static_cast<index_t>(option_number(field, config.options));
    return index_t{0};
  };
  fields["total_step"] = std::max(config.info.total_step, number("tinit") + number("tfinal") + 1);
  fields["rank_pattern"] = nullptr;
  for (const auto& [module, kept] : config.kept_ranks) {
    std::vector<bool> mask(static_cast<std::size_t>(number("init_r")));
    std::fill_n(mask.begin(), kept, true);
    fields["rank_pattern"][module + std::string(peft_mask_suffix)] = mask;
  }
}

}  // namespace detail

/// The text of the adapter_config.json that describes `config`: two spaces of indent, sorted keys, and no field that
/// came late to PEFT unless it is needed, since old versions refuse fields that they do not know.
inline std::string peft_config_text(const PeftConfig& config) {
  const detail::PeftMethod& method = detail::peft_method("peft_config_text", config.method);
  const Targets& targets = config.targets;
  nlohmann::json fields{{"auto_mapping", nullptr},
                        {"base_model_name_or_path", detail::list_or_null(config.info.base_model_name_or_path)},
                        {"bias", "none"},
                        {"fan_in_fan_out", config.info.fan_in_fan_out},
                        {"inference_mode", true},
                        {method.init_key, true},
                        {"layers_pattern", detail::list_or_null(targets.layers_pattern)},
                        {"layers_to_transform", detail::list_or_null(targets.layers_to_transform)},
                        {"modules_to_save", detail::list_or_null(targets.modules_to_save)},
                        {"peft_type", method.peft_type},
                        {"revision", detail::list_or_null(config.info.revision)},
                        {"target_modules", detail::peft_no_targets},
                        {"task_type", detail::list_or_null(config.info.task_type)}};
  for (const detail::PeftField& field : method.fields)
    if (!field.recent || detail::option_value(field, config.options) != field.standard)
      detail::place_of(fields, field.key) = detail::field_json(field, config.options);
  if (!method.marker.empty() && !fields.contains(method.marker)) fields[method.marker] = true;
  if (method.shares_bases()) fields["save_projection"] = true;
  if (targets.all_linear) fields["target_modules"] = "all-linear";
  if (!targets.pattern.empty()) fields["target_modules"] = targets.pattern;
  if (!targets.names.empty()) fields["target_modules"] = targets.names;
  if (!targets.exclude.empty()) fields["exclude_modules"] = targets.exclude;
  if (!targets.exclude_pattern.empty()) fields["exclude_modules"] = targets.exclude_pattern;
  if (method.ranks == detail::PeftRanks::Patterns) {
    for (auto& entries : {"rank_pattern", "alpha_pattern"}) fields[entries] = nlohmann::json::object();
    for (const auto& [pattern, rank] : targets.rank_pattern) fields["rank_pattern"][pattern] = rank;
    for (const auto& [pattern, alpha] : targets.alpha_pattern)
      fields["alpha_pattern"][pattern] = detail::whole_if_possible(alpha);
  }
  if (method.ranks == detail::PeftRanks::Masks) detail::add_masked_fields(config, method, fields);
  return dump_json(peft_config_file, fields, 2);
}

}  // namespace deltaw::io
