#pragma once
// The few switches of this library. All are set by the build (CMake's deltaw::deltaw), none has to be set by hand.
//   DELTAW_CBLAS   1: Cpu's products go to the BLAS behind <cblas.h>; 0 or absent: to Eigen.

#ifndef DELTAW_CBLAS
#define DELTAW_CBLAS 0
#endif

#if defined(__CUDACC__)
#define DELTAW_HD __host__ __device__
#else
#define DELTAW_HD
#endif

namespace deltaw {

/// std::bit_cast, which has no device code.
template <class To, class From>
DELTAW_HD constexpr To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

}  // namespace deltaw
