#include "deltaw/io/json.hpp"

#include <limits>

#include "catch.hpp"
#include "scratch.hpp"

namespace io = deltaw::io;
using deltaw::FormatError;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;

namespace {

std::string refusal(std::string_view text, io::JsonLimits limits = {}) {
  return error_text<FormatError>([&] { io::parse_json("config.json", text, limits); });
}

}  // namespace

TEST_CASE("JSON is read as it stands", "[io]") {
  const auto value =
      io::parse_json("config.json", R"( {"r": 8, "alpha": 16.5, "bias": "none", "list": [true, null, -1, []]} )");
  CHECK(value["r"] == 8);
  CHECK(value["alpha"] == 16.5);
  CHECK(value["bias"] == "none");
  CHECK(value["list"].size() == 4);
  CHECK(io::parse_json("config.json", R"({"a": {"k": 1}, "b": {"k": 2}})")["b"]["k"] == 2);  // one name in two objects
}

TEST_CASE("JSON that is not strict is refused by file and place", "[io]") {
  CHECK(refusal(R"({"a": 1, "a": 1})") == "config.json: key 'a': got it twice, want it once");
  CHECK(refusal(R"([{"a": {"b": 1, "c": 2, "\u0062": 3}}])") == "config.json: key 'a'.'b': got it twice, want it once");
  CHECK(refusal(R"({"a\u0000": 1})") == "config.json: key 'a\\x00': got a NUL character, want a name without one");
  CHECK(refusal(std::string_view("1\0 2", 4)) == "config.json: byte 1 of the JSON text: got NUL, want JSON");
  CHECK_THAT(refusal(""), ContainsSubstring("config.json: byte 1 of the JSON text: got 'parse error"));
  CHECK_THAT(refusal("{\"a\": }"), ContainsSubstring("want well-formed JSON in UTF-8"));
  CHECK_THAT(refusal("{\"a\": NaN}"), ContainsSubstring("want well-formed JSON in UTF-8"));
  CHECK_THAT(refusal("{\"a\": 1e999}"), ContainsSubstring("number overflow"));
  CHECK_THAT(refusal("\"\xc0\xaf\""), ContainsSubstring("ill-formed UTF-8"));
  CHECK(refusal("\"" + std::string(1'000'000, 'x')).size() < 400);
}

TEST_CASE("JSON is bounded in depth and length", "[io]") {
  CHECK(refusal("[[[]]]", {.max_depth = 3}) == "(no error)");
  CHECK(refusal(R"({"a":{"b":[[]]}})", {.max_depth = 3}) ==
        "config.json: nesting at 'a'.'b': got more than 3 levels, want at most 3");
  CHECK(refusal(std::string(1'000'000, '[')) == "config.json: nesting at '': got more than 32 levels, want at most 32");
  CHECK(refusal("[1,2]", {.max_bytes = 5}) == "(no error)");
  CHECK(refusal("[1,2]", {.max_bytes = 4}) == "config.json: JSON text: got 5 bytes, want at most 4");
}

TEST_CASE("JSON is written if it can be read back", "[io]") {
  const nlohmann::json value{{"b", {1, 2.5, nullptr}}, {"a", "\u03c0 \"quoted\"\n"}};
  CHECK(io::dump_json("config.json", value) == "{\"a\":\"\u03c0 \\\"quoted\\\"\\n\",\"b\":[1,2.5,null]}");
  CHECK(io::parse_json("config.json", io::dump_json("config.json", value, 2)) == value);
  auto refused = [](const nlohmann::json& bad) {
    return error_text<FormatError>([&] { io::dump_json("config.json", bad); });
  };
  CHECK_THAT(refused({{"a", "\xff"}}),
             ContainsSubstring("config.json: JSON value: got '{\"a\":\"\"}', want UTF-8 text"));
  CHECK_THAT(refused({{"a\xff", 1}}), ContainsSubstring("want UTF-8 text and finite numbers"));
  CHECK_THAT(refused(std::numeric_limits<double>::quiet_NaN()), ContainsSubstring("got 'null'"));
  CHECK_THAT(refused({1.0, std::numeric_limits<double>::infinity()}),
             ContainsSubstring("want UTF-8 text and finite numbers"));
  CHECK(io::is_utf8("\u03c0"));
  CHECK(io::is_utf8(""));
  CHECK(!io::is_utf8("\xcf"));
}

TEST_CASE("text in a message is short and printable", "[io]") {
  CHECK(io::quote("a b\n\xff") == "'a b\\x0a\\xff'");
  CHECK(io::quote("") == "''");
  CHECK(io::quote("abc", 3) == "'abc'");
  CHECK(io::quote("abcd", 3) == "'abc...'");
}
