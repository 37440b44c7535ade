// What an initializer takes from the weights: kept by the set, given back on removal and where `adapt` ends half-way.

#include "catch.hpp"
#include "deltaw/model/adapter_set.hpp"
#include "message.hpp"
#include "support/methods.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;

namespace {
using Set = dw::AdapterSet<float, dw::Cpu>;

// Takes `size` from every element of the weight; refuses the layer that comes `refuse_at`-th.
struct TakeAway {
  float size = 1;
  mutable int calls = 0;
  int refuse_at = -1;

  template <class A>
  dw::BaseChange<float, dw::Host> operator()(dw::Cpu::Context& ctx, A&, const Set::Dense& base) const {
    if (calls++ == refuse_at) dw::raise<dw::OptionError>("TakeAway", "this layer is refused");
    dw::BaseChange<float, dw::Host> change;
    dw::Cpu::fill(ctx, change.up.resize(base.weight.rows, 1), size);
    dw::Cpu::fill(ctx, change.down.resize(1, base.weight.cols), 1);
    dw::apply_change<dw::Cpu>(ctx, change, base.weight);
    return change;
  }
};

struct Model {
  dw::Cpu::Context ctx;
  std::vector<float> q = std::vector<float>(12, 5), v = std::vector<float>(12, 7);
  Set set;
  Model() {
    set.add_layer("q", dw::dense(q.data(), nullptr, {.in_features = 4, .out_features = 3}));
    set.add_layer("v", dw::dense(v.data(), nullptr, {.in_features = 3, .out_features = 4}));
  }
  static dw::AdaptRequest request(std::string name = "default") {
    return {.name = std::move(name), .options = {{"rank", "2"}}, .targets = {.names = {"q", "v"}}};
  }
  bool weights_are(float q_value, float v_value) const {
    return q == std::vector<float>(12, q_value) && v == std::vector<float>(12, v_value);
  }
};
}  // namespace

TEST_CASE("changes of the weights are kept with each adapter and undone by its removal") {
  Model m;
  m.set.adapt(m.ctx, m.request(), TakeAway{.size = 1});
  CHECK(m.weights_are(4, 6));
  m.set.adapt(m.ctx, m.request("second"), TakeAway{.size = 2});
  m.set.adapt(m.ctx, m.request("plain"));
  CHECK(m.weights_are(2, 4));
  CHECK(m.set.base_change("second", "v").up.view()(0, 0) == 2);
  CHECK(m.set.base_change("plain", "q").empty());
  CHECK(message_of<dw::NameError>([&] { m.set.base_change("plain", "k"); }) ==
        "AdapterSet.base_change: layer: got 'k', want one that has adapter 'plain'");
  m.set.remove(m.ctx, "default");
  CHECK(m.weights_are(3, 5));
  CHECK(m.set.base_change("second", "q").up.view()(0, 0) == 2);
  m.set.remove(m.ctx, "plain");
  CHECK(m.weights_are(3, 5));
  m.set.remove(m.ctx, "second");
  CHECK(m.weights_are(5, 7));
}

TEST_CASE("an adapt that ends half-way leaves the weights as they were") {
  Model m;
  CHECK(message_of<dw::OptionError>([&] { m.set.adapt(m.ctx, m.request(), TakeAway{.refuse_at = 1}); }) ==
        "TakeAway: this layer is refused");
  CHECK(m.weights_are(5, 7));
  CHECK_FALSE(m.set.has("default"));
}
