#include "methods.hpp"

namespace deltaw {
template MethodEntry<float, Cpu> find_method<float, Cpu>(std::string_view);
}  // namespace deltaw
