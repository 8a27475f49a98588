/* Eight float lanes in one AVX register, by the names that the bodies of this folder use (neon.h has the same names).
 * f8_fma rounds once; every other operation is rounded on its own. */
#ifndef MIMO_CPU_LANES_AVX2_H
#define MIMO_CPU_LANES_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef __m256 f8;

static inline f8 f8_set(float x)
{
    return _mm256_set1_ps(x);
}

static inline f8 f8_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void f8_store(float *p, f8 x)
{
    _mm256_storeu_ps(p, x);
}

static inline f8 f8_add(f8 a, f8 b)
{
    return _mm256_add_ps(a, b);
}

static inline f8 f8_sub(f8 a, f8 b)
{
    return _mm256_sub_ps(a, b);
}

static inline f8 f8_mul(f8 a, f8 b)
{
    return _mm256_mul_ps(a, b);
}

static inline f8 f8_div(f8 a, f8 b)
{
    return _mm256_div_ps(a, b);
}

/* a*b + c */
static inline f8 f8_fma(f8 a, f8 b, f8 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* c - a*b */
static inline f8 f8_fnma(f8 a, f8 b, f8 c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

static inline f8 f8_max(f8 a, f8 b)
{
    return _mm256_max_ps(a, b);
}

static inline f8 f8_min(f8 a, f8 b)
{
    return _mm256_min_ps(a, b);
}

static inline f8 f8_abs(f8 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

static inline f8 f8_neg(f8 x)
{
    return _mm256_xor_ps(_mm256_set1_ps(-0.0f), x);
}

/* To the nearest integer, ties to even. */
static inline f8 f8_round(f8 x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n of integers -126 <= n <= 127. */
static inline f8 f8_exp2_int(f8 n)
{
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* x where a > b, else 0. */
static inline f8 f8_keep_greater(f8 x, f8 a, f8 b)
{
    return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

/* Lane i is x's where begin <= i < end, else `other`'s. */
static inline f8 f8_keep_range(f8 x, f8 other, int begin, int end)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);
    const __m256i inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
}

/* ((0+4)+(2+6)) + ((1+5)+(3+7)) */
static inline float f8_sum(f8 x)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float f8_highest(f8 x)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline f8 f8_load_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline f8 f8_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* Eight E4M3 bytes, none of them NaN. Exponent and mantissa fit a half float (bias 15, not 7: 256 times too small),
 * whose conversion also gets the subnormals right. */
static inline f8 f8_load_fp8(const uint8_t *p)
{
    const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
    const __m128i rest = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7);
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), _mm256_set1_ps(256.0f));
}

/* 2^(code - 127) of eight E8M0 bytes, none of them NaN; code 0 is a subnormal. */
static inline f8 f8_load_e8m0(const uint8_t *p)
{
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
}

typedef __m256i codes8; /* eight lanes of eight E2M1 codes */

static inline codes8 codes8_load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* The E2M1 value of nibble n of each lane. */
static inline f8 codes8_value(codes8 codes, int n)
{
    const __m256i code = _mm256_srli_epi32(codes, 4 * n);
    const f8 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(8)), 28);
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(values, code), _mm256_castsi256_ps(sign));
}

/* q[k] = x[k] * inverse to nearest even for one block of 32, |q| <= 127; returns the sums as mimo_act keeps them. */
static inline int32_t f8_quantize_block(int8_t *q, const f8 x[4], f8 inverse)
{
    __m256i n[4];
    for (int i = 0; i < 4; i++)
        n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, bytes);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_add_epi16(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi16(sum, _mm_shuffle_epi32(sum, 1)));
}

#endif
