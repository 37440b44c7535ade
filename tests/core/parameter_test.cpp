#include <string>
#include <vector>

#include "catch.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/call.hpp"
#include "deltaw/core/options.hpp"
#include "deltaw/core/parameter.hpp"
#include "message.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;

namespace {

dw::Parameter<float> down() { return {"lora_A.weight", dw::Role::Down, dw::RankAxis::Rows, 2, 3}; }

struct TwoParameters {
  struct Backend {
    struct Context {};
  };
  dw::Parameter<float> first = down(), second{"bias", dw::Role::Bias, dw::RankAxis::None, 1, 5};
  template <class F>
  void for_each_parameter(F&& f) {
    f(first), f(second);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    f(first), f(second);
  }
};

}  // namespace

TEST_CASE("a new parameter is zero, trained, and has a gradient of its shape") {
  const auto p = down();
  CHECK(p.name == "lora_A.weight");
  CHECK(p.value.rows() == 2);
  CHECK(p.grad.cols() == 3);
  CHECK(p.value.view()(1, 2) == 0);
  CHECK(p.trained);
  CHECK(p.version == 0);
  CHECK(p.step == 0);
  CHECK(p.window.count == -1);
}

TEST_CASE("a slot is made at first use and found by its name from then on") {
  auto p = down();
  auto first = p.slot("exp_avg").view();
  REQUIRE(first.rows == 2);
  REQUIRE(first.cols == 3);
  CHECK(first(1, 2) == 0);
  first(1, 2) = 4;
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) p.slot(name);
  CHECK(p.slots.size() == 7);
  CHECK(p.slot("exp_avg").view().data == first.data);
  CHECK(first(1, 2) == 4);  // its memory has not moved although its slot has
  CHECK(p.slots[0].rank_axis == dw::RankAxis::Rows);
  CHECK(p.slots[0].name == "exp_avg");
}

TEST_CASE("a copied parameter shares nothing with the first") {
  auto p = down();
  p.slot("exp_avg");
  auto copy = p;
  copy.value.view()(0, 0) = 1;
  copy.grad.view()(0, 0) = 2;
  copy.slot("exp_avg").view()(0, 0) = 3;
  CHECK(p.value.view()(0, 0) == 0);
  CHECK(p.grad.view()(0, 0) == 0);
  CHECK(p.slot("exp_avg").view()(0, 0) == 0);
}

TEST_CASE("counts and versions over all parameters") {
  TwoParameters both;
  CHECK(dw::count_trained(both) == 11);
  both.first.trained = false;
  CHECK(dw::count_trained(both) == 5);
  const auto before = dw::version_of(both);
  both.second.changed();
  CHECK(dw::version_of(both) == before + 1);
}

TEST_CASE("the shape of a shard knows the whole") {
  const dw::LinearShape whole{.in_features = 8, .out_features = 4};
  CHECK(whole.in_total() == 8);
  CHECK(whole.out_total() == 4);
  const dw::LinearShape part{.in_features = 8, .out_features = 4, .shard = {.in_offset = 8, .in_total = 16}};
  CHECK(part.in_total() == 16);
  CHECK(part.out_total() == 4);
}

TEST_CASE("a layer without features is refused") {
  CHECK(message_of<dw::ShapeError>([] { dw::check_shape("Lora", {.in_features = 0, .out_features = 4}); }) ==
        "Lora: shape.in_features: got 0, want 1 or more");
  CHECK(message_of<dw::ShapeError>([] { dw::check_shape("Lora", {.in_features = 3, .out_features = -4}); }) ==
        "Lora: shape.out_features: got -4, want 1 or more");
}

TEST_CASE("options of low-rank methods outside their range are refused by name") {
  const dw::LinearShape shape{.in_features = 8, .out_features = 4};
  const auto check = [&](dw::index_t rank, double alpha, double dropout, bool any_rank = false) {
    return message_of<dw::OptionError>(
        [&] { dw::check_low_rank_options("Lora", shape, rank, alpha, dropout, any_rank); });
  };
  const std::string fine = "nothing was thrown";
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  CHECK(check(1, 8, 0) == fine);
  CHECK(check(4, -8, 0.999) == fine);
  CHECK(check(5, 8, 0, true) == fine);
  CHECK(check(0, 8, 0) == "Lora: rank: got 0, want 1 or more");
  CHECK(check(-7, 8, 0, true) == "Lora: rank: got -7, want 1 or more");
  CHECK(check(5, 8, 0) ==
        "Lora: rank: got 5, want at most min(in_features, out_features) = 4, or any_rank = true for a layer of 8 -> 4");
  CHECK(check(4, 0, 0) == "Lora: alpha: got 0, want finite and not 0");
  CHECK(check(4, nan, 0) == "Lora: alpha: got nan, want finite and not 0");
  CHECK(check(4, inf, 0) == "Lora: alpha: got inf, want finite and not 0");
  CHECK(check(4, 8, 1) == "Lora: dropout: got 1, want at least 0 and below 1");
  CHECK(check(4, 8, -0.25) == "Lora: dropout: got -0.25, want at least 0 and below 1");
  CHECK(check(4, 8, nan) == "Lora: dropout: got nan, want at least 0 and below 1");
}

TEST_CASE("an error knows its kind, and every kind is caught as Error") {
  try {
    dw::raise<dw::StaleError>("Dora.forward", "prepare: got none");
  } catch (const dw::Error& error) {
    CHECK(error.kind() == dw::ErrorKind::Stale);
    CHECK(std::string(error.what()) == "Dora.forward: prepare: got none");
  }
  CHECK_THROWS_AS(dw::raise<dw::FileError>("open", "no such file"), dw::Error);
  CHECK_THROWS_AS(dw::raise_mismatch<dw::NameError>("layer", "name", "'x'", "'y'"), std::runtime_error);
  CHECK(message_of<dw::NameError>([] { dw::raise_mismatch<dw::NameError>("layer", "name", "'x'", "'y'"); }) ==
        "layer: name: got 'x', want 'y'");
  CHECK(message_of<dw::OptionError>([] { dw::raise_mismatch<dw::OptionError>("AdamW", "learning_rate", 1e-9, "0"); }) ==
        "AdamW: learning_rate: got 1e-09, want 0");
}
