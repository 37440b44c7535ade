// LoRA in a CUDA engine of your own: raw device pointers, your stream, your cuBLAS handle, your kernels, your training loop.
// DeltaW needs the same three calls around the product as on the CPU (examples/your_engine.cpp); they are marked `deltaw`,
// everything else stands for code that you already have. First plain steps are enqueued, then one step is captured in a
// CUDA graph and replayed with a falling learning rate. The loss must fall in both.

#include <cstdio>
#include <cstdlib>
#include <deltaw/cuda.hpp>
#include <vector>

namespace dw = deltaw;

// ---- The engine ------------------------------------------------------------------------------------------------------

constexpr int BT = 32, IN = 24, OUT = 16;  // rows (batch times time), inputs, outputs

void require(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}
void require(cublasStatus_t code) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "cuBLAS: status %d\n", static_cast<int>(code));
  std::exit(1);
}

struct Engine {
  cudaStream_t stream = nullptr;
  cublasHandle_t cublas = nullptr;
  Engine() {
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    require(cublasCreate(&cublas));
    require(cublasSetStream(cublas, stream));
  }
  Engine(const Engine&) = delete;
  ~Engine() {
    cublasDestroy(cublas);
    cudaStreamDestroy(stream);
  }
};

float* device_array(int count, float deviation) {
  std::vector<float> host(static_cast<std::size_t>(count));
  for (float& x : host) x = deviation * 3.46f * (static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5f);
  float* device = nullptr;
  require(cudaMalloc(&device, host.size() * sizeof(float)));
  require(cudaMemcpy(device, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  return device;
}

// y = x w^T: row-major x (BT x IN), w (OUT x IN) and y (BT x OUT) are column-major transposes to cuBLAS.
void matmul_forward(Engine& engine, float* y, const float* x, const float* w) {
  const float one = 1, zero = 0;
  require(cublasSgemm(engine.cublas, CUBLAS_OP_T, CUBLAS_OP_N, OUT, BT, IN, &one, w, IN, x, IN, &zero, y, OUT));
}
// dx = dy w.
void matmul_backward(Engine& engine, float* dx, const float* dy, const float* w) {
  const float one = 1, zero = 0;
  require(cublasSgemm(engine.cublas, CUBLAS_OP_N, CUBLAS_OP_N, IN, BT, OUT, &one, w, IN, dy, OUT, &zero, dx, IN));
}

// L = 1/(2 BT) sum (y - target)^2: its terms, and dy = dL/dy.
__global__ void squared_error(const float* y, const float* target, float* dy, float* terms) {
  const int k = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (k >= BT * OUT) return;
  const float d = y[k] - target[k];
  terms[k] = 0.5f * d * d / BT;
  dy[k] = d / BT;
}

// ---- One layer with its adapter --------------------------------------------------------------------------------------

struct Layer {
  Engine engine;
  float* weight = device_array(OUT * IN, 0.2f);
  float* x = device_array(BT * IN, 1);
  float* y = device_array(BT * OUT, 1);
  float* dx = device_array(BT * IN, 1);
  float* dy = device_array(BT * OUT, 1);
  float* target = device_array(BT * OUT, 1);
  float* terms = device_array(BT * OUT, 0);

  // deltaw: a context on your stream and handle (workspace and cuBLAS's workspace may be yours too), a view of the weight,
  // the adapter, what backward needs of a forward, the optimizer.
  dw::Cuda::Context ctx{{.stream = engine.stream, .cublas = engine.cublas}};
  dw::DenseLinear<float, float, dw::Cuda> base =
      dw::dense<dw::Cuda>(weight, nullptr, {.in_features = IN, .out_features = OUT});
  dw::Lora<float, dw::Cuda> lora{base.shape, {.rank = 4, .alpha = 8}};
  dw::Lora<float, dw::Cuda>::Saved saved;
  dw::Optimizer<dw::AdamW, dw::Cuda> optimizer{{.learning_rate = 0.02, .weight_decay = 0}, {.max_gradient_norm = 10}};

  Layer() {
    dw::init::Kaiming{.seed = 7}(ctx, lora, base);
    float* wanted = device_array(OUT * IN, 0.25f);  // another weight, to learn as far as rank 4 can
    matmul_forward(engine, target, x, wanted);
    require(cudaStreamSynchronize(engine.stream));
    cudaFree(wanted);
  }
  Layer(const Layer&) = delete;
  ~Layer() {
    cudaStreamSynchronize(engine.stream);
    for (float* array : {weight, x, y, dx, dy, target, terms}) cudaFree(array);
  }

  // Nothing here waits: all of it is enqueued, and can be captured.
  void step() {
    matmul_forward(engine, y, x, weight);
    lora.forward(ctx, base, {x, BT, IN}, {y, BT, OUT}, saved);  // deltaw: y += the adapter's part
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3((BT * OUT + 127) / 128);
    launch.blockDim = dim3(128);
    launch.stream = engine.stream;
    require(cudaLaunchKernelEx(&launch, &squared_error, static_cast<const float*>(y), static_cast<const float*>(target),
                               dy, terms));
    lora.backward(ctx, base, {x, BT, IN}, {dy, BT, OUT}, {}, saved);  // deltaw: no dx yet, this engine overwrites it
    matmul_backward(engine, dx, dy, weight);
    lora.backward_input(ctx, base, {dx, BT, IN}, saved);  // deltaw: dx += the adapter's part
    optimizer.step(ctx, lora);                            // deltaw: skips on the device if a gradient is not finite
    dw::zero_grad(ctx, lora);                             // deltaw: gradients add up until told otherwise
  }

  // Of the last step.
  double loss() {
    std::vector<float> host(BT * OUT);
    require(cudaMemcpyAsync(host.data(), terms, host.size() * sizeof(float), cudaMemcpyDeviceToHost, engine.stream));
    require(cudaStreamSynchronize(engine.stream));
    double sum = 0;
    for (const float term : host) sum += static_cast<double>(term);
    return sum;
  }
};

// ---- The training loop -----------------------------------------------------------------------------------------------

int main() {
  Layer layer;
  layer.step();
  const double first = layer.loss();
  for (int step = 1; step < 100; ++step) layer.step();
  const dw::StepReport report =
      layer.optimizer.settle(layer.ctx, layer.lora);  // deltaw: waits, and counts what was skipped
  const double plain = layer.loss();
  std::printf("step   0  loss %.5f\nstep  99  loss %.5f, gradient norm %.2e, %ld steps skipped\n", first, plain,
              report.gradient_norm, layer.optimizer.skipped());

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  require(cudaStreamBeginCapture(layer.engine.stream, cudaStreamCaptureModeGlobal));
  layer.step();
  require(cudaStreamEndCapture(layer.engine.stream, &graph));
  require(cudaGraphInstantiate(&replay, graph, 0));
  constexpr int replays = 100;
  for (int k = 0; k < replays; ++k) {
    // deltaw: what a replay does otherwise than the captured step
    layer.ctx.set_replay({.steps = static_cast<std::uint64_t>(k), .learning_rate_factor = 1 - k / double{replays}});
    require(cudaGraphLaunch(replay, layer.engine.stream));
  }
  const double replayed = layer.loss();
  std::printf("step %3d  loss %.5f, replayed from a graph\n", 100 + replays - 1, replayed);
  require(cudaGraphExecDestroy(replay));
  require(cudaGraphDestroy(graph));

  const bool falls = plain < 0.5 * first && replayed < plain;  // false for NaN
  if (!falls) std::fprintf(stderr, "the loss did not fall\n");
  return falls ? 0 : 1;
}
