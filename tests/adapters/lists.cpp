// The four places that name a method agree: its header, its row, its line in the registry, its page.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "conformance.hpp"
#include "deltaw/model/registry.hpp"

using namespace deltaw_tests;
namespace fs = std::filesystem;

namespace {
std::set<std::string> files_in(const fs::path& folder, const std::string& extension) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == extension) names.insert(entry.path().filename().string());
  return names;
}
}  // namespace

TEST_CASE("headers, rows, registry and pages name the same methods") {
  const fs::path root = DELTAW_SOURCE_DIR;
  std::set<std::string> row_headers, row_methods, registered, pages;
  const auto add_row = [&](auto row) {
    row_headers.insert(row.header);
    row_methods.insert(std::string(decltype(row)::template Method<float, dw::Cpu, float>::method));
    pages.insert(fs::path(row.header).stem().string() + ".md");
  };
  std::apply([&](auto... rows) { (add_row(rows), ...); }, Rows{});
  for (const auto& entry : dw::methods<float, dw::Cpu>()) registered.insert(std::string(entry.name));
  CHECK(files_in(root / "include/deltaw/adapters", ".hpp") == row_headers);
  CHECK(registered == row_methods);
  const auto written = files_in(root / "docs/methods", ".md");
  for (const auto& page : pages) {
    INFO(page);
    CHECK(written.contains(page));
  }
  std::ifstream umbrella(root / "include/deltaw/deltaw.hpp");
  std::stringstream text;
  text << umbrella.rdbuf();
  for (const auto& header : row_headers) {
    INFO(header);
    CHECK(text.str().find("deltaw/adapters/" + header) != std::string::npos);
  }
}

TEST_CASE("options outside their range are refused, naming option, value and shape") {
  using Lora = dw::Lora<float, dw::Cpu>;
  const auto make = [](Lora::Options o, dw::LinearShape shape = {8, 6}) { return Lora(shape, o); };
  CHECK_THROWS_WITH(make({.rank = 0}), "Lora: rank: got 0, want 1 or more");
  CHECK_THROWS_WITH(make({.rank = -3}), "Lora: rank: got -3, want 1 or more");
  CHECK_THROWS_WITH(make({.rank = 7}),
                    "Lora: rank: got 7, want at most min(in_features, out_features) = 6, or any_rank "
                    "= true for a layer of 8 -> 6");
  CHECK_NOTHROW(make({.rank = 7, .any_rank = true}));
  CHECK_THROWS_WITH(make({.rank = 2, .alpha = 0}), ContainsSubstring("Lora: alpha: got 0"));
  CHECK_THROWS_WITH(make({.rank = 2, .alpha = std::nan("")}), ContainsSubstring("Lora: alpha: got nan"));
  CHECK_THROWS_WITH(make({.rank = 2, .alpha = INFINITY}), ContainsSubstring("Lora: alpha: got inf"));
  CHECK_THROWS_WITH(make({.rank = 2, .dropout = 1}), ContainsSubstring("Lora: dropout: got 1"));
  CHECK_THROWS_WITH(make({.rank = 2, .dropout = -0.1}), ContainsSubstring("Lora: dropout: got -0.1"));
  CHECK_THROWS_WITH(make({.rank = 2}, {0, 6}), "Lora: shape.in_features: got 0, want 1 or more");
  CHECK_THROWS_WITH(make({.rank = 2}, {8, -1}), "Lora: shape.out_features: got -1, want 1 or more");
  CHECK_THROWS_WITH((dw::FullDelta<float, dw::Cpu>({8, 0}, {})),
                    "FullDelta: shape.out_features: got 0, want 1 or more");
}

TEST_CASE("FullDelta: 16-bit storage has a float master, and a stale copy is refused") {
  const auto& cases = all_cases<float, dw::Cpu, dw::bf16>();
  const auto full = std::find_if(cases.begin(), cases.end(), [](auto& c) { return c.method == "full"; });
  REQUIRE(full != cases.end());
  Problem<float, dw::Cpu, dw::bf16> problem(Sizes{}, *full);
  problem.forward();
  const float tiny = 0x1p-12f;  // lost in bf16 next to 1, kept in the master
  problem.adapter.for_each_parameter([&](auto& p) {
    if (p.name != "weight") return;
    p.value.view()(0, 0) = 1 + tiny;
    p.changed();
  });
  CHECK_THROWS_WITH(problem.forward(), ContainsSubstring("FullDelta.forward: prepare: got parameters changed since"));
  dw::prepare(problem.ctx, problem.adapter, problem.base);
  CHECK_NOTHROW(problem.forward());
  CHECK(static_cast<float>(problem.w.view()(0, 0)) == 1);
  problem.adapter.for_each_parameter([&](auto& p) {
    if (p.name == "weight") CHECK(p.value.view()(0, 0) == 1 + tiny);
  });
}

TEST_CASE("FullDelta: a call before bind_weight is refused") {
  dw::FullDelta<float, dw::Cpu> full({3, 2}, {});
  dw::Cpu::Context ctx;
  dw::Tensor<float> x(1, 3), y(1, 2);
  dw::FullDelta<float, dw::Cpu>::Saved saved;
  CHECK_THROWS_WITH(full.forward(ctx, {}, x.view(), y.view(), saved),
                    "FullDelta.forward: weight: got none, want bind_weight to be called first");
}

TEST_CASE("no comparison passes on NaN") {
  Matrix good(2, 2), bad(2, 2);
  good.values = {1, 2, 3, 4};
  bad.values = {1, 2, std::nan(""), 4};
  CHECK_FALSE(relative_error(bad, good) <= 1e9);
  CHECK_FALSE(relative_error(good, bad) <= 1e9);
  CHECK_FALSE(worst_error({{"a", bad}, {"b", good}}, {{"a", good}, {"b", good}}) <= 1e9);
  CHECK_FALSE(worst_error({{"a", good}}, {{"a", good}, {"b", good}}) <= 1e9);
}
