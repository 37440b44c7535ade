#include "other.hpp"

int main() {
  deltaw::Cpu::Context ctx;
  use(ctx);
}
