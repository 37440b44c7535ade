#pragma once
// How often this program has called `operator new`, in any form. Counted in allocations.cpp, a unit of its own, so that no
// compiler sees through it.

#include <atomic>

namespace deltaw_tests {
extern std::atomic<long> allocations;
}
