#pragma once
// What the tests of files share: a directory that goes away, and the text of an error of one type.

#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"

namespace deltaw_tests {

/// A fresh directory, removed with all it holds.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "deltaw-io-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) FAIL("cannot make a scratch directory at " << name);
    path_ = name;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  /// The names in it, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  std::filesystem::path path_;
};

/// The message of the E that `action` throws; what it throws of another type passes on and fails the test.
template <class E, class Action>
std::string error_text(Action action) {
  try {
    action();
  } catch (const E& error) { return error.what(); }
  return "(no error)";
}

}  // namespace deltaw_tests
