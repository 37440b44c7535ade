#pragma once
// C = alpha op(A) op(B) + beta C, column-major, for every type pair that the library offers.

#include <cmath>
#include <vector>

#include "cublas_types.hpp"
#include "half_types.hpp"

namespace standin {

inline std::size_t size_of(cudaDataType type) {
  switch (type) {
    case CUDA_R_64F:
      return 8;
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    default:
      return 0;
  }
}
inline double load(const unsigned char* p, cudaDataType type) {
  double d;
  float f;
  std::uint16_t h;
  switch (type) {
    case CUDA_R_64F:
      return std::memcpy(&d, p, 8), d;
    case CUDA_R_32F:
      return std::memcpy(&f, p, 4), f;
    case CUDA_R_16F:
      return std::memcpy(&h, p, 2), f16_value(h);
    default:
      return std::memcpy(&h, p, 2), bf16_value(h);
  }
}
inline void store(unsigned char* p, cudaDataType type, double value) {
  const auto f = static_cast<float>(value);
  const std::uint16_t h = type == CUDA_R_16F ? f16_bits(f) : bf16_bits(f);
  switch (type) {
    case CUDA_R_64F:
      std::memcpy(p, &value, 8);
      break;
    case CUDA_R_32F:
      std::memcpy(p, &f, 4);
      break;
    default:
      std::memcpy(p, &h, 2);
  }
}
inline bool is_unwritten(const unsigned char* p, cudaDataType type) {
  return size_of(type) == 8   ? is_unwritten_element<8>(p)
         : size_of(type) == 4 ? is_unwritten_element<4>(p)
                              : is_unwritten_element<2>(p);
}

/// A stored column-major matrix, or a batch of them `stride` elements apart.
struct Matrix {
  const void* data;
  cudaDataType type;
  int ld;
  long long stride;

  unsigned char* at(long long i, long long j, long long batch) const {
    const long long offset = (batch * stride + j * ld + i) * static_cast<long long>(size_of(type));
    return static_cast<unsigned char*>(const_cast<void*>(data)) + offset;
  }
};
struct Product {
  cublasOperation_t transa, transb;
  int m, n, k;
};

/// Which types the library multiplies into which: both inputs are of one type.
inline bool supported(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute) {
  if (a != b) return false;
  switch (compute) {
    case CUBLAS_COMPUTE_64F:
    case CUBLAS_COMPUTE_64F_PEDANTIC:
      return a == CUDA_R_64F && c == CUDA_R_64F;
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
      return (c == CUDA_R_32F && (a == CUDA_R_32F || a == CUDA_R_16F || a == CUDA_R_16BF)) ||
             (a == c && (a == CUDA_R_16F || a == CUDA_R_16BF));
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      return a == CUDA_R_32F && c == CUDA_R_32F;
    case CUBLAS_COMPUTE_16F:
    case CUBLAS_COMPUTE_16F_PEDANTIC:
      return a == CUDA_R_16F && c == CUDA_R_16F;
  }
  return false;
}

/// The bytes of a rows x cols operand, all batches, and that they lie in one allocation.
inline void note_operand(const Matrix& x, int rows, int cols, int batches, const char* name, Work& work) {
  if (rows == 0 || cols == 0) return;
  const long long last = (batches - 1) * x.stride;
  if (last < 0) stop(work.name + ": a negative stride between batches is not in the subset");
  const auto bytes = static_cast<std::size_t>(last + static_cast<long long>(cols - 1) * x.ld + rows) * size_of(x.type);
  Machine::get().device_range(x.data, bytes,
                              work.name + " as " + name + " (" + std::to_string(rows) + " x " + std::to_string(cols) +
                                  ", leading dimension " + std::to_string(x.ld) + ")");
  work.touched.push_back({static_cast<const unsigned char*>(x.data), bytes});
}

inline void multiply(const std::string& who, const Product& p, double alpha, const Matrix& a, const Matrix& b,
                     double beta, const Matrix& c, long long batch, bool single) {
  const auto read = [&](const Matrix& x, const char* name, bool transposed, int i, int j) {
    const unsigned char* element = transposed ? x.at(j, i, batch) : x.at(i, j, batch);
    if (is_unwritten(element, x.type)) stop(who + " read unwritten device memory as " + name);
    return load(element, x.type);
  };
  const auto m = static_cast<std::size_t>(p.m), k = static_cast<std::size_t>(alpha == 0 ? 0 : p.k);
  std::vector<double> left(m * k), right(k), sum(m);
  for (std::size_t l = 0; l < k; ++l)
    for (std::size_t i = 0; i < m; ++i)
      left[l * m + i] = read(a, "A", p.transa != CUBLAS_OP_N, static_cast<int>(i), static_cast<int>(l));
  for (int j = 0; j < p.n; ++j) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (std::size_t l = 0; l < k; ++l) {
      const double x = read(b, "B", p.transb != CUBLAS_OP_N, static_cast<int>(l), j);
      for (std::size_t i = 0; i < m; ++i) sum[i] += left[l * m + i] * x;
    }
    for (std::size_t i = 0; i < m; ++i) {
      double value = alpha == 0 ? 0 : alpha * sum[i];
      if (beta != 0) value += beta * read(c, "C with beta not 0", false, static_cast<int>(i), j);
      store(c.at(static_cast<long long>(i), j, batch), c.type, single ? static_cast<float>(value) : value);
    }
  }
}

/// alpha or beta: read at once from the host, or when the work is done from the device.
struct Scalar {
  const void* device = nullptr;
  double value = 0;
  cudaDataType type = CUDA_R_32F;

  double get() const { return device == nullptr ? value : load(static_cast<const unsigned char*>(device), type); }
};
inline Scalar scalar(cublasHandle_t handle, const void* p, cudaDataType type, Work& work) {
  if (handle->pointer_mode == CUBLAS_POINTER_MODE_HOST) {
    if (Machine::get().device.owns(p)) stop("device pointer passed to " + work.name + " as a host scalar");
    return {nullptr, load(static_cast<const unsigned char*>(p), type), type};
  }
  Machine::get().device_range(p, size_of(type), work.name + " as a device scalar");
  work.touched.push_back({static_cast<const unsigned char*>(p), size_of(type)});
  return {p, 0, type};
}

inline cublasStatus_t gemm(cublasHandle_t handle, const char* who, Product p, const void* alpha, Matrix a, Matrix b,
                           const void* beta, Matrix c, int batches, cublasComputeType_t compute) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const auto legal = [](cublasOperation_t op) { return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C; };
  const int a_rows = p.transa == CUBLAS_OP_N ? p.m : p.k, a_cols = p.transa == CUBLAS_OP_N ? p.k : p.m;
  const int b_rows = p.transb == CUBLAS_OP_N ? p.k : p.n, b_cols = p.transb == CUBLAS_OP_N ? p.n : p.k;
  if (!legal(p.transa) || !legal(p.transb) || p.m < 0 || p.n < 0 || p.k < 0 || batches < 0 ||
      a.ld < std::max(1, a_rows) || b.ld < std::max(1, b_rows) || c.ld < std::max(1, p.m) || alpha == nullptr ||
      beta == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!supported(a.type, b.type, c.type, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (p.m == 0 || p.n == 0 || batches == 0) return CUBLAS_STATUS_SUCCESS;

  std::lock_guard lock(Machine::get().mutex);
  Streams& streams = Streams::get();
  CUstream_st* stream = streams.find(handle->stream, who);
  if (stream->capture && !handle->has_workspace)
    stop(std::string(who) + " inside a stream capture without a workspace set by the caller: cuBLAS would allocate");
  const bool wide = compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC;
  const bool narrow = compute == CUBLAS_COMPUTE_16F || compute == CUBLAS_COMPUTE_16F_PEDANTIC;
  const cudaDataType factor = wide ? CUDA_R_64F : narrow ? CUDA_R_16F : CUDA_R_32F;
  Work work;
  work.name = who;
  const Scalar by = scalar(handle, alpha, factor, work), keep = scalar(handle, beta, factor, work);
  if (by.device != nullptr || by.value != 0) {
    note_operand(a, a_rows, a_cols, batches, "A", work);
    note_operand(b, b_rows, b_cols, batches, "B", work);
  }
  note_operand(c, p.m, p.n, batches, "C", work);
  work.run = [=, name = work.name] {
    for (long long batch = 0; batch < batches; ++batch) multiply(name, p, by.get(), a, b, keep.get(), c, batch, !wide);
  };
  streams.enqueue(stream, std::move(work));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace standin
