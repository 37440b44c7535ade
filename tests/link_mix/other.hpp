#pragma once
#include <deltaw/deltaw.hpp>

/// Defined in another unit, which may have been compiled with another setting.
void use(deltaw::Cpu::Context& ctx);
