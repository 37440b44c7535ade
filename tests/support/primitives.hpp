#pragma once
// What takes long to compile is compiled once, in primitives.cpp, which is linked into every test program. A file that
// includes this header calls those instances.

#include "deltaw/backend/cpu.hpp"

#define DELTAW_TEST_PRIMITIVES(keyword, T)                                                                      \
  keyword template void cpu_detail::product<T>(double, cpu_detail::Operand<T>, cpu_detail::Operand<T>, double,  \
                                               MatrixView<T, Host>);                                            \
  keyword template void cpu_detail::adamw<T>(const AdamWUpdate&, MatrixView<T, Host>, ConstMatrixView<T, Host>, \
                                             MatrixView<T, Host>, MatrixView<T, Host>);                         \
  keyword template void cpu_detail::sgd<T>(const SgdUpdate&, MatrixView<T, Host>, ConstMatrixView<T, Host>,     \
                                           MatrixView<T, Host>);

namespace deltaw {
DELTAW_TEST_PRIMITIVES(extern, float)
DELTAW_TEST_PRIMITIVES(extern, double)
}  // namespace deltaw
