#pragma once
// One optimizer step on a device. Gradients and updates are gathered into lists and launched together: three launches for
// the norm and the decision, one for the updates; three more for every further 512 tensors. The host waits for nothing.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <variant>

#include "deltaw/backend/cuda_update.hpp"

namespace deltaw {

/// What an optimizer keeps on the device, the decision of its last step, and what the host knows of it. Made at the first
/// step.
class CudaStepState {
 public:
  cuda_detail::StepRecord* record() {
    if (record_.empty()) record_.resize(1, 1);
    return record_.view().data;
  }
  long settled() const { return settled_; }  ///< skipped steps that have been taken off Parameter::step

  /// Steps count what was skipped for all parameters alike, so those of steps that are not settled must be the same ones.
  void begin_step(std::uint64_t parameters) {
    if (unsettled_ > 0 && parameters != parameters_)
      raise<StaleError>(
          "Optimizer.step",
          "parameters: got others than in the steps before, want `settle` in between, or an optimizer each");
    parameters_ = parameters;
    ++unsettled_;
  }
  bool empty() const { return unsettled_ == 0; }
  /// The host has heard that `skipped` steps were left out so far; returns how many it did not know of.
  long settle(long skipped) {
    unsettled_ = 0;
    return skipped - std::exchange(settled_, skipped);
  }

 private:
  Tensor<cuda_detail::StepRecord, Device> record_;
  long settled_ = 0, unsettled_ = 0;
  std::uint64_t parameters_ = 0;
};

namespace cuda_detail {

/// Tensors of one launch.
class PendingTensors {
 public:
  bool empty() const { return list_.count == 0; }
  bool full() const { return list_.count == max_tensors; }
  index_t blocks() const { return blocks_; }
  void clear() { list_.count = blocks_ = 0; }

  void add(UpdateTensor tensor) {
    tensor.first_block = blocks_;
    list_.tensors[list_.count++] = tensor;
    blocks_ += (tensor.count + elements_a_block - 1) / elements_a_block;
  }
  /// f(list) with the smaller of two sizes that holds all: fewer bytes travel with the launch.
  template <class F>
  void with_list(F f) const {
    constexpr int few = 32;
    if (list_.count > few) return f(list_);
    TensorList<few> list{};
    std::copy_n(list_.tensors, list_.count, list.tensors);
    list.count = list_.count;
    f(list);
  }

 private:
  TensorList<max_tensors> list_{};
  index_t blocks_ = 0;
};

/// f(row, elements) for the fewest contiguous pieces that `whole`, and all others like it, fall into.
template <class F>
void for_each_piece(index_t rows, index_t cols, bool contiguous, F f) {
  if (rows == 0 || cols == 0) return;
  if (contiguous) return f(index_t{0}, rows * cols);
  for (index_t i = 0; i < rows; ++i) f(i, cols);
}

/// record->norm2 = the sum of squares of what is pending, added to what is there unless `first`.
template <class T>
void launch_norm2(CudaContext& ctx, PendingTensors& pending, bool first, StepRecord* record) {
  typename Arena<Device>::Mark mark(ctx.arena);
  const index_t blocks = pending.blocks();
  double* partial = ctx.arena.template take<double>(1, blocks).data;
  if (blocks > 0)
    pending.with_list([&]<int N>(const TensorList<N>& list) {
      launch(ctx.stream(), dim3(static_cast<unsigned>(blocks)), block_size, &norm2_kernel<T, N>, list, partial);
    });
  launch(ctx.stream(), dim3(1), block_size, &sum_norms_kernel<StepRecord>, partial, blocks, first ? 1u : 0u, record);
  pending.clear();
}

}  // namespace cuda_detail

/// Cuda::Step: see Cpu::Step for the order of calls.
class CudaStep {
 public:
  CudaStep(CudaContext& ctx, CudaStepState& state, const StepPolicy& policy)
      : ctx_(ctx), state_(state), policy_(policy), record_(policy.needs_norm() ? state.record() : nullptr) {}
  CudaStep(const CudaStep&) = delete;
  CudaStep& operator=(const CudaStep&) = delete;

  CudaContext& context() { return ctx_; }
  /// The rest of the scale is on the device.
  double gradient_scale() const { return record_ == nullptr ? policy_.unscale : 1; }

  template <class P>
  void measure(const P& parameter) {
    const auto gradient = parameter.grad.view();
    using T = std::remove_const_t<std::remove_pointer_t<decltype(gradient.data)>>;
    use(&CudaStep::flush_norms<T>);
    parameters_ = (parameters_ ^ reinterpret_cast<std::uintptr_t>(gradient.data)) * 0x100000001b3u;
    cuda_detail::for_each_piece(gradient.rows, gradient.cols, gradient.contiguous(), [&](index_t row, index_t count) {
      add({nullptr, gradient.data + row * gradient.stride, nullptr, nullptr, count, 0, 0});
    });
  }
  StepReport decide() {
    if (record_ == nullptr) return {};
    state_.begin_step(parameters_);
    flush();
    if (first_norm_) flush_norms<float>();  // nothing was measured: the norm is 0
    const cuda_detail::DevicePolicy policy{policy_.unscale, policy_.max_gradient_norm,
                                           policy_.skip_non_finite ? 1u : 0u};
    cuda_detail::launch(ctx_.stream(), dim3(1), 1, &cuda_detail::decide_kernel<cuda_detail::StepRecord>, policy,
                        ctx_.replay(), record_);
    return {.pending = true};
  }

  template <class T>
  void adamw(const AdamWUpdate& u, MatrixView<T, Device> value, ConstMatrixView<T, Device> gradient,
             MatrixView<T, Device> m, MatrixView<T, Device> v) {
    check_view("adamw", "gradient", gradient, value.rows, value.cols);
    check_view("adamw", "m", m, value.rows, value.cols);
    check_view("adamw", "v", v, value.rows, value.cols);
    check_rate("adamw", u.learning_rate);
    use(&CudaStep::flush_adamw<T>, u);
    const bool contiguous = value.contiguous() && gradient.contiguous() && m.contiguous() && v.contiguous();
    cuda_detail::for_each_piece(value.rows, value.cols, contiguous, [&](index_t row, index_t count) {
      add({value.data + row * value.stride, gradient.data + row * gradient.stride, m.data + row * m.stride,
           v.data + row * v.stride, count, u.step + state_.settled(), 0});
    });
  }
  /// `momentum` may be empty.
  template <class T>
  void sgd(const SgdUpdate& u, MatrixView<T, Device> value, ConstMatrixView<T, Device> gradient,
           MatrixView<T, Device> momentum) {
    check_view("sgd", "gradient", gradient, value.rows, value.cols);
    if (!momentum.empty()) check_view("sgd", "momentum", momentum, value.rows, value.cols);
    check_rate("sgd", u.learning_rate);
    use(&CudaStep::flush_sgd<T>, u);
    const bool contiguous = value.contiguous() && gradient.contiguous() && (momentum.empty() || momentum.contiguous());
    cuda_detail::for_each_piece(value.rows, value.cols, contiguous, [&](index_t row, index_t count) {
      add({value.data + row * value.stride, gradient.data + row * gradient.stride,
           momentum.empty() ? nullptr : momentum.data + row * momentum.stride, nullptr, count,
           u.step + state_.settled(), 0});
    });
  }
  /// Launches what is left.
  void run() { flush(); }

 private:
  using Flush = void (CudaStep::*)();
  using Update = std::variant<std::monostate, AdamWUpdate, SgdUpdate>;

  // What is pending goes to one kernel with one set of numbers; where either changes, it is launched first. The step is
  // each tensor's own.
  void use(Flush flush_by) {
    if (flush_ != flush_by) flush();
    flush_ = flush_by;
  }
  template <class U>
  void use(Flush flush_by, U u) {
    u.step = 1;
    if (update_ != Update(u)) flush();
    use(flush_by);  // what is pending by another kernel is launched with its own numbers
    update_ = u;
  }
  void check_rate(std::string_view where, double rate) const {
    if (rate == 0 && ctx_.capturing())
      raise_mismatch<OptionError>(where, "learning_rate", rate, "not 0 in a capture: replays multiply it");
  }
  void add(const cuda_detail::UpdateTensor& tensor) {
    if (pending_.full()) (this->*flush_)();
    pending_.add(tensor);
  }
  void flush() {
    if (!pending_.empty()) (this->*flush_)();
  }

  template <class T>
  void flush_norms() {
    cuda_detail::launch_norm2<T>(ctx_, pending_, first_norm_, record_);
    first_norm_ = false;
  }
  template <class T>
  void flush_adamw() {
    const auto& u = std::get<AdamWUpdate>(update_);
    pending_.with_list(
        [&]<int N>(const cuda_detail::TensorList<N>& list) { launch(&cuda_detail::adamw_kernel<T, N>, list, u); });
  }
  template <class T>
  void flush_sgd() {
    const auto& s = std::get<SgdUpdate>(update_);
    const cuda_detail::SgdNumbers u{s.learning_rate,  s.momentum,           s.dampening,          s.weight_decay,
                                    s.gradient_scale, s.nesterov ? 1u : 0u, s.decoupled ? 1u : 0u};
    pending_.with_list(
        [&]<int N>(const cuda_detail::TensorList<N>& list) { launch(&cuda_detail::sgd_kernel<T, N>, list, u); });
  }
  template <class Kernel, class List, class U>
  void launch(Kernel kernel, const List& list, const U& u) {
    cuda_detail::launch(ctx_.stream(), dim3(static_cast<unsigned>(pending_.blocks())), cuda_detail::block_size, kernel,
                        list, u, record_, ctx_.replay());
    pending_.clear();
  }

  CudaContext& ctx_;
  CudaStepState& state_;
  StepPolicy policy_;
  cuda_detail::StepRecord* record_;
  cuda_detail::PendingTensors pending_;
  Flush flush_ = nullptr;
  Update update_;
  bool first_norm_ = true;
  std::uint64_t parameters_ = 0xcbf29ce484222325u;  // a hash of what was measured
};

/// Waits for the stream and reads what the steps since the last call did; nothing where there were none.
inline SettledSteps settle_steps(CudaContext& ctx, CudaStepState& state) {
  if (state.empty()) return {};
  cuda_detail::StepRecord record{};
  cuda_detail::check(cudaMemcpyAsync(&record, state.record(), sizeof record, cudaMemcpyDeviceToHost, ctx.stream()),
                     "cudaMemcpyAsync");
  ctx.synchronize();
  return {state.settle(static_cast<long>(record.skipped)), {.skipped = record.skip != 0, .gradient_norm = record.norm}};
}

}  // namespace deltaw
