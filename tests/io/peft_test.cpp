#include "deltaw/io/peft.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "catch.hpp"
#include "deltaw/io/state.hpp"
#include "scratch.hpp"
#include "small_model.hpp"
#include "support/methods.hpp"

namespace io = deltaw::io;
namespace fs = std::filesystem;
using deltaw::AdaptRequest;
using deltaw::FormatError;
using deltaw::NameError;
using deltaw::OptionError;
using deltaw::ShapeError;
using deltaw::UnsupportedError;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;
using deltaw_tests::SmallModel;
using deltaw_tests::snapshot;

namespace {

using Model = SmallModel<float>;
using Json = nlohmann::ordered_json;

constexpr std::uint64_t any_size = 1u << 30;

AdaptRequest request(std::vector<std::string> names, std::vector<deltaw::OptionText> options = {{"rank", "2"}}) {
  return {.options = std::move(options), .targets = {.names = std::move(names)}};
}

/// A checkpoint whose config and tensors a test can change before it is read.
struct Checkpoint {
  struct Tensor {
    io::Dtype dtype;
    std::vector<std::uint64_t> shape;
    std::vector<std::byte> bytes;
  };
  Json config;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;

  static Checkpoint of(const fs::path& dir) {
    Checkpoint c;
    c.config = Json::parse(io::read_text(dir / io::peft_config_file, any_size));
    const auto reader = io::SafetensorsReader::open(dir / io::peft_tensor_file);
    c.metadata = reader.metadata();
    for (const auto& info : reader.tensors()) {
      const auto bytes = reader.bytes(info);
      c.tensors[info.name] = {info.dtype, info.shape, {bytes.begin(), bytes.end()}};
    }
    return c;
  }
  void write(const fs::path& dir) const {
    fs::create_directories(dir);
    io::write_atomically(dir / io::peft_config_file, config.dump());
    io::SafetensorsWriter writer;
    for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
    for (const auto& [name, tensor] : tensors) writer.add(name, tensor.dtype, tensor.shape, tensor.bytes);
    writer.write(dir / io::peft_tensor_file);
  }
  template <class T>
  void set(const std::string& name, std::vector<std::uint64_t> shape, const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    tensors[name] = {io::dtype_of<T>(), std::move(shape), {bytes.begin(), bytes.end()}};
  }
};

/// query layers with rank 2 and alpha 4, the head trained whole, the norm beside them.
Checkpoint valid(const Scratch& scratch) {
  Model model(true);
  AdaptRequest r = request({"query"}, {{"rank", "2"}, {"alpha", "4"}});
  r.targets.modules_to_save = {"head"};
  model.set.adapt(model.ctx, r);
  model.shake(0);
  io::save_peft(model.set, "default", scratch / "valid");
  return Checkpoint::of(scratch / "valid");
}

/// What `load_peft` says of a checkpoint, into a set that has no adapter yet and into one that has just that one; both
/// must stay what they were.
template <class E>
std::string refusal(const Scratch& scratch, const Checkpoint& checkpoint) {
  checkpoint.write(scratch / "changed");
  Model fresh(true), made(true);
  io::load_peft(made.ctx, made.set, "default", scratch / "valid");
  made.shake(100);
  const auto before = snapshot(made.set);
  const auto weights = made.layers.back().weight, fresh_weights = fresh.layers.back().weight;
  const std::string text = error_text<E>([&] { io::load_peft(fresh.ctx, fresh.set, "default", scratch / "changed"); });
  CHECK_FALSE(fresh.set.has("default"));
  CHECK(fresh.set.layer("blocks.0.query").adapter_count() == 0);
  CHECK(fresh.layers.back().weight == fresh_weights);
  CHECK_THROWS_AS(io::load_peft(made.ctx, made.set, "default", scratch / "changed"), deltaw::Error);
  CHECK(snapshot(made.set) == before);
  CHECK(made.layers.back().weight == weights);
  return text;
}

template <class P>
void check_round_trip() {
  const Scratch scratch;
  SmallModel<P> first(true), second(true);
  AdaptRequest r{.name = "mine",
                 .options = {{"rank", "3"}, {"alpha", "5.5"}, {"rslora", "true"}, {"bias", "true"}, {"dropout", "0.1"}},
                 .targets = {.names = {"query", "value"},
                             .exclude = {"blocks.0.value"},
                             .modules_to_save = {"head"},
                             .rank_pattern = {{"blocks\\.1\\..*", 2}},
                             .alpha_pattern = {{"value", 7}}}};
  first.set.adapt(first.ctx, r);
  first.shake(1);
  io::save_peft(first.set, "mine", scratch / "adapter");
  io::load_peft(second.ctx, second.set, "mine", scratch / "adapter");
  CHECK(snapshot(second.set) == snapshot(first.set));
  CHECK(second.norm == first.norm);
  CHECK(second.layers.back().weight == first.layers.back().weight);
  for (const auto& s : first.set.selected("mine")) {
    const auto& got = second.set.layer(s.name).adapter("mine");
    CHECK(got.method_name() == first.set.layer(s.name).adapter("mine").method_name());
    if (got.can_scale()) CHECK(got.scale() == first.set.layer(s.name).adapter("mine").scale());
  }
  const auto info = io::SafetensorsReader::open(scratch / "adapter" / std::string(io::peft_tensor_file)).tensors();
  for (const auto& tensor : info) CHECK(tensor.dtype == io::dtype_of<P>());
}

}  // namespace

TEST_CASE("SHA-256 gives the published digests", "[io]") {
  CHECK(io::sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(io::sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(io::sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(io::sha256(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("the two files of a checkpoint, to the byte", "[io][peft]") {
  const Scratch scratch;
  Model model(true);
  AdaptRequest r = request({"query"}, {{"rank", "2"}, {"alpha", "4"}, {"bias", "true"}});
  r.targets.exclude = {"blocks.1.query"};
  r.targets.modules_to_save = {"head"};
  r.targets.alpha_pattern = {{"query", 0.5}};
  model.set.adapt(model.ctx, r);
  io::save_peft(model.set, "default", scratch / "new/folder",
                {.base_model_name_or_path = "my-vit", .task_type = "SEQ_CLS"});
  CHECK(io::read_text(scratch / "new/folder/adapter_config.json", any_size) == R"({
  "alpha_pattern": {
    "query": 0.5
  },
  "auto_mapping": null,
  "base_model_name_or_path": "my-vit",
  "bias": "none",
  "exclude_modules": [
    "blocks.1.query"
  ],
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "layers_pattern": null,
  "layers_to_transform": null,
  "lora_alpha": 4,
  "lora_bias": true,
  "lora_dropout": 0.0,
  "modules_to_save": [
    "head",
    "norm"
  ],
  "peft_type": "LORA",
  "r": 2,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "query"
  ],
  "task_type": "SEQ_CLS",
  "use_rslora": false
})");
  const auto file = io::read_text(scratch / "new/folder/adapter_model.safetensors", any_size);
  const std::string header =
      R"({"__metadata__":{"deltaw":"{\"base\":\"sha256:)" +
      io::sha256("blocks.0.query\n5 6\nblocks.0.value\n5 6\nblocks.1.query\n5 6\nblocks.1.value\n5 6\nhead\n3 5\n") +
      R"(\",\"format\":1,\"version\":\"0.1.0\"}","format":"pt"},)"
      R"("base_model.model.blocks.0.query.lora_A.weight":{"dtype":"F32","shape":[2,6],"data_offsets":[0,48]},)"
      R"("base_model.model.blocks.0.query.lora_B.bias":{"dtype":"F32","shape":[5],"data_offsets":[48,68]},)"
      R"("base_model.model.blocks.0.query.lora_B.weight":{"dtype":"F32","shape":[5,2],"data_offsets":[68,108]},)"
      R"("base_model.model.head.bias":{"dtype":"F32","shape":[3],"data_offsets":[108,120]},)"
      R"("base_model.model.head.weight":{"dtype":"F32","shape":[3,5],"data_offsets":[120,180]},)"
      R"("base_model.model.norm.weight":{"dtype":"F32","shape":[6],"data_offsets":[180,204]}})";
  CHECK(file.substr(8, header.size()) == header);
  CHECK(scratch.names() == std::vector<std::string>{"new"});
}

TEST_CASE("a checkpoint comes back to the bit", "[io][peft]") {
  check_round_trip<float>();
  check_round_trip<double>();
}

TEST_CASE("a checkpoint loads into an adapter that is there, and training goes on", "[io][peft]") {
  const Scratch scratch;
  valid(scratch);
  Model first(true), second(true);
  io::load_peft(first.ctx, first.set, "default", scratch / "valid");
  const auto saved = snapshot(first.set);
  deltaw::Optimizer<deltaw::AdamW> optimizer;
  const auto train = [&](Model& m) {
    m.set.for_each_parameter([&](auto& p) { deltaw::Cpu::fill(m.ctx, p.grad.view(), 0.25); });
    optimizer.step(m.ctx, m.set);
  };
  train(first);
  CHECK(snapshot(first.set) != saved);
  io::load_peft(first.ctx, first.set, "default", scratch / "valid");
  CHECK(snapshot(first.set) == saved);  // no slot and no step of the earlier training is left
  io::load_peft(second.ctx, second.set, "default", scratch / "valid");
  for (int step = 0; step < 3; ++step) train(first), train(second);
  CHECK(snapshot(first.set) == snapshot(second.set));
  CHECK(snapshot(first.set) != saved);
}

TEST_CASE("over weights of 16 bits, checkpoints hold the parameters in full", "[io][peft][state]") {
  using deltaw::bf16;
  const Scratch scratch;
  struct HalfModel {
    std::vector<bf16> query = std::vector<bf16>(30, bf16(0.5f)), head = std::vector<bf16>(15, bf16(0.25f));
    deltaw::Cpu::Context ctx;
    deltaw::AdapterSet<float, deltaw::Cpu, bf16> set;
    HalfModel() {
      set.add_layer("query", deltaw::dense(query.data(), nullptr, {.in_features = 6, .out_features = 5}));
      set.add_layer("head", deltaw::dense(head.data(), nullptr, {.in_features = 5, .out_features = 3}));
    }
  } first, second, third;
  AdaptRequest r = request({"query"});
  r.targets.modules_to_save = {"head"};
  first.set.adapt(first.ctx, r);
  float angle = 0;
  first.set.for_each_parameter([&](auto& p) {
    for (deltaw::index_t i = 0; i < p.value.size(); ++i) p.value.view().data[i] = std::sin(angle += 1);
    p.changed();
  });
  io::save_peft(first.set, "default", scratch / "adapter");
  io::load_peft(second.ctx, second.set, "default", scratch / "adapter");
  CHECK(snapshot(second.set) == snapshot(first.set));
  io::save_state(scratch / "state", first.set, {});
  third.set.adapt(third.ctx, r);
  io::load_state(scratch / "state", third.set);
  CHECK(snapshot(third.set) == snapshot(first.set));
  for (HalfModel* m : {&first, &second, &third}) m->set.prepare(m->ctx);
  for (std::size_t i = 0; i < 15; ++i) {
    CHECK(second.head[i].bits == first.head[i].bits);
    CHECK(third.head[i].bits == first.head[i].bits);
  }
  CHECK(first.head[0].bits != bf16(0.25f).bits);
}

TEST_CASE("the scale of a run is not saved, alpha is", "[io][peft]") {
  const Scratch scratch;
  Model model, other;
  model.set.adapt(model.ctx, request({"query"}, {{"rank", "2"}, {"alpha", "6"}}));
  model.set.layer("blocks.0.query").set_scale("default", 0.125);
  io::save_peft(model.set, "default", scratch / "adapter");
  CHECK(io::read_peft_config(scratch / "adapter").options[1] == deltaw::OptionText{"alpha", "6"});
  io::load_peft(other.ctx, other.set, "default", scratch / "adapter");
  CHECK(other.set.layer("blocks.0.query").adapter("default").scale() == 3);
}

TEST_CASE("an adapter that was swapped in is not saved under the options of the one before", "[io][peft]") {
  const Scratch scratch;
  Model model;
  model.set.adapt(model.ctx, request({"query"}, {{"rank", "2"}}));
  auto& layer = model.set.layer("blocks.0.query");
  layer.swap(model.ctx, "default", deltaw::Lora<float, deltaw::Cpu>(layer.shape(), {.rank = 1}));
  CHECK_THROWS_WITH(io::save_peft(model.set, "default", scratch / "adapter"),
                    ContainsSubstring("layer 'blocks.0.query': got an adapter that was swapped in"));
  CHECK(scratch.names().empty());
}

TEST_CASE("a rank above what a layer needs, once trained, is read back", "[io][peft]") {
  const Scratch scratch;
  Model model, other;
  const deltaw::AdaptRequest wide = request({"query"}, {{"rank", "64"}, {"any_rank", "true"}});
  model.set.adapt(model.ctx, wide);
  io::save_peft(model.set, "default", scratch / "adapter");
  io::load_peft(other.ctx, other.set, "default", scratch / "adapter");
  io::load_peft(other.ctx, other.set, "default", scratch / "adapter");  // into what is there
  io::load_peft(model.ctx, model.set, "default", scratch / "adapter");
  CHECK(other.set.counts().trained == model.set.counts().trained);
}

TEST_CASE("tensors of other floating-point types are converted", "[io][peft]") {
  const Scratch scratch;
  Checkpoint checkpoint = valid(scratch);
  const std::string query = "base_model.model.blocks.0.query.";
  const std::vector<double> values{0.5, -0.25, 1, 2, 3, 4, -5, 0.125, 8, 16, 0, -1};
  std::vector<deltaw::f16> halves;
  std::vector<deltaw::bf16> brains;
  for (const double v : values) halves.emplace_back(v), brains.emplace_back(v);
  brains.resize(10), halves.resize(12);
  checkpoint.set(query + "lora_A.weight", {2, 6}, halves);
  checkpoint.set(query + "lora_B.weight", {5, 2}, brains);
  checkpoint.set("base_model.model.blocks.1.query.lora_A.weight", {2, 6}, values);
  checkpoint.write(scratch / "mixed");
  const auto check = [&](auto zero) {
    SmallModel<decltype(zero)> model(true);
    io::load_peft(model.ctx, model.set, "default", scratch / "mixed");
    for (const std::string layer : {"blocks.0.query", "blocks.1.query"})
      model.set.layer(layer).for_each_parameter([&](const auto& p) {
        if (layer == "blocks.1.query" && p.name != "lora_A.weight") return;
        for (deltaw::index_t i = 0; i < p.value.size(); ++i)
          CHECK(p.value.view().data[i] == static_cast<decltype(zero)>(values[static_cast<std::size_t>(i)]));
      });
  };
  check(float{});
  check(double{});

  checkpoint.set("base_model.model.blocks.1.query.lora_A.weight", {2, 6}, std::vector<double>(12, 1e300));
  CHECK_THAT(refusal<deltaw::NonFiniteError>(scratch, checkpoint),
             ContainsSubstring("blocks.1.query.lora_A.weight' element 0: got inf, want a finite number"));
}

TEST_CASE("targets are written so that PEFT reads them as we do", "[io][peft]") {
  const Scratch scratch;
  const auto config_of = [&](Model& model, AdaptRequest r) {
    model.set.adapt(model.ctx, std::move(r));
    io::save_peft(model.set, "default", scratch / "adapter");
    return io::read_peft_config(scratch / "adapter").targets;
  };
  SECTION("all-linear is a list of names, since PEFT knows the word for its own models only") {
    Model model;
    AdaptRequest r{.targets = {.all_linear = true}, .heads = {"head"}};
    r.options = {{"rank", "2"}};
    CHECK(config_of(model, r).names ==
          std::vector<std::string>{"blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value"});
  }
  SECTION("layers stay where all versions of PEFT count them alike") {
    Model model(false, "vit.");
    AdaptRequest r = request({"query"});
    r.targets.layers_to_transform = {1};
    const auto targets = config_of(model, r);
    CHECK(targets.names == std::vector<std::string>{"query"});
    CHECK(targets.layers_to_transform == std::vector<deltaw::index_t>{1});
  }
  SECTION("layers at the root have no index in PEFT: full names") {
    Model model;
    AdaptRequest r = request({"query"});
    r.targets.layers_to_transform = {1};
    const auto targets = config_of(model, r);
    CHECK(targets.names == std::vector<std::string>{"blocks.1.query"});
    CHECK(targets.layers_to_transform.empty());
  }
  SECTION("full names that other modules end with become a pattern") {
    Model model;
    std::vector<float> w(4, 1.0f);
    model.set.add_layer("head.blocks.1.query", deltaw::dense(w.data(), nullptr, {.in_features = 2, .out_features = 2}));
    AdaptRequest r = request({"query"});
    r.targets.exclude = {"head.blocks.1.query"};
    r.targets.layers_to_transform = {1};
    CHECK(config_of(model, r).pattern == "blocks\\.1\\.query");
  }
  SECTION("patterns of rank stay, sorted, while their order does not count") {
    Model model;
    AdaptRequest r = request({"query", "value"});
    r.targets.rank_pattern = {{"value", 3}, {"query", 1}};
    CHECK(config_of(model, r).rank_pattern == decltype(r.targets.rank_pattern){{"query", 1}, {"value", 3}});
  }
  SECTION("and are spelled out where it does: the files of PEFT are sorted") {
    Model model, other;
    AdaptRequest r = request({"query", "value"});
    r.targets.rank_pattern = {{"value", 3}, {"blocks.*", 1}};
    r.targets.alpha_pattern = {{"value", 3.5}, {"blocks.*", 1}};
    const auto targets = config_of(model, r);
    CHECK(targets.rank_pattern == decltype(r.targets.rank_pattern){{"^blocks\\.0\\.query", 1},
                                                                   {"^blocks\\.0\\.value", 3},
                                                                   {"^blocks\\.1\\.query", 1},
                                                                   {"^blocks\\.1\\.value", 3}});
    io::load_peft(other.ctx, other.set, "default", scratch / "adapter");
    CHECK(other.set.selected("default")[1].rank == 3);
    CHECK(other.set.selected("default")[1].alpha == 3.5);
  }
  SECTION("a module to save whose name others end with is named in full") {
    Model model(false, "vit.");
    std::vector<float> w(4, 1.0f);
    model.set.add_layer("lm_head", deltaw::dense(w.data(), nullptr, {.in_features = 2, .out_features = 2}));
    AdaptRequest r = request({"query"});
    r.targets.modules_to_save = {"head"};
    CHECK(config_of(model, r).modules_to_save == std::vector<std::string>{"vit.head"});
  }
  SECTION("without targets only modules are saved, in PEFT's word for it") {
    Model model, other;
    const auto targets = config_of(model, {.targets = {.modules_to_save = {"head"}}});
    CHECK((targets.names.empty() && targets.pattern.empty()));
    CHECK_THAT(io::read_text(scratch / "adapter/adapter_config.json", any_size),
               ContainsSubstring("\"target_modules\": \"dummy-target-modules\""));
    io::load_peft(other.ctx, other.set, "default", scratch / "adapter");
    CHECK(other.set.selected("default").size() == 1);
  }
}

TEST_CASE("files of PEFT are read by its rules", "[io][peft]") {
  const Scratch scratch;
  Checkpoint checkpoint = valid(scratch);
  Model model(true);
  const auto load = [&] {
    checkpoint.write(scratch / "changed");
    io::load_peft(model.ctx, model.set, "default", scratch / "changed");
  };
  SECTION("the first key that matches decides, even before a full name") {
    checkpoint.config["alpha_pattern"] = {{"query", 8}, {"blocks.0.query", 16}};
    load();
    CHECK(model.set.layer("blocks.0.query").adapter("default").scale() == 4);
    CHECK(model.set.layer("blocks.1.query").adapter("default").scale() == 4);
  }
  SECTION("in the order of the file, which is not that of the alphabet") {
    checkpoint.config["alpha_pattern"] = {{"query", 8}, {"blocks.*", 16}};
    load();
    CHECK(model.set.layer("blocks.0.query").adapter("default").scale() == 4);
  }
  SECTION("modules to save that the model has not are no harm: PEFT adds some by the task") {
    checkpoint.config["modules_to_save"] = {"head", "norm", "classifier", "score"};
    load();
    CHECK(model.set.selected("default").size() == 3);
  }
  SECTION("fields without meaning here, and unknown ones that ask for nothing") {
    checkpoint.config.update({{"peft_version", "0.99"},
                              {"auto_mapping", {{"base_model_class", "Vit"}}},
                              {"inference_mode", false},
                              {"megatron_core", "megatron.core"},
                              {"qalora_group_size", 16},
                              {"eva_config", {{"rho", 2.0}}},
                              {"init_lora_weights", "eva"},
                              {"loftq_config", Json::object()},
                              {"a_field_of_next_year", {{"on", false}, {"list", Json::array()}}},
                              {"use_dora", false}});
    load();
    CHECK(model.set.has("default"));
  }
  SECTION("W stored as in x out does not concern A and B, and is remembered") {
    checkpoint.config["fan_in_fan_out"] = true;
    load();
    CHECK(io::read_peft_config(scratch / "changed").info.fan_in_fan_out);
  }
  SECTION("the copies that PEFT makes of the biases of saved modules are ignored") {
    for (const char* copy : {"original_module", "modules_to_save"})
      checkpoint.set("base_model.model.head." + std::string(copy) + ".bias", {3}, std::vector<float>(3));
    load();
    CHECK(model.set.has("default"));
  }
  SECTION("what PEFT leaves in the metadata is enough") {
    checkpoint.metadata = {{"format", "pt"}};
    load();
    CHECK(model.set.has("default"));
  }
}

TEST_CASE("a configuration that cannot be honoured is refused", "[io][peft]") {
  const Scratch scratch;
  const Checkpoint good = valid(scratch);
  struct Case {
    const char* field;
    Json value;
    const char* message;
  };
  const std::string file = (scratch / "changed/adapter_config.json").string() + ": field ";
  SECTION("for what it asks") {
    const std::vector<Case> cases{
        {"peft_type", "OFT", "'peft_type': got 'OFT', want 'LORA', 'ADALORA', 'VERA', 'RANDLORA'"},
        {"use_qalora", true, "'use_qalora': got true, want none or its default: deltaw cannot honour it"},
        {"a_field_of_next_year", 3, "'a_field_of_next_year': got 3, want none or its default"},
        {"layer_replication", {{0, 2}}, "'layer_replication': got [[0,2]], want none"},
        {"target_parameters", {"w"}, "'target_parameters': got [\"w\"], want none"},
        {"bias", "lora_only", "'bias': got 'lora_only', want 'none'"},
        {"init_lora_weights", "pissa_niter_4",
         "'init_lora_weights': got 'pissa_niter_4', want a start that left the base as it was; have PEFT convert"},
    };
    for (const auto& [field, value, message] : cases) {
      Checkpoint changed = good;
      changed.config[field] = value;
      CHECK_THAT(refusal<UnsupportedError>(scratch, changed), ContainsSubstring(file + message));
    }
  }
  SECTION("for what it is") {
    const std::vector<Case> cases{
        {"peft_type", nullptr, "'peft_type': got none, want 'LORA'"},
        {"r", nullptr, "'r': got none, want it: LORA needs it"},
        {"r", 0, "'r': got 0, want a whole number of 1 or more"},
        {"r", 2.0, "'r': got 2.0, want a whole number of 1 or more"},
        {"r", 18446744073709551615u, "'r': got 18446744073709551615, want a whole number of 1 or more"},
        {"lora_alpha", "8", "'lora_alpha': got '8', want a finite number other than 0"},
        {"lora_alpha", 0, "'lora_alpha': got 0, want a finite number other than 0"},
        {"lora_dropout", 1, "'lora_dropout': got 1, want a number of at least 0 and below 1"},
        {"use_dora", 1, "'use_dora': got 1, want true, false, an object or null"},
        {"use_rslora", 1, "'use_rslora': got 1, want true or false"},
        {"target_modules", nullptr, "'target_modules': got none, want a list of names or a pattern"},
        {"target_modules", {"query", 3}, "'target_modules': got 3, want names that are not empty"},
        {"modules_to_save", "head", "'modules_to_save': got 'head', want an array or null"},
        {"rank_pattern", {{"query", -1}}, "'rank_pattern.query': got -1, want a whole number of 1 or more"},
        {"alpha_pattern", {1}, "'alpha_pattern': got [1], want an object of patterns"},
        {"layers_to_transform", {-1}, "'layers_to_transform': got -1, want a whole number of 0 or more"},
        {"revision", 7, "'revision': got 7, want a text or null"},
    };
    for (const auto& [field, value, message] : cases) {
      Checkpoint changed = good;
      changed.config[field] = value;
      CHECK_THAT(refusal<FormatError>(scratch, changed), ContainsSubstring(file + message));
    }
  }
  SECTION("as text") {
    const auto text_error = [](std::string_view text) {
      return error_text<FormatError>([&] { io::parse_peft_config("config", text); });
    };
    CHECK_THAT(text_error("[]"), ContainsSubstring("config: content: got [], want an object of fields"));
    CHECK_THAT(text_error("{\"r\": 8, \"r\": 8}"), ContainsSubstring("config: key 'r': got it twice, want it once"));
    CHECK_THAT(text_error("{\"r\": 8"), ContainsSubstring("want well-formed JSON in UTF-8"));
  }
  SECTION("for targets that match nothing here") {
    Checkpoint changed = good;
    changed.config["target_modules"] = {"query", "key"};
    Model model(true);
    changed.write(scratch / "changed");
    const auto load = [&] { io::load_peft(model.ctx, model.set, "default", scratch / "changed"); };
    CHECK_THAT(error_text<NameError>(load), ContainsSubstring("select: names 'key' matches none of the 5 modules"));
    changed = good;
    changed.config["rank_pattern"] = {{"key", 2}};
    changed.write(scratch / "changed");
    CHECK_THAT(error_text<NameError>(load), ContainsSubstring("select: rank_pattern 'key' matches none of the 2"));
    CHECK_FALSE(model.set.has("default"));
  }
  SECTION("for an adapter that is there and differs") {
    Model model(true);
    AdaptRequest r = request({"query"}, {{"rank", "2"}, {"alpha", "8"}});
    r.targets.modules_to_save = {"head"};
    r.targets.alpha_pattern = {{"blocks.0.query", 4}};
    model.set.adapt(model.ctx, r);
    const auto before = snapshot(model.set);
    const auto load = [&] { io::load_peft(model.ctx, model.set, "default", scratch / "changed"); };
    Checkpoint changed = good;
    changed.write(scratch / "changed");
    CHECK_THAT(error_text<OptionError>(load),
               ContainsSubstring("adapter_config.json: alpha of 'blocks.1.query': got 4, "
                                 "want 8, as adapter 'default' was made"));
    changed.config["use_rslora"] = true;
    changed.write(scratch / "changed");
    CHECK_THAT(error_text<OptionError>(load), ContainsSubstring("use_rslora: got true, want false, as adapter"));
    changed = good;
    changed.config["r"] = 3;
    changed.write(scratch / "changed");
    CHECK_THAT(error_text<OptionError>(load), ContainsSubstring("rank of 'blocks.0.query': got 3, want 2, as adapter"));
    CHECK(snapshot(model.set) == before);
  }
}

TEST_CASE("whatever stands in a configuration, it is read or refused by name", "[io][peft]") {
  const Scratch scratch;
  valid(scratch);
  const std::string good = io::read_text(scratch / "valid/adapter_config.json", any_size);
  for (std::size_t length = 0; length < good.size(); ++length)
    CHECK_THROWS_AS(io::parse_peft_config("config", good.substr(0, length)), FormatError);
  std::uint64_t state = 1;
  const auto draw = [&](std::size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>(state >> 33) % below;
  };
  const std::vector<std::string> pieces{"null", "true", "-1",      "1e999", "[]", "{}",
                                        "\"\"", "[[",   "\\u0000", "\xff",  "8",  ","};
  int read = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = good;
    for (std::size_t edits = 1 + draw(3); edits > 0; --edits)
      text.replace(draw(text.size()), draw(6), pieces[draw(pieces.size())]);
    try {
      io::parse_peft_config("config", text);
      ++read;
    } catch (const deltaw::Error&) {}
  }
  CHECK((read > 0 && read < 3000));
}

TEST_CASE("tensors that do not fit are refused, with nothing changed", "[io][peft]") {
  const Scratch scratch;
  const Checkpoint good = valid(scratch);
  Checkpoint changed = good;
  const std::string query = "base_model.model.blocks.0.query.lora_";
  const std::string file = (scratch / "changed/adapter_model.safetensors").string() + ": ";
  SECTION("A without B") {
    changed.tensors.erase(query + "B.weight");
    CHECK_THAT(refusal<NameError>(scratch, changed),
               ContainsSubstring(file + "tensors: got none named '" + query +
                                 "B.weight', want all 7 tensors of the adapter and no others"));
  }
  SECTION("other names") {
    auto tensor = changed.tensors.extract(query + "A.weight");
    tensor.key() = "blocks.0.query.lora_A.weight";
    changed.tensors.insert(std::move(tensor));
    CHECK_THAT(
        refusal<NameError>(scratch, changed),
        ContainsSubstring("got none named '" + query + "A.weight', but 'blocks.0.query.lora_A.weight', want all 7"));
  }
  SECTION("more than there should be") {
    changed.set(query + "magnitude_vector", {5}, std::vector<float>(5));
    CHECK_THAT(refusal<NameError>(scratch, changed),
               ContainsSubstring("tensors: got '" + query + "magnitude_vector', which nothing here takes, want all 7"));
  }
  SECTION("a module saved whole that is no layer here") {
    changed.config["modules_to_save"] = {"head", "norm", "score"};
    changed.set("base_model.model.score.weight", {2}, std::vector<float>(2));
    CHECK_THAT(refusal<NameError>(scratch, changed),
               ContainsSubstring("modules_to_save 'score' matches none of the 5"));
  }
  SECTION("two ranks in one module") {
    changed.set(query + "A.weight", {3, 6}, std::vector<float>(18));
    CHECK_THAT(refusal<ShapeError>(scratch, changed),
               ContainsSubstring(file + "rank of 'blocks.0.query': got 3 from lora_A.weight [3, 6] and 2 from "
                                        "lora_B.weight [5, 2], want the same from both"));
  }
  SECTION("a rank that is not the configuration's") {
    changed.set(query + "A.weight", {3, 6}, std::vector<float>(18));
    changed.set(query + "B.weight", {5, 3}, std::vector<float>(15));
    CHECK_THAT(refusal<ShapeError>(scratch, changed),
               ContainsSubstring("rank of 'blocks.0.query': got lora_A.weight [3, 6], want rank 2, as "
                                 "adapter_config.json has it"));
  }
  SECTION("shapes of another base") {
    changed.set(query + "A.weight", {2, 8}, std::vector<float>(16));
    CHECK_THAT(refusal<ShapeError>(scratch, changed),
               ContainsSubstring(file + "tensor '" + query + "A.weight' shape: got [2, 8], want [2, 6]"));
    changed = good;
    changed.set("base_model.model.head.bias", {1, 3}, std::vector<float>(3));
    changed.set("base_model.model.norm.weight", {7}, std::vector<float>(7));
    CHECK_THAT(refusal<ShapeError>(scratch, changed), ContainsSubstring("norm.weight' shape: got [7], want [6]"));
  }
  SECTION("a type that is no floating-point number") {
    changed.set(query + "A.weight", {2, 6}, std::vector<std::int8_t>(12));
    CHECK_THAT(refusal<FormatError>(scratch, changed),
               ContainsSubstring("lora_A.weight' dtype: got I8, want F64, F32, F16 or BF16"));
  }
  SECTION("NaN") {
    changed.set(query + "B.weight", {5, 2}, std::vector<float>(10, std::numeric_limits<float>::quiet_NaN()));
    CHECK_THAT(refusal<deltaw::NonFiniteError>(scratch, changed),
               ContainsSubstring("lora_B.weight' element 0: got nan, want a finite number"));
  }
  SECTION("a file cut short") {
    changed.write(scratch / "changed");
    const auto path = scratch / "changed/adapter_model.safetensors";
    fs::resize_file(path, fs::file_size(path) - 1);
    Model model(true);
    CHECK_THROWS_AS(io::load_peft(model.ctx, model.set, "default", scratch / "changed"), FormatError);
    CHECK_FALSE(model.set.has("default"));
  }
}

TEST_CASE("an adapter of another base is refused, with both digests", "[io][peft]") {
  const Scratch scratch;
  const Checkpoint good = valid(scratch);
  Model model(true);
  std::vector<float> w(4, 1.0f);
  const auto here = io::base_digest(model.set);
  model.set.add_layer("blocks.2.query2", deltaw::dense(w.data(), nullptr, {.in_features = 2, .out_features = 2}));
  const auto load = [&] { io::load_peft(model.ctx, model.set, "default", scratch / "valid"); };
  const auto text = error_text<FormatError>(load);
  CHECK_THAT(text,
             ContainsSubstring("metadata 'deltaw': base: got '" + here + "', want " + io::base_digest(model.set)));
  CHECK(here != io::base_digest(model.set));
  CHECK_FALSE(model.set.has("default"));
  io::load_peft(model.ctx, model.set, "default", scratch / "valid", {.any_base = true});
  CHECK(model.set.has("default"));

  Checkpoint changed = good;
  changed.metadata["deltaw"] = R"({"base":"sha256:0","format":2,"version":"9.0"})";
  CHECK_THAT(refusal<FormatError>(scratch, changed),
             ContainsSubstring("format: got 2, want at most 1; the file was written by deltaw '9.0', this is 0.1.0"));
  changed.metadata["deltaw"] = "{}";
  CHECK_THAT(refusal<FormatError>(scratch, changed), ContainsSubstring("metadata 'deltaw': version: got none"));
}

TEST_CASE("files that are missing, and pickles", "[io][peft]") {
  const Scratch scratch;
  Checkpoint good = valid(scratch);
  good.write(scratch / "changed");
  Model model(true);
  const auto load = [&] { io::load_peft(model.ctx, model.set, "default", scratch / "changed"); };
  fs::remove(scratch / "changed/adapter_model.safetensors");
  CHECK_THAT(error_text<deltaw::FileError>(load),
             ContainsSubstring("adapter_model.safetensors: opening for reading: No such file"));
  std::ofstream(scratch / "changed/adapter_model.bin") << "PK";
  CHECK_THAT(
      error_text<FormatError>(load),
      ContainsSubstring("adapter_model.bin: format: got a pickle, which may run any program when it is read, want "
                        "adapter_model.safetensors: load the pickle in PEFT"));
  fs::remove(scratch / "changed/adapter_config.json");
  CHECK_THAT(error_text<deltaw::FileError>(load),
             ContainsSubstring("adapter_config.json: opening for reading: No such file"));
  CHECK_FALSE(model.set.has("default"));
}

TEST_CASE("what cannot be saved leaves the older checkpoint", "[io][peft]") {
  const Scratch scratch;
  valid(scratch);
  const auto files = [&] {
    return io::read_text(scratch / "valid/adapter_config.json", any_size) +
           io::read_text(scratch / "valid/adapter_model.safetensors", any_size);
  };
  const auto before = files();
  Model model(true);
  const auto save = [&] { io::save_peft(model.set, "default", scratch / "valid"); };
  CHECK_THAT(error_text<NameError>(save), ContainsSubstring("adapter: got 'default', want the name of an earlier"));
  AdaptRequest r = request({"query"});
  r.targets.modules_to_save = {"head"};
  model.set.adapt(model.ctx, r);
  SECTION("values that are not finite") {
    model.set.layer("blocks.1.query").for_each_parameter([](auto& p) {
      if (p.name == "lora_B.weight") p.value.view()(4, 1) = std::numeric_limits<float>::infinity();
    });
    CHECK_THAT(error_text<deltaw::NonFiniteError>(save),
               ContainsSubstring("element (4, 1) of 'base_model.model.blocks.1.query.lora_B.weight': got inf"));
  }
  SECTION("a weight trained whole under a merge") {
    model.set.merge(model.ctx, deltaw::MergeMode::KeepCopy);
    CHECK_THAT(error_text<deltaw::StaleError>(save),
               ContainsSubstring("layer 'head': got a merged layer, want unmerge"));
  }
  SECTION("a parameter without a module") {
    std::vector<float> gain(2);
    model.set.add_parameter("gain", deltaw::vector_view(gain.data(), 2));
    CHECK_THAT(error_text<UnsupportedError>(save), ContainsSubstring("got 'gain', want the name of a module, a dot"));
    Model other(true);
    other.set.add_parameter("gain", deltaw::vector_view(gain.data(), 2));
    io::load_peft(other.ctx, other.set, "default", scratch / "valid");  // it has no place there, so it is no matter
    CHECK(other.set.has("default"));
  }
  SECTION("a method that PEFT has not") {
    model.set.adapt(model.ctx, {.name = "whole", .method = "full", .targets = {.names = {"blocks.0.value"}}});
    CHECK_THAT(error_text<UnsupportedError>([&] { io::save_peft(model.set, "whole", scratch / "valid"); }),
               ContainsSubstring("method: got 'full', want one that PEFT has too: 'dora', 'kasa', 'lora'"));
  }
  CHECK(files() == before);
  CHECK(scratch.names() == std::vector<std::string>{"valid"});
}

TEST_CASE("nothing is loaded into a merged layer", "[io][peft]") {
  const Scratch scratch;
  valid(scratch);
  Model model(true);
  io::load_peft(model.ctx, model.set, "default", scratch / "valid");
  model.set.merge(model.ctx, deltaw::MergeMode::KeepCopy);
  const auto load = [&] { io::load_peft(model.ctx, model.set, "default", scratch / "valid"); };
  CHECK_THAT(error_text<deltaw::StaleError>(load),
             ContainsSubstring("load_peft: layer 'blocks.0.query': got a merged layer, want unmerge first"));
  CHECK_THROWS_AS(io::load_peft(model.ctx, model.set, "other", scratch / "valid"), deltaw::StaleError);
  CHECK_FALSE(model.set.has("other"));
}
