#pragma once
// The row of SoRA.

#include "deltaw/adapters/sora.hpp"
#include "rows/gated.hpp"

namespace deltaw_tests {

struct SoraRow : GatedRow<SoraRow> {
  template <class P, class B, class Act = P>
  using Method = dw::Sora<P, B, Act>;
  static constexpr const char* header = "sora.hpp";
  static constexpr const char* gate = "gate";
  static constexpr bool identity_at_init = true;
};

}  // namespace deltaw_tests
