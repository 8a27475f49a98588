/* vpdpbusd: unsigned bytes times signed bytes, four neighbours added to 32 bits. MXFP4 and Q8 are made
 * unsigned by an offset, and their sums start from -offset * (sum of q). Registers of 256 bits: an octet is one
 * register whatever the instruction set. Include after codes_x86.h, with DPBUSD(sum, w, x) the intrinsic of the
 * instruction's encoding. */
#ifndef MIMO_CPU_LANES_VNNI_X86_H
#define MIMO_CPU_LANES_VNNI_X86_H

static ALWAYS_INLINE ints start_from(int32_t s, int16_t offset)
{
    return _mm256_madd_epi16(_mm256_set1_epi32(s), _mm256_set1_epi16((int16_t)-offset));
}

typedef ints weights;

static ALWAYS_INLINE weights codes_load(const uint8_t *p, size_t g)
{
    return codes_operand(p, g);
}

static ALWAYS_INLINE ints codes_start(int32_t s)
{
    return start_from(s, 12);
}

static ALWAYS_INLINE ints codes_add(ints sum, weights w, ints x)
{
    return DPBUSD(sum, w, x);
}

static ALWAYS_INLINE f8 codes_finish(ints sum)
{
    return _mm256_cvtepi32_ps(sum);
}

static ALWAYS_INLINE weights bytes_load(const uint8_t *p, size_t g)
{
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(p + 32 * g)), _mm256_set1_epi8(-128));
}

static ALWAYS_INLINE ints bytes_start(int32_t s)
{
    return start_from(s, 128);
}

static ALWAYS_INLINE ints bytes_add(ints sum, weights w, ints x)
{
    return DPBUSD(sum, w, x);
}

static ALWAYS_INLINE f8 bytes_finish(ints sum)
{
    return _mm256_cvtepi32_ps(sum);
}

static ALWAYS_INLINE weights levels_load(const uint8_t *p, size_t g)
{
    return nibbles(p, g);
}

#endif
