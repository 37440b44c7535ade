#pragma once
// The stand-in for the CUDA runtime. See README.md; put this directory before any other on the include path.

#if defined(__CUDACC__) || defined(__CUDA_RUNTIME_API_H__) || defined(__DRIVER_TYPES_H__)
#error \
    "The stand-in and the real CUDA headers do not mix: put tests/standin first on the include path, and use no nvcc."
#endif

#include "standin/copies.hpp"
#include "standin/device_functions.hpp"
#include "standin/errors.hpp"
#include "standin/graphs.hpp"
#include "standin/launch.hpp"
#include "standin/runtime.hpp"
#include "standin/types.hpp"
