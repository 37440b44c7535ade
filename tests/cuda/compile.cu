// Everything that needs only Eigen, in one CUDA unit: nvcc must accept the headers and instantiate an adapter whole.
// Eigen 3.4 offers itself to device code unless it is told not to.
#define EIGEN_NO_CUDA
#include <deltaw/deltaw.hpp>

namespace dw = deltaw;

template class dw::Lora<float, dw::Cpu>;

int main() {
  dw::Cpu::Context ctx;
  dw::Lora<float, dw::Cpu> lora{{.in_features = 8, .out_features = 4}, {.rank = 2, .alpha = 4}};
  return lora.shape().in_features == 8 ? 0 : 1;
}
