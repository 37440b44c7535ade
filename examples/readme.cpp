// The example of README.md, to the letter (tests/docs checks that).
#include <deltaw/deltaw.hpp>
#include <vector>

int main() {
  namespace dw = deltaw;
  const int tokens = 4, in = 768, out = 3072;
  std::vector<float> w(out * in, 0.01f), x(tokens * in, 1), y(tokens * out), dy(tokens * out, 1), dx(tokens * in);
  dw::MatrixView X{x.data(), tokens, in}, Y{y.data(), tokens, out};
  dw::MatrixView dX{dx.data(), tokens, in}, dY{dy.data(), tokens, out};

  dw::Cpu::Context ctx;  // workspace: grows in the first step, then allocates nothing
  auto base = dw::dense(w.data(), nullptr, {.in_features = in, .out_features = out});  // a view of your frozen weight
  dw::Lora<float, dw::Cpu> lora{base.shape, {.rank = 16, .alpha = 32}};
  dw::init::Kaiming{.seed = 7}(ctx, lora, base);
  dw::Lora<float, dw::Cpu>::Saved saved;  // what backward needs of one call
  dw::Optimizer optimizer{dw::AdamW{.learning_rate = 1e-4}};

  base.forward(ctx, X, Y);                     // or your own y = x W^T
  lora.forward(ctx, base, X, Y, saved);        // Y becomes the adapted output
  lora.backward(ctx, base, X, dY, dX, saved);  // parameter gradients +=, dX += the adapter's part
  base.backward_input(ctx, dY, dX);            // or your own dx += dy W
  optimizer.step(ctx, lora);
  dw::zero_grad(ctx, lora);
}
