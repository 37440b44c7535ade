#include "methods.hpp"

namespace deltaw {
template MethodEntry<double, Cpu> find_method<double, Cpu>(std::string_view);
}  // namespace deltaw
