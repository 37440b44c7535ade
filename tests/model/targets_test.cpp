// Which modules are selected, with which rank and alpha, and every refusal by its message.

#include "deltaw/model/targets.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"
#include "deltaw/model/adapter_name.hpp"

using deltaw::index_t;
using deltaw::ModuleRole;
using deltaw::NameError;
using deltaw::OptionError;
using deltaw::Selected;
using deltaw::Targets;
using deltaw_tests::ContainsSubstring;

namespace {

using Names = std::vector<std::string>;

/// A transformer of `layers` layers with a head of two modules.
Names transformer(int layers = 2) {
  Names names{"model.embed"};
  for (int i = 0; i < layers; ++i)
    for (const char* module : {"attn.q_proj", "attn.k_proj", "mlp.up"})
      names.push_back("model.layers." + std::to_string(i) + "." + module);
  names.push_back("lm_head");
  names.push_back("classifier.dense");
  return names;
}

std::vector<Selected> select(const Targets& targets, const Names& names = transformer(), const Names& heads = {}) {
  return deltaw::select(targets, 8, 16.0, names, heads);
}

/// The names that `targets` selects in one role.
Names chosen(const Targets& targets, const Names& names = transformer(), const Names& heads = {},
             ModuleRole role = ModuleRole::Adapt) {
  Names result;
  for (const Selected& s : select(targets, names, heads))
    if (s.role == role) result.push_back(s.name);
  return result;
}

template <class Error>
std::string message_of(const Targets& targets, const Names& names = transformer(), const Names& heads = {}) {
  try {
    select(targets, names, heads);
  } catch (const Error& error) { return error.what(); }
  return "nothing was raised";
}

std::string name_message(const std::string& name) {
  try {
    deltaw::check_adapter_name(name);
  } catch (const NameError& error) { return error.what(); }
  return "nothing was raised";
}

}  // namespace

TEST_CASE("targets: a list names modules by their last segments", "[targets]") {
  const Names q{"model.layers.0.attn.q_proj", "model.layers.1.attn.q_proj"};
  CHECK(chosen({.names = {"q_proj"}}) == q);
  CHECK(chosen({.names = {"attn.q_proj"}}) == q);
  CHECK(chosen({.names = {"model.layers.1.mlp.up", "0.attn.q_proj"}}) ==
        Names{"model.layers.0.attn.q_proj", "model.layers.1.mlp.up"});
  CHECK(chosen({.names = {"proj"}}, {"a.proj", "a.q_proj", "proj", "proj.b"}) == Names{"a.proj", "proj"});
  CHECK(chosen({.names = {"a.b"}}, {"aab", "x.aab", "x.a.b"}) == Names{"x.a.b"});
}

TEST_CASE("targets: a pattern must match the full name", "[targets]") {
  CHECK(chosen({.pattern = ".*\\.(q|k)_proj"}).size() == 4);
  CHECK(chosen({.pattern = "model\\.layers\\.1\\..*"}).size() == 3);
  CHECK_THAT(message_of<NameError>({.pattern = "q_proj"}),
             ContainsSubstring("pattern 'q_proj' matches none of the 9 modules: model.embed, "));
}

TEST_CASE("targets: all_linear takes everything but the heads", "[targets]") {
  CHECK(chosen({.all_linear = true}) == transformer());
  const Names heads{"lm_head", "dense"};
  CHECK(chosen({.all_linear = true}, transformer(), heads).size() == 7);
  CHECK(chosen({.pattern = "All-Linear"}, transformer(), heads) == chosen({.all_linear = true}, transformer(), heads));
  CHECK(chosen({.all_linear = true, .exclude = {"up"}}, transformer(), heads).size() == 5);
  CHECK_THAT(message_of<NameError>({.all_linear = true}, transformer(), {"head"}),
             ContainsSubstring("head_names 'head' matches none of the 9 modules"));
  CHECK(chosen({.names = {"lm_head"}}, transformer(), {"elsewhere"}) == Names{"lm_head"});
}

TEST_CASE("targets: exclude by list or by pattern", "[targets]") {
  const Names left{"model.layers.1.attn.q_proj"};
  CHECK(chosen({.names = {"q_proj"}, .exclude = {"0.attn.q_proj", "nothing_like_it"}}) == left);
  CHECK(chosen({.names = {"q_proj"}, .exclude = {"model.layers.0.attn.q_proj"}}) == left);
  CHECK(chosen({.names = {"q_proj"}, .exclude_pattern = ".*\\.0\\..*"}) == left);
  CHECK(chosen({.names = {"q_proj"}, .exclude_pattern = "q_proj"}).size() == 2);
  CHECK_THAT(message_of<NameError>({.names = {"q_proj"}, .exclude = {"q_proj"}}),
             ContainsSubstring("nothing is left to adapt"));
}

TEST_CASE("targets: modules to save beat targets, with all below them", "[targets]") {
  const Targets targets{.all_linear = true, .modules_to_save = {"classifier", "layers.1"}};
  CHECK(chosen(targets, transformer(), {}, ModuleRole::Save) ==
        Names{"model.layers.1.attn.q_proj", "model.layers.1.attn.k_proj", "model.layers.1.mlp.up", "classifier.dense"});
  CHECK(chosen(targets).size() == 5);
  CHECK(chosen({.names = {"q_proj"}, .modules_to_save = {"head"}}, {"q_proj", "lm_head", "head", "x.head.y"}, {},
               ModuleRole::Save) == Names{"head", "x.head.y"});
  // Excluding keeps an adapter away; it does not freeze a module that is to be saved.
  CHECK(chosen({.names = {"q_proj"}, .exclude = {"lm_head"}, .modules_to_save = {"lm_head"}}, transformer(), {},
               ModuleRole::Save) == Names{"lm_head"});
}

TEST_CASE("targets: modules to save alone make a selection without adapters", "[targets]") {
  const auto selected = select({.modules_to_save = {"lm_head"}});
  REQUIRE(selected.size() == 1);
  CHECK(selected[0].name == "lm_head");
  CHECK(selected[0].role == ModuleRole::Save);
  CHECK(selected[0].rank == 0);
  CHECK(selected[0].alpha == 0);
  CHECK_THAT(message_of<NameError>({.names = {"q_proj"}, .modules_to_save = {"q_proj"}}),
             ContainsSubstring("nothing is left to adapt"));
}

TEST_CASE("targets: the order of the modules is kept", "[targets]") {
  CHECK(chosen({.names = {"c", "a"}}, {"x.a", "x.b", "x.c"}) == Names{"x.a", "x.c"});
}

TEST_CASE("targets: layers_to_transform counts the first numbered segment", "[targets]") {
  const Names names{"h.0.q", "h.1.q", "model.layers.2.experts.0.q", "model.layers.0.experts.2.q", "tail.q", "tail.q.2"};
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {0}}, names) == Names{"h.0.q", "model.layers.0.experts.2.q"});
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {1, 2}}, names) == Names{"h.1.q", "model.layers.2.experts.0.q"});
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {7}}, {"h.007.q", "h.70.q", "h.7b.q", "h7.q"}) ==
        Names{"h.007.q"});
  CHECK(chosen({.names = {"2"}, .layers_to_transform = {0}}, {"net.0.2", "net.2"}) == Names{"net.0.2"});
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {0}}, {"h.99999999999999999999999.q", "h.0.q"}) ==
        Names{"h.0.q"});
}

TEST_CASE("targets: a listed layer may lack the module, but must be there", "[targets]") {
  const Names hybrid{"h.0.q", "h.1.mamba", "h.2.q"};
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {0, 1}}, hybrid) == Names{"h.0.q"});
  CHECK_THAT(message_of<NameError>({.names = {"q"}, .layers_to_transform = {0, 3}}, hybrid),
             ContainsSubstring("layers_to_transform '3' matches none of the 3 modules: h.0.q, h.1.mamba, h.2.q"));
  CHECK_THAT(message_of<NameError>({.names = {"q"}, .layers_to_transform = {1}}, hybrid),
             ContainsSubstring("nothing is left to adapt"));
}

TEST_CASE("targets: a full name is taken whatever its layer", "[targets]") {
  CHECK(chosen({.names = {"h.1.q", "k"}, .layers_to_transform = {0}}, {"h.0.q", "h.1.q", "h.0.k", "h.1.k"}) ==
        Names{"h.1.q", "h.0.k"});
}

TEST_CASE("targets: layers_pattern says what stands before the index", "[targets]") {
  const Names names{"stage.0.layers.1.q", "stage.1.layers.0.q", "layers.1.q", "players.1.q"};
  const auto with = [&](Names patterns) {
    return chosen({.names = {"q"}, .layers_to_transform = {1}, .layers_pattern = patterns}, names);
  };
  CHECK(chosen({.names = {"q"}, .layers_to_transform = {1}}, names) ==
        Names{"stage.1.layers.0.q", "layers.1.q", "players.1.q"});
  CHECK(with({"layers"}) == Names{"stage.0.layers.1.q", "layers.1.q"});
  CHECK(with({"stage"}) == Names{"stage.1.layers.0.q"});
  CHECK(with({"0.layers"}) == Names{"stage.0.layers.1.q"});
  CHECK(with({"p?layers"}) == Names{"stage.0.layers.1.q", "layers.1.q", "players.1.q"});
  CHECK(with({"stage", "layers"}) == Names{"stage.1.layers.0.q", "layers.1.q"});
}

TEST_CASE("targets: rank and alpha by pattern, each on its own", "[targets]") {
  const auto selected = select({.names = {"q_proj", "k_proj", "up"},
                                .rank_pattern = {{"^model.layers.0.attn.q_proj", 2}, {"(q|k)_proj", 4}},
                                .alpha_pattern = {{"k_proj", 3.5}, {"1.mlp.up", 7}, {".*proj", -1}}});
  REQUIRE(selected.size() == 6);
  const std::vector<index_t> ranks{2, 4, 8, 4, 4, 8};
  const std::vector<double> alphas{-1, 3.5, 16, -1, 3.5, 7};
  for (std::size_t i = 0; i < selected.size(); ++i) {
    INFO(selected[i].name);
    CHECK(selected[i].role == ModuleRole::Adapt);
    CHECK(selected[i].rank == ranks[i]);
    CHECK(selected[i].alpha == alphas[i]);
  }
}

TEST_CASE("targets: the first matching key decides, unless one is the full name", "[targets]") {
  const Names names{"a.q", "b.q"};
  const auto ranks = [&](std::vector<std::pair<std::string, index_t>> pattern) {
    std::vector<index_t> result;
    for (const Selected& s : select({.names = {"q"}, .rank_pattern = std::move(pattern)}, names))
      result.push_back(s.rank);
    return result;
  };
  CHECK(ranks({{"q", 1}, {".*q", 2}}) == std::vector<index_t>{1, 1});
  CHECK(ranks({{".*q", 2}, {"q", 1}}) == std::vector<index_t>{2, 2});
  CHECK(ranks({{"q", 1}, {"b.q", 3}}) == std::vector<index_t>{1, 3});
  CHECK(ranks({{"^a.*", 5}}) == std::vector<index_t>{5, 8});
}

TEST_CASE("targets: an entry that matches nothing is an error that names it and some modules", "[targets]") {
  const std::string some =
      " matches none of the 9 modules: model.embed, model.layers.0.attn.q_proj, "
      "model.layers.0.attn.k_proj, model.layers.0.mlp.up and 5 more";
  CHECK(message_of<NameError>({.names = {"q_proj", "v_proj"}}) == "select: names 'v_proj'" + some);
  CHECK(message_of<NameError>({.pattern = "up"}) == "select: pattern 'up'" + some);
  CHECK(message_of<NameError>({.names = {"up"}, .modules_to_save = {"head"}}) ==
        "select: modules_to_save 'head'" + some);
  CHECK_THAT(message_of<NameError>({.names = {"up"}, .rank_pattern = {{"up", 2}, {"q_proj", 3}}}),
             ContainsSubstring("rank_pattern 'q_proj' matches none of the 2 modules: model.layers.0.mlp.up, "));
  CHECK_THAT(message_of<NameError>({.names = {"up"}, .alpha_pattern = {{"^up", 2}}}),
             ContainsSubstring("alpha_pattern '^up' matches none of the 2 modules"));
  CHECK_THAT(message_of<NameError>({.modules_to_save = {"lm_head"}, .rank_pattern = {{"lm_head", 2}}}),
             ContainsSubstring("rank_pattern 'lm_head' matches none of the 0 modules"));
  CHECK_THAT(message_of<NameError>({.names = {"up"}, .layers_to_transform = {1, 2}}),
             ContainsSubstring("layers_to_transform '2' matches none of the 9 modules"));
  CHECK_THAT(message_of<NameError>({.names = {"up"}, .layers_to_transform = {1}, .layers_pattern = {"layers", "h"}}),
             ContainsSubstring("layers_pattern 'h' matches none of the 9 modules"));
}

TEST_CASE("targets: messages stay short with long names", "[targets]") {
  const Names names(1, std::string(4096, 'n'));
  const std::string message = message_of<NameError>({.names = {"q"}}, names);
  CHECK_THAT(message, ContainsSubstring(std::string(64, 'n') + "..."));
  CHECK(message.size() < 150);
}

TEST_CASE("targets: options that contradict each other are refused", "[targets]") {
  const auto refused = [](const Targets& targets) { return message_of<OptionError>(targets); };
  const std::string one_of = "names, pattern and all_linear: got more than one of them, want one";
  CHECK_THAT(refused({}), ContainsSubstring("got no names, no pattern, no all_linear and no modules_to_save"));
  CHECK_THAT(refused({.names = {"up"}, .pattern = "up"}), ContainsSubstring(one_of));
  CHECK_THAT(refused({.names = {"up"}, .all_linear = true}), ContainsSubstring(one_of));
  CHECK_THAT(refused({.pattern = "up", .all_linear = true}), ContainsSubstring(one_of));
  CHECK_THAT(refused({.names = {"up"}, .exclude = {"a"}, .exclude_pattern = "b"}),
             ContainsSubstring("exclude and exclude_pattern: got both, want one"));
  const std::string list_only = "layers_to_transform works with a list of names only, got none";
  CHECK_THAT(refused({.pattern = ".*up", .layers_to_transform = {0}}), ContainsSubstring(list_only));
  CHECK_THAT(refused({.all_linear = true, .layers_to_transform = {0}}), ContainsSubstring(list_only));
  CHECK_THAT(refused({.names = {"up"}, .layers_pattern = {"layers"}}),
             ContainsSubstring("layers_pattern needs layers_to_transform, got none"));
  CHECK_THAT(refused({.pattern = ".*up", .layers_pattern = {"layers"}}),
             ContainsSubstring("layers_pattern needs layers_to_transform, got none"));
}

TEST_CASE("targets: values outside their range are refused", "[targets]") {
  const auto refused = [](const Targets& targets) { return message_of<OptionError>(targets); };
  CHECK_THAT(refused({.names = {"up"}, .layers_to_transform = {-1}}),
             ContainsSubstring("layers_to_transform: got -1, want at least 0"));
  CHECK_THAT(refused({.names = {"up"}, .rank_pattern = {{"up", 0}}}),
             ContainsSubstring("rank_pattern 'up': got 0, want at least 1"));
  CHECK_THAT(refused({.names = {"up"}, .rank_pattern = {{"up", 2}, {"up", 3}}}),
             ContainsSubstring("rank_pattern 'up' is there twice"));
  CHECK_THAT(refused({.names = {"up"}, .alpha_pattern = {{"up", 0}}}),
             ContainsSubstring("alpha_pattern 'up': got 0, want a finite number other than 0"));
  CHECK_THAT(refused({.names = {"up"}, .alpha_pattern = {{"up", std::nan("")}}}),
             ContainsSubstring("alpha_pattern 'up': got nan, want a finite number other than 0"));
  for (const char* entry : {"", ".up", "up."}) {
    const std::string got = ": got '" + std::string(entry) + "', want a module name, or its last segments";
    CHECK_THAT(refused({.names = {entry}}), ContainsSubstring("names" + got));
    CHECK_THAT(refused({.names = {"up"}, .exclude = {entry}}), ContainsSubstring("exclude" + got));
    CHECK_THAT(refused({.names = {"up"}, .modules_to_save = {entry}}), ContainsSubstring("modules_to_save" + got));
    CHECK_THAT(message_of<OptionError>({.names = {"up"}}, transformer(), {entry}),
               ContainsSubstring("head_names" + got));
  }
  CHECK_THAT(refused({.names = {std::string(4097, 'a')}}),
             ContainsSubstring("names: length of an entry: got 4097, want at most 4096 characters"));
  const Names names = transformer();
  const Targets up{.names = {"up"}};
  CHECK_THROWS_WITH(deltaw::select(up, 0, 1, names), ContainsSubstring("default_rank: got 0, want at least 1"));
  CHECK_THROWS_WITH(deltaw::select(up, 1, std::numeric_limits<double>::infinity(), names),
                    ContainsSubstring("default_alpha: got inf, want a finite number other than 0"));
}

TEST_CASE("targets: a pattern that is refused names its option", "[targets]") {
  const auto refused = [](const Targets& targets) { return message_of<OptionError>(targets); };
  const std::string reason = ": pattern '(?=a)' is refused: lookahead '(?=' at position 0";
  CHECK(refused({.pattern = "(?=a)"}) == "select: pattern" + reason);
  CHECK(refused({.names = {"up"}, .exclude_pattern = "(?=a)"}) == "select: exclude_pattern" + reason);
  CHECK(refused({.names = {"up"}, .rank_pattern = {{"(?=a)", 1}}}) == "select: rank_pattern" + reason);
  CHECK(refused({.names = {"up"}, .alpha_pattern = {{"(?=a)", 1}}}) == "select: alpha_pattern" + reason);
  CHECK(refused({.names = {"up"}, .layers_to_transform = {0}, .layers_pattern = {"(?=a)"}}) ==
        "select: layers_pattern" + reason);
  CHECK_THAT(refused({.names = {"up"}, .rank_pattern = {{std::string(4097, 'a'), 1}}}),
             ContainsSubstring("length of the pattern: got 4097, want at most 4096 characters"));
  // A key is one pattern: it cannot close the group that is put around it.
  CHECK_THAT(refused({.names = {"up"}, .rank_pattern = {{"a)|(b", 1}}}), ContainsSubstring("')' without a '('"));
}

TEST_CASE("targets: module names are checked", "[targets]") {
  const Targets up{.names = {"up"}};
  CHECK_THAT(message_of<NameError>(up, {}), ContainsSubstring("module_names: got no module, want at least one"));
  CHECK_THAT(message_of<NameError>(up, {"up", ""}), ContainsSubstring("module_names: got an empty name"));
  CHECK_THAT(message_of<NameError>(up, {"up", "a", "up"}), ContainsSubstring("module_names: 'up' is there twice"));
  CHECK_THAT(message_of<NameError>(up, {std::string(4097, 'a')}),
             ContainsSubstring("module_names: length of a name: got 4097, want at most 4096 characters"));
  const std::string longest = std::string(4093, 'a') + ".up";
  CHECK(chosen(up, {longest}) == Names{longest});
  CHECK(chosen({.pattern = "a*\\.up"}, {longest}) == Names{longest});
}

TEST_CASE("adapter names: what can be mistaken for a key is refused", "[targets]") {
  for (const char* name : {"default", "a", "my_lora", "lorax", "soft_prompt", "task-2", "7b", "weights"})
    CHECK(name_message(name) == "nothing was raised");
  CHECK(name_message(std::string(64, 'a')) == "nothing was raised");
  CHECK_THAT(name_message(""), ContainsSubstring("name: got an empty one, want at least one character"));
  CHECK_THAT(name_message(std::string(65, 'a')),
             ContainsSubstring("length of the name: got 65, want at most 64 characters"));
  for (const std::string name : {"a.b", ".", "..", "a/b", "a b", "_a", "__base__", "-a", "a\n", "caf\xc3\xa9"})
    CHECK_THAT(name_message(name), ContainsSubstring("name: got '" + name + "', want letters, digits, '_' and '-'"));
  for (const std::string name : {"lora", "lora_A", "my_lora_2", "my-lora_2", "not_lorax_lora_2"})
    CHECK_THAT(name_message(name), ContainsSubstring("name: '" + name + "' contains 'lora', which begins keys"));
  CHECK_THAT(name_message("randlora_1"), ContainsSubstring("contains 'randlora'"));
  for (const std::string name : {"base_model", "base_layer", "model", "weight", "bias", "modules_to_save"})
    CHECK_THAT(name_message(name), ContainsSubstring("name: '" + name + "' is a segment of the keys of checkpoints"));
}
