#pragma once
// A small pre-norm Vision Transformer (Dosovitskiy et al., 2021, arXiv 2010.11929) with mean pooling, forward and backward
// by hand. Every linear layer is a layer of an AdapterSet, so any method of the registry adapts it. What lies below the
// lowest trained parameter costs no backward and keeps no activations.

#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "deltaw/model/adapter_set.hpp"
#include "vit/layers.hpp"

namespace vit {

struct Shape {
  index_t patch_pixels = 16;  ///< 4 x 4
  index_t tokens = 49;        ///< patches of an image
  index_t width = 96;
  index_t blocks = 4;
  index_t heads = 4;
  index_t mlp_ratio = 4;
  index_t classes = 10;
};

/// What is trained of the norms and the position embedding. The linear layers are the AdapterSet's business.
enum class Rest { Frozen, Norms, Trained };

template <class T>
class Vit {
 public:
  using Set = dw::AdapterSet<T, dw::Cpu>;
  using Context = dw::Cpu::Context;

  /// All weights are zero; fill them with `initialise` or from a file.
  explicit Vit(Shape shape = {}, Rest rest = Rest::Frozen)
      : shape_(shape), rest_(rest), contexts_(static_cast<std::size_t>(examples::max_threads())) {
    const index_t width = shape.width;
    patch_embed_ = add_linear("patch_embed", shape.patch_pixels, width);
    position_ = add_tensor("position_embedding", shape.tokens, width);
    position_parameter_ = add_rest("position_embedding", position_, rest_ == Rest::Trained);
    for (index_t i = 0; i < shape.blocks; ++i) {
      const std::string name = "blocks." + std::to_string(i) + ".";
      Block& b = blocks_.emplace_back();
      b.norm1 = add_norm(name + "norm1");
      b.query = add_linear(name + "attention.query", width, width);
      b.key = add_linear(name + "attention.key", width, width);
      b.value = add_linear(name + "attention.value", width, width);
      b.output = add_linear(name + "attention.output", width, width);
      b.norm2 = add_norm(name + "norm2");
      b.fc1 = add_linear(name + "mlp.fc1", width, shape.mlp_ratio * width);
      b.fc2 = add_linear(name + "mlp.fc2", shape.mlp_ratio * width, width);
    }
    norm_ = add_norm("norm");
    head_ = add_linear("head", width, shape.classes);
    states_.resize(blocks_.size());
  }
  Vit(const Vit&) = delete;
  Vit& operator=(const Vit&) = delete;

  const Shape& shape() const { return shape_; }
  Set& set() { return set_; }
  Context& context() { return contexts_.front(); }
  /// Every weight by the name that the checkpoint gives it.
  std::map<std::string, dw::Tensor<T>>& tensors() { return tensors_; }

  /// Linear weights N(0, 2 / (in + out)), positions N(0, 0.02^2), gains 1, biases 0.
  void initialise(std::uint64_t seed) {
    for (auto& [name, tensor] : tensors_) {
      const dw::RandomKey key = dw::RandomKey{seed}.fold(dw::name_hash(name));
      const auto v = tensor.view();
      const double sum = static_cast<double>(v.rows + v.cols);
      if (name == "position_embedding") {
        dw::Cpu::fill_normal(context(), key, {}, 0.02, v);
      } else if (name.ends_with(".bias") || v.rows == 1) {
        dw::Cpu::fill(context(), v, name.ends_with(".bias") ? 0 : 1);
      } else {
        dw::Cpu::fill_normal(context(), key, {}, std::sqrt(2 / sum), v);
      }
    }
  }

  /// Logits (images x classes) of patches (images * tokens x pixels), which must live until `backward`.
  View<T> forward(ConstView<T> patches, const dw::Call& call = {}) {
    patches_ = patches;
    call_ = call;
    lowest_ = call.training ? lowest_trained() : nothing;
    const index_t rows = patches.rows, width = shape_.width;
    const auto branch = branch_.resize(rows, width);
    forward(patch_embed_, patches, embedded_.resize(rows, width), patch_embed_saved_);
    ConstView<T> stream = embedded_.view(), added = position_;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      State& s = blocks_[i].fc2.order >= lowest_ ? states_[i] : scratch_;
      forward_block(blocks_[i], s, stream, added, branch);
      stream = s.norm2.stream.view();
      added = branch;
    }
    norm_.forward(stream, added, norm_saved_);
    const auto pooled = pooled_.resize(rows / shape_.tokens, width);
    const auto y = norm_saved_.y.view();
    examples::parallel_for(pooled.rows, [&](index_t i, int) {
      auto mean = row(pooled, i);
      mean.setZero();
      for (index_t j = 0; j < shape_.tokens; ++j) mean += row(y, i * shape_.tokens + j);
      mean /= T(shape_.tokens);
    });
    const auto logits = logits_.resize(pooled.rows, shape_.classes);
    forward(head_, pooled, logits, head_saved_);
    return logits;
  }

  /// Adds the gradients of every trained parameter, after a `forward` with call.training; d_logits is overwritten.
  void backward(View<T> d_logits) {
    if (!backward(head_, pooled_.view(), d_logits, d_pooled_, head_saved_)) return;
    const index_t rows = patches_.rows, width = shape_.width;
    const auto d_pooled = d_pooled_.view(), d_y = d_y_.resize(rows, width);
    examples::parallel_for(rows,
                           [&](index_t i, int) { row(d_y, i) = row(d_pooled, i / shape_.tokens) / T(shape_.tokens); });
    set_zero(d_stream_.resize(rows, width));
    d_branch_.resize(rows, width);
    if (!backward(norm_, norm_saved_)) return;
    for (std::size_t i = blocks_.size(); i-- > 0;)
      if (!backward_block(blocks_[i], states_[i])) return;
    if (position_parameter_ != nullptr) {
      const auto gradient = position_parameter_->grad.view(), d_stream = d_stream_.view();
      examples::parallel_for(shape_.tokens, [&](index_t i, int) {
        for (index_t j = i; j < rows; j += shape_.tokens) row(gradient, i) += row(d_stream, j);
      });
    }
    backward(patch_embed_, patches_, d_branch_.view(), d_y_, patch_embed_saved_);
  }

  /// Forward, cross entropy and backward of one batch; returns the loss. It goes piece by piece, so that a piece's
  /// activations stay in the cache, and few are kept at a time; the gradients are those of the whole batch. A piece has
  /// 32 images a thread: with fewer, a product is too short to be worth sharing.
  double accumulate_gradients(ConstView<T> patches, std::span<const int> labels, dw::Call call) {
    const auto images = static_cast<index_t>(labels.size());
    const index_t piece = 32 * static_cast<index_t>(contexts_.size());
    call.training = true;
    double loss = 0;
    for (index_t first = 0; first < images; first += piece) {
      const index_t count = std::min(piece, images - first), first_token = first * shape_.tokens;
      call.first_row = static_cast<std::uint64_t>(first_token);
      const auto logits = forward(patches.row_range(first_token, count * shape_.tokens), call);
      const auto d_logits = d_logits_.resize(count, shape_.classes);
      const auto part = labels.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
      loss += cross_entropy<T>(logits, part, images, d_logits);
      backward(d_logits);
    }
    return loss;
  }

 private:
  using Layer = typename Set::Layer;
  using LayerSaved = typename Layer::Saved;
  static constexpr int nothing = std::numeric_limits<int>::max();

  // `order` counts from the input up: a layer's input needs a gradient where something of lower order is trained.
  struct Linear {
    Layer* layer = nullptr;
    int order = 0;
  };
  struct Norm : LayerNorm<T> {
    int order = 0;
  };
  struct Block {
    Norm norm1, norm2;
    Linear query, key, value, output, fc1, fc2;
  };
  struct State {
    typename LayerNorm<T>::Saved norm1, norm2;
    dw::Tensor<T> q, k, v, probabilities, mixed, hidden, activated;
    LayerSaved query, key, value, output, fc1, fc2;
  };

  View<T> add_tensor(const std::string& name, index_t rows, index_t cols) {
    return tensors_.emplace(name, dw::Tensor<T>(rows, cols)).first->second.view();
  }
  // The parameter of a weight that is no linear layer's, or null while that is frozen.
  dw::Parameter<T>* add_rest(const std::string& name, View<T> value, bool trained) {
    if (trained) return &set_.add_parameter(name, value);
    set_.add_frozen_count(value.size());
    return nullptr;
  }
  Linear add_linear(const std::string& name, index_t in, index_t out) {
    const auto weight = add_tensor(name + ".weight", out, in), bias = add_tensor(name + ".bias", 1, out);
    return {&set_.add_layer(name, {weight, bias}), next_order_++};
  }
  Norm add_norm(const std::string& name) {
    Norm norm;
    norm.gain = add_tensor(name + ".weight", 1, shape_.width);
    norm.bias = add_tensor(name + ".bias", 1, shape_.width);
    norm.gain_parameter = add_rest(name + ".weight", norm.gain, rest_ != Rest::Frozen);
    norm.bias_parameter = add_rest(name + ".bias", norm.bias, rest_ != Rest::Frozen);
    norm.order = next_order_++;
    return norm;
  }

  int lowest_trained() const {
    if (rest_ == Rest::Trained) return patch_embed_.order;
    int lowest = nothing;
    const auto visit = [&](const Linear& l) {
      std::as_const(*l.layer).for_each_parameter([&](const auto& p) {
        if (p.trained) lowest = std::min(lowest, l.order);
      });
    };
    visit(patch_embed_), visit(head_);
    if (rest_ == Rest::Norms) lowest = std::min(lowest, blocks_.empty() ? norm_.order : blocks_.front().norm1.order);
    for (const Block& b : blocks_)
      for (const Linear& l : {b.query, b.key, b.value, b.output, b.fc1, b.fc2}) visit(l);
    return lowest;
  }

  void forward(const Linear& l, ConstView<T> x, View<T> y, LayerSaved& saved) {
    saved.call = call_;
    l.layer->forward(context(), x, y, saved);
  }
  void forward_block(const Block& b, State& s, ConstView<T> stream, ConstView<T> added, View<T> branch) {
    const index_t rows = stream.rows, width = shape_.width, wide = shape_.mlp_ratio * width;
    b.norm1.forward(stream, added, s.norm1);
    const ConstView<T> y = s.norm1.y.view();
    forward(b.query, y, s.q.resize(rows, width), s.query);
    forward(b.key, y, s.k.resize(rows, width), s.key);
    forward(b.value, y, s.v.resize(rows, width), s.value);
    attention().forward(contexts_, s.q.view(), s.k.view(), s.v.view(), s.probabilities, s.mixed.resize(rows, width));
    forward(b.output, s.mixed.view(), branch, s.output);
    b.norm2.forward(s.norm1.stream.view(), branch, s.norm2);
    forward(b.fc1, s.norm2.y.view(), s.hidden.resize(rows, wide), s.fc1);
    gelu_forward(s.hidden.view(), s.activated.resize(rows, wide));
    forward(b.fc2, s.activated.view(), branch, s.fc2);
  }

  // dx becomes the whole gradient of x (or dx += it), where something below needs it; says whether that is so.
  bool backward(const Linear& l, ConstView<T> x, View<T> dy, dw::Tensor<T>& dx, LayerSaved& saved, bool add = false) {
    const bool needed = lowest_ < l.order;
    if (needed && !add) dx.resize(x.rows, x.cols);
    l.layer->backward(context(), x, dy, needed ? dx.view() : View<T>{}, saved,
                      add ? dw::InputGradient::Add : dw::InputGradient::Overwrite);
    return needed;
  }
  // From d_y_ into d_stream_, which is also the gradient of the branch that was added to the stream.
  bool backward(const Norm& norm, const typename LayerNorm<T>::Saved& saved) {
    norm.backward(std::as_const(d_y_).view(), d_stream_.view(), d_branch_.view(), saved);
    return lowest_ < norm.order;
  }
  bool backward_block(const Block& b, State& s) {
    if (!backward(b.fc2, s.activated.view(), d_branch_.view(), d_hidden_, s.fc2)) return false;
    const auto d_hidden = d_hidden_.view(), slope = s.hidden.view();
    examples::parallel_for(d_hidden.rows, [&](index_t i, int) { row(d_hidden, i) *= row(slope, i); });
    if (!backward(b.fc1, s.norm2.y.view(), d_hidden, d_y_, s.fc1)) return false;
    if (!backward(b.norm2, s.norm2)) return false;
    if (!backward(b.output, s.mixed.view(), d_branch_.view(), d_mixed_, s.output)) return false;
    const index_t rows = patches_.rows, width = shape_.width;
    const auto dq = d_q_.resize(rows, width), dk = d_k_.resize(rows, width), dv = d_v_.resize(rows, width);
    attention().backward(contexts_, s.q.view(), s.k.view(), s.v.view(), s.probabilities, d_mixed_.view(), dq, dk, dv);
    const ConstView<T> y = s.norm1.y.view();
    const bool needed = backward(b.query, y, dq, d_y_, s.query);
    backward(b.key, y, dk, d_y_, s.key, true);
    backward(b.value, y, dv, d_y_, s.value, true);
    return needed && backward(b.norm1, s.norm1);
  }
  Attention<T> attention() const { return {shape_.tokens, shape_.heads}; }

  Shape shape_;
  Rest rest_;
  int next_order_ = 0, lowest_ = nothing;
  std::vector<Context> contexts_;  // one a thread
  std::map<std::string, dw::Tensor<T>> tensors_;
  Set set_;

  Linear patch_embed_, head_;
  View<T> position_;
  dw::Parameter<T>* position_parameter_ = nullptr;
  std::vector<Block> blocks_;
  Norm norm_;

  dw::Call call_;
  ConstView<T> patches_;
  std::vector<State> states_;
  State scratch_;  // of every block that no backward will see
  LayerSaved patch_embed_saved_, head_saved_;
  typename LayerNorm<T>::Saved norm_saved_;
  dw::Tensor<T> embedded_, branch_, pooled_, logits_;
  dw::Tensor<T> d_logits_, d_pooled_, d_y_, d_stream_, d_branch_, d_hidden_, d_mixed_, d_q_, d_k_, d_v_;
};

}  // namespace vit
