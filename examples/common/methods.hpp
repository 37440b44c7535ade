#pragma once
// The registry holds every method, which takes minutes to compile at -O3: once, in methods.cpp.

#include <string>
#include <utility>
#include <vector>

#include "deltaw/backend/cpu.hpp"
#include "deltaw/model/registry.hpp"

namespace deltaw {
extern template MethodEntry<float, Cpu> find_method<float, Cpu>(std::string_view);
}  // namespace deltaw

namespace examples {
/// Name and summary of every method.
std::vector<std::pair<std::string, std::string>> method_summaries();
}  // namespace examples
