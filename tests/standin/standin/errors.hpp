#pragma once
// Error codes: what a call returned last, and their names.

#include "types.hpp"

namespace standin {

inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t fail(cudaError_t error) { return last_error = error; }

}  // namespace standin

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = standin::last_error;
  standin::last_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaPeekAtLastError() { return standin::last_error; }

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection:
      return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorUnknown:
      break;
  }
  return "cudaErrorUnknown";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "success";
    case cudaErrorInvalidValue:
      return "an argument is not acceptable";
    case cudaErrorMemoryAllocation:
      return "no memory left";
    case cudaErrorInvalidConfiguration:
      return "a launch beyond the limits of grid or block";
    case cudaErrorInvalidMemcpyDirection:
      return "no such direction of a copy";
    case cudaErrorInvalidDevice:
      return "no such device";
    case cudaErrorInvalidResourceHandle:
      return "a handle that names nothing";
    case cudaErrorNotReady:
      return "not finished";
    case cudaErrorLaunchOutOfResources:
      return "a launch needs more than the device has";
    case cudaErrorNotSupported:
      return "not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "not permitted while a stream is captured";
    case cudaErrorUnknown:
      break;
  }
  return "unknown error";
}
