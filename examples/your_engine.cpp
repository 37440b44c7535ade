// LoRA in an engine of your own: raw float arrays, your matrix product, your training loop. DeltaW needs three calls
// around the product. They are marked `deltaw` below; everything else stands for code that you already have.
//
// Two kinds of engine exist. One adds to dX, since X may have other users; the other overwrites it. Both are run here
// and both are compared with central differences before the training starts.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deltaw/deltaw.hpp>

namespace dw = deltaw;

// ---- The engine ------------------------------------------------------------------------------------------------------

constexpr int BT = 32, IN = 24, OUT = 16;  // rows (batch times time), inputs, outputs

// y = x w^T + bias, with x BT x IN, w OUT x IN, y BT x OUT.
void matmul_forward(float* y, const float* x, const float* w, const float* bias) {
  for (int n = 0; n < BT; ++n)
    for (int o = 0; o < OUT; ++o) {
      float sum = bias[o];
      for (int i = 0; i < IN; ++i) sum += x[n * IN + i] * w[o * IN + i];
      y[n * OUT + o] = sum;
    }
}

// dx += dy w, or dx = dy w. The weight is frozen, so it gets no gradient.
void matmul_backward(float* dx, const float* dy, const float* w, bool overwrite) {
  for (int n = 0; n < BT; ++n) {
    float* row = dx + n * IN;
    if (overwrite)
      for (int i = 0; i < IN; ++i) row[i] = 0;
    for (int o = 0; o < OUT; ++o)
      for (int i = 0; i < IN; ++i) row[i] += dy[n * OUT + o] * w[o * IN + i];
  }
}

// L = 1/(2 BT) sum (y - target)^2, and dy = dL/dy unless dy is null.
double squared_error(const float* y, const float* target, float* dy) {
  double sum = 0;
  for (int k = 0; k < BT * OUT; ++k) {
    const float d = y[k] - target[k];
    sum += 0.5 * d * d / BT;
    if (dy != nullptr) dy[k] = d / BT;
  }
  return sum;
}

float* random_array(int count, float deviation) {
  auto* data = static_cast<float*>(std::malloc(sizeof(float) * static_cast<std::size_t>(count)));
  if (data == nullptr) std::exit(1);
  for (int k = 0; k < count; ++k) {
    float sum = 0;  // of four uniforms: nearly normal
    for (int u = 0; u < 4; ++u) sum += static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5f;
    data[k] = deviation * 1.73f * sum;
  }
  return data;
}

// ---- One layer with its adapter --------------------------------------------------------------------------------------

struct Layer {
  float* weight = random_array(OUT * IN, 0.2f);
  float* bias = random_array(OUT, 0.2f);
  float* x = random_array(BT * IN, 1);
  float* y = random_array(BT * OUT, 1);
  float* dx = random_array(BT * IN, 1);
  float* dy = random_array(BT * OUT, 1);
  float* target = random_array(BT * OUT, 1);

  // deltaw: a view of the weight, the adapter, and what backward needs of a forward. All are made once.
  dw::Cpu::Context ctx;
  dw::DenseLinear<float, float> base = dw::dense(weight, bias, {.in_features = IN, .out_features = OUT});
  dw::Lora<float, dw::Cpu> lora{base.shape, {.rank = 4, .alpha = 8}};
  dw::Lora<float, dw::Cpu>::Saved saved;

  Layer() { dw::init::Kaiming{.seed = 7}(ctx, lora, base); }
  Layer(const Layer&) = delete;
  ~Layer() {
    for (float* array : {weight, bias, x, y, dx, dy, target}) std::free(array);
  }

  void forward() {
    matmul_forward(y, x, weight, bias);
    lora.forward(ctx, base, {x, BT, IN}, {y, BT, OUT}, saved);  // deltaw: y += the adapter's part
  }

  // An engine that accumulates: dx holds what other users of x have added so far.
  void backward_accumulating() {
    lora.backward(ctx, base, {x, BT, IN}, {dy, BT, OUT}, {dx, BT, IN}, saved);  // deltaw: dx +=
    matmul_backward(dx, dy, weight, false);
  }

  // An engine that overwrites: the adapter's part of dx comes after the product.
  void backward_overwriting() {
    lora.backward(ctx, base, {x, BT, IN}, {dy, BT, OUT}, {}, saved);  // deltaw: no dx yet
    matmul_backward(dx, dy, weight, true);
    lora.backward_input(ctx, base, {dx, BT, IN}, saved);  // deltaw: dx += the adapter's part
  }

  double loss() {
    forward();
    return squared_error(y, target, nullptr);
  }
};

// ---- The check -------------------------------------------------------------------------------------------------------

// ||gradient - differences|| / ||differences||. The loss is quadratic in every single number, so a central difference has
// no error but rounding, and a wide step keeps that small.
double relative_error(Layer& layer, float* values, const float* gradient, std::ptrdiff_t count) {
  constexpr float step = 0.25f;
  double error = 0, norm = 0;
  for (std::ptrdiff_t k = 0; k < count; ++k) {
    const float before = values[k];
    values[k] = before + step;
    const double above = layer.loss();
    values[k] = before - step;
    const double below = layer.loss();
    values[k] = before;
    const double difference = (above - below) / (2 * double{step});
    error += (difference - gradient[k]) * (difference - gradient[k]);
    norm += difference * difference;
  }
  return std::sqrt(error / norm);
}

double larger(double a, double b) { return a > b || std::isnan(a) ? a : b; }  // NaN counts as the larger

// The worst error over A, B and X, at random parameters (B starts at zero, where A's gradient would be zero too).
double worst_error(bool overwrite) {
  Layer layer;
  layer.lora.for_each_parameter([&](auto& p) {
    float* fresh = random_array(static_cast<int>(p.value.size()), 0.3f);
    for (std::ptrdiff_t k = 0; k < p.value.size(); ++k) p.value.view().data[k] = fresh[k];
    std::free(fresh);
    p.changed();  // deltaw: whoever writes a value says so
  });
  layer.forward();
  squared_error(layer.y, layer.target, layer.dy);
  if (overwrite) {
    layer.backward_overwriting();  // dx holds random numbers, which must not matter
  } else {
    float* others = random_array(BT * IN, 0.1f);  // what other users of x have put there
    for (int k = 0; k < BT * IN; ++k) layer.dx[k] = others[k];
    layer.backward_accumulating();
    for (int k = 0; k < BT * IN; ++k) layer.dx[k] -= others[k];
    std::free(others);
  }

  double worst = relative_error(layer, layer.x, layer.dx, BT * IN);
  layer.lora.for_each_parameter([&](auto& p) {
    worst = larger(worst, relative_error(layer, p.value.view().data, p.grad.view().data, p.value.size()));
  });
  return worst;
}

// ---- The training loop -----------------------------------------------------------------------------------------------

void train() {
  Layer layer;
  float* wanted = random_array(OUT * IN, 0);  // the target's weight: ours and a change of rank 2
  float *left = random_array(OUT * 2, 0.3f), *right = random_array(2 * IN, 0.3f);
  for (int o = 0; o < OUT; ++o)
    for (int i = 0; i < IN; ++i)
      wanted[o * IN + i] = layer.weight[o * IN + i] + left[2 * o] * right[i] + left[2 * o + 1] * right[IN + i];
  matmul_forward(layer.target, layer.x, wanted, layer.bias);
  for (float* array : {wanted, left, right}) std::free(array);

  dw::Optimizer<dw::AdamW> optimizer{{.learning_rate = 0.02, .weight_decay = 0}};
  for (int step = 0; step <= 200; ++step) {
    layer.forward();
    const double loss = squared_error(layer.y, layer.target, layer.dy);
    if (step % 40 == 0) std::printf("step %3d  loss %.5f\n", step, loss);
    layer.backward_overwriting();
    optimizer.step(layer.ctx, layer.lora);  // deltaw
    dw::zero_grad(layer.ctx, layer.lora);   // deltaw: gradients add up until told otherwise
  }
}

int main() {
  constexpr double tolerance = 1e-5;  // float arithmetic; measured 1e-6
  const double accumulating = worst_error(false), overwriting = worst_error(true);
  std::printf(
      "worst gradient error (tolerance %.0e): engine that accumulates dX %.1e, engine that overwrites dX %.1e\n",
      tolerance, accumulating, overwriting);
  if (!(accumulating <= tolerance && overwriting <= tolerance)) return 1;
  train();
}
