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

template <class T, int count>
struct LanesOf {
  using type [[gnu::vector_size(count * sizeof(T))]] = T;
};
using Words = LanesOf<std::uint64_t, lanes>::type;

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

inline constexpr std::uint32_t factor0 = 0xD2511F53u, factor1 = 0xCD9E8D57u;
inline constexpr std::uint32_t key_step0 = 0x9E3779B9u, key_step1 = 0xBB67AE85u;
inline std::uint32_t low(std::uint64_t word) { return static_cast<std::uint32_t>(word); }
inline std::uint32_t high(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); }

/// What the first two of Philox's ten rounds make of the lower halves of rows `first`, `first + 2`, ... alone: the same for all
/// matrices.
struct PhiloxRows {
  Words product1, product0;

  PhiloxRows(RandomKey key, std::uint64_t first) {
    Words rows;
    for (int l = 0; l < lanes; ++l) rows[l] = first + 2 * static_cast<std::uint64_t>(l);
    product1 = multiply(rows, factor1);
    product0 = multiply((product1 >> 32) ^ std::uint64_t{low(key.value)}, factor0);
  }
};

/// What they make of the column's block (below 2^32) and of the upper half of the rows: the same for all elements.
struct PhiloxColumn {
  std::uint32_t word0, word1, word2;

  PhiloxColumn(RandomKey key, index_t block, std::uint64_t row) {
    const std::uint64_t first = std::uint64_t{factor0} * static_cast<std::uint64_t>(block);
    const std::uint64_t second = std::uint64_t{factor1} * (high(first) ^ high(row) ^ high(key.value));
    word0 = high(second) ^ (low(key.value) + key_step0);
    word1 = low(second);
    word2 = low(first) ^ (high(key.value) + key_step1);
  }
};

/// `lanes` blocks of Philox side by side: key.block(column, row) of every second row.
struct PhiloxLanes {
  Words words[4];

  PhiloxLanes(RandomKey key, const PhiloxRows& rows, const PhiloxColumn& column)
      : words{rows.product1 ^ std::uint64_t{column.word0}, Words{} + std::uint64_t{column.word1},
              (rows.product0 >> 32) ^ std::uint64_t{column.word2}, rows.product0} {
    const std::uint32_t key0 = low(key.value), key1 = high(key.value);
    [&]<std::uint32_t... n>(std::integer_sequence<std::uint32_t, n...>) {
      (round(key0 + (n + 2) * key_step0, key1 + (n + 2) * key_step1), ...);
    }
    (std::make_integer_sequence<std::uint32_t, 8>{});
  }

 private:
  void round(std::uint32_t key0, std::uint32_t key1) {
    const Words first = multiply(words[0], factor0), second = multiply(words[2], factor1);
    words[0] = (second >> 32) ^ words[1] ^ std::uint64_t{key0};
    words[1] = second;
    words[2] = (first >> 32) ^ words[3] ^ std::uint64_t{key1};
    words[3] = first;
  }
};

/// The numbers of 2 * lanes elements on end, of four matrices: the even ones come from one set of lanes, the odd ones from
/// another, so that they fall into their order when one is put into the upper halves of the other.
template <class C>
struct Numbers {
  using Vector = typename LanesOf<C, 2 * lanes>::type;
  Vector of[4];

  Numbers(RandomKey key, const PhiloxRows& even_rows, const PhiloxRows& odd_rows, const PhiloxColumn& column) {
    using Ints = typename LanesOf<std::int32_t, 2 * lanes>::type;
    const PhiloxLanes even(key, even_rows, column), odd(key, odd_rows, column);
    for (int w = 0; w < 4; ++w) {
      const auto bits = reinterpret_cast<Ints>((even.words[w] & 0xffffffffu) | (odd.words[w] << 32));
      of[w] = __builtin_convertvector((bits ^ static_cast<std::int32_t>(0x80000000u)) >> 8, Vector);  // signed24
    }
  }
};

inline constexpr index_t width = index_t{2} * lanes;
inline constexpr index_t piece = 1024;  // elements whose rows stay in the first cache, and whose sums stay in C

/// f(first value, number of its element, how many) for stretches of at most `piece` elements that are numbered on end and
/// agree in the upper half of the number.
template <class T, class F>
void for_each_piece(const RandomBases& bases, MatrixView<T, Host> m, F f) {
  const bool whole = m.contiguous() && bases.row_step == static_cast<std::uint64_t>(m.cols);
  const index_t rows = whole ? 1 : m.rows, cols = whole ? m.size() : m.cols;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0, count = 0; j < cols; j += count) {
      const std::uint64_t element = bases.element(i, j);
      count = std::min({piece, cols - j, static_cast<index_t>(0x100000000u - low(element))});
      f(m.data + i * m.stride + j, element, count);
    }
}

/// out = beta out + scale sum_n c_n U_n.
template <class TC, class T>
void combine(Arena<Host>& arena, const RandomBases& bases, double scale, MatrixView<TC, Host> c, double beta,
             MatrixView<T, Host> out) {
  using C = compute_t<T>;
  constexpr int vectors = 2;  // at a time, so that no multiplication waits for the one before
  constexpr index_t tile = vectors * width;
  Arena<Host>::Mark mark(arena);
  const auto coefficients = arena.template take<C>(1, (c.cols + 3) / 4 * 4);
  std::fill_n(coefficients.data, coefficients.cols, C(0));
  for (index_t n = 0; n < c.cols; ++n) coefficients.data[n] = static_cast<C>(c.data[n]);
  const auto factor = static_cast<C>(scale * 0x1p-23), keep = static_cast<C>(beta);
  for_each_piece(bases, out, [&](T* values, std::uint64_t element, index_t count) {
    for (index_t first = 0; first < count; first += tile) {
      const std::uint64_t e = element + static_cast<std::uint64_t>(first);
      const PhiloxRows even[] = {{bases.key, e}, {bases.key, e + width}};
      const PhiloxRows odd[] = {{bases.key, e + 1}, {bases.key, e + width + 1}};
      typename Numbers<C>::Vector sums[vectors] = {};
      for (index_t n = 0; n < coefficients.cols; n += 4) {
        const PhiloxColumn column(bases.key, n / 4, element);
        for (int v = 0; v < vectors; ++v) {
          const Numbers<C> numbers(bases.key, even[v], odd[v], column);
          for (int w = 0; w < 4; ++w) sums[v] += coefficients.data[n + w] * numbers.of[w];
        }
      }
      std::array<C, tile> sum;
      std::memcpy(sum.data(), sums, sizeof sum);
      T* o = values + first;
      for (index_t l = 0; l < std::min(tile, count - first); ++l)
        o[l] = T((beta == 0 ? C(0) : keep * static_cast<C>(o[l])) + factor * sum[static_cast<std::size_t>(l)]);
    }
  });
}

/// out_n += scale <U_n, in>.
template <class TA, class T>
void project(Arena<Host>& arena, const RandomBases& bases, double scale, MatrixView<TA, Host> in,
             MatrixView<T, Host> out) {
  using C = compute_t<T>;
  using Vector = typename Numbers<C>::Vector;
  Arena<Host>::Mark mark(arena);
  const auto sums = arena.template take<double>(1, (out.cols + 3) / 4 * 4);
  std::fill_n(sums.data, sums.cols, 0.0);
  const auto values = arena.template take<C>(1, piece);
  const auto rows = arena.template take<PhiloxRows>(1, 2 * piece / width);
  for_each_piece(bases, in, [&](const TA* first, std::uint64_t element, index_t count) {
    const index_t used = (count + width - 1) / width;
    for (index_t l = 0; l < count; ++l) values.data[l] = static_cast<C>(first[l]);
    std::fill_n(values.data + count, used * width - count, C(0));
    for (index_t v = 0; v < 2 * used; ++v)  // even, odd, even, ...
      rows.data[v] = {bases.key, element + static_cast<std::uint64_t>(v / 2 * width + v % 2)};
    for (index_t n = 0; n < out.cols; n += 4) {
      const PhiloxColumn column(bases.key, n / 4, element);
      Vector s[4] = {};
      for (index_t v = 0; v < used; ++v) {
        Vector x;
        std::memcpy(&x, values.data + v * width, sizeof x);
        const Numbers<C> numbers(bases.key, rows.data[2 * v], rows.data[2 * v + 1], column);
        for (int w = 0; w < 4; ++w) s[w] += x * numbers.of[w];
      }
      for (int w = 0; w < 4; ++w)
        for (int l = 0; l < width; ++l) sums.data[n + w] += static_cast<double>(s[w][l]);
    }
  });
  for (index_t n = 0; n < out.cols; ++n)
    out.data[n] = T(static_cast<C>(out.data[n]) + static_cast<C>(scale * 0x1p-23 * sums.data[n]));
}

}  // namespace cpu_detail::bases
}  // namespace cpu_with_cblas or cpu_with_eigen
}  // namespace deltaw
