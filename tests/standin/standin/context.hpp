#pragma once
// A place to go on at: a stack and what has to be kept with it. On x86-64 a switch is a few instructions; swapcontext makes
// a system call each time, but it is what the sanitizers know, and what other processors have.

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DELTAW_STANDIN_OWN_SWITCH 1
#else
#define DELTAW_STANDIN_OWN_SWITCH 0
#include <ucontext.h>
#endif

namespace standin {

#if DELTAW_STANDIN_OWN_SWITCH

/// Keeps the registers that a call preserves on the old stack, and takes them from the new one.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*old_top*/, void* /*new_top*/) {
  __asm__(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

class Context {
 public:
  void begin_at(void (*start)(), void* stack, std::size_t bytes) {
    auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<unsigned char*>(stack) + bytes) - 2;
    *top = reinterpret_cast<std::uintptr_t>(start);
    top_ = top - 6;  // six registers, whose values do not matter
  }
  static void go(Context& from, Context& to) { switch_stacks(&from.top_, to.top_); }

 private:
  void* top_ = nullptr;
};

#else

class Context {
 public:
  void begin_at(void (*start)(), void* stack, std::size_t bytes) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, start, 0);
  }
  static void go(Context& from, Context& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace standin
