#include "methods.hpp"

namespace deltaw {
template MethodEntry<float, Cpu, bf16> find_method<float, Cpu, bf16>(std::string_view);
}  // namespace deltaw
