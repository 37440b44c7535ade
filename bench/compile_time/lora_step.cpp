// The same step with DeltaW. See compile_time.sh.

#include <deltaw/deltaw.hpp>
#include <vector>

namespace dw = deltaw;

int main() {
  constexpr int tokens = 8, in = 32, out = 64;
  std::vector<float> w(out * in, 0.1f), x(tokens * in, 1), dy(tokens * out, 1), y(tokens * out), dx(tokens * in);
  dw::Cpu::Context ctx;
  auto base = dw::dense(w.data(), nullptr, {.in_features = in, .out_features = out});
  dw::Lora<float, dw::Cpu> lora{base.shape, {.rank = 4, .alpha = 8}};
  dw::init::Kaiming{.seed = 7}(ctx, lora, base);
  dw::Lora<float, dw::Cpu>::Saved saved;
  dw::Optimizer<dw::AdamW> optimizer;

  const dw::MatrixView<float> input{x.data(), tokens, in}, output{y.data(), tokens, out};
  const dw::MatrixView<float> input_gradient{dx.data(), tokens, in}, output_gradient{dy.data(), tokens, out};
  base.forward(ctx, dw::ConstMatrixView<float>(input), output);
  lora.forward(ctx, base, input, output, saved);

  lora.backward(ctx, base, input, output_gradient, input_gradient, saved);
  base.backward_input(ctx, dw::ConstMatrixView<float>(output_gradient), input_gradient);

  optimizer.step(ctx, lora);
  return y[0] > dx[0] ? 1 : 0;
}
