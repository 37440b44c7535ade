#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "../golden/optimizers.hpp"
#include "catch.hpp"
#include "deltaw/optim/adamw.hpp"
#include "deltaw/optim/sgd.hpp"
#include "message.hpp"
#include "parameters.hpp"

using namespace deltaw_tests;
using dw::AdamW;
using dw::Optimizer;
using dw::OptimizerOptions;
using dw::Sgd;

namespace {

// The rules as their papers and PyTorch's page write them, an element at a time, in double.
struct NaiveAdamW {
  AdamW rule;
  std::vector<double> p, m = std::vector<double>(p.size()), v = m;
  int step = 0;

  void update(const std::vector<double>& gradient) {
    ++step;
    for (std::size_t i = 0; i < p.size(); ++i) {
      p[i] -= rule.learning_rate * rule.weight_decay * p[i];
      m[i] = rule.beta1 * m[i] + (1 - rule.beta1) * gradient[i];
      v[i] = rule.beta2 * v[i] + (1 - rule.beta2) * gradient[i] * gradient[i];
      const double m_hat = m[i] / (1 - std::pow(rule.beta1, step)), v_hat = v[i] / (1 - std::pow(rule.beta2, step));
      p[i] -= rule.learning_rate * m_hat / (std::sqrt(v_hat) + rule.epsilon);
    }
  }
};

struct NaiveSgd {
  Sgd rule;
  std::vector<double> p, buffer = {};

  void update(const std::vector<double>& gradient) {
    const bool first = buffer.empty();
    buffer.resize(p.size());
    for (std::size_t i = 0; i < p.size(); ++i) {
      double g = gradient[i];
      if (rule.decoupled) {
        p[i] -= rule.learning_rate * rule.weight_decay * p[i];
      } else {
        g += rule.weight_decay * p[i];
      }
      if (rule.momentum > 0) {
        buffer[i] = first ? g : rule.momentum * buffer[i] + (1 - rule.dampening) * g;
        g = rule.nesterov ? g + rule.momentum * buffer[i] : buffer[i];
      }
      p[i] -= rule.learning_rate * g;
    }
  }
};

double norm(const std::vector<std::vector<double>>& tensors) {
  double sum = 0;
  for (const auto& tensor : tensors)
    for (const double x : tensor) sum += x * x;
  return std::sqrt(sum);
}

// 50 steps of two tensors beside the naive rule, with loss scale and, where `clip` is not 0, clipping by the global norm.
// Returns the largest relative difference of values.
template <class Naive, class T, class Rule>
double worst_difference(Rule rule, double clip, double loss_scale) {
  Tested::Context ctx;
  Bag<T, Tested> bag;
  bag.add("a", 13, 41, 1);
  bag.add("b", 1, 7, 2);
  Optimizer<Rule, Tested> optimizer(rule, {.max_gradient_norm = clip});
  optimizer.set_loss_scale(loss_scale);
  std::vector<Naive> naive;
  for (const auto& p : bag.parameters) naive.push_back({rule, elements(p.value)});
  double worst = 0;
  for (std::uint32_t step = 0; step < 50; ++step) {
    bag.fill_gradients(100 + 2 * step);
    std::vector<std::vector<double>> gradients;
    for (const auto& p : bag.parameters) gradients.push_back(elements(p.grad));
    for (auto& tensor : gradients)
      for (double& x : tensor) x /= loss_scale;
    const double total = norm(gradients);
    const double factor = clip > 0 ? std::min(1.0, clip / (total + 1e-6)) : 1;
    auto report = optimizer.step(ctx, bag);
    if (report.pending) report = optimizer.settle(ctx, bag);
    if (!within(report.gradient_norm, total, 1e-12 * total) || report.skipped) return 1;
    for (std::size_t k = 0; k < naive.size(); ++k) {
      for (double& x : gradients[k]) x *= factor;
      naive[k].update(gradients[k]);
      worst = std::max(worst, distance(elements(bag.parameters[k].value), naive[k].p));
    }
  }
  return worst;
}

template <std::size_t N>
std::vector<double> from(const double (&values)[N]) {
  return {std::begin(values), std::end(values)};
}

// What the rule makes of PyTorch's start values and gradients.
template <class Rule>
std::vector<double> trained_like_torch(Rule rule) {
  Tested::Context ctx;
  Bag<double, Tested> bag;
  auto& p = bag.add("w", 2, 3, 1);
  from_host(std::vector<double>(golden::values, golden::values + 6), p.value.view());
  Optimizer<Rule, Tested> optimizer(rule);
  for (long step = 0; step < golden::steps; ++step) {
    from_host(std::vector<double>(golden::gradients + 6 * step, golden::gradients + 6 * step + 6), p.grad.view());
    optimizer.step(ctx, bag);
  }
  return elements(p.value);
}

}  // namespace

TEST_CASE("AdamW equals a step-by-step reference over 50 steps") {
  const AdamW plain, strong{.learning_rate = 0.05, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-4, .weight_decay = 0.3};
  const AdamW undecayed{.learning_rate = 0.01, .weight_decay = 0}, memoryless{.beta1 = 0, .beta2 = 0};
  for (const AdamW& rule : {plain, strong, undecayed, memoryless}) {
    CHECK(worst_difference<NaiveAdamW, double>(rule, 0, 1) < 1e-12);
    CHECK(worst_difference<NaiveAdamW, double>(rule, 0.7, 1) < 1e-12);
    CHECK(worst_difference<NaiveAdamW, double>(rule, 0.7, 1024) < 1e-12);
    CHECK(worst_difference<NaiveAdamW, double>(rule, 1e9, 3) < 1e-12);
    CHECK(worst_difference<NaiveAdamW, float>(rule, 0.7, 1024) < 2e-5);
  }
}

TEST_CASE("SGD equals a step-by-step reference over 50 steps") {
  const Sgd rules[] = {
      {.learning_rate = 0.1},
      {.learning_rate = 0.1, .momentum = 0.9},
      {.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.3},
      {.learning_rate = 0.1, .momentum = 0.9, .nesterov = true},
      {.learning_rate = 0.1, .weight_decay = 0.1},
      {.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.1},
      {.learning_rate = 0.1, .momentum = 0.9, .nesterov = true, .weight_decay = 0.1},
      {.learning_rate = 0.1, .weight_decay = 0.1, .decoupled = true},
      {.learning_rate = 0.1, .momentum = 0.9, .nesterov = true, .weight_decay = 0.1, .decoupled = true}};
  for (const Sgd& rule : rules) {
    CHECK(worst_difference<NaiveSgd, double>(rule, 0, 1) < 1e-12);
    CHECK(worst_difference<NaiveSgd, double>(rule, 0.7, 1024) < 1e-12);
    CHECK(worst_difference<NaiveSgd, float>(rule, 0.7, 1024) < 2e-5);
  }
}

TEST_CASE("AdamW equals PyTorch's") {
  CHECK(distance(trained_like_torch(AdamW{}), from(golden::adamw_plain)) < 1e-14);
  CHECK(distance(trained_like_torch(
                     AdamW{.learning_rate = 0.02, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.1}),
                 from(golden::adamw_decayed)) < 1e-14);
  CHECK(distance(trained_like_torch(AdamW{.learning_rate = 0.1, .weight_decay = 0}), from(golden::adamw_undecayed)) <
        1e-14);
}

TEST_CASE("SGD equals PyTorch's") {
  const auto difference = [](Sgd rule, const auto& want) { return distance(trained_like_torch(rule), from(want)); };
  CHECK(difference({.learning_rate = 0.1}, golden::sgd_plain) < 1e-14);
  CHECK(difference({.learning_rate = 0.1, .momentum = 0.9}, golden::sgd_momentum) < 1e-14);
  CHECK(difference({.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.25}, golden::sgd_dampened) < 1e-14);
  CHECK(difference({.learning_rate = 0.1, .momentum = 0.9, .nesterov = true}, golden::sgd_nesterov) < 1e-14);
  CHECK(difference({.learning_rate = 0.1, .momentum = 0.5, .weight_decay = 0.1}, golden::sgd_decayed) < 1e-14);
  CHECK(difference({.learning_rate = 0.1, .momentum = 0.5, .nesterov = true, .weight_decay = 0.1},
                   golden::sgd_decayed_nesterov) < 1e-14);
}

TEST_CASE("clipping by the global norm over several adapters equals PyTorch's") {
  const auto clipped = [](double max_norm, double& norm) {
    Tested::Context ctx;
    Bag<double, Tested> first, second;
    first.add("a", 1, 2, 1), first.add("b", 2, 1, 2), second.add("c", 1, 2, 3);
    const double* gradient = golden::gradients;
    std::vector<double> moved;
    for (auto* p : {&first.parameters[0], &first.parameters[1], &second.parameters[0]}) {
      from_host(std::vector<double>{0, 0}, p->value.view());
      from_host(std::vector<double>{gradient[0], gradient[1]}, p->grad.view());
      gradient += 2;
    }
    Optimizer<Sgd, Tested> optimizer({.learning_rate = 1}, {.max_gradient_norm = max_norm});
    auto report = optimizer.step(ctx, first, second);
    if (report.pending) report = optimizer.settle(ctx, first, second);
    norm = report.gradient_norm;
    for (auto* p : {&first.parameters[0], &first.parameters[1], &second.parameters[0]})
      for (const double x : elements(p->value)) moved.push_back(-x);  // with a rate of 1 that is the gradient
    return moved;
  };
  double norm = 0;
  CHECK(distance(clipped(0.5, norm), from(golden::clipped_tight)) < 1e-15);
  CHECK(norm == Approx(golden::norm_tight).epsilon(1e-14));
  CHECK(distance(clipped(100, norm), from(golden::clipped_loose)) < 1e-15);
  CHECK(norm == Approx(golden::norm_loose).epsilon(1e-14));
}

TEST_CASE("a parameter in the user's strided memory moves as one of its own, to the bit") {
  const auto check_bound = [](auto type, auto rule, bool bind_value, bool bind_gradient) {
    using T = decltype(type);
    Tested::Context ctx;
    Bag<T, Tested> own, bound;
    own.add("w", 9, 37, 5);
    auto& p = bound.add("w", 9, 37, 5);
    Guarded<T> value(9, 37, 6, 3), gradient(9, 37, 5, 2);
    Tested::copy(ctx, std::as_const(own.parameters[0].value).view(), value.view());
    if (bind_value) p.value.bind(value.view());
    if (bind_gradient) p.grad.bind(gradient.view());
    Optimizer<decltype(rule), Tested> optimizer(rule), of_bound(rule);
    for (std::uint32_t step = 0; step < 5; ++step) {
      own.fill_gradients(step);
      Tested::copy(ctx, std::as_const(own.parameters[0].grad).view(), p.grad.view());
      optimizer.step(ctx, own);
      of_bound.step(ctx, bound);
    }
    CHECK(value.intact());
    CHECK(gradient.intact());
    CHECK(elements(own.parameters[0].value) == elements(p.value));
  };
  const auto check = [&](auto type, auto rule) {
    check_bound(type, rule, true, true);
    check_bound(type, rule, true, false);
    check_bound(type, rule, false, true);
  };
  const Sgd sgd{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.1};
  check(1.0f, AdamW{});
  check(1.0, AdamW{});
  check(1.0f, sgd);
  check(1.0, sgd);
  check(1.0, Sgd{.learning_rate = 0.1});
}

TEST_CASE("rules refuse options outside their range, by name") {
  const auto adamw = [](AdamW rule) { return message_of<dw::OptionError>([&] { Optimizer<AdamW>{rule}; }); };
  const auto sgd = [](Sgd rule) { return message_of<dw::OptionError>([&] { Optimizer<Sgd>{rule}; }); };
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  CHECK(adamw({.learning_rate = -1e-9}) == "AdamW: learning_rate: got -1e-09, want finite and 0 or more");
  CHECK(adamw({.learning_rate = nan}) == "AdamW: learning_rate: got nan, want finite and 0 or more");
  CHECK(adamw({.learning_rate = inf}) == "AdamW: learning_rate: got inf, want finite and 0 or more");
  CHECK(adamw({.beta1 = 1}) == "AdamW: beta1: got 1, want at least 0 and below 1");
  CHECK(adamw({.beta2 = -0.5}) == "AdamW: beta2: got -0.5, want at least 0 and below 1");
  CHECK(adamw({.epsilon = -1}) == "AdamW: epsilon: got -1, want finite and 0 or more");
  CHECK(adamw({.weight_decay = nan}) == "AdamW: weight_decay: got nan, want finite and 0 or more");
  CHECK(sgd({.learning_rate = -1}) == "Sgd: learning_rate: got -1, want finite and 0 or more");
  CHECK(sgd({.momentum = -0.1}) == "Sgd: momentum: got -0.1, want finite and 0 or more");
  CHECK(sgd({.dampening = nan}) == "Sgd: dampening: got nan, want finite");
  CHECK(sgd({.weight_decay = -0.1}) == "Sgd: weight_decay: got -0.1, want finite and 0 or more");
  CHECK(sgd({.nesterov = true}) ==
        "Sgd: nesterov: got momentum 0 and dampening 0, want momentum above 0 and no dampening");
  CHECK(sgd({.momentum = 0.9, .dampening = 0.5, .nesterov = true}) ==
        "Sgd: nesterov: got momentum 0.9 and dampening 0.5, want momentum above 0 and no dampening");
}
