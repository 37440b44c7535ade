#pragma once
// Device memory: pages of one reserved range of addresses, closed except while queued work is carried out. Each allocation
// ends at a closed gap, and what lies between its end and the gap is watched. Addresses are never used twice.

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stop.hpp"
#include "unwritten.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define DELTAW_STANDIN_POISON(p, n) __asan_poison_memory_region(p, n)
#define DELTAW_STANDIN_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define DELTAW_STANDIN_POISON(p, n) static_cast<void>(0)
#define DELTAW_STANDIN_UNPOISON(p, n) static_cast<void>(0)
#endif

namespace standin {

inline constexpr std::size_t page = 4096, gap = 16 * page, alignment = 256;
constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

struct Allocation {
  unsigned char* begin = nullptr;  ///< what the program was given
  std::size_t bytes = 0;
  unsigned char* pages = nullptr;
  std::size_t page_bytes = 0;
  std::uint16_t canary = 0;                            ///< what lies beside it, in every 16-bit half
  int closed_for_reading = 0, closed_for_writing = 0;  ///< pinned memory: queued copies that write, that read

  bool contains(const void* p) const { return p >= begin && p < begin + bytes; }
  unsigned char* end() const { return begin + bytes; }
};

inline std::string describe(const Allocation& a) { return "an allocation of " + count(a.bytes, "byte"); }

/// A range of addresses that belongs to one kind of memory, handed out from the bottom up.
class Range {
 public:
  explicit Range(std::size_t bytes) : bytes_(bytes) {
    void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) stop("no room for the addresses of device memory");
    base_ = next_ = static_cast<unsigned char*>(p);
  }
  bool owns(const void* p) const { return p >= base_ && p < base_ + bytes_; }
  const std::map<unsigned char*, Allocation>& live() const { return live_; }

  /// The live allocation that `p` points into, or one past the end of; null where there is none.
  Allocation* find(const void* p) {
    auto it = live_.upper_bound(static_cast<unsigned char*>(const_cast<void*>(p)));
    if (it == live_.begin()) return nullptr;
    Allocation& a = (--it)->second;
    return a.contains(p) || p == a.end() ? &a : nullptr;
  }

  Allocation* allocate(std::size_t bytes) {
    const std::size_t padded = round_up(bytes, alignment), page_bytes = round_up(padded, page);
    if (next_ + page_bytes + 2 * gap > base_ + bytes_) return nullptr;
    Allocation a;
    a.pages = next_ + gap;
    a.page_bytes = page_bytes;
    a.begin = a.pages + page_bytes - padded;
    a.bytes = bytes;
    a.canary = static_cast<std::uint16_t>(first_canary_half + made_++ % canary_halves);
    next_ += page_bytes + gap;
    if (!map_filled(a.pages, page_bytes)) return nullptr;
    for (unsigned char* p = a.pages; p < a.begin; ++p) *p = canary_byte(a, p);
    for (unsigned char* p = a.end(); p < a.begin + padded; ++p) *p = canary_byte(a, p);
    DELTAW_STANDIN_POISON(a.pages, static_cast<std::size_t>(a.begin - a.pages));
    DELTAW_STANDIN_POISON(a.end(), padded - bytes);
    return &live_.emplace(a.begin, a).first->second;
  }

  void release(Allocation& a) {
    check(a);
    DELTAW_STANDIN_UNPOISON(a.pages, a.page_bytes);
    mmap(a.pages, a.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    live_.erase(a.begin);
  }

  /// Stops if something was written beside the allocation. Its pages have to be open.
  static void check(const Allocation& a) {
    const auto front = static_cast<std::size_t>(a.begin - a.pages);
    const std::size_t back = a.page_bytes - front - a.bytes;
    DELTAW_STANDIN_UNPOISON(a.pages, front);
    DELTAW_STANDIN_UNPOISON(a.end(), back);
    const auto right = [&](const unsigned char* p) { return *p == canary_byte(a, p); };
    const auto untouched = [&](const unsigned char* p, std::size_t n) {
      return n < 2 ? n == 0 || right(p) : right(p) && right(p + 1) && std::memcmp(p, p + 2, n - 2) == 0;
    };
    for (std::size_t i = 0; i < front && !untouched(a.pages, front); ++i)
      if (!right(a.begin - 1 - i)) stop("write " + count(i + 1, "byte") + " before " + describe(a));
    for (std::size_t i = 0; i < back && !untouched(a.end(), back); ++i)
      if (!right(a.end() + i)) stop("write " + count(i, "byte") + " past the end of " + describe(a));
    DELTAW_STANDIN_POISON(a.pages, front);
    DELTAW_STANDIN_POISON(a.end(), back);
  }

  void protect_all(int protection) {
    for (auto& [begin, a] : live_) mprotect(a.pages, a.page_bytes, protection);
  }
  void check_all() const {
    for (const auto& [begin, a] : live_) check(a);
  }

 private:
  static unsigned char canary_byte(const Allocation& a, const unsigned char* p) {
    return reinterpret_cast<const unsigned char*>(&a.canary)[reinterpret_cast<std::uintptr_t>(p) % 2];
  }
  /// Opens pages full of the unwritten pattern. Large memory maps one file of it over and over, copied where it is written:
  /// most of a workspace is never touched.
  static bool map_filled(unsigned char* pages, std::size_t bytes) {
    if (bytes < pattern_bytes) {
      if (mprotect(pages, bytes, PROT_READ | PROT_WRITE) != 0) return false;
      std::memcpy(pages, pattern().data(), bytes);
      return true;
    }
    static const int file = [] {
      const int f = memfd_create("unwritten", 0);
      if (f < 0 || write(f, pattern().data(), pattern_bytes) != static_cast<ssize_t>(pattern_bytes))
        stop("no file in memory for the contents of new device memory");
      return f;
    }();
    for (std::size_t i = 0; i < bytes; i += pattern_bytes)
      if (mmap(pages + i, std::min(pattern_bytes, bytes - i), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file,
               0) == MAP_FAILED)
        return false;
    return true;
  }
  static const std::vector<unsigned char>& pattern() {
    static const auto* bytes = [] {
      auto* p = new std::vector<unsigned char>(pattern_bytes);
      for (std::size_t i = 0; i < pattern_bytes; i += 2) std::memcpy(p->data() + i, &unwritten_half, 2);
      return p;
    }();
    return *bytes;
  }
  static constexpr std::size_t pattern_bytes = std::size_t{1} << 20;

  std::size_t bytes_;
  unsigned char *base_ = nullptr, *next_ = nullptr;
  std::size_t made_ = 0;
  std::map<unsigned char*, Allocation> live_;
};

}  // namespace standin
