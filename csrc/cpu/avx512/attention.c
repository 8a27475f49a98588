/* Attention in registers of 512 bits. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"

/* ---- what lanes/vec8.h has of eight lanes ---- */

enum { VEC_LANES = 16 };
typedef __m512 vec;

static ALWAYS_INLINE vec vec_set(float x)
{
    return _mm512_set1_ps(x);
}

static ALWAYS_INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static ALWAYS_INLINE void vec_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}

static ALWAYS_INLINE vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static ALWAYS_INLINE vec vec_of_bf16(__m256i sixteen)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}

static ALWAYS_INLINE vec vec_load_bf16(const uint16_t *p)
{
    return vec_of_bf16(_mm256_loadu_si256((const __m256i *)p));
}

static ALWAYS_INLINE vec vec_join(const float *p, const float *q)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(f8_load(p)), f8_load(q), 1);
}

static ALWAYS_INLINE vec vec_join_bf16(const uint16_t *p, const uint16_t *q)
{
    return vec_of_bf16(_mm256_loadu2_m128i((const __m128i *)q, (const __m128i *)p));
}

/* 24 sums of 32 registers. */
static ALWAYS_INLINE size_t vectors_together(size_t N)
{
    (void)N;
    return 4;
}

#define MIMO_KERNEL(name) mimo_avx512_##name
#include "cpu/lanes/attention.h"
