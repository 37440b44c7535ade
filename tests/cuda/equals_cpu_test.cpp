// Every adapter on Cuda against the same one on the Cpu, norm-wise: outputs and all gradients.

#include "../adapters/conformance.hpp"

using namespace deltaw_tests;

namespace {

template <class P, class Act>
void cuda_equals_cpu(double tolerance) {
  const auto& host = all_cases<P, dw::Cpu, Act>();
  const auto& device = all_cases<P, dw::Cuda, Act>();
  for (const Sizes sizes : {Sizes{37, 24, 18}, Sizes{300, 9, 7}})
    for (std::size_t v = 0; v < host.size(); ++v) {
      INFO(host[v].method << ", " << host[v].label);
      Problem<P, dw::Cpu, Act> want(sizes, host[v]);
      Problem<P, dw::Cuda, Act> got(sizes, device[v]);
      want.forward();
      got.forward();
      CHECK(relative_error(got.y.view(), to_matrix(want.y.view())) <= tolerance);
      CHECK(worst_error(analytic_gradients(got), analytic_gradients(want)) <= tolerance);
      CHECK(got.guards_intact());
    }
}

}  // namespace

TEST_CASE("Cuda equals Cpu") {
  cuda_equals_cpu<double, double>(1e-12);
  cuda_equals_cpu<float, float>(1e-5);
  cuda_equals_cpu<float, dw::bf16>(0x1p-7);
  cuda_equals_cpu<float, dw::f16>(0x1p-10);
}
