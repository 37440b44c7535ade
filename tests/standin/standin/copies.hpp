#pragma once
// Copies and memset. A copy to the host refuses bytes that were never written, and bytes that queued work still uses.

#include "errors.hpp"
#include "stream.hpp"

namespace standin {

enum class Place { device, pinned, pageable };

inline Place place_of(const void* p) {
  const Machine& m = Machine::get();
  return m.device.owns(p) ? Place::device : m.pinned.owns(p) ? Place::pinned : Place::pageable;
}

/// `rows` rows of `width` bytes, each `pitch` bytes behind the last.
struct Rows {
  unsigned char* begin;
  std::size_t pitch, width, rows;

  std::size_t extent() const { return rows == 0 || width == 0 ? 0 : (rows - 1) * pitch + width; }
  unsigned char* row(std::size_t i) const { return begin + i * pitch; }
};

inline Rows rows_of(const void* p, std::size_t pitch, std::size_t width, std::size_t rows) {
  return {static_cast<unsigned char*>(const_cast<void*>(p)), pitch, width, rows};
}

inline void refuse_unwritten(const Rows& from, const std::string& who) {
  for (std::size_t i = 0; i < from.rows; ++i) {
    const auto skip = (4 - reinterpret_cast<std::uintptr_t>(from.row(i)) % 4) % 4;
    if (skip >= from.width) continue;
    const std::size_t at = find_unwritten(from.row(i) + skip, from.width - skip);
    if (at < from.width - skip) {
      const Allocation& a = *Machine::get().device.find(from.row(i));
      std::uint32_t word;
      std::memcpy(&word, from.row(i) + skip + at, sizeof word);
      stop((is_canary_word(word) ? "what lies beside an allocation" : "unwritten device memory") +
           std::string(" reached the host: ") + who + " at byte " + std::to_string(from.row(i) + skip + at - a.begin) +
           " of " + describe(a));
    }
  }
}

/// Whether the kind of a copy agrees with its pointers; stops where a pointer is of the wrong memory.
inline bool check_direction(const Rows& to, const Rows& from, cudaMemcpyKind kind, const std::string& who) {
  if (kind == cudaMemcpyDefault) return true;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return false;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device && place_of(to.begin) == Place::pageable)
    stop("host pointer passed to " + who + " as its device destination");
  if (from_device && place_of(from.begin) == Place::pageable)
    stop("host pointer passed to " + who + " as its device source");
  if (!to_device && place_of(to.begin) == Place::device)
    stop("device pointer passed to " + who + " as its host destination");
  if (!from_device && place_of(from.begin) == Place::device)
    stop("device pointer passed to " + who + " as its host source");
  return true;
}

/// Queues the copy. `waits`: the call returns when the host may use its memory again, however pageable it is.
inline cudaError_t copy(Rows to, Rows from, cudaMemcpyKind kind, cudaStream_t handle, bool waits, std::string who) {
  Machine& m = Machine::get();
  std::lock_guard lock(m.mutex);
  Streams& streams = Streams::get();
  CUstream_st* stream = streams.find(handle, who.c_str());
  if (to.pitch < to.width || from.pitch < from.width) return fail(cudaErrorInvalidValue);
  const bool on_host = place_of(to.begin) == Place::pageable || place_of(from.begin) == Place::pageable;
  if (streams.capturing() != nullptr && (waits || (on_host && to.extent() > 0)))
    stop("host copy inside a stream capture: " + who);
  if (to.extent() == 0) return cudaSuccess;
  if (!check_direction(to, from, kind, who)) return fail(cudaErrorInvalidMemcpyDirection);

  Work work;
  work.name = who;
  for (const Rows& side : {to, from}) {
    if (place_of(side.begin) == Place::device) {
      m.device_range(side.begin, side.extent(), who);
      work.touched.push_back({side.begin, side.extent()});
    }
    if (place_of(side.begin) == Place::pinned) {
      Allocation* a = m.pinned.find(side.begin);
      if (a == nullptr || side.begin + side.extent() > a->end()) stop(who + " reaches past the end of pinned memory");
      (side.begin == to.begin ? work.pinned_written : work.pinned_read).push_back(a);
    }
  }
  const bool to_host = place_of(to.begin) != Place::device, from_host = place_of(from.begin) != Place::device;
  work.alone = to_host != from_host;
  std::shared_ptr<std::vector<unsigned char>> staged;
  if (place_of(from.begin) == Place::pageable) {  // the caller may change its memory as soon as the call returns
    staged = std::make_shared<std::vector<unsigned char>>(from.width * from.rows);
    for (std::size_t i = 0; i < from.rows; ++i) std::memcpy(staged->data() + i * from.width, from.row(i), from.width);
    from = {staged->data(), from.width, from.width, from.rows};
  }
  work.run = [to, from, staged, to_host, from_host, who] {
    if (to_host && !from_host) refuse_unwritten(from, who);
    for (std::size_t i = 0; i < to.rows; ++i) std::memmove(to.row(i), from.row(i), to.width);
  };
  streams.enqueue(stream, std::move(work));
  if (place_of(to.begin) == Place::pageable || (waits && (to_host || from_host))) streams.drain(stream);
  return cudaSuccess;
}

inline cudaError_t set(Rows to, int value, cudaStream_t handle, std::string who) {
  Machine& m = Machine::get();
  std::lock_guard lock(m.mutex);
  Streams& streams = Streams::get();
  CUstream_st* stream = streams.find(handle, who.c_str());
  if (handle == nullptr) streams.refuse_in_capture(who.c_str());
  if (to.pitch < to.width) return fail(cudaErrorInvalidValue);
  if (to.extent() == 0) return cudaSuccess;
  m.device_range(to.begin, to.extent(), who);
  Work work;
  work.name = std::move(who);
  work.touched.push_back({to.begin, to.extent()});
  work.run = [to, value] {
    for (std::size_t i = 0; i < to.rows; ++i) std::memset(to.row(i), value, to.width);
  };
  streams.enqueue(stream, std::move(work));
  return cudaSuccess;
}

}  // namespace standin

inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return standin::copy(standin::rows_of(to, bytes, bytes, 1), standin::rows_of(from, bytes, bytes, 1), kind, nullptr,
                       true, "cudaMemcpy");
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  return standin::copy(standin::rows_of(to, bytes, bytes, 1), standin::rows_of(from, bytes, bytes, 1), kind, stream,
                       false, "cudaMemcpyAsync");
}
inline cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                std::size_t width, std::size_t rows, cudaMemcpyKind kind) {
  return standin::copy(standin::rows_of(to, to_pitch, width, rows), standin::rows_of(from, from_pitch, width, rows),
                       kind, nullptr, true, "cudaMemcpy2D");
}
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                     std::size_t width, std::size_t rows, cudaMemcpyKind kind,
                                     cudaStream_t stream = nullptr) {
  return standin::copy(standin::rows_of(to, to_pitch, width, rows), standin::rows_of(from, from_pitch, width, rows),
                       kind, stream, false, "cudaMemcpy2DAsync");
}
/// Does not wait, as the real one does not: that it set the memory is only sure for work behind it on the same stream.
inline cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return standin::set(standin::rows_of(to, bytes, bytes, 1), value, nullptr, "cudaMemset");
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream = nullptr) {
  return standin::set(standin::rows_of(to, bytes, bytes, 1), value, stream, "cudaMemsetAsync");
}
inline cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t rows,
                                     cudaStream_t stream = nullptr) {
  return standin::set(standin::rows_of(to, pitch, width, rows), value, stream, "cudaMemset2DAsync");
}
