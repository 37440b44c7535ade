#pragma once
// deltaw.hpp and the Cuda backend. Needs the CUDA toolkit and cuBLAS; define EIGEN_NO_CUDA before it in a CUDA unit.

#include "deltaw/backend/cuda.hpp"
#include "deltaw/deltaw.hpp"
