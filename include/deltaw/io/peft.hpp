#pragma once
// One adapter of an AdapterSet as the directory that Hugging Face's PEFT reads and writes: adapter_config.json and
// adapter_model.safetensors, out and in.
//
//   io::save_peft(set, "default", "out/adapter", {.base_model_name_or_path = "my-vit"});
//   io::load_peft(ctx, set, "default", "out/adapter");     // makes the adapter, or loads into one of the same shape
//
// For sets on Cuda include backend/cuda_solver.hpp too: reading KaSA cuts the base.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "deltaw/backend/cpu_solver.hpp"
#include "deltaw/core/rank.hpp"
#include "deltaw/init/kasa.hpp"
#include "deltaw/io/file.hpp"
#include "deltaw/io/peft_bases.hpp"
#include "deltaw/io/peft_checks.hpp"
#include "deltaw/io/peft_config.hpp"
#include "deltaw/io/peft_config_text.hpp"
#include "deltaw/io/peft_entries.hpp"
#include "deltaw/io/safetensors.hpp"
#include "deltaw/io/values.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "deltaw/version.hpp"

namespace deltaw::io {

/// Writes the adapter of that name, and with it the modules trained whole and the parameters beside the layers, into
/// `dir` (made if need be). Values are written as F32 or F64, as the parameters are. The scale that `set_scale` gave at
/// run time is not part of a checkpoint: alpha is the one that was trained with.
///
/// Throws, before anything is written: NameError (no such adapter), UnsupportedError (a method that PEFT has not,
/// shards), NonFiniteError, StaleError (a weight trained whole that is merged with others' deltas), FileError. The
/// tensors are replaced first, then the configuration, each at once; a machine that stops just between the two leaves
/// the new tensors beside the old configuration, which matters only if the two differ in alpha or rslora and in nothing
/// that has a shape.
template <class P, class B, class Act>
void save_peft(const AdapterSet<P, B, Act>& set, std::string_view adapter_name, const std::filesystem::path& dir,
               const PeftInfo& info = {}) {
  static_assert(std::floating_point<P>, "save_peft writes parameters of type float or double");
  for (const Selected& s : set.selected(adapter_name)) {
    detail::check_whole("save_peft", s.name, set.layer(s.name).shape());
    if (set.layer(s.name).swapped(adapter_name))
      raise<StaleError>("save_peft", "layer " + quote(s.name) +
                                         ": got an adapter that was swapped in, want the one that " +
                                         "`adapt` made, whose options the file would name");
    if (s.role == ModuleRole::Save && set.layer(s.name).merged())
      raise_mismatch<StaleError>("save_peft", "layer " + quote(s.name), "a merged layer", "unmerge first");
  }
  const std::string config = peft_config_text(detail::config_of(set, adapter_name, info));
  SafetensorsWriter writer;
  const nlohmann::json note{{"base", base_digest(set)}, {"format", detail::note_format}, {"version", version}};
  writer.set_metadata(std::string(detail::note_key), dump_json("save_peft", note));
  detail::for_each_peft_entry(
      set, adapter_name, set.selected(adapter_name), [](const std::string&) { return true; },
      [&](const detail::PeftEntry& entry, const auto& p) {
        detail::add_values(writer, entry.key(), entry.shape(), p.value.view());
      });
  for (const Selected& s : set.selected(adapter_name)) {
    if (s.role == ModuleRole::Save) continue;
    detail::add_shared(writer, set.layer(s.name).adapter(adapter_name));
    break;  // all layers share one
  }
  io::create_directories(dir);
  AtomicFile config_file(dir / peft_config_file);
  config_file.write(config);
  writer.write(dir / peft_tensor_file);
  config_file.commit();
}

struct PeftLoadOptions {
  bool any_base = false;  ///< load even what was saved on a base of other layers or shapes; the tensors must still fit
};

namespace detail {

/// What a fresh adapter starts with before its values are read: nothing, but for what its method does to the base, which
/// the set keeps a record of.
struct PeftStart {
  template <class A, class Base>
  auto operator()(typename A::Backend::Context& ctx, A& adapter, const Base& base) const {
    if (adapter.method_name() == "kasa") return init::Kasa{}(ctx, adapter, base);
    return BaseChange<typename A::Scalar, typename A::Backend::Space>{};
  }
};

/// Leaves the first `kept` of the ranks that the module was made with.
template <class Context, class Adapter>
void keep_ranks(Context& ctx, Adapter& adapter, const Selected& s, index_t kept) {
  if (s.role == ModuleRole::Save || kept == s.rank) return;
  std::vector<index_t> ranks(static_cast<std::size_t>(kept));
  std::iota(ranks.begin(), ranks.end(), index_t{0});
  resize_rank(ctx, adapter, ranks, 0);
}

/// The values of all entries, each checked for shape, type and finiteness.
template <class P>
std::map<std::string, std::vector<P>> read_values(const SafetensorsReader& reader,
                                                  const std::vector<PeftEntry>& entries) {
  std::map<std::string, std::vector<P>> values;
  for (const PeftEntry& entry : entries) {
    const TensorInfo& found = reader.at(entry.key());
    const bool one_row = entry.layout == PeftLayout::Vector && found.shape == make_shape(1, entry.cols);
    const TensorInfo& info = one_row ? found : reader.at(entry.key(), entry.shape());
    values.emplace(entry.key(), reader.read<P>(info, {.require_finite = true}));
  }
  return values;
}

}  // namespace detail

/// Reads the checkpoint in `dir` into the adapter of that name. If the set has none, it is made as the configuration
/// says (targets, ranks and alphas by PEFT's rules); if it has one, the checkpoint must describe the same. F64, F32,
/// F16 and BF16 are converted to the type of the parameters. Optimizer state of what is loaded starts anew; a layer
/// that is trained whole and stored in 16 bits takes its values at the next `prepare`.
///
/// Strict: every tensor must be taken and none may be missing. Throws FileError, FormatError (a malformed file, a
/// pickle, a type that is no number of ours, another base, a file newer than this library), UnsupportedError (a method
/// or field that we do not have), OptionError, NameError (missing or unexpected tensors, a target that matches
/// nothing), ShapeError, NonFiniteError, StaleError (a merged layer); nothing has changed then.
template <class P, class B, class Act>
void load_peft(typename B::Context& ctx, AdapterSet<P, B, Act>& set, std::string_view adapter_name,
               const std::filesystem::path& dir, PeftLoadOptions options = {}) {
  static_assert(std::floating_point<P>, "load_peft reads into parameters of type float or double");
  const PeftConfig config = read_peft_config(dir);
  const SafetensorsReader reader = detail::open_peft_tensors(dir);
  const auto wanted = [&](const std::string& module) {
    return detail::lists_module(config.targets.modules_to_save, module);
  };
  const bool fresh = !set.has(adapter_name);
  const auto shared = detail::read_shared<P, B, Act>(reader, config);
  AdaptRequest request;
  std::vector<Selected> selected;
  std::vector<detail::PeftEntry> entries;
  if (fresh) {
    check_adapter_name(adapter_name);
    request = detail::request_of(config, adapter_name, set, reader);
    request.shared = shared;
    const auto [rank, alpha] = detail::standard_rank_and_alpha(config);
    selected = select(request.targets, rank, alpha, set.layer_names());
    detail::check_kept_ranks((dir / peft_config_file).string(), config, selected);
    entries = detail::entries_to_be(set, request, config, selected);
  } else {
    selected = set.selected(adapter_name);
    detail::check_same_adapter((dir / peft_config_file).string(), config, set.request(adapter_name), selected);
  }
  for (const Selected& s : selected) {
    detail::check_whole("load_peft", s.name, set.layer(s.name).shape());
    if (set.layer(s.name).merged())
      raise_mismatch<StaleError>("load_peft", "layer " + quote(s.name), "a merged layer", "unmerge first");
  }
  if (!fresh && shared)
    for (const Selected& s : selected) detail::check_shared(set.layer(s.name).adapter(adapter_name), shared);
  const auto present = fresh ? std::vector<Selected>() : selected;
  detail::for_each_peft_entry(std::as_const(set), adapter_name, present, wanted,
                              [&](const detail::PeftEntry& entry, const auto&) { entries.push_back(entry); });
  detail::check_keys(reader, entries, detail::base_keys(reader, detail::peft_method(reader.file(), config.method)));
  detail::check_ranks(reader, entries);
  const auto values = detail::read_values<P>(reader, entries);
  detail::check_note(reader, base_digest(set), options.any_base);

  if (fresh) {
    set.adapt(ctx, std::move(request), detail::PeftStart{});
    for (const Selected& s : selected)
      detail::keep_ranks(ctx, set.layer(s.name).adapter(adapter_name), s, detail::kept_rank(config, s));
  } else if (shared) {
    for (const Selected& s : selected) detail::use_shared(set.layer(s.name).adapter(adapter_name), shared);
  }
  detail::for_each_peft_entry(set, adapter_name, selected, wanted, [&](const detail::PeftEntry& entry, auto& p) {
    detail::unpack<P>(values.at(entry.key()), p.value.view());
    p.changed();
    p.slots.clear();
    p.step = 0;
  });
}

}  // namespace deltaw::io
