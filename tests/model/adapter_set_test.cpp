#include <map>
#include <set>
#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/init/gaussian.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "deltaw/optim/adamw.hpp"
#include "message.hpp"
#include "problem.hpp"
#include "support/methods.hpp"

using namespace deltaw_tests;
using dw::AdaptRequest;
using dw::Cpu;
using dw::MergeMode;
using dw::ModuleRole;

namespace {

using Set = dw::AdapterSet<double, Cpu>;

// Two blocks of query and value (5 -> 6) and a head (6 -> 3) without bias; every weight in one watched buffer.
struct Model {
  Cpu::Context ctx;
  std::map<std::string, Guarded<double>> weights, biases;
  Set set;

  Model() {
    std::uint32_t seed = 1;
    for (const char* name : {"blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value"})
      add(name, 6, 5, true, seed++);
    add("head", 3, 6, false, seed++);
  }
  void add(const std::string& name, index_t rows, index_t cols, bool bias, std::uint32_t seed) {
    auto& w = weights.emplace(name, Guarded<double>(rows, cols, 1)).first->second.fill(seed);
    auto& b = biases.emplace(name, Guarded<double>(1, rows)).first->second.fill(seed + 100);
    set.add_layer(name, {w.view(), bias ? b.view() : dw::MatrixView<double>{}});
  }
  std::string weight_bits() const {
    std::string bits;
    for (const auto& [name, w] : weights) bits += w.bits();
    for (const auto& [name, b] : biases) bits += b.bits();
    return bits;
  }
  std::size_t adapters() const {
    std::size_t count = 0;
    for (const auto& name : set.layer_names()) count += set.layer(name).adapter_count();
    return count;
  }
};

const std::vector<dw::OptionText> rank_2 = {{"rank", "2"}, {"alpha", "4"}};

const dw::Lora<double, Cpu>& lora(const Set& set, const char* layer, const char* name = "default") {
  const auto* found = set.layer(layer).adapter(name).get<dw::Lora<double, Cpu>>();
  REQUIRE(found != nullptr);
  return *found;
}

std::vector<std::string> names(const std::vector<dw::Selected>& selected) {
  std::vector<std::string> all;
  for (const auto& s : selected) all.push_back(s.name);
  return all;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("AdapterSet: targets by names, by pattern, or all but the heads") {
  Model m;
  CHECK(names(m.set.adapt(m.ctx, {.name = "a", .options = rank_2, .targets = {.names = {"query"}}})) ==
        Names{"blocks.0.query", "blocks.1.query"});
  CHECK(names(m.set.adapt(m.ctx, {.name = "b", .options = rank_2, .targets = {.pattern = "blocks\\.1\\..*"}})) ==
        Names{"blocks.1.query", "blocks.1.value"});
  CHECK(
      names(m.set.adapt(m.ctx, {.name = "c", .options = rank_2, .targets = {.all_linear = true}, .heads = {"head"}})) ==
      Names{"blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value"});
  CHECK(m.set.layer("blocks.1.query").adapter_count() == 3);
  CHECK(m.set.layer("blocks.0.value").adapter_count() == 1);
  CHECK(m.set.layer("head").adapter_count() == 0);
  CHECK(m.set.has("b"));
  CHECK_FALSE(m.set.has("d"));
  CHECK(names(m.set.selected("b")) == Names{"blocks.1.query", "blocks.1.value"});
  CHECK(m.set.request("a").targets.names == Names{"query"});
  CHECK(m.set.requests().size() == 3);
}

TEST_CASE("AdapterSet: rank and alpha by pattern reach the layers") {
  Model m;
  m.set.adapt(m.ctx, {.options = {{"rank", "2"}, {"alpha", "6"}, {"rslora", "true"}},
                      .targets = {.names = {"query", "value"},
                                  .rank_pattern = {{"value", 4}, {"blocks.0.query", 1}},
                                  .alpha_pattern = {{"blocks.1.value", 9}}}});
  CHECK(lora(m.set, "blocks.0.query").rank() == 1);
  CHECK(lora(m.set, "blocks.1.query").rank() == 2);
  CHECK(lora(m.set, "blocks.0.value").rank() == 4);
  CHECK(lora(m.set, "blocks.1.value").rank() == 4);
  CHECK(lora(m.set, "blocks.0.query").scale() == 6);
  CHECK(lora(m.set, "blocks.0.value").scale() == 3);
  CHECK(lora(m.set, "blocks.1.value").scale() == 4.5);
  CHECK(lora(m.set, "blocks.1.value").options().rslora);
}

TEST_CASE("AdapterSet: layers of one shape and one seed start with different numbers, the same in every run") {
  const auto starts = [](std::uint64_t seed) {
    Model m;
    m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"query", "value"}}}, dw::init::Kaiming{.seed = seed});
    std::vector<std::string> bits;
    for (const auto& s : m.set.selected("default")) bits.push_back(parameter_bits(m.set.layer(s.name)));
    return bits;
  };
  const auto first = starts(7);
  CHECK(std::set<std::string>(first.begin(), first.end()).size() == 4);
  CHECK(starts(7) == first);
  CHECK(starts(8) != first);
}

TEST_CASE("AdapterSet: the layers' dropout masks differ though their seed is one") {
  Model m;
  m.set.adapt(m.ctx, {.options = {{"rank", "2"}, {"dropout", "0.5"}}, .targets = {.names = {"query"}}});
  CHECK(lora(m.set, "blocks.0.query").options().layer != lora(m.set, "blocks.1.query").options().layer);
  CHECK(lora(m.set, "blocks.0.query").options().layer == dw::name_hash("blocks.0.query"));
}

TEST_CASE("AdapterSet: another initializer, and parameters that know their layer") {
  Model m;
  m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"query"}}}, dw::init::Gaussian{.deviation = 1e3});
  double norm2 = 0;
  std::string owners;
  m.set.for_each_parameter([&](auto& p) {
    if (p.role == dw::Role::Down) norm2 += Cpu::norm2(m.ctx, p.value.view());
    owners += p.full_name() + " ";
  });
  CHECK(norm2 > 1e5);
  CHECK(owners ==
        "blocks.0.query.lora_A.weight blocks.0.query.lora_B.weight "
        "blocks.1.query.lora_A.weight blocks.1.query.lora_B.weight ");
  dw::Optimizer<dw::AdamW> optimizer;
  m.set.layer("blocks.1.query").adapter("default").pair()->up->grad.view()(0, 0) = std::nan("");
  CHECK(optimizer.step(m.ctx, m.set).non_finite == "blocks.1.query.lora_B.weight");

  auto& layer = m.set.layer("blocks.1.query");
  layer.swap(m.ctx, "default", dw::Lora<double, Cpu>(layer.shape(), {.rank = 3}));
  layer.adapter("default").pair()->down->grad.view()(0, 0) = std::nan("");
  CHECK(optimizer.step(m.ctx, m.set).non_finite == "blocks.1.query.lora_A.weight");
}

TEST_CASE("AdapterSet: modules to save are trained whole, in the user's memory") {
  Model m;
  m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"query"}, .modules_to_save = {"head"}}});
  const auto& selected = m.set.selected("default");
  REQUIRE(selected.size() == 3);
  CHECK(selected[2].name == "head");
  CHECK(selected[2].role == ModuleRole::Save);
  const auto& head = m.set.layer("head").adapter("default");
  CHECK(head.method_name() == "full");
  CHECK(head.trains_base());
  std::vector<const double*> memory;
  head.for_each_parameter([&](const auto& p) { memory.push_back(p.value.view().data); });
  CHECK(memory == std::vector<const double*>{m.weights.at("head").view().data});
}

TEST_CASE("AdapterSet: counts as PEFT prints them, checked by hand") {
  Model m;
  // 4 layers of 6 x 5 + 6 = 36, a head of 3 x 6 = 18.
  CHECK(m.set.counts().all == 4 * 36 + 18);
  CHECK(m.set.counts().trained == 0);
  m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"query"}, .modules_to_save = {"head"}}});
  // 2 LoRA of 2 x (5 + 6) = 22, and the head a second time, as PEFT keeps its original too.
  CHECK(m.set.counts().trained == 44 + 18);
  CHECK(m.set.counts().all == 162 + 44 + 18);
  CHECK(dw::to_string(m.set.counts()) == "trainable params: 62 || all params: 224 || trainable%: 27.6786");
  m.set.add_frozen_count(1'000'000);
  CHECK(dw::to_string(m.set.counts()) == "trainable params: 62 || all params: 1,000,224 || trainable%: 0.0062");
  Guarded<double> norm(1, 6);
  m.set.add_parameter("norm", norm.view());
  CHECK(m.set.counts().trained == 68);
  CHECK(m.set.counts().all == 1000230);

  CHECK(dw::to_string({.trained = 294912, .all = 124734720}) ==
        "trainable params: 294,912 || all params: 124,734,720 || trainable%: 0.2364");
  CHECK(dw::to_string({.trained = 999, .all = 1000}) ==
        "trainable params: 999 || all params: 1,000 || trainable%: 99.9000");
  CHECK(dw::to_string({}) == "trainable params: 0 || all params: 0 || trainable%: 0.0000");
}

TEST_CASE("AdapterSet: two named adapters live side by side and are enabled by name") {
  Model m;
  m.set.adapt(m.ctx, {.name = "english", .options = rank_2, .targets = {.names = {"query"}}});
  m.set.adapt(m.ctx, {.name = "french", .options = {{"rank", "3"}}, .targets = {.names = {"query", "value"}}});
  randomize(m.set, 9);
  Set::Layer& layer = m.set.layer("blocks.0.query");
  Guarded<double> x(4, 5), y(4, 6);
  x.fill(3);
  const auto output = [&] {
    Set::Layer::Saved saved;
    layer.forward(m.ctx, x.view(), y.view(), saved);
    return y.bits();
  };
  const std::string both = output();
  m.set.enable("french", false);
  const std::string english = output();
  m.set.enable("english", false);
  const std::string none = output();
  m.set.enable("french", true);
  const std::string french = output();
  CHECK(std::set<std::string>{both, english, none, french}.size() == 4);
  m.set.enable("english", true);
  CHECK(output() == both);
  CHECK(message_of<dw::NameError>([&] { m.set.enable("german", true); }) ==
        "AdapterSet: adapter: got 'german', want the name of an earlier `adapt`");
}

TEST_CASE("AdapterSet: a request that fails changes nothing") {
  Model m;
  m.set.adapt(m.ctx, {.name = "there", .options = rank_2, .targets = {.names = {"query"}}});
  const std::string weights = m.weight_bits(), parameters = parameter_bits(m.set);
  const auto fails = [&]<class E>(const E*, AdaptRequest request) {
    const std::string message = message_of<E>([&] { m.set.adapt(m.ctx, request); });
    CHECK(m.adapters() == 2);
    CHECK(m.set.requests().size() == 1);
    CHECK(m.weight_bits() == weights);
    CHECK(parameter_bits(m.set) == parameters);
    return message;
  };
  const dw::NameError* name = nullptr;
  const dw::OptionError* option = nullptr;
  const dw::StaleError* stale = nullptr;

  CHECK(fails(name, {.name = "there", .targets = {.names = {"value"}}}) ==
        "AdapterSet.adapt: name: got 'there', want one not taken yet");
  CHECK_THAT(fails(name, {.name = "lora", .targets = {.names = {"value"}}}), ContainsSubstring("'lora'"));
  CHECK_THAT(fails(name, {.method = "lorra", .targets = {.names = {"value"}}}),
             ContainsSubstring("find_method: method: got 'lorra', want one of lora"));
  CHECK_THAT(fails(name, {.options = rank_2, .targets = {.names = {"value", "qyery"}}}), ContainsSubstring("'qyery'"));
  CHECK_THAT(fails(name, {.options = rank_2, .targets = {.names = {"value"}, .rank_pattern = {{"query", 1}}}}),
             ContainsSubstring("rank_pattern 'query'"));
  CHECK_THAT(fails(option, {.options = {{"rnk", "2"}}, .targets = {.names = {"value"}}}),
             ContainsSubstring("lora: option: got 'rnk'"));
  // The last of the layers is the one that refuses.
  CHECK(fails(option, {.options = rank_2, .targets = {.names = {"value"}, .rank_pattern = {{"blocks.1.value", 6}}}}) ==
        "Lora: rank: got 6, want at most min(in_features, out_features) = 5, or any_rank = true for a layer of 5 -> 6");
  CHECK(fails(option, {.targets = {.names = {"value"}}}) ==
        "Lora: rank: got 8, want at most min(in_features, out_features) = 5, or any_rank = true for a layer of 5 -> 6");

  m.set.layer("blocks.1.value").merge(m.ctx, MergeMode::KeepCopy);
  CHECK(fails(stale, {.options = rank_2, .targets = {.names = {"value"}}}) ==
        "AdaptedLinear.add: state: got a merged layer, want unmerge first");
  m.set.layer("blocks.1.value").unmerge(m.ctx);
  CHECK(m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"value"}}}).size() == 2);
}

TEST_CASE("AdapterSet: a name that a layer's own adapter has is refused before the others get theirs") {
  Model m;
  m.set.layer("blocks.1.query")
      .add(m.ctx, "mine", dw::Lora<double, Cpu>(m.set.layer("blocks.1.query").shape(), {.rank = 2}));
  CHECK(message_of<dw::NameError>([&] {
          m.set.adapt(m.ctx, {.name = "mine", .options = rank_2, .targets = {.names = {"query"}}});
        }) == "AdaptedLinear.add: name: got 'mine', want one not taken yet");
  CHECK(m.adapters() == 1);
}

TEST_CASE("AdapterSet: layers and parameters are added once, by name") {
  Model m;
  Guarded<double> w(2, 2), v(1, 3);
  CHECK(message_of<dw::NameError>([&] {
          m.set.add_layer("head", {w.view(), {}});
        }) == "AdapterSet.add_layer: name: got 'head', want one not taken yet");
  CHECK(message_of<dw::NameError>([&] { m.set.layer("hed"); }) ==
        "AdapterSet.layer: name: got 'hed', want one of the 5 layers added");
  m.set.add_parameter("norm", v.view());
  CHECK(message_of<dw::NameError>([&] { m.set.add_parameter("norm", v.view()); }) ==
        "AdapterSet.add_parameter: name: got 'norm', want one not taken yet");
  CHECK(message_of<dw::NameError>([&] { m.set.add_parameter("head", v.view()); }) ==
        "AdapterSet.add_parameter: name: got 'head', want one not taken yet");
  CHECK(message_of<dw::ShapeError>([&] {
          m.set.add_parameter("bad", {nullptr, 2, 3});
        }) == "AdapterSet.add_parameter: value of 'bad'.data (pointer): got null, want memory for 6");
  CHECK(m.set.layer_names().size() == 5);
}

TEST_CASE("AdapterSet: a parameter that is no layer is trained in the user's memory") {
  Model m;
  Guarded<double> scale(1, 6, 0, 3);
  scale.fill_with(1);
  auto& p = m.set.add_parameter("norm.scale", scale.view());
  p.grad.view()(0, 2) = 5;
  dw::Optimizer<dw::AdamW> optimizer({.learning_rate = 0.5, .weight_decay = 0});
  optimizer.step(m.ctx, m.set);
  CHECK(scale.at(0, 2) == Approx(0.5));
  CHECK(scale.at(0, 1) == 1);
  CHECK(scale.intact());
  int count = 0;
  m.set.for_each_extra([&](const auto& extra) { count += extra.name == "norm.scale" ? 1 : 0; });
  CHECK(count == 1);
}

TEST_CASE("AdapterSet: all layers are merged, or none") {
  Model m;
  m.set.adapt(m.ctx, {.options = rank_2, .targets = {.names = {"query", "value"}}});
  randomize(m.set, 5);
  const std::string weights = m.weight_bits();
  auto& last = m.set.layer("blocks.1.value");
  auto& value = last.adapter("default").pair()->up->value.view()(0, 0);
  value = std::numeric_limits<double>::infinity();
  CHECK(message_of<dw::NonFiniteError>([&] { m.set.merge(m.ctx, MergeMode::KeepCopy); }) ==
        "AdaptedLinear.merge: parameter 'blocks.1.value.lora_B.weight' of adapter 'default': got NaN or infinity, "
        "want finite");
  CHECK(m.weight_bits() == weights);
  for (const auto& name : m.set.layer_names()) CHECK_FALSE(m.set.layer(name).merged());

  value = 1;
  m.set.merge(m.ctx, MergeMode::KeepCopy);
  CHECK(m.weight_bits() != weights);
  CHECK(message_of<dw::StaleError>([&] { m.set.merge(m.ctx, MergeMode::KeepCopy); }) ==
        "AdaptedLinear.merge: state: got a merged layer, want unmerge first");
  CHECK(message_of<dw::StaleError>([&] { m.set.enable("default", false); }) ==
        "AdapterSet.enable: layer 'blocks.0.query': got a merged one, want unmerge first");

  last.unmerge(m.ctx);
  const std::string half = m.weight_bits();
  CHECK(message_of<dw::StaleError>([&] { m.set.unmerge(m.ctx); }) ==
        "AdapterSet.unmerge: layer 'blocks.1.value': got one not merged, want all merged");
  CHECK(m.weight_bits() == half);
  last.merge(m.ctx, MergeMode::KeepCopy);
  m.set.unmerge(m.ctx);
  CHECK(m.weight_bits() == weights);
  for (const auto& [name, w] : m.weights) CHECK(w.intact());
}
