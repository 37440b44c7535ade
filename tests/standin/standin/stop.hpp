#pragma once
// How the stand-in refuses: a line on the standard error and a status that nothing else uses. A fault is never an error
// code that a program may overlook, for on the real device most of these faults are silent.

#include <unistd.h>

#include <cstdio>
#include <string>

namespace standin {

inline constexpr int stop_status = 86;

[[noreturn]] inline void stop(const std::string& message) {
  std::fflush(nullptr);
  std::fprintf(stderr, "standin: %s\n", message.c_str());
  std::fflush(stderr);
  _exit(stop_status);
}

inline std::string count(std::size_t n, const char* what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

}  // namespace standin
