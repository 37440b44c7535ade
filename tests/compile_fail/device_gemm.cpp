// Nor as an operand of a product.
// error: no matching function for call to .*operand\(deltaw::MatrixView<float, deltaw::Device>

#include "deltaw/backend/cpu.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Space = deltaw::Device;
#else
using Space = deltaw::Host;
#endif

void square(deltaw::Cpu::Context& ctx, deltaw::MatrixView<float, Space> a, deltaw::MatrixView<float> out) {
  deltaw::Cpu::gemm(ctx, 1, a, a, 0, out);
}
