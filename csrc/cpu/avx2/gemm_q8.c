/* maddubs: unsigned bytes times signed bytes, neighbours added in 16 bits. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/codes_x86.h"

typedef struct weights {
    ints w, magnitude; /* the latter of Q8 only */
} weights;

static ALWAYS_INLINE weights codes_load(const uint8_t *p, size_t g)
{
    const ints w = codes_operand(p, g);
    return (weights){w, w};
}

/* Stops the compiler from turning a sum into a tree, whose terms would not fit the registers. */
static ALWAYS_INLINE ints keep_in_order(ints sum)
{
    __asm__("" : "+x"(sum));
    return sum;
}

/* All eight maddubs of a block are added in 16 bits: a sum of sixteen (12 + w) * q may wrap, but it starts from -12 *
 * (sum of those q), and the result, a sum of sixteen w * q, is at most 16 * 12 * 127 < 2^15: wrapped or not on the way,
 * it is exact. */
static ALWAYS_INLINE ints codes_start(int32_t s)
{
    return _mm256_mullo_epi16(_mm256_set1_epi32(s), keep_in_order(_mm256_set1_epi16(-12)));
}

static ALWAYS_INLINE ints codes_add(ints sum, weights w, ints x)
{
    return keep_in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w.w, x)));
}

static ALWAYS_INLINE f8 codes_finish(ints sum)
{
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
}

/* Sums of sixteen w * q are at most 16 * 15 * 127 < 2^15. */
static ALWAYS_INLINE weights levels_load(const uint8_t *p, size_t g)
{
    const ints w = nibbles(p, g);
    return (weights){w, w};
}

static ALWAYS_INLINE weights bytes_load(const uint8_t *p, size_t g)
{
    const ints w = _mm256_loadu_si256((const __m256i *)(p + 32 * g));
    return (weights){w, _mm256_abs_epi8(w)};
}

static ALWAYS_INLINE ints bytes_start(int32_t s)
{
    (void)s;
    return ints_zero();
}

/* |w| times q with w's sign: 2 * 127 * 127 fits 16 bits, but only just, so every product is widened before it is added.
 */
static ALWAYS_INLINE ints bytes_add(ints sum, weights w, ints x)
{
    const ints pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.w));
    return keep_in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}

static ALWAYS_INLINE f8 bytes_finish(ints sum)
{
    return _mm256_cvtepi32_ps(sum);
}

#include "cpu/lanes/gemm_q8.h"

MIMO_GEMM_Q8_KERNELS(avx2, body_mxfp4, body_q8, body_q4)
