/* AVX-512 VNNI: two octets side by side in registers of 512 bits, and bodies of 256 bits where one is left. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/codes_x86.h"

#define DPBUSD(sum, w, x) _mm256_dpbusd_epi32(sum, w, x)
#include "cpu/lanes/vnni_x86.h"

#define TILE_ROWS 8
#define TILE_USUAL_ROWS 8
#include "cpu/lanes/gemm_q8.h"

/* ---- lanes of two octets: what lies at p and, `next` bytes on, the other's ---- */

static ALWAYS_INLINE __m512i pair_load(const uint8_t *p, size_t next)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p)),
                              _mm256_loadu_si256((const __m256i *)(p + next)), 1);
}

static ALWAYS_INLINE __m512 pair_of(f8 a, f8 b)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

/* n times the sum of x over a block. */
static ALWAYS_INLINE __m512i pair_sum(int32_t s, int16_t n)
{
    return _mm512_madd_epi16(_mm512_set1_epi32(s), _mm512_set1_epi16(n));
}

/* A packing's block of 32 columns of two octets; all constant once inlined. */
typedef struct pairing {
    const packing *of;
    void (*load)(__m512i w[8], const uint8_t *p, size_t next);
    int16_t offset; /* of the weights */
} pairing;

static ALWAYS_INLINE void pair_nibbles(__m512i w[8], const uint8_t *p, size_t next)
{
    for (size_t g = 0; g < 8; g += 2) {
        const __m512i both = pair_load(p + g / 2 * 32, next), low = _mm512_set1_epi8(15);
        w[g] = _mm512_and_si512(both, low);
        w[g + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

static ALWAYS_INLINE void pair_codes(__m512i w[8], const uint8_t *p, size_t next)
{
    const __m512i table = _mm512_broadcast_i32x4(codes_table());
    pair_nibbles(w, p, next);
    for (size_t g = 0; g < 8; g++)
        w[g] = _mm512_shuffle_epi8(table, w[g]);
}

static ALWAYS_INLINE void pair_bytes(__m512i w[8], const uint8_t *p, size_t next)
{
    for (size_t g = 0; g < 8; g++)
        w[g] = _mm512_xor_si512(pair_load(p + 32 * g, next), _mm512_set1_epi8(-128));
}

/* The dot products of a block with four int8 of x at a time. */
static ALWAYS_INLINE __m512 pair_dots(const __m512i w[8], const int8_t *q, int32_t s, int16_t offset)
{
    __m512i sum = pair_sum(s, (int16_t)-offset);
    for (size_t g = 0; g < 8; g++) {
        int32_t four;
        memcpy(&four, q + 4 * g, sizeof four);
        sum = _mm512_dpbusd_epi32(sum, w[g], _mm512_set1_epi32(four));
    }
    return _mm512_cvtepi32_ps(sum);
}

/* A block's weights stay in registers while all rows meet them. */
static ALWAYS_INLINE void pair_body(const tile *c, size_t T, pairing p)
{
    row_pointers x[TILE_ROWS];
    __m512 acc[TILE_ROWS];
    for (size_t t = 0; t < T; t++) {
        x[t] = pointers_of(c, t);
        acc[t] = _mm512_setzero_ps();
    }
    for (size_t b = 0; b < c->x->K / 32; b++) {
        const uint8_t *other = c->scales + c->scale_bytes;
        __m512i w[8];
        tile_fetch(c, b);
        p.load(w, c->data + b * p.of->block_bytes, c->data_bytes);
        const __m512 dw = pair_of(p.of->scale(c->scales, b), p.of->scale(other, b));
        for (size_t t = 0; t < T; t++) {
            const __m512 dot = pair_dots(w, x[t].q + 32 * b, x[t].s[b], p.offset);
            acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(dw, _mm512_set1_ps(x[t].d[b])), dot, acc[t]);
        }
        if (p.of->least != NULL) {
            const __m512 least = pair_of(p.of->least(c->scales, b), p.of->least(other, b));
            for (size_t t = 0; t < T; t++) {
                const __m512 sum = _mm512_cvtepi32_ps(pair_sum(x[t].s[b], 1));
                acc[t] = _mm512_fmadd_ps(least, _mm512_mul_ps(_mm512_set1_ps(x[t].d[b]), sum), acc[t]);
            }
        }
    }
    for (size_t t = 0; t < T; t++)
        _mm512_storeu_ps(c->y[t], acc[t]);
}

/* ---- tiles ---- */

static ALWAYS_INLINE void pairs_mxfp4(const tile *c, size_t T, size_t O)
{
    if (O == 2)
        pair_body(c, T, (pairing){&mxfp4, pair_codes, 12});
    else
        body_mxfp4(c, T, O);
}

static ALWAYS_INLINE void pairs_q8(const tile *c, size_t T, size_t O)
{
    if (O == 2)
        pair_body(c, T, (pairing){&q8, pair_bytes, 128});
    else
        body_q8(c, T, O);
}

static ALWAYS_INLINE void pairs_q4(const tile *c, size_t T, size_t O)
{
    if (O == 2)
        pair_body(c, T, (pairing){&q4, pair_nibbles, 0});
    else
        body_q4(c, T, O);
}

MIMO_GEMM_Q8_KERNELS(avx512, pairs_mxfp4, pairs_q8, pairs_q4)
