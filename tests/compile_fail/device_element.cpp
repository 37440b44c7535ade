// The CPU reads no element of device memory.
// error: no match for call to .*MatrixView<float, deltaw::Device>

#include "deltaw/core/view.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Space = deltaw::Device;
#else
using Space = deltaw::Host;
#endif

float first(deltaw::MatrixView<float, Space> view) { return view(0, 0); }
