// Initializers that decompose the base's weight, on the tested backend and in every type of weight.

#include "catch.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/init/kasa.hpp"
#include "deltaw/init/spectral.hpp"
#include "tested.hpp"

using namespace deltaw_tests;

namespace {
template <class T>
constexpr double weight_tolerance() {
  return 8 * std::max(unit_in_last_place<T>(), 1e-7);
}
template <class T, class Space>
Dense dense_of(dw::MatrixView<T, Space> v) {
  Dense a(v.rows, v.cols);
  const auto values = to_host(v);
  for (std::size_t i = 0; i < values.size(); ++i) a.values[i] = static_cast<double>(values[i]);
  return a;
}
template <class P, class A>
Dense value(A& adapter, dw::Role role) {
  return dense_of(dw::init::parameter_of(adapter, role, "test", "role").value.view());
}
template <class T>
Placed<T> weight() {
  const Dense u = random_basis(9, 6, 1), v = random_basis(7, 6, 2);
  return Placed<T>(times(times(u, diagonal({5, 4, 3, 2, 1, 0.5})), turned(v)), 3, 1);
}

template <class P, class Act>
void spectral_starts() {
  Machine machine;
  auto w = weight<Act>();
  const Dense before = w.get();
  const dw::DenseLinear<Act, Act, Tested> base(w.view(), {});
  dw::LoraXs<P, Tested, Act> xs({7, 9}, {.rank = 3, .alpha = 3});
  dw::init::Spectral{.seed = 1}(machine.context, xs, base);
  const Dense a = value<P>(xs, dw::Role::Down), b = value<P>(xs, dw::Role::Up);
  CHECK(distance(times(turned(b), b), identity(3)) < 1e-5);
  CHECK(distance(times(b, a), before) == Approx(std::sqrt(4 + 1 + 0.25)).epsilon(1e-2));
  CHECK(w.get().values == before.values);

  dw::Lamda<P, Tested, Act> lamda({7, 9}, {.rank = 3, .alpha = 5});
  const auto change = dw::init::SpectralResidual{}(machine.context, lamda, base);
  dw::Tensor<P, Tested::Space> delta(9, 7);
  lamda.delta_weight(machine.context, base, delta.view());
  Dense sum = w.get();
  for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += dense_of(delta.view()).values[i];
  CHECK(distance(sum, before) < weight_tolerance<Act>() * norm(before));
  CHECK(norm(w.get()) == Approx(std::sqrt(4 + 1 + 0.25)).epsilon(1e-2));
  dw::undo_change<Tested>(machine.context, change, w.view());
  CHECK(distance(w.get(), before) < weight_tolerance<Act>() * norm(before));
  CHECK(w.intact());
}

template <class P, class Act>
void kasa_truncates() {
  Machine machine;
  auto w = weight<Act>();
  const Dense before = w.get();
  const dw::DenseLinear<Act, Act, Tested> base(w.view(), {});
  dw::Kasa<P, Tested, Act> kasa({7, 9}, {.rank = 4});
  const auto change = dw::init::Kasa{.seed = 1}(machine.context, kasa, base);  // 3 of 7 triplets are kept
  CHECK(distance(w.get(), before) == Approx(std::sqrt(4 + 1 + 0.25)).epsilon(1e-2));
  const auto left = dw::init::spectrum<P, Tested>(machine.context, w.view());
  for (std::size_t i = 0; i < 7; ++i)
    CHECK(left[i] == Approx(i < 3 ? 5.0 - static_cast<double>(i) : 0).margin(20 * weight_tolerance<Act>()));
  CHECK(norm(value<P>(kasa, dw::Role::Up)) == 0);
  CHECK(norm(value<P>(kasa, dw::Role::Gate)) > 0);
  dw::undo_change<Tested>(machine.context, change, w.view());
  CHECK(distance(w.get(), before) < weight_tolerance<Act>() * norm(before));
}
}  // namespace

TEST_CASE("spectral starts of LoRA-XS and LaMDA") {
  spectral_starts<double, double>();
  spectral_starts<float, float>();
  spectral_starts<float, dw::bf16>();
}

TEST_CASE("KaSA's start") {
  kasa_truncates<double, double>();
  kasa_truncates<float, float>();
  kasa_truncates<float, dw::bf16>();
}
