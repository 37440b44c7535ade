#pragma once
// From the text of a pattern to the automaton that pattern.hpp runs. A pattern may come from a file that somebody else
// wrote, so its length and its automaton are bounded, and nothing recurses.

#include <algorithm>
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"

namespace deltaw {
namespace detail {

inline constexpr std::size_t max_pattern_length = 4096;
inline constexpr std::size_t max_name_length = 4096;
inline constexpr std::size_t max_pattern_states = 8192;  // room for every pattern of legal length without {m,n}
inline constexpr std::size_t max_pattern_repeat = 1000;

inline std::string in_quotes(std::string_view text) { return std::string("'").append(text).append("'"); }

inline bool is_ascii(char c) { return static_cast<unsigned char>(c) < 128; }

inline bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

using CharacterSet = std::bitset<128>;

/// One state of the automaton. The next state is the following one, unless `step` says how far away it is: a Jump goes
/// there, a Split goes both ways. Distances are relative, so a piece of program can be copied to repeat it.
struct PatternState {
  enum class Kind : std::uint8_t { Literal, Set, Split, Jump, Begin, End };
  Kind kind = Kind::Literal;
  char literal = 0;       ///< Literal: the character
  std::uint16_t set = 0;  ///< Set: index into PatternProgram::sets
  std::int32_t step = 0;  ///< Split, Jump: distance
};

/// The automaton starts in state 0 and accepts in the state past the last.
struct PatternProgram {
  std::vector<PatternState> states;
  std::vector<CharacterSet> sets;
};

/// Turns the text of a pattern into a program, or raises OptionError that names what it met, where, and the pattern.
class PatternParser {
 public:
  PatternParser(std::string_view where, std::string_view text) : where_(where), text_(text) {}

  PatternProgram parse() {
    check_text();
    groups_.push_back({});
    while (!done()) parse_next();
    if (groups_.size() > 1) refuse("group that is never closed", groups_.back().position);
    join_alternatives();
    return std::move(program_);
  }

 private:
  using Kind = PatternState::Kind;
  /// A group that is still open. The outermost one is the whole pattern.
  struct Group {
    std::size_t position = 0;        // of its parenthesis in the text
    std::size_t begin = 0;           // its first state
    std::size_t alternative = 0;     // first state of the alternative being read
    std::vector<std::size_t> exits;  // the jumps that end the alternatives already read
  };
  enum class Last { Nothing, Item, Repeat };  // what a quantifier would apply to
  static constexpr std::size_t unlimited = static_cast<std::size_t>(-1);

  bool done() const { return position_ == text_.size(); }
  bool at(std::string_view spelling) const { return text_.substr(position_).starts_with(spelling); }

  [[noreturn]] void refuse(std::string_view what, std::size_t position) const {
    raise<OptionError>(where_, std::string("pattern ")
                                   .append(in_quotes(text_))
                                   .append(" is refused: ")
                                   .append(what)
                                   .append(" at position ")
                                   .append(std::to_string(position)));
  }

  void check_text() const {
    if (text_.size() > max_pattern_length)
      raise_mismatch<OptionError>(where_, "length of the pattern", text_.size(),
                                  "at most " + std::to_string(max_pattern_length) + " characters");
    if (text_.empty()) raise<OptionError>(where_, "the pattern is empty");
    const auto other = std::find_if_not(text_.begin(), text_.end(), is_ascii);
    if (other != text_.end()) refuse("character outside ASCII", static_cast<std::size_t>(other - text_.begin()));
  }

  void parse_next() {
    const char c = text_[position_];
    switch (c) {
      case '(':
        return open_group();
      case ')':
        return close_group();
      case '|':
        return start_alternative();
      case '*':
        return repeat(0, unlimited, 1);
      case '+':
        return repeat(1, unlimited, 1);
      case '?':
        return repeat(0, 1, 1);
      case '{':
        return parse_counts();
      case '[':
        return parse_set();
      case '\\':
        return parse_escape();
      case '.':
        return add_set(~CharacterSet().set('\n'), 1);
      case '^':
        return add_anchor(Kind::Begin);
      case '$':
        return add_anchor(Kind::End);
      default:
        return add_literal(c, 1);
    }
  }

  void append(PatternState state) {
    check_room(1);
    program_.states.push_back(state);
  }

  /// Raises unless `count` more states fit.
  void check_room(std::size_t count) const {
    const std::size_t states = program_.states.size() + count;
    if (states > max_pattern_states)
      refuse("need for " + std::to_string(states) + " states, above the limit of " + std::to_string(max_pattern_states),
             position_);
  }

  /// Appends one state that reads a character, and passes `width` characters of the text.
  void add_item(PatternState state, std::size_t width) {
    last_begin_ = program_.states.size();
    append(state);
    last_ = Last::Item;
    position_ += width;
  }

  void add_literal(char c, std::size_t width) { add_item({.kind = Kind::Literal, .literal = c}, width); }

  void add_set(const CharacterSet& set, std::size_t width) {
    const auto index = static_cast<std::uint16_t>(program_.sets.size());  // fewer than the pattern has characters
    program_.sets.push_back(set);
    add_item({.kind = Kind::Set, .set = index}, width);
  }

  void add_anchor(Kind kind) {
    append({.kind = kind});
    last_ = Last::Nothing;
    ++position_;
  }

  void open_group() {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 11> unsupported{{
        {"(?=", "lookahead '(?='"},
        {"(?!", "negative lookahead '(?!'"},
        {"(?<=", "lookbehind '(?<='"},
        {"(?<!", "negative lookbehind '(?<!'"},
        {"(?P=", "named backreference '(?P='"},
        {"(?P", "named group '(?P'"},
        {"(?<", "named group '(?<'"},
        {"(?>", "atomic group '(?>'"},
        {"(?#", "comment '(?#'"},
        {"(?(", "conditional group '(?('"},
        {"(?", "inline flags '(?'"},
    }};
    const bool plain = at("(?:") || !at("(?");
    for (const auto& [spelling, name] : unsupported)
      if (!plain && at(spelling)) refuse(name, position_);
    const std::size_t begin = program_.states.size();
    groups_.push_back({.position = position_, .begin = begin, .alternative = begin, .exits = {}});
    position_ += at("(?:") ? 3 : 1;
    last_ = Last::Nothing;
  }

  void close_group() {
    if (groups_.size() == 1) refuse("')' without a '('", position_);
    join_alternatives();
    last_begin_ = groups_.back().begin;
    last_ = Last::Item;
    groups_.pop_back();
    ++position_;
  }

  /// Puts a Split before the alternative just read and a Jump, of a length still unknown, after it.
  void start_alternative() {
    Group& group = groups_.back();
    check_room(2);
    const auto length = static_cast<std::int32_t>(program_.states.size() - group.alternative);
    const auto begin = program_.states.begin() + static_cast<std::ptrdiff_t>(group.alternative);
    program_.states.insert(begin, {.kind = Kind::Split, .step = length + 2});
    group.exits.push_back(program_.states.size());
    append({.kind = Kind::Jump});
    group.alternative = program_.states.size();
    last_ = Last::Nothing;
    ++position_;
  }

  void join_alternatives() {
    for (const std::size_t exit : groups_.back().exits)
      program_.states[exit].step = static_cast<std::int32_t>(program_.states.size() - exit);
  }

  /// Reads {m}, {m,}, {,n} or {m,n}.
  void parse_counts() {
    std::size_t next = position_ + 1;
    const auto number = [&](std::size_t otherwise) {
      if (next == text_.size() || !is_digit(text_[next])) return otherwise;
      std::size_t value = 0;
      for (; next < text_.size() && is_digit(text_[next]); ++next)
        value = std::min(10 * value + static_cast<std::size_t>(text_[next] - '0'), max_pattern_repeat + 1);
      return value;
    };
    const std::size_t least = number(0);
    std::size_t most = least;
    const bool comma = next < text_.size() && text_[next] == ',';
    if (comma) {
      ++next;
      most = number(unlimited);
    }
    if (next == text_.size() || text_[next] != '}' || (next == position_ + 1))
      refuse("'{' that begins no repeat count (the character itself is written \\{)", position_);
    if (least > max_pattern_repeat || (most > max_pattern_repeat && most != unlimited))
      refuse("repeat count above " + std::to_string(max_pattern_repeat), position_);
    if (least > most) refuse("repeat count whose minimum is above its maximum", position_);
    repeat(least, most, next + 1 - position_);
  }

  /// Repeats the last item `least` to `most` times; `width` is the length of the quantifier in the text.
  void repeat(std::size_t least, std::size_t most, std::size_t width) {
    if (last_ == Last::Nothing) refuse("quantifier with nothing to repeat", position_);
    if (last_ == Last::Repeat) refuse("quantifier after a quantifier", position_);
    const std::size_t end = position_ + width;
    if (end < text_.size() && text_[end] == '+') refuse("possessive quantifier", position_);
    auto& states = program_.states;
    const std::vector<PatternState> item(states.begin() + static_cast<std::ptrdiff_t>(last_begin_), states.end());
    const auto length = static_cast<std::int32_t>(item.size());
    states.resize(last_begin_);
    const std::size_t optional =
        most == unlimited ? (least > 0 ? 1 : item.size() + 2) : (most - least) * (item.size() + 1);
    check_room(least * item.size() + optional);
    const auto append_item = [&] { states.insert(states.end(), item.begin(), item.end()); };
    for (std::size_t i = 0; i < least; ++i) append_item();
    if (most == unlimited && least > 0) {
      append({.kind = Kind::Split, .step = -length});
    } else if (most == unlimited) {
      append({.kind = Kind::Split, .step = length + 2});
      append_item();
      append({.kind = Kind::Jump, .step = -(length + 1)});
    } else {
      for (auto left = static_cast<std::int32_t>(most - least); left > 0; --left) {
        append({.kind = Kind::Split, .step = left * (length + 1)});
        append_item();
      }
    }
    last_ = Last::Repeat;
    const bool lazy = end < text_.size() && text_[end] == '?';  // the order of attempts does not change a full match
    position_ = end + (lazy ? 1 : 0);
  }

  /// \d \w \s and their complements, with Python's idea of white space.
  static CharacterSet named_set(char letter) {
    const bool complement = letter < 'a';
    const char kind = static_cast<char>(complement ? letter - 'A' + 'a' : letter);
    CharacterSet set;
    for (std::size_t i = 0; i < set.size(); ++i) {
      const char c = static_cast<char>(i);
      const bool space = c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f');
      const bool word = is_letter(c) || is_digit(c) || c == '_';
      set[i] = kind == 'd' ? is_digit(c) : kind == 'w' ? word : space;
    }
    return complement ? ~set : set;
  }

  /// The letter of a backslash and its letter that stand for a set, 0 for an escaped character; refuses all else.
  char escape_kind() const {
    if (position_ + 1 == text_.size()) refuse("backslash that ends the pattern", position_);
    const char c = text_[position_ + 1];
    if (std::string_view("dwsDWS").find(c) != std::string_view::npos) return c;
    const std::string spelling = in_quotes(text_.substr(position_, 2));
    if (c == '0') refuse("octal escape " + spelling, position_);
    if (is_digit(c)) refuse("backreference " + spelling, position_);
    if (c == 'b' || c == 'B') refuse("word boundary " + spelling, position_);
    if (c == 'A' || c == 'Z') refuse("anchor " + spelling, position_);
    if (c == 'x' || c == 'u' || c == 'U' || c == 'N') refuse("hexadecimal or unicode escape " + spelling, position_);
    if (is_letter(c)) refuse("unknown escape " + spelling, position_);
    return 0;
  }

  void parse_escape() {
    const char kind = escape_kind();
    if (kind != 0) return add_set(named_set(kind), 2);
    add_literal(text_[position_ + 1], 2);
  }

  /// Reads a set in brackets. As in Python a ']' right after the opening is an ordinary member.
  void parse_set() {
    const std::size_t begin = position_++;
    CharacterSet set;
    const bool negated = at("^");
    if (negated) ++position_;
    for (bool first = true; first || !at("]"); first = false) {
      if (done()) refuse("set that is never closed", begin);
      const std::size_t member = position_;
      const int low = parse_member(set);
      const bool range = at("-") && position_ + 1 < text_.size() && text_[position_ + 1] != ']';
      if (!range) continue;
      ++position_;
      const int high = parse_member(set);
      if (low < 0 || high < 0) refuse("range that begins or ends with a set such as \\d", member);
      if (low > high) refuse("range whose first character is above its last", member);
      for (int c = low; c <= high; ++c) set.set(static_cast<std::size_t>(c));
    }
    add_set(negated ? ~set : set, 1);
  }

  /// Adds one member to `set`; returns its character, or -1 where it is a set itself.
  int parse_member(CharacterSet& set) {
    if (at("[:")) refuse("POSIX class '[:'", position_);
    const char kind = at("\\") ? escape_kind() : '\0';
    if (kind != 0) {
      set |= named_set(kind);
      position_ += 2;
      return -1;
    }
    if (at("\\")) ++position_;
    const char c = text_[position_++];
    set.set(static_cast<std::size_t>(c));
    return c;
  }

  std::string_view where_, text_;
  std::size_t position_ = 0;
  PatternProgram program_;
  std::vector<Group> groups_;
  Last last_ = Last::Nothing;
  std::size_t last_begin_ = 0;
};

}  // namespace detail
}  // namespace deltaw
