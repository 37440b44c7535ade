#pragma once
// What every example program does alike: exit 0 after --help, exit 2 with one clear line for bad arguments, exit 1 with one
// line for what goes wrong later.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "deltaw/core/error.hpp"

namespace examples {

inline constexpr int exit_failed = 1, exit_bad_arguments = 2;

/// Parses the arguments and returns what `body()` returns. Options and names that the library refuses are bad arguments too.
template <class Body>
int run_program(CLI::App& app, int argc, char** argv, Body body) {
  const auto complain = [&](const std::string& what, int code) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), what.c_str());
    return code;
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) { return app.exit(asked); } catch (const CLI::ParseError& error) {
    std::string line = error.what();
    for (char& c : line)
      if (c == '\n') c = ' ';
    return complain(line + " (--help explains all)", exit_bad_arguments);
  }
  try {
    return body();
  } catch (const deltaw::Error& error) {
    const bool argument = error.kind() == deltaw::ErrorKind::Option || error.kind() == deltaw::ErrorKind::Name;
    return complain(error.what(), argument ? exit_bad_arguments : exit_failed);
  } catch (const std::exception& error) { return complain(error.what(), exit_failed); }
}

}  // namespace examples
