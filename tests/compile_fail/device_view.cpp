// A view of device memory does not reach the CPU.
// error: no matching function for call to .*fill\(

#include "deltaw/backend/cpu.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Space = deltaw::Device;
#else
using Space = deltaw::Host;
#endif

void clear(deltaw::Cpu::Context& ctx, deltaw::MatrixView<float, Space> view) { deltaw::Cpu::fill(ctx, view, 0); }
