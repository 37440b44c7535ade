#pragma once
// Typed errors. Every message names the function, the argument, what was given and what was expected. With exceptions
// off (-fno-exceptions) nothing is thrown: the error reaches `deltaw::on_error`, which the program must define.

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace deltaw {

/// What went wrong, for code that cannot catch by type.
enum class ErrorKind { Shape, Option, Alias, NonFinite, Stale, Unsupported, Name, File, Format, Memory, Device };

#if defined(__cpp_exceptions)
inline namespace with_exceptions {
#else
/// Called instead of a throw when exceptions are off; the program defines it, and it must not return.
[[noreturn]] void on_error(ErrorKind kind, const char* message);
inline namespace without_exceptions {
#endif

/// Base of everything this library throws.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

template <ErrorKind Kind>
class ErrorOf : public Error {
 public:
  explicit ErrorOf(const std::string& message) : Error(Kind, message) {}
};

using ShapeError = ErrorOf<ErrorKind::Shape>;              ///< sizes or strides that do not fit together
using OptionError = ErrorOf<ErrorKind::Option>;            ///< an option outside its range, or two that contradict
using AliasError = ErrorOf<ErrorKind::Alias>;              ///< two views that must not share memory do
using NonFiniteError = ErrorOf<ErrorKind::NonFinite>;      ///< NaN or infinity where a finite number is needed
using StaleError = ErrorOf<ErrorKind::Stale>;              ///< a call that needs `prepare` or `attach` first
using UnsupportedError = ErrorOf<ErrorKind::Unsupported>;  ///< something this base, method or build does not offer
using NameError = ErrorOf<ErrorKind::Name>;                ///< a name that is unknown, taken, or matches nothing
using FileError = ErrorOf<ErrorKind::File>;                ///< the operating system refused
using FormatError = ErrorOf<ErrorKind::Format>;            ///< a file whose content is not what it must be
using MemoryError = ErrorOf<ErrorKind::Memory>;            ///< an arena or buffer that is too small
using DeviceError = ErrorOf<ErrorKind::Device>;            ///< a BLAS or device call that failed

/// Throws `E{where: what}`, or hands it to `on_error` when exceptions are off.
template <class E>
[[noreturn]] void raise(std::string_view where, std::string_view what) {
  std::string message(where);
  message.append(": ").append(what);
#if defined(__cpp_exceptions)
  throw E(message);
#else
  on_error(E(message).kind(), message.c_str());
#endif
}

/// A number as messages show it: floating-point ones by the fewest digits that are exact.
template <class N>
std::string number_text(N number) {
  if constexpr (std::floating_point<N>) {
    char digits[32];
    return {digits, std::to_chars(digits, digits + sizeof digits, static_cast<double>(number)).ptr};
  } else {
    return std::to_string(number);
  }
}

/// Raises `where: name: got X, want Y`.
template <class E, class Got>
[[noreturn]] void raise_mismatch(std::string_view where, std::string_view name, const Got& got, std::string_view want) {
  std::string text(name);
  text.append(": got ");
  if constexpr (requires { std::to_string(got); }) {
    text.append(number_text(got));
  } else {
    text.append(got);
  }
  raise<E>(where, text.append(", want ").append(want));
}

}  // namespace with_exceptions or without_exceptions
}  // namespace deltaw
