#pragma once
// Patterns over module names: a subset of regular expressions with Python's meaning, matched in linear time.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/model/pattern_program.hpp"

namespace deltaw {
namespace detail {

/// One match of a program: all states that the text so far can lead to are followed side by side, each at most once a
/// position, so there are at most (states + 1) (length + 1) steps whatever the pattern.
class PatternRun {
 public:
  PatternRun(const PatternProgram& program, std::string_view text)
      : program_(program), text_(text), seen_(program.states.size() + 1, 0) {}

  /// True if the whole text matches or, with `tail`, if what follows one of its dots does.
  bool matches(bool tail) {
    follow(0, 0);
    for (std::size_t position = 0; position < text_.size(); ++position) {
      now_.swap(next_);
      next_.clear();
      const char c = text_[position];
      for (const std::size_t state : now_)
        if (reads(program_.states[state], c)) follow(state + 1, position + 1);
      tail = tail && c != '\n';  // the `.*` before the dot does not cross lines
      if (tail && c == '.') follow(0, position + 1);
      if (next_.empty() && !tail && position + 1 < text_.size()) return false;
    }
    return seen_.back() == text_.size() + 1;
  }

  std::size_t steps() const { return steps_; }

 private:
  using Kind = PatternState::Kind;

  bool reads(const PatternState& state, char c) const {
    return state.kind == Kind::Literal ? state.literal == c : program_.sets[state.set][static_cast<std::size_t>(c)];
  }

  /// Adds to `next_` the states that read a character and are reached from `start` without reading one.
  void follow(std::size_t start, std::size_t position) {
    pending_.assign(1, start);
    while (!pending_.empty()) {
      const std::size_t state = pending_.back();
      pending_.pop_back();
      if (seen_[state] == position + 1) continue;
      seen_[state] = position + 1;
      ++steps_;
      if (state == program_.states.size()) continue;
      const auto& [kind, literal, set, step] = program_.states[state];
      if (kind == Kind::Literal || kind == Kind::Set) next_.push_back(state);
      if (kind == Kind::Split || kind == Kind::Jump)
        pending_.push_back(static_cast<std::size_t>(static_cast<std::ptrdiff_t>(state) + step));
      const bool passes = kind == Kind::Split || (kind == Kind::Begin && position == 0) ||
                          (kind == Kind::End && position == text_.size());
      if (passes) pending_.push_back(state + 1);
    }
  }

  const PatternProgram& program_;
  std::string_view text_;
  std::vector<std::size_t> seen_;  // 1 + the position at which a state was last reached; the last entry accepts
  std::vector<std::size_t> now_, next_, pending_;
  std::size_t steps_ = 0;
};

}  // namespace detail

/// A regular expression over ASCII names with the meaning of Python's `re`: literals, escaped punctuation, \d \w \s
/// \D \W \S, `.`, sets [a-z] [^a-z], groups (..) (?:..), alternatives |, * + ? {m} {m,} {,n} {m,n} (up to 1000) and their
/// lazy forms, and the anchors ^ and $. `$` holds at the very end only, not also before a last newline.
///
/// Everything else raises OptionError, which names the construct, its position and the pattern: lookaround,
/// backreferences, named and atomic groups, flags, \b \A \Z, hexadecimal and unicode escapes, possessive quantifiers,
/// malformed text, more than 4096 characters, or an automaton of more than 8192 states.
///
/// A match takes at most (states() + 1) (length + 1) steps. A name of more than 4096 characters or outside ASCII raises
/// NameError.
class Pattern {
 public:
  static constexpr std::size_t max_length = detail::max_pattern_length;
  static constexpr std::size_t max_name_length = detail::max_name_length;

  /// `where` opens the message of an error.
  explicit Pattern(std::string text, std::string_view where = "Pattern")
      : text_(std::move(text)), program_(detail::PatternParser(where, text_).parse()) {}

  /// Python's re.fullmatch(pattern, name). Adds the steps it took to `steps`, if given.
  bool matches(std::string_view name, std::size_t* steps = nullptr) const { return run(name, false, steps); }

  /// Python's re.match("(.*\.)?(pattern)$", name): the whole name, or what follows one of its dots. This is how PEFT
  /// reads the keys of rank and alpha patterns.
  bool matches_tail(std::string_view name, std::size_t* steps = nullptr) const { return run(name, true, steps); }

  const std::string& text() const { return text_; }
  std::size_t states() const { return program_.states.size(); }

 private:
  bool run(std::string_view name, bool tail, std::size_t* steps) const {
    if (name.size() > max_name_length)
      raise_mismatch<NameError>("Pattern", "length of the name", name.size(),
                                "at most " + std::to_string(max_name_length) + " characters");
    for (std::size_t i = 0; i < name.size(); ++i)
      if (!detail::is_ascii(name[i]))
        raise<NameError>("Pattern", "name " + detail::in_quotes(name) + " has a character outside ASCII at position " +
                                        std::to_string(i) + ", which no pattern can match");
    detail::PatternRun match(program_, name);
    const bool matched = match.matches(tail);
    if (steps != nullptr) *steps += match.steps();
    return matched;
  }

  std::string text_;
  detail::PatternProgram program_;
};

}  // namespace deltaw
