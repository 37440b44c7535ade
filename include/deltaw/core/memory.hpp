#pragma once
// Owned memory: `Tensor` (owning, or bound to the user's bytes) and `Arena` (workspace that is rewound, and freed only when it grows).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "deltaw/core/view.hpp"

namespace deltaw {

inline constexpr std::size_t memory_alignment = 64;  ///< a cache line, and the widest CPU vector

/// How a space allocates, frees, zeroes and copies, all of which may wait; specialised for each space.
template <class Space>
struct Memory;

template <>
struct Memory<Host> {
  /// Null where there is not enough.
  static void* try_allocate(std::size_t bytes) noexcept {
    return ::operator new (bytes, std::align_val_t{memory_alignment}, std::nothrow);
  }
  static void* allocate(std::size_t bytes) {
    void* p = try_allocate(bytes);
    if (p == nullptr) raise_mismatch<MemoryError>("Memory", "bytes", bytes, "no more than the machine has free");
    return p;
  }
  static void release(void* p) noexcept { ::operator delete (p, std::align_val_t{memory_alignment}); }
  static void zero(void* p, std::size_t bytes) { std::fill_n(static_cast<unsigned char*>(p), bytes, 0); }
  static void copy(void* to, const void* from, std::size_t bytes) {
    std::copy_n(static_cast<const unsigned char*>(from), bytes, static_cast<unsigned char*>(to));
  }
  static void to_host(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }
  static void from_host(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }
};

inline std::size_t checked_bytes(std::string_view where, index_t rows, index_t cols, std::size_t element) {
  if (rows < 0) raise_mismatch<ShapeError>(where, "rows", rows, "0 or more");
  if (cols < 0) raise_mismatch<ShapeError>(where, "cols", cols, "0 or more");
  const auto limit = static_cast<std::size_t>(std::numeric_limits<index_t>::max()) / element;
  if (rows != 0 && static_cast<std::size_t>(cols) > limit / static_cast<std::size_t>(rows))
    raise<ShapeError>(where, "rows x cols: got " + std::to_string(rows) + " x " + std::to_string(cols) +
                                 ", want a size that fits in memory");
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * element;
}

/// A matrix that owns its memory (64-byte aligned, zero when new) or is bound to the user's bytes. It only ever grows:
/// `resize` to no more than the capacity allocates nothing, which is what makes a steady state free of allocation.
template <class T, class Space = Host>
class Tensor {
 public:
  using value_type = T;

  Tensor() = default;
  Tensor(index_t rows, index_t cols) { resize(rows, cols); }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    Tensor(std::move(other)).swap(*this);
    return *this;
  }
  Tensor(const Tensor& other) {
    if (other.rows_ != 0 || other.cols_ != 0) *this = other;
  }
  /// Copies the values; a bound tensor's copy owns its memory.
  Tensor& operator=(const Tensor& other) {
    if (this == &other) return *this;
    Tensor fresh(other.rows_, other.cols_);
    for (index_t i = 0; i < other.rows_; ++i)
      Memory<Space>::copy(fresh.data_ + i * fresh.cols_, other.data_ + i * other.stride_,
                          static_cast<std::size_t>(other.cols_) * sizeof(T));
    fresh.swap(*this);
    return *this;
  }
  ~Tensor() {
    if (owned_) Memory<Space>::release(data_);
  }

  /// Changes the shape; the content is then unspecified, except that memory new to the tensor is zero.
  MatrixView<T, Space> resize(index_t rows, index_t cols) {
    const std::size_t bytes = checked_bytes("Tensor.resize", rows, cols, sizeof(T));
    if (bytes > capacity_) {
      if (data_ != nullptr && !owned_)
        raise<MemoryError>("Tensor.resize",
                           "bound memory: got " + std::to_string(capacity_) + " bytes, want " + std::to_string(bytes));
      T* fresh = static_cast<T*>(Memory<Space>::allocate(bytes));
      Memory<Space>::zero(fresh, bytes);
      if (owned_) Memory<Space>::release(data_);
      data_ = fresh;
      capacity_ = bytes;
      owned_ = true;
    }
    rows_ = rows;
    cols_ = stride_ = cols;
    return view();
  }
  /// Uses the caller's memory from here on; the caller keeps it alive. What was owned before is freed.
  void bind(MatrixView<T, Space> memory) {
    Tensor fresh;
    fresh.data_ = memory.data;
    fresh.rows_ = memory.rows;
    fresh.cols_ = memory.cols;
    fresh.stride_ = memory.stride;
    fresh.capacity_ = memory.contiguous() ? static_cast<std::size_t>(memory.size()) * sizeof(T) : 0;
    fresh.swap(*this);
  }

  MatrixView<T, Space> view() { return {data_, rows_, cols_, stride_}; }
  ConstMatrixView<T, Space> view() const { return {data_, rows_, cols_, stride_}; }
  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  index_t size() const { return rows_ * cols_; }
  bool empty() const { return rows_ == 0 || cols_ == 0; }
  bool owns() const { return owned_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * sizeof(T); }

  void swap(Tensor& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(stride_, other.stride_);
    std::swap(capacity_, other.capacity_);
    std::swap(owned_, other.owned_);
  }

 private:
  T* data_ = nullptr;
  index_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::size_t capacity_ = 0;
  bool owned_ = false;
};

/// Bump allocator for temporaries. Blocks of its own are kept for reuse: after the first step it allocates nothing. Over
/// memory of the caller it never allocates and throws MemoryError, with the bytes needed, when that is too small.
template <class Space = Host>
class Arena {
 public:
  Arena() = default;
  Arena(void* memory, std::size_t bytes) : data_(static_cast<std::byte*>(memory)), capacity_(bytes), borrowed_(true) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    const std::size_t skip = (memory_alignment - address % memory_alignment) % memory_alignment;
    data_ += std::min(skip, bytes);
    capacity_ -= std::min(skip, bytes);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    if (!borrowed_ && data_ != nullptr) Memory<Space>::release(data_);
    release_overflow();
  }

  /// Everything taken since the mark is given back when the mark dies.
  class Mark {
   public:
    explicit Mark(Arena& arena) : arena_(arena), used_(arena.used_) { arena_.begin(); }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;
    ~Mark() { arena_.end(used_); }

   private:
    Arena& arena_;
    std::size_t used_;
  };

  /// Uninitialised memory, 64-byte aligned, until the innermost open mark dies.
  template <class T>
  MatrixView<T, Space> take(index_t rows, index_t cols) {
    if (depth_ == 0) raise<MemoryError>("Arena.take", "mark: got none, want an open Arena::Mark, which gives it back");
    const std::size_t bytes = checked_bytes("Arena.take", rows, cols, sizeof(T));
    return {static_cast<T*>(take_bytes(bytes)), rows, cols, cols};
  }

  /// Makes room for `bytes` at once, before steady state or a graph capture.
  void reserve(std::size_t bytes) {
    if (bytes <= capacity_) return;
    if (borrowed_ || depth_ != 0)
      raise<MemoryError>("Arena.reserve",
                         "workspace: got " + std::to_string(capacity_) + " bytes, want " + std::to_string(bytes));
    grow(bytes);
  }

  std::size_t capacity() const { return capacity_; }
  std::size_t high_water() const { return high_water_; }  ///< most bytes in use at one time, so far

 private:
  struct Overflow {
    Overflow* next;
    std::byte* block;
  };

  // A block that does not fit lives on its own until the outermost mark ends, so that views already handed out never
  // move; that end then makes one block that holds all, so the very next step allocates nothing.
  void* take_bytes(std::size_t bytes) {
    const std::size_t rounded = (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
    const std::size_t first = used_;
    if (borrowed_ && first + rounded > capacity_)
      raise<MemoryError>("Arena.take", "workspace: got " + std::to_string(capacity_) + " bytes, want at least " +
                                           std::to_string(first + rounded));
    used_ += rounded;
    high_water_ = std::max(high_water_, used_);
    if (used_ <= capacity_) return data_ + first;
    auto* block = static_cast<std::byte*>(Memory<Space>::allocate(rounded));
    overflow_ = new Overflow{overflow_, block};
    return block;
  }
  void begin() {
    if (depth_ == 0 && !borrowed_ && high_water_ > capacity_) grow(high_water_);  // may throw: before it counts
    ++depth_;
  }
  void end(std::size_t used) {
    used_ = used;
    if (--depth_ > 0) return;
    release_overflow();
    if (borrowed_ || high_water_ <= capacity_) return;
    if (void* fresh = Memory<Space>::try_allocate(high_water_)) adopt(fresh, high_water_);  // else `begin` tries again
  }
  void grow(std::size_t bytes) { adopt(Memory<Space>::allocate(bytes), bytes); }
  void adopt(void* memory, std::size_t bytes) {
    auto* fresh = static_cast<std::byte*>(memory);
    if (data_ != nullptr) Memory<Space>::release(data_);
    data_ = fresh;
    capacity_ = bytes;
  }
  void release_overflow() {
    while (overflow_ != nullptr) {
      Memory<Space>::release(overflow_->block);
      delete std::exchange(overflow_, overflow_->next);
    }
  }

  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0, used_ = 0, high_water_ = 0;
  int depth_ = 0;
  bool borrowed_ = false;
  Overflow* overflow_ = nullptr;
};

}  // namespace deltaw
