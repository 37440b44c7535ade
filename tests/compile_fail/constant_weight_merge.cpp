// A base over constant memory cannot be merged into.
// error: deltaw: a product is written into memory that is const, a frozen weight perhaps

#include "deltaw/adapters/lora.hpp"
#include "deltaw/base/dense.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Element = const float;
#else
using Element = float;
#endif

void merge(deltaw::Cpu::Context& ctx, const deltaw::Lora<float, deltaw::Cpu>& lora,
           const deltaw::DenseLinear<Element, Element>& base) {
  lora.merge(ctx, base, base.weight, base.bias);
}
