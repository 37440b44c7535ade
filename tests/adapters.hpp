#pragma once
// THE list: one row an adapter. Tests and bench read it; to add a method, write tests/rows/METHOD.hpp, include it here and
// add its name to `Rows`. A row says: the type, the option sets to try, the naive dense oracle in double, what holds at the
// start and whether it merges, and what one call must cost. Where the oracle needs more than the parameters (a shared
// basis), `add_inputs(adapter, map)` gives it.

#include <tuple>

#include "rows/adalora.hpp"
#include "rows/block_lora.hpp"
#include "rows/codyra.hpp"
#include "rows/dora.hpp"
#include "rows/dylora.hpp"
#include "rows/full_delta.hpp"
#include "rows/increlora.hpp"
#include "rows/kasa.hpp"
#include "rows/lamda.hpp"
#include "rows/lora.hpp"
#include "rows/lora_sb.hpp"
#include "rows/lora_xs.hpp"
#include "rows/nola.hpp"
#include "rows/randlora.hpp"
#include "rows/sora.hpp"
#include "rows/vera.hpp"

namespace deltaw_tests {

using Rows = std::tuple<LoraRow, DoraRow, BlockLoraRow, VeraRow, NolaRow, RandLoraRow, SoraRow, AdaLoraRow,
                        IncreLoraRow, CoDyRARow, KasaRow, DyLoraRow, LoraXsRow, LoraSbRow, LamdaRow, FullDeltaRow>;

}  // namespace deltaw_tests
