// The rules of docs/architecture.md about headers: floors, length, and what deltaw.hpp may not bring along.

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "catch.hpp"

namespace fs = std::filesystem;

namespace {
const fs::path root = fs::path(DELTAW_SOURCE_DIR) / "include/deltaw";

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}
/// What a header includes, as written between the quotes or brackets.
std::vector<std::string> includes_of(const fs::path& path) {
  std::vector<std::string> names;
  for (const std::string& line : lines_of(path))
    if (line.starts_with("#include ")) names.push_back(line.substr(10, line.find_first_of("\">", 10) - 10));
  return names;
}
std::vector<fs::path> headers() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator(root))
    if (entry.path().extension() == ".hpp") paths.push_back(entry.path());
  return paths;
}
/// Everything of ours that a header brings in, and every foreign header, by name.
void collect(const std::string& name, std::set<std::string>& seen) {
  if (!seen.insert(name).second || !name.starts_with("deltaw/")) return;
  for (const auto& include : includes_of(root.parent_path() / name)) collect(include, seen);
}
}  // namespace

TEST_CASE("a header includes only headers of its own floor and of lower ones") {
  const std::map<std::string, int> floors{{"core", 0}, {"backend", 1}, {"base", 2},  {"adapters", 3},
                                          {"init", 4}, {"optim", 4},   {"model", 5}, {"io", 6}};
  int checked = 0;
  for (const auto& path : headers()) {
    const std::string folder = path.parent_path().filename().string();
    if (!floors.contains(folder)) continue;
    for (const auto& include : includes_of(path)) {
      if (!include.starts_with("deltaw/") || include == "deltaw/version.hpp") continue;
      const std::string other = fs::path(include).parent_path().filename().string();
      INFO(path.string() << " includes " << include);
      REQUIRE(floors.contains(other));
      CHECK((other == folder || floors.at(other) < floors.at(folder)));
      ++checked;
    }
  }
  CHECK(checked > 50);
}

TEST_CASE("no header is over 400 lines") {
  for (const auto& path : headers()) {
    INFO(path.string());
    CHECK(lines_of(path).size() <= 400);
  }
}

TEST_CASE("adapters and policies name no backend") {
  for (const auto* folder : {"adapters", "init", "optim"})
    for (const auto& entry : fs::directory_iterator(root / folder))
      for (const std::string& line : lines_of(entry.path())) {
        INFO(entry.path().string() << ": " << line);
        CHECK(line.find("Eigen") == std::string::npos);
        CHECK(line.find("cublas") == std::string::npos);
        CHECK_FALSE(line.starts_with("#if"));
      }
}

TEST_CASE("deltaw.hpp needs Eigen and the standard library, without regex, files or JSON") {
  std::set<std::string> seen;
  collect("deltaw/deltaw.hpp", seen);
  CHECK(seen.contains("deltaw/adapters/lora.hpp"));
  CHECK(seen.contains("Eigen/Core"));
  for (const auto& name : seen) {
    INFO(name);
    if (name.starts_with("deltaw/")) {
      CHECK_FALSE(name.starts_with("deltaw/io/"));
      continue;
    }
    const bool foreign = name.find('/') != std::string::npos || name.ends_with(".h");
    CHECK((!foreign || name == "Eigen/Core" || name == "cblas.h" || name == "immintrin.h"));
    for (const auto* banned : {"regex", "filesystem", "fstream", "map", "functional", "iostream"})
      CHECK(name != banned);
  }
}

TEST_CASE("the primitives of Cpu, of Cuda, of the wrapped backend of the tests, and of the page are the same") {
  // "  static RETURN NAME(Context& ..." of the public part of the backend.
  const auto members = [](const fs::path& path) {
    std::set<std::string> names;
    for (const std::string& line : lines_of(path)) {
      if (line == " private:") break;
      const auto call = line.find("(Context&");
      if (!line.starts_with("  static ") || call == std::string::npos) continue;
      names.insert(line.substr(line.rfind(' ', call) + 1, call - line.rfind(' ', call) - 1));
    }
    return names;
  };
  std::string page;
  bool inside = false;
  for (const std::string& line : lines_of(fs::path(DELTAW_SOURCE_DIR) / "docs/architecture.md")) {
    if (line.starts_with("## ")) inside = line == "## The primitives";
    if (inside) page += line + " ";
  }
  const auto cpu = members(root / "backend/cpu.hpp");
  CHECK(cpu.size() >= 14);
  CHECK(members(fs::path(DELTAW_SOURCE_DIR) / "tests/wrapped_backend.hpp") == cpu);
  CHECK(members(root / "backend/cuda.hpp") == cpu);
  for (const auto& name : cpu) {
    INFO(name);
    CHECK(page.find("`" + name + "`") != std::string::npos);
  }
}
