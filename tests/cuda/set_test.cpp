// Whole models on a device: a set of layers by name, its merge, and its files, through the same headers.

#include "../io/scratch.hpp"
#include "catch.hpp"
#include "deltaw/backend/cuda_solver.hpp"
#include "deltaw/io/peft.hpp"
#include "deltaw/io/state.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "guarded.hpp"

using namespace deltaw_tests;

namespace {

/// Two linear layers, one after the other, on backend B.
template <class B>
struct Model {
  typename B::Context ctx;
  Guarded<float, typename B::Space> w1{6, 8}, w2{4, 6}, bias{1, 4}, x{5, 8}, hidden{5, 6}, y{5, 4}, dy{5, 4}, dh{5, 6};
  dw::AdapterSet<float, B> set;
  typename dw::AdapterSet<float, B>::Layer::Saved saved1, saved2;
  dw::Optimizer<dw::AdamW, B> optimizer{{.learning_rate = 0.05}, {.max_gradient_norm = 1}};

  Model() {
    w1.fill(1), w2.fill(2), bias.fill(3), x.fill(4);
    set.add_layer("blocks.0.query", {w1.view(), {}});
    set.add_layer("blocks.0.value", {w2.view(), bias.view()});
    set.adapt(ctx, {.method = "lora", .options = {{"rank", "2"}, {"dropout", "0.25"}}, .targets = {.all_linear = true}},
              dw::init::Kaiming{.seed = 7});
  }
  void forward(std::uint64_t step) {
    saved1.call = saved2.call = {.training = true, .step = step};
    set.layer("blocks.0.query").forward(ctx, x.const_view(), hidden.view(), saved1);
    set.layer("blocks.0.value").forward(ctx, hidden.const_view(), y.view(), saved2);
  }
  void step(std::uint64_t number) {
    set.prepare(ctx);
    forward(number);
    B::copy(ctx, y.const_view(), dy.view());  // the gradient of ||y||^2 / 2
    dh.fill_with(0);
    dw::zero_grad(ctx, set);
    set.layer("blocks.0.value").backward(ctx, hidden.const_view(), dy.view(), dh.view(), saved2);
    set.layer("blocks.0.query").backward(ctx, x.const_view(), dh.view(), {}, saved1);
    set.finish(ctx);
    optimizer.step(ctx, set);
  }
};

template <class A, class B>
double difference(const A& got, const B& want, index_t rows, index_t cols) {
  double worst = 0;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j) {
      const double d = std::abs(got.at(i, j) - want.at(i, j));
      if (!(d <= worst)) worst = d;
    }
  return worst;
}

}  // namespace

TEST_CASE("a set of adapters trains on a device as on the host, and merges") {
  Model<dw::Cpu> host;
  Model<dw::Cuda> device;
  for (std::uint64_t step = 0; step < 5; ++step) host.step(step), device.step(step);
  CHECK_FALSE(device.optimizer.settle(device.ctx, device.set).skipped);
  host.forward(9), device.forward(9);
  CHECK(difference(device.y, host.y, 5, 4) <= 1e-5);

  const std::string before = device.w1.bits();
  device.set.merge(device.ctx, dw::MergeMode::KeepCopy);
  host.set.merge(host.ctx, dw::MergeMode::KeepCopy);
  CHECK(device.w1.bits() != before);
  CHECK(difference(device.w1, host.w1, 6, 8) <= 1e-5);
  device.set.unmerge(device.ctx);
  CHECK(device.w1.bits() == before);
}

TEST_CASE("a set on a device is saved, and goes on from the file to the same bits, as does one on the host") {
  Scratch scratch;
  Model<dw::Cuda> device, resumed;
  Model<dw::Cpu> host;
  for (std::uint64_t step = 0; step < 3; ++step) device.step(step);
  CHECK_FALSE(device.optimizer.settle(device.ctx, device.set).skipped);
  dw::io::save_state(scratch / "state.safetensors", device.set, {.step = 3});
  dw::io::save_peft(device.set, "default", scratch / "adapter");

  CHECK(dw::io::load_state(scratch / "state.safetensors", resumed.set).step == 3);
  for (std::uint64_t step = 3; step < 5; ++step) device.step(step), resumed.step(step);
  device.forward(9), resumed.forward(9);
  CHECK(device.y.bits() == resumed.y.bits());

  dw::io::load_peft(host.ctx, host.set, "default", scratch / "adapter");
  dw::io::load_peft(resumed.ctx, resumed.set, "default", scratch / "adapter");
  host.forward(9), resumed.forward(9);
  CHECK(difference(resumed.y, host.y, 5, 4) <= 1e-5);
}
