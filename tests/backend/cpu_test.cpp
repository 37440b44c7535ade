// What only the Cpu backend has: limits of its BLAS, tiles of mixed products in the caller's workspace.

#include <vector>

#include "../support/primitives.hpp"
#include "catch.hpp"
#include "guarded.hpp"
#include "message.hpp"

using namespace deltaw_tests;
using dw::bf16;
using dw::Cpu;

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
