// Checkpoints of the real PEFT (tests/golden/peft_lora.py made them): outputs, every gradient and merged weights.

#include <cmath>
#include <cstdlib>
#include <deque>

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/io/peft.hpp"
#include "scratch.hpp"

namespace io = deltaw::io;
using deltaw::Cpu;
using deltaw::index_t;
using deltaw::MatrixView;

namespace {

constexpr index_t tokens = 7;

/// The model of the script: linear layers with tanh between them, from the base weights of a reference file.
template <class P>
class Mlp {
 public:
  using Set = deltaw::AdapterSet<P, Cpu>;

  explicit Mlp(const io::SafetensorsReader& reference) {
    for (const auto& [name, in, out] : {std::tuple{"blocks.0.proj", 6, 10}, {"blocks.1.proj", 10, 8}, {"head", 8, 3}}) {
      const std::string base = std::string("base.") + name;
      auto& w = weights_.emplace_back(reference.read<P>(reference.at(base + ".weight", io::make_shape(out, in))));
      auto& b = weights_.emplace_back(reference.read<P>(reference.at(base + ".bias", io::make_shape(out))));
      set.add_layer(name, deltaw::dense(w.data(), b.data(), {.in_features = in, .out_features = out}));
      outputs_.emplace_back(tokens, out);
    }
    inputs_.resize(3);
  }

  deltaw::Tensor<P>& forward(const std::vector<P>& x) {
    set.prepare(ctx);
    inputs_[0].bind(MatrixView<P>{const_cast<P*>(x.data()), tokens, 6});
    for (std::size_t i = 0; i < 3; ++i) {
      if (i > 0) {
        auto to = inputs_[i].resize(tokens, outputs_[i - 1].cols());
        for (index_t k = 0; k < to.size(); ++k) to.data[k] = std::tanh(outputs_[i - 1].view().data[k]);
      }
      layer(i).forward(ctx, std::as_const(inputs_[i]).view(), outputs_[i].view(), saved_[i]);
    }
    return outputs_[2];
  }

  deltaw::Tensor<P> backward(std::vector<P> dy) {
    deltaw::zero_grad(ctx, set);
    deltaw::Tensor<P> gradient(tokens, 3);
    std::copy(dy.begin(), dy.end(), gradient.view().data);
    for (std::size_t i = 3; i-- > 0;) {
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
  typename Set::Layer::Saved saved_[3];
};

/// ||got - want|| / ||want||; NaN where something is.
template <class P>
double error_of(const P* got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(DELTAW_SOURCE_DIR) / "tests/golden/peft_lora" / name;
}

template <class P>
void check_against_peft(const std::string& name, double tolerance) {
  const auto reference = io::SafetensorsReader::open(golden(name) / "reference.safetensors");
  const auto want = [&](const std::string& key) { return reference.read<double>(reference.at(key)); };
  Mlp<P> model(reference);
  io::load_peft(model.ctx, model.set, "default", golden(name));

  const auto x = reference.read<P>(reference.at("x", {7, 6}));
  CHECK(error_of(model.forward(x).view().data, want("y")) <= tolerance);
  const auto dx = model.backward(reference.read<P>(reference.at("dy", {7, 3})));
  CHECK(error_of(dx.view().data, want("dx")) <= tolerance);
  int gradients = 0;
  model.set.for_each_parameter([&](const auto& p) {
    INFO(p.owner << "." << p.name);
    CHECK(error_of(p.grad.view().data, want("grad.base_model.model." + p.owner + "." + p.name)) <= tolerance);
    ++gradients;
  });
  CHECK(gradients == (name == "lora" ? 6 : 8));

  model.set.merge(model.ctx, deltaw::MergeMode::Subtract);
  for (std::size_t i = 0; i < 3; ++i) {
    const std::string merged = "merged." + model.set.layer_names()[i];
    CHECK(error_of(model.weight(i).data(), want(merged + ".weight")) <= tolerance);
    CHECK(error_of(model.bias(i).data(), want(merged + ".bias")) <= tolerance);
  }
  CHECK(error_of(model.forward(x).view().data, want("y")) <= tolerance);
}

/// Asks the real PEFT whether it reads the checkpoint in `dir` and computes what its reference.safetensors has, where
/// DELTAW_PEFT_PYTHON names a Python that has torch and peft; these are too large to be a need of the tests.
void check_with_peft(const std::filesystem::path& dir) {
  const char* python = std::getenv("DELTAW_PEFT_PYTHON");
  if (python == nullptr) return;
  const std::string script = std::string(DELTAW_SOURCE_DIR) + "/tests/golden/peft_lora.py";
  CHECK(std::system(("'" + std::string(python) + "' '" + script + "' --check '" + dir.string() + "'").c_str()) == 0);
}

}  // namespace

TEST_CASE("LoRA as the real PEFT computes it", "[io][peft][golden]") {
  check_against_peft<double>("lora", 1e-10);
  check_against_peft<float>("lora", 1e-5);
}

TEST_CASE("rsLoRA with patterns, biases and a module saved whole, as the real PEFT computes it", "[io][peft][golden]") {
  check_against_peft<double>("rslora", 1e-10);
  check_against_peft<float>("rslora", 1e-5);
}

TEST_CASE("a golden checkpoint that we read and write keeps its tensors", "[io][peft][golden]") {
  for (const std::string name : {"lora", "rslora"}) {
    const deltaw_tests::Scratch scratch;
    const auto reference = io::SafetensorsReader::open(golden(name) / "reference.safetensors");
    Mlp<double> model(reference);
    io::load_peft(model.ctx, model.set, "default", golden(name));
    io::save_peft(model.set, "default", scratch / "ours");
    const auto theirs = io::SafetensorsReader::open(golden(name) / std::string(io::peft_tensor_file));
    const auto ours = io::SafetensorsReader::open(scratch / "ours" / std::string(io::peft_tensor_file));
    CHECK(ours.tensors() == theirs.tensors());
    for (const auto& tensor : theirs.tensors()) CHECK(ours.read<double>(tensor) == theirs.read<double>(tensor));

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
