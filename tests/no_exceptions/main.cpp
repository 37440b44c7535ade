// Built with -fno-exceptions -fno-rtti: the library trains, and every error reaches the program's handler with its kind
// and its whole message. The handler must not return, so each error is provoked in a child process of its own.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "deltaw/deltaw.hpp"
#include "deltaw/model/adapter_set.hpp"

namespace dw = deltaw;

namespace {

int report_to = -1;  // what the child writes its error into
int failures = 0;

}  // namespace

namespace deltaw {

void on_error(ErrorKind kind, const char* message) {
  const std::string report = std::to_string(static_cast<int>(kind)) + " " + message;
  const bool written = write(report_to, report.data(), report.size()) == static_cast<ssize_t>(report.size());
  std::_Exit(written ? EXIT_SUCCESS : EXIT_FAILURE);
}

}  // namespace deltaw

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

// The child's report of the error that `provoke` meets; empty where it met none or died.
template <class F>
std::string report_of(F provoke) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    report_to = ends[1];
    provoke();
    std::_Exit(EXIT_FAILURE);
  }
  close(ends[1]);
  std::string report;
  char buffer[512];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) report.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  const bool reported = waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
  return reported ? report : "";
}

template <class F>
void expect_error(dw::ErrorKind kind, const std::string& message, F provoke) {
  const std::string want = std::to_string(static_cast<int>(kind)) + " " + message, got = report_of(provoke);
  if (got == want) return;
  std::printf("FAILED: got '%s'\n  instead of '%s'\n", got.c_str(), want.c_str());
  ++failures;
}

constexpr dw::LinearShape shape{.in_features = 8, .out_features = 4};

struct Model {
  dw::Cpu::Context ctx;
  std::vector<float> w = std::vector<float>(32, 0.5f), x = std::vector<float>(24, 1), y = std::vector<float>(12),
                     dy = std::vector<float>(12, 1);
  dw::AdapterSet<float, dw::Cpu> set;

  Model() {
    set.add_layer("head", dw::dense(w.data(), nullptr, shape));
    set.adapt(ctx, {.options = {{"rank", "2"}}, .targets = {.names = {"head"}}});
  }
};

void train_a_step() {
  Model m;
  auto& layer = m.set.layer("head");
  dw::AdaptedLinear<float, dw::Cpu>::Saved saved;
  const dw::MatrixView<float> x{m.x.data(), 3, 8}, y{m.y.data(), 3, 4}, dy{m.dy.data(), 3, 4};
  dw::Optimizer<dw::AdamW> optimizer({.learning_rate = 0.1});
  layer.forward(m.ctx, x, y, saved);
  check(m.y[0] == 4, "the untrained layer is its base");
  layer.backward(m.ctx, x, dy, {}, saved);
  check(!optimizer.step(m.ctx, m.set).skipped, "the step is taken");
  layer.forward(m.ctx, x, y, saved);
  check(m.y[0] != 4, "the trained layer is not");
}

}  // namespace

int main() {
  train_a_step();
  Model m;
  const dw::MatrixView<float> x{m.x.data(), 3, 8}, w{m.w.data(), 4, 8}, y{m.y.data(), 3, 4};
  expect_error(dw::ErrorKind::Option, "Lora: rank: got -1, want 1 or more",
               [] { dw::Lora<float, dw::Cpu>(shape, {.rank = -1}); });
  expect_error(dw::ErrorKind::Shape, "gemm: b.rows: got 4, want 8", [&] { dw::Cpu::gemm(m.ctx, 1, x, w, 0, y); });
  expect_error(dw::ErrorKind::Alias, "gemm: a and c: got views that share memory, want separate ones",
               [&] { dw::Cpu::gemm(m.ctx, 1, x, dw::t(w), 0, x.col_range(0, 4)); });
  expect_error(dw::ErrorKind::Memory, "Arena.take: workspace: got 0 bytes, want at least 64", [] {
    dw::Arena<> arena(nullptr, 0);
    dw::Arena<>::Mark mark(arena);
    arena.take<float>(1, 1);
  });
  expect_error(dw::ErrorKind::Name, "AdapterSet.layer: name: got 'tail', want one of the 1 layers added",
               [&] { m.set.layer("tail"); });
  expect_error(dw::ErrorKind::Stale, "AdapterSet.unmerge: layer 'head': got one not merged, want all merged",
               [&] { m.set.unmerge(m.ctx); });
  std::printf(failures == 0 ? "all errors arrived\n" : "%d checks failed\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
