/* AVX-512 VNNI: octets in pairs side by side in registers of 512 bits, two pairs a tile of many rows; bodies of 256
 * bits where a single octet is left. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/codes_x86.h"

#define DPBUSD(sum, w, x) _mm256_dpbusd_epi32(sum, w, x)
#include "cpu/lanes/vnni_x86.h"

#define TILE_ROWS 8
#define TILE_USUAL_ROWS 8
#define TILE_OCTETS_OF_MANY 4
#include "cpu/lanes/gemm_q8.h"

enum { PAIRS = TILE_OCTETS_OF_MANY / 2 };

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

/* A packing's weights of two octets; all constant once inlined. */
typedef struct pairing {
    const packing *of;
    void (*load)(__m512i w[2], const uint8_t *p, size_t next, size_t g); /* columns 4g .. 4g + 7 of a block; g even */
    int16_t offset;                                                      /* of the weights */
} pairing;

static ALWAYS_INLINE void pair_nibbles(__m512i w[2], const uint8_t *p, size_t next, size_t g)
{
    const __m512i both = pair_load(p + 16 * g, next), low = _mm512_set1_epi8(15);
    w[0] = _mm512_and_si512(both, low);
    w[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
}

static ALWAYS_INLINE void pair_codes(__m512i w[2], const uint8_t *p, size_t next, size_t g)
{
    const __m512i table = _mm512_broadcast_i32x4(codes_table());
    pair_nibbles(w, p, next, g);
    for (size_t i = 0; i < 2; i++)
        w[i] = _mm512_shuffle_epi8(table, w[i]);
}

static ALWAYS_INLINE void pair_bytes(__m512i w[2], const uint8_t *p, size_t next, size_t g)
{
    for (size_t i = 0; i < 2; i++)
        w[i] = _mm512_xor_si512(pair_load(p + 32 * (g + i), next), _mm512_set1_epi8(-128));
}

/* Where the panel of a tile goes on with its pair o. */
static ALWAYS_INLINE const uint8_t *pair_data(const tile *c, size_t o)
{
    return c->data + 2 * o * c->data_bytes;
}

static ALWAYS_INLINE __m512 pair_scale(const tile *c, size_t o, size_t b,
                                       f8 (*scale)(const uint8_t *scales, size_t block))
{
    const uint8_t *first = c->scales + 2 * o * c->scale_bytes;
    return pair_of(scale(first, b), scale(first + c->scale_bytes, b));
}

/* The integer sums of block b, each row's of each of P pairs. They grow side by side: a row's sums one after the other
 * would fill the processor's queues with products that wait for each other. A broadcast serves all pairs. */
static ALWAYS_INLINE void pair_dots(__m512i sum[TILE_ROWS][PAIRS], const tile *c, const row_pointers x[TILE_ROWS],
                                    size_t b, size_t T, size_t P, pairing p)
{
    for (size_t t = 0; t < T; t++)
        for (size_t o = 0; o < P; o++)
            sum[t][o] = pair_sum(x[t].s[b], (int16_t)-p.offset);
#pragma GCC unroll 4
    for (size_t g = 0; g < 8; g += 2) {
        __m512i w[PAIRS][2];
        for (size_t o = 0; o < P; o++)
            p.load(w[o], pair_data(c, o) + b * p.of->block_bytes, c->data_bytes, g);
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; i++)
            for (size_t t = 0; t < T; t++) {
                int32_t four;
                memcpy(&four, x[t].q + 4 * (g + i), sizeof four);
                const __m512i wide = _mm512_set1_epi32(four);
                for (size_t o = 0; o < P; o++)
                    sum[t][o] = _mm512_dpbusd_epi32(sum[t][o], w[o][i], wide);
            }
    }
}

/* T rows, P pairs. */
static ALWAYS_INLINE void pair_body(const tile *c, size_t T, size_t P, pairing p)
{
    row_pointers x[TILE_ROWS];
    __m512 acc[TILE_ROWS][PAIRS];
    for (size_t t = 0; t < T; t++) {
        x[t] = pointers_of(c, t);
        for (size_t o = 0; o < P; o++)
            acc[t][o] = _mm512_setzero_ps();
    }
    for (size_t b = 0; b < c->x->K / 32; b++) {
        __m512i sum[TILE_ROWS][PAIRS];
        tile_fetch(c, b);
        pair_dots(sum, c, x, b, T, P, p);
        for (size_t t = 0; t < T; t++)
            x[t].q += 32;
        __m512 dw[PAIRS], least[PAIRS];
        for (size_t o = 0; o < P; o++) {
            dw[o] = pair_scale(c, o, b, p.of->scale);
            least[o] = p.of->least != NULL ? pair_scale(c, o, b, p.of->least) : _mm512_setzero_ps();
        }
        for (size_t t = 0; t < T; t++) {
            const __m512 d = _mm512_set1_ps(x[t].d[b]);
            for (size_t o = 0; o < P; o++)
                acc[t][o] = _mm512_fmadd_ps(_mm512_mul_ps(dw[o], d), _mm512_cvtepi32_ps(sum[t][o]), acc[t][o]);
            if (p.of->least == NULL)
                continue;
            const __m512 all = _mm512_mul_ps(d, _mm512_cvtepi32_ps(pair_sum(x[t].s[b], 1)));
            for (size_t o = 0; o < P; o++)
                acc[t][o] = _mm512_fmadd_ps(least[o], all, acc[t][o]);
        }
    }
    for (size_t t = 0; t < T; t++)
        for (size_t o = 0; o < P; o++)
            _mm512_storeu_ps(c->y[t] + 16 * o, acc[t][o]);
}

/* ---- tiles ---- */

static ALWAYS_INLINE void pairs_mxfp4(const tile *c, size_t T, size_t O)
{
    if (O % 2 == 0)
        pair_body(c, T, O / 2, (pairing){&mxfp4, pair_codes, 12});
    else
        body_mxfp4(c, T, O);
}

static ALWAYS_INLINE void pairs_q8(const tile *c, size_t T, size_t O)
{
    if (O % 2 == 0)
        pair_body(c, T, O / 2, (pairing){&q8, pair_bytes, 128});
    else
        body_q8(c, T, O);
}

static ALWAYS_INLINE void pairs_q4(const tile *c, size_t T, size_t O)
{
    if (O % 2 == 0)
        pair_body(c, T, O / 2, (pairing){&q4, pair_nibbles, 0});
    else
        body_q4(c, T, O);
}

MIMO_GEMM_Q8_KERNELS(avx512, pairs_mxfp4, pairs_q8, pairs_q4)
