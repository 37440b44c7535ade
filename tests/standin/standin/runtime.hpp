#pragma once
// Memory, streams, events and the device.

#include "errors.hpp"
#include "stream.hpp"

inline cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  standin::Streams::get().refuse_in_capture("cudaMalloc");
  if (p == nullptr) return standin::fail(cudaErrorInvalidValue);
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  m.watch();
  const standin::Allocation* a = m.device.allocate(bytes);
  if (a == nullptr) return standin::fail(cudaErrorMemoryAllocation);
  mprotect(a->pages, a->page_bytes, PROT_NONE);
  *p = a->begin;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  *p = static_cast<T*>(memory);
  return error;
}

/// Waits for everything, as the real one does.
inline cudaError_t cudaFree(void* p) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  standin::Streams::get().refuse_in_capture("cudaFree");
  if (p == nullptr) return cudaSuccess;
  standin::Streams::get().drain_all();
  standin::Allocation* a = m.device.find(p);
  if (a == nullptr || a->begin != p) standin::stop("cudaFree of what cudaMalloc did not give, or gave back already");
  mprotect(a->pages, a->page_bytes, PROT_READ | PROT_WRITE);
  m.device.release(*a);
  return cudaSuccess;
}

inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  standin::Streams::get().refuse_in_capture("cudaMallocHost");
  if (p == nullptr) return standin::fail(cudaErrorInvalidValue);
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  m.watch();
  const standin::Allocation* a = m.pinned.allocate(bytes);
  if (a == nullptr) return standin::fail(cudaErrorMemoryAllocation);
  *p = a->begin;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMallocHost(T** p, std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, bytes);
  *p = static_cast<T*>(memory);
  return error;
}
inline cudaError_t cudaHostAlloc(void** p, std::size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
inline cudaError_t cudaFreeHost(void* p) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  standin::Streams::get().refuse_in_capture("cudaFreeHost");
  if (p == nullptr) return cudaSuccess;
  standin::Streams::get().drain_all();
  standin::Allocation* a = m.pinned.find(p);
  if (a == nullptr || a->begin != p)
    standin::stop("cudaFreeHost of what cudaMallocHost did not give, or gave back already");
  m.pinned.release(*a);
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  std::lock_guard lock(standin::Machine::get().mutex);
  if (stream == nullptr || flags > cudaStreamNonBlocking) return standin::fail(cudaErrorInvalidValue);
  *stream = standin::Streams::get().create(flags != cudaStreamNonBlocking);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::lock_guard lock(standin::Machine::get().mutex);
  if (stream == nullptr) return standin::fail(cudaErrorInvalidResourceHandle);
  CUstream_st* s = standin::Streams::get().find(stream, "cudaStreamDestroy");
  if (s->capture) standin::stop("cudaStreamDestroy inside a stream capture");
  standin::Streams::get().drain(s);
  s->alive = false;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams& streams = standin::Streams::get();
  streams.refuse_in_capture("cudaStreamSynchronize");
  streams.drain(streams.find(stream, "cudaStreamSynchronize"));
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaDeviceSynchronize");
  standin::Streams::get().drain_all();
  return cudaSuccess;
}
/// Says "not ready" first and works a little, so that a loop around it ends.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams& streams = standin::Streams::get();
  streams.refuse_in_capture("cudaStreamQuery");
  CUstream_st* s = streams.find(stream, "cudaStreamQuery");
  if (s->done == s->queued) return cudaSuccess;
  streams.drain(standin::Wait{s, s->done + 1});
  return cudaErrorNotReady;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaEventRecord");
  CUstream_st* s = standin::Streams::get().find(stream, "cudaEventRecord");
  event->time = std::make_shared<std::chrono::steady_clock::time_point>();
  standin::Work work;
  work.name = "cudaEventRecord";
  work.run = [time = event->time] { *time = std::chrono::steady_clock::now(); };
  standin::Streams::get().enqueue(s, std::move(work));
  event->recorded = {s, s->queued};
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaEventSynchronize");
  standin::Streams::get().drain(event->recorded);
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaEventQuery");
  const standin::Wait& w = event->recorded;
  if (w.stream == nullptr || w.stream->done >= w.position) return cudaSuccess;
  standin::Streams::get().drain(standin::Wait{w.stream, w.stream->done + 1});
  return cudaErrorNotReady;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
  std::lock_guard lock(standin::Machine::get().mutex);
  standin::Streams::get().refuse_in_capture("cudaStreamWaitEvent");
  if (event->recorded.stream == nullptr) return cudaSuccess;
  standin::Work work;
  work.name = "cudaStreamWaitEvent";
  work.run = [] {};
  work.waits.push_back(event->recorded);
  standin::Streams::get().enqueue(standin::Streams::get().find(stream, "cudaStreamWaitEvent"), std::move(work));
  return cudaSuccess;
}
/// Times of a stand-in say nothing about a device.
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  std::lock_guard lock(standin::Machine::get().mutex);
  if (!start->time || !end->time) return standin::fail(cudaErrorInvalidResourceHandle);
  for (cudaEvent_t e : {start, end})
    if (e->recorded.stream->done < e->recorded.position) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* devices) {
  *devices = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : standin::fail(cudaErrorInvalidDevice);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return standin::fail(cudaErrorInvalidDevice);
  *properties = {"DeltaW stand-in (no GPU)",
                 std::size_t{1} << 34,
                 49152,
                 32,
                 1024,
                 {1024, 1024, 64},
                 {0x7fffffff, 65535, 65535},
                 8,
                 0,
                 4,
                 1 << 20};
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = p.maxGridSize[0];
      break;
    case cudaDevAttrMaxGridDimY:
      *value = p.maxGridSize[1];
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    default:
      return standin::fail(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  auto* address = const_cast<void*>(p);
  if (m.device.find(p) != nullptr)
    *attributes = {cudaMemoryTypeDevice, 0, address, nullptr};
  else if (m.pinned.find(p) != nullptr)
    *attributes = {cudaMemoryTypeHost, 0, address, address};
  else
    *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, address};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  standin::Machine& m = standin::Machine::get();
  std::lock_guard lock(m.mutex);
  *total = *free = std::size_t{1} << 34;
  for (const auto& [begin, a] : m.device.live()) *free -= a.bytes < *free ? a.bytes : *free;
  return cudaSuccess;
}
