#pragma once
// Bytes on the heap, counted by the operators new and delete of allocations.cpp. What a BLAS or zlib takes by malloc is not
// seen.

#include <cstddef>

namespace examples {

std::size_t allocated_bytes();       ///< in use now
std::size_t peak_allocated_bytes();  ///< most in use at one time since `reset_peak`
void reset_peak();

}  // namespace examples
