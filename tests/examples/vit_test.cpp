// The example model's hand-written backward against central differences in double.

#include "vit/vit.hpp"

#include "catch.hpp"
#include "support/methods.hpp"

namespace {

namespace dw = deltaw;
using vit::index_t;
using Model = vit::Vit<double>;

constexpr vit::Shape tiny{
    .patch_pixels = 3, .tokens = 5, .width = 6, .blocks = 2, .heads = 2, .mlp_ratio = 2, .classes = 4};
constexpr index_t images = 18;  // more than one piece

struct Batch {
  dw::Tensor<double> patches{images * tiny.tokens, tiny.patch_pixels};
  std::vector<int> labels{2, 0, 3, 1, 1, 2, 0, 0, 3, 2, 1, 3, 0, 2, 2, 1, 3, 0};
};

Batch make_batch(Model& model) {
  Batch batch;
  dw::Cpu::fill_normal(model.context(), dw::RandomKey{5}, {}, 1, batch.patches.view());
  return batch;
}

/// Every value random and not small, adapters too, so that no term of the gradient hides behind a zero.
void randomise(Model& model) {
  std::uint64_t count = 0;
  const auto fill = [&](auto view) {
    dw::Cpu::fill_normal(model.context(), dw::RandomKey{9}.fold(++count), {}, 0.5, view);
  };
  for (auto& [name, tensor] : model.tensors()) fill(tensor.view());
  model.set().for_each_parameter([&](auto& p) {
    fill(p.value.view());
    p.changed();
  });
}

double loss_of(Model& model, const Batch& batch) {
  return vit::cross_entropy<double>(model.forward(batch.patches.view(), {.training = true}), batch.labels, images);
}

/// Relative error of the gradient of each trained tensor, norm by norm; the largest.
double worst_gradient_error(Model& model) {
  randomise(model);
  const Batch batch = make_batch(model);
  dw::zero_grad(model.context(), model.set());
  model.accumulate_gradients(batch.patches.view(), batch.labels, {});
  double worst = 0;
  int tensors = 0;
  model.set().for_each_parameter([&](auto& p) {
    constexpr double step = 1e-5;
    double error2 = 0, norm2 = 0;
    for (index_t i = 0; i < p.value.size(); ++i) {
      double& value = p.value.view().data[i];
      const double kept = value;
      value = kept + step;
      const double above = loss_of(model, batch);
      value = kept - step;
      const double below = loss_of(model, batch);
      value = kept;
      const double expected = (above - below) / (2 * step), got = p.grad.view().data[i];
      error2 += (got - expected) * (got - expected);
      norm2 += expected * expected;
    }
    INFO(p.owner << "." << p.name);
    // A key's bias moves every score of a row alike, which softmax ignores: its true gradient is zero.
    const double error = std::sqrt(error2 / std::max(norm2, 1e-4));
    CHECK(error < 1e-6);
    worst = std::max(worst, error);
    ++tensors;
  });
  CHECK(tensors > 0);
  return worst;
}

void adapt(Model& model, std::string method, dw::Targets targets) {
  std::vector<dw::OptionText> options;
  if (method == "lora") options = {{"rank", "2"}, {"alpha", "4"}};
  model.set().adapt(
      model.context(),
      {.method = std::move(method), .options = options, .targets = std::move(targets), .heads = {"head"}});
}

}  // namespace

TEST_CASE("The model's gradients: LoRA on every linear layer") {
  Model model(tiny);
  adapt(model, "lora", {.all_linear = true, .modules_to_save = {"head"}});
  CHECK(worst_gradient_error(model) < 1e-6);
}

TEST_CASE("The model's gradients: everything trained") {
  Model model(tiny, vit::Rest::Trained);
  adapt(model, "full", {.all_linear = true, .modules_to_save = {"head"}});
  CHECK(worst_gradient_error(model) < 1e-6);
  index_t all = 0;
  for (const auto& [name, tensor] : model.tensors()) all += tensor.size();
  CHECK(dw::count_trained(model.set()) == all);
}

TEST_CASE("The model's gradients: the head alone") {
  Model model(tiny);
  adapt(model, "lora", {.modules_to_save = {"head"}});
  CHECK(worst_gradient_error(model) < 1e-6);
}

TEST_CASE("The model's gradients where only some layers are trained") {
  for (const char* name : {"blocks.0.mlp.fc2", "blocks.1.mlp.fc1", "blocks.1.attention.output",
                           "blocks.0.attention.key", "blocks.1.attention.value", "patch_embed"}) {
    INFO(name);
    for (const char* method : {"lora", "full"}) {
      Model model(tiny);
      adapt(model, method, {.names = {name}});
      CHECK(worst_gradient_error(model) < 1e-6);
    }
  }
}

TEST_CASE("Layers that keep nothing for backward give the same logits") {
  Model model(tiny);
  adapt(model, "lora", {.all_linear = true, .modules_to_save = {"head"}});
  randomise(model);
  const Batch batch = make_batch(model);
  const dw::Tensor<double> kept = [&] {
    const auto logits = model.forward(batch.patches.view(), {.training = true});
    dw::Tensor<double> copy(logits.rows, logits.cols);
    dw::Cpu::copy(model.context(), logits, copy.view());
    return copy;
  }();
  const auto plain = model.forward(batch.patches.view());
  for (index_t i = 0; i < plain.rows; ++i)
    for (index_t j = 0; j < plain.cols; ++j) CHECK(plain(i, j) == kept.view()(i, j));
}

TEST_CASE("The number of threads changes no bit of the sums over tokens") {
  const auto gradients = [](int threads) {
    examples::set_threads(threads);
    Model model(tiny, vit::Rest::Trained);
    adapt(model, "full", {.all_linear = true, .modules_to_save = {"head"}});
    randomise(model);
    const Batch batch = make_batch(model);
    dw::zero_grad(model.context(), model.set());
    model.accumulate_gradients(batch.patches.view(), batch.labels, {});
    std::vector<double> values;
    for (const char* name : {"norm.weight", "position_embedding"})
      model.set().for_each_parameter([&](const auto& p) {
        if (p.name == name) values.insert(values.end(), p.grad.view().data, p.grad.view().data + p.grad.size());
      });
    return values;
  };
  const int before = examples::max_threads();
  const auto one = gradients(1), three = gradients(3);
  examples::set_threads(before);
  CHECK(one == three);
  CHECK(one.size() == static_cast<std::size_t>(tiny.width + tiny.tokens * tiny.width));
}
