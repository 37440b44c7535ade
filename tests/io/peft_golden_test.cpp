// Checkpoints of the real PEFT (tests/golden/peft_methods.py made them): outputs, every gradient, penalties, three steps of
// AdamW, merged weights.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <type_traits>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/io/peft.hpp"
#include "scratch.hpp"
#include "support/methods.hpp"

namespace io = deltaw::io;
using deltaw::Cpu;
using deltaw::index_t;
using deltaw::MatrixView;

namespace {

constexpr index_t tokens = 7;

/// ADAMW of the script.
constexpr deltaw::AdamW script_adamw{.learning_rate = 0.02, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1};

struct LayerSize {
  const char* name;
  index_t in, out;
};
constexpr LayerSize sizes[] = {
    {"blocks.0.proj", 6, 10}, {"blocks.1.proj", 10, 8}, {"blocks.2.proj", 8, 8}, {"head", 8, 3}};
constexpr std::size_t layers = std::size(sizes);

/// The model of the script: linear layers with tanh between them, from the base weights of a reference file.
template <class P>
class Mlp {
 public:
  using Set = deltaw::AdapterSet<P, Cpu>;

  explicit Mlp(const io::SafetensorsReader& reference) {
    for (const auto& [name, in, out] : sizes) {
      const std::string base = std::string("base.") + name;
      auto& w = weights_.emplace_back(reference.read<P>(reference.at(base + ".weight", io::make_shape(out, in))));
      auto& b = weights_.emplace_back(reference.read<P>(reference.at(base + ".bias", io::make_shape(out))));
      set.add_layer(name, deltaw::dense(w.data(), b.data(), {.in_features = in, .out_features = out}));
      outputs_.emplace_back(tokens, out);
    }
    inputs_.resize(layers);
  }

  deltaw::Tensor<P>& forward(const std::vector<P>& x) {
    set.prepare(ctx);
    inputs_[0].bind(MatrixView<P>{const_cast<P*>(x.data()), tokens, 6});
    for (std::size_t i = 0; i < layers; ++i) {
      if (i > 0) {
        auto to = inputs_[i].resize(tokens, outputs_[i - 1].cols());
        for (index_t k = 0; k < to.size(); ++k) to.data[k] = std::tanh(outputs_[i - 1].view().data[k]);
      }
      layer(i).forward(ctx, std::as_const(inputs_[i]).view(), outputs_[i].view(), saved_[i]);
    }
    return outputs_.back();
  }

  deltaw::Tensor<P> backward(std::vector<P> dy) {
    deltaw::zero_grad(ctx, set);
    deltaw::Tensor<P> gradient(tokens, 3);
    std::copy(dy.begin(), dy.end(), gradient.view().data);
    for (std::size_t i = layers; i-- > 0;) {
      deltaw::Tensor<P> dx(tokens, inputs_[i].cols());
      layer(i).backward(ctx, std::as_const(inputs_[i]).view(), gradient.view(), dx.view(), saved_[i]);
      for (index_t k = 0; i > 0 && k < dx.size(); ++k) {
        const P h = inputs_[i].view().data[k];
        dx.view().data[k] *= 1 - h * h;
      }
      gradient = std::move(dx);
    }
    set.finish(ctx);
    return gradient;
  }

  const std::vector<P>& weight(std::size_t layer) const { return weights_[2 * layer]; }
  const std::vector<P>& bias(std::size_t layer) const { return weights_[2 * layer + 1]; }

  Cpu::Context ctx;
  Set set;

 private:
  typename Set::Layer& layer(std::size_t i) { return set.layer(set.layer_names()[i]); }

  std::deque<std::vector<P>> weights_;
  std::vector<deltaw::Tensor<P>> inputs_, outputs_;
  typename Set::Layer::Saved saved_[layers];
};

/// ||got - want|| / ||want||; NaN where something is.
template <class P>
double error_of(const P* got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += want[i] * want[i];
  }
  return want.empty() ? 0 : std::sqrt(difference / norm);
}

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(DELTAW_SOURCE_DIR) / "tests/golden/peft_methods" / name;
}

/// What a reference file says of each trained parameter under "WHAT.KEY": `compare(parameter, values)`.
template <class P, class Compare>
void for_each_known(Mlp<P>& model, const io::SafetensorsReader& reference, const std::string& what, Compare compare) {
  int found = 0, known = 0;
  for (const auto& tensor : reference.tensors()) known += tensor.name.starts_with(what + ".");
  model.set.for_each_parameter([&](auto& p) {
    if (!p.trained) return;
    const std::string key = what + "." + std::string(io::detail::peft_prefix) + p.owner + "." + p.name;
    INFO(key);
    compare(p, reference.read<double>(reference.at(key)));
    ++found;
  });
  CHECK(found == known);
}

template <class P>
void check_gradients(Mlp<P>& model, const io::SafetensorsReader& reference, const std::string& what, double tolerance) {
  for_each_known(model, reference, what, [&](auto& p, const std::vector<double>& want) {
    CHECK(error_of(p.grad.view().data, want) <= tolerance);
  });
}

/// The golden case of that name: its checkpoint is read, then everything that its reference holds is computed.
template <class P>
class Golden {
 public:
  Golden(const std::string& name, double tolerance)
      : dir_(golden(name)),
        reference_(io::SafetensorsReader::open(dir_ / "reference.safetensors")),
        tolerance_(tolerance),
        x_(reference_.read<P>(reference_.at("x", io::make_shape(tokens, 6)))),
        dy_(reference_.read<P>(reference_.at("dy", io::make_shape(tokens, 3)))),
        model(reference_) {
    io::load_peft(model.ctx, model.set, "default", dir_);
  }

  void check() {
    check_forward_and_backward();
    if (has("penalized")) {
      model.set.regularize(model.ctx);
      check_gradients(model, reference_, "penalized", tolerance_);
    }
    check_merge();
    if (std::is_same_v<P, double>) check_steps();
  }
  const io::SafetensorsReader& reference() const { return reference_; }
  bool has(const std::string& what) const {
    return std::any_of(reference_.tensors().begin(), reference_.tensors().end(),
                       [&](const auto& tensor) { return tensor.name.starts_with(what + "."); });
  }
  void backward() {
    model.forward(x_);
    model.backward(dy_);
  }

 private:
  std::filesystem::path dir_;
  io::SafetensorsReader reference_;
  double tolerance_;
  std::vector<P> x_, dy_;

 public:
  Mlp<P> model;

 private:
  std::vector<double> want(const std::string& key) const { return reference_.read<double>(reference_.at(key)); }

  void check_forward_and_backward() {
    CHECK(error_of(model.forward(x_).view().data, want("y")) <= tolerance_);
    CHECK(error_of(model.backward(dy_).view().data, want("dx")) <= tolerance_);
    check_gradients(model, reference_, "grad", tolerance_);
  }
  void check_merge() {
    model.set.merge(model.ctx, deltaw::MergeMode::KeepCopy);
    for (std::size_t i = 0; i < layers; ++i) {
      const std::string merged = std::string("merged.") + sizes[i].name;
      CHECK(error_of(model.weight(i).data(), want(merged + ".weight")) <= tolerance_);
      CHECK(error_of(model.bias(i).data(), want(merged + ".bias")) <= tolerance_);
    }
    CHECK(error_of(model.forward(x_).view().data, want("y")) <= tolerance_);
    model.set.unmerge(model.ctx);
  }
  void check_steps() {
    deltaw::Optimizer<deltaw::AdamW> optimizer(script_adamw);
    for (int step = 0; step < 3; ++step) {
      backward();
      optimizer.step(model.ctx, model.set);
    }
    for_each_known(model, reference_, "adamw", [&](auto& p, const std::vector<double>& values) {
      CHECK(error_of(p.value.view().data, values) <= 1e-9);
    });
  }
};

void check_against_peft(const std::string& name) {
  Golden<double>(name, 1e-10).check();
  Golden<float>(name, 1e-5).check();
}

/// Asks the real PEFT whether it reads the checkpoint in `dir` and computes what its reference.safetensors has, where
/// DELTAW_PEFT_PYTHON names a Python that has torch and peft; these are too large to be a need of the tests.
void check_with_peft(const std::filesystem::path& dir) {
  const char* python = std::getenv("DELTAW_PEFT_PYTHON");
  if (python == nullptr) return;
  const std::string script = std::string(DELTAW_SOURCE_DIR) + "/tests/golden/peft_methods.py";
  CHECK(std::system(("'" + std::string(python) + "' '" + script + "' --check '" + dir.string() + "'").c_str()) == 0);
}

}  // namespace

TEST_CASE("LoRA as the real PEFT computes it", "[io][peft][golden]") { check_against_peft("lora"); }
TEST_CASE("rsLoRA with patterns, biases and a module saved whole, as the real PEFT computes it", "[io][peft][golden]") {
  check_against_peft("rslora");
}
TEST_CASE("DoRA as the real PEFT computes it", "[io][peft][golden]") {
  check_against_peft("dora");
  check_against_peft("dora_patterns");
}

TEST_CASE("AdaLoRA as the real PEFT computes it, also with ranks cut", "[io][peft][golden]") {
  check_against_peft("adalora");
  check_against_peft("adalora_pruned");
}
TEST_CASE("AdaLoRA allocates ranks as the real PEFT does", "[io][peft][golden]") {
  Golden<double> golden("adalora", 1e-10);
  deltaw::Optimizer<deltaw::AdamW> optimizer(script_adamw);
  constexpr long steps = 6;
  for (long step = 0; step < steps; ++step) {
    const deltaw::StepInfo info{.step = step, .total_steps = steps};
    golden.model.set.begin_step(golden.model.ctx, info);
    golden.backward();
    golden.model.set.regularize(golden.model.ctx);
    optimizer.step(golden.model.ctx, golden.model.set);
    golden.model.set.after_step(golden.model.ctx, info);
  }
  for_each_known(golden.model, golden.reference(), "allocated", [](auto& p, const std::vector<double>& values) {
    CHECK(error_of(p.value.view().data, values) <= 1e-9);
    if (p.name == "lora_E")
      for (std::size_t i = 0; i < values.size(); ++i) CHECK((p.value.view().data[i] == 0) == (values[i] == 0));
  });
}

TEST_CASE("KaSA as the real PEFT computes it, over the base that it cuts", "[io][peft][golden]") {
  check_against_peft("kasa");
}
TEST_CASE("VeRA as the real PEFT computes it, with projections stored and drawn again", "[io][peft][golden]") {
  check_against_peft("vera");
  check_against_peft("vera_drawn");
}
TEST_CASE("RandLoRA as the real PEFT computes it, dense and sparse", "[io][peft][golden]") {
  for (const char* name : {"randlora", "randlora_pair", "randlora_sparse", "randlora_drawn", "randlora_very_sparse"}) {
    INFO(name);
    check_against_peft(name);
  }
}

TEST_CASE("a golden checkpoint that we read and write keeps its tensors", "[io][peft][golden]") {
  for (const std::string name :
       {"lora", "rslora", "dora", "dora_patterns", "adalora", "adalora_pruned", "vera", "vera_drawn", "randlora",
        "randlora_pair", "randlora_sparse", "randlora_drawn", "randlora_very_sparse", "kasa"}) {
    INFO(name);
    const deltaw_tests::Scratch scratch;
    const auto reference = io::SafetensorsReader::open(golden(name) / "reference.safetensors");
    Mlp<double> model(reference);
    io::load_peft(model.ctx, model.set, "default", golden(name));
    io::save_peft(model.set, "default", scratch / "ours");
    const auto theirs = io::SafetensorsReader::open(golden(name) / std::string(io::peft_tensor_file));
    const auto ours = io::SafetensorsReader::open(scratch / "ours" / std::string(io::peft_tensor_file));
    for (const auto& tensor : theirs.tensors()) {
      INFO(tensor.name);
      const bool copy = tensor.name.ends_with(".proj.randlora_A") || tensor.name.ends_with(".proj.randlora_B") ||
                        tensor.name.ends_with(".head.randlora_A") || tensor.name.ends_with(".head.randlora_B");
      CHECK(ours.contains(tensor.name) == !copy);
      if (!ours.contains(tensor.name)) continue;
      CHECK(ours.at(tensor.name).shape == tensor.shape);
      CHECK(ours.read<double>(ours.at(tensor.name)) == theirs.read<double>(tensor));
    }
    for (const auto& tensor : ours.tensors()) {
      INFO(tensor.name);  // projections, which are always written
      CHECK((theirs.contains(tensor.name) || tensor.name.starts_with("base_model.randlora_") ||
             tensor.name.starts_with("base_model.vera_")));
    }

    std::filesystem::copy(golden(name) / "reference.safetensors", scratch / "ours");
    check_with_peft(scratch / "ours");
  }
}

TEST_CASE("ranks and targets that PEFT must be told in other words come out the same there", "[io][peft][golden]") {
  const deltaw_tests::Scratch scratch;
  const auto reference = io::SafetensorsReader::open(golden("lora") / "reference.safetensors");
  Mlp<double> model(reference), again(reference);
  // Sorted, as files are, ".*proj" would come first; and neither "layers" nor "all-linear" mean the same in PEFT.
  model.set.adapt(model.ctx, {.options = {{"rank", "3"}, {"alpha", "5"}, {"rslora", "true"}, {"bias", "true"}},
                              .targets = {.all_linear = true,
                                          .modules_to_save = {"blocks.0.proj"},
                                          .rank_pattern = {{"1.proj", 1}, {".*proj|head", 2}},
                                          .alpha_pattern = {{"head", 2.5}}},
                              .heads = {}});
  double angle = 0;
  model.set.for_each_parameter([&](auto& p) {
    for (index_t i = 0; i < p.value.size(); ++i) p.value.view().data[i] = std::sin(angle += 1);
    p.changed();
  });
  io::save_peft(model.set, "default", scratch / "ours");
  io::load_peft(again.ctx, again.set, "default", scratch / "ours");
  const auto x = reference.read<double>(reference.at("x")), dy = reference.read<double>(reference.at("dy"));
  const auto values = [](deltaw::Tensor<double>& t) {
    return std::vector<double>(t.view().data, t.view().data + t.size());
  };
  const auto y = values(model.forward(x));
  auto gradient = model.backward(dy);
  const auto dx = values(gradient);
  CHECK(values(again.forward(x)) == y);
  CHECK(again.set.layer("blocks.1.proj").adapter("default").scale() == 5);
  CHECK(again.set.layer("head").adapter("default").scale() == 2.5 / std::sqrt(2.0));

  io::SafetensorsWriter writer;
  for (const auto& tensor : reference.tensors())
    if (tensor.name.starts_with("base.") || tensor.name == "x" || tensor.name == "dy")
      writer.add(tensor.name, tensor.dtype, tensor.shape, reference.bytes(tensor));
  writer.add("y", io::make_shape(7, 3), y);
  writer.add("dx", io::make_shape(7, 6), dx);
  writer.write(scratch / "ours/reference.safetensors");
  check_with_peft(scratch / "ours");
}
