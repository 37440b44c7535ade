// What is special to an optimizer step on a device: many tensors in one launch, a decision that the host does not wait
// for, and captured graphs whose learning rate, step and dropout change from replay to replay.

#include <cmath>
#include <string>
#include <vector>

#include "../optim/parameters.hpp"
#include "catch.hpp"
#include "deltaw/adapters/lora.hpp"
#include "deltaw/base/dense.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/optim/adamw.hpp"
#include "deltaw/optim/sgd.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::AdamW;
using dw::Cpu;
using dw::Cuda;
using dw::Optimizer;
using dw::Sgd;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// The same parameters on both backends, around every boundary of a block. The last has `pieces` rows with gaps, each of
// which takes a place in the list of a launch.
template <class T>
struct Twins {
  Bag<T, Cpu> host;
  Bag<T, Cuda> device;
  Cpu::Context cpu;
  Cuda::Context gpu;

  Guarded<T> strided;

  explicit Twins(index_t pieces) : strided(pieces, 3, 1) {
    std::uint32_t seed = 1;
    const auto add = [&](index_t rows, index_t cols) {
      host.add("w" + std::to_string(seed), rows, cols, seed);
      device.add("w" + std::to_string(seed), rows, cols, seed);
      ++seed;
    };
    for (const index_t size : {1, 3, 4095, 4096, 4097, 8193}) add(1, size);
    add(33, 17);
    add(0, 5);
    add(pieces, 3);
    strided.fill(seed - 1);
    device.parameters.back().value.bind(strided.view());
  }
  void fill_gradients(std::uint32_t seed) { host.fill_gradients(seed), device.fill_gradients(seed); }

  // A Cpu without fma rounds once more where the device does not.
  bool equal() const {
    constexpr double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-14;
    bool same = true;
    for (std::size_t i = 0; i < host.parameters.size(); ++i) {
      const auto& h = host.parameters[i];
      const auto& d = device.parameters[i];
      same = same && distance(elements(d.value), elements(h.value)) <= tolerance && h.slots.size() == d.slots.size();
      for (std::size_t k = 0; same && k < h.slots.size(); ++k)
        same = distance(elements(d.slots[k].value), elements(h.slots[k].value)) <= tolerance;
      same = same && h.step == d.step;
    }
    return same;
  }
};

// One LoRA layer with its data on the device.
template <class Act>
struct Layer {
  using Lora = dw::Lora<float, Cuda, Act>;
  Cuda::Context ctx;
  Guarded<Act> w{24, 40}, bias{1, 24}, x{70, 40}, y{70, 24}, dy{70, 24}, dx{70, 40};
  dw::DenseLinear<Act, Act, Cuda> base{w.view(), bias.view()};
  Lora lora;
  typename Lora::Saved saved;
  Optimizer<AdamW, Cuda> optimizer{{.learning_rate = 0.01}, {.max_gradient_norm = 1}};

  explicit Layer(double dropout) : lora(base.shape, {.rank = 4, .dropout = dropout, .seed = 5}) {
    std::uint32_t seed = 1;
    for (auto* g : {&w, &bias, &x, &dy}) g->fill(seed++);
    lora.for_each_parameter([&](auto& p) { Bag<float, Cuda>::fill(p.value, seed++); });
    saved.call.training = true;
  }
  void forward() { lora.forward(ctx, base, x.view(), y.view(), saved); }
  void backward() { lora.backward(ctx, base, x.view(), dy.view(), dx.view(), saved); }
  void step(std::uint64_t number, double rate) {
    saved.call.step = number;
    optimizer.set_learning_rate(rate);
    base.forward(ctx, x.view(), y.view());
    forward();
    dw::zero_grad(ctx, lora);
    Cuda::fill(ctx, dx.view(), 0);
    backward();
    base.backward_input(ctx, dy.view(), dx.view());
    optimizer.step(ctx, lora);
  }
  /// Everything that a step writes.
  std::string bits() const {
    std::string all = y.bits() + dx.bits();
    lora.for_each_parameter([&](const auto& p) {
      all += bits_of(p.value.view());
      for (const auto& slot : p.slots) all += bits_of(slot.value.view());
    });
    return all;
  }
};

/// What `enqueue` puts on the stream, as a graph.
class Graph {
 public:
  template <class F>
  Graph(Cuda::Context& ctx, F enqueue) : ctx_(ctx) {
    dw::cuda_detail::check(cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    enqueue();
    dw::cuda_detail::check(cudaStreamEndCapture(ctx.stream(), &graph_), "cudaStreamEndCapture");
    dw::cuda_detail::check(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate");
  }
  ~Graph() {
    ctx_.synchronize();
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }
  void launch() { dw::cuda_detail::check(cudaGraphLaunch(executable_, ctx_.stream()), "cudaGraphLaunch"); }
  std::size_t launches() const {
    std::size_t nodes = 0;
    dw::cuda_detail::check(cudaGraphGetNodes(graph_, nullptr, &nodes), "cudaGraphGetNodes");
    return nodes;
  }

 private:
  Cuda::Context& ctx_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

TEMPLATE_TEST_CASE("steps over few and many tensors equal the Cpu's", "", float, double) {
  for (const index_t pieces : {1, 30, 600}) {
    Twins<TestType> twins(pieces);
    const auto train = [&](auto rule) {
      Optimizer<decltype(rule)> on_host(rule, {.skip_non_finite = false});
      Optimizer<decltype(rule), Cuda> on_device(rule, {.skip_non_finite = false});
      on_host.set_loss_scale(4), on_device.set_loss_scale(4);
      for (std::uint32_t step = 0; step < 3; ++step) {
        twins.fill_gradients(1000 * (step + 1));
        CHECK_FALSE(on_host.step(twins.cpu, twins.host).pending);
        CHECK_FALSE(on_device.step(twins.gpu, twins.device).pending);
      }
      CHECK(twins.equal());
      CHECK(twins.strided.intact());
    };
    train(AdamW{.learning_rate = 0.1, .weight_decay = 0.2});
    train(Sgd{.learning_rate = 0.1, .weight_decay = 0.2, .decoupled = true});
    train(Sgd{.learning_rate = 0.1, .momentum = 0.9, .nesterov = true, .weight_decay = 0.2});
  }
}

TEST_CASE("a step whose gradient is not finite does nothing on the device, and the host learns of it when it asks") {
  Twins<double> twins(5);
  Optimizer<AdamW> on_host({.learning_rate = 0.1});
  Optimizer<AdamW, Cuda> on_device({.learning_rate = 0.1});
  const auto step = [&](std::uint32_t seed, double bad) {
    twins.fill_gradients(seed);
    if (bad != 0) {
      twins.host.parameters[4].grad.view().data[4096] = bad;
      from_host(std::vector<double>{bad}, twins.device.parameters[4].grad.view().col_range(4096, 1));
    }
    on_host.step(twins.cpu, twins.host);
    CHECK(on_device.step(twins.gpu, twins.device).pending);
  };
  step(100, 0);
  step(200, not_a_number);
  step(300, std::numeric_limits<double>::infinity());
  CHECK(twins.device.parameters[0].step == 3);  // it does not know yet
  const auto after_bad = on_device.settle(twins.gpu, twins.device);
  CHECK(after_bad.skipped);
  CHECK_FALSE(std::isfinite(after_bad.gradient_norm));
  CHECK(on_device.skipped() == 2);
  CHECK(twins.equal());

  step(400, 0);
  step(500, not_a_number);
  step(600, 0);  // its step number is right though the host still counts the one before
  const auto report = on_device.settle(twins.gpu, twins.device);
  CHECK_FALSE(report.skipped);
  CHECK_FALSE(report.pending);
  CHECK(on_device.skipped() == 3);
  CHECK(on_host.skipped() == 3);
  CHECK(twins.equal());
  CHECK(on_device.settle(twins.gpu, twins.device).skipped == false);
  CHECK(on_device.skipped() == 3);
}

TEST_CASE("the norm of nothing is 0, and clipping follows the norm of everything") {
  Cuda::Context ctx;
  Bag<float, Cuda> bag;
  Optimizer<Sgd, Cuda> optimizer({.learning_rate = 1}, {.max_gradient_norm = 0.5});
  optimizer.step(ctx, bag);
  CHECK(optimizer.settle(ctx, bag).gradient_norm == 0);
  Guarded<float> gradient(1000, 2, 3);
  gradient.fill_with(5);
  for (const char* name : {"a", "b"}) {
    auto& p = bag.add(name, 1000, 2, 1);
    Cuda::fill(ctx, p.value.view(), 0);
    p.grad.bind(gradient.view());
  }
  optimizer.step(ctx, bag);
  const double norm = 5 * std::sqrt(4000.0);
  CHECK(optimizer.settle(ctx, bag).gradient_norm == Approx(norm).epsilon(1e-14));
  for (const auto& p : bag.parameters)
    for (const double moved : elements(p.value)) CHECK(within(moved, -5 * 0.5 / norm, 1e-7));
}

TEST_CASE("a captured step is replayed with a changing learning rate, step and dropout, to the bits of plain steps") {
  const auto rate = [](std::uint64_t step) { return 0.01 / static_cast<double>(1 + step); };
  Layer<dw::bf16> plain(0.3), replayed(0.3);
  plain.step(0, rate(0)), replayed.step(0, rate(0));  // warm-up: memory is made
  CHECK(plain.bits() == replayed.bits());

  replayed.ctx.synchronize();
  Graph graph(replayed.ctx, [&] { replayed.step(1, rate(1)); });
  for (std::uint64_t further = 0; further < 4; ++further) {
    plain.step(1 + further, rate(1 + further));
    replayed.ctx.set_replay({.steps = further, .learning_rate_factor = rate(1 + further) / rate(1)});
    graph.launch();
    CHECK(plain.bits() == replayed.bits());
  }
  // Back to plain steps: the captured one was counted once, the replays after it are the caller's to count.
  replayed.ctx.set_replay({});
  replayed.lora.for_each_parameter([](auto& p) { p.step += 3; });
  plain.step(5, rate(5)), replayed.step(5, rate(5));
  CHECK(plain.bits() == replayed.bits());
}

TEST_CASE("what a replay changes cannot be changed inside a capture") {
  Layer<float> layer(0);
  layer.step(0, 0.1);
  layer.ctx.synchronize();
  std::string message;
  Graph graph(layer.ctx, [&] {
    layer.forward();
    message = message_of<dw::StaleError>([&] { layer.ctx.set_replay({.steps = 1}); });
  });
  CHECK(message == "Cuda::Context.set_replay: stream: got one that is being captured, want it before the launch");
}

TEST_CASE("a step launches its products and little more") {
  const auto count = [](auto& layer, auto part) {
    layer.step(0, 0.1);
    layer.ctx.synchronize();
    return Graph(layer.ctx, part).launches();
  };
  Layer<float> single(0);
  CHECK(count(single, [&] { single.forward(); }) == 2);   // 2 products
  CHECK(count(single, [&] { single.backward(); }) == 4);  // 4 products
  CHECK(count(single, [&] { single.optimizer.step(single.ctx, single.lora); }) == 4);
  CHECK(count(single, [&] { dw::zero_grad(single.ctx, single.lora); }) == 2);
  Layer<dw::bf16> narrow(0);
  CHECK(count(narrow, [&] { narrow.forward(); }) == 2 + 2);   // A and B rounded to 16 bits
  CHECK(count(narrow, [&] { narrow.backward(); }) == 4 + 2);  // again
}

TEST_CASE("a context works on the caller's stream, handle and memory, and says what it lacks") {
  cudaStream_t stream;
  cublasHandle_t cublas;
  dw::cuda_detail::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  dw::cuda_detail::check(cublasCreate(&cublas), "cublasCreate");
  dw::Tensor<unsigned char, dw::Device> workspace(1, 1024), for_cublas(1, 1 << 20);
  {
    Cuda::Context ctx({.stream = stream,
                       .cublas = cublas,
                       .workspace = workspace.view().data,
                       .workspace_bytes = 1024,
                       .cublas_workspace = for_cublas.view().data,
                       .cublas_workspace_bytes = 1 << 20});
    Guarded<dw::bf16> a(8, 16), c(8, 8);
    Guarded<float> b(16, 8), large(64, 8);
    a.fill_with(1), b.fill_with(2);
    Cuda::gemm(ctx, 1, a.const_view(), b.const_view(), 0, c.view());
    ctx.synchronize();
    CHECK(c.at(7, 7) == 32);
    CHECK(message_of<dw::MemoryError>([&] {
            Cuda::gemm(ctx, 1, dw::t(large.const_view()), large.const_view(), 0, Guarded<dw::bf16>(8, 8).view());
          }) == "Arena.take: workspace: got 1024 bytes, want at least 2048");
  }
  CHECK(cublasDestroy(cublas) == CUBLAS_STATUS_SUCCESS);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("an error of CUDA names the call, the code and the place") {
  const std::string message =
      message_of<dw::DeviceError>([] { dw::cuda_detail::check(cudaErrorInvalidValue, "cudaMalloc"); });
  CHECK(message.starts_with("cudaMalloc: result: got cudaErrorInvalidValue ("));
  CHECK(message.find("step_test.cpp:") != std::string::npos);
}
