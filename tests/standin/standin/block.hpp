#pragma once
// The threads of one block and what they wait for. A wait ends only when no thread of the block can go on by itself; then
// either a whole block stands at one __syncthreads, or a whole warp at one shuffle, or the kernel is wrong.

#include <array>
#include <cstring>
#include <functional>
#include <vector>

#include "machine.hpp"
#include "types.hpp"

inline thread_local uint3 threadIdx{}, blockIdx{};
inline thread_local dim3 blockDim{}, gridDim{};

namespace standin {

inline constexpr unsigned warp_size = 32;

/// A line of the program, as a default argument that the caller fills in.
struct Site {
  const char* file;
  unsigned line;
  static constexpr Site current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class State { ready, at_barrier, at_warp, finished };

struct Thread {
  State state = State::ready;
  Site at{"", 0};  ///< where it waits
  std::array<std::array<unsigned char, 8>, 2>
      exchanged{};  ///< by parity: a quick lane may already be at the next shuffle
  unsigned shuffles = 0;
};

class Block {
 public:
  Block(std::string kernel, dim3 size) : kernel_(std::move(kernel)), size_(size), threads(size.x * size.y * size.z) {}

  uint3 index(unsigned thread) const {
    return {thread % size_.x, thread / size_.x % size_.y, thread / (size_.x * size_.y)};
  }
  void restart() { std::fill(threads.begin(), threads.end(), Thread{}); }
  unsigned warp_of(unsigned thread) const { return thread / warp_size; }

  /// To be called when no thread is ready: lets go on who may. False when the block is finished.
  bool release() {
    unsigned barrier = 0, finished = 0;
    for (const Thread& t : threads) {
      barrier += t.state == State::at_barrier;
      finished += t.state == State::finished;
    }
    const auto n = static_cast<unsigned>(threads.size());
    if (finished == n) return false;
    if (barrier == n) {
      same_place(0, n, "barrier");
      for (Thread& t : threads) t.state = State::ready;
      return true;
    }
    bool any = false;
    for (unsigned first = 0; first < n; first += warp_size) any = release_warp(first) || any;
    if (!any) stuck(barrier, finished);
    return true;
  }

 private:
  bool release_warp(unsigned first) {
    const unsigned last = std::min(first + warp_size, static_cast<unsigned>(threads.size()));
    for (unsigned t = first; t < last; ++t)
      if (threads[t].state != State::at_warp) return false;
    if (last - first < warp_size)
      stop(kernel_ + ": a full-mask shuffle in a block whose size is no multiple of " + std::to_string(warp_size));
    same_place(first, last, "shuffle");
    for (unsigned t = first; t < last; ++t) threads[t].state = State::ready;
    return true;
  }

  void same_place(unsigned first, unsigned last, const char* what) const {
    for (unsigned t = first + 1; t < last; ++t)
      if (threads[t].at.line != threads[first].at.line || std::strcmp(threads[t].at.file, threads[first].at.file) != 0)
        stop(kernel_ + ": " + what + " not reached by all threads: some wait at line " +
             std::to_string(threads[first].at.line) + ", some at line " + std::to_string(threads[t].at.line));
  }

  [[noreturn]] void stuck(unsigned barrier, unsigned finished) const {
    const auto n = static_cast<unsigned>(threads.size());
    for (const Thread& t : threads)
      if (t.state == State::at_barrier || t.state == State::at_warp)
        stop(kernel_ + (barrier > 0 ? ": barrier" : ": shuffle") + " not reached by all threads: of " +
             std::to_string(n) + ", " + std::to_string(barrier) + " wait at __syncthreads, " +
             std::to_string(n - barrier - finished) + " at a shuffle, " + std::to_string(finished) +
             " have returned; one waits at " + t.at.file + ":" + std::to_string(t.at.line));
    stop(kernel_ + ": no thread can go on");
  }

  std::string kernel_;
  dim3 size_;

 public:
  std::vector<Thread> threads;
};

/// Carries out one block. `body` is the kernel with its arguments; it is run with threadIdx set.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void run(Block& block, uint3 at, dim3 grid, dim3 size, const std::function<void()>& body) = 0;
  /// The calling thread waits in `state` until the block lets it go on.
  virtual void wait(State state, Site at) = 0;
};

/// The block and the index of the thread that is being carried out; null outside kernels.
inline thread_local Executor* current_executor = nullptr;
inline thread_local Block* current_block = nullptr;
inline thread_local unsigned current_thread = 0;

inline void require_kernel(const char* who) {
  if (current_executor == nullptr) stop(std::string(who) + " outside a kernel");
}

}  // namespace standin
