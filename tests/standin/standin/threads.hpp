#pragma once
// The executor for ThreadSanitizer: one operating-system thread for each thread of a block. Slow; for small tests.

#include <condition_variable>
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
    const Shuffled order = Machine::get().shuffled(running_);
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < order.n; ++i)
      threads.emplace_back([&, t = static_cast<unsigned>(order(i))] {
        current_executor = this, current_block = &block, current_thread = t;
        threadIdx = block.index(t), blockIdx = at, gridDim = grid, blockDim = size;
        body();
        std::unique_lock lock(mutex_);
        block.threads[t].state = State::finished;
        stopped_running();
      });
    for (std::thread& thread : threads) thread.join();
  }

  void wait(State state, Site at) override {
    std::unique_lock lock(mutex_);
    Thread& t = block_->threads[current_thread];
    t.state = state, t.at = at;
    stopped_running();
    changed_.wait(lock, [&] { return t.state == State::ready; });
  }

 private:
  void stopped_running() {
    if (--running_ > 0 || !block_->release()) return;
    for (const Thread& t : block_->threads) running_ += t.state == State::ready;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t running_ = 0;
  Block* block_ = nullptr;
};

}  // namespace standin
