// The primitives of the Cpu backend alone, by Google Benchmark: which product or pass takes the time of an adapter.
// Absolute times move with the load of the machine; ratios that must hold are measured by adapters.cpp and adamw.cpp.
// Besides --out DIR and --full it takes the flags of Google Benchmark (--benchmark_filter=...).

#include <benchmark/benchmark.h>

#include <string>
#include <string_view>
#include <vector>

#include "bench/report.hpp"
#include "deltaw/deltaw.hpp"

namespace dw = deltaw;
using dw::index_t;

namespace {

dw::Tensor<float> random(index_t rows, index_t cols) {
  dw::Cpu::Context ctx;
  dw::Tensor<float> tensor(rows, cols);
  dw::Cpu::fill_normal(ctx, {1}, {}, 1, tensor.view());
  return tensor;
}

void set_rate(benchmark::State& state, const char* name, double per_iteration) {
  state.counters[name] = benchmark::Counter(per_iteration * static_cast<double>(state.iterations()),
                                            benchmark::Counter::kIsRate, benchmark::Counter::kIs1000);
}

/// C (m x n, inner size k) = or += A B, A or B transposed where the name says so.
enum class Form { Plain, LeftTransposed, RightTransposed };
template <Form form>
void product(benchmark::State& state) {
  const index_t m = state.range(0), n = state.range(1), k = state.range(2);
  const double beta = static_cast<double>(state.range(3));
  dw::Cpu::Context ctx;
  auto a = form == Form::LeftTransposed ? random(k, m) : random(m, k);
  auto b = form == Form::RightTransposed ? random(n, k) : random(k, n);
  auto c = random(m, n);
  for (auto _ : state) {
    if constexpr (form == Form::LeftTransposed) dw::Cpu::gemm(ctx, 1e-3, dw::t(a.view()), b.view(), beta, c.view());
    if constexpr (form == Form::RightTransposed) dw::Cpu::gemm(ctx, 1e-3, a.view(), dw::t(b.view()), beta, c.view());
    if constexpr (form == Form::Plain) dw::Cpu::gemm(ctx, 1e-3, a.view(), b.view(), beta, c.view());
  }
  set_rate(state, "FLOP/s", 2.0 * static_cast<double>(m * n * k));
}

/// An elementwise primitive or reduction over tokens x features, which moves `passes` times those bytes.
template <class F>
void pass(benchmark::State& state, double passes, F f) {
  dw::Cpu::Context ctx;
  auto in = random(state.range(0), state.range(1)), out = random(state.range(0), state.range(1));
  auto row = random(1, state.range(1));
  for (auto _ : state) f(ctx, in.view(), out.view(), row.view());
  set_rate(state, "bytes/s", passes * 4 * static_cast<double>(in.size()));
}
void map_broadcast(benchmark::State& state) {
  pass(state, 2, [](auto& ctx, auto, auto out, auto row) { dw::Cpu::map(ctx, dw::Add{}, out, row); });
}
void copy_transposed(benchmark::State& state) {
  auto transposed = random(state.range(1), state.range(0));
  pass(state, 2, [&](auto& ctx, auto in, auto, auto) { dw::Cpu::copy_transposed(ctx, in, transposed.view()); });
}
void col_sum(benchmark::State& state) {
  pass(state, 1, [](auto& ctx, auto in, auto, auto row) { dw::Cpu::col_sum(ctx, 1e-3, in, row); });
}
void col_dot(benchmark::State& state) {
  pass(state, 2, [](auto& ctx, auto in, auto out, auto row) { dw::Cpu::col_dot(ctx, 1e-3, in, out, row); });
}
void norm2(benchmark::State& state) {
  pass(state, 1, [](auto& ctx, auto in, auto, auto) { benchmark::DoNotOptimize(dw::Cpu::norm2(ctx, in)); });
}
void dropout(benchmark::State& state) {
  pass(state, 2, [](auto& ctx, auto in, auto out, auto) { dw::Cpu::dropout(ctx, 0.1, {{7}}, {}, in, out); });
}

void register_products(index_t tokens, index_t in, index_t out, index_t rank) {
  const std::string at = "/" + std::to_string(tokens) + "x" + std::to_string(in) + "x" + std::to_string(out);
  const auto add = [&](const char* name, auto* f, std::vector<std::int64_t> sizes) {
    benchmark::RegisterBenchmark((name + at).c_str(), f)->Args(sizes)->Unit(benchmark::kMicrosecond)->UseRealTime();
  };
  add("Y=XW'", product<Form::RightTransposed>, {tokens, out, in, 0});
  add("dX=dYW", product<Form::Plain>, {tokens, in, out, 0});
  add("Z=XA'", product<Form::RightTransposed>, {tokens, rank, in, 0});
  add("Y+=ZB'", product<Form::RightTransposed>, {tokens, out, rank, 1});
  add("dB+=dY'Z", product<Form::LeftTransposed>, {out, rank, tokens, 1});
  add("H=dYB", product<Form::Plain>, {tokens, rank, out, 0});
  add("dX+=HA", product<Form::Plain>, {tokens, in, rank, 1});
  add("dA+=H'X", product<Form::LeftTransposed>, {rank, in, tokens, 1});
}

void register_passes(index_t tokens, index_t features) {
  const auto add = [&](const char* name, auto* f) {
    benchmark::RegisterBenchmark(name, f)->Args({tokens, features})->Unit(benchmark::kMicrosecond);
  };
  add("map_broadcast", map_broadcast);
  add("copy_transposed", copy_transposed);
  add("col_sum", col_sum);
  add("col_dot", col_dot);
  add("norm2", norm2);
  add("dropout", dropout);
}

}  // namespace

int main(int argc, char** argv) {
  std::string out = ".";
  bool full = false;
  std::vector<char*> rest{argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--full") {
      full = true;
    } else if (name == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else {
      rest.push_back(argv[i]);
    }
  }
  std::string file = "--benchmark_out=" + out + "/primitives.json", time = "--benchmark_min_time=0.05";
  rest.insert(rest.begin() + 1, {file.data(), time.data()});
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;

  deltaw_bench::set_threads(1);
  benchmark::AddCustomContext("blas", deltaw_bench::blas_name());
  benchmark::AddCustomContext("core", deltaw_bench::core_name());
  benchmark::AddCustomContext("flags", deltaw_bench::flags());
  register_products(128, 768, 3072, 16);
  register_products(512, 1024, 1024, 16);
  if (full) register_products(512, 4096, 4096, 16);
  register_passes(128, 3072);
  benchmark::RunSpecifiedBenchmarks();
}
