/* Exact gemms. One accumulator per (row of w, row of x) and k ascending: the lanes hide the latency of fma by many
 * octets or rows at a time, never by splitting a sum. Include after the lanes and with MIMO_KERNEL(name) defined. */
#include "cpu/lanes/tile.h"

/* weights[octet] = w[8*octet + lane, k] */
#define EACH_PRODUCT(weights, k)                                                                                       \
    for (size_t t = 0; t < T; t++) {                                                                                   \
        const f8 x = f8_set(f[t][k]);                                                                                  \
        for (size_t o = 0; o < O; o++)                                                                                 \
            acc[o][t] = f8_fma(weights[o], x, acc[o][t]);                                                              \
    }

static ALWAYS_INLINE void tile_begin(const tile *c, const float *f[TILE_ROWS], f8 acc[TILE_OCTETS][TILE_ROWS], size_t T,
                                     size_t O)
{
    for (size_t t = 0; t < T; t++)
        f[t] = c->x->f + c->row[t] * c->x->K;
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            acc[o][t] = f8_set(0.0f);
}

static ALWAYS_INLINE void tile_end(const tile *c, f8 acc[TILE_OCTETS][TILE_ROWS], size_t T, size_t O)
{
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            f8_store(c->y[t] + 8 * o, acc[o][t]);
}

static ALWAYS_INLINE void body_f32(const tile *c, size_t T, size_t O)
{
    const float *f[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS], w[TILE_OCTETS];
    tile_begin(c, f, acc, T, O);
    for (size_t k = 0; k < c->x->K; k++) {
        for (size_t o = 0; o < O; o++)
            w[o] = f8_load((const float *)(c->data + o * c->data_bytes) + 8 * k);
        EACH_PRODUCT(w, k)
    }
    tile_end(c, acc, T, O);
}

static ALWAYS_INLINE void body_bf16(const tile *c, size_t T, size_t O)
{
    const float *f[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS], w[TILE_OCTETS];
    tile_begin(c, f, acc, T, O);
    for (size_t k = 0; k < c->x->K; k++) {
        for (size_t o = 0; o < O; o++)
            w[o] = f8_load_bf16((const uint16_t *)(c->data + o * c->data_bytes) + 8 * k);
        EACH_PRODUCT(w, k)
    }
    tile_end(c, acc, T, O);
}

static ALWAYS_INLINE void body_fp8(const tile *c, size_t T, size_t O)
{
    const float *f[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS], w[TILE_OCTETS], scale[TILE_OCTETS];
    const size_t K = c->x->K;
    tile_begin(c, f, acc, T, O);
    for (size_t begin = 0; begin < K; begin += 128) {
        const size_t end = K - begin < 128 ? K : begin + 128;
        for (size_t o = 0; o < O; o++)
            scale[o] = f8_load((const float *)(c->scales + o * c->scale_bytes) + begin / 128 * 8);
        for (size_t k = begin; k < end; k++) {
            for (size_t o = 0; o < O; o++)
                w[o] = f8_mul(f8_load_fp8(c->data + o * c->data_bytes + 8 * k), scale[o]);
            EACH_PRODUCT(w, k)
        }
    }
    tile_end(c, acc, T, O);
}

static ALWAYS_INLINE void body_mxfp4(const tile *c, size_t T, size_t O)
{
    const float *f[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS], w[TILE_OCTETS], scale[TILE_OCTETS];
    tile_begin(c, f, acc, T, O);
    for (size_t i = 0; i < c->x->K / 8; i++) {
        codes8 codes[TILE_OCTETS];
        for (size_t o = 0; o < O; o++) {
            scale[o] = f8_load_e8m0(c->scales + o * c->scale_bytes + i / 4 * 8);
            codes[o] = codes8_load(c->data + o * c->data_bytes + i * 32);
        }
        for (size_t b = 0; b < 8; b++) { /* the low nibbles of the four bytes, then the high ones */
            for (size_t o = 0; o < O; o++)
                w[o] = f8_mul(codes8_value(codes[o], (int)(b % 4 * 2 + b / 4)), scale[o]);
            EACH_PRODUCT(w, 8 * i + b)
        }
    }
    tile_end(c, acc, T, O);
}

void MIMO_KERNEL(gemm_f32_f32)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                               const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile_run(body_f32, 4, y, ldy, w, octet, octets, x, rows, T);
}

void MIMO_KERNEL(gemm_f32_bf16)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                                const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile_run(body_bf16, 4, y, ldy, w, octet, octets, x, rows, T);
}

void MIMO_KERNEL(gemm_f32_fp8)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                               const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile_run(body_fp8, 4, y, ldy, w, octet, octets, x, rows, T);
}

void MIMO_KERNEL(gemm_f32_mxfp4)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                                 const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile_run(body_mxfp4, 4, y, ldy, w, octet, octets, x, rows, T);
}

#undef EACH_PRODUCT
