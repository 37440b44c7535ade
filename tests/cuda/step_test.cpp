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
  void prepare() { dw::prepare(ctx, lora, base); }
  void forward() { lora.forward(ctx, base, x.view(), y.view(), saved); }
  void backward() { lora.backward(ctx, base, x.view(), dy.view(), dx.view(), saved); }
  void step(std::uint64_t number, double rate) {
    saved.call.step = number;
    optimizer.set_learning_rate(rate);
    prepare();
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

TEST_CASE("replays follow the loss scale, leave steps out, and may be settled in between") {
  Layer<float> plain(0.3), replayed(0.3);
  plain.step(0, 0.1), replayed.step(0, 0.1);
  replayed.ctx.synchronize();
  Graph graph(replayed.ctx, [&] { replayed.step(1, 0.1); });
  const auto spoil = [](auto& layer, bool bad) {
    from_host(std::vector<float>{bad ? static_cast<float>(not_a_number) : 0.25f},
              layer.dy.view().row_range(0, 1).col_range(0, 1));
  };
  for (std::uint64_t further = 0; further < 6; ++further) {
    const bool bad = further == 1 || further == 4;
    spoil(plain, bad), spoil(replayed, bad);
    plain.optimizer.set_loss_scale(static_cast<double>(1 + further % 3));
    plain.step(1 + further, 0.1);
    replayed.ctx.set_replay({.steps = further, .gradient_factor = 1 / static_cast<double>(1 + further % 3)});
    graph.launch();
    const auto want = plain.optimizer.settle(plain.ctx, plain.lora);
    const auto got = replayed.optimizer.settle(replayed.ctx, replayed.lora);
    if (further == 0) {
      CHECK(got.gradient_norm == want.gradient_norm);
      CHECK_FALSE(got.skipped);
    }
    CHECK(plain.bits() == replayed.bits());
  }
  const std::string before = replayed.bits();
  replayed.ctx.set_replay({.steps = 7, .skip = 1});
  graph.launch();
  CHECK(replayed.bits() != before);  // y is another one
  std::string values;
  replayed.lora.for_each_parameter([&](const auto& p) { values += bits_of(p.value.view()); });
  CHECK(before.find(values.substr(0, 64)) != std::string::npos);
}

TEST_CASE("SGD too takes its step and its rate from the device, and begins its momentum at the first step taken") {
  Twins<double> twins(1);
  const Sgd rule{.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.5};
  Optimizer<Sgd> on_host(rule);
  Optimizer<Sgd, Cuda> on_device(rule);
  const auto step = [&](std::uint32_t seed, bool bad) {
    twins.fill_gradients(seed);
    if (bad) {
      twins.host.parameters[0].grad.view().data[0] = not_a_number;
      from_host(std::vector<double>{not_a_number}, twins.device.parameters[0].grad.view());
    }
    on_host.step(twins.cpu, twins.host);
    on_device.step(twins.gpu, twins.device);
  };
  step(1, true), step(2, false), step(3, false);
  on_device.settle(twins.gpu, twins.device);
  CHECK(twins.equal());

  twins.gpu.synchronize();
  twins.fill_gradients(4);
  Graph graph(twins.gpu, [&] { on_device.step(twins.gpu, twins.device); });
  on_host.set_learning_rate(0.05);
  on_host.step(twins.cpu, twins.host);
  twins.gpu.set_replay({.learning_rate_factor = 0.5});
  graph.launch();
  twins.gpu.set_replay({});
  on_device.settle(twins.gpu, twins.device);
  CHECK(twins.equal());
}

TEST_CASE("one optimizer for two sets in turn wants to be settled in between") {
  Cuda::Context ctx;
  Bag<float, Cuda> first, second;
  first.add("a", 2, 3, 1), second.add("b", 2, 3, 2);
  first.fill_gradients(1), second.fill_gradients(2);
  Optimizer<AdamW, Cuda> optimizer;
  optimizer.step(ctx, first);
  CHECK(message_of<dw::StaleError>([&] { optimizer.step(ctx, second); }) ==
        "Optimizer.step: parameters: got others than in the steps before, want `settle` in between, or an optimizer "
        "each");
  CHECK(second.parameters[0].step == 0);
  optimizer.settle(ctx, first);
  CHECK(optimizer.step(ctx, second).pending);
}

TEST_CASE("a report that is pending leaves the loss scale alone") {
  dw::LossScale scale{.value = 1024, .growth_interval = 1};
  scale.update({.pending = true});
  CHECK(scale.value == 1024);
  scale.update({.skipped = true});
  CHECK(scale.value == 512);
}

TEST_CASE("a learning rate of 0 cannot be captured, since replays multiply it") {
  Layer<float> layer(0);
  layer.step(0, 0.1);
  layer.ctx.synchronize();
  layer.optimizer.set_learning_rate(0);
  std::string message;
  Graph graph(layer.ctx,
              [&] { message = message_of<dw::OptionError>([&] { layer.optimizer.step(layer.ctx, layer.lora); }); });
  CHECK(message == "adamw: learning_rate: got 0, want not 0 in a capture: replays multiply it");
}

TEST_CASE("one step makes all the memory that the next one takes") {
  Cuda::Context ctx;  // few tokens: the partial sums of the optimizer are the largest temporary
  Guarded<float> w(8, 4096), x(1, 4096), y(1, 8), dy(1, 8), dx(1, 4096);
  const dw::DenseLinear<float, float, Cuda> base(w.view(), {});
  dw::Lora<float, Cuda> lora(base.shape, {.rank = 4});
  dw::Lora<float, Cuda>::Saved saved;
  Optimizer<AdamW, Cuda> optimizer;
  const auto step = [&] {
    lora.forward(ctx, base, x.view(), y.view(), saved);
    lora.backward(ctx, base, x.view(), dy.view(), dx.view(), saved);
    optimizer.step(ctx, lora);
  };
  step();
  ctx.synchronize();
  Graph graph(ctx, step);  // where the stand-in stops at an allocation
  CHECK(graph.launches() == 10);
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
    layer.prepare();
    layer.ctx.synchronize();
    return Graph(layer.ctx, part).launches();
  };
  Layer<float> single(0);
  CHECK(count(single, [&] { single.forward(); }) == 2);   // 2 products
  CHECK(count(single, [&] { single.backward(); }) == 4);  // 4 products
  CHECK(count(single, [&] { single.optimizer.step(single.ctx, single.lora); }) == 4);
  CHECK(count(single, [&] { dw::zero_grad(single.ctx, single.lora); }) == 2);
  Layer<dw::bf16> narrow(0), dropped(0.5);
  CHECK(count(narrow, [&] { narrow.prepare(); }) == 2);  // A and B rounded to 16 bits, once a step
  CHECK(count(narrow, [&] { narrow.forward(); }) == 2);
  CHECK(count(narrow, [&] { narrow.backward(); }) == 4);
  CHECK(count(dropped, [&] { dropped.forward(); }) == 2 + 1);   // D(X)
  CHECK(count(dropped, [&] { dropped.backward(); }) == 4 + 2);  // D(X) again, and D' into dX
}

TEST_CASE("16-bit products take the factors as they are, prepared or not") {
  Layer<dw::bf16> prepared(0), unprepared(0);
  prepared.prepare();
  for (auto* layer : {&prepared, &unprepared}) layer->forward(), layer->backward();
  CHECK(prepared.bits() == unprepared.bits());
  for (auto* layer : {&prepared, &unprepared})
    layer->lora.for_each_parameter([&](auto& p) {
      Cuda::fill(layer->ctx, p.value.view(), 0.25);
      p.changed();  // what was rounded before is not used
    });
  for (auto* layer : {&prepared, &unprepared}) layer->forward(), layer->backward();
  CHECK(prepared.bits() == unprepared.bits());
  CHECK(Graph(prepared.ctx, [&] { prepared.forward(); }).launches() == 4);
}

TEST_CASE("a context works on the caller's stream, handle and memory, and says what it lacks") {
  cudaStream_t stream;
  cublasHandle_t cublas;
  dw::cuda_detail::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  dw::cuda_detail::check(cublasCreate(&cublas), "cublasCreate");
  dw::cuda_detail::check(cublasSetPointerMode(cublas, CUBLAS_POINTER_MODE_DEVICE), "cublasSetPointerMode");
  cublasMath_t math{};
  dw::Tensor<unsigned char, dw::Device> workspace(1, 1024), for_cublas(1, 1 << 20);
  {
    Cuda::Context ctx({.stream = stream,
                       .cublas = cublas,
                       .workspace = workspace.view().data,
                       .workspace_bytes = 1024,
                       .cublas_workspace = for_cublas.view().data,
                       .cublas_workspace_bytes = 1 << 20});
    CHECK(cublasGetMathMode(cublas, &math) == CUBLAS_STATUS_SUCCESS);
    CHECK((math & CUBLAS_TF32_TENSOR_OP_MATH) == 0);
    CHECK((math & CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION) != 0);
    Guarded<dw::bf16> a(8, 16), c(8, 8);
    Guarded<float> b(16, 8), large(64, 8);
    a.fill_with(1), b.fill_with(2);
    Cuda::gemm(ctx, 1, a.const_view(), b.const_view(), 0, c.view());
    ctx.synchronize();
    CHECK(c.at(7, 7) == 32);
    CHECK(message_of<dw::MemoryError>([&] {
            Cuda::gemm(ctx, 1, large.const_view(), dw::t(large.const_view()), 0, Guarded<dw::bf16>(64, 64).view());
          }) == "Arena.take: workspace: got 1024 bytes, want at least 16384");
  }
  cublasPointerMode_t pointers{};
  cudaStream_t stream_after = stream;
  CHECK(cublasGetPointerMode(cublas, &pointers) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasGetStream(cublas, &stream_after) == CUBLAS_STATUS_SUCCESS);
  CHECK(pointers == CUBLAS_POINTER_MODE_DEVICE);  // as it was lent
  CHECK(stream_after == nullptr);
  Cuda::Context fast({.allow_tf32 = true});
  CHECK(cublasGetMathMode(fast.cublas(), &math) == CUBLAS_STATUS_SUCCESS);
  CHECK((math & CUBLAS_TF32_TENSOR_OP_MATH) != 0);
  CHECK(cublasDestroy(cublas) == CUBLAS_STATUS_SUCCESS);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("an error of CUDA names the call, the code and the place") {
  const std::string message =
      message_of<dw::DeviceError>([] { dw::cuda_detail::check(cudaErrorInvalidValue, "cudaMalloc"); });
  CHECK(message.starts_with("cudaMalloc: result: got cudaErrorInvalidValue ("));
  CHECK(message.find("step_test.cpp:") != std::string::npos);
}
