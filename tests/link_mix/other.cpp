#include "other.hpp"

void use(deltaw::Cpu::Context&) {}
