#pragma once
// bfloat16 as the CUDA headers name it: bits, and conversions that round to nearest even.

#include "standin/half_types.hpp"
