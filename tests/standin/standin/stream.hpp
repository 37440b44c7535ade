#pragma once
// Streams: queues of work that nobody carries out before somebody waits for it. Captures record instead of queueing.

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "machine.hpp"
#include "types.hpp"

namespace standin {

/// Bytes that a piece of work uses.
struct Touched {
  const unsigned char* begin;
  std::size_t bytes;
};

/// Everything in `stream` up to `position` has to be done first.
struct Wait {
  CUstream_st* stream;
  std::size_t position;
};

struct Work {
  std::string name;
  std::function<void()> run;
  std::vector<Touched> touched;
  std::vector<Allocation*> pinned_written, pinned_read;  ///< host memory of queued copies
  bool alone = false;                                    ///< a host copy: nothing unordered may use the same bytes
  std::vector<Wait> waits;
};

}  // namespace standin

struct CUgraph_st {
  std::vector<standin::Work> work;
};
struct CUgraphExec_st {
  std::vector<standin::Work> work;
};
struct CUstream_st {
  bool waits_for_null = true;
  bool alive = true;
  std::deque<standin::Work> queue;
  std::size_t queued = 0, done = 0;
  std::unique_ptr<CUgraph_st> capture;
};
struct CUevent_st {
  standin::Wait recorded{nullptr, 0};
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
};

namespace standin {

class Streams {
 public:
  static Streams& get() {
    static Streams* streams = new Streams;
    return *streams;
  }

  CUstream_st* create(bool waits_for_null) {
    all_.push_back(std::make_unique<CUstream_st>());
    all_.back()->waits_for_null = waits_for_null;
    return all_.back().get();
  }
  /// The stream behind a handle; null is the legacy default stream.
  CUstream_st* find(cudaStream_t handle, const char* who) {
    if (handle == nullptr) return all_.front().get();
    const bool known = std::any_of(all_.begin(), all_.end(), [&](const auto& s) { return s.get() == handle; });
    if (!known || !handle->alive) stop(std::string(who) + " got a stream that was destroyed or never made");
    return handle;
  }
  /// A stream that records; null where none does.
  CUstream_st* capturing() const {
    for (const auto& s : all_)
      if (s->capture) return s.get();
    return nullptr;
  }
  void refuse_in_capture(const char* who) const {
    if (capturing() != nullptr) stop(std::string(who) + " inside a stream capture");
  }

  void enqueue(CUstream_st* stream, Work work) {
    if (stream->capture) return stream->capture->work.push_back(std::move(work));
    CUstream_st* null_stream = all_.front().get();
    for (const auto& s : all_)
      if (stream == null_stream ? s.get() != stream && s->waits_for_null && s->done < s->queued
                                : stream->waits_for_null && s.get() == null_stream)
        work.waits.push_back({s.get(), s->queued});
    Machine& m = Machine::get();
    m.watch();
    for (Allocation* a : work.pinned_written) ++a->closed_for_reading, m.protect_pinned(*a);
    for (Allocation* a : work.pinned_read) ++a->closed_for_writing, m.protect_pinned(*a);
    stream->queue.push_back(std::move(work));
    ++stream->queued;
  }

  void drain(CUstream_st* stream) {
    if (stream->done == stream->queued) return;
    Machine::Open open;
    drain(stream, stream->queued);
  }
  void drain(const Wait& wait) {
    if (wait.stream == nullptr || wait.stream->done >= wait.position) return;
    Machine::Open open;
    drain(wait.stream, wait.position);
  }
  void drain_all() {
    for (const auto& s : all_) drain(s.get());
  }

 private:
  Streams() { create(false); }

  void drain(CUstream_st* stream, std::size_t position) {
    while (stream->done < position) {
      Work work = std::move(stream->queue.front());
      stream->queue.pop_front();
      for (const Wait& wait : work.waits) drain(wait.stream, wait.position);
      if (work.alone) refuse_race(stream, work);
      Machine& m = Machine::get();
      for (Allocation* a : work.pinned_written) --a->closed_for_reading, m.protect_pinned(*a);
      for (Allocation* a : work.pinned_read) --a->closed_for_writing, m.protect_pinned(*a);
      m.running = work.name.c_str();
      work.run();
      m.running = "";
      ++stream->done;
    }
  }

  /// What other streams still hold is not ordered against this copy.
  void refuse_race(const CUstream_st* stream, const Work& copy) const {
    for (const auto& other : all_)
      for (const Work& pending : other->queue)
        if (other.get() != stream)
          for (const Touched& a : copy.touched)
            for (const Touched& b : pending.touched)
              if (a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes)
                stop(copy.name + " uses device memory that " + pending.name +
                     ", still queued on another stream, uses too: synchronise first");
  }

  std::vector<std::unique_ptr<CUstream_st>> all_;
};

}  // namespace standin
