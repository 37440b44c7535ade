// Forward and backward of a frozen linear layer alone (the floor: Y = X W^T, dX = dY W) and with each adapter of the
// registry, side by side. One program a BLAS: the same source, compiled with and without DELTAW_CBLAS.
// The engine is one that overwrites dX, so that both sides run the same two large products.

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/heap.hpp"
#include "bench/paired.hpp"
#include "bench/report.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/model/registry.hpp"
#include "tests/wrapped_backend.hpp"

namespace dw = deltaw;
using deltaw_bench::PairedTimes;
using dw::index_t;
using Counted = deltaw_tests::Counting<dw::Cpu>;

namespace {

struct Shape {
  index_t tokens, in_features, out_features;
};
constexpr Shape shapes[] = {{512, 4096, 4096}, {512, 1024, 1024}, {128, 768, 3072}};

/// What rank 16 on one thread must reach and aims at, at each of the shapes; two threads may take 0.04 more.
struct Target {
  const char* label;
  double must[3], aim[3];
};
constexpr Target targets[] = {
    {"lora", {1.03, 1.10, 1.08}, {1.03, 1.07, 1.06}},
    {"dora", {1.07, 1.14, 1.20}, {1.07, 1.13, 1.18}},
    {"lora_xs", {1.02, 1.05, 1.05}, {1.02, 1.05, 1.05}},
    {"lora_sb", {1.02, 1.05, 1.05}, {1.02, 1.05, 1.05}},
    {"vera", {1.03, 1.07, 1.06}, {1.03, 1.07, 1.06}},
    {"nola", {1.10, 1.25, 1.55}, {1.10, 1.25, 1.55}},
    {"nola cached", {1.05, 1.10, 1.20}, {1.05, 1.10, 1.20}},
    {"randlora", {3.6, 3.6, 2.45}, {3.6, 3.6, 2.45}},
    {"randlora regenerated", {3.8, 3.8, 2.8}, {3.8, 3.8, 2.8}},
    {"randlora very sparse", {2.0, 3.6, 2.45}, {2.0, 3.6, 2.45}},
};
constexpr double two_thread_allowance = 0.04;

/// Hooks that a step of the method has beside its calls, timed as rows of their own.
enum class Extra { None, Regularize, AfterStep };

/// A method of the registry with other options than its defaults, or with a hook; one that has the method's own name as its
/// label stands for it.
struct Variant {
  const char* method;
  const char* label;
  std::vector<dw::OptionText> options = {};
  Extra extra = Extra::None;
};
const std::vector<Variant>& variants() {
  static const std::vector<Variant> list{
      {"dora", "dora exact", {{"exact_gradient", "true"}}},
      {"nola", "nola", {{"k", "64"}, {"l", "64"}}},
      {"nola", "nola cached", {{"k", "64"}, {"l", "64"}, {"cached", "true"}}},
      {"randlora", "randlora regenerated", {{"regenerate", "true"}}},
      {"randlora", "randlora sparse", {{"sparse", "true"}}},
      {"randlora", "randlora very sparse", {{"very_sparse", "true"}}},
      {"sora", "sora and its step", {}, Extra::AfterStep},
      {"adalora", "adalora and its penalty", {}, Extra::Regularize},
      {"adalora", "adalora and its budget", {}, Extra::AfterStep},
      {"kasa", "kasa and its penalties", {}, Extra::Regularize},
  };
  return list;
}

/// A frozen layer with its activations, filled with normal numbers.
struct Layer {
  const Shape& shape;  ///< one of `shapes`
  dw::Cpu::Context ctx;
  dw::Tensor<float> weight, x, y, dy, dx, given_dy;

  explicit Layer(const Shape& s) : shape(s) {
    weight.resize(s.out_features, s.in_features);
    x.resize(s.tokens, s.in_features), dx.resize(s.tokens, s.in_features);
    y.resize(s.tokens, s.out_features), dy.resize(s.tokens, s.out_features);
    given_dy.resize(s.tokens, s.out_features);
    dw::Cpu::fill_normal(ctx, {1}, {}, 0.02, weight.view());
    dw::Cpu::fill_normal(ctx, {2}, {}, 1, x.view());
    dw::Cpu::fill_normal(ctx, {3}, {}, 1, given_dy.view());
  }
  void forward() { dw::Cpu::gemm(ctx, 1, x.view(), dw::t(weight.view()), 0, y.view()); }
  void backward() { dw::Cpu::gemm(ctx, 1, dy.view(), weight.view(), 0, dx.view()); }
  void restore() { dw::Cpu::copy(ctx, given_dy.view(), dy.view()); }  // some methods change dY in place
};

/// An adapter on that layer, over the backend that is timed or over the one that counts.
template <class B>
struct Adapted {
  using Any = dw::AnyAdapter<float, B>;
  Layer& layer;
  typename B::Context ctx;
  dw::DenseLinear<float, float, B> base;
  Any adapter;
  typename Any::Saved saved;

  Adapted(Layer& l, std::string_view method, std::span<const dw::OptionText> options, index_t rank)
      : layer(l),
        base(l.weight.view(), {}),
        adapter(dw::make_adapter<float, B>(method, base.shape, options, layer_options(method, options, rank))) {
    if (adapter.trains_base()) adapter.bind_weight(ctx, layer.weight.view(), {});
    std::uint64_t stream = 4;
    adapter.for_each_parameter([&](auto& p) {
      B::fill_normal(ctx, dw::RandomKey{stream++}, {}, 0.02, p.value.view());
      p.changed();
    });
    dw::attach(ctx, adapter, base);
  }

  static dw::LayerOptions layer_options(std::string_view method, std::span<const dw::OptionText> texts, index_t rank) {
    dw::LayerOptions options = dw::find_method<float, B>(method).defaults(texts);
    if (options.rank) options.rank = rank;
    return options;
  }

  void changed() {
    adapter.for_each_parameter([](auto& p) { p.changed(); });
  }
  /// One whole step with one call: everything but the optimizer.
  template <class Forward, class Backward>
  void step(Extra extra, Forward base_forward, Backward base_backward) {
    Any* const group[] = {&adapter};
    dw::prepare(ctx, adapter, base);
    base_forward();
    adapter.forward(ctx, base, layer.x.view(), layer.y.view(), saved);
    adapter.backward(ctx, base, layer.x.view(), layer.dy.view(), {}, saved);
    base_backward();
    adapter.backward_input(ctx, base, layer.dx.view(), saved);
    dw::finish(ctx, adapter, base);
    if (extra == Extra::Regularize) Any::regularize(ctx, group);
    if (extra == Extra::AfterStep) Any::after_step(ctx, group, {.step = steps++, .total_steps = 1'000'000});
  }
  void step(Extra extra) {
    step(
        extra, [&] { layer.forward(); }, [&] { layer.backward(); });
  }
  long steps = 0;

  /// Bytes that the step holds beyond the layer and the adapter's parameters: what stays from step to step (Saved,
  /// workspace), and the most that a step in steady state takes for a while.
  std::size_t extra_bytes(Extra extra) {
    const std::size_t before = deltaw_bench::heap.live;
    for (int i = 0; i < 3; ++i) {
      layer.restore();
      step(extra);
    }
    const std::size_t kept = deltaw_bench::heap.live - before;
    layer.restore();
    deltaw_bench::heap.mark();
    step(extra);
    return kept + (deltaw_bench::heap.most - deltaw_bench::heap.live);
  }
};

struct Case {
  std::string label, method;
  std::vector<dw::OptionText> options;
  Extra extra;
  index_t rank;  // 0: the method has none
  int threads;

  std::string name(const Shape& s) const {
    return label + " " + std::to_string(s.tokens) + "x" + std::to_string(s.in_features) + "x" +
           std::to_string(s.out_features) + " r" + std::to_string(rank) + " t" + std::to_string(threads);
  }
};

std::vector<Case> cases(int threads, bool full) {
  std::vector<Case> list;
  const std::vector<index_t> ranks = full ? std::vector<index_t>{8, 16, 64} : std::vector<index_t>{16};
  const auto add = [&](const Variant& v) {
    const bool has_rank = dw::find_method<float, dw::Cpu>(v.method).defaults(v.options).rank.has_value();
    for (index_t rank : has_rank ? ranks : std::vector<index_t>{0})
      list.push_back({v.label, v.method, v.options, v.extra, rank, threads});
  };
  for (const auto& entry : dw::methods<float, dw::Cpu>()) {
    const auto replaces = [&](const Variant& v) { return v.label == entry.name; };
    if (std::none_of(variants().begin(), variants().end(), replaces)) add({entry.name.data(), entry.name.data()});
    for (const Variant& v : variants())
      if (v.method == entry.name) add(v);
  }
  return list;
}

/// FLOPs and bytes of the adapter's own share of a step.
deltaw_tests::Counts count(Layer& layer, const Case& c) {
  Adapted<Counted> counted(layer, c.method, c.options, c.rank);
  layer.restore();
  counted.ctx.hook = {};
  counted.step(
      c.extra, [] {}, [] {});
  return counted.ctx.hook;
}

void print_row(const Case& c, const Shape& shape, const PairedTimes& times, std::size_t extra_bytes,
               const deltaw_tests::Counts& counts) {
  std::printf("%-42s %9.3f %9.3f  %6.3f [%5.3f, %5.3f] %4d %10.1f %9.3f", c.name(shape).c_str(), times.floor_ms,
              times.ms, times.ratio.median, times.ratio.low, times.ratio.high, times.pairs,
              static_cast<double>(extra_bytes) / 1024, counts.flops / 1e9);
  const auto* target =
      std::find_if(std::begin(targets), std::end(targets), [&](auto& t) { return t.label == c.label; });
  if (target != std::end(targets) && (c.rank == 16 || c.rank == 0) && DELTAW_CBLAS) {
    const auto at = &shape - shapes;
    const double allowance = c.threads == 1 ? 0 : two_thread_allowance;
    const double must = target->must[at] + allowance, aim = target->aim[at] + allowance;
    std::printf("   must %.2f, aim %.2f: %s", must, aim,
                times.ratio.median <= aim    ? "reached"
                : times.ratio.median <= must ? "must reached"
                                             : "MISSED");
  }
  std::printf("\n");
  std::fflush(stdout);
}

deltaw_bench::Row row_of(const Case& c, const Shape& shape, const PairedTimes& times, std::size_t extra_bytes,
                         const deltaw_tests::Counts& counts) {
  const auto [tokens, in_features, out_features] = shape;
  return deltaw_bench::Row()
      .add("method", c.label)
      .add("tokens", long{tokens})
      .add("in_features", long{in_features})
      .add("out_features", long{out_features})
      .add("rank", long{c.rank})
      .add("threads", long{c.threads})
      .add("blas", deltaw_bench::blas_name())
      .add("core", deltaw_bench::core_name())
      .add("flags", deltaw_bench::flags())
      .add("floor_ms", times.floor_ms)
      .add("ms", times.ms)
      .add("ratio", times.ratio.median)
      .add("ratio_low", times.ratio.low)
      .add("ratio_high", times.ratio.high)
      .add("pairs", long{times.pairs})
      .add("extra_bytes", static_cast<long>(extra_bytes))
      .add("floor_flops", 4.0 * static_cast<double>(tokens * in_features * out_features))
      .add("flops", counts.flops)
      .add("bytes", counts.bytes);
}

/// A few cases beside one floor.
void measure(std::span<const Case> group, Layer& layer, deltaw_bench::RowFile& file) {
  deltaw_bench::set_threads(group.front().threads);
  std::vector<std::unique_ptr<Adapted<dw::Cpu>>> adapted;
  std::vector<std::size_t> extra_bytes;
  for (const Case& c : group) {
    adapted.push_back(std::make_unique<Adapted<dw::Cpu>>(layer, c.method, c.options, c.rank));
    extra_bytes.push_back(adapted.back()->extra_bytes(c.extra));
  }
  const auto times = deltaw_bench::measure_group(
      {}, group.size(),
      [&](std::size_t i) {
        layer.restore();
        if (i > 0) adapted[i - 1]->changed();
      },
      [&] {
        layer.forward();
        layer.backward();
      },
      [&](std::size_t i) { adapted[i - 1]->step(group[i - 1].extra); });
  for (std::size_t i = 0; i < group.size(); ++i) {
    const auto counts = count(layer, group[i]);
    print_row(group[i], layer.shape, times[i], extra_bytes[i], counts);
    file.add(row_of(group[i], layer.shape, times[i], extra_bytes[i], counts));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const deltaw_bench::Arguments arguments(argc, argv);
  const bool second_program = std::string_view(argv[0]).ends_with("_eigen");
  deltaw_bench::RowFile file(arguments.out + "/adapters.json", second_program ? "adapters_eigen" : "adapters");
  if (second_program && !arguments.full) {
    std::printf("products by Eigen are measured with --full only\n");
    return 0;
  }
  deltaw_bench::print_machine();
  std::printf("%-42s %9s %9s  %6s %-14s %4s %10s %9s\n", "method, tokens x in x out", "floor ms", "ms", "ratio", "95 %",
              "n", "extra KiB", "GFLOP");
  constexpr std::size_t group_size = 3;  // more would stand further from the floor of their round
  for (const Shape& shape : shapes) {
    Layer layer(shape);
    for (int threads = 1; threads <= (arguments.full ? 2 : 1); ++threads) {
      std::vector<Case> wanted;
      for (const Case& c : cases(threads, arguments.full))
        if (arguments.wanted(c.name(shape))) wanted.push_back(c);
      for (std::size_t first = 0; first < wanted.size(); first += group_size)
        measure(std::span(wanted).subspan(first, std::min(group_size, wanted.size() - first)), layer, file);
    }
  }
}
