/* Integer gemms with maddubs: unsigned bytes times signed bytes, neighbours added in 16 bits. A dword of the
 * activations (four k) is broadcast to all eight rows; one unpacking of the weights serves the rows of the tile. */
#include "cpu/variants.h"

#include "cpu/lanes/avx2.h"
#include "cpu/lanes/tile.h"

/* The compiler must not rearrange a sum into a tree: its terms would not fit the registers. */
#define KEEP_IN_ORDER(sum) __asm__("" : "+x"(sum))

/* Four consecutive q of one row, for every lane. */
static ALWAYS_INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

static ALWAYS_INLINE __m256i load32(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* The same place of the octets that come next: the hardware's own prefetch loses the stream at each octet. */
static ALWAYS_INLINE void prefetch_next(const tile *c, size_t offset, size_t bytes, size_t O)
{
    for (size_t o = 0; o < O; o++)
        for (size_t i = 0; i < bytes; i += 64)
            _mm_prefetch((const char *)c->data + (O + o) * c->data_bytes + offset + i, _MM_HINT_T0);
}

/* Codes become w + 12 (0 .. 24). All eight maddubs of a block are added in 16 bits: the sum of sixteen (w + 12) * q may
 * wrap, but it starts from -12 * (sum of those q), and the result, a sum of sixteen w * q, is at most 16 * 12 * 127 <
 * 2^15, so it is exact. */
static ALWAYS_INLINE void body_mxfp4(const tile *c, size_t T, size_t O)
{
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i minus12 = _mm256_set1_epi16(-12);
    KEEP_IN_ORDER(minus12);
    const size_t K = c->x->K, blocks = K / 32;
    __m256 acc[TILE_OCTETS][TILE_ROWS];
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            acc[o][t] = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++) {
        __m256i sum[TILE_OCTETS][TILE_ROWS];
        for (size_t t = 0; t < T; t++) {
            const __m256i sums = _mm256_set1_epi32(c->x->s[c->row[t] * blocks + b]);
            sum[0][t] = _mm256_mullo_epi16(sums, minus12);
            for (size_t o = 1; o < O; o++)
                sum[o][t] = sum[0][t];
        }
        if (T == 1)
            prefetch_next(c, b * 128, 128, O);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            __m256i low[TILE_OCTETS], high[TILE_OCTETS];
            for (size_t o = 0; o < O; o++) {
                const __m256i codes = load32(c->data + o * c->data_bytes + b * 128 + i * 32);
                low[o] = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
                high[o] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
            }
            for (size_t t = 0; t < T; t++) {
                const int8_t *q = c->x->q + c->row[t] * K + b * 32 + i * 8;
                const __m256i x0 = broadcast4(q), x1 = broadcast4(q + 4);
                for (size_t o = 0; o < O; o++) {
                    sum[o][t] = _mm256_add_epi16(sum[o][t], _mm256_maddubs_epi16(low[o], x0));
                    KEEP_IN_ORDER(sum[o][t]);
                    sum[o][t] = _mm256_add_epi16(sum[o][t], _mm256_maddubs_epi16(high[o], x1));
                    KEEP_IN_ORDER(sum[o][t]);
                }
            }
        }
        for (size_t o = 0; o < O; o++) {
            const f8 dw = f8_mul(f8_load_e8m0(c->scales + o * c->scale_bytes + b * 8), f8_set(0.5f));
            for (size_t t = 0; t < T; t++) {
                const __m256i dot = _mm256_madd_epi16(sum[o][t], _mm256_set1_epi16(1));
                const f8 d = f8_mul(dw, f8_set(c->x->d[c->row[t] * blocks + b]));
                acc[o][t] = f8_fma(d, _mm256_cvtepi32_ps(dot), acc[o][t]);
            }
        }
    }
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            f8_store(c->y[t] + 8 * o, acc[o][t]);
}

/* |w| times q with w's sign: 2 * 127 * 127 fits 16 bits, but only just, so every product is widened before it is added.
 */
static ALWAYS_INLINE void body_q8(const tile *c, size_t T, size_t O)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t K = c->x->K, blocks = K / 32;
    __m256 acc[TILE_OCTETS][TILE_ROWS];
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            acc[o][t] = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++) {
        __m256i sum[TILE_OCTETS][TILE_ROWS];
        for (size_t o = 0; o < O; o++)
            for (size_t t = 0; t < T; t++)
                sum[o][t] = _mm256_setzero_si256();
        if (T == 1)
            prefetch_next(c, b * 256, 256, O);
#pragma GCC unroll 8
        for (size_t g = 0; g < 8; g++) {
            __m256i w[TILE_OCTETS], magnitude[TILE_OCTETS];
            for (size_t o = 0; o < O; o++) {
                w[o] = load32(c->data + o * c->data_bytes + b * 256 + g * 32);
                magnitude[o] = _mm256_abs_epi8(w[o]);
            }
            for (size_t t = 0; t < T; t++) {
                const __m256i x = broadcast4(c->x->q + c->row[t] * K + b * 32 + g * 4);
                for (size_t o = 0; o < O; o++) {
                    const __m256i pairs = _mm256_maddubs_epi16(magnitude[o], _mm256_sign_epi8(x, w[o]));
                    sum[o][t] = _mm256_add_epi32(sum[o][t], _mm256_madd_epi16(pairs, ones));
                    KEEP_IN_ORDER(sum[o][t]);
                }
            }
        }
        for (size_t o = 0; o < O; o++) {
            const f8 dw = f8_load_bf16((const uint16_t *)(c->scales + o * c->scale_bytes) + b * 8);
            for (size_t t = 0; t < T; t++) {
                const f8 d = f8_mul(dw, f8_set(c->x->d[c->row[t] * blocks + b]));
                acc[o][t] = f8_fma(d, _mm256_cvtepi32_ps(sum[o][t]), acc[o][t]);
            }
        }
    }
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            f8_store(c->y[t] + 8 * o, acc[o][t]);
}

void mimo_avx2_gemm_q8_mxfp4(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                             const uint16_t *rows, size_t T)
{
    tile_run(body_mxfp4, 2, 2, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_avx2_gemm_q8_q8(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                          const uint16_t *rows, size_t T)
{
    tile_run(body_q8, 2, 2, y, ldy, w, octet, octets, x, rows, T);
}
