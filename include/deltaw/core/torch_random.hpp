#pragma once
// Random numbers as PyTorch's CPU generator draws them, for bases that a checkpoint leaves out and names by a seed only.
// The generator is MT19937 (Matsumoto and Nishimura, "Mersenne Twister", 1998): one draw follows another, so such numbers
// are made on the host and stored, unlike ours of core/random.hpp, which have addresses.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "deltaw/core/memory.hpp"

namespace deltaw {

/// torch.Generator("cpu").manual_seed(seed).
class TorchRandom {
 public:
  explicit TorchRandom(std::uint64_t seed) {
    state_[0] = static_cast<std::uint32_t>(seed);
    for (std::uint32_t i = 1; i < size; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  }

  /// The next 32 bits, those of std::mt19937.
  std::uint32_t bits() {
    if (next_ == size) refill();
    std::uint32_t y = state_[next_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }
  /// torch.rand in float32: the low 24 bits times 2^-24.
  float uniform01() { return static_cast<float>(bits() & 0xffffffu) * 0x1p-24f; }
  /// Tensor.uniform_(-bound, bound) in float32, rounded once.
  float uniform(float bound) { return std::fma(uniform01(), 2 * bound, -bound); }

 private:
  static constexpr std::size_t size = 624;

  void refill() {
    constexpr std::size_t middle = 397;
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % size] & 0x7fffffffu);
      state_[i] = state_[(i + middle) % size] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfu : 0);
    }
    next_ = 0;
  }

  std::array<std::uint32_t, size> state_;
  std::size_t next_ = size;
};

/// A matrix in `Space` with these values, row after row. It waits for a device.
template <class T, class Space, class U>
Tensor<T, Space> to_tensor(index_t rows, index_t cols, const std::vector<U>& values) {
  std::vector<T> converted(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) converted[i] = static_cast<T>(values[i]);
  Tensor<T, Space> tensor(rows, cols);
  Memory<Space>::from_host(tensor.view().data, converted.data(), tensor.bytes());
  return tensor;
}
/// The same of a matrix on the host.
template <class T, class Space, class U>
Tensor<T, Space> to_tensor(ConstMatrixView<U, Host> matrix) {
  std::vector<U> values;
  for (index_t i = 0; i < matrix.rows; ++i)
    values.insert(values.end(), matrix.data + i * matrix.stride, matrix.data + i * matrix.stride + matrix.cols);
  return to_tensor<T, Space>(matrix.rows, matrix.cols, values);
}

}  // namespace deltaw
