// All or nothing: what an error in the middle leaves behind, and what must not be taken for fresh.

#include <array>
#include <vector>

#include "catch.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "deltaw/optim/sgd.hpp"
#include "message.hpp"
#include "support/methods.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;

namespace {
using Set = dw::AdapterSet<float, dw::Cpu>;
using Layer = Set::Layer;

struct Model {
  std::vector<float> first = std::vector<float>(12, 1), second = std::vector<float>(12, 2), bias{5, 6, 7};
  dw::Cpu::Context ctx;
  Set set;
  Model() {
    set.add_layer("a.q", dw::dense(first.data(), bias.data(), {.in_features = 4, .out_features = 3}));
    set.add_layer("b.q", dw::dense(second.data(), nullptr, {.in_features = 4, .out_features = 3}));
  }
  dw::AdaptRequest request(std::string name = "default") {
    return {.name = std::move(name), .options = {{"rank", "2"}}, .targets = {.names = {"q"}}};
  }
  void fill_up() {
    set.for_each_parameter([](auto& p) {
      for (dw::index_t i = 0; i < p.value.size(); ++i) p.value.view().data[i] = 0.5f + static_cast<float>(i);
    });
  }
};

/// Fails at its second layer.
struct FailingInit {
  int* calls;
  template <class A, class Base>
  void operator()(dw::Cpu::Context&, A&, const Base&) const {
    if (++*calls == 2) throw std::runtime_error("no more");
  }
};
}  // namespace

TEST_CASE("an initializer that fails leaves no layer with an adapter, and the name free") {
  Model m;
  int calls = 0;
  CHECK_THROWS_WITH(m.set.adapt(m.ctx, m.request(), FailingInit{&calls}), "no more");
  CHECK_FALSE(m.set.layer("a.q").has("default"));
  CHECK_FALSE(m.set.has("default"));
  CHECK_NOTHROW(m.set.adapt(m.ctx, m.request()));
}

TEST_CASE("a merge that runs out of workspace in its second layer leaves both weights as they were") {
  // Over bf16 the products take tiles from the workspace: enough for the first layer, not for the second.
  std::vector<dw::bf16> small(4, dw::bf16(1.0f)), large(64 * 64, dw::bf16(2.0f));
  alignas(64) static std::array<std::byte, 4096> memory;
  for (auto mode : {dw::MergeMode::KeepCopy, dw::MergeMode::Subtract}) {
    dw::Cpu::Context ctx;
    dw::AdapterSet<float, dw::Cpu, dw::bf16> set;
    set.add_layer("small", dw::dense(small.data(), nullptr, {.in_features = 2, .out_features = 2}));
    set.add_layer("large", dw::dense(large.data(), nullptr, {.in_features = 64, .out_features = 64}));
    set.adapt(ctx, {.options = {{"rank", "1"}}, .targets = {.names = {"small", "large"}}});
    set.for_each_parameter([](auto& p) {
      dw::Cpu::Context c, &r = c;
      dw::Cpu::fill(r, p.value.view(), 1);
    });
    dw::Cpu::Context little(memory.data(), memory.size());
    CHECK_THROWS_AS(set.merge(little, mode), dw::MemoryError);
    CHECK_FALSE(set.layer("small").merged());
    CHECK_FALSE(set.layer("large").merged());
    for (auto w : small) CHECK(static_cast<float>(w) == 1);
    for (auto w : large) REQUIRE(static_cast<float>(w) == 2);
    CHECK_NOTHROW(set.merge(ctx, mode));
    CHECK(static_cast<float>(small[0]) != 1);
    set.unmerge(ctx);
    CHECK(static_cast<float>(small[0]) == 1);
  }
}

TEST_CASE("two layers over one weight come back from a merge") {
  Model m;
  m.set.add_layer("tied.q", dw::dense(m.first.data(), m.bias.data(), {.in_features = 4, .out_features = 3}));
  m.set.adapt(m.ctx, m.request());
  m.fill_up();
  m.set.merge(m.ctx, dw::MergeMode::KeepCopy);
  CHECK(m.first[0] != 1);
  m.set.unmerge(m.ctx);
  for (float w : m.first) CHECK(w == 1);
}

TEST_CASE("a backward after unmerge finds nothing of a call before the merge") {
  Model m;
  m.set.adapt(m.ctx, m.request());
  Layer& layer = m.set.layer("a.q");
  Layer::Saved saved;
  dw::Tensor<float> x(2, 4), y(2, 3), dy(2, 3), dx(2, 4);
  layer.forward(m.ctx, x.view(), y.view(), saved);
  layer.merge(m.ctx, dw::MergeMode::KeepCopy);
  layer.forward(m.ctx, x.view(), y.view(), saved);
  layer.unmerge(m.ctx);
  CHECK(message_of<dw::StaleError>([&] { layer.backward(m.ctx, x.view(), dy.view(), dx.view(), saved); }) ==
        "AdaptedLinear.backward: saved.adapters: got 0, want 1, those of this layer's forward");
}

TEST_CASE("backward_input is for a backward without dx, once; a dx of rows but no memory is refused") {
  Model m;
  dw::Lora<float, dw::Cpu> lora({4, 3}, {.rank = 2});
  decltype(lora)::Saved saved;
  dw::Tensor<float> x(2, 4), y(2, 3), dy(2, 3), dx(2, 4);
  const auto stale = [&] { lora.backward_input(m.ctx, {}, dx.view(), saved); };
  const std::string want = "Lora: saved.h: got none, want a backward without dx just before backward_input";
  lora.forward(m.ctx, {}, x.view(), y.view(), saved);
  lora.backward(m.ctx, {}, x.view(), dy.view(), dx.view(), saved);
  CHECK(message_of<dw::StaleError>(stale) == want);
  lora.backward(m.ctx, {}, x.view(), dy.view(), {}, saved);
  CHECK_NOTHROW(stale());
  CHECK(message_of<dw::StaleError>(stale) == want);
  const dw::MatrixView<float> null(nullptr, 2, 4);
  CHECK(message_of<dw::ShapeError>([&] { lora.backward(m.ctx, {}, x.view(), dy.view(), null, saved); }) ==
        "Lora: dx.data (pointer): got null, want memory for 8");
}

TEST_CASE("full fine-tuning: no initializer touches the weight, a copy trains nothing until bound, rebinding forgets") {
  Model m;
  m.set.adapt(m.ctx, {.method = "full", .targets = {.names = {"q"}}});
  CHECK(m.bias[0] == 5);
  CHECK(m.first[0] == 1);
  CHECK(dw::to_string(m.set.counts()) == "trainable params: 27 || all params: 27 || trainable%: 100.0000");

  dw::FullDelta<float, dw::Cpu> full({4, 3}, {});
  const auto base = dw::dense(m.first.data(), m.bias.data(), {.in_features = 4, .out_features = 3});
  full.bind_weight(m.ctx, base.weight, base.bias);
  dw::init::Kaiming{}(m.ctx, full, base);
  CHECK(m.bias[0] == 5);
  auto copy = full;
  dw::Tensor<float> x(2, 4), y(2, 3);
  decltype(full)::Saved saved;
  CHECK(message_of<dw::StaleError>([&] { copy.forward(m.ctx, base, x.view(), y.view(), saved); }) ==
        "FullDelta.forward: weight: got none, want bind_weight to be called first");

  std::vector<dw::bf16> w(12, dw::bf16(1.0f)), old_bias(3, dw::bf16(5.0f)), other(12, dw::bf16(2.0f));
  dw::FullDelta<float, dw::Cpu, dw::bf16> half({4, 3}, {});
  half.bind_weight(m.ctx, dw::MatrixView(w.data(), 3, 4), dw::vector_view(old_bias.data(), 3));
  half.bind_weight(m.ctx, dw::MatrixView(other.data(), 3, 4), dw::MatrixView<dw::bf16>{});
  for (auto& b : old_bias) b = dw::bf16(7.0f);
  half.prepare(m.ctx, {});
  for (auto b : old_bias) CHECK(static_cast<float>(b) == 7);
}

TEST_CASE("a rank or alpha of its own for a method that has none is refused; so is a name that is taken or empty") {
  Model m;
  auto request = m.request();
  request.method = "full";
  request.options = {};
  request.targets.rank_pattern = {{"a.q", 3}};
  CHECK(message_of<dw::OptionError>([&] { m.set.adapt(m.ctx, request); }) ==
        "AdapterSet.adapt: rank_pattern: got one for method 'full', want none: the method has no rank");
  request.targets.rank_pattern = {};
  request.targets.alpha_pattern = {{"a.q", 3}};
  CHECK(message_of<dw::OptionError>([&] { m.set.adapt(m.ctx, request); }) ==
        "AdapterSet.adapt: alpha_pattern: got one for method 'full', want none: the method has no alpha");
  const auto base = dw::dense(m.first.data(), nullptr, {.in_features = 4, .out_features = 3});
  m.set.add_parameter("norm", dw::vector_view(m.bias.data(), 3));
  CHECK(message_of<dw::NameError>([&] { m.set.add_layer("norm", base); }) ==
        "AdapterSet.add_layer: name: got 'norm', want one not taken yet");
  CHECK(message_of<dw::NameError>([&] { m.set.add_layer("", base); }) ==
        "AdapterSet.add_layer: name: got '', want one not empty");
}

TEST_CASE("views of negative size are refused before a BLAS sees them") {
  Model m;
  const auto base = dw::dense(m.first.data(), nullptr, {.in_features = 4, .out_features = 3});
  const dw::MatrixView<float> x(m.second.data(), -2, 4), y(m.bias.data(), -2, 3);
  CHECK(message_of<dw::ShapeError>([&] { base.forward(m.ctx, x, y); }) ==
        "DenseLinear.forward: x.rows (tokens): got -2, want 0 or more");
}

TEST_CASE("what is subtracted must be what was added: a step while merged is found at unmerge") {
  for (auto mode : {dw::MergeMode::Subtract, dw::MergeMode::KeepCopy}) {
    Model m;
    m.set.adapt(m.ctx, m.request());
    m.fill_up();
    const auto before = m.first;
    m.set.merge(m.ctx, mode);
    const auto merged = m.first;
    dw::Optimizer<dw::Sgd>(dw::Sgd{.learning_rate = 0.1}).step(m.ctx, m.set);
    if (mode == dw::MergeMode::KeepCopy) {
      m.set.unmerge(m.ctx);
      CHECK(m.first == before);
      continue;
    }
    CHECK(message_of<dw::StaleError>([&] { m.set.unmerge(m.ctx); }) ==
          "AdaptedLinear.unmerge: parameters: got ones changed since merge, want those that were added, or "
          "MergeMode::KeepCopy");
    CHECK(m.first == merged);
    CHECK(m.set.layer("a.q").merged());
  }
}

TEST_CASE("an adapter is removed from every layer, and its name is free again") {
  Model m;
  m.set.adapt(m.ctx, m.request());
  m.set.adapt(m.ctx, m.request("other"));
  m.set.merge(m.ctx, dw::MergeMode::KeepCopy);
  CHECK(message_of<dw::StaleError>([&] { m.set.remove(m.ctx, "default"); }) ==
        "AdapterSet.remove: layer 'a.q': got a merged one, want unmerge first");
  CHECK(m.set.layer("a.q").adapter_count() == 2);
  m.set.unmerge(m.ctx);
  m.set.remove(m.ctx, "default");
  CHECK_FALSE(m.set.has("default"));
  CHECK(m.set.layer("b.q").adapter_count() == 1);
  CHECK(m.set.counts().trained == 2 * 2 * (4 + 3));
  CHECK_NOTHROW(m.set.adapt(m.ctx, m.request()));
  CHECK(message_of<dw::NameError>([&] { m.set.remove(m.ctx, "nosuch"); }) ==
        "AdapterSet: adapter: got 'nosuch', want the name of an earlier `adapt`");
}

TEST_CASE("a negative count of frozen parameters is refused") {
  Model m;
  CHECK(message_of<dw::OptionError>([&] { m.set.add_frozen_count(-5); }) ==
        "AdapterSet.add_frozen_count: count: got -5, want 0 or more");
}
