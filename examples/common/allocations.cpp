#include "common/allocations.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<std::size_t> in_use{0}, peak{0};

// Before each block lie its size and how far it is from what malloc gave.
struct Note {
  std::size_t size, offset;
};

void* take(std::size_t size, std::size_t alignment) noexcept {
  const std::size_t offset = std::max(alignment, alignof(std::max_align_t));
  static_assert(sizeof(Note) <= alignof(std::max_align_t));
  const std::size_t whole = (size + offset + offset - 1) / offset * offset;
  if (whole < size) return nullptr;
  void* raw = std::aligned_alloc(offset, whole);
  if (raw == nullptr) return nullptr;
  const Note note{size, offset};
  char* block = static_cast<char*>(raw) + offset;
  std::memcpy(block - sizeof note, &note, sizeof note);
  const std::size_t now = in_use += size;
  for (std::size_t seen = peak; seen < now && !peak.compare_exchange_weak(seen, now);) {}
  return block;
}

void* take_or_throw(std::size_t size, std::size_t alignment) {
  void* block = take(size, alignment);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void give(void* block) noexcept {
  if (block == nullptr) return;
  Note note;
  std::memcpy(&note, static_cast<char*>(block) - sizeof note, sizeof note);
  in_use -= note.size;
  std::free(static_cast<char*>(block) - note.offset);
}

std::size_t value(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

namespace examples {

std::size_t allocated_bytes() { return in_use; }
std::size_t peak_allocated_bytes() { return peak; }
void reset_peak() { peak = in_use.load(); }

}  // namespace examples

void* operator new(std::size_t size) { return take_or_throw(size, 1); }
void* operator new[](std::size_t size) { return take_or_throw(size, 1); }
void* operator new(std::size_t size, std::align_val_t a) { return take_or_throw(size, value(a)); }
void* operator new[](std::size_t size, std::align_val_t a) { return take_or_throw(size, value(a)); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return take(size, 1); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return take(size, 1); }
void* operator new(std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return take(size, value(a));
}
void* operator new[](std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return take(size, value(a));
}
void operator delete(void* block) noexcept { give(block); }
void operator delete[](void* block) noexcept { give(block); }
void operator delete(void* block, std::size_t) noexcept { give(block); }
void operator delete[](void* block, std::size_t) noexcept { give(block); }
void operator delete(void* block, std::align_val_t) noexcept { give(block); }
void operator delete[](void* block, std::align_val_t) noexcept { give(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { give(block); }
void operator delete[](void* block, std::size_t, std::align_val_t) noexcept { give(block); }
