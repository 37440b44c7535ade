// Every adapter on Cuda against the same one on the Cpu, norm-wise: outputs and all gradients.

#include "../adapters/conformance.hpp"

using namespace deltaw_tests;

namespace {

template <class P, class Act>
void cuda_equals_cpu(double tolerance) {
  for (const Sizes sizes : {Sizes{37, 24, 18}, Sizes{300, 9, 7}})
    for_each_row([&](auto row) {
      using Row = decltype(row);
      using OnCpu = Problem<Row, P, dw::Cpu, Act>;
      using OnCuda = Problem<Row, P, dw::Cuda, Act>;
      const auto host = Row::template variants<typename OnCpu::Options>();
      const auto device = Row::template variants<typename OnCuda::Options>();
      for (std::size_t v = 0; v < host.size(); ++v) {
        INFO((OnCpu::Adapter::method) << ", " << host[v].label);
        OnCpu want(sizes, host[v].options);
        OnCuda got(sizes, device[v].options);
        want.forward();
        got.forward();
        CHECK(relative_error(got.y.view(), to_matrix(want.y.view())) <= tolerance);
        CHECK(worst_error(analytic_gradients(got), analytic_gradients(want)) <= tolerance);
        CHECK(got.guards_intact());
      }
    });
}

}  // namespace

TEST_CASE("Cuda equals Cpu") {
  cuda_equals_cpu<double, double>(1e-12);
  cuda_equals_cpu<float, float>(1e-5);
  cuda_equals_cpu<float, dw::bf16>(0x1p-7);
  cuda_equals_cpu<float, dw::f16>(0x1p-10);
}
