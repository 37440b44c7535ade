#pragma once
// The row of KaSA. What init::Kasa does to the base and the penalties are in tests/methods/kasa_test.cpp.

#include "deltaw/adapters/kasa.hpp"
#include "rows/gated.hpp"

namespace deltaw_tests {

struct KasaRow : GatedRow<KasaRow> {
  template <class P, class B, class Act = P>
  using Method = dw::Kasa<P, B, Act>;
  static constexpr const char* header = "kasa.hpp";
  static constexpr const char* gate = "lora_diag";
  static constexpr bool identity_at_init = true;  // of the base as it is then
};

}  // namespace deltaw_tests
