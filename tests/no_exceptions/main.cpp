// Built with -fno-exceptions -fno-rtti: the library compiles, trains a step, and its errors reach the program's handler.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deltaw/deltaw.hpp>

namespace dw = deltaw;

namespace deltaw {

// Must not return. The one error that this program provokes ends it well; any other, badly.
void on_error(ErrorKind kind, const char* message) {
  const bool expected = kind == ErrorKind::Option && std::strstr(message, "rank") != nullptr;
  std::printf("on_error: %s\n", message);
  std::fflush(stdout);
  std::_Exit(expected ? EXIT_SUCCESS : 2);
}

}  // namespace deltaw

int main() {
  const dw::LinearShape shape{.in_features = 8, .out_features = 4};
  dw::Lora<float, dw::Cpu> lora{shape, {.rank = -1}};
  std::puts("a rank of -1 was accepted");
  return 3;
}
