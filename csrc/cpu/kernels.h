/* The kernels of the CPU engine: one table per instruction set, the same names in every folder.
 *
 * ref/ is plain C and is the oracle. The order of every floating-point operation is part of each contract, so that all
 * variants give the same bits: a fused multiply-add is always fma (fmaf in ref/), a plain product or sum is rounded on
 * its own
 * (-ffp-contract=off), and a sum over a long axis is kept in the lanes stated. Nothing here allocates, and any thread
 * may call any kernel on disjoint outputs. Shapes were checked when the plan was built. */
#ifndef MIMO_CPU_KERNELS_H
#define MIMO_CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "cpu/panel.h"

/* Weights that are read soon: octets of a panel. NULL data: nothing known. */
typedef struct mimo_ahead {
    const uint8_t *data, *scales;
    size_t bytes; /* of data */
} mimo_ahead;

/* Activation rows [*, K], row-major. Exact kernels read f; fast kernels read q, d and s: x[k] ~ q[k] * d[k/32]. */
typedef struct mimo_act {
    const float *f;
    const int8_t *q; /* -127 .. 127 */
    const float *d;  /* [*, K/32] */
    const int32_t
        *s; /* [*, K/32] sums of q over its block, two int16: low half over k % 4 = 0, 1, high half over k % 4 = 2, 3 */
    size_t K;
    mimo_ahead ahead; /* what the caller reads after this call: asked for on the way, without effect on any result */
} mimo_act;

/* The sum of q over a block. */
static inline int32_t mimo_act_sum(int32_t s)
{
    return (int16_t)s + (s >> 16);
}

/* y[t*ldy + 8*i + r] = sum_k w[8*(octet+i) + r, k] * x[rows[t], k]   for t < T, i < octets; rows NULL: row t.
 * y is written, not added to; ldy >= 8*octets, 8 floats of slack are not needed.
 * Float (exact) kernels, one accumulator per (row, t), k ascending:        acc = fma(w, x[k], acc)
 *   FP8: w = e4m3 * scale rounded once (float product);  MXFP4: w = e2m1 * 2^e (exact).
 * Integer (fast) kernels, block b of 32 ascending: acc = fma(dw * dx, (float)dot_b, acc), dot_b the exact integer
 *   sum over the block of wq * q; MXFP4: wq = doubled E2M1 (-12..12), dw = 2^(e-128) i.e. half the block scale; Q8: dw
 *   = BF16 scale; Q4: wq = 0..15, dw the step, and then acc = fma(m, dx * (float)sum_b, acc), m the least value, sum_b
 *   the sum of q over the block. dw * dx and dx * sum_b are rounded once. MXFP4 scale codes 0 and 1 give subnormal
 *   halves: dw must still be right. */
typedef void mimo_gemm(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                       const uint16_t *rows, size_t T);

/* Keys and values of one key/value head in a chunk of positions, of which begin <= j < end count. Memory of k outside
 * of them may be anything (NaN too) and does not matter. */
typedef struct mimo_keys {
    const void *k;     /* in groups of 8: [group][D][8] */
    const void *v;     /* [position][Dv] */
    size_t begin, end; /* end <= 256 */
    size_t D, Dv;
    float scale;
    mimo_ahead ahead_k, ahead_v; /* keys and values that are read after these, as mimo_act's; without scales */
} mimo_keys;

/* A chunk of keys for `heads` query heads, q [heads, D], that share a key/value head.
 *   score[h][j] = (sum_d fma(q[h][d], k[j][d]), d ascending) * scale;  m[h] = max_j score (never -0);
 *   p[h][j] = mimo_expf(score - m);  l[h] = sum_j p in 8 lanes (lane j % 8), added as rms_norm does;
 *   acc[h][e] = sum_j fma(p[h][j], v[j][e], acc), j ascending from 0. */
typedef void mimo_attend(float *m, float *l, float *acc, const float *q, size_t heads, const mimo_keys *keys,
                         float *scratch);
enum { MIMO_ATTEND_HEADS = 6, MIMO_ATTEND_SCRATCH = MIMO_ATTEND_HEADS * 256 }; /* floats of scratch */

typedef struct mimo_kernels {
    const char *name; /* "ref", "avx2", "avxvnni", "avx512", "neon" */

    /* By packing; NULL where the combination does not exist (float: Q8, Q4; integer: F32, BF16, FP8). */
    mimo_gemm *gemm_f32[MIMO_PACK_COUNT];
    mimo_gemm *gemm_q8[MIMO_PACK_COUNT];

    /* y[h] = x[h] * r * w[h] as (x*r)*w, r = 1 / sqrtf(sum/H + eps). The sum of squares is kept in 8 lanes (lane h % 8,
     * acc = fma(x, x, acc)), then added as ((0+4)+(2+6)) + ((1+5)+(3+7)). Any H. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, size_t H, float eps);

    /* Per block of 32: d = amax/127 (0 for a block of zeros), q = round-to-nearest-even(x * (127/amax)), s as in
     * mimo_act. K % 32 == 0. x is finite. If 127/amax is not finite (amax below about 2^-121) the block is stored as
     * zeros. */
    void (*quantize)(int8_t *q, float *d, int32_t *s, const float *x, size_t K);

    /* h[i] = (gate[i] / (1 + exp(-gate[i]))) * up[i], exp as mimo_expf of base/exp.h. h may be gate or up. */
    void (*swiglu)(float *h, const float *gate, const float *up, size_t n);

    /* NeoX (half-split) rotary embedding, in place, pairs (j, j + R/2):
     *   x[j]' = x[j]*cos[j] - x[j+R/2]*sin[j],  x[j+R/2]' = x[j+R/2]*cos[j] + x[j]*sin[j];  products rounded, then
     * added. */
    void (*rope)(float *x, const float *cos, const float *sin, size_t R);

    mimo_attend *attend_f32, *attend_bf16; /* of float, of BF16 (uint16) keys and values */
} mimo_kernels;

/* The variant called `name`, or the best one this CPU runs when name is NULL or "". "ref", "avx2", "avxvnni", "avx512",
 * "neon" that are not compiled in or lack CPU features are MIMO_ERR_UNSUPPORTED, with what is missing. */
MIMO_MUST_CHECK mimo_status mimo_kernels_choose(const mimo_kernels **out, const char *name, mimo_error *err);

/* Every name, worst first, for lists: NULL-terminated; *why is NULL when the variant runs here, else the reason it does
 * not. */
extern const char *const mimo_kernel_names[];
const mimo_kernels *mimo_kernels_find(const char *name, const char **why);

#endif
