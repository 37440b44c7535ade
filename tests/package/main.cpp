// What a user's program looks like: a few calls around a matrix product of its own.

#include <cmath>
#include <cstdio>
#include <deltaw/deltaw.hpp>
#include <deltaw/version.hpp>
#include <vector>

namespace dw = deltaw;

namespace {

constexpr dw::index_t tokens = 3, in = 8, out = 4;

/// Y = X W^T.
void my_matmul(const float* x, const float* w, float* y) {
  for (dw::index_t t = 0; t < tokens; ++t)
    for (dw::index_t o = 0; o < out; ++o) {
      y[t * out + o] = 0;
      for (dw::index_t i = 0; i < in; ++i) y[t * out + o] += x[t * in + i] * w[o * in + i];
    }
}

}  // namespace

int main() {
  std::vector<float> weight(out * in, 0.5F), x(tokens * in, 1), y(tokens * out), dy(tokens * out, 1), dx(tokens * in);

  dw::Cpu::Context ctx;
  const auto base = dw::dense(weight.data(), nullptr, {.in_features = in, .out_features = out});
  dw::Lora<float, dw::Cpu> lora{base.shape, {.rank = 2, .alpha = 4}};
  dw::init::Kaiming{.seed = 7}(ctx, lora, base);
  dw::Lora<float, dw::Cpu>::Saved saved;

  my_matmul(x.data(), weight.data(), y.data());
  lora.forward(ctx, base, {x.data(), tokens, in, in}, {y.data(), tokens, out, out}, saved);
  lora.backward(ctx, base, {x.data(), tokens, in, in}, {dy.data(), tokens, out, out}, {dx.data(), tokens, in, in},
                saved);

  std::printf("deltaw %s: y = %g\n", dw::version.data(), static_cast<double>(y[0]));
  return std::abs(y[0] - 4.0F) < 1e-6F ? 0 : 1;  // a fresh adapter changes nothing: 8 * 0.5
}
