#pragma once
// The registry holds every method, which takes a minute to compile: once, in methods_*.cpp, which are linked into every test
// program. A file that includes this header after the registry, or instead of it, calls those instances.

#include "deltaw/backend/cpu.hpp"
#include "deltaw/model/registry.hpp"

namespace deltaw {
extern template MethodEntry<float, Cpu> find_method<float, Cpu>(std::string_view);
extern template MethodEntry<double, Cpu> find_method<double, Cpu>(std::string_view);
extern template MethodEntry<float, Cpu, bf16> find_method<float, Cpu, bf16>(std::string_view);
}  // namespace deltaw
