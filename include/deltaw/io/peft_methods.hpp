#pragma once
// The methods that PEFT and we both have, as tables: what its files call them, their fields and their options.

#include <array>
#include <charconv>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "deltaw/core/error.hpp"
#include "deltaw/io/json.hpp"

namespace deltaw::io::detail {

/// What a field of a method may hold; each has its own check and its own way to be written.
enum class PeftKind { Rank, Alpha, PositiveAlpha, Probability, Flag, Count, Number };

/// A field of the file and the option of ours that it stands for; "kasa_config.beta" is a field of an object.
struct PeftField {
  std::string_view key, option;
  PeftKind kind;
  std::string_view standard;  ///< the value of an option, or a field, that is not given
  bool required = false;      ///< a file without it is refused
  bool recent = false;        ///< unknown to old versions of PEFT, so written only where it is not the standard
};

/// How the file says that a module has another rank than the rest: not at all; by `rank_pattern` and `alpha_pattern`; or,
/// in `rank_pattern`, by one flag for each of its ranks.
enum class PeftRanks { Uniform, Patterns, Masks };

/// A method that PEFT and we both have.
struct PeftMethod {
  std::string_view peft_type, method;
  std::span<const PeftField> fields;
  std::string_view init_key;                      ///< the field that says how the parameters began
  std::span<const std::string_view> plain_inits;  ///< its words, besides true and false, that leave the base as it was
  PeftRanks ranks = PeftRanks::Uniform;
  std::string_view marker = {};                ///< the field that tells it from the others of its peft_type
  std::array<std::string_view, 2> bases = {};  ///< frozen tensors that its layers share
  bool excludes = false;                       ///< PEFT has `exclude_modules` for it
  bool any_rank = true;                        ///< ours has that option

  bool shares_bases() const { return !bases.front().empty(); }
};

inline constexpr std::array peft_lora_fields{
    PeftField{"r", "rank", PeftKind::Rank, "8", true},
    PeftField{"lora_alpha", "alpha", PeftKind::Alpha, "8", true},
    PeftField{"lora_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"use_rslora", "rslora", PeftKind::Flag, "false"},
    PeftField{"lora_bias", "bias", PeftKind::Flag, "false", false, true},
};
inline constexpr std::array peft_dora_fields{
    PeftField{"r", "rank", PeftKind::Rank, "8", true},
    PeftField{"lora_alpha", "alpha", PeftKind::Alpha, "8", true},
    PeftField{"lora_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"use_rslora", "rslora", PeftKind::Flag, "false"},
};
inline constexpr std::array peft_kasa_fields{
    PeftField{"r", "rank", PeftKind::Rank, "8", true},
    PeftField{"lora_alpha", "alpha", PeftKind::Alpha, "8", true},
    PeftField{"lora_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"kasa_config.beta", "beta", PeftKind::Number, "0.0001"},
    PeftField{"kasa_config.gamma", "gamma", PeftKind::Number, "0.001"},
};
inline constexpr std::array peft_adalora_fields{
    PeftField{"init_r", "rank", PeftKind::Rank, "12", true},
    PeftField{"target_r", "target_rank", PeftKind::Count, "8"},
    PeftField{"lora_alpha", "alpha", PeftKind::PositiveAlpha, "8", true},
    PeftField{"lora_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"tinit", "tinit", PeftKind::Count, "0"},
    PeftField{"tfinal", "tfinal", PeftKind::Count, "0"},
    PeftField{"deltaT", "delta_t", PeftKind::Count, "1"},
    PeftField{"beta1", "beta1", PeftKind::Number, "0.85"},
    PeftField{"beta2", "beta2", PeftKind::Number, "0.85"},
    PeftField{"orth_reg_weight", "orth_reg_weight", PeftKind::Number, "0.5"},
};
inline constexpr std::array peft_vera_fields{
    PeftField{"r", "rank", PeftKind::Rank, "256", true},
    PeftField{"vera_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"d_initial", "d_initial", PeftKind::Number, "0.1"},
    PeftField{"projection_prng_key", "projection_prng_key", PeftKind::Count, "0"},
};
inline constexpr std::array peft_randlora_fields{
    PeftField{"r", "rank", PeftKind::Rank, "32", true},
    PeftField{"randlora_alpha", "alpha", PeftKind::Alpha, "640", true},
    PeftField{"randlora_dropout", "dropout", PeftKind::Probability, "0"},
    PeftField{"projection_prng_key", "projection_prng_key", PeftKind::Count, "0"},
    PeftField{"sparse", "sparse", PeftKind::Flag, "false"},
    PeftField{"very_sparse", "very_sparse", PeftKind::Flag, "false"},
};
inline constexpr std::array<std::string_view, 3> peft_lora_inits{"gaussian", "orthogonal", "eva"};

/// Every method, a line each; of one peft_type the one without a marker comes last.
inline constexpr std::array peft_methods{
    PeftMethod{"LORA",
               "dora",
               peft_dora_fields,
               "init_lora_weights",
               peft_lora_inits,
               PeftRanks::Patterns,
               "use_dora",
               {},
               true},
    PeftMethod{
        "LORA", "kasa", peft_kasa_fields, "init_lora_weights", {}, PeftRanks::Patterns, "kasa_config", {}, true, false},
    PeftMethod{
        "LORA", "lora", peft_lora_fields, "init_lora_weights", peft_lora_inits, PeftRanks::Patterns, {}, {}, true},
    PeftMethod{"ADALORA", "adalora", peft_adalora_fields, "init_lora_weights", {}, PeftRanks::Masks, {}, {}, true},
    PeftMethod{"VERA", "vera", peft_vera_fields, "init_weights", {}, PeftRanks::Uniform, {}, {"vera_A", "vera_B"}},
    PeftMethod{"RANDLORA",
               "randlora",
               peft_randlora_fields,
               "init_weights",
               {},
               PeftRanks::Uniform,
               {},
               {"randlora_A", "randlora_B"}},
};

/// The word with which PEFT says that no module gets an adapter, and only `modules_to_save` are trained.
inline constexpr std::string_view peft_no_targets = "dummy-target-modules";

/// What follows a module's name in the masks of its ranks.
inline constexpr std::string_view peft_mask_suffix = ".lora_E";

/// Fields that say nothing about what the adapter computes.
inline constexpr std::array<std::string_view, 5> peft_remarks{"auto_mapping", "eva_config", "inference_mode",
                                                              "peft_version", "runtime_config"};

inline const PeftMethod& peft_method(std::string_view where, std::string_view name) {
  std::string known;
  for (const PeftMethod& method : peft_methods) {
    if (method.method == name) return method;
    known.append(known.empty() ? "" : ", ").append(quote(method.method));
  }
  raise_mismatch<UnsupportedError>(where, "method", quote(name), "one that PEFT has too: " + known);
}

/// The option's value where it is given, else its standard.
inline std::string_view option_value(const PeftField& field,
                                     std::span<const std::pair<std::string, std::string>> options) {
  for (const auto& [name, value] : options)
    if (name == field.option) return value;
  return field.standard;
}

inline double option_number(const PeftField& field, std::span<const std::pair<std::string, std::string>> options) {
  const std::string_view text = option_value(field, options);
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);  // the registry has checked the text
  return value;
}

inline std::uint64_t option_count(const PeftField& field,
                                  std::span<const std::pair<std::string, std::string>> options) {
  const std::string_view text = option_value(field, options);
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);  // the registry has checked the text
  return value;
}

}  // namespace deltaw::io::detail
