/* What the integer gemms of AVX2, AVX-VNNI and AVX-512 share: unsigned operands, 32 of them in a register. Include
 * after the lanes. */
#ifndef MIMO_CPU_LANES_CODES_X86_H
#define MIMO_CPU_LANES_CODES_X86_H

typedef __m256i ints;

static ALWAYS_INLINE ints ints_broadcast(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

static ALWAYS_INLINE ints ints_zero(void)
{
    return _mm256_setzero_si256();
}

/* Even g are low nibbles, odd g high ones. */
static ALWAYS_INLINE ints nibbles(const uint8_t *p, size_t g)
{
    const __m256i both = _mm256_loadu_si256((const __m256i *)(p + g / 2 * 32));
    return _mm256_and_si256(g % 2 == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
}

/* Codes become 12 + twice their value: 0 .. 24. */
static ALWAYS_INLINE __m128i codes_table(void)
{
    return _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
}

static ALWAYS_INLINE ints codes_operand(const uint8_t *p, size_t g)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes_table()), nibbles(p, g));
}

#endif
