#pragma once
// Sums over random matrices that are never stored (RandomBases), on the CPU: Philox in vectors, an element a lane. The words of
// a block lie in 64-bit lanes, since that is what the widening multiplication of x86 takes and gives; whatever their upper
// halves hold is read by nothing. g++ finds none of this by itself.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "deltaw/core/half.hpp"
#include "deltaw/core/memory.hpp"
#include "deltaw/core/random.hpp"
#include "deltaw/core/view.hpp"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace deltaw {

#if DELTAW_CBLAS
inline namespace cpu_with_cblas {
#else
inline namespace cpu_with_eigen {
#endif
namespace cpu_detail::bases {

#if defined(__AVX512F__)
inline constexpr int lanes = 8;
#elif defined(__AVX2__)
inline constexpr int lanes = 4;
#else
inline constexpr int lanes = 2;
#endif

template <class T>
struct LanesOf {
  using type [[gnu::vector_size(lanes * sizeof(T))]] = T;
};
using Words = LanesOf<std::uint64_t>::type;

/// Lower halves times `factor`, all 64 bits of it.
inline Words multiply(Words a, std::uint32_t factor) {
  const Words b = Words{} + std::uint64_t{factor};
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * b;
#endif
}

/// `lanes` blocks of Philox side by side.
struct PhiloxLanes {
  Words words[4];

  /// key.block(column_block, row), key.block(column_block, row + 1), ...
  PhiloxLanes(RandomKey key, std::uint64_t column_block, std::uint64_t row) {
    Words rows;
    for (int l = 0; l < lanes; ++l) rows[l] = static_cast<std::uint64_t>(l);
    rows += row;
    words[0] = Words{} + column_block;
    words[1] = Words{} + (column_block >> 32);
    words[2] = rows;
    words[3] = rows >> 32;
    const auto key0 = static_cast<std::uint32_t>(key.value), key1 = static_cast<std::uint32_t>(key.value >> 32);
    [&]<std::uint32_t... n>(std::integer_sequence<std::uint32_t, n...>) {
      (round(key0 + n * 0x9E3779B9u, key1 + n * 0xBB67AE85u), ...);
    }
    (std::make_integer_sequence<std::uint32_t, 10>{});
  }
  /// signed24 of the n-th word of each block.
  template <class C>
  typename LanesOf<C>::type number(int n) const {
    using Int = typename LanesOf<std::int32_t>::type;
    const Int low = __builtin_convertvector(words[n], Int);
    return __builtin_convertvector((low ^ static_cast<std::int32_t>(0x80000000u)) >> 8, typename LanesOf<C>::type);
  }

 private:
  void round(std::uint32_t key0, std::uint32_t key1) {
    const Words product0 = multiply(words[0], 0xD2511F53u), product1 = multiply(words[2], 0xCD9E8D57u);
    words[0] = (product1 >> 32) ^ words[1] ^ std::uint64_t{key0};
    words[1] = product1;
    words[2] = (product0 >> 32) ^ words[3] ^ std::uint64_t{key1};
    words[3] = product0;
  }
};

inline constexpr int vectors = 4;                 // at a time, so that no multiplication waits for the one before
inline constexpr index_t tile = vectors * lanes;  // elements of one pass over the matrices
inline constexpr index_t piece = 4096;            // elements that stay in the first cache, and whose sums stay in C

/// f(first value, number of its element, how many) for stretches of at most `piece` elements that are numbered on end.
template <class T, class F>
void for_each_piece(const RandomBases& bases, MatrixView<T, Host> m, F f) {
  const bool whole = m.contiguous() && bases.row_step == static_cast<std::uint64_t>(m.cols);
  const index_t rows = whole ? 1 : m.rows, cols = whole ? m.size() : m.cols;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; j += piece)
      f(m.data + i * m.stride + j, bases.element(i, j), std::min(piece, cols - j));
}

/// sum = sum_n c_n signed24(U_n) at `tile` elements; `c` has whole fours.
template <class C>
void combine_tile(RandomKey key, std::uint64_t element, ConstMatrixView<C, Host> c, std::array<C, tile>& sum) {
  typename LanesOf<C>::type s[vectors] = {};
  for (index_t n = 0; n < c.cols; n += 4)
    for (int v = 0; v < vectors; ++v) {
      const PhiloxLanes bits(key, static_cast<std::uint64_t>(n / 4), element + static_cast<std::uint64_t>(v * lanes));
      for (int w = 0; w < 4; ++w) s[v] += c.data[n + w] * bits.template number<C>(w);
    }
  std::memcpy(sum.data(), s, sizeof sum);
}

/// out = beta out + scale sum_n c_n U_n.
template <class TC, class T>
void combine(Arena<Host>& arena, const RandomBases& bases, double scale, MatrixView<TC, Host> c, double beta,
             MatrixView<T, Host> out) {
  using C = compute_t<T>;
  Arena<Host>::Mark mark(arena);
  const auto coefficients = arena.template take<C>(1, (c.cols + 3) / 4 * 4);
  std::fill_n(coefficients.data, coefficients.cols, C(0));
  for (index_t n = 0; n < c.cols; ++n) coefficients.data[n] = static_cast<C>(c.data[n]);
  const auto factor = static_cast<C>(scale * 0x1p-23), keep = static_cast<C>(beta);
  for_each_piece(bases, out, [&](T* values, std::uint64_t element, index_t count) {
    std::array<C, tile> sum;
    for (index_t first = 0; first < count; first += tile) {
      combine_tile<C>(bases.key, element + static_cast<std::uint64_t>(first), coefficients, sum);
      const index_t n = std::min(tile, count - first);
      T* o = values + first;
      for (index_t l = 0; l < n; ++l)
        o[l] = T((beta == 0 ? C(0) : keep * static_cast<C>(o[l])) + factor * sum[static_cast<std::size_t>(l)]);
    }
  });
}

/// sums_w += <signed24(U_w of this block), values>; `count` is whole tiles.
template <class C>
void project_piece(RandomKey key, std::uint64_t column_block, std::uint64_t element, const C* values, index_t count,
                   double* sums) {
  using V = typename LanesOf<C>::type;
  V s[4] = {};
  for (index_t first = 0; first < count; first += tile)
    for (int v = 0; v < vectors; ++v) {
      const index_t at = first + v * lanes;
      V x;
      std::memcpy(&x, values + at, sizeof x);
      const PhiloxLanes bits(key, column_block, element + static_cast<std::uint64_t>(at));
      for (int w = 0; w < 4; ++w) s[w] += x * bits.template number<C>(w);
    }
  for (int w = 0; w < 4; ++w)
    for (int l = 0; l < lanes; ++l) sums[w] += static_cast<double>(s[w][l]);
}

/// out_n += scale <U_n, in>.
template <class TA, class T>
void project(Arena<Host>& arena, const RandomBases& bases, double scale, MatrixView<TA, Host> in,
             MatrixView<T, Host> out) {
  using C = compute_t<T>;
  Arena<Host>::Mark mark(arena);
  const auto sums = arena.template take<double>(1, (out.cols + 3) / 4 * 4);
  std::fill_n(sums.data, sums.cols, 0.0);
  const auto values = arena.template take<C>(1, piece);
  for_each_piece(bases, in, [&](const TA* first, std::uint64_t element, index_t count) {
    const index_t padded = (count + tile - 1) / tile * tile;
    for (index_t l = 0; l < count; ++l) values.data[l] = static_cast<C>(first[l]);
    std::fill_n(values.data + count, padded - count, C(0));
    for (index_t n = 0; n < out.cols; n += 4)
      project_piece<C>(bases.key, static_cast<std::uint64_t>(n / 4), element, values.data, padded, sums.data + n);
  });
  for (index_t n = 0; n < out.cols; ++n)
    out.data[n] = T(static_cast<C>(out.data[n]) + static_cast<C>(scale * 0x1p-23 * sums.data[n]));
}

}  // namespace cpu_detail::bases
}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
