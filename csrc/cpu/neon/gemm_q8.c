/* sdot: signed bytes times signed bytes, four neighbours added to 32 bits: no offsets, nothing to take back. */
#include "cpu/variants.h"

#include "cpu/lanes/neon.h"

typedef struct ints {
    int8x16_t a, b; /* rows 0 .. 3 and 4 .. 7; a sum is four int32 in each */
} ints;

static ALWAYS_INLINE ints ints_broadcast(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(four));
    return (ints){all, all};
}

typedef ints weights;

static ALWAYS_INLINE ints ints_zero(void)
{
    return (ints){vdupq_n_s8(0), vdupq_n_s8(0)};
}

/* The sums of q are not needed. */
static ALWAYS_INLINE ints codes_start(int32_t s)
{
    (void)s;
    return ints_zero();
}

static ALWAYS_INLINE ints codes_add(ints sum, weights w, ints x)
{
    return (ints){vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum.a), w.a, x.a)),
                  vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum.b), w.b, x.b))};
}

static ALWAYS_INLINE f8 codes_finish(ints sum)
{
    return (f8){vcvtq_f32_s32(vreinterpretq_s32_s8(sum.a)), vcvtq_f32_s32(vreinterpretq_s32_s8(sum.b))};
}

/* Even g are low nibbles, odd g high ones. */
static ALWAYS_INLINE uint8x16_t nibbles(const uint8_t *p, size_t g)
{
    const uint8x16_t both = vld1q_u8(p);
    return g % 2 == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
}

/* Codes become twice their value: -12 .. 12. */
static ALWAYS_INLINE weights codes_load(const uint8_t *p, size_t g)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8x16_t table = vld1q_s8(doubled);
    const uint8_t *from = p + g / 2 * 32;
    return (weights){vqtbl1q_s8(table, nibbles(from, g)), vqtbl1q_s8(table, nibbles(from + 16, g))};
}

static ALWAYS_INLINE weights levels_load(const uint8_t *p, size_t g)
{
    const uint8_t *from = p + g / 2 * 32;
    return (weights){vreinterpretq_s8_u8(nibbles(from, g)), vreinterpretq_s8_u8(nibbles(from + 16, g))};
}

static ALWAYS_INLINE weights bytes_load(const uint8_t *p, size_t g)
{
    const int8_t *q = (const int8_t *)p + 32 * g;
    return (weights){vld1q_s8(q), vld1q_s8(q + 16)};
}

static ALWAYS_INLINE ints bytes_start(int32_t s)
{
    return codes_start(s);
}

static ALWAYS_INLINE ints bytes_add(ints sum, weights w, ints x)
{
    return codes_add(sum, w, x);
}

static ALWAYS_INLINE f8 bytes_finish(ints sum)
{
    return codes_finish(sum);
}

#include "cpu/lanes/gemm_q8.h"

MIMO_GEMM_Q8_KERNELS(neon, body_mxfp4, body_q8, body_q4)
