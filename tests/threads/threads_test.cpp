// What may run at the same time: forward of one adapter, with a Context and a Saved for each thread; backward of replicas.
// Threads only compute; what they found is checked after they have joined. Built under ThreadSanitizer too.

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/adapters/lora.hpp"
#include "deltaw/base/dense.hpp"
#include "deltaw/init/kaiming.hpp"
#include "deltaw/model/adapted_linear.hpp"
#include "deltaw/optim/adamw.hpp"
#include "guarded.hpp"

using namespace deltaw_tests;
using dw::Cpu;

namespace {

constexpr std::size_t thread_count = 4;
constexpr int rounds = 20;
constexpr index_t tokens = 33, in_features = 48, out_features = 24;
constexpr dw::LinearShape shape{.in_features = in_features, .out_features = out_features};

using Lora = dw::Lora<float, Cpu>;
using Layer = dw::AdaptedLinear<float, Cpu>;

// What one thread owns.
template <class Saved>
struct Worker {
  Cpu::Context ctx;
  Saved saved;
  Guarded<float> x{tokens, in_features}, y{tokens, out_features}, dy{tokens, out_features}, dx{tokens, in_features};
  std::vector<std::string> results;

  explicit Worker(std::uint32_t seed) { x.fill(seed); }
};

// Workers 0 to 3 do `work(worker, round)` in threads, and others like them one after the other: the same bits.
template <class Saved, class F>
void check_same_in_threads(F work) {
  std::deque<Worker<Saved>> parallel, serial;  // whose elements do not move
  for (std::uint32_t seed = 0; seed < thread_count; ++seed) parallel.emplace_back(seed), serial.emplace_back(seed);
  const auto work_all_rounds = [&work](Worker<Saved>& worker) {
    for (int round = 0; round < rounds; ++round) work(worker, round);
  };

  std::vector<std::thread> threads;
  for (auto& worker : parallel) threads.emplace_back([&] { work_all_rounds(worker); });
  for (auto& thread : threads) thread.join();
  for (auto& worker : serial) work_all_rounds(worker);

  for (std::size_t i = 0; i < thread_count; ++i) {
    CHECK(parallel[i].results.size() == rounds);
    CHECK(parallel[i].results == serial[i].results);
    for (std::size_t j = 0; j < i; ++j) CHECK(parallel[i].results != parallel[j].results);
  }
}

struct Fixture {
  Cpu::Context ctx;
  Guarded<float> w{out_features, in_features}, bias{1, out_features};
  dw::DenseLinear<float, float> dense{w.fill(1).view(), bias.fill(2).view()};
  Lora lora{shape, {.rank = 4, .alpha = 8, .bias = true, .dropout = 0.25, .seed = 3}};

  Fixture() {
    dw::init::Kaiming{.seed = 4}(ctx, lora, dense);
    Cpu::fill_normal(ctx, dw::RandomKey{5}, {}, 0.1, lora.pair().up->value.view());
  }
};

dw::Call call_of(int round) { return {.training = true, .step = static_cast<std::uint64_t>(round)}; }

}  // namespace

TEST_CASE("one adapter serves the forwards of four threads") {
  Fixture f;
  check_same_in_threads<Lora::Saved>([&f](auto& worker, int round) {
    worker.saved.call = call_of(round);
    f.dense.forward(worker.ctx, worker.x.const_view(), worker.y.view());
    std::as_const(f.lora).forward(worker.ctx, f.dense, worker.x.const_view(), worker.y.view(), worker.saved);
    worker.results.push_back(worker.y.bits());
  });
}

TEST_CASE("one adapted layer with two adapters serves the forwards of four threads") {
  Fixture f;
  Layer layer(f.dense);
  layer.add(f.ctx, "first", f.lora);
  layer.add(f.ctx, "second", f.lora);
  check_same_in_threads<Layer::Saved>([&layer](auto& worker, int round) {
    worker.saved.call = call_of(round);
    std::as_const(layer).forward(worker.ctx, worker.x.const_view(), worker.y.view(), worker.saved);
    worker.results.push_back(worker.y.bits());
  });
}

TEST_CASE("four replicas train at the same time over one frozen weight") {
  Fixture f;
  struct Replica {
    std::optional<Lora> lora;
    Lora::Saved saved;
    dw::Optimizer<dw::AdamW> optimizer;
  };
  check_same_in_threads<Replica>([&f](auto& worker, int round) {
    auto& [replica, saved, optimizer] = worker.saved;
    if (round == 0) replica = f.lora;
    saved.call = call_of(round);
    f.dense.forward(worker.ctx, worker.x.const_view(), worker.y.view());
    replica->forward(worker.ctx, f.dense, worker.x.const_view(), worker.y.view(), saved);
    Cpu::copy(worker.ctx, worker.y.const_view(), worker.dy.view());  // the gradient of the sum of y^2 / 2
    Cpu::fill(worker.ctx, worker.dx.view(), 0);
    replica->backward(worker.ctx, f.dense, worker.x.const_view(), worker.dy.view(), worker.dx.view(), saved);
    f.dense.backward_input(worker.ctx, worker.dy.const_view(), worker.dx.view());
    optimizer.step(worker.ctx, *replica);
    dw::zero_grad(worker.ctx, *replica);
    worker.results.push_back(worker.dx.bits());
  });
}
