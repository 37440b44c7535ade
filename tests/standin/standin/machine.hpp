#pragma once
// The one device, its memories, and the handler that explains a touch of closed pages.

#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "memory.hpp"

namespace standin {

/// A walk over [0, n) in a shuffled order: i -> (step * i + start) mod n with step and n coprime, step small.
struct Shuffled {
  std::uint64_t n, step, start;
  std::uint64_t operator()(std::uint64_t i) const { return (step * i + start) % n; }
};

class Machine {
 public:
  /// Never destroyed: static objects of the program may free memory after main.
  static Machine& get() {
    static Machine* machine = new Machine;
    return *machine;
  }

  Range device{std::size_t{1} << 38};  // never given out twice, so that what was freed stays closed
  Range pinned{std::size_t{1} << 33};
  std::recursive_mutex mutex;

  /// What is being carried out, for messages: empty outside kernels and library calls.
  const char* running = "";

  /// Device memory is open while one of these lives.
  class Open {
   public:
    Open() {
      Machine& m = get();
      if (m.open_++ == 0) m.device.protect_all(PROT_READ | PROT_WRITE);
    }
    ~Open() {
      Machine& m = get();
      if (--m.open_ > 0) return;
      m.device.check_all();
      m.device.protect_all(PROT_NONE);
    }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
  };
  bool is_open() const { return open_ > 0; }

  void protect_pinned(const Allocation& a) const {
    mprotect(a.pages, a.page_bytes,
             a.closed_for_reading > 0   ? PROT_NONE
             : a.closed_for_writing > 0 ? PROT_READ
                                        : PROT_READ | PROT_WRITE);
  }

  /// The live allocation of device memory in which all of [p, p + bytes) lies; stops where there is none.
  Allocation& device_range(const void* p, std::size_t bytes, const std::string& who) {
    if (!device.owns(p)) stop("host pointer passed to " + who);
    Allocation* a = device.find(p);
    if (a == nullptr) stop("pointer to freed or never allocated device memory passed to " + who);
    const auto offset = static_cast<std::size_t>(static_cast<const unsigned char*>(p) - a->begin);
    if (offset + bytes > a->bytes)
      stop(who + " reaches " + count(offset + bytes - a->bytes, "byte") + " past the end of " + describe(*a));
    return *a;
  }

  /// Puts the handler in place, again where something else has put its own: Catch does, around each test.
  void watch() {
    struct sigaction action = {}, before = {};
    action.sa_sigaction = &explain;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
    if ((before.sa_flags & SA_SIGINFO) == 0 || before.sa_sigaction != &explain) previous_ = before;
  }

  Shuffled shuffled(std::uint64_t n) {
    const auto draw = [&] {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      return state_ >> 33;
    };
    std::uint64_t step = draw() % std::min<std::uint64_t>(n, 65536) | 1u;
    while (gcd(step, n) != 1) step += 2;
    return {n, step, draw() % n};
  }

 private:
  Machine() {
    if (const char* seed = std::getenv("DELTAW_STANDIN_SEED")) state_ += std::strtoull(seed, nullptr, 10);
  }
  static std::uint64_t gcd(std::uint64_t a, std::uint64_t b) { return b == 0 ? a : gcd(b, a % b); }

  static void explain(int signal, siginfo_t* info, void* context) {
    Machine& m = get();
    const void* p = info->si_addr;
    if (m.pinned.owns(p)) stop("host code touched pinned memory that a queued copy still uses: synchronise first");
    if (m.device.owns(p) && m.open_ == 0) stop("host code touched device memory");
    if (m.device.owns(p)) {
      std::string text = std::string(m.running) + " touched memory out of bounds";
      for (const auto& [begin, a] : m.device.live()) {
        const auto* q = static_cast<const unsigned char*>(p);
        if (q >= a.pages - gap && q < a.pages)
          text += ", " + count(static_cast<std::size_t>(a.begin - q), "byte") + " before " + describe(a);
        if (q >= a.end() && q < a.pages + a.page_bytes + gap)
          text += ", " + count(static_cast<std::size_t>(q - a.end()), "byte") + " past the end of " + describe(a);
      }
      stop(text);
    }
    if ((m.previous_.sa_flags & SA_SIGINFO) != 0 && m.previous_.sa_sigaction != nullptr)
      return m.previous_.sa_sigaction(signal, info, context);
    sigaction(SIGSEGV, &m.previous_, nullptr);  // the access is made again and ends the program
  }

  int open_ = 0;
  std::uint64_t state_ = 1;
  struct sigaction previous_ = {};
};

}  // namespace standin
