#include <cstdint>
#include <type_traits>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::f16;

namespace {

struct Product {
  index_t rows, inner, cols;
  bool transpose_a, transpose_b;
  double alpha, beta;
};

template <class A, class B, class C>
void run(Tested::Context& ctx, const Product& p, const Guarded<A>& a, const Guarded<B>& b, Guarded<C>& c) {
  if (p.transpose_a && p.transpose_b) {
    Tested::gemm(ctx, p.alpha, dw::t(a.view()), dw::t(b.view()), p.beta, c.view());
  } else if (p.transpose_a) {
    Tested::gemm(ctx, p.alpha, dw::t(a.view()), b.view(), p.beta, c.view());
  } else if (p.transpose_b) {
    Tested::gemm(ctx, p.alpha, a.view(), dw::t(b.view()), p.beta, c.view());
  } else {
    Tested::gemm(ctx, p.alpha, a.view(), b.view(), p.beta, c.view());
  }
}

// What a product sees of an element: cuBLAS takes one type of operand, so Cuda rounds a float one to 16 bits where the other
// and C have 16 bits.
template <class A, class B, class C>
double seen(double x) {
  constexpr int halves = (dw::is_half<A> ? 1 : 0) + (dw::is_half<B> ? 1 : 0) + (dw::is_half<C> ? 1 : 0);
  constexpr bool wide = std::is_same_v<A, double> || std::is_same_v<B, double> || std::is_same_v<C, double>;
  if constexpr (!std::is_same_v<Tested, dw::Cpu> && halves >= 2 && !wide) {
    using Half = std::conditional_t<dw::is_half<A>, A, std::conditional_t<dw::is_half<B>, B, C>>;
    return static_cast<double>(static_cast<float>(Half(x)));
  }
  return x;
}

// Whether C = alpha A B + beta C agrees with plain loops in double: to one rounding of C and the product's own rounding,
// which grows with the sum of absolute values.
template <class A, class B, class C>
bool agrees(Tested::Context& ctx, const Product& p, std::uint32_t seed) {
  const index_t gap_a = seed % 3, gap_b = (seed + 1) % 4, gap_c = (seed + 2) % 3;
  Guarded<A> a(p.transpose_a ? p.inner : p.rows, p.transpose_a ? p.rows : p.inner, gap_a, seed % 5);
  Guarded<B> b(p.transpose_b ? p.cols : p.inner, p.transpose_b ? p.inner : p.cols, gap_b, seed % 7);
  Guarded<C> c(p.rows, p.cols, gap_c, seed % 3);
  a.fill(seed), b.fill(seed + 1), c.fill(seed + 2);
  Guarded<C> before = c;
  if (p.beta == 0) c.fill_with(std::numeric_limits<double>::quiet_NaN());  // must not be read
  const std::string a_bits = a.bits(), b_bits = b.bits();
  run(ctx, p, a, b, c);

  using Sum = std::common_type_t<dw::compute_t<A>, dw::compute_t<B>, dw::compute_t<C>>;
  const double rounding = unit_in_last_place<Sum>() * static_cast<double>(p.inner + 4);
  for (index_t i = 0; i < p.rows; ++i)
    for (index_t j = 0; j < p.cols; ++j) {
      double sum = 0, size = 0;
      for (index_t k = 0; k < p.inner; ++k) {
        const double term = seen<A, B, C>(p.transpose_a ? a.at(k, i) : a.at(i, k)) *
                            seen<A, B, C>(p.transpose_b ? b.at(j, k) : b.at(k, j));
        sum += term;
        size += std::abs(term);
      }
      const double want = p.alpha * sum + p.beta * before.at(i, j);
      size = std::abs(p.alpha) * size + std::abs(p.beta * before.at(i, j));
      if (!within(c.at(i, j), want, rounding * size + one_rounding<C>(want))) return false;
    }
  return c.intact() && a.intact() && b.intact() && a.bits() == a_bits && b.bits() == b_bits;
}

constexpr double factors[][2] = {{1, 0}, {-0.5, 1}, {2, 0.25}, {0, 0}, {0, 1}, {0, 0.5}, {1, 1}};

// Every size on one axis, small ones on the others, all transposes; each product with another alpha, beta, stride.
template <class A, class B, class C>
void check_all_shapes() {
  Tested::Context ctx;
  std::uint32_t seed = 0;
  std::vector<Product> wrong;
  const auto check = [&](index_t rows, index_t inner, index_t cols) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      const auto& f = factors[++seed % std::size(factors)];
      const Product p{rows, inner, cols, (transposes & 1) != 0, (transposes & 2) != 0, f[0], f[1]};
      if (!agrees<A, B, C>(ctx, p, seed)) wrong.push_back(p);
    }
  };
  for (const index_t size : boundary_sizes)
    for (const index_t other : {1, 3, 17}) {
      for (const index_t third : {1, 8}) {
        check(size, other, third);
        check(third, size, other);
        check(other, third, size);
      }
    }
  check(257, 65, 257);
  check(64, 257, 65);
  check(0, 0, 0);
  check(5, 0, 7);
  for (const Product& p : wrong)
    FAIL_CHECK("rows " << p.rows << ", inner " << p.inner << ", cols " << p.cols << ", transposed " << p.transpose_a
                       << p.transpose_b << ", alpha " << p.alpha << ", beta " << p.beta);
  CHECK(wrong.empty());
}

// The same product with its operands at `offset`: the bits of C.
template <class A, class B, class C>
std::string bits_at(Tested::Context& ctx, const Product& p, index_t offset) {
  Guarded<A> a(p.transpose_a ? p.inner : p.rows, p.transpose_a ? p.rows : p.inner, 3, offset);
  Guarded<B> b(p.transpose_b ? p.cols : p.inner, p.transpose_b ? p.inner : p.cols, 1, offset * 7 % 16);
  Guarded<C> c(p.rows, p.cols, 2, offset * 5 % 16);
  a.fill(1), b.fill(2), c.fill(3);
  run(ctx, p, a, b, c);
  return c.bits();
}

template <class A, class B, class C>
int count_address_dependent() {
  Tested::Context ctx;
  int count = 0;
  const auto check = [&](index_t rows, index_t inner, index_t cols) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      const Product p{rows, inner, cols, (transposes & 1) != 0, (transposes & 2) != 0, 0.75, 1};
      const std::string expected = bits_at<A, B, C>(ctx, p, 0);
      bool same = true;
      for (index_t offset = 1; offset < 16; ++offset) same = same && bits_at<A, B, C>(ctx, p, offset) == expected;
      count += same ? 0 : 1;
    }
  };
  for (const index_t rows : {1, 2, 7, 33})
    for (const index_t inner : {1, 3, 17, 65})
      for (const index_t cols : {1, 2, 8, 35}) check(rows, inner, cols);
  check(130, 257, 65);
  check(1, 257, 130);
  check(257, 130, 1);
  return count;
}

}  // namespace

TEST_CASE("gemm agrees with plain loops: one type") {
  check_all_shapes<float, float, float>();
  check_all_shapes<double, double, double>();
  check_all_shapes<bf16, bf16, bf16>();
  check_all_shapes<f16, f16, f16>();
}

TEST_CASE("gemm agrees with plain loops: the mixtures of float parameters under 16-bit activations") {
  check_all_shapes<bf16, float, float>();  // Z = X A^T, H = dY B
  check_all_shapes<float, float, bf16>();  // Y += Z B^T, dX += H A, W += B A
  check_all_shapes<float, bf16, float>();  // dA += H^T X
  check_all_shapes<bf16, bf16, float>();   // dW += dY^T X into float
  check_all_shapes<f16, float, float>();
  check_all_shapes<float, float, f16>();
  check_all_shapes<float, f16, float>();  // a base of 16 bits under float activations
  check_all_shapes<f16, f16, float>();
}

TEST_CASE("gemm agrees with plain loops: mixtures with double") {
  check_all_shapes<float, float, double>();
  check_all_shapes<double, float, double>();
  check_all_shapes<bf16, double, double>();
  check_all_shapes<double, double, float>();
}

TEST_CASE("the bits of gemm do not depend on addresses") {
  if constexpr (!std::is_same_v<Tested, dw::Cpu>) return;  // cuBLAS chooses its kernels by alignment, too
  CHECK(count_address_dependent<float, float, float>() == 0);
  CHECK(count_address_dependent<double, double, double>() == 0);
  CHECK(count_address_dependent<bf16, float, float>() == 0);
  CHECK(count_address_dependent<float, float, bf16>() == 0);
}

TEST_CASE("two runs of gemm give the same bits") {
  Tested::Context ctx, other;
  const Product p{130, 257, 65, true, false, 0.75, 1};
  CHECK(bits_at<float, float, float>(ctx, p, 0) == bits_at<float, float, float>(other, p, 0));
}

TEST_CASE("infinite and NaN elements of A and B reach C") {
  Tested::Context ctx;
  Guarded<float> a(3, 20), b(20, 4), c(3, 4);
  a.fill(1), b.fill(2);
  a.set(1, 7, std::numeric_limits<float>::quiet_NaN());
  b.set(5, 2, std::numeric_limits<float>::infinity());
  Tested::gemm(ctx, 1, a.const_view(), b.const_view(), 0, c.view());
  CHECK(std::isnan(c.at(1, 0)));
  CHECK(std::isinf(c.at(0, 2)));
  CHECK(std::isfinite(c.at(2, 3)));
}

TEST_CASE("gemm refuses operands that do not fit together, by name") {
  Tested::Context ctx;
  Guarded<float> memory(1, 400);
  memory.fill_with(1);
  const std::string before = memory.bits();
  const auto at = [&](index_t offset, index_t rows, index_t cols, index_t stride) {
    return View<float>{memory.view().data + offset, rows, cols, stride};
  };
  const auto a = at(0, 4, 5, 5), b = at(100, 5, 6, 6), c = at(200, 4, 6, 6);
  const auto message = [&](auto left, auto right, View<float> out) {
    return message_of<dw::ShapeError>([&] { Tested::gemm(ctx, 1, left, right, 0, out); });
  };
  CHECK(message(a, at(100, 4, 6, 6), c) == "gemm: b.rows: got 4, want 5");
  CHECK(message(dw::t(a), b, c) == "gemm: b.rows: got 5, want 4");
  CHECK(message(a, dw::t(b), c) == "gemm: b.rows: got 6, want 5");
  CHECK(message(a, b, at(200, 3, 6, 6)) == "gemm: c.rows (rows): got 3, want 4");
  CHECK(message(a, b, at(200, 4, 7, 7)) == "gemm: c.cols (columns): got 7, want 6");
  CHECK(message(a, b, at(200, 4, 6, 5)) == "gemm: c.stride (elements): got 5, want at least 6");
  CHECK(message(at(0, 4, 5, 4), b, c) == "gemm: a.stride (elements): got 4, want at least 5");
  CHECK(message(a, dw::t(at(100, 6, 5, 0)), c) == "gemm: b.stride (elements): got 0, want at least 5");
  CHECK(message(a, b, View<float>{nullptr, 4, 6}) == "gemm: c.data (pointer): got null, want memory for 24");
  CHECK(message(View<float>{nullptr, 4, 5}, b, c) == "gemm: a.data (pointer): got null, want memory for 20");
  CHECK(memory.bits() == before);
}

TEST_CASE("gemm refuses an output that shares memory with an operand") {
  Tested::Context ctx;
  Guarded<float> memory(8, 24);
  memory.fill_with(1);
  const std::string before = memory.bits();
  const auto whole = memory.view(), left = whole.col_range(0, 8), right = whole.col_range(8, 8);
  CHECK(message_of<dw::AliasError>([&] { Tested::gemm(ctx, 1, left, right, 0, left); }) ==
        "gemm: a and c: got views that share memory, want separate ones");
  CHECK(message_of<dw::AliasError>([&] { Tested::gemm(ctx, 1, left, dw::t(right), 0, whole.col_range(15, 8)); }) ==
        "gemm: b and c: got views that share memory, want separate ones");
  CHECK(memory.bits() == before);
  Tested::gemm(ctx, 1, left, right, 0, memory.view().col_range(16, 8));  // another block of the same matrix
  CHECK(memory.at(0, 16) == 8);
  CHECK(memory.at(0, 15) == 1);
  Tested::gemm(ctx, 1, left, left, 0, memory.view().col_range(16, 8));  // operands may be the same
  CHECK(memory.at(0, 16) == 8);
}

TEST_CASE("a batch of products equals the products one by one, with shared operands and outputs side by side") {
  const auto differences = [](auto type, auto sum_type) {
    using T = decltype(type);
    using S = decltype(sum_type);
    Tested::Context ctx;
    int different = 0;
    for (const index_t count : {0, 1, 3})
      for (const bool share_b : {false, true}) {
        Guarded<T> a(5, 3 * 7, 2), b(7, 3 * 4);
        Guarded<S> c(5, 3 * 4, 1), want(5, 3 * 4, 1);  // A_k, B_k and C_k are blocks of columns
        a.fill(1), b.fill(2), c.fill(3), want.fill(3);
        const dw::BatchSteps steps{.count = count, .a = 7, .b = share_b ? 0 : 4, .c = 4};
        Tested::gemm_batched(ctx, steps, -2, a.const_view().col_range(0, 7), b.const_view().col_range(0, 4), 0.5,
                             c.view().col_range(0, 4));
        for (index_t k = 0; k < count; ++k)
          Tested::gemm(ctx, -2, a.const_view().col_range(7 * k, 7), b.const_view().col_range(share_b ? 0 : 4 * k, 4),
                       0.5, want.view().col_range(4 * k, 4));
        for (index_t i = 0; i < 5; ++i)
          for (index_t j = 0; j < 12; ++j)
            different += within(c.at(i, j), want.at(i, j), 32 * unit_in_last_place<S>()) ? 0 : 1;
        different += c.intact() ? 0 : 1;
      }
    return different;
  };
  CHECK(differences(1.0f, 1.0f) == 0);
  CHECK(differences(1.0, 1.0) == 0);
  CHECK(differences(bf16(1.0f), bf16(1.0f)) == 0);
  CHECK(differences(f16(1.0f), 1.0f) == 0);
}

TEST_CASE("a batch whose outputs overlap, or that counts backwards, is refused") {
  Tested::Context ctx;
  Guarded<float> a(4, 5), b(5, 6), c(4, 12);
  const std::string before = c.bits();
  const auto run = [&](const dw::BatchSteps& steps) {
    Tested::gemm_batched(ctx, steps, 1, a.const_view(), b.const_view(), 0, c.view().col_range(0, 6));
  };
  CHECK(message_of<dw::AliasError>([&] { run({.count = 2, .c = 5}); }) ==
        "gemm_batched: steps.c: got 5, want a step that keeps the outputs apart");
  CHECK(message_of<dw::AliasError>([&] { run({.count = 2}); }) ==
        "gemm_batched: steps.c: got 0, want a step that keeps the outputs apart");
  Guarded<float> blocks(4, 18);
  CHECK(message_of<dw::AliasError>([&] {  // the fourth output is the first one's rows, one further down
          Tested::gemm_batched(ctx, {.count = 4, .c = 6}, 1, a.const_view(), b.const_view(), 0,
                               blocks.view().col_range(0, 6));
        }) == "gemm_batched: steps.c: got 6, want a step that keeps the outputs apart");
  CHECK(message_of<dw::ShapeError>([&] { run({.count = -1}); }) == "gemm_batched: steps.count: got -1, want 0 or more");
  CHECK(message_of<dw::ShapeError>([&] { run({.count = 2, .a = -5, .c = 6}); }) ==
        "gemm_batched: steps.a: got -5, want 0 or more");
  CHECK(c.bits() == before);
}
