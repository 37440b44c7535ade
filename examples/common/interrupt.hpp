#pragma once
// Ctrl-C as a request that the training loop looks at between two steps.

#include <csignal>

namespace examples {

namespace detail {
inline volatile std::sig_atomic_t interrupted = 0;
}

/// SIGINT and SIGTERM are noted from here on; a second one ends the program at once.
inline void catch_interrupts() {
  const auto note = [](int signal) {
    detail::interrupted = 1;
    std::signal(signal, SIG_DFL);
  };
  std::signal(SIGINT, note);
  std::signal(SIGTERM, note);
}

inline bool interrupted() { return detail::interrupted != 0; }

inline constexpr int exit_interrupted = 130;  ///< what shells say of a program that Ctrl-C ended

}  // namespace examples
