#pragma once
// Threads of the example programs: one pool, OpenMP's, which the BLAS shares where it is OpenBLAS's OpenMP flavour.
// Every function gives the same bits for any number of threads.

#include "deltaw/backend/cpu.hpp"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace examples {

using deltaw::index_t;

/// How many threads products and loops use from here on.
inline void set_threads([[maybe_unused]] int count) {
#if defined(_OPENMP)
  omp_set_num_threads(count);
#endif
#if DELTAW_CBLAS && defined(OPENBLAS_VERSION)
  openblas_set_num_threads(count);
#endif
}

inline int max_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

/// f(i, thread) for i in [0, count), in pieces of neighbours; thread < max_threads().
template <class F>
void parallel_for(index_t count, F f) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static)
  for (index_t i = 0; i < count; ++i) f(i, omp_get_thread_num());
#else
  for (index_t i = 0; i < count; ++i) f(i, 0);
#endif
}

}  // namespace examples
