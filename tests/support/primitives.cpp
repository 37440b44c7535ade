#include "primitives.hpp"

namespace deltaw {
DELTAW_TEST_PRIMITIVES(, float)
DELTAW_TEST_PRIMITIVES(, double)
}  // namespace deltaw
