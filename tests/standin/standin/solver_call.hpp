#pragma once
// What every call of the cuSOLVER stand-in shares: names and values, the handle, operands in device memory, queueing.

#include "cublas_gemm.hpp"
#include "dense_algebra.hpp"

enum cusolverStatus_t {
  CUSOLVER_STATUS_SUCCESS = 0,
  CUSOLVER_STATUS_NOT_INITIALIZED = 1,
  CUSOLVER_STATUS_ALLOC_FAILED = 2,
  CUSOLVER_STATUS_INVALID_VALUE = 3,
  CUSOLVER_STATUS_EXECUTION_FAILED = 6,
  CUSOLVER_STATUS_INTERNAL_ERROR = 7,
  CUSOLVER_STATUS_NOT_SUPPORTED = 9,
};
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };

struct cusolverDnContext {
  cudaStream_t stream = nullptr;
};
using cusolverDnHandle_t = cusolverDnContext*;
/// Jacobi goes on until nothing turns, whatever tolerance and number of sweeps are asked for.
struct gesvdjInfo {};
struct syevjInfo {};
using gesvdjInfo_t = gesvdjInfo*;
using syevjInfo_t = syevjInfo*;

namespace standin {

template <class T>
inline constexpr cudaDataType type_of = sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F;

enum class Part { all, lower, upper };
inline Part part_of(cublasFillMode_t fill) { return fill == CUBLAS_FILL_MODE_LOWER ? Part::lower : Part::upper; }

/// A call that is being put together: its operands are noted, then the work is queued.
class SolverCall {
 public:
  SolverCall(cusolverDnHandle_t handle, const char* who) : lock_(Machine::get().mutex), handle_(handle) {
    work_.name = who;
  }

  template <class T>
  void matrix(const T* p, int rows, int cols, int ld, int batches, const char* name) {
    note_operand({p, type_of<T>, ld, static_cast<long long>(ld) * cols}, rows, cols, batches, name, work_);
  }
  void bytes(const void* p, std::size_t n, const char* name) {
    if (n == 0) return;
    Machine::get().device_range(p, n, work_.name + " as " + name);
    work_.touched.push_back({static_cast<const unsigned char*>(p), n});
  }
  cusolverStatus_t queue(std::function<void()> run) {
    work_.run = std::move(run);
    Streams::get().enqueue(Streams::get().find(handle_->stream, work_.name.c_str()), std::move(work_));
    return CUSOLVER_STATUS_SUCCESS;
  }
  const std::string& name() const { return work_.name; }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  cusolverDnHandle_t handle_;
  Work work_;
};

/// A matrix of the device as a dense one. Of a triangle the other half is neither read nor checked: it mirrors.
template <class T>
Dense load_matrix(const T* p, int rows, int cols, int ld, const std::string& who, Part part = Part::all) {
  Dense a(rows, cols);
  for (int j = 0; j < cols; ++j)
    for (int i = 0; i < rows; ++i) {
      const bool mirrored = (part == Part::lower && i < j) || (part == Part::upper && i > j);
      const T* element =
          mirrored ? p + static_cast<std::ptrdiff_t>(i) * ld + j : p + static_cast<std::ptrdiff_t>(j) * ld + i;
      if (is_unwritten_element<sizeof(T)>(element)) stop(who + " read unwritten device memory");
      a(i, j) = static_cast<double>(*element);
    }
  return a;
}
template <class T>
void store_matrix(const Dense& a, T* p, int rows, int cols, int ld, Part part = Part::all) {
  for (int j = 0; j < cols; ++j)
    for (int i = 0; i < rows; ++i)
      if (part == Part::all || (part == Part::lower ? i >= j : i <= j))
        p[static_cast<std::ptrdiff_t>(j) * ld + i] = static_cast<T>(a(i, j));
}
template <class T>
void store_vector(const std::vector<double>& values, T* p) {
  for (double value : values) *p++ = static_cast<T>(value);
}
template <class T>
std::vector<double> load_vector(const T* p, int n, const std::string& who) {
  return load_matrix(p, n, 1, std::max(n, 1), who).values;
}

/// The workspace that every call asks for: one element a row and column.
inline int workspace(int m, int n) { return std::max(1, m) + std::max(1, n); }
inline bool legal(int rows, int cols, int ld) { return rows >= 0 && cols >= 0 && ld >= std::max(1, rows); }

template <class T>
cusolverStatus_t svd_call(cusolverDnHandle_t handle, const char* who, bool u_wanted, bool v_wanted, bool economical,
                          bool v_transposed, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* v, int ldv, T* work,
                          int lwork, int* info, int batches) {
  const int least = std::min(m, n), u_cols = economical ? least : m, v_cols = economical ? least : n;
  const int v_rows = v_transposed ? v_cols : n, v_stored_cols = v_transposed ? n : v_cols;
  if (!legal(m, n, lda) || (u_wanted && !legal(m, u_cols, ldu)) || (v_wanted && !legal(v_rows, v_stored_cols, ldv)) ||
      batches < 0 || lwork < workspace(m, n))
    return CUSOLVER_STATUS_INVALID_VALUE;
  SolverCall call(handle, who);
  call.matrix(a, m, n, lda, batches, "A");
  call.bytes(s, sizeof(T) * static_cast<std::size_t>(least) * static_cast<std::size_t>(batches), "S");
  if (u_wanted) call.matrix(u, m, u_cols, ldu, batches, "U");
  if (v_wanted) call.matrix(v, v_rows, v_stored_cols, ldv, batches, "V");
  call.bytes(work, sizeof(T) * static_cast<std::size_t>(lwork), "work");
  call.bytes(info, sizeof(int) * static_cast<std::size_t>(batches), "info");
  return call.queue([=, name = call.name()] {
    for (std::ptrdiff_t b = 0; b < batches; ++b) {
      const Svd x = svd(load_matrix(a + b * lda * n, m, n, lda, name), economical);
      store_vector(x.s, s + b * least);
      if (u_wanted) store_matrix(x.u, u + b * ldu * u_cols, m, u_cols, ldu);
      if (v_wanted)
        store_matrix(v_transposed ? transposed(x.v) : x.v, v + b * ldv * v_stored_cols, v_rows, v_stored_cols, ldv);
      // The real one leaves A in an unspecified state; nobody may read it.
      const std::vector<std::uint16_t> spoilt(sizeof(T) / 2 * static_cast<std::size_t>(m), unwritten_half);
      for (std::ptrdiff_t j = 0; j < n; ++j)
        std::memcpy(static_cast<void*>(a + (b * n + j) * lda), spoilt.data(), 2 * spoilt.size());
      info[b] = 0;
    }
  });
}

template <class T>
cusolverStatus_t eigen_call(cusolverDnHandle_t handle, const char* who, cusolverEigMode_t mode, cublasFillMode_t fill,
                            int n, T* a, int lda, T* w, T* work, int lwork, int* info) {
  if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
  if (!legal(n, n, lda) || lwork < workspace(n, n)) return CUSOLVER_STATUS_INVALID_VALUE;
  SolverCall call(handle, who);
  call.matrix(a, n, n, lda, 1, "A");
  call.bytes(w, sizeof(T) * static_cast<std::size_t>(n), "W");
  call.bytes(work, sizeof(T) * static_cast<std::size_t>(lwork), "work");
  call.bytes(info, sizeof(int), "info");
  return call.queue([=, name = call.name()] {
    Dense x = load_matrix(a, n, n, lda, name, part_of(fill));
    store_vector(symmetric_eigen(x), w);
    if (mode == CUSOLVER_EIG_MODE_VECTOR) store_matrix(x, a, n, n, lda);
    *info = 0;
  });
}

}  // namespace standin
