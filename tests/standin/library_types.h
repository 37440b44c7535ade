#pragma once
// cudaDataType_t, which the stand-in keeps with its other types.

#include "standin/types.hpp"
