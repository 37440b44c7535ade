#pragma once
// Counts what `operator new` hands out in this program: bytes alive now, and the most since `heap.mark()`. It replaces the
// global operators, so exactly one source of a program includes it. A BLAS's packing buffers are not among them.

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace deltaw_bench {

struct Heap {
  std::size_t live = 0, most = 0;
  void mark() { most = live; }
};
inline Heap heap;

namespace detail {

// A block is preceded by its size; the gap keeps the alignment asked for.
inline void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  const std::size_t gap = std::max(alignment, alignof(std::max_align_t));
  const std::size_t total = (bytes + gap + gap - 1) / gap * gap;
  auto* block = static_cast<std::byte*>(std::aligned_alloc(gap, total));
  if (block == nullptr) return nullptr;
  ::new (block) std::size_t(bytes);
  heap.live += bytes;
  heap.most = std::max(heap.most, heap.live);
  return block + gap;
}
inline void release(void* p, std::size_t alignment) noexcept {
  if (p == nullptr) return;
  auto* block = static_cast<std::byte*>(p) - std::max(alignment, alignof(std::max_align_t));
  heap.live -= *reinterpret_cast<std::size_t*>(block);
  std::free(block);
}
inline void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* p = allocate(bytes, alignment)) return p;
  throw std::bad_alloc();
}

}  // namespace detail
}  // namespace deltaw_bench

void* operator new(std::size_t n) { return deltaw_bench::detail::allocate_or_throw(n, 1); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return deltaw_bench::detail::allocate(n, 1); }
void* operator new(std::size_t n, std::align_val_t a) {
  return deltaw_bench::detail::allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return deltaw_bench::detail::allocate(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { deltaw_bench::detail::release(p, 1); }
void operator delete(void* p, std::size_t) noexcept { deltaw_bench::detail::release(p, 1); }
void operator delete(void* p, std::align_val_t a) noexcept {
  deltaw_bench::detail::release(p, static_cast<std::size_t>(a));
}
void operator delete(void* p, std::size_t, std::align_val_t a) noexcept {
  deltaw_bench::detail::release(p, static_cast<std::size_t>(a));
}
