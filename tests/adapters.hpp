#pragma once
// THE list: one row an adapter. Tests and bench read it; to add a method, write tests/rows/METHOD.hpp, include it here and
// add its name to `Rows`. A row says: the type, the option sets to try, the naive dense oracle in double, what holds at the
// start and whether it merges, and what one call must cost. Where the oracle needs more than the parameters (a shared
// basis), `add_inputs(adapter, map)` gives it.

#include <tuple>

#include "rows/adalora.hpp"
#include "rows/codyra.hpp"
#include "rows/full_delta.hpp"
#include "rows/lora.hpp"
#include "rows/sora.hpp"

namespace deltaw_tests {

using Rows = std::tuple<LoraRow, SoraRow, AdaLoraRow, CoDyRARow, FullDeltaRow>;

}  // namespace deltaw_tests
