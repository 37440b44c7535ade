// What README.md and the guides show is what is compiled.

#include <filesystem>
#include <fstream>
#include <sstream>

#include "catch.hpp"

namespace {
std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}
/// The first fenced block of C++ after `heading`.
std::string first_block(const std::string& page, const std::string& heading) {
  const auto begin = page.find("```cpp\n", page.find(heading));
  if (begin == std::string::npos) return {};
  const auto end = page.find("```", begin + 7);
  return page.substr(begin + 7, end - begin - 7);
}
/// A source without its first line, which says where it belongs.
std::string without_first_line(const std::string& source) { return source.substr(source.find('\n') + 1); }
}  // namespace

TEST_CASE("the example of the README is examples/readme.cpp, which is built and run") {
  const std::filesystem::path root = DELTAW_SOURCE_DIR;
  const std::string shown = first_block(read(root / "README.md"), "# DeltaW");
  REQUIRE(!shown.empty());
  CHECK(shown == without_first_line(read(root / "examples/readme.cpp")));
}
