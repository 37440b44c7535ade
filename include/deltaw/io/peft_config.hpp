#pragma once
// adapter_config.json as Hugging Face's PEFT writes it: read strictly, written so that old versions of PEFT take it.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/io/file.hpp"
#include "deltaw/io/json.hpp"
#include "deltaw/io/peft_methods.hpp"
#include "deltaw/model/targets.hpp"

namespace deltaw::io {

inline constexpr std::string_view peft_config_file = "adapter_config.json";

/// What PEFT wants to know of the base and we do not; an empty text is written as null.
struct PeftInfo {
  std::string base_model_name_or_path = {};
  std::string revision = {};
  std::string task_type = {};   ///< "CAUSAL_LM", "SEQ_CLS", ...
  index_t total_step = 0;       ///< of an AdaLoRA training; 0: not known, and written as the least that PEFT takes
  bool fan_in_fan_out = false;  ///< PEFT's base holds W as in x out (GPT-2's Conv1D); A and B are the same either way
};

/// An adapter as its configuration file describes it, in the words of `AdaptRequest`.
struct PeftConfig {
  std::string method = "lora";
  std::vector<std::pair<std::string, std::string>> options = {};  ///< of the method: {"rank", "8"}, ...
  Targets targets = {};
  PeftInfo info = {};
  /// AdaLoRA: modules that keep only so many of their first ranks, whose scale stays that of all.
  std::vector<std::pair<std::string, index_t>> kept_ranks = {};
};

namespace detail {

using OrderedJson = nlohmann::ordered_json;

/// The number as to_chars writes it: the shortest text that reads back as the same number.
template <class Number>
std::string number_text(Number value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

/// A value of the file for messages.
inline std::string shown(const OrderedJson& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  constexpr std::size_t limit = 160;
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, OrderedJson::error_handler_t::ignore);
  return text.size() > limit ? text.substr(0, limit) + "..." : text;
}

inline bool is_empty_text(const OrderedJson& value) {
  return value.is_string() && value.get_ref<const std::string&>().empty();
}

/// Null, false, or empty, also inside: a field that asks for nothing.
inline bool asks_nothing(const OrderedJson& value) {
  if (value.is_structured()) return std::all_of(value.begin(), value.end(), asks_nothing);
  return value.is_null() || value == false || is_empty_text(value);
}

/// Takes the file apart, field by field, and refuses what is left unless it asks for nothing.
class PeftConfigReader {
 public:
  PeftConfigReader(std::string_view file, const OrderedJson& fields) : file_(file), fields_(fields) {}

  PeftConfig read() {
    if (!fields_.is_object()) raise_mismatch<FormatError>(file_, "content", shown(fields_), "an object of fields");
    const PeftMethod& method = find_method();
    PeftConfig config{.method = std::string(method.method), .options = {}, .targets = {}, .info = {}};
    for (const PeftField& field : method.fields) config.options.emplace_back(field.option, option_text(method, field));
    read_targets(config.targets);
    if (method.ranks == PeftRanks::Patterns) read_patterns(config.targets);
    config.info.base_model_name_or_path = text("base_model_name_or_path");
    config.info.revision = text("revision");
    config.info.task_type = text("task_type");
    if (const auto* transposed = find("fan_in_fan_out"))
      config.info.fan_in_fan_out = flag("fan_in_fan_out", *transposed);
    if (method.ranks == PeftRanks::Masks) read_masked(config);
    if (method.shares_bases())  // whether they are stored, the tensors say
      if (const auto* stored = find("save_projection")) flag("save_projection", *stored);
    check_init(method);
    check_rest(fields_, "");
    return config;
  }

 private:
  [[noreturn]] void mismatch(std::string_view key, const OrderedJson& got, std::string_view want) const {
    raise_mismatch<FormatError>(file_, "field " + quote(key), shown(got), want);
  }

  /// The field, or null if it is absent or null; one after a dot is a field of the object before it.
  const OrderedJson* find(std::string_view key) {
    read_.emplace(key);
    const std::size_t dot = key.rfind('.');
    const OrderedJson* object = dot == std::string_view::npos ? &fields_ : find(key.substr(0, dot));
    if (object == nullptr) return nullptr;
    if (!object->is_object()) mismatch(key.substr(0, dot), *object, "an object or null");
    const auto found = object->find(key.substr(dot == std::string_view::npos ? 0 : dot + 1));
    return found == object->end() || found->is_null() ? nullptr : &*found;
  }

  std::string text(std::string_view key) {
    const OrderedJson* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_string()) mismatch(key, *value, "a text or null");
    return value->get<std::string>();
  }
  bool flag(std::string_view key, const OrderedJson& value) const {
    if (!value.is_boolean()) mismatch(key, value, "true or false");
    return value.get<bool>();
  }
  index_t whole(std::string_view key, const OrderedJson& value, std::int64_t least) const {
    const bool fits = value.is_number_integer() && (!value.is_number_unsigned() || value <= INT64_MAX);
    if (!fits || value < least) mismatch(key, value, "a whole number of " + std::to_string(least) + " or more");
    return value.get<index_t>();
  }
  double alpha(std::string_view key, const OrderedJson& value) const {
    if (!value.is_number() || !std::isfinite(value.get<double>()) || value == 0)
      mismatch(key, value, "a finite number other than 0");
    return value.get<double>();
  }
  double finite(std::string_view key, const OrderedJson& value) const {
    if (!value.is_number() || !std::isfinite(value.get<double>())) mismatch(key, value, "a finite number");
    return value.get<double>();
  }
  double probability(std::string_view key, const OrderedJson& value) const {
    if (!value.is_number() || !(value >= 0 && value < 1)) mismatch(key, value, "a number of at least 0 and below 1");
    return value.get<double>();
  }

  const PeftMethod& find_method() {
    const std::string type = text("peft_type");
    std::string known;
    for (const PeftMethod& method : peft_methods) {
      if (method.peft_type == type && (method.marker.empty() || is_set(method.marker))) return method;
      if (method.marker.empty()) known.append(known.empty() ? "" : ", ").append(quote(method.peft_type));
    }
    if (type.empty()) raise_mismatch<FormatError>(file_, "field 'peft_type'", "none", known);
    raise_mismatch<UnsupportedError>(file_, "field 'peft_type'", quote(type), known);
  }

  /// Whether a marker is there: true, or an object, even an empty one.
  bool is_set(std::string_view marker) {
    const auto found = fields_.find(marker);
    if (found == fields_.end() || found->is_null() || *found == false) return false;
    if (*found != true && !found->is_object()) mismatch(marker, *found, "true, false, an object or null");
    read_.emplace(marker);
    return true;
  }

  std::string option_text(const PeftMethod& method, const PeftField& field) {
    const OrderedJson* value = find(field.key);
    if (value == nullptr && field.required)
      raise_mismatch<FormatError>(file_, "field " + quote(field.key), "none",
                                  "it: " + std::string(method.peft_type) + " needs it");
    if (value == nullptr) return std::string(field.standard);
    switch (field.kind) {
      case PeftKind::Rank:
        return number_text(whole(field.key, *value, 1));
      case PeftKind::Alpha:
        return number_text(alpha(field.key, *value));
      case PeftKind::PositiveAlpha:
        if (alpha(field.key, *value) < 0) mismatch(field.key, *value, "a finite number above 0");
        return number_text(alpha(field.key, *value));
      case PeftKind::Count:
        return number_text(whole(field.key, *value, 0));
      case PeftKind::Number:
        return number_text(finite(field.key, *value));
      case PeftKind::Probability:
        return number_text(probability(field.key, *value));
      case PeftKind::Flag:
        break;
    }
    return flag(field.key, *value) ? "true" : "false";
  }

  /// Items of an array; one that is no array stands for an array of it where `single` allows that.
  template <class Read>
  auto list(std::string_view key, bool single, Read read) {
    std::vector<decltype(read(fields_))> items;
    const OrderedJson* value = find(key);
    if (value == nullptr) return items;
    if (!value->is_array() && !single) mismatch(key, *value, "an array or null");
    if (!value->is_array()) return items.push_back(read(*value)), items;
    for (const OrderedJson& item : *value) items.push_back(read(item));
    return items;
  }
  std::vector<std::string> texts(std::string_view key, bool single = false) {
    return list(key, single, [&](const OrderedJson& item) {
      if (!item.is_string() || is_empty_text(item)) mismatch(key, item, "names that are not empty");
      return item.get<std::string>();
    });
  }
  template <class Value, class Read>
  std::vector<std::pair<std::string, Value>> patterns(std::string_view key, Read read) {
    std::vector<std::pair<std::string, Value>> entries;
    const OrderedJson* value = find(key);
    if (value == nullptr) return entries;
    if (!value->is_object()) mismatch(key, *value, "an object of patterns");
    for (const auto& [pattern, item] : value->items())
      entries.emplace_back(pattern, read(std::string(key).append(".").append(pattern), item));
    return entries;
  }
  /// A field that is a list of names or one pattern.
  void names_or_pattern(std::string_view key, std::vector<std::string>& names, std::string& pattern) {
    const OrderedJson* value = find(key);
    if (value != nullptr && value->is_string()) {
      pattern = text(key);
    } else {
      names = texts(key);
    }
  }

  void read_targets(Targets& targets) {
    names_or_pattern("target_modules", targets.names, targets.pattern);
    names_or_pattern("exclude_modules", targets.exclude, targets.exclude_pattern);
    targets.modules_to_save = texts("modules_to_save");
    if (targets.pattern == peft_no_targets) {
      targets.pattern.clear();
    } else if (targets.names.empty() && targets.pattern.empty()) {
      raise_mismatch<FormatError>(file_, "field 'target_modules'", "none", "a list of names or a pattern");
    }
    targets.layers_to_transform = list("layers_to_transform", true,
                                       [&](const OrderedJson& item) { return whole("layers_to_transform", item, 0); });
    targets.layers_pattern = texts("layers_pattern", true);
  }

  void read_patterns(Targets& targets) {
    targets.rank_pattern = patterns<index_t>(
        "rank_pattern", [&](std::string_view key, const OrderedJson& item) { return whole(key, item, 1); });
    targets.alpha_pattern = patterns<double>(
        "alpha_pattern", [&](std::string_view key, const OrderedJson& item) { return alpha(key, item); });
  }

  /// What AdaLoRA has of its own.
  void read_masked(PeftConfig& config) {
    find("r");  // of LoRA's fields it has this one without a use
    if (const OrderedJson* total = find("total_step")) config.info.total_step = whole("total_step", *total, 1);
    const std::string& ranks = config.options.front().second;  // the first field is that of the rank
    config.kept_ranks = patterns<index_t>("rank_pattern", [&](std::string_view key, const OrderedJson& mask) {
      const bool flags = std::to_string(mask.size()) == ranks && mask.is_array() &&
                         std::all_of(mask.begin(), mask.end(), [](auto& m) { return m.is_boolean(); });
      if (!flags || !key.ends_with(peft_mask_suffix))
        mismatch(
            key, mask,
            "a list of " + ranks + " times true or false, for a name that ends with " + std::string(peft_mask_suffix));
      return static_cast<index_t>(std::count(mask.begin(), mask.end(), true));
    });
    for (auto& [module, kept] : config.kept_ranks) module.resize(module.size() - peft_mask_suffix.size());
  }

  void check_init(const PeftMethod& method) {
    const OrderedJson* init = find(method.init_key);
    if (init == nullptr || init->is_boolean()) return;
    for (const std::string_view plain : method.plain_inits)
      if (*init == plain) return;
    raise_mismatch<UnsupportedError>(file_, "field " + quote(method.init_key), shown(*init),
                                     "a start that left the base as it was; have PEFT convert such an adapter when it "
                                     "saves (path_initial_model_for_weight_conversion)");
  }

  void check_rest(const OrderedJson& fields, const std::string& prefix) const {
    for (const auto& [name, value] : fields.items()) {
      const std::string key = prefix + name;
      const bool remark = std::find(peft_remarks.begin(), peft_remarks.end(), key) != peft_remarks.end();
      const auto inside = read_.upper_bound(key + ".");
      if (value.is_object() && inside != read_.end() && inside->starts_with(key + ".")) {
        check_rest(value, key + ".");
        continue;
      }
      if (read_.contains(key) || remark || asks_nothing(value)) continue;
      if (key == "bias" && value == "none") continue;
      if (key == "megatron_core" || key == "qalora_group_size") continue;  // without effect unless others are set
      raise_mismatch<UnsupportedError>(file_, "field " + quote(key), shown(value),
                                       key == "bias" ? "'none'" : "none or its default: deltaw cannot honour it");
    }
  }

  std::string_view file_;
  const OrderedJson& fields_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace detail

/// Takes the text of an adapter_config.json apart; `file` stands in messages. Throws FormatError for malformed JSON and
/// for fields of a wrong type or value, UnsupportedError for a peft_type, and for any field, known or not, that asks
/// for something which we do not have: ignoring it would compute something else.
inline PeftConfig parse_peft_config(std::string_view file, std::string_view text) {
  parse_json(file, text);  // for its checks; the order of a pattern's keys counts, and only the other type keeps it
  return detail::PeftConfigReader(file, nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false))
      .read();
}

/// The same, from `dir`. Throws FileError if the file is missing.
inline PeftConfig read_peft_config(const std::filesystem::path& dir) {
  constexpr std::uint64_t max_bytes = 16'777'216;
  const auto path = dir / peft_config_file;
  return parse_peft_config(path.string(), read_text(path, max_bytes));
}

}  // namespace deltaw::io
