#pragma once
// Frozen random tensors that all layers of an adapter share (VeRA, RandLoRA): PEFT stores them once for the model, or not at
// all, and they are drawn again from a seed then.

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/io/peft_config.hpp"
#include "deltaw/io/peft_entries.hpp"
#include "deltaw/io/safetensors.hpp"
#include "deltaw/io/values.hpp"
#include "deltaw/model/adapter_set.hpp"

namespace deltaw::io::detail {

inline std::string base_key(std::string_view name) { return std::string("base_model.").append(name); }

/// One of them as a matrix: the file may have more dimensions, and only its first counts rows.
template <class P>
struct PeftBase {
  std::vector<P> values;
  index_t rows = 0;

  ConstMatrixView<P, Host> view() const {
    return {values.data(), rows, rows == 0 ? 0 : static_cast<index_t>(values.size()) / rows};
  }
};

template <class P>
PeftBase<P> read_base(const SafetensorsReader& reader, std::string_view name) {
  const TensorInfo& info = reader.at(base_key(name));
  if (info.shape.size() < 2)
    raise_mismatch<ShapeError>(reader.file(), quote(info.name), shape_text(info.shape), "two dimensions or more");
  return {reader.read<P>(info, {.require_finite = true}), static_cast<index_t>(info.shape.front())};
}

/// Keys in the file of what layers share; RandLoRA repeats it for each layer. Throws FormatError where a copy differs.
inline Names base_keys(const SafetensorsReader& reader, const PeftMethod& method) {
  Names keys;
  if (!method.shares_bases()) return keys;
  for (const TensorInfo& info : reader.tensors())
    for (const std::string_view name : method.bases) {
      const std::string key = base_key(name);
      const bool copy = info.name.starts_with(peft_prefix) && info.name.ends_with(std::string(".").append(name));
      if (info.name != key && !(copy && reader.contains(key))) continue;
      const TensorInfo& original = reader.at(key);
      const auto bytes = reader.bytes(info), want = reader.bytes(original);
      if (info.shape != original.shape || !std::equal(bytes.begin(), bytes.end(), want.begin(), want.end()))
        raise_mismatch<FormatError>(reader.file(), quote(info.name), "another tensor", "a copy of " + quote(key));
      keys.push_back(info.name);
    }
  return keys;
}

/// What the layers share, of the method's own type; null where the file leaves it out, for `adapt` to draw it. Throws
/// NameError where the file has only one of two, UnsupportedError where it cannot be drawn again.
template <class P, class B, class Act>
std::shared_ptr<const void> read_shared(const SafetensorsReader& reader, const PeftConfig& config) {
  const PeftMethod& method = peft_method(reader.file(), config.method);
  if (!method.shares_bases()) return nullptr;
  const auto& [first, second] = method.bases;
  if (reader.contains(base_key(first)) || reader.contains(base_key(second))) {
    const PeftBase<P> a = read_base<P>(reader, first), b = read_base<P>(reader, second);
    if (method.method == Vera<P, B, Act>::method) return Vera<P, B, Act>::make_shared(a.view(), b.view());
    return RandLora<P, B, Act>::make_shared(a.view(), b.view());
  }
  const auto is_true = [&](std::string_view option) {
    return std::any_of(config.options.begin(), config.options.end(),
                       [&](const auto& o) { return o.first == option && o.second == "true"; });
  };
  if (method.method == RandLora<P, B, Act>::method && !is_true("sparse") && !is_true("very_sparse"))
    raise_mismatch<UnsupportedError>(
        reader.file(), "tensors", "none named " + quote(base_key(first)),
        "the bases, which PEFT draws otherwise on other machines: save it in PEFT with save_projection=True");
  return nullptr;
}

/// The adapter made anew with what the file stores: throws ShapeError where that does not fit the layer.
template <class P, class B, class Act>
void check_shared(const AnyAdapter<P, B, Act>& adapter, const std::shared_ptr<const void>& shared) {
  const auto check = [&]<class A>(const A* typed) {
    if (typed != nullptr)
      (void)A(typed->shape(), typed->options(), std::static_pointer_cast<const typename A::Shared>(shared));
  };
  check(adapter.template get<Vera<P, B, Act>>());
  check(adapter.template get<RandLora<P, B, Act>>());
}
template <class P, class B, class Act>
void use_shared(AnyAdapter<P, B, Act>& adapter, const std::shared_ptr<const void>& shared) {
  const auto use = [&]<class A>(A* typed) {
    if (typed != nullptr) typed->use(std::static_pointer_cast<const typename A::Shared>(shared));
  };
  use(adapter.template get<Vera<P, B, Act>>());
  use(adapter.template get<RandLora<P, B, Act>>());
}

/// Adds what the adapter's layers share to the file, in PEFT's dimensions.
template <class P, class B, class Act>
void add_shared(SafetensorsWriter& writer, const AnyAdapter<P, B, Act>& adapter) {
  if (const auto* vera = adapter.template get<Vera<P, B, Act>>()) {
    const auto a = vera->shared()->a.view(), b = vera->shared()->b.view();
    add_values(writer, base_key("vera_A"), make_shape(a.rows, a.cols), a);
    add_values(writer, base_key("vera_B"), make_shape(b.rows, b.cols), b);
  }
  if (const auto* rand = adapter.template get<RandLora<P, B, Act>>()) {
    const auto& bases = *rand->shared();
    if (bases.b().empty())
      raise_mismatch<UnsupportedError>("save_peft", "option 'regenerate'", "true", "false: the file holds the bases");
    const index_t rank = bases.rank();
    add_values(writer, base_key("randlora_A"), make_shape(rank, 1, bases.a().cols()), bases.a().view());
    add_values(writer, base_key("randlora_B"), make_shape(bases.rows(), bases.cols() / rank, rank), bases.b().view());
  }
}

}  // namespace deltaw::io::detail
