// The whole library in one CUDA unit: nvcc must accept the headers and instantiate the adapters over both backends.
// Eigen 3.4 offers itself to device code unless it is told not to.
#define EIGEN_NO_CUDA
#include <deltaw/backend/cpu_solver.hpp>
#include <deltaw/backend/cuda_solver.hpp>
#include <deltaw/cuda.hpp>

namespace dw = deltaw;

template class dw::Lora<float, dw::Cpu>;
template class dw::Lora<float, dw::Cuda>;
template class dw::Lora<double, dw::Cuda>;
template class dw::Lora<float, dw::Cuda, dw::bf16>;
template class dw::Lora<float, dw::Cuda, dw::f16>;
template class dw::FullDelta<float, dw::Cuda>;

/// Every decomposition. Of CpuSolver only what nvcc compiles in seconds: Eigen's SVD would take a minute.
template <class T>
void decompose(dw::CudaSolver& solver) {
  dw::Tensor<T, dw::Device> a(6, 4), u(6, 4), s(1, 4), vt(4, 4), gram(4, 4), x(4, 3);
  solver.svd(a.view(), u.view(), s.view(), vt.view());
  solver.svd_batched(1, a.view(), {}, s.view(), vt.view());
  solver.qr(a.view(), u.view(), vt.view());
  solver.solve(gram.view(), {.absolute = 1}, x.view());
  solver.solve(gram.view(), {.absolute = 1}, dw::t(u.view()));
  solver.eigen(gram.view(), s.view(), vt.view());
  solver.wait_and_check();
}
template void dw::CpuSolver::solve(dw::MatrixView<double>, dw::Damping, dw::MatrixView<double>);

/// One step on the device, without the optimizer, which has no Cuda update yet.
int main() {
  dw::Cuda::Context ctx;
  dw::Tensor<float, dw::Device> w(6, 8), b(1, 6), x(5, 8), y(5, 6), dy(5, 6), dx(5, 8);
  const auto base = dw::dense<dw::Cuda>(w.view().data, b.view().data, {.in_features = 8, .out_features = 6});
  dw::Lora<float, dw::Cuda> lora{base.shape, {.rank = 2, .bias = true, .dropout = 0.2}};
  dw::init::Kaiming{.seed = 7}(ctx, lora, base);
  decltype(lora)::Saved saved;
  base.forward(ctx, x.view(), y.view());
  lora.forward(ctx, base, x.view(), y.view(), saved);
  lora.backward(ctx, base, x.view(), dy.view(), dx.view(), saved);
  base.backward_input(ctx, dy.view(), dx.view());
  ctx.synchronize();
  dw::CudaSolver solver(ctx);
  decompose<float>(solver);
  decompose<double>(solver);
}
