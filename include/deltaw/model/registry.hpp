#pragma once
// Methods by name (`--method lora`), with their options as text. Include it in the one file that makes adapters by name.

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "deltaw/adapters/adalora.hpp"
#include "deltaw/adapters/block_lora.hpp"
#include "deltaw/adapters/codyra.hpp"
#include "deltaw/adapters/dora.hpp"
#include "deltaw/adapters/dylora.hpp"
#include "deltaw/adapters/full_delta.hpp"
#include "deltaw/adapters/increlora.hpp"
#include "deltaw/adapters/kasa.hpp"
#include "deltaw/adapters/lamda.hpp"
#include "deltaw/adapters/lora.hpp"
#include "deltaw/adapters/lora_sb.hpp"
#include "deltaw/adapters/lora_xs.hpp"
#include "deltaw/adapters/nola.hpp"
#include "deltaw/adapters/randlora.hpp"
#include "deltaw/adapters/sora.hpp"
#include "deltaw/adapters/vera.hpp"
#include "deltaw/model/any_adapter.hpp"

namespace deltaw {

/// One option as it stands on a command line or in a file: {"rank", "8"}.
using OptionText = std::pair<std::string, std::string>;

/// What a model decides for each layer, over the options given for all.
struct LayerOptions {
  std::optional<index_t> rank = {};
  std::optional<double> alpha = {};
  std::uint64_t layer = 0;  ///< tells the layer's random numbers from the others'
};

namespace registry_detail {

template <class T>
void read_option(std::string_view where, std::string_view name, std::string_view text, T& value) {
  const auto refuse = [&](std::string_view want) {
    raise_mismatch<OptionError>(where, std::string("option '").append(name).append("'"),
                                std::string("'").append(text).append("'"), want);
  };
  if constexpr (std::same_as<T, bool>) {
    if (text != "true" && text != "false") refuse("true or false");
    value = text == "true";
  } else {
    T parsed{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    if (error != std::errc{} || end != text.data() + text.size())
      refuse(std::floating_point<T> ? "a number" : "an integer in range");
    value = parsed;
  }
}

/// Reads `texts` into an Options aggregate; an unknown or repeated name is refused with the names there are.
template <class Options>
Options read_options(std::string_view method, std::span<const OptionText> texts) {
  Options options;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    bool found = false;
    std::string known;
    options.for_each([&](std::string_view name, auto& value) {
      known.append(known.empty() ? "" : ", ").append(name);
      if (name != texts[i].first) return;
      read_option(method, name, texts[i].second, value);
      found = true;
    });
    if (!found)
      raise_mismatch<OptionError>(method, "option", "'" + texts[i].first + "'",
                                  known.empty() ? "none: this method has no options" : "one of " + known);
    for (std::size_t j = 0; j < i; ++j)
      if (texts[j].first == texts[i].first)
        raise_mismatch<OptionError>(method, "option '" + texts[i].first + "'", "it twice", "it once");
  }
  return options;
}

}  // namespace registry_detail

/// A method that can be made by name.
template <class P, class B, class Act = P>
struct MethodEntry {
  using Shared = std::shared_ptr<const void>;
  std::string_view name;
  std::string_view summary;
  /// `shared` is what `share` made for all layers, or null.
  AnyAdapter<P, B, Act> (*make)(LinearShape, std::span<const OptionText>, const LayerOptions&, const Shared& shared);
  /// What layers of these shapes have in common (frozen random bases); null for most methods.
  Shared (*share)(typename B::Context&, std::span<const LinearShape>, std::span<const OptionText>);
  LayerOptions (*defaults)(
      std::span<const OptionText>);  ///< rank and alpha that the options give; empty if it has none
};

template <class A>
constexpr auto method_entry(std::string_view summary) {
  using P = typename A::Scalar;
  using B = typename A::Backend;
  using Act = typename A::Activation;
  using Options = typename A::Options;
  using Shared = std::shared_ptr<const void>;
  constexpr auto make = [](LinearShape shape, std::span<const OptionText> texts, const LayerOptions& layer,
                           [[maybe_unused]] const Shared& shared) {
    auto options = registry_detail::read_options<Options>(A::method, texts);
    if constexpr (requires { options.rank; }) options.rank = layer.rank.value_or(options.rank);
    if constexpr (requires { options.alpha; }) options.alpha = layer.alpha.value_or(options.alpha);
    if constexpr (requires { options.layer; }) options.layer = layer.layer;
    if constexpr (requires { typename A::Shared; }) {
      return AnyAdapter<P, B, Act>(A(shape, options, std::static_pointer_cast<const typename A::Shared>(shared)));
    } else {
      return AnyAdapter<P, B, Act>(A(shape, options));
    }
  };
  constexpr auto share = []([[maybe_unused]] typename B::Context& ctx,
                            [[maybe_unused]] std::span<const LinearShape> shapes,
                            std::span<const OptionText> texts) -> Shared {
    [[maybe_unused]] const auto options = registry_detail::read_options<Options>(A::method, texts);
    if constexpr (requires { typename A::Shared; }) return A::make_shared(ctx, shapes, options);
    return nullptr;
  };
  constexpr auto defaults = [](std::span<const OptionText> texts) {
    LayerOptions layer;
    [[maybe_unused]] const auto options = registry_detail::read_options<Options>(A::method, texts);
    if constexpr (requires { options.rank; }) layer.rank = options.rank;
    if constexpr (requires { options.alpha; }) layer.alpha = options.alpha;
    return layer;
  };
  return MethodEntry<P, B, Act>{A::method, summary, make, share, defaults};
}

/// Every method, a line each.
template <class P, class B, class Act = P>
constexpr auto methods() {
  return std::array{
      method_entry<Lora<P, B, Act>>("LoRA: dW = s B A (Hu et al., 2021)"),
      method_entry<BlockLora<P, B, Act>>("Block-LoRA: blocks of B share one A (2025)"),
      method_entry<Dora<P, B, Act>>("DoRA: row lengths trained apart from LoRA's direction (Liu et al., 2024)"),
      method_entry<Vera<P, B, Act>>("VeRA: two trained vectors around one shared random pair (Kopiczko et al., 2023)"),
      method_entry<RandLora<P, B, Act>>("RandLoRA: a full-rank update of scaled random bases (Albert et al., 2025)"),
      method_entry<Sora<P, B, Act>>("SoRA: a gate a rank, closed by a proximal step (Ding et al., 2023)"),
      method_entry<AdaLora<P, B, Act>>("AdaLoRA: ranks go by importance until a budget is left (Zhang et al., 2023)"),
      method_entry<IncreLora<P, B, Act>>("IncreLoRA: ranks grow where they are needed (Zhang et al., 2023)"),
      method_entry<LoraXs<P, B, Act>>("LoRA-XS: dW = s B R A, only R is trained (Balazy et al., 2024)"),
      method_entry<LoraSb<P, B, Act>>(
          "LoRA-SB: LoRA-XS with the step nearest to full fine-tuning's (Ponkshe et al., 2024)"),
      method_entry<DyLora<P, B, Act>>("DyLoRA: LoRA trained for every rank at once (Valipour et al., 2022)"),
      method_entry<Kasa<P, B, Act>>(
          "KaSA: learned singular values on a base without its smallest ones (Wang et al., 2024)"),
      method_entry<Lamda<P, B, Act>>(
          "LaMDA: dW = s B M A, A frozen, B freezing as training goes on (Azizi et al., 2024)"),
      method_entry<CoDyRA<P, B, Act>>("CoDyRA: task after task, with gates closed in each (Lu et al., 2024)"),
      method_entry<Nola<P, B, Act>>("NOLA: LoRA's factors as sums of random matrices (Koohpayegani et al., 2024)"),
      method_entry<FullDelta<P, B, Act>>("full fine-tuning: the weight itself is trained"),
  };
}

/// The entry of that name; throws NameError with the names there are. It holds all methods, which takes a compiler long:
/// where several files call it, declare it `extern template` and instantiate it in one, as examples/common/methods.hpp does.
template <class P, class B, class Act = P>
MethodEntry<P, B, Act> find_method(std::string_view name) {
  std::string known;
  for (const auto& entry : methods<P, B, Act>()) {
    if (entry.name == name) return entry;
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  raise_mismatch<NameError>("find_method", "method", std::string("'").append(name).append("'"), "one of " + known);
}

/// An adapter by name; one with shared bases gets its own at `attach`. Throws NameError for an unknown method and OptionError for an unknown or bad option.
template <class P, class B, class Act = P>
AnyAdapter<P, B, Act> make_adapter(std::string_view method, LinearShape shape, std::span<const OptionText> options,
                                   const LayerOptions& layer = {}) {
  return find_method<P, B, Act>(method).make(shape, options, layer, nullptr);
}

}  // namespace deltaw
