#include "common/methods.hpp"

namespace deltaw {
template MethodEntry<float, Cpu> find_method<float, Cpu>(std::string_view);
}  // namespace deltaw

namespace examples {

std::vector<std::pair<std::string, std::string>> method_summaries() {
  std::vector<std::pair<std::string, std::string>> list;
  for (const auto& method : deltaw::methods<float, deltaw::Cpu>()) list.emplace_back(method.name, method.summary);
  return list;
}

}  // namespace examples
