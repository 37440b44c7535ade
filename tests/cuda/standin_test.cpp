// The Cuda backend run by g++ on the stand-in for CUDA: one LoRA step and the primitives against the Cpu backend.
// Evidence of indices, launches and cuBLAS arguments, not of hardware: see tests/standin/README.md.

#define EIGEN_NO_CUDA
#include "catch.hpp"
#include "deltaw/cuda.hpp"

namespace dw = deltaw;
using dw::index_t;

namespace {
/// A host matrix of small random numbers and its copy on the device.
template <class T>
struct Both {
  dw::Tensor<T> host;
  dw::Tensor<T, dw::Device> device;
  Both(index_t rows, index_t cols, std::uint64_t seed) : host(rows, cols), device(rows, cols) {
    dw::Cpu::Context ctx;
    dw::Cpu::fill_uniform(ctx, dw::RandomKey{seed}, {}, -1, 1, host.view());
    upload();
  }
  void upload() { cudaMemcpy(device.view().data, host.view().data, host.bytes(), cudaMemcpyHostToDevice); }
};
template <class T, class A, class B>
double difference(dw::Cuda::Context& ctx, const A& device, const B& host) {
  ctx.synchronize();
  std::vector<T> values(static_cast<std::size_t>(host.size()));
  cudaMemcpy(values.data(), device.view().data, values.size() * sizeof(T), cudaMemcpyDeviceToHost);
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double d = std::abs(static_cast<double>(values[i]) - static_cast<double>(host.view().data[i]));
    if (!(d <= worst)) worst = d;
  }
  return worst;
}
}  // namespace

TEMPLATE_TEST_CASE("a LoRA step on the Cuda backend equals that on the Cpu", "", float, double) {
  using T = TestType;
  const index_t tokens = 37, in = 24, out = 18;
  dw::Cuda::Context gpu;
  dw::Cpu::Context cpu;
  Both<T> w(out, in, 1), bias(1, out, 2), x(tokens, in, 3), y(tokens, out, 4), dy(tokens, out, 5), dx(tokens, in, 6);
  const auto base = dw::dense(w.host.view().data, bias.host.view().data, {.in_features = in, .out_features = out});
  const auto device_base =
      dw::dense<dw::Cuda>(w.device.view().data, bias.device.view().data, {.in_features = in, .out_features = out});
  using OnCpu = dw::Lora<T, dw::Cpu>;
  using OnGpu = dw::Lora<T, dw::Cuda>;
  OnCpu lora(base.shape, {.rank = 3, .alpha = 6, .bias = true, .dropout = 0.25, .seed = 9});
  OnGpu device_lora(base.shape, {.rank = 3, .alpha = 6, .bias = true, .dropout = 0.25, .seed = 9});
  const auto fill = [](auto& ctx, auto& adapter) {
    using B = typename std::remove_reference_t<decltype(adapter)>::Backend;
    adapter.for_each_parameter(
        [&](auto& p) { B::fill_normal(ctx, dw::RandomKey{7}.fold(dw::name_hash(p.name)), {}, 0.5, p.value.view()); });
  };
  fill(cpu, lora);
  fill(gpu, device_lora);
  typename OnCpu::Saved saved;
  typename OnGpu::Saved device_saved;
  saved.call = device_saved.call = {.training = true, .step = 2};

  base.forward(cpu, x.host.view(), y.host.view());
  lora.forward(cpu, base, x.host.view(), y.host.view(), saved);
  device_base.forward(gpu, x.device.view(), y.device.view());
  device_lora.forward(gpu, device_base, x.device.view(), y.device.view(), device_saved);
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  CHECK(difference<T>(gpu, y.device, y.host) <= tolerance);

  lora.backward(cpu, base, x.host.view(), dy.host.view(), dx.host.view(), saved);
  base.backward_input(cpu, dy.host.view(), dx.host.view());
  device_lora.backward(gpu, device_base, x.device.view(), dy.device.view(), dx.device.view(), device_saved);
  device_base.backward_input(gpu, dy.device.view(), dx.device.view());
  CHECK(difference<T>(gpu, dx.device, dx.host) <= tolerance);
  std::vector<const dw::Parameter<T>*> want;
  lora.for_each_parameter([&](auto& p) { want.push_back(&p); });
  std::size_t i = 0;
  device_lora.for_each_parameter([&](auto& p) {
    INFO(p.name);
    CHECK(difference<T>(gpu, p.grad, want[i++]->grad) <= tolerance);
  });
  CHECK(i == 3);
}

TEST_CASE("random numbers and dropout masks are the same bits on both backends") {
  dw::Cuda::Context gpu;
  dw::Cpu::Context cpu;
  for (index_t cols : {1, 3, 4, 5, 63, 64, 65, 257}) {
    Both<float> uniform(5, cols, 1), normal(5, cols, 1), in(5, cols, 2), out(5, cols, 3);
    const dw::RandomKey key{11};
    const dw::RandomOrigin origin{3, 2};
    dw::Cpu::fill_uniform(cpu, key, origin, -2, 3, uniform.host.view());
    dw::Cuda::fill_uniform(gpu, key, origin, -2, 3, uniform.device.view());
    dw::Cpu::fill_normal(cpu, key, origin, 2, normal.host.view());
    dw::Cuda::fill_normal(gpu, key, origin, 2, normal.device.view());
    dw::Cpu::dropout(cpu, 0.3, dw::CallKey{key}, origin, in.host.view(), out.host.view(), true);
    dw::Cuda::dropout(gpu, 0.3, dw::CallKey{key}, origin, in.device.view(), out.device.view(), true);
    CHECK(difference<float>(gpu, uniform.device, uniform.host) == 0);
    CHECK(difference<float>(gpu, normal.device, normal.host) == 0);
    CHECK(difference<float>(gpu, out.device, out.host) == 0);
  }
}

TEST_CASE("map, copies and reductions equal the Cpu's over sizes around every block") {
  dw::Cuda::Context gpu;
  dw::Cpu::Context cpu;
  for (index_t rows : {1, 7, 8, 9, 33})
    for (index_t cols : {1, 3, 4, 31, 32, 33, 64, 257}) {
      Both<float> a(rows, cols, 1), b(rows, cols, 2), line(1, cols, 3), column(rows, 1, 4), turned(cols, rows, 5);
      Both<float> sums(1, cols, 6), dots(1, rows, 7);
      INFO(rows << " x " << cols);
      dw::Cpu::map(cpu, dw::AddScaled{0.5}, a.host.view(), b.host.view());
      dw::Cuda::map(gpu, dw::AddScaled{0.5}, a.device.view(), b.device.view());
      dw::Cpu::map(cpu, dw::AddScaled{2}, a.host.view(), line.host.view());
      dw::Cuda::map(gpu, dw::AddScaled{2}, a.device.view(), line.device.view());
      dw::Cpu::map(cpu, dw::Add{}, a.host.view(), column.host.view());
      dw::Cuda::map(gpu, dw::Add{}, a.device.view(), column.device.view());
      dw::Cpu::copy_transposed(cpu, a.host.view(), turned.host.view());
      dw::Cuda::copy_transposed(gpu, a.device.view(), turned.device.view());
      dw::Cpu::col_dot(cpu, 2, a.host.view(), b.host.view(), sums.host.view());
      dw::Cuda::col_dot(gpu, 2, a.device.view(), b.device.view(), sums.device.view());
      dw::Cpu::row_dot(cpu, -1, a.host.view(), b.host.view(), dots.host.view());
      dw::Cuda::row_dot(gpu, -1, a.device.view(), b.device.view(), dots.device.view());
      CHECK(difference<float>(gpu, a.device, a.host) <= 1e-6);
      CHECK(difference<float>(gpu, turned.device, turned.host) <= 1e-6);
      CHECK(difference<float>(gpu, sums.device, sums.host) <= 1e-4);
      CHECK(difference<float>(gpu, dots.device, dots.host) <= 1e-3);
    }
}
