#include "deltaw/io/state.hpp"

#include <cmath>
#include <functional>
#include <limits>

#include "catch.hpp"
#include "scratch.hpp"
#include "small_model.hpp"
#include "support/methods.hpp"

namespace io = deltaw::io;
using deltaw::AdaptRequest;
using deltaw::Cpu;
using deltaw::FormatError;
using deltaw::index_t;
using deltaw::NameError;
using deltaw::OptionError;
using deltaw::ShapeError;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;
using deltaw_tests::SmallModel;
using deltaw_tests::snapshot;

namespace {

constexpr std::uint64_t any_size = 1u << 30;

AdaptRequest adapters(const std::string& dropout = "0.3") {
  return {.options = {{"rank", "2"}, {"alpha", "3"}, {"bias", "true"}, {"dropout", dropout}, {"seed", "11"}},
          .targets = {.names = {"query", "value"}, .modules_to_save = {"head"}}};
}

/// A run over layers that each learn to say nothing, with dropout, from data that is a function of its position.
template <class P, class Rule>
class Run {
 public:
  explicit Run(Rule rule) : model(true), optimizer_(rule, {.max_gradient_norm = 0.5}) {
    model.set.adapt(model.ctx, adapters());
    state.seed = 11;
    state.loss_scale.growth_interval = 3;
  }

  void train(int steps) {
    for (int i = 0; i < steps; ++i) {
      model.set.prepare(model.ctx);
      for (const std::string& name : model.set.layer_names()) backward(model.set.layer(name));
      model.set.for_each_extra([&](auto& p) {
        for (index_t k = 0; k < p.grad.size(); ++k) p.grad.view().data[k] = p.value.view().data[k];
      });
      if (state.step % 4 == 2) spoil();
      model.set.finish(model.ctx);
      optimizer_.set_loss_scale(state.loss_scale.value);
      state.loss_scale.update(optimizer_.step(model.ctx, model.set));
      deltaw::zero_grad(model.ctx, model.set);
      ++state.step;
      state.data_position += 3;
      state.skipped = optimizer_.skipped();
    }
  }

  void save(const std::filesystem::path& path) { io::save_state(path, model.set, state); }
  void load(const std::filesystem::path& path) {
    std::vector<std::string> warnings;
    state = io::load_state(path, model.set, &warnings);
    CHECK(warnings.empty());
    optimizer_.set_skipped(state.skipped);
  }

  SmallModel<P> model;
  io::TrainingState state;

 private:
  using Layer = typename SmallModel<P>::Set::Layer;

  void backward(Layer& layer) {
    constexpr index_t tokens = 3;
    deltaw::Tensor<P> x(tokens, layer.shape().in_features), y(tokens, layer.shape().out_features);
    for (index_t i = 0; i < x.size(); ++i)
      x.view().data[i] = static_cast<P>(std::cos(static_cast<double>(state.data_position) + static_cast<double>(i)));
    typename Layer::Saved saved;
    saved.call = {.training = true, .step = state.step, .micro_batch = 1};
    layer.forward(model.ctx, std::as_const(x).view(), y.view(), saved);
    const auto scale = static_cast<P>(state.loss_scale.value);
    for (index_t i = 0; i < y.size(); ++i) y.view().data[i] *= scale;
    layer.backward(model.ctx, std::as_const(x).view(), y.view(), {}, saved);
  }
  /// A step that must be skipped.
  void spoil() {
    model.set.layer("blocks.0.query").for_each_parameter([](auto& p) {
      p.grad.view().data[0] = std::numeric_limits<P>::quiet_NaN();
    });
  }

  deltaw::Optimizer<Rule> optimizer_;
};

template <class P, class Rule>
void check_resume(Rule rule, std::size_t slots) {
  const Scratch scratch;
  Run<P, Rule> whole(rule), first(rule), second(rule);
  whole.train(11);
  first.train(5);
  first.save(scratch / "state");
  second.model.shake(3);  // whatever it began with must not matter
  second.train(1);
  second.load(scratch / "state");
  CHECK(snapshot(second.model.set) == snapshot(first.model.set));
  second.train(6);
  const auto expected = snapshot(whole.model.set);
  CHECK(snapshot(second.model.set) == expected);
  CHECK(expected.size() == (4 * 3 + 2 + 1) * (1 + slots));
  for (std::size_t i = 0; i < whole.model.layers.size(); ++i)
    CHECK(second.model.layers[i].weight == whole.model.layers[i].weight);
  CHECK(second.model.norm == whole.model.norm);
  CHECK(second.state.step == 11);
  CHECK(second.state.data_position == 33);
  CHECK(second.state.skipped == 3);
  CHECK(whole.state.skipped == 3);
  CHECK(second.state.loss_scale.value == whole.state.loss_scale.value);
  CHECK(second.state.loss_scale.good_steps == whole.state.loss_scale.good_steps);
}

/// A small state, saved once, and what becomes of it when the file or the set is changed.
struct Saved {
  Scratch scratch;
  std::filesystem::path path = scratch / "state";

  Saved() {
    SmallModel<float> model;
    model.set.adapt(model.ctx, adapters());
    step(model);
    io::save_state(path, model.set, {.step = 7, .seed = 5});
  }
  static void step(SmallModel<float>& model) {
    model.set.for_each_parameter([&](auto& p) { Cpu::fill(model.ctx, p.grad.view(), 0.25); });
    deltaw::Optimizer<deltaw::AdamW>().step(model.ctx, model.set);
  }

  /// Rewrites the file with another header (as JSON) or other tensors.
  template <class Edit>
  void edit(Edit edit) {
    struct Tensor {
      std::vector<std::uint64_t> shape;
      std::vector<float> values;
    };
    std::map<std::string, Tensor> tensors;
    std::string text;
    {
      const auto reader = io::SafetensorsReader::open(path);
      for (const auto& info : reader.tensors()) tensors[info.name] = {info.shape, reader.read<float>(info)};
      text = reader.metadata().at("deltaw_state");
    }
    auto json = nlohmann::json::parse(text);
    edit(json, tensors);
    io::SafetensorsWriter writer;
    writer.set_metadata("deltaw_state", json.dump());
    for (const auto& [name, tensor] : tensors) writer.add(name, tensor.shape, tensor.values);
    writer.write(path);
  }

  /// What load_state says into a set like the saved one, after `change`; the set must stay as it was.
  template <class E>
  std::string refusal(const std::function<void(SmallModel<float>&)>& change = {}) {
    SmallModel<float> model;
    if (change) {
      change(model);
    } else {
      model.set.adapt(model.ctx, adapters());
    }
    if (!model.set.layer("head").merged()) {
      model.shake(9);
      step(model);
    }
    const auto before = snapshot(model.set);
    const std::string text = error_text<E>([&] { io::load_state(path, model.set); });
    CHECK(snapshot(model.set) == before);
    return text;
  }
};

}  // namespace

TEST_CASE("a resumed run gives the bits of one that was never interrupted", "[io][state]") {
  SECTION("AdamW, float") { check_resume<float>(deltaw::AdamW{.learning_rate = 1e-2}, 2); }
  SECTION("AdamW, double") { check_resume<double>(deltaw::AdamW{.learning_rate = 1e-2}, 2); }
  SECTION("SGD with momentum, float") { check_resume<float>(deltaw::Sgd{.momentum = 0.9, .dampening = 0.5}, 1); }
  SECTION("SGD with Nesterov's momentum, double") {
    check_resume<double>(deltaw::Sgd{.momentum = 0.9, .nesterov = true}, 1);
  }
}

TEST_CASE("the program's own counts come back", "[io][state]") {
  const Scratch scratch;
  deltaw::Lora<double, Cpu> lora({.in_features = 4, .out_features = 3}, {.rank = 2});
  const io::TrainingState state{.step = 18446744073709551615u,
                                .seed = 18446744073709551614u,
                                .data_position = 9007199254740993,
                                .skipped = 4,
                                .loss_scale = {.value = 0.1, .growth = 3, .backoff = 1e-300, .good_steps = 17},
                                .extra = {{"epoch", "2"}, {"epoch", "\"twice\"\n"}, {"", ""}}};
  io::save_state(scratch / "state", lora, state);
  const auto got = io::load_state(scratch / "state", lora);
  CHECK(got.step == state.step);
  CHECK(got.seed == state.seed);
  CHECK(got.data_position == state.data_position);
  CHECK(got.skipped == 4);
  CHECK(got.loss_scale.value == 0.1);
  CHECK(got.loss_scale.growth == 3);
  CHECK(got.loss_scale.backoff == 1e-300);
  CHECK(got.loss_scale.growth_interval == 2000);
  CHECK(got.loss_scale.good_steps == 17);
  CHECK(got.extra == state.extra);
  CHECK(got.environment.version == deltaw::version);
}

TEST_CASE("names of tensors are LAYER.PARAMETER and LAYER.PARAMETER#SLOT", "[io][state]") {
  const Scratch scratch;
  SmallModel<float> model(true);
  AdaptRequest r{.options = {{"rank", "1"}}, .targets = {.names = {"blocks.0.query"}}};
  model.set.adapt(model.ctx, r);
  r.name = "second";
  model.set.adapt(model.ctx, r);
  Saved::step(model);
  io::save_state(scratch / "state", model.set, {});
  std::vector<std::string> names;
  const auto reader = io::SafetensorsReader::open(scratch / "state");
  for (const auto& info : reader.tensors()) names.push_back(info.name);
  std::vector<std::string> expected;
  for (const std::string name : {"blocks.0.query.lora_A.weight", "blocks.0.query.lora_A.weight@2",
                                 "blocks.0.query.lora_B.weight", "blocks.0.query.lora_B.weight@2", "norm.weight"})
    for (const std::string slot : {"", "#exp_avg", "#exp_avg_sq"}) expected.push_back(name + slot);
  std::sort(names.begin(), names.end());
  std::sort(expected.begin(), expected.end());
  CHECK(names == expected);
  CHECK(reader.at("norm.weight").shape == io::make_shape(1, 6));

  SmallModel<float> other(true);
  r.name = "default";
  other.set.adapt(other.ctx, r);
  r.name = "second";
  other.set.adapt(other.ctx, r);
  other.shake(5);
  io::load_state(scratch / "state", other.set);
  CHECK(snapshot(other.set) == snapshot(model.set));
}

TEST_CASE("memory with a stride, slots of their own shape, and slots that the file has not", "[io][state]") {
  const Scratch scratch;
  const auto make = [](SmallModel<float> & model, std::vector<float> & memory) -> auto& {
    return model.set.add_parameter("table.weight", deltaw::MatrixView<float>{memory.data(), 3, 2, 4});
  };
  SmallModel<float> model, other;
  std::vector<float> memory{1, 2, -1, -1, 3, 4, -1, -1, 5, 6, -1, -1}, others(12, -2.0f);
  auto& p = make(model, memory);
  auto& q = make(other, others);
  const auto add_slot = [](auto& parameter) -> auto& {
    parameter.slots.push_back({"gram", deltaw::RankAxis::Both, deltaw::Tensor<float>(2, 2)});
    return parameter.slots.back().value;
  };
  add_slot(p).view()(1, 0) = 7;
  io::save_state(scratch / "state", model.set, {});
  const auto load = [&] { io::load_state(scratch / "state", other.set); };
  CHECK_THAT(error_text<ShapeError>(load),
             ContainsSubstring("tensor 'table.weight#gram' shape: got [2, 2], want [3, 2]"));
  CHECK(others == std::vector<float>(12, -2.0f));
  add_slot(q);
  q.slot("exp_avg");
  load();
  CHECK(others == std::vector<float>{1, 2, -2, -2, 3, 4, -2, -2, 5, 6, -2, -2});
  REQUIRE(q.slots.size() == 1);
  CHECK(q.slots[0].name == "gram");
  CHECK(q.slots[0].rank_axis == deltaw::RankAxis::Both);
  CHECK(q.slots[0].value.view()(1, 0) == 7);
}

TEST_CASE("one adapter and one layer have states too", "[io][state]") {
  const Scratch scratch;
  Cpu::Context ctx;
  std::vector<float> w(12, 0.5f);
  deltaw::AdaptedLinear<float, Cpu> layer(deltaw::dense(w.data(), nullptr, {.in_features = 4, .out_features = 3}));
  layer.add(ctx, "mine", deltaw::Lora<float, Cpu>({.in_features = 4, .out_features = 3}, {.rank = 2}));
  layer.for_each_parameter([](auto& p) { p.value.view()(0, 0) = 3; });
  io::save_state(scratch / "state", layer, {.step = 2});
  layer.for_each_parameter([](auto& p) { p.value.view()(0, 0) = 4; });
  CHECK(io::load_state(scratch / "state", layer).step == 2);
  layer.for_each_parameter([](auto& p) { CHECK(p.value.view()(0, 0) == 3); });
  deltaw::Lora<float, Cpu> lora({.in_features = 4, .out_features = 3}, {.rank = 2});
  io::load_state(scratch / "state", lora);
  lora.for_each_parameter([](auto& p) { CHECK(p.value.view()(0, 0) == 3); });
  layer.merge(ctx, deltaw::MergeMode::KeepCopy);
  CHECK_THAT(error_text<deltaw::StaleError>([&] { io::save_state(scratch / "state", layer, {}); }),
             ContainsSubstring("save_state: layer 'layer': got a merged layer, want unmerge first"));
}

TEST_CASE("another environment is a warning, in words", "[io][state]") {
  Saved saved;
  SmallModel<float> model;
  model.set.adapt(model.ctx, adapters("0.1"));
  io::Environment here = io::current_environment();
  here.blas = "OpenBLAS 9";
  here.threads = "64";
  std::vector<std::string> warnings{"an older one"};
  io::load_state(saved.path, model.set, &warnings, here);
  REQUIRE(warnings.size() == 4);
  const std::string file = saved.path.string() + ": ", blas = io::current_environment().blas;
  CHECK(warnings[1] == file + "blas: it was saved with '" + blas +
                           "' and is resumed with 'OpenBLAS 9'; results may differ in their last bits");
  CHECK_THAT(warnings[2], ContainsSubstring(file + "threads: it was saved with '"));
  CHECK_THAT(warnings[3], ContainsSubstring("options of adapter 'default': it was saved with {\"alpha\":\"3\""));
  CHECK_FALSE(blas.empty());
  CHECK(io::current_environment().version == deltaw::version);
  CHECK(std::stoi(io::current_environment().vector_bits) >= 128);
}

TEST_CASE("a state that does not fit the set is refused, with nothing changed", "[io][state]") {
  Saved saved;
  SECTION("other adapters") {
    CHECK_THAT(saved.refusal<NameError>([](SmallModel<float>& m) {
      auto r = adapters();
      r.name = "other";
      m.set.adapt(m.ctx, r);
    }),
               ContainsSubstring("adapters: got 'other' (lora) in this set, want 'default' (lora), as saved"));
    CHECK_THAT(saved.refusal<NameError>([](SmallModel<float>&) {}), ContainsSubstring("got no adapter in this set"));
  }
  SECTION("another scale") {
    CHECK_THAT(saved.refusal<OptionError>([](SmallModel<float>& m) {
      m.set.adapt(m.ctx, adapters());
      m.set.layer("blocks.1.query").set_scale("default", 0.5);
    }),
               ContainsSubstring("scale of adapter 'default' on layer 'blocks.1.query': got 0.5, want 1.5, as saved"));
  }
  SECTION("another rank") {
    CHECK_THAT(saved.refusal<ShapeError>([](SmallModel<float>& m) {
      auto r = adapters();
      r.options[0].second = "4";
      r.options[1].second = "6";
      m.set.adapt(m.ctx, r);
    }),
               ContainsSubstring("tensor 'blocks.0.query.lora_A.weight' shape: got [2, 6], want [4, 6]"));
  }
  SECTION("a parameter that the file has not") {
    std::vector<float> gain(2);
    CHECK_THAT(saved.refusal<NameError>([&](SmallModel<float>& m) {
      m.set.adapt(m.ctx, adapters());
      m.set.add_parameter("gain", deltaw::vector_view(gain.data(), 2));
    }),
               ContainsSubstring("tensor 'gain': got no such tensor"));
  }
  SECTION("a parameter that the set has not") {
    CHECK_THAT(saved.refusal<NameError>([](SmallModel<float>& m) {
      auto r = adapters();
      r.targets.modules_to_save.clear();
      m.set.adapt(m.ctx, r);
    }),
               ContainsSubstring("tensor 'head.bias': got it and 5 more that nothing here takes, want only the"));
  }
  SECTION("another type") {
    SmallModel<double> model;
    model.set.adapt(model.ctx, adapters());
    const auto before = snapshot(model.set);
    CHECK_THAT(error_text<FormatError>([&] { io::load_state(saved.path, model.set); }),
               ContainsSubstring("lora_A.weight' dtype: got F32, want F64, the type of this set's parameters"));
    CHECK(snapshot(model.set) == before);
  }
  SECTION("a merged layer") {
    CHECK_THAT(saved.refusal<deltaw::StaleError>([](SmallModel<float>& m) {
      m.set.adapt(m.ctx, adapters());
      m.set.merge(m.ctx, deltaw::MergeMode::KeepCopy);
    }),
               ContainsSubstring("load_state: layer 'blocks.0.query': got a merged layer, want unmerge first"));
  }
}

TEST_CASE("a state file that is not right is refused, with nothing changed", "[io][state]") {
  Saved saved;
  const std::string file = saved.path.string() + ": ";
  SECTION("moments that are not finite") {
    saved.edit([](auto&, auto& tensors) {
      tensors.at("head.weight#exp_avg_sq").values[2] = std::numeric_limits<float>::infinity();
    });
    CHECK_THAT(saved.refusal<deltaw::NonFiniteError>(),
               ContainsSubstring(file + "tensor 'head.weight#exp_avg_sq' element 2: got inf, want a finite number"));
  }
  SECTION("moments of another shape") {
    saved.edit([](auto&, auto& tensors) { tensors.at("head.weight#exp_avg").shape = {5, 3}; });
    CHECK_THAT(saved.refusal<ShapeError>(), ContainsSubstring("'head.weight#exp_avg' shape: got [5, 3], want [3, 5]"));
  }
  SECTION("a slot of no parameter") {
    saved.edit([](auto&, auto& tensors) { tensors["tail.weight#exp_avg"] = {{1}, {0}}; });
    CHECK_THAT(saved.refusal<NameError>(), ContainsSubstring("tensor 'tail.weight#exp_avg': got it and 0 more"));
  }
  SECTION("a newer library's") {
    saved.edit([](auto& json, auto&) { json["format"] = 2; });
    CHECK_THAT(
        saved.refusal<FormatError>(),
        ContainsSubstring(file + "format: got 2, want at most 1: a newer deltaw than this 0.1.0 wrote the file"));
  }
  SECTION("fields that are missing or of another type") {
    struct Case {
      const char* field;
      nlohmann::json value;
      const char* message;
    };
    const std::vector<Case> cases{
        {"step", nullptr, "field 'step': got 'null', want a whole number of 0 or more"},
        {"seed", -1, "field 'seed': got '-1', want a whole number of 0 or more"},
        {"data_position", 1.5, "field 'data_position': got '1.5', want a whole number of 0 or more"},
        {"skipped", 18446744073709551615u, "field 'skipped': got 18446744073709551615, want a number of steps"},
        {"loss_scale", 3, "field 'loss_scale': got '3', want an object"},
        {"loss_scale", nlohmann::json::object(), "loss_scale: field 'value': got none, want a number"},
        {"extra", {{"a"}}, "field 'extra': got '[\"a\"]', want pairs of texts"},
        {"environment", nlohmann::json::object(), "environment: field 'version': got none, want a text"},
        {"parameter_steps", nlohmann::json::object(), "field 'blocks.0.query.lora_A.weight': got none, want a whole"},
        {"adapters", {1}, "adapters: content: got 1, want an object"},
        {"adapters", {{{"name", "default"}, {"method", "lora"}, {"options", 1}}}, "field 'options': got '1'"},
    };
    for (const auto& [field, value, message] : cases) {
      Saved again;
      again.edit([&](auto& json, auto&) { json[field] = value; });
      CHECK_THAT(again.refusal<FormatError>(), ContainsSubstring(message));
    }
  }
  SECTION("no state at all") {
    io::SafetensorsWriter().write(saved.path);
    CHECK_THAT(saved.refusal<FormatError>(),
               ContainsSubstring("metadata 'deltaw_state': got none, want it: this is no"));
  }
  SECTION("cut short") {
    std::filesystem::resize_file(saved.path, std::filesystem::file_size(saved.path) - 4);
    CHECK_THAT(saved.refusal<FormatError>(), ContainsSubstring("bytes after the header"));
  }
}

TEST_CASE("whatever stands in a state's text, it is read or refused by name", "[io][state]") {
  const Saved saved;
  std::string text;
  std::vector<std::pair<io::TensorInfo, std::vector<float>>> tensors;
  {
    const auto reader = io::SafetensorsReader::open(saved.path);
    text = reader.metadata().at("deltaw_state");
    for (const auto& info : reader.tensors()) tensors.emplace_back(info, reader.read<float>(info));
  }
  SmallModel<float> model;
  model.set.adapt(model.ctx, adapters());
  const auto try_load = [&](const std::string& changed) {
    io::SafetensorsWriter writer;
    writer.set_metadata("deltaw_state", changed);
    for (const auto& [info, values] : tensors) writer.add(info.name, info.shape, values);
    writer.write(saved.path);
    io::load_state(saved.path, model.set);
  };
  for (std::size_t length = 0; length < text.size(); length += 23)
    CHECK_THROWS_AS(try_load(text.substr(0, length)), FormatError);
  const std::vector<std::string> pieces{"null", "true", "-1", "1e999", "[]", "{}", "\"\"", "8", ","};
  int read = 0, refused = 0;
  for (std::size_t at = 0; at < text.size(); at += 11) {
    std::string changed = text;
    changed.replace(at, 1 + at % 4, pieces[at % pieces.size()]);
    try {
      try_load(changed);
      ++read;
    } catch (const deltaw::Error&) { ++refused; }
  }
  CHECK(read > 0);
  CHECK(refused > 0);
}

TEST_CASE("what cannot be saved leaves the older state", "[io][state]") {
  Saved saved;
  const auto before = io::read_text(saved.path, any_size);
  SmallModel<float> model;
  model.set.adapt(model.ctx, adapters());
  Saved::step(model);
  const auto save = [&](io::TrainingState state = {}) { io::save_state(saved.path, model.set, state); };
  CHECK_THAT(error_text<FormatError>([&] { save({.loss_scale = {.value = std::numeric_limits<double>::infinity()}}); }),
             ContainsSubstring("save_state: JSON value"));
  model.set.layer("head").for_each_parameter([](auto& p) { p.slot("exp_avg").view()(0, 1) = std::nanf(""); });
  CHECK_THAT(error_text<deltaw::NonFiniteError>(save),
             ContainsSubstring("element (0, 1) of 'head.weight#exp_avg': got nan, want a finite number"));
  CHECK(io::read_text(saved.path, any_size) == before);
  CHECK(saved.scratch.names() == std::vector<std::string>{"state"});
}
