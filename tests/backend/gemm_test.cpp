#include <cstdint>
#include <type_traits>
#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::Cpu;
using dw::f16;

namespace {

struct Product {
  index_t rows, inner, cols;
  bool transpose_a, transpose_b;
  double alpha, beta;
};

template <class A, class B, class C>
void run(Cpu::Context& ctx, const Product& p, const Guarded<A>& a, const Guarded<B>& b, Guarded<C>& c) {
  if (p.transpose_a && p.transpose_b) {
    Cpu::gemm(ctx, p.alpha, dw::t(a.view()), dw::t(b.view()), p.beta, c.view());
  } else if (p.transpose_a) {
    Cpu::gemm(ctx, p.alpha, dw::t(a.view()), b.view(), p.beta, c.view());
  } else if (p.transpose_b) {
    Cpu::gemm(ctx, p.alpha, a.view(), dw::t(b.view()), p.beta, c.view());
  } else {
    Cpu::gemm(ctx, p.alpha, a.view(), b.view(), p.beta, c.view());
  }
}

// Whether C = alpha A B + beta C agrees with plain loops in double: to one rounding of C and the product's own rounding,
// which grows with the sum of absolute values.
template <class A, class B, class C>
bool agrees(Cpu::Context& ctx, const Product& p, std::uint32_t seed) {
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
        const double term = (p.transpose_a ? a.at(k, i) : a.at(i, k)) * (p.transpose_b ? b.at(j, k) : b.at(k, j));
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
  Cpu::Context ctx;
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
std::string bits_at(Cpu::Context& ctx, const Product& p, index_t offset) {
  Guarded<A> a(p.transpose_a ? p.inner : p.rows, p.transpose_a ? p.rows : p.inner, 3, offset);
  Guarded<B> b(p.transpose_b ? p.cols : p.inner, p.transpose_b ? p.inner : p.cols, 1, offset * 7 % 16);
  Guarded<C> c(p.rows, p.cols, 2, offset * 5 % 16);
  a.fill(1), b.fill(2), c.fill(3);
  run(ctx, p, a, b, c);
  return c.bits();
}

template <class A, class B, class C>
int count_address_dependent() {
  Cpu::Context ctx;
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
  CHECK(count_address_dependent<float, float, float>() == 0);
  CHECK(count_address_dependent<double, double, double>() == 0);
  CHECK(count_address_dependent<bf16, float, float>() == 0);
  CHECK(count_address_dependent<float, float, bf16>() == 0);
}

TEST_CASE("two runs of gemm give the same bits") {
  Cpu::Context ctx, other;
  const Product p{130, 257, 65, true, false, 0.75, 1};
  CHECK(bits_at<float, float, float>(ctx, p, 0) == bits_at<float, float, float>(other, p, 0));
}

TEST_CASE("infinite and NaN elements of A and B reach C") {
  Cpu::Context ctx;
  Guarded<float> a(3, 20), b(20, 4), c(3, 4);
  a.fill(1), b.fill(2);
  a.view()(1, 7) = std::numeric_limits<float>::quiet_NaN();
  b.view()(5, 2) = std::numeric_limits<float>::infinity();
  Cpu::gemm(ctx, 1, a.const_view(), b.const_view(), 0, c.view());
  CHECK(std::isnan(c.at(1, 0)));
  CHECK(std::isinf(c.at(0, 2)));
  CHECK(std::isfinite(c.at(2, 3)));
}

TEST_CASE("gemm refuses operands that do not fit together, by name") {
  Cpu::Context ctx;
  std::vector<float> memory(400, 1);
  const auto at = [&](index_t offset, index_t rows, index_t cols, index_t stride) {
    return dw::MatrixView<float>{memory.data() + offset, rows, cols, stride};
  };
  const auto a = at(0, 4, 5, 5), b = at(100, 5, 6, 6), c = at(200, 4, 6, 6);
  const auto message = [&](auto left, auto right, dw::MatrixView<float> out) {
    return message_of<dw::ShapeError>([&] { Cpu::gemm(ctx, 1, left, right, 0, out); });
  };
  CHECK(message(a, at(100, 4, 6, 6), c) == "gemm: b.rows: got 4, want 5");
  CHECK(message(dw::t(a), b, c) == "gemm: b.rows: got 5, want 4");
  CHECK(message(a, dw::t(b), c) == "gemm: b.rows: got 6, want 5");
  CHECK(message(a, b, at(200, 3, 6, 6)) == "gemm: c.rows (rows): got 3, want 4");
  CHECK(message(a, b, at(200, 4, 7, 7)) == "gemm: c.cols (columns): got 7, want 6");
  CHECK(message(a, b, at(200, 4, 6, 5)) == "gemm: c.stride (elements): got 5, want at least 6");
  CHECK(message(at(0, 4, 5, 4), b, c) == "gemm: a.stride (elements): got 4, want at least 5");
  CHECK(message(a, dw::t(at(100, 6, 5, 0)), c) == "gemm: b.stride (elements): got 0, want at least 5");
  CHECK(message(a, b, dw::MatrixView<float>{nullptr, 4, 6}) == "gemm: c.data (pointer): got null, want memory for 24");
  CHECK(message(dw::MatrixView<float>{nullptr, 4, 5}, b, c) == "gemm: a.data (pointer): got null, want memory for 20");
  CHECK(memory == std::vector<float>(400, 1));
}

TEST_CASE("a size beyond the integers of a BLAS is refused, not cut") {
  Cpu::Context ctx;
  std::vector<float> a(8, 1), c(4);
  const index_t huge = index_t{1} << 33;  // legal for a single row, which it does not concern
  const dw::MatrixView<float> left{a.data(), 1, 2, huge}, right{a.data() + 2, 2, 2};
  const auto product = [&] { Cpu::gemm(ctx, 1, left, right, 0, dw::MatrixView<float>{c.data(), 1, 2}); };
#if DELTAW_CBLAS
  CHECK(message_of<dw::ShapeError>(product) == "gemm: size for BLAS: got 8589934592, want at most 2147483647");
  CHECK(c[0] == 0);
#else
  product();
  CHECK(c[0] == 2);
#endif
}

TEST_CASE("gemm refuses an output that shares memory with an operand") {
  Cpu::Context ctx;
  std::vector<float> memory(400, 1);
  const dw::MatrixView<float> whole{memory.data(), 8, 24}, left = whole.col_range(0, 8), right = whole.col_range(8, 8);
  CHECK(message_of<dw::AliasError>([&] { Cpu::gemm(ctx, 1, left, right, 0, left); }) ==
        "gemm: a and c: got views that share memory, want separate ones");
  CHECK(message_of<dw::AliasError>([&] { Cpu::gemm(ctx, 1, left, dw::t(right), 0, whole.col_range(15, 8)); }) ==
        "gemm: b and c: got views that share memory, want separate ones");
  CHECK(memory == std::vector<float>(400, 1));
  Cpu::gemm(ctx, 1, left, right, 0, whole.col_range(16, 8));  // another block of the same matrix
  CHECK(memory[16] == 8);
  CHECK(memory[15] == 1);
  Cpu::gemm(ctx, 1, left, left, 0, whole.col_range(16, 8));  // operands may be the same
  CHECK(memory[16] == 8);
}

TEST_CASE("gemm works in the caller's workspace, and names the bytes where it is too small") {
  alignas(64) static std::byte workspace[4096];
  Guarded<bf16> a(8, 16), b(16, 8), c(8, 8);
  a.fill_with(1), b.fill_with(1);
  Cpu::Context enough(workspace, sizeof workspace);
  Cpu::gemm(enough, 1, a.const_view(), b.const_view(), 0, c.view());
  CHECK(c.at(7, 7) == 16);
  Cpu::Context little(workspace, 512);
  CHECK(message_of<dw::MemoryError>([&] { Cpu::gemm(little, 1, a.const_view(), b.const_view(), 0, c.view()); }) ==
        "Arena.take: workspace: got 512 bytes, want at least 768");
}

TEST_CASE("mixed products take tiles of at most 256 rows or columns of workspace") {
  Cpu::Context ctx;
  Guarded<bf16> x(1000, 64), w(300, 64), y(1000, 300);
  Cpu::gemm(ctx, 1, x.const_view(), dw::t(w.const_view()), 0, y.view());
  CHECK(ctx.arena.high_water() == sizeof(float) * (256 * 64 + 256 * 64 + 256 * 256));
}
