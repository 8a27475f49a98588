/* Integer gemms. Four k of a row of x (a dword) meet the same four k of eight rows of w at a time; one unpacking of the
 * weights serves all rows of the tile. Include after the lanes, with MIMO_KERNEL(name) and these, which know the
 * instructions:
 *
 *   ints                           32 bytes of operands, or the sums made of them
 *   ints_broadcast(q)              four int8, for every row of w
 *   codes_load(p, &low, &high)     32 bytes of MXFP4 codes as operands: k = 0..3 and k = 4..7
 *   codes_start(s)                 sums of one block of codes begin here; s: mimo_act's sums of the block
 *   codes_add(sum, w, x)           four products added in each row
 *   codes_finish(sum)              the eight dot products, as floats
 *   bytes32, bytes_load(p)         32 bytes of Q8 as operands
 *   bytes_start, _add, _finish     the same for Q8 */
#include "cpu/lanes/tile.h"

typedef struct row_pointers {
    const int8_t *q;
    const float *d;
    const int32_t *s;
} row_pointers;

static ALWAYS_INLINE void tile_begin(const tile *c, row_pointers x[TILE_ROWS], f8 acc[TILE_OCTETS][TILE_ROWS], size_t T,
                                     size_t O)
{
    for (size_t t = 0; t < T; t++) {
        const size_t K = c->x->K;
        x[t] = (row_pointers){c->x->q + c->row[t] * K, c->x->d + c->row[t] * (K / 32), c->x->s + c->row[t] * (K / 32)};
        for (size_t o = 0; o < O; o++)
            acc[o][t] = f8_set(0.0f);
    }
}

static ALWAYS_INLINE void tile_end(const tile *c, f8 acc[TILE_OCTETS][TILE_ROWS], size_t T, size_t O)
{
    for (size_t o = 0; o < O; o++)
        for (size_t t = 0; t < T; t++)
            f8_store(c->y[t] + 8 * o, acc[o][t]);
}

static ALWAYS_INLINE void body_mxfp4(const tile *c, size_t T, size_t O)
{
    row_pointers x[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS];
    tile_begin(c, x, acc, T, O);
    for (size_t b = 0; b < c->x->K / 32; b++) {
        ints sum[TILE_OCTETS][TILE_ROWS];
        for (size_t t = 0; t < T; t++) {
            const ints start = codes_start(x[t].s[b]);
            for (size_t o = 0; o < O; o++)
                sum[o][t] = start;
        }
        tile_fetch(c, b);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            ints low[TILE_OCTETS], high[TILE_OCTETS];
            for (size_t o = 0; o < O; o++)
                codes_load(c->data + o * c->data_bytes + b * 128 + i * 32, &low[o], &high[o]);
            for (size_t t = 0; t < T; t++) {
                const ints x0 = ints_broadcast(x[t].q + 8 * i), x1 = ints_broadcast(x[t].q + 8 * i + 4);
                for (size_t o = 0; o < O; o++)
                    sum[o][t] = codes_add(codes_add(sum[o][t], low[o], x0), high[o], x1);
            }
        }
        for (size_t t = 0; t < T; t++)
            x[t].q += 32;
        for (size_t o = 0; o < O; o++) {
            /* Half the block scale, since operands are doubled; exact for every code, subnormal or not. */
            const f8 dw = f8_mul(f8_load_e8m0(c->scales + o * c->scale_bytes + b * 8), f8_set(0.5f));
            for (size_t t = 0; t < T; t++)
                acc[o][t] = f8_fma(f8_mul(dw, f8_set(x[t].d[b])), codes_finish(sum[o][t]), acc[o][t]);
        }
    }
    tile_end(c, acc, T, O);
}

static ALWAYS_INLINE void body_q8(const tile *c, size_t T, size_t O)
{
    row_pointers x[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS];
    tile_begin(c, x, acc, T, O);
    for (size_t b = 0; b < c->x->K / 32; b++) {
        ints sum[TILE_OCTETS][TILE_ROWS];
        for (size_t t = 0; t < T; t++) {
            const ints start = bytes_start(x[t].s[b]);
            for (size_t o = 0; o < O; o++)
                sum[o][t] = start;
        }
        tile_fetch(c, b);
#pragma GCC unroll 8
        for (size_t g = 0; g < 8; g++) {
            bytes32 w[TILE_OCTETS];
            for (size_t o = 0; o < O; o++)
                w[o] = bytes_load(c->data + o * c->data_bytes + b * 256 + g * 32);
            for (size_t t = 0; t < T; t++) {
                const ints x0 = ints_broadcast(x[t].q + 4 * g);
                for (size_t o = 0; o < O; o++)
                    sum[o][t] = bytes_add(sum[o][t], w[o], x0);
            }
        }
        for (size_t t = 0; t < T; t++)
            x[t].q += 32;
        for (size_t o = 0; o < O; o++) {
            const f8 dw = f8_load_bf16((const uint16_t *)(c->scales + o * c->scale_bytes) + b * 8);
            for (size_t t = 0; t < T; t++)
                acc[o][t] = f8_fma(f8_mul(dw, f8_set(x[t].d[b])), bytes_finish(sum[o][t]), acc[o][t]);
        }
    }
    tile_end(c, acc, T, O);
}

void MIMO_KERNEL(gemm_q8_mxfp4)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                                const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile_run(body_mxfp4, 2, 2, y, ldy, w, octet, octets, x, rows, T);
}

void MIMO_KERNEL(gemm_q8_q8)(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                             const uint16_t *rows, size_t T)
{
    tile_run(body_q8, 2, 2, y, ldy, w, octet, octets, x, rows, T);
}
