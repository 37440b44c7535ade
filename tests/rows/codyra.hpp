#pragma once
// The row of CoDyRA.

#include "deltaw/adapters/codyra.hpp"
#include "rows/gated.hpp"

namespace deltaw_tests {

struct CoDyRARow : GatedRow<CoDyRARow> {
  template <class P, class B, class Act = P>
  using Method = dw::CoDyRA<P, B, Act>;
  static constexpr const char* header = "codyra.hpp";
  static constexpr const char* gate = "gate";
  static constexpr bool identity_at_init = true;
};

}  // namespace deltaw_tests
