#pragma once
// What an adapter may be called.

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "deltaw/core/error.hpp"
#include "deltaw/model/pattern_program.hpp"

namespace deltaw {
namespace detail {

/// Words that begin the keys of a checkpoint when a '_' follows: "lora_A", "vera_lambda_b".
inline constexpr std::array<std::string_view, 36> key_prefixes{
    "adalora", "adamss",   "beft",    "boft",     "c3a",     "deft",   "delora", "dora",   "fourierft",
    "frod",    "glora",    "gralora", "hada",     "hira",    "hra",    "ia3",    "lily",   "ln_tuning",
    "lokr",    "lora",     "miss",    "oft",      "osf",     "peanut", "poly",   "psoft",  "pvera",
    "road",    "randlora", "shira",   "tinylora", "unilora", "vblora", "vera",   "waveft", "supertuning"};

/// Segments that stand in such keys as they are.
inline constexpr std::array<std::string_view, 7> key_segments{
    "base_model", "base_layer", "model", "weight", "bias", "modules_to_save", "original_module"};

/// True if `word` and a '_' stand in `name` at its begin or after a '_' or '-'.
inline bool begins_a_part(std::string_view word, std::string_view name) {
  const std::string prefix = std::string(word).append("_");
  for (std::size_t at = name.find(prefix); at != std::string_view::npos; at = name.find(prefix, at + 1))
    if (at == 0 || name[at - 1] == '_' || name[at - 1] == '-') return true;
  return false;
}

}  // namespace detail

/// Raises NameError unless `name` can name an adapter: 1 to 64 ASCII letters, digits, '_' and '-', beginning with a
/// letter or a digit, and nothing that could be taken for a part of a checkpoint's keys, as "lora", "my_lora_2" and
/// "base_model" could. Such names make PEFT lose weights when it takes the name out of a key.
inline void check_adapter_name(std::string_view name) {
  constexpr std::string_view where = "check_adapter_name";
  constexpr std::size_t longest = 64;
  if (name.empty()) raise<NameError>(where, "name: got an empty one, want at least one character");
  if (name.size() > longest)
    raise_mismatch<NameError>(where, "length of the name", name.size(),
                              "at most " + std::to_string(longest) + " characters");
  const auto plain = [](char c) { return detail::is_letter(c) || detail::is_digit(c); };
  const auto legal = [&](char c) { return plain(c) || c == '_' || c == '-'; };
  if (!plain(name.front()) || !std::all_of(name.begin(), name.end(), legal))
    raise_mismatch<NameError>(where, "name", detail::in_quotes(name),
                              "letters, digits, '_' and '-', beginning with a letter or a digit");
  for (const std::string_view segment : detail::key_segments)
    if (name == segment)
      raise<NameError>(where, "name: " + detail::in_quotes(name) + " is a segment of the keys of checkpoints");
  for (const std::string_view prefix : detail::key_prefixes)
    if (name == prefix || detail::begins_a_part(prefix, name))
      raise<NameError>(where, "name: " + detail::in_quotes(name) + " contains " + detail::in_quotes(prefix) +
                                  ", which begins keys of checkpoints");
}

}  // namespace deltaw
