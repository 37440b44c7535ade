#pragma once
// cudaLaunchKernelEx: checks what a launch can be checked for, and queues it.

#include <sys/mman.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "errors.hpp"
#include "stream.hpp"
#include "symbols.hpp"

#if defined(__SANITIZE_THREAD__) && !defined(DELTAW_STANDIN_THREADS)
#define DELTAW_STANDIN_THREADS
#endif
#if defined(DELTAW_STANDIN_THREADS)
#include "threads.hpp"
#else
#include "fibers.hpp"
#endif

namespace standin {

inline Executor& executor() {
#if defined(DELTAW_STANDIN_THREADS)
  static Executor* e = new Threads;
#else
  static Executor* e = new Fibers;
#endif
  return *e;
}

/// Whether `p` is an address that this program has mapped, where Linux puts what it maps: neither a number nor a null.
inline bool is_mapped(std::uintptr_t p) {
  if (p < 0x550000000000u || p >= 0x800000000000u) return false;
  unsigned char resident;
  return mincore(reinterpret_cast<void*>(p / page * page), 1, &resident) == 0;
}

/// Notes a pointer among the arguments of a launch, and refuses one that a kernel cannot follow.
inline void note_pointer(const void* p, const std::string& kernel, std::vector<Touched>& touched) {
  Machine& m = Machine::get();
  if (m.pinned.owns(p)) return;
  if (!m.device.owns(p)) stop("host pointer passed to kernel " + kernel);
  if (m.device.find(p) == nullptr) stop("pointer to freed or never allocated device memory passed to kernel " + kernel);
  touched.push_back({static_cast<const unsigned char*>(p), 1});
}

/// A pointer is checked as such. In a structure, every aligned word that is a mapped address is taken for a pointer.
template <class T>
void note_argument(const T& argument, const std::string& kernel, std::vector<Touched>& touched) {
  static_assert(std::is_trivially_copyable_v<T>, "a kernel argument is copied bit by bit");
  if constexpr (std::is_pointer_v<T>) {
    static_assert(!std::is_function_v<std::remove_pointer_t<T>>, "a kernel cannot call a host function");
    if (argument != nullptr) note_pointer(argument, kernel, touched);
  } else if constexpr (!std::is_arithmetic_v<T>) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&argument);
    for (std::size_t i = 0; i + sizeof(std::uintptr_t) <= sizeof(T); i += sizeof(std::uintptr_t)) {
      std::uintptr_t word;
      std::memcpy(&word, bytes + i, sizeof word);
      if (is_mapped(word)) note_pointer(reinterpret_cast<const void*>(word), kernel, touched);
    }
  }
}

inline bool legal(const cudaLaunchConfig_t& c) {
  const auto threads = static_cast<std::uint64_t>(c.blockDim.x) * c.blockDim.y * c.blockDim.z;
  return threads >= 1 && threads <= 1024 && c.blockDim.z <= 64 && c.gridDim.x >= 1 && c.gridDim.x <= 0x7fffffffu &&
         c.gridDim.y >= 1 && c.gridDim.y <= 65535 && c.gridDim.z >= 1 && c.gridDim.z <= 65535;
}

/// The bytes of a kernel's parameters, each at a multiple of its own alignment, and how many a launch takes.
template <class... Params>
constexpr std::size_t parameter_bytes() {
  std::size_t bytes = 0;
  ((bytes = round_up(bytes, alignof(Params)) + sizeof(Params)), ...);
  return bytes;
}
inline constexpr std::size_t most_parameter_bytes = 32764;  // CUDA 12.1 and later; 4,096 before

/// New shared memory holds nothing: each block begins with it full of NaN.
__attribute__((no_sanitize("address", "thread"))) inline void spoil_shared(const Kernel& kernel) {
  const std::uint16_t half = unwritten_half;
  for (const SharedVariable& v : kernel.shared)
    for (std::size_t i = 0; i < v.bytes; ++i)
      static_cast<volatile unsigned char*>(v.begin)[i] = reinterpret_cast<const unsigned char*>(&half)[i % 2];
}

inline void run_grid(const Kernel& kernel, dim3 grid, dim3 size, const std::function<void()>& body) {
  Block block(kernel.name, size);
  const std::uint64_t blocks = static_cast<std::uint64_t>(grid.x) * grid.y * grid.z;
  const Shuffled order = Machine::get().shuffled(blocks);
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = order(i);
    const std::uint64_t row = b / grid.x;
    block.restart();
    spoil_shared(kernel);
    executor().run(
        block,
        {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(row % grid.y), static_cast<unsigned>(row / grid.y)},
        grid, size, body);
  }
}

}  // namespace standin

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  std::lock_guard lock(standin::Machine::get().mutex);
  const standin::Kernel& symbol = standin::Symbols::get().kernel(reinterpret_cast<const void*>(kernel));
  if (!standin::legal(*config)) return standin::fail(cudaErrorInvalidConfiguration);
  if (standin::parameter_bytes<Params...>() > standin::most_parameter_bytes)
    return standin::fail(cudaErrorInvalidValue);
  if (symbol.shared_bytes > std::size_t{48} << 10)
    standin::stop(symbol.name + " has " + standin::count(symbol.shared_bytes, "byte") +
                  " of shared memory, more than 48 KiB");
  if (config->dynamicSmemBytes != 0) standin::stop(symbol.name + ": dynamic shared memory is not in the subset");
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id != cudaLaunchAttributeIgnore)
      standin::stop(symbol.name + ": launch attributes are not in the subset");
  CUstream_st* stream = standin::Streams::get().find(config->stream, "cudaLaunchKernelEx");

  std::tuple<std::decay_t<Params>...> arguments(std::forward<Args>(args)...);
  standin::Work work;
  work.name = "kernel " + symbol.name;
  std::apply([&](const auto&... a) { (standin::note_argument(a, symbol.name, work.touched), ...); }, arguments);
  // Every thread gets its own copy of the arguments, as on the device.
  work.run = [&symbol, kernel, arguments, grid = config->gridDim, size = config->blockDim] {
    standin::run_grid(symbol, grid, size, [&] { std::apply(kernel, arguments); });
  };
  standin::Streams::get().enqueue(stream, std::move(work));
  return cudaSuccess;
}
