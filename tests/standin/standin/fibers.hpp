#pragma once
// The default executor: all threads of a block on one operating-system thread. A thread runs until it waits, so a kernel
// without barriers is a plain loop; each thread that waits keeps a stack of its own.

#include <memory>

#include "block.hpp"
#include "context.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace standin {

class Fibers : public Executor {
 public:
  void run(Block& block, uint3 at, dim3 grid, dim3 size, const std::function<void()>& body) override {
    block_ = &block;
    body_ = &body;
    current_executor = this;
    current_block = &block;
    blockIdx = at, gridDim = grid, blockDim = size;
    order_ = Machine::get().shuffled(block.threads.size());
    next_ = 0;
    fiber_of_.assign(block.threads.size(), nullptr);
    do {
      while (next_ < order_.n) resume(take_idle());
      for (std::uint64_t i = 0; i < order_.n; ++i) {
        const auto t = static_cast<unsigned>(order_(i));
        if (fiber_of_[t] != nullptr && block.threads[t].state == State::ready) resume(fiber_of_[t]);
      }
    } while (block.release());
    current_executor = nullptr;
    current_block = nullptr;
  }

  void wait(State state, Site at) override {
    const unsigned self = current_thread;
    Thread& t = block_->threads[self];
    t.state = state, t.at = at;
    Fiber* fiber = running_;
    fiber_of_[self] = fiber;
    leave(fiber);
    fiber_of_[self] = nullptr;
    enter(self);
  }

 private:
  struct Fiber {
    Context context;
    void* stack = nullptr;
    void* fake_stack = nullptr;
  };
  static constexpr std::size_t stack_bytes = std::size_t{1} << 18;

  Fiber* take_idle() {
    if (idle_.empty()) idle_.push_back(make());
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  Fiber* make() {
    all_.push_back(std::make_unique<Fiber>());
    Fiber* fiber = all_.back().get();
    fiber->stack =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->stack == MAP_FAILED) stop("no memory for the stacks of a block");
    mprotect(fiber->stack, page, PROT_NONE);
    fiber->context.begin_at(&start, fiber->stack, stack_bytes);
    return fiber;
  }

  /// A fiber's life: it carries out threads that have not begun, one after another, and sleeps between blocks.
  static void start() {
    Fibers& owner = *static_cast<Fibers*>(current_executor);
    Fiber* fiber = owner.running_;
    owner.entered(fiber);
    for (;;) {
      while (owner.next_ < owner.order_.n) {
        const auto t = static_cast<unsigned>(owner.order_(owner.next_++));
        owner.enter(t);
        (*owner.body_)();
        owner.block_->threads[current_thread].state = State::finished;
      }
      owner.idle_.push_back(fiber);
      owner.leave(fiber);
    }
  }
  void enter(unsigned thread) {
    current_thread = thread;
    threadIdx = block_->index(thread);
  }

  void resume(Fiber* fiber) {
    running_ = fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber->stack, stack_bytes);
    Context::go(scheduler_, fiber->context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    Context::go(scheduler_, fiber->context);
#endif
  }
  void leave(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber->fake_stack, scheduler_stack_, scheduler_bytes_);
#endif
    Context::go(fiber->context, scheduler_);
    entered(fiber);
  }
  void entered([[maybe_unused]] Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

  Context scheduler_;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] std::size_t scheduler_bytes_ = 0;
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> idle_, fiber_of_;
  Fiber* running_ = nullptr;
  Block* block_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Shuffled order_{};
  std::uint64_t next_ = 0;
};

}  // namespace standin
