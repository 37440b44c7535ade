#pragma once
// The state of a training run in one safetensors file: values of all parameters, the optimizer's slots and steps, and
// what the program itself counts. A run that is resumed from it gives the same bits as one that was never interrupted.
//
//   io::save_state("out/state.safetensors", set, {.step = step, .seed = seed, .loss_scale = loss_scale});
//   io::TrainingState state = io::load_state("out/state.safetensors", set, &warnings);

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/core/adapter.hpp"
#include "deltaw/io/environment.hpp"
#include "deltaw/io/json.hpp"
#include "deltaw/io/safetensors.hpp"
#include "deltaw/io/values.hpp"
#include "deltaw/optim/optimizer.hpp"

namespace deltaw::io {

/// What a run must know to go on, besides its parameters.
struct TrainingState {
  std::uint64_t step = 0;           ///< steps done, skipped ones included; the dropout key of the next
  std::uint64_t seed = 0;           ///< of the run
  std::uint64_t data_position = 0;  ///< samples or tokens read so far, or what the program's data loader counts
  long skipped = 0;                 ///< `Optimizer::skipped`, for `set_skipped`
  LossScale loss_scale = {};
  std::vector<std::pair<std::string, std::string>> extra = {};  ///< whatever else the program wants back, in order
  Environment environment = current_environment();
};

namespace detail {

template <class Parameters>
struct ScalarOf {
  using type = typename Parameters::Adapter::Scalar;
};
template <class Parameters>
requires requires { typename Parameters::Scalar; }
struct ScalarOf<Parameters> {
  using type = typename Parameters::Scalar;
};

inline constexpr std::string_view state_key = "deltaw_state";  // of the metadata
inline constexpr std::uint64_t state_format = 1;

/// f(key, parameter) for each. A key is "LAYER.NAME"; where several adapters of one layer have a parameter of that
/// name, the second and later ones get "@2", "@3".
template <class Parameters, class F>
void for_each_keyed(Parameters& parameters, F f) {
  std::map<std::string, int> seen;
  parameters.for_each_parameter([&](auto& p) {
    std::string key = p.owner.empty() ? p.name : p.owner + "." + p.name;
    if (const int count = ++seen[key]; count > 1) key += "@" + std::to_string(count);
    f(key, p);
  });
}

/// f(name, layer) for each layer of an AdapterSet; nothing for other kinds of parameters.
template <class Parameters, class F>
void for_each_layer(const Parameters& parameters, F f) {
  if constexpr (requires { parameters.layer_names(); })
    for (const std::string& name : parameters.layer_names()) f(name, parameters.layer(name));
  if constexpr (requires { parameters.merged(); }) f(std::string("layer"), parameters);
}

template <class Parameters>
void check_unmerged(std::string_view where, const Parameters& parameters) {
  for_each_layer(parameters, [&](const std::string& name, const auto& layer) {
    if (layer.merged()) raise_mismatch<StaleError>(where, "layer " + quote(name), "a merged layer", "unmerge first");
  });
}

/// The adapters of a set in their order: method, options as they were given, and, of each layer, the scale and the digest of
/// what is drawn again and not saved.
template <class Parameters>
nlohmann::json describe_adapters(const Parameters& parameters) {
  auto adapters = nlohmann::json::array();
  if constexpr (requires { parameters.requests(); }) {
    for (const auto& request : parameters.requests()) {
      nlohmann::json options = nlohmann::json::object(), scales = options, digests = options;
      for (const auto& [name, value] : request.options) options[name] = value;
      for (const auto& s : parameters.selected(request.name)) {
        const auto& adapter = parameters.layer(s.name).adapter(request.name);
        if (adapter.can_scale()) scales[s.name] = adapter.scale();
        if (adapter.basis_digest() != 0) digests[s.name] = adapter.basis_digest();
      }
      adapters.push_back({{"name", request.name},
                          {"method", request.method},
                          {"options", options},
                          {"scales", scales},
                          {"basis_digests", digests}});
    }
  }
  return adapters;
}

/// The part of the state that is no tensor.
template <class Parameters>
nlohmann::json describe_state(const Parameters& parameters, const TrainingState& state) {
  nlohmann::json environment, steps = nlohmann::json::object(), extra = nlohmann::json::array();
  nlohmann::json births = nlohmann::json::object();
  Environment copy = state.environment;
  for (const auto& [name, text] : environment_fields(copy)) environment[name] = *text;
  for_each_keyed(parameters, [&](const std::string& key, const auto& p) {
    steps[key] = p.step;
    if (!p.births.empty()) births[key] = p.births;
  });
  for (const auto& [name, text] : state.extra) extra.push_back({name, text});
  const LossScale& scale = state.loss_scale;
  return {{"format", state_format},
          {"step", state.step},
          {"seed", state.seed},
          {"data_position", state.data_position},
          {"skipped", state.skipped},
          {"loss_scale",
           {{"value", scale.value},
            {"growth", scale.growth},
            {"backoff", scale.backoff},
            {"growth_interval", scale.growth_interval},
            {"good_steps", scale.good_steps}}},
          {"extra", extra},
          {"environment", environment},
          {"parameter_steps", steps},
          {"rank_births", births},
          {"adapters", describe_adapters(parameters)}};
}

/// Fields of a JSON object of the file, each asked for with its type.
class StateFields {
 public:
  StateFields(std::string where, const nlohmann::json& object) : where_(std::move(where)), object_(object) {
    if (!object.is_object()) raise_mismatch<FormatError>(where_, "content", object.dump(), "an object");
  }

  const nlohmann::json& get(const std::string& name, bool (nlohmann::json::*is)() const noexcept,
                            std::string_view want) const {
    const auto found = object_.find(name);
    const bool there = found != object_.end();
    if (!there || !((*found).*is)())
      raise_mismatch<FormatError>(where_, "field " + quote(name), there ? quote(found->dump()) : "none", want);
    return *found;
  }
  std::uint64_t natural(const std::string& name) const {
    return get(name, &nlohmann::json::is_number_unsigned, "a whole number of 0 or more").get<std::uint64_t>();
  }
  long count(const std::string& name) const {
    const std::uint64_t value = natural(name);
    if (std::cmp_greater(value, std::numeric_limits<long>::max()))
      raise_mismatch<FormatError>(where_, "field " + quote(name), value, "a number of steps");
    return static_cast<long>(value);
  }
  double number(const std::string& name) const {
    return get(name, &nlohmann::json::is_number, "a number").get<double>();
  }
  std::string text(const std::string& name) const {
    return get(name, &nlohmann::json::is_string, "a text").get<std::string>();
  }
  const nlohmann::json& array(const std::string& name) const {
    return get(name, &nlohmann::json::is_array, "an array");
  }
  StateFields object(const std::string& name) const {
    return {where_ + ": " + name, get(name, &nlohmann::json::is_object, "an object")};
  }
  /// Of a parameter some of whose ranks came later: the step at which each did. Empty for the rest.
  std::vector<long> births(const std::string& key, index_t ranks) const {
    const auto all = object_.find("rank_births");
    if (all == object_.end() || !all->is_object() || !all->contains(key)) return {};
    const nlohmann::json& list = (*all)[key];
    std::vector<long> births;
    for (const auto& birth : list)
      if (birth.is_number_unsigned()) births.push_back(birth.get<long>());
    if (!list.is_array() || births.size() != list.size() || std::cmp_not_equal(births.size(), ranks))
      raise_mismatch<FormatError>(where_, "field 'rank_births' of " + quote(key), list.dump(),
                                  std::to_string(ranks) + " numbers of steps");
    return births;
  }
  const nlohmann::json& json() const { return object_; }
  const std::string& where() const { return where_; }

 private:
  std::string where_;
  const nlohmann::json& object_;
};

inline TrainingState read_state_fields(const StateFields& fields) {
  if (const auto format = fields.natural("format"); format > state_format)
    raise_mismatch<FormatError>(fields.where(), "format", format,
                                "at most " + std::to_string(state_format) + ": a newer deltaw than this " +
                                    std::string(version) + " wrote the file");
  TrainingState state;
  state.step = fields.natural("step");
  state.seed = fields.natural("seed");
  state.data_position = fields.natural("data_position");
  state.skipped = fields.count("skipped");
  const StateFields scale = fields.object("loss_scale");
  state.loss_scale = {.value = scale.number("value"),
                      .growth = scale.number("growth"),
                      .backoff = scale.number("backoff"),
                      .growth_interval = scale.count("growth_interval"),
                      .good_steps = scale.count("good_steps")};
  for (const auto& pair : fields.array("extra")) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      raise_mismatch<FormatError>(fields.where(), "field 'extra'", quote(pair.dump()), "pairs of texts");
    state.extra.emplace_back(pair[0].get<std::string>(), pair[1].get<std::string>());
  }
  const StateFields environment = fields.object("environment");
  for (const auto& [name, text] : environment_fields(state.environment)) *text = environment.text(std::string(name));
  return state;
}

/// Throws where coefficients would be read into other random matrices than they were trained for.
inline void check_basis_digests(const std::string& where, const nlohmann::json& saved, const nlohmann::json& here) {
  for (const auto& [layer, digest] : here["basis_digests"].items())
    if (saved.contains(layer) && saved[layer] != digest)
      raise_mismatch<OptionError>(
          where, "basis_digest of adapter " + quote(here["name"].get<std::string>()) + " on layer " + quote(layer),
          digest.dump(), saved[layer].dump() + ", as saved: the same seed, layer, sizes and shape");
}

/// Throws unless the set has the adapters of the file, in their order, with the scales they had and the random bases that
/// their coefficients were trained for. Other options, such as a dropout, may have been changed on purpose: that is a warning.
template <class Parameters>
void check_adapters(const StateFields& fields, const Parameters& parameters, std::vector<std::string>& warnings) {
  const nlohmann::json here = describe_adapters(parameters);
  const nlohmann::json& saved = fields.array("adapters");
  const auto names = [](const nlohmann::json& adapters) {
    std::string text;
    for (const auto& a : adapters)
      text += (text.empty() ? "" : ", ") + quote(a.value("name", "")) + " (" + a.value("method", "") + ")";
    return text.empty() ? "no adapter" : text;
  };
  for (const auto& a : saved) {
    const StateFields adapter(fields.where() + ": adapters", a);
    adapter.text("name"), adapter.text("method"), adapter.object("options"), adapter.object("scales");
  }
  if (names(saved) != names(here))
    raise_mismatch<NameError>(fields.where(), "adapters", names(here) + " in this set", names(saved) + ", as saved");
  for (std::size_t i = 0; i < saved.size(); ++i) {
    const auto& scales = saved[i]["scales"];
    for (const auto& [layer, scale] : here[i]["scales"].items())
      if (!scales.contains(layer) || scales[layer] != scale)
        raise_mismatch<OptionError>(
            fields.where(),
            "scale of adapter " + quote(here[i]["name"].template get<std::string>()) + " on layer " + quote(layer),
            scale.dump(),
            (scales.contains(layer) ? scales[layer].dump() : "none") + ", as saved (alpha over rank, or set_scale)");
    check_basis_digests(fields.where(), saved[i].value("basis_digests", nlohmann::json::object()), here[i]);
    if (saved[i]["options"] != here[i]["options"])
      warnings.push_back(fields.where() + ": options of adapter " + quote(here[i]["name"].template get<std::string>()) +
                         ": it was saved with " + saved[i]["options"].dump() + " and is resumed with " +
                         here[i]["options"].dump());
  }
}

/// What a file has for one parameter.
template <class P>
struct LoadedParameter {
  long step = 0;
  std::vector<long> births;
  std::vector<P> value;
  std::vector<std::pair<std::string, std::vector<P>>> slots;
};

/// Reads what belongs to the parameter `key`, and crosses the tensors off the list of those that nobody has taken.
template <class Param, class P>
void read_parameter(const SafetensorsReader& reader, const std::string& key, const Param& p,
                    std::set<std::string>& untaken, LoadedParameter<P>& loaded) {
  const auto read = [&](const std::string& name, index_t rows, index_t cols) {
    const TensorInfo& info = reader.at(name, make_shape(rows, cols));
    if (info.dtype != dtype_of<P>())
      raise_mismatch<FormatError>(reader.file(), tensor_label(name) + " dtype", dtype_name(info.dtype),
                                  std::string(dtype_name(dtype_of<P>())) + ", the type of this set's parameters");
    return reader.read<P>(info, {.require_finite = true});
  };
  loaded.value = read(key, p.value.rows(), p.value.cols());
  untaken.erase(key);
  const std::string prefix = key + "#";
  for (auto next = untaken.lower_bound(prefix); next != untaken.end() && next->starts_with(prefix);
       next = untaken.erase(next)) {
    const std::string slot_name = next->substr(prefix.size());
    index_t rows = p.value.rows(), cols = p.value.cols();
    for (const auto& slot : p.slots)
      if (slot.name == slot_name) rows = slot.value.rows(), cols = slot.value.cols();
    loaded.slots.emplace_back(slot_name, read(*next, rows, cols));
  }
}

}  // namespace detail

/// Writes all parameters (those that are not trained too), their slots and steps, and `state` into one file, replacing
/// an older one at once or not at all. Save between steps: gradients are not part of it. Throws, before anything is
/// written: NonFiniteError for a value or slot, StaleError for a merged layer, FileError.
template <HasParameters Parameters>
void save_state(const std::filesystem::path& path, const Parameters& parameters, const TrainingState& state) {
  detail::check_unmerged("save_state", parameters);
  SafetensorsWriter writer;
  detail::for_each_keyed(parameters, [&](const std::string& key, const auto& p) {
    const auto add = [&](const std::string& name, const auto& tensor) {
      detail::add_values(writer, name, make_shape(tensor.rows(), tensor.cols()), tensor.view());
    };
    add(key, p.value);
    for (const auto& slot : p.slots) add(key + "#" + slot.name, slot.value);
  });
  writer.set_metadata(std::string(detail::state_key),
                      dump_json("save_state", detail::describe_state(parameters, state)));
  writer.write(path);
}

/// Reads what `save_state` wrote into parameters of the same names, shapes and types. Slots are made as the file has
/// them; one whose shape is not its parameter's must be there already. `warnings`, if given, gets a sentence for each
/// difference between the saved environment or options and those `here`: the run goes on, but not to the same bits.
///
/// Throws FileError, FormatError (malformed, written by a newer library, another type), NameError (a parameter missing
/// or unexpected, other adapters), ShapeError, OptionError (an adapter's scale), NonFiniteError, StaleError (a merged
/// layer); nothing has changed then.
template <HasParameters Parameters>
TrainingState load_state(const std::filesystem::path& path, Parameters& parameters,
                         std::vector<std::string>* warnings = nullptr,
                         const Environment& here = current_environment()) {
  using P = typename detail::ScalarOf<Parameters>::type;
  detail::check_unmerged("load_state", parameters);
  const SafetensorsReader reader = SafetensorsReader::open(path);
  const auto text = reader.metadata().find(std::string(detail::state_key));
  if (text == reader.metadata().end())
    raise_mismatch<FormatError>(reader.file(), "metadata " + quote(detail::state_key), "none",
                                "it: this is no training state of deltaw");
  const auto json = parse_json(reader.file(), text->second);
  const detail::StateFields fields(reader.file(), json);
  TrainingState state = detail::read_state_fields(fields);
  auto notes = compare_environments(reader.file(), state.environment, here);
  detail::check_adapters(fields, parameters, notes);

  const detail::StateFields steps = fields.object("parameter_steps");
  std::set<std::string> untaken;
  for (const TensorInfo& info : reader.tensors()) untaken.insert(info.name);
  std::map<std::string, detail::LoadedParameter<P>> loaded;
  detail::for_each_keyed(std::as_const(parameters), [&](const std::string& key, const auto& p) {
    auto& entry = loaded[key];
    detail::read_parameter(reader, key, p, untaken, entry);
    entry.step = steps.count(key);
    entry.births = fields.births(key, p.ranks());
  });
  if (!untaken.empty())
    raise_mismatch<NameError>(reader.file(), detail::tensor_label(*untaken.begin()),
                              "it and " + std::to_string(untaken.size() - 1) + " more that nothing here takes",
                              "only the parameters of this set and their slots");

  detail::for_each_keyed(parameters, [&](const std::string& key, auto& p) {
    auto& entry = loaded.at(key);
    detail::unpack<P>(entry.value, p.value.view());
    p.changed();
    p.step = entry.step;
    p.births = std::move(entry.births);
    std::erase_if(p.slots, [&](const auto& slot) {
      return std::none_of(entry.slots.begin(), entry.slots.end(), [&](auto& s) { return s.first == slot.name; });
    });
    for (const auto& [name, values] : entry.slots) detail::unpack<P>(values, p.slot(name).view());
  });
  if (warnings != nullptr) warnings->insert(warnings->end(), notes.begin(), notes.end());
  return state;
}

}  // namespace deltaw::io
