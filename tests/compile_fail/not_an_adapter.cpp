// What lacks a part of an adapter is refused where it is erased, not deep inside.
// error: the required expression .*c\.forward\(ctx, base, in, out, saved\).* is invalid

#include "deltaw/adapters/lora.hpp"
#include "deltaw/backend/cpu.hpp"
#include "deltaw/model/any_adapter.hpp"

struct Almost : deltaw::Lora<float, deltaw::Cpu> {
  using Lora::Lora;
#ifdef DELTAW_SHOULD_FAIL
  void forward() const {}  // hides the real one
#endif
};

auto erase(Almost adapter) { return deltaw::AnyAdapter<float, deltaw::Cpu>(adapter); }
