#pragma once
// The context of the Cuda backend: a stream, a cuBLAS handle, workspace, and the few numbers that captured graphs read on
// the device, since host numbers are frozen into them.

#include <cstddef>
#include <cstdint>

#include "deltaw/backend/cuda_runtime.hpp"
#include "deltaw/core/config.hpp"

namespace deltaw {

/// What a context borrows; null members are made and owned by the context. What is borrowed gets back the settings that it
/// had when the context dies.
struct CudaOptions {
  cudaStream_t stream =
      nullptr;  ///< null: one of our own. The default streams are cudaStreamLegacy, cudaStreamPerThread
  cublasHandle_t cublas = nullptr;
  void* workspace = nullptr;  ///< device memory for temporaries; never grows when given
  std::size_t workspace_bytes = 0;
  void* cublas_workspace = nullptr;  ///< device memory for cuBLAS; allocated once when null
  std::size_t cublas_workspace_bytes = std::size_t{32} << 20;
  bool allow_tf32 = false;  ///< float products may round their inputs to 10 bits of mantissa
};

/// How a replay of a captured step differs from the captured one. As it stands here outside of graphs.
struct CudaReplay {
  std::uint64_t steps = 0;          ///< added to the step of optimizer updates and of dropout's call
  double learning_rate_factor = 1;  ///< multiplies the captured learning rates, which must not be 0
  double gradient_factor = 1;       ///< multiplies the captured 1 / loss scale
  double threshold_factor = 1;      ///< multiplies the captured max_gradient_norm
  std::uint64_t skip = 0;           ///< 1: optimizer updates do nothing
};

namespace cuda_detail {
template <class Replay>
__global__ void set_replay_kernel(Replay value, Replay* out) {
  *out = value;
}
}  // namespace cuda_detail

class CudaContext {
 public:
  explicit CudaContext(CudaOptions options = {});
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;
  ~CudaContext();

  cudaStream_t stream() const { return stream_; }
  cublasHandle_t cublas() const { return cublas_; }
  /// Waits until all that was enqueued is done: for the caller to call, we never do.
  void synchronize() { cuda_detail::check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  /// Whether what is enqueued now is recorded into a graph.
  bool capturing() const {
    cudaStreamCaptureStatus status{};
    cuda_detail::check(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }
  /// To be called before each `cudaGraphLaunch` of a captured step, and with {} before steps that are not replayed. One
  /// small launch; throws StaleError inside a capture, where it would be frozen too.
  void set_replay(CudaReplay replay) {
    if (capturing())
      raise<StaleError>("Cuda::Context.set_replay",
                        "stream: got one that is being captured, want it before the launch");
    cuda_detail::launch(stream_, dim3(1), 1, &cuda_detail::set_replay_kernel<CudaReplay>, replay, replay_.view().data);
  }
  /// Where kernels read it.
  const CudaReplay* replay() const { return replay_.view().data; }

  Arena<Device> arena;

 private:
  cudaStream_t stream_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
  bool owns_stream_ = false, owns_cublas_ = false;
  cudaStream_t stream_before_ = nullptr;  // of a borrowed handle, with its modes
  cublasPointerMode_t pointers_before_{};
  cublasMath_t math_before_{};
  void* own_cublas_workspace_ = nullptr;  // not a Tensor, which would write zeros into all of it
  Tensor<CudaReplay, Device> replay_;
};

inline CudaContext::CudaContext(CudaOptions options)
    : arena(options.workspace == nullptr ? Arena<Device>() : Arena<Device>(options.workspace, options.workspace_bytes)),
      stream_(options.stream),
      cublas_(options.cublas) {
  if (stream_ == nullptr) {
    cuda_detail::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    owns_stream_ = true;
  }
  if (cublas_ == nullptr) {
    cuda_detail::check(cublasCreate(&cublas_), "cublasCreate");
    owns_cublas_ = true;
  } else {
    cuda_detail::check(cublasGetStream(cublas_, &stream_before_), "cublasGetStream");
    cuda_detail::check(cublasGetPointerMode(cublas_, &pointers_before_), "cublasGetPointerMode");
    cuda_detail::check(cublasGetMathMode(cublas_, &math_before_), "cublasGetMathMode");
  }
  cuda_detail::check(cublasSetStream(cublas_, stream_), "cublasSetStream");
  void* workspace = options.cublas_workspace;
  if (workspace == nullptr)
    workspace = own_cublas_workspace_ = Memory<Device>::allocate(options.cublas_workspace_bytes);
  cuda_detail::check(cublasSetWorkspace(cublas_, workspace, options.cublas_workspace_bytes), "cublasSetWorkspace");
  cuda_detail::check(cublasSetPointerMode(cublas_, CUBLAS_POINTER_MODE_HOST), "cublasSetPointerMode");
  // Sums of 16-bit products stay in float, also where cuBLAS adds up parts of them.
  const int math = (options.allow_tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH) |
                   CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  cuda_detail::check(cublasSetMathMode(cublas_, static_cast<cublasMath_t>(math)), "cublasSetMathMode");
  replay_.resize(1, 1);
  set_replay({});
}

inline CudaContext::~CudaContext() {
  if (owns_stream_ || own_cublas_workspace_ != nullptr)
    cudaStreamSynchronize(stream_);  // what is under way may still use our memory
  if (owns_cublas_) {
    cublasDestroy(cublas_);
  } else {
    cublasSetStream(cublas_, stream_before_);  // which also takes our workspace from it
    cublasSetPointerMode(cublas_, pointers_before_);
    cublasSetMathMode(cublas_, math_before_);
  }
  if (own_cublas_workspace_ != nullptr) Memory<Device>::release(own_cublas_workspace_);
  if (owns_stream_) cudaStreamDestroy(stream_);
}

}  // namespace deltaw
