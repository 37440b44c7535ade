#pragma once
// Captures and graphs: what is queued on a captured stream is recorded, and carried out each time the graph is launched.

#include "errors.hpp"
#include "stream.hpp"

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams& streams = standin::Streams::get();
  if (stream == nullptr) return standin::fail(cudaErrorStreamCaptureUnsupported);
  if (streams.capturing() != nullptr) standin::stop("cudaStreamBeginCapture inside a stream capture");
  streams.find(stream, "cudaStreamBeginCapture")->capture = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  std::lock_guard lock(standin::Machine::get().mutex);
  CUstream_st* s = standin::Streams::get().find(stream, "cudaStreamEndCapture");
  if (!s->capture) return standin::fail(cudaErrorInvalidValue);
  *graph = s->capture.release();
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  std::lock_guard lock(standin::Machine::get().mutex);
  const bool captures = standin::Streams::get().find(stream, "cudaStreamIsCapturing")->capture != nullptr;
  *status = captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long = 0) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaGraphInstantiate");
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  std::lock_guard lock(standin::Machine::get().mutex);
  CUstream_st* s = standin::Streams::get().find(stream, "cudaGraphLaunch");
  if (s->capture) standin::stop("cudaGraphLaunch inside a stream capture is not in the subset");
  for (const standin::Work& work : executable->work) standin::Streams::get().enqueue(s, work);
  return cudaSuccess;
}
/// Only the number of nodes; the nodes themselves have no handles here.
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, std::nullptr_t, std::size_t* nodes) {
  *nodes = graph->work.size();
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
