#pragma once
// The executor for ThreadSanitizer: one operating-system thread for each thread of a block. Slow; for small tests.

#include <atomic>
#include <mutex>
#include <thread>

#include "block.hpp"

#if defined(__SANITIZE_THREAD__)
/// The stand-in stops a program from a signal handler and with threads under way: that is no news. Races end it.
extern "C" __attribute__((used)) inline const char* __tsan_default_options() {
  return "report_signal_unsafe=0:report_thread_leaks=0:halt_on_error=1";
}
#endif

namespace standin {

class Threads : public Executor {
 public:
  void run(Block& block, uint3 at, dim3 grid, dim3 size, const std::function<void()>& body) override {
    block_ = &block;
    running_ = block.threads.size();
    gates_ = std::vector<std::atomic<unsigned>>(running_);
    const Shuffled order = Machine::get().shuffled(running_);
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < order.n; ++i)
      threads.emplace_back([&, t = static_cast<unsigned>(order(i))] {
        current_executor = this, current_block = &block, current_thread = t;
        threadIdx = block.index(t), blockIdx = at, gridDim = grid, blockDim = size;
        body();
        stop_running(State::finished, {"", 0});
      });
    for (std::thread& thread : threads) thread.join();
  }

  /// A thread that goes on takes no lock: that would order it behind those that have reached the next barrier already, and
  /// ThreadSanitizer would see no race where a barrier is missing before that one.
  void wait(State state, Site at) override {
    const std::atomic<unsigned>& gate = gates_[current_thread];
    const unsigned passed = gate.load(std::memory_order_relaxed);
    stop_running(state, at);
    gate.wait(passed, std::memory_order_acquire);
  }

 private:
  /// The last one that runs opens the gates of those that may go on.
  void stop_running(State state, Site at) {
    std::lock_guard lock(mutex_);
    Thread& self = block_->threads[current_thread];
    self.state = state, self.at = at;
    if (--running_ > 0 || !block_->release()) return;
    for (std::size_t t = 0; t < gates_.size(); ++t)
      if (block_->threads[t].state == State::ready) {
        ++running_;
        gates_[t].fetch_add(1, std::memory_order_release);
        gates_[t].notify_one();
      }
  }

  std::mutex mutex_;
  std::vector<std::atomic<unsigned>> gates_;  ///< by thread: how often it was let go on
  std::size_t running_ = 0;
  Block* block_ = nullptr;
};

}  // namespace standin
