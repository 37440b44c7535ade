#pragma once
// JSON from files that nobody vouches for: nlohmann-json's parser behind the checks that it leaves to its caller.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"

namespace deltaw::io {

/// Text from a file as it stands in a message: in quotes, unprintable bytes as \xNN, cut after `limit` bytes.
inline std::string quote(std::string_view text, std::size_t limit = 160) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string shown = "'";
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      shown += c;
    } else {
      shown.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 15]);
    }
  }
  return shown.append(text.size() > limit ? "...'" : "'");
}

/// What a text may ask of its reader.
struct JsonLimits {
  std::size_t max_depth = 32;          ///< of objects and arrays in one another
  std::size_t max_bytes = 16'777'216;  ///< of the whole text
};

namespace detail {

/// Receives nlohmann's parse events, checks what concerns every JSON text, and hands fewer kinds of event on:
/// open_object, open_array, close, key, string, natural (a whole number >= 0), other (anything else, as text).
template <class Visitor>
class JsonEvents {
 public:
  using Json = nlohmann::json;

  JsonEvents(std::string_view file, std::size_t max_depth, Visitor& visitor)
      : file_(file), max_depth_(max_depth), visitor_(visitor) {}

  bool null() { return other("null"); }
  bool boolean(bool value) { return other(value ? "true" : "false"); }
  bool number_integer(Json::number_integer_t value) { return other(value == 0 ? "-0" : std::to_string(value)); }
  bool number_unsigned(Json::number_unsigned_t value) {
    visitor_.natural(value);
    return true;
  }
  bool number_float(Json::number_float_t, const std::string& text) { return other(text); }
  bool string(std::string& value) {
    visitor_.string(value);
    return true;
  }
  bool binary(Json::binary_t&) { return other("binary"); }

  bool start_object(std::size_t) {
    open();
    visitor_.open_object();
    return true;
  }
  bool start_array(std::size_t) {
    open();
    visitor_.open_array();
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    Level& level = levels_.back();
    level.key = name;
    if (name.find('\0') != std::string::npos)
      raise_mismatch<FormatError>(file_, "key " + place(), "a NUL character", "a name without one");
    if (!level.keys.insert(name).second) raise_mismatch<FormatError>(file_, "key " + place(), "it twice", "it once");
    visitor_.key(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) {
    std::string_view reason = error.what();
    if (const auto number = reason.find("] "); number != std::string_view::npos) reason.remove_prefix(number + 2);
    raise_mismatch<FormatError>(file_, "byte " + std::to_string(position) + " of the JSON text", quote(reason, 240),
                                "well-formed JSON in UTF-8");
  }

 private:
  struct Level {
    std::unordered_set<std::string> keys;
    std::string key;
  };

  bool other(std::string_view text) {
    visitor_.other(text);
    return true;
  }
  void open() {
    if (levels_.size() == max_depth_)
      raise_mismatch<FormatError>(file_, "nesting at " + place(), "more than " + std::to_string(max_depth_) + " levels",
                                  "at most " + std::to_string(max_depth_));
    levels_.emplace_back();
  }
  bool close() {
    levels_.pop_back();
    visitor_.close();
    return true;
  }
  std::string place() const {
    std::string text;
    for (const Level& level : levels_)
      if (!level.key.empty()) text.append(text.empty() ? "" : ".").append(quote(level.key));
    return text.empty() ? "''" : text;
  }

  std::string_view file_;
  std::size_t max_depth_;
  Visitor& visitor_;
  std::vector<Level> levels_;
};

struct IgnoreJson {
  void open_object() {}
  void open_array() {}
  void close() {}
  void key(std::string_view) {}
  void string(std::string_view) {}
  void natural(std::uint64_t) {}
  void other(std::string_view) {}
};

}  // namespace detail

/// Walks `text` and tells `visitor` (see detail::JsonEvents) what stands there, building nothing. Throws FormatError
/// for malformed JSON or UTF-8, a key given twice in one object, a key with a NUL, and a text over the limits.
template <class Visitor>
void visit_json(std::string_view file, std::string_view text, const JsonLimits& limits, Visitor& visitor) {
  if (text.size() > limits.max_bytes)
    raise_mismatch<FormatError>(file, "JSON text", std::to_string(text.size()) + " bytes",
                                "at most " + std::to_string(limits.max_bytes));
  // nlohmann takes a NUL for the end of the text and would not see what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos)
    raise_mismatch<FormatError>(file, "byte " + std::to_string(nul) + " of the JSON text", "NUL", "JSON");
  detail::JsonEvents<Visitor> events(file, limits.max_depth, visitor);
  nlohmann::json::sax_parse(text, &events);
}

/// The text as a value, after the checks of `visit_json`. `file` stands in messages.
inline nlohmann::json parse_json(std::string_view file, std::string_view text, const JsonLimits& limits = {}) {
  detail::IgnoreJson check_only;
  visit_json(file, text, limits, check_only);
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

/// The value as text. Throws FormatError where JSON cannot say it: a string that is not UTF-8, NaN, infinity.
inline std::string dump_json(std::string_view file, const nlohmann::json& value, int indent = -1) {
  std::string text = value.dump(indent, ' ', false, nlohmann::json::error_handler_t::ignore);
  if (nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false) != value)
    raise_mismatch<FormatError>(file, "JSON value", quote(text), "UTF-8 text and finite numbers");
  return text;
}

/// Whether the text can stand in JSON.
inline bool is_utf8(std::string_view text) {
  const std::string dumped = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::ignore);
  return nlohmann::json::parse(dumped, nullptr, /*allow_exceptions=*/false) == text;
}

}  // namespace deltaw::io
