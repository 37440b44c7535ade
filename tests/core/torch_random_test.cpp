#include <cmath>
#include <random>

#include "catch.hpp"
#include "deltaw/core/torch_random.hpp"

namespace dw = deltaw;

TEST_CASE("TorchRandom: the bits are std::mt19937's") {
  for (std::uint32_t seed : {0u, 1u, 5489u, 0xffffffffu}) {
    std::mt19937 standard(seed);
    dw::TorchRandom ours(seed);
    int wrong = 0;
    for (int i = 0; i < 2000; ++i) wrong += ours.bits() == standard() ? 0 : 1;  // three rounds of the state
    CHECK(wrong == 0);
  }
}

// torch 2.15: torch.rand(..., generator=torch.Generator().manual_seed(seed)).
TEST_CASE("TorchRandom: torch.rand's numbers, and only the low 32 bits of a seed count") {
  dw::TorchRandom zero(0);
  CHECK(zero.uniform01() == 0.49625658988952637f);
  dw::TorchRandom seven((std::uint64_t{1} << 32) + 7);
  for (float want : {0x1.11e15ep-1f, 0x1.972620p-3f, 0x1.518432p-1f, 0x1.5053ecp-1f, 0x1.dcb218p-3f})
    CHECK(seven.uniform01() == want);
}

TEST_CASE("TorchRandom: uniform stays within its bound and is rounded once") {
  dw::TorchRandom random(3), again(3);
  const float bound = 0.3f;
  double sum = 0;
  int wrong = 0;
  for (int i = 0; i < 10000; ++i) {
    const float x = random.uniform(bound);
    const double exact = static_cast<double>(again.uniform01()) * 2 * static_cast<double>(bound) - 0.3f;
    wrong += x == static_cast<float>(exact) && std::abs(x) <= bound ? 0 : 1;
    sum += static_cast<double>(x);
  }
  CHECK(wrong == 0);
  CHECK(std::abs(sum / 10000) < 0.3 * 0.03);
}
