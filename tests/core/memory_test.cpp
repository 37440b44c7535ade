#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"
#include "message.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;
using dw::index_t;

namespace {

long allocations = 0;  // of aligned memory, which is what tensors and arenas ask for

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % dw::memory_alignment == 0; }

template <class View>
bool all_zero(const View& v) {
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j)
      if (static_cast<float>(v(i, j)) != 0) return false;
  return true;
}

}  // namespace

void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  if (bytes > std::size_t{1} << 40) return nullptr;  // more than a machine has; a sanitizer would stop the program
  ++allocations;
  const auto step = static_cast<std::size_t>(alignment);
  return std::aligned_alloc(step, (bytes + step - 1) / step * step);
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }

TEST_CASE("a tensor owns aligned memory, zero when new") {
  for (const index_t cols : {1, 3, 16, 17, 1000}) {
    dw::Tensor<float> tensor(7, cols);
    CHECK(aligned(tensor.view().data));
    CHECK(all_zero(tensor.view()));
    CHECK(tensor.view().stride == cols);
    CHECK(tensor.size() == 7 * cols);
    CHECK(tensor.bytes() == static_cast<std::size_t>(7 * cols) * sizeof(float));
    CHECK(tensor.owns());
  }
  CHECK(all_zero(dw::Tensor<dw::bf16>(3, 5).view()));
  CHECK(dw::Tensor<float>().empty());
  CHECK(dw::Tensor<float>(0, 5).cols() == 5);
}

TEST_CASE("a tensor that has been large enough once allocates no more") {
  dw::Tensor<float> tensor(8, 16);
  const float* data = tensor.view().data;
  const long before = allocations;
  tensor.resize(4, 4);
  CHECK(tensor.view().stride == 4);
  tensor.resize(16, 8);
  CHECK(tensor.view().data == data);
  CHECK(allocations == before);

  tensor.resize(16, 9);
  CHECK(allocations == before + 1);
  CHECK(all_zero(tensor.view()));
  CHECK(aligned(tensor.view().data));
}

TEST_CASE("a tensor of impossible size is refused before anything changes") {
  dw::Tensor<double> tensor(2, 3);
  tensor.view()(1, 2) = 5;
  CHECK(message_of<dw::ShapeError>([&] { tensor.resize(-1, 3); }) == "Tensor.resize: rows: got -1, want 0 or more");
  CHECK(message_of<dw::ShapeError>([&] { tensor.resize(3, -2); }) == "Tensor.resize: cols: got -2, want 0 or more");
  CHECK(message_of<dw::ShapeError>([&] { tensor.resize(index_t{1} << 40, index_t{1} << 40); }) ==
        "Tensor.resize: rows x cols: got 1099511627776 x 1099511627776, want a size that fits in memory");
  CHECK(message_of<dw::MemoryError>([&] { tensor.resize(index_t{1} << 30, index_t{1} << 29); }) ==
        "Memory: bytes: got 4611686018427387904, want no more than the machine has free");
  CHECK(tensor.rows() == 2);
  CHECK(tensor.view()(1, 2) == 5);
}

TEST_CASE("a bound tensor uses the caller's memory") {
  std::vector<float> memory(40, 3);
  dw::Tensor<float> tensor(2, 2);
  tensor.bind({memory.data(), 4, 5});
  CHECK_FALSE(tensor.owns());
  CHECK(tensor.view().data == memory.data());
  tensor.view()(3, 4) = 8;
  CHECK(memory[19] == 8);

  SECTION("it resizes within that memory and never beyond") {
    tensor.resize(2, 10);
    CHECK(tensor.view().data == memory.data());
    CHECK(message_of<dw::MemoryError>([&] { tensor.resize(3, 10); }) ==
          "Tensor.resize: bound memory: got 80 bytes, want 120");
    CHECK(tensor.rows() == 2);
  }
  SECTION("with a stride it keeps the stride, and cannot be resized") {
    tensor.bind({memory.data(), 4, 5, 10});
    CHECK(tensor.view().stride == 10);
    CHECK(message_of<dw::MemoryError>([&] { tensor.resize(4, 5); }) ==
          "Tensor.resize: bound memory: got 0 bytes, want 80");
  }
  SECTION("what it owned before is freed, and binding to nothing makes it an owner again") {
    tensor.bind({});
    CHECK(tensor.empty());
    tensor.resize(3, 3);
    CHECK(tensor.owns());
  }
}

TEST_CASE("copies own their values, moves hand them on") {
  std::vector<float> memory(40);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  dw::Tensor<float> bound;
  bound.bind({memory.data() + 1, 3, 4, 10});

  SECTION("a copy of a bound, strided tensor is whole and its own") {
    const dw::Tensor<float> copy = bound;
    CHECK(copy.owns());
    CHECK(copy.view().stride == 4);
    CHECK(copy.view()(2, 3) == memory[24]);
    memory[24] = -1;
    CHECK(copy.view()(2, 3) == 24);
  }
  SECTION("a copy assigned over another one") {
    dw::Tensor<float> other(50, 50);
    other = bound;
    CHECK(other.rows() == 3);
    CHECK(other.view()(1, 0) == memory[11]);
    auto& same = other;
    other = same;
    CHECK(other.view()(1, 0) == memory[11]);
  }
  SECTION("a move leaves an empty tensor behind") {
    dw::Tensor<float> first(2, 3);
    first.view()(1, 1) = 7;
    const float* data = first.view().data;
    dw::Tensor<float> second = std::move(first);
    CHECK(second.view().data == data);
    CHECK(first.empty());  // NOLINT(bugprone-use-after-move): that it is empty is the point
    dw::Tensor<float> third(9, 9);
    third = std::move(second);
    CHECK(third.view()(1, 1) == 7);
    CHECK(third.rows() == 2);
    second.resize(1, 1);
    CHECK(all_zero(second.view()));
  }
  SECTION("an empty tensor copies without memory, and keeps its shape") {
    const dw::Tensor<float> empty(0, 4);
    const dw::Tensor<float> copy = empty;
    CHECK(copy.cols() == 4);
  }
}

TEST_CASE("an arena hands out aligned, separate memory and takes it back at the mark's end") {
  dw::Arena<> arena;
  const float* first_data = nullptr;
  for (int round = 0; round < 3; ++round) {
    dw::Arena<>::Mark outer(arena);
    const auto a = arena.take<float>(3, 5);
    const auto b = arena.take<double>(2, 7);
    CHECK(aligned(a.data));
    CHECK(aligned(b.data));
    CHECK_FALSE(dw::overlap(a, b));
    const double* inner_data = nullptr;
    {
      dw::Arena<>::Mark inner(arena);
      inner_data = arena.take<double>(4, 4).data;
    }
    {
      dw::Arena<>::Mark inner(arena);
      const auto again = arena.take<double>(4, 4);
      if (round > 0) CHECK(again.data == inner_data);
      CHECK_FALSE(dw::overlap(again, b));
    }
    if (round > 1) CHECK(a.data == first_data);
    first_data = a.data;
  }
  CHECK(arena.high_water() == 64 + 128 + 128);
}

TEST_CASE("an arena never moves what it has handed out; it grows as the outermost mark ends") {
  dw::Arena<> arena;
  {
    dw::Arena<>::Mark mark(arena);
    auto small = arena.take<float>(1, 16);
    small(0, 3) = 42;
    dw::Arena<>::Mark inner(arena);
    auto large = arena.take<float>(100, 100);
    large(99, 99) = 1;
    CHECK(small(0, 3) == 42);
    CHECK(arena.capacity() == 0);
  }
  CHECK(arena.capacity() == arena.high_water());
  CHECK(arena.capacity() == 64 + 40000);
}

TEST_CASE("an arena allocates nothing after the first round") {
  dw::Arena<> arena;
  const auto round = [&] {
    dw::Arena<>::Mark outer(arena);
    arena.take<float>(17, 3);
    for (index_t i = 1; i < 5; ++i) {
      dw::Arena<>::Mark inner(arena);
      arena.take<double>(i, 33);
      arena.take<dw::f16>(5, 5);
    }
  };
  round();
  round();  // here the pieces of the first round become one block
  const long before = allocations;
  for (int i = 0; i < 10; ++i) round();
  CHECK(allocations == before);
}

TEST_CASE("reserve makes room at once") {
  dw::Arena<> arena;
  arena.reserve(1000);
  CHECK(arena.capacity() == 1000);
  const long before = allocations;
  {
    dw::Arena<>::Mark mark(arena);
    arena.take<float>(10, 20);
    CHECK(message_of<dw::MemoryError>([&] { arena.reserve(2000); }) ==
          "Arena.reserve: workspace: got 1000 bytes, want 2000");
  }
  CHECK(allocations == before);
  arena.reserve(10);
  CHECK(arena.capacity() == 1000);
}

TEST_CASE("an arena over the caller's memory never allocates, and says how much it needs") {
  std::array<std::byte, 1000> memory;
  std::byte* begin = memory.data();
  while (!aligned(begin)) ++begin;
  const long before = allocations;

  dw::Arena<> arena(begin, 512);
  {
    dw::Arena<>::Mark mark(arena);
    const auto a = arena.take<float>(1, 64);
    CHECK(static_cast<void*>(a.data) == begin);
    CHECK(message_of<dw::MemoryError>([&] { arena.take<float>(1, 65); }) ==
          "Arena.take: workspace: got 512 bytes, want at least 576");
    CHECK(arena.take<float>(1, 64).data == a.data + 64);
  }
  CHECK(message_of<dw::MemoryError>([&] { arena.reserve(513); }) ==
        "Arena.reserve: workspace: got 512 bytes, want 513");

  dw::Arena<> crooked(begin + 1, 512);  // the first 63 bytes only align it
  CHECK(crooked.capacity() == 449);
  {
    dw::Arena<>::Mark mark(crooked);
    CHECK(aligned(crooked.take<float>(1, 1).data));
  }
  dw::Arena<> tiny(begin + 1, 5);
  CHECK(tiny.capacity() == 0);
  CHECK(allocations == before);
}

TEST_CASE("memory is taken from an arena under a mark only, with a possible size") {
  dw::Arena<> arena;
  CHECK(message_of<dw::MemoryError>([&] { arena.take<float>(1, 1); }) ==
        "Arena.take: mark: got none, want an open Arena::Mark, which gives it back");
  dw::Arena<>::Mark mark(arena);
  CHECK(message_of<dw::ShapeError>([&] { arena.take<float>(-3, 1); }) == "Arena.take: rows: got -3, want 0 or more");
  CHECK(arena.take<float>(0, 5).empty());
  CHECK(arena.high_water() == 0);
}
