#include <string>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "deltaw/model/registry.hpp"
#include "message.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;
using dw::Cpu;
using dw::OptionText;

namespace {

using Lora = dw::Lora<float, Cpu>;
constexpr dw::LinearShape wide{.in_features = 20, .out_features = 16};

auto make(const char* method, std::vector<OptionText> options, const dw::LayerOptions& layer = {}) {
  return dw::make_adapter<float, Cpu>(method, wide, options, layer);
}

std::string option_error(std::vector<OptionText> options, const char* method = "lora") {
  return message_of<dw::OptionError>([&] { make(method, options); });
}

}  // namespace

TEST_CASE("registry: a method by name, its options as text") {
  const auto any = make("lora",
                        {{"rank", "4"},
                         {"alpha", "2.5e1"},
                         {"rslora", "true"},
                         {"bias", "true"},
                         {"dropout", "0.125"},
                         {"seed", "18446744073709551615"},
                         {"layer", "3"},
                         {"any_rank", "false"}},
                        {.layer = 3});
  const auto* lora = any.get<Lora>();
  REQUIRE(lora != nullptr);
  const auto& o = lora->options();
  CHECK(o.rank == 4);
  CHECK(o.alpha == 25);
  CHECK(o.rslora);
  CHECK(o.bias);
  CHECK(o.dropout == 0.125);
  CHECK(o.seed == 18446744073709551615u);
  CHECK(o.layer == 3);
  CHECK_FALSE(o.any_rank);
  CHECK(lora->scale() == 12.5);
}

TEST_CASE("registry: options left out keep their defaults, the layer's own rank and alpha go before both") {
  const auto plain = make("lora", {});
  CHECK(plain.get<Lora>()->options().rank == 8);
  const auto own = make("lora", {{"rank", "2"}, {"alpha", "3"}}, {.rank = 5, .alpha = 7, .layer = 11});
  CHECK(own.get<Lora>()->options().rank == 5);
  CHECK(own.get<Lora>()->options().alpha == 7);
  CHECK(own.get<Lora>()->options().layer == 11);
}

TEST_CASE("registry: full fine-tuning has a bias to choose, and no rank") {
  const auto full = make("full", {{"bias", "false"}}, {.rank = 3, .alpha = 4, .layer = 5});
  using Full = dw::FullDelta<float, Cpu>;
  REQUIRE(full.get<Full>() != nullptr);
  CHECK_FALSE(full.get<Full>()->options().bias);
  CHECK(option_error({{"rank", "3"}}, "full") == "full: option: got 'rank', want one of bias");
  const auto defaults = dw::find_method<float, Cpu>("full").defaults({});
  CHECK_FALSE(defaults.rank.has_value());
  CHECK_FALSE(defaults.alpha.has_value());
}

TEST_CASE("registry: the defaults of a request are those of its options") {
  const std::vector<OptionText> options = {{"alpha", "32"}};
  const auto defaults = dw::find_method<float, Cpu>("lora").defaults(options);
  CHECK(defaults.rank == Lora::Options{}.rank);
  CHECK(defaults.alpha == 32);
}

TEST_CASE("registry: what is not a value of the option is refused by name") {
  const std::string known =
      "lora: option: got 'rnk', want one of rank, alpha, rslora, bias, dropout, seed, layer, any_rank";
  CHECK(option_error({{"rank", "4"}, {"rnk", "8"}}) == known);
  CHECK(option_error({{"rank", "4"}, {"alpha", "1"}, {"rank", "4"}}) ==
        "lora: option 'rank': got it twice, want it once");
  const std::string rank = "lora: option 'rank': got '";
  for (const char* text : {"", "four", "4.5", " 4", "4 ", "+4", "0x4", "9223372036854775808", "1e1"})
    CHECK(option_error({{"rank", text}}) == rank + text + "', want an integer in range");
  CHECK(option_error({{"seed", "-1"}}) == "lora: option 'seed': got '-1', want an integer in range");
  for (const char* text : {"", "x", "1,5", "1.5x", "1e999"})
    CHECK(option_error({{"alpha", text}}) == std::string("lora: option 'alpha': got '") + text + "', want a number");
  for (const char* text : {"", "yes", "True", "1", "true "})
    CHECK(option_error({{"bias", text}}) == std::string("lora: option 'bias': got '") + text + "', want true or false");
}

TEST_CASE("registry: a value that the method refuses is refused with the method's own words") {
  CHECK(option_error({{"rank", "0"}}) == "Lora: rank: got 0, want 1 or more");
  CHECK(option_error({{"alpha", "nan"}}) == "Lora: alpha: got nan, want finite and not 0");
  CHECK(option_error({{"rank", "17"}}) ==
        "Lora: rank: got 17, want at most min(in_features, out_features) = 16, or any_rank = true for a layer of 20 -> "
        "16");
  CHECK(make("lora", {{"rank", "17"}, {"any_rank", "true"}}).get<Lora>()->options().rank == 17);
}

TEST_CASE("registry: an unknown method is refused with those that there are") {
  std::string known;
  for (const auto& entry : dw::methods<float, Cpu>()) known += (known.empty() ? "" : ", ") + std::string(entry.name);
  CHECK(message_of<dw::NameError>([] { make("lorra", {}); }) ==
        "find_method: method: got 'lorra', want one of " + known);
  CHECK(message_of<dw::NameError>([] { make("", {}); }) == "find_method: method: got '', want one of " + known);
}

TEST_CASE("registry: every method is found by its name, once, with a summary") {
  const auto all = dw::methods<double, Cpu>();
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(dw::find_method<double, Cpu>(all[i].name).summary == all[i].summary);
    CHECK_FALSE(all[i].summary.empty());
    CHECK(all[i].make({600, 500}, {}, {}, nullptr).method_name() == all[i].name);
    for (std::size_t j = 0; j < i; ++j) CHECK(all[i].name != all[j].name);
  }
}
