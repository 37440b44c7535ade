// The pattern matcher: each construct, each refusal, bounded work, and agreement with std::regex and Python's re.

// g++ 12 with a sanitizer warns about its own <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "deltaw/model/pattern.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "catch.hpp"

using deltaw::NameError;
using deltaw::OptionError;
using deltaw::Pattern;
using deltaw_tests::ContainsSubstring;

namespace {

template <class Error>
std::string message_of(const std::string& pattern, const std::string& name = "a") {
  try {
    Pattern(pattern).matches(name);
  } catch (const Error& error) { return error.what(); }
  return "nothing was raised for " + pattern.substr(0, 100);
}

/// Random patterns that Python, ECMAScript and we read alike, over the letters a b c, '_', '1' and '.'. Repeats inside
/// repeats are left out on demand: std::regex takes minutes for '((a{0,2}){1,3})*b' on six characters.
class Generator {
 public:
  Generator(unsigned seed, bool nested_repeats) : random_(seed), nested_repeats_(nested_repeats) {}

  std::string pattern() { return alternatives(3, true); }

  /// Any characters that have a meaning somewhere; most of these texts are malformed.
  std::string noise() {
    std::string text;
    for (int left = 1 + below(9); left > 0; --left) text += "aab.*+?{}[]()|^$\\-,12dW:"[below(25)];
    return text;
  }

  std::string name(int longest) {
    std::string text;
    for (int left = below(longest + 1); left > 0; --left) text += "aaabbc_1."[below(9)];
    return text;
  }

 private:
  int below(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }

  const std::string& one_of(const std::vector<std::string>& texts) {
    return texts[static_cast<std::size_t>(below(static_cast<int>(texts.size())))];
  }

  std::string alternatives(int depth, bool repeats) {
    std::string text = sequence(depth, repeats);
    while (below(4) == 0) text += "|" + sequence(depth, repeats);
    return text;
  }

  std::string sequence(int depth, bool repeats) {
    std::string text;
    for (int left = 1 + below(3); left > 0; --left) text += item(depth, repeats);
    return text;
  }

  std::string item(int depth, bool repeats) {
    static const std::vector<std::string> quantifiers{"*",   "+",    "?",     "*?",    "+?",  "??",
                                                      "{2}", "{1,}", "{0,2}", "{1,3}", "{0}", "{2,}?"};
    if (below(16) == 0) return one_of({"^", "$"});
    const bool repeated = repeats && below(3) == 0;
    const bool group = depth > 0 && below(3) == 0;
    const bool inner = nested_repeats_ || (repeats && !repeated);
    std::string text = group ? one_of({"(", "(?:"}) + alternatives(depth - 1, inner) + ")" : atom();
    if (repeated) text += one_of(quantifiers);
    return text;
  }

  std::string atom() {
    static const std::vector<std::string> atoms{
        "a",   "b",   "c",    "_",    "1",     ".",       "\\.",    "\\d",     "\\w",    "\\W",  "\\s",
        "\\S", "\\D", "[ab]", "[^a]", "[a-c]", "[^b-c1]", "[\\d_]", "[a\\-.]", "[^\\w]", "[-a]", "[1a-b]"};
    return below(2) == 0 ? std::string(1, "abc"[below(3)]) : one_of(atoms);
  }

  std::mt19937 random_;
  bool nested_repeats_;
};

/// A file of the temporary directory, removed at the end.
struct TemporaryFile {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("deltaw_pattern_" + std::to_string(std::random_device{}()) + ".txt");
  ~TemporaryFile() { std::filesystem::remove(path); }
};

/// Exit status of the script that asks Python's re about the cases in a file.
int ask_python(const TemporaryFile& cases) {
  const std::string script = std::string(DELTAW_SOURCE_DIR) + "/tests/model/pattern_check.py";
  return std::system(("python3 \"" + script + "\" \"" + cases.path.string() + "\"").c_str());
}

/// Patterns that are wrong in Python too.
const std::vector<std::string> malformed{"(a",     "a)",   "*a",   "a|*", "(*a)",  "a**",     "a{2}{3}", "a*??",
                                         "^*",     "[a",   "[]",   "[^]", "[b-a]", "[\\d-z]", "[a-\\d]", "a\\",
                                         "a{3,2}", "a\\q", "(?:a", "[a-", "$+",    "+",       "a++b+*"};

}  // namespace

TEST_CASE("pattern: what each construct matches", "[pattern]") {
  struct Row {
    const char* pattern;
    std::vector<std::string> yes, no;
  };
  const std::vector<Row> rows{
      {"abc", {"abc"}, {"", "ab", "abcd", "xabc"}},
      {"a.c", {"abc", "a.c"}, {"ac", "a\nc", "abbc"}},
      {"a\\.c", {"a.c"}, {"abc"}},
      {"\\\\\\[\\*\\_\\ ", {"\\[*_ "}, {"\\[*_"}},
      {"\\d\\D", {"1a"}, {"a1", "11"}},
      {"\\w\\W", {"_.", "Z-", "9 "}, {"..", "aa"}},
      {"\\s\\S",
       {"\ta", "\n.",
        "\x1c"
        "1"},
       {"aa", "  "}},
      {"[a-c_]+", {"a", "cab_"}, {"", "d", "a-c"}},
      {"[^a-c]", {"d", "\n", "]"}, {"a", "b", ""}},
      {"[]a]+", {"]a]"}, {"b", "[]"}},
      {"[^]a]", {"b"}, {"]", "a"}},
      {"[a-]+", {"a-a"}, {"b"}},
      {"[\\d.-]+", {"1.0-2"}, {"a"}},
      {"[\\]\\\\]+", {"]\\"}, {"["}},
      {"[+--]+", {"+,-"}, {".", "*"}},
      {"}]", {"}]"}, {"}"}},
      {"a|bc|", {"a", "bc", ""}, {"b", "abc", "ac"}},
      {"(a|b)c", {"ac", "bc"}, {"a", "c", "abc"}},
      {"(?:ab)*", {"", "ab", "abab"}, {"a", "aba"}},
      {"a+?b??", {"a", "aab"}, {"", "b", "abb"}},
      {"a{2}", {"aa"}, {"a", "aaa"}},
      {"a{2,}", {"aa", "aaaaa"}, {"a"}},
      {"a{,2}", {"", "a", "aa"}, {"aaa"}},
      {"a{1,3}?", {"a", "aaa"}, {"", "aaaa"}},
      {"(a|b){2}c{0}", {"ab", "bb"}, {"a", "abc"}},
      {"a{,}", {"", "aaa"}, {"b"}},
      {"^a$", {"a"}, {"aa"}},
      {"(^|.*\\.)q$", {"q", "a.q"}, {"aq", "q."}},
      {"a^b|a$b", {}, {"ab"}},
      {"(a*)*(|b)+", {"", "aab", "bb"}, {"ba"}},
      {"(()|a{0,3})*", {"", "aaaaaaa"}, {"b"}},
      {"model\\.layers\\.(0|1[0-9])\\..*(q|v)_proj",
       {"model.layers.0.attn.q_proj", "model.layers.17.v_proj"},
       {"model.layers.1.q_proj", "model.layers.0.k_proj", "xmodel.layers.0.q_proj"}},
  };
  for (const auto& [pattern, yes, no] : rows) {
    const Pattern compiled(pattern);
    CHECK(compiled.text() == pattern);
    for (const auto& name : yes) {
      INFO(pattern << " on '" << name << "'");
      CHECK(compiled.matches(name));
    }
    for (const auto& name : no) {
      INFO(pattern << " on '" << name << "'");
      CHECK_FALSE(compiled.matches(name));
    }
  }
}

TEST_CASE("pattern: the tail of a name begins after any dot", "[pattern]") {
  CHECK(Pattern("q").matches_tail("q"));
  CHECK(Pattern("q").matches_tail("a.b.q"));
  CHECK(Pattern("b.q").matches_tail("a.b.q"));
  CHECK(Pattern("q|k").matches_tail("a.k"));
  CHECK(Pattern("[^.]*").matches_tail("a."));
  CHECK_FALSE(Pattern("q").matches_tail("aq"));
  CHECK_FALSE(Pattern("q").matches_tail("a.q.b"));
  CHECK_FALSE(Pattern("q").matches("a.q"));
  CHECK(Pattern("^a.q$").matches_tail("a.q"));
  CHECK_FALSE(Pattern("^q").matches_tail("a.q"));
  CHECK_FALSE(Pattern("q").matches_tail("a\n.q"));
}

TEST_CASE("pattern: what is not supported is refused by name, with its position", "[pattern]") {
  const std::vector<std::vector<std::string>> rows{
      {"a(?=b)", "lookahead '(?='", "1"},
      {"(?!b)", "negative lookahead '(?!'", "0"},
      {"ab(?<=b)", "lookbehind '(?<='", "2"},
      {"(?<!b)a", "negative lookbehind '(?<!'", "0"},
      {"(?P<layer>a)", "named group '(?P'", "0"},
      {"(?<layer>a)", "named group '(?<'", "0"},
      {"(a)(?P=a)", "named backreference '(?P='", "3"},
      {"(?>a)", "atomic group '(?>'", "0"},
      {"a(?#note)", "comment '(?#'", "1"},
      {"(a)(?(1)b)", "conditional group '(?('", "3"},
      {"(?i)a", "inline flags '(?'", "0"},
      {"(?i:a)", "inline flags '(?'", "0"},
      {"(a)\\1", "backreference '\\1'", "3"},
      {"a\\0", "octal escape '\\0'", "1"},
      {"\\bq", "word boundary '\\b'", "0"},
      {"\\Bq", "word boundary '\\B'", "0"},
      {"[\\b]", "word boundary '\\b'", "1"},
      {"\\Aq", "anchor '\\A'", "0"},
      {"q\\Z", "anchor '\\Z'", "1"},
      {"\\x41", "hexadecimal or unicode escape '\\x'", "0"},
      {"a\\u0041", "hexadecimal or unicode escape '\\u'", "1"},
      {"\\N{DASH}", "hexadecimal or unicode escape '\\N'", "0"},
      {"a\\q", "unknown escape '\\q'", "1"},
      {"a\\", "backslash that ends the pattern", "1"},
      {"a*+", "possessive quantifier", "1"},
      {"a?+", "possessive quantifier", "1"},
      {"a{2}+", "possessive quantifier", "1"},
      {"[[:alpha:]]", "POSIX class '[:'", "1"},
      {"a**", "quantifier after a quantifier", "2"},
      {"a*??", "quantifier after a quantifier", "3"},
      {"*a", "quantifier with nothing to repeat", "0"},
      {"a|+", "quantifier with nothing to repeat", "2"},
      {"^*", "quantifier with nothing to repeat", "1"},
      {"({2})", "quantifier with nothing to repeat", "1"},
      {"a{x}", "'{' that begins no repeat count", "1"},
      {"a{}", "'{' that begins no repeat count", "1"},
      {"a{2", "'{' that begins no repeat count", "1"},
      {"a{3,2}", "repeat count whose minimum is above its maximum", "1"},
      {"a{1001}", "repeat count above 1000", "1"},
      {"a{1,99999999999999999999999}", "repeat count above 1000", "1"},
      {"(a", "group that is never closed", "0"},
      {"a(b(c)", "group that is never closed", "1"},
      {"a)", "')' without a '('", "1"},
      {"b[a", "set that is never closed", "1"},
      {"[^]", "set that is never closed", "0"},
      {"[c-a]", "range whose first character is above its last", "1"},
      {"[_\\d-z]", "range that begins or ends with a set", "2"},
      {"[a-\\w]", "range that begins or ends with a set", "1"},
      {"caf\xc3\xa9", "character outside ASCII", "3"},
  };
  for (const auto& row : rows) {
    const std::string want = "Pattern: pattern '" + row[0] + "' is refused: " + row[1];
    CHECK_THAT(message_of<OptionError>(row[0]), ContainsSubstring(want));
    CHECK_THAT(message_of<OptionError>(row[0]), Catch::Matchers::EndsWith(" at position " + row[2]));
  }
  CHECK_THAT(message_of<OptionError>(""), ContainsSubstring("the pattern is empty"));
}

TEST_CASE("pattern: lengths are bounded", "[pattern]") {
  const std::string longest(4096, 'a');
  CHECK(Pattern(longest).matches(longest));
  CHECK_FALSE(Pattern(longest).matches(longest.substr(1)));
  CHECK_THAT(message_of<OptionError>(longest + "a"),
             ContainsSubstring("length of the pattern: got 4097, want at most 4096 characters"));
  CHECK_THAT(message_of<NameError>("a*", longest + "a"),
             ContainsSubstring("length of the name: got 4097, want at most 4096 characters"));
  CHECK_THAT(message_of<NameError>(".*", "caf\xc3\xa9"),
             ContainsSubstring("name 'caf\xc3\xa9' has a character outside ASCII at position 3"));
}

TEST_CASE("pattern: the automaton is bounded, and every pattern without counts fits", "[pattern]") {
  CHECK(Pattern("((a{10}){20}){40}").states() == 8000);
  CHECK(Pattern("((a{10}){20}){40}").matches(std::string(4000, 'a')) == false);
  CHECK(Pattern("(a{1000}){4}").matches(std::string(4000, 'a')));
  CHECK(Pattern("(a{0,1000}){2,3}").matches(std::string(2500, 'a')));
  CHECK_THAT(message_of<OptionError>("((a{10}){20}){41}"),
             ContainsSubstring("need for 8200 states, above the limit of 8192"));
  CHECK_THAT(message_of<OptionError>("(((((a{1000}){1000}){1000}){1000}){1000})"),
             ContainsSubstring("above the limit of 8192"));
  std::string text;
  for (int i = 0; i < 2048; ++i) text += "a|";
  CHECK(Pattern(text).states() == 2048 * 3);
  CHECK(Pattern(std::string(4096, '|')).states() == 8192);
  CHECK(Pattern(std::string(2048, '(') + std::string(2048, ')')).matches(""));
  std::string nested(1365, '(');
  for (int i = 0; i < 1365; ++i) nested += ")*";
  CHECK(Pattern(nested).matches(""));
  CHECK_FALSE(Pattern(nested).matches("a"));
}

TEST_CASE("pattern: the work is at most states x characters on patterns that make backtracking explode", "[pattern]") {
  const std::string name(4000, 'a');
  for (const char* text :
       {"(a*)*b", "(a|aa)+$", "(a|a)*b", "((a+)+)+b", "(.*)(.*)(.*)(.*)(.*)b", "(a?){1000}a{1000}"}) {
    const Pattern pattern(text);
    std::size_t steps = 0;
    const bool matched = pattern.matches(name, &steps);
    INFO(text << ": " << steps << " steps");
    CHECK(matched == (std::string(text) == "(a|aa)+$"));
    CHECK(steps > 0);
    CHECK(steps <= (pattern.states() + 1) * (name.size() + 1));
    const std::size_t once = steps;
    pattern.matches_tail(name, &steps);
    CHECK(steps == 2 * once);
  }
}

TEST_CASE("pattern: agrees with std::regex on random short cases", "[pattern]") {
  Generator generator(20240607, false);
  int matched = 0, compared = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = generator.pattern();
    const Pattern ours(text);
    const std::regex theirs(text, std::regex::ECMAScript);
    for (int k = 0; k < 3; ++k) {
      const std::string name = generator.name(6);
      const bool want = std::regex_match(name, theirs);
      matched += want ? 1 : 0;
      ++compared;
      if (ours.matches(name) != want) FAIL("pattern '" << text << "' on '" << name << "': std::regex says " << want);
    }
  }
  CHECK(matched > compared / 20);
  CHECK(matched < compared / 2);
}

TEST_CASE("pattern: agrees with Python's re", "[pattern]") {
  if (std::system("python3 -c pass") != 0) {
    WARN("no python3 here: the comparison with Python's re did not run");
    return;
  }
  Generator generator(7, true);
  TemporaryFile cases;
  std::ofstream out(cases.path);
  for (int i = 0; i < 4000; ++i) {
    const std::string text = generator.pattern(), name = generator.name(8);
    const Pattern pattern(text);
    out << "full\t" << text << '\t' << name << '\t' << pattern.matches(name) << '\n';
    out << "tail\t" << text << '\t' << name << '\t' << pattern.matches_tail(name) << '\n';
  }
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = generator.noise(), name = generator.name(3);
    if (!message_of<OptionError>(text).starts_with("nothing was raised")) continue;
    ++accepted;
    out << "full\t" << text << '\t' << name << '\t' << Pattern(text).matches(name) << '\n';
  }
  CHECK(accepted > 1000);
  for (const auto& text : malformed) {
    CHECK_THAT(message_of<OptionError>(text), ContainsSubstring("is refused"));
    out << "malformed\t" << text << "\t\t0\n";
  }
  out.flush();
  CHECK(ask_python(cases) == 0);
  out << "full\tplanted\tplanted\t0\n";  // a wrong verdict, so that the check is seen to fail
  out.flush();
  CHECK(ask_python(cases) != 0);
}
