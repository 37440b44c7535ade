#pragma once
// The part of the runtime that the real header of this name declares; here all of it.

#include "cuda_runtime.h"
