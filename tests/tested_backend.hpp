#pragma once
// Which backend the typed tests run on: Cpu, or Cuda in programs compiled with DELTAW_TEST_CUDA (by g++ over the stand-in,
// by nvcc for a device). `Access` is how a test reaches memory of the backend's space.

#include <cstring>
#include <vector>

#include "deltaw/backend/cpu.hpp"
#if defined(DELTAW_TEST_CUDA)
#include "deltaw/cuda.hpp"
#endif

namespace deltaw_tests {

namespace dw = deltaw;
using dw::index_t;

#if defined(DELTAW_TEST_CUDA)
using Tested = dw::Cuda;
#else
using Tested = dw::Cpu;
#endif

template <class Space>
struct Access;

template <>
struct Access<dw::Host> {
  static void rows_to_host(void* to, std::size_t row_bytes, const void* from, std::size_t from_pitch,
                           std::size_t rows) {
    for (std::size_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<char*>(to) + i * row_bytes, static_cast<const char*>(from) + i * from_pitch, row_bytes);
  }
  static void rows_from_host(void* to, std::size_t to_pitch, const void* from, std::size_t row_bytes,
                             std::size_t rows) {
    for (std::size_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * row_bytes, row_bytes);
  }
};

#if defined(DELTAW_TEST_CUDA)
/// Both wait for the whole device first.
template <>
struct Access<dw::Device> {
  static void rows_to_host(void* to, std::size_t row_bytes, const void* from, std::size_t from_pitch,
                           std::size_t rows) {
    dw::cuda_detail::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    dw::cuda_detail::check(cudaMemcpy2D(to, row_bytes, from, from_pitch, row_bytes, rows, cudaMemcpyDeviceToHost),
                           "cudaMemcpy2D");
  }
  static void rows_from_host(void* to, std::size_t to_pitch, const void* from, std::size_t row_bytes,
                             std::size_t rows) {
    dw::cuda_detail::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    dw::cuda_detail::check(cudaMemcpy2D(to, to_pitch, from, row_bytes, row_bytes, rows, cudaMemcpyHostToDevice),
                           "cudaMemcpy2D");
  }
};
#endif

/// The elements of a view, row after row.
template <class T, class Space>
std::vector<std::remove_const_t<T>> to_host(dw::MatrixView<T, Space> v) {
  std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(v.size()));
  if (!v.empty())
    Access<Space>::rows_to_host(values.data(), static_cast<std::size_t>(v.cols) * sizeof(T), v.data,
                                static_cast<std::size_t>(v.stride) * sizeof(T), static_cast<std::size_t>(v.rows));
  return values;
}
/// Writes them back.
template <class T, class Space>
void from_host(const std::vector<T>& values, dw::MatrixView<T, Space> v) {
  if (!v.empty())
    Access<Space>::rows_from_host(v.data, static_cast<std::size_t>(v.stride) * sizeof(T), values.data(),
                                  static_cast<std::size_t>(v.cols) * sizeof(T), static_cast<std::size_t>(v.rows));
}

/// A view of the tested backend's memory.
template <class T>
using View = dw::MatrixView<T, Tested::Space>;
template <class T>
using ConstView = dw::ConstMatrixView<T, Tested::Space>;

}  // namespace deltaw_tests
