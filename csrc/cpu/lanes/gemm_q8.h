/* Integer gemms. Four k of a row of x (a dword) meet the same four k of eight rows of w at a time; one unpacking of the
 * weights serves all rows of the tile. Include after the lanes and these, which know the instructions, and make the
 * kernels with MIMO_GEMM_Q8_KERNELS:
 *
 *   ints                           32 bytes of operands, or the sums made of them
 *   weights                        the same of weights, with what one unpacking finds out about them
 *   ints_broadcast(q)              four int8, for every row of w
 *   ints_zero()                    sums of nothing
 *   codes_load(p, g)               MXFP4 codes of k = 4*g .. 4*g + 3 of the block that begins at p
 *   codes_start(s)                 sums of one block of codes begin here; s: mimo_act's sums of the block
 *   codes_add(sum, w, x)           four products added in each row
 *   codes_finish(sum)              the eight dot products, as floats
 *   bytes_load, _start, ...        the same for Q8
 *   levels_load(p, g)              as codes_load, of Q4: operands that codes_add and codes_finish take, from zero */
#include "cpu/lanes/tile.h"

typedef struct row_pointers {
    const int8_t *q;
    const float *d;
    const int32_t *s;
} row_pointers;

static ALWAYS_INLINE row_pointers pointers_of(const tile *c, size_t t)
{
    const size_t K = c->x->K, row = c->row[t];
    return (row_pointers){c->x->q + row * K, c->x->d + row * (K / 32), c->x->s + row * (K / 32)};
}

static ALWAYS_INLINE void tile_begin(const tile *c, row_pointers x[TILE_ROWS], f8 acc[TILE_OCTETS][TILE_ROWS], size_t T,
                                     size_t O)
{
    for (size_t t = 0; t < T; t++) {
        x[t] = pointers_of(c, t);
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

/* A packing of weights; all constant once inlined. */
typedef struct packing {
    size_t block_bytes;
    weights (*load)(const uint8_t *p, size_t g);
    ints (*start)(int32_t s);
    ints (*add)(ints sum, weights w, ints x);
    f8 (*finish)(ints sum);
    f8 (*scale)(const uint8_t *scales, size_t block);
    f8 (*least)(const uint8_t *scales, size_t block); /* NULL: weights are multiples of their scale */
} packing;

/* Half the block scale, since operands are doubled; exact for every code, subnormal or not. */
static ALWAYS_INLINE f8 codes_scale(const uint8_t *scales, size_t block)
{
    return f8_mul(f8_load_e8m0(scales + block * 8), f8_set(0.5f));
}

static ALWAYS_INLINE f8 bytes_scale(const uint8_t *scales, size_t block)
{
    return f8_load_bf16((const uint16_t *)(const void *)scales + block * 8);
}

static ALWAYS_INLINE f8 levels_scale(const uint8_t *scales, size_t block)
{
    return f8_load_f16((const uint16_t *)(const void *)scales + block * 16);
}

static ALWAYS_INLINE f8 levels_least(const uint8_t *scales, size_t block)
{
    return f8_load_f16((const uint16_t *)(const void *)scales + block * 16 + 8);
}

/* Weights that are not offset: nothing to take back. */
static ALWAYS_INLINE ints levels_start(int32_t s)
{
    (void)s;
    return ints_zero();
}

/* What a row of x adds to every weight's least value. */
static ALWAYS_INLINE f8 of_least(const row_pointers *x, size_t block)
{
    return f8_set(x->d[block] * (float)mimo_act_sum(x->s[block]));
}

static ALWAYS_INLINE void body(const tile *c, size_t T, size_t O, packing p)
{
    row_pointers x[TILE_ROWS];
    f8 acc[TILE_OCTETS][TILE_ROWS];
    tile_begin(c, x, acc, T, O);
    for (size_t b = 0; b < c->x->K / 32; b++) {
        ints sum[TILE_OCTETS][TILE_ROWS];
        for (size_t t = 0; t < T; t++) {
            const ints start = p.start(x[t].s[b]);
            for (size_t o = 0; o < O; o++)
                sum[o][t] = start;
        }
        tile_fetch(c, b);
#pragma GCC unroll 8
        for (size_t g = 0; g < 8; g++) {
            weights w[TILE_OCTETS];
            for (size_t o = 0; o < O; o++)
                w[o] = p.load(c->data + o * c->data_bytes + b * p.block_bytes, g);
            for (size_t t = 0; t < T; t++) {
                const ints four = ints_broadcast(x[t].q + 4 * g);
                for (size_t o = 0; o < O; o++)
                    sum[o][t] = p.add(sum[o][t], w[o], four);
            }
        }
        for (size_t t = 0; t < T; t++)
            x[t].q += 32;
        for (size_t o = 0; o < O; o++) {
            const f8 dw = p.scale(c->scales + o * c->scale_bytes, b);
            for (size_t t = 0; t < T; t++)
                acc[o][t] = f8_fma(f8_mul(dw, f8_set(x[t].d[b])), p.finish(sum[o][t]), acc[o][t]);
            if (p.least != NULL) {
                const f8 least = p.least(c->scales + o * c->scale_bytes, b);
                for (size_t t = 0; t < T; t++)
                    acc[o][t] = f8_fma(least, of_least(&x[t], b), acc[o][t]);
            }
        }
    }
    tile_end(c, acc, T, O);
}

static const packing mxfp4 = {128, codes_load, codes_start, codes_add, codes_finish, codes_scale, NULL};
static const packing q8 = {256, bytes_load, bytes_start, bytes_add, bytes_finish, bytes_scale, NULL};
static const packing q4 = {128, levels_load, levels_start, codes_add, codes_finish, levels_scale, levels_least};

static ALWAYS_INLINE void body_mxfp4(const tile *c, size_t T, size_t O)
{
    body(c, T, O, mxfp4);
}

static ALWAYS_INLINE void body_q8(const tile *c, size_t T, size_t O)
{
    body(c, T, O, q8);
}

static ALWAYS_INLINE void body_q4(const tile *c, size_t T, size_t O)
{
    body(c, T, O, q4);
}

#define MIMO_GEMM_Q8(name, body)                                                                                       \
    void name(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,               \
              const uint16_t *rows, size_t T)                                                                          \
    {                                                                                                                  \
        tile_run(body, 2, y, ldy, w, octet, octets, x, rows, T);                                                       \
    }

/* The kernels of variant V, by the bodies of its tiles. */
#define MIMO_GEMM_Q8_KERNELS(V, mxfp4, q8, q4)                                                                         \
    MIMO_GEMM_Q8(mimo_##V##_gemm_q8_mxfp4, mxfp4)                                                                      \
    MIMO_GEMM_Q8(mimo_##V##_gemm_q8_q8, q8)                                                                            \
    MIMO_GEMM_Q8(mimo_##V##_gemm_q8_q4, q4)
