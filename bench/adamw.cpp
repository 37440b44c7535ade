// AdamW as the Cpu backend does it, in pairs with (a) a loop that only moves the same 28 bytes a parameter (reads p, g, m,
// v, writes p, m, v) and (b) the scalar loop that one would write. Built at -O2 for any processor of this architecture,
// and at -O2 for this one (the name of the program ends in _native).

#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>

#include "bench/paired.hpp"
#include "bench/report.hpp"
#include "deltaw/backend/cpu.hpp"

namespace dw = deltaw;
using deltaw_bench::PairedTimes;
using dw::index_t;

namespace {

struct State {
  dw::Cpu::Context ctx;
  dw::Tensor<float> p, g, m, v;
  dw::AdamWUpdate update{.step = 100};

  explicit State(index_t n) : p(1, n), g(1, n), m(1, n), v(1, n) {
    std::uint64_t stream = 1;
    for (auto* t : {&p, &g, &m}) dw::Cpu::fill_normal(ctx, {stream++}, {}, 1, t->view());
    dw::Cpu::fill_uniform(ctx, {stream}, {}, 0.5, 2, v.view());
  }
};

void update_by_library(State& s) {
  dw::Cpu::StepState state;
  dw::Cpu::Step(s.ctx, state, {}).adamw(s.update, s.p.view(), std::as_const(s.g).view(), s.m.view(), s.v.view());
}

// What one would write first; the compiler leaves the square root scalar, since it may set errno.
[[gnu::noinline]] void update_by_scalar_loop(State& s) {
  const auto& u = s.update;
  const auto steps = static_cast<double>(u.step);
  const auto rate = static_cast<float>(u.learning_rate / (1 - std::pow(u.beta1, steps)));
  const auto root = static_cast<float>(std::sqrt(1 - std::pow(u.beta2, steps)));
  const auto shrink = static_cast<float>(1 - u.learning_rate * u.weight_decay), epsilon = static_cast<float>(u.epsilon);
  const auto beta1 = static_cast<float>(u.beta1), beta2 = static_cast<float>(u.beta2);
  float *p = s.p.view().data, *m = s.m.view().data, *v = s.v.view().data;
  const float* g = s.g.view().data;
  for (index_t i = 0, n = s.p.size(); i < n; ++i) {
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    p[i] = shrink * p[i] - rate * m[i] / (std::sqrt(v[i]) / root + epsilon);
  }
}

// Adds a zero that the compiler does not know, so every value is read and written and none changes.
[[gnu::noinline]] void move_only(State& s) {
  namespace packet = Eigen::internal;
  using Packet = packet::packet_traits<float>::type;
  constexpr index_t lanes = packet::packet_traits<float>::size;
  volatile float unknown = 0;
  const Packet zero = packet::pset1<Packet>(float{unknown});
  float *p = s.p.view().data, *m = s.m.view().data, *v = s.v.view().data;
  const float* g = s.g.view().data;
  for (index_t i = 0; i + lanes <= s.p.size(); i += lanes) {
    const Packet nothing = packet::pmul(zero, packet::ploadu<Packet>(g + i));
    packet::pstoreu(p + i, packet::padd(packet::ploadu<Packet>(p + i), nothing));
    packet::pstoreu(m + i, packet::padd(packet::ploadu<Packet>(m + i), nothing));
    packet::pstoreu(v + i, packet::padd(packet::ploadu<Packet>(v + i), nothing));
  }
}

/// What must hold at one size: at most `most_over_move` times the moving loop, at least `least_speedup` of the scalar one.
struct Target {
  index_t parameters;
  double most_over_move, least_speedup;  // 0: none
};

const char* verdict(bool reached) { return reached ? "reached" : "MISSED"; }

void measure(const Target& target, deltaw_bench::RowFile& file) {
  State state(target.parameters);
  const int repeats = target.parameters < 1000000 ? 20 : 1;  // a short thing is timed many at once
  const auto repeated = [&](auto f) {
    return [&state, f, repeats] {
      for (int i = 0; i < repeats; ++i) f(state);
    };
  };
  const auto nothing = [] {};
  const auto library = repeated(update_by_library);
  const deltaw_bench::Plan plan{.pairs = 101};
  const PairedTimes over_move = deltaw_bench::measure_pairs(plan, nothing, repeated(move_only), library);
  const PairedTimes speedup = deltaw_bench::measure_pairs(plan, nothing, library, repeated(update_by_scalar_loop));

  std::printf("%8ld parameters  %8.4f ms  %5.2f [%4.2f, %4.2f] x moving", long{target.parameters},
              over_move.ms / repeats, over_move.ratio.median, over_move.ratio.low, over_move.ratio.high);
  if (target.most_over_move > 0)
    std::printf(" (at most %.1f: %s)", target.most_over_move, verdict(over_move.ratio.median <= target.most_over_move));
  std::printf("  %5.2f [%4.2f, %4.2f] x the scalar loop's speed", speedup.ratio.median, speedup.ratio.low,
              speedup.ratio.high);
  if (target.least_speedup > 0)
    std::printf(" (at least %.0f: %s)", target.least_speedup, verdict(speedup.ratio.median >= target.least_speedup));
  std::printf("\n");

  file.add(deltaw_bench::Row()
               .add("parameters", long{target.parameters})
               .add("flags", deltaw_bench::flags())
               .add("simd", Eigen::SimdInstructionSetsInUse())
               .add("ms", over_move.ms / repeats)
               .add("moving_ms", over_move.floor_ms / repeats)
               .add("scalar_ms", speedup.ms / repeats)
               .add("over_moving", over_move.ratio.median)
               .add("over_moving_low", over_move.ratio.low)
               .add("over_moving_high", over_move.ratio.high)
               .add("speedup", speedup.ratio.median)
               .add("speedup_low", speedup.ratio.low)
               .add("speedup_high", speedup.ratio.high)
               .add("pairs", long{speedup.pairs}));
}

}  // namespace

int main(int argc, char** argv) {
  const deltaw_bench::Arguments arguments(argc, argv);
  const bool native = std::string_view(argv[0]).ends_with("_native");
  deltaw_bench::RowFile file(arguments.out + "/adamw.json", native ? "adamw_native" : "adamw_plain");
  std::printf("flags %s (%s)\n", deltaw_bench::flags().c_str(), Eigen::SimdInstructionSetsInUse());
  measure({131072, 0, native ? 3.0 : 2.0}, file);
  measure({4 << 20, native ? 1.5 : 2.5, 0}, file);
}
