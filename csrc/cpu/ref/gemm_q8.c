/* y[t, o] = sum_b dw[o, b] * dx[t, b] * sum_{k in b} wq[o, k] * q[t, k]: integer dot products of blocks of 32, the
 * oracle. */
#include "cpu/variants.h"

#include "format/bf16.h"
#include "format/f16.h"
#include "format/mxfp4.h"

#include <math.h>

/* The exact dot product of one block with row r of an octet; `block` counts over the whole panel. */
typedef int32_t block_dot(const mimo_panel *w, size_t block, size_t r, const int8_t q[32]);
typedef float block_scale(const mimo_panel *w, size_t block, size_t r);

/* least NULL: weights are multiples of their scale. */
static inline void gemm(block_dot *dot, block_scale *scale, block_scale *least, float *y, size_t ldy,
                        const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x, const uint16_t *rows,
                        size_t T)
{
    const size_t blocks = x->K / 32;
    for (size_t t = 0; t < T; t++) {
        const size_t row = rows != NULL ? rows[t] : t;
        for (size_t o = 0; o < 8 * octets; o++) {
            float acc = 0.0f;
            for (size_t b = 0; b < blocks; b++) {
                const size_t block = (octet + o / 8) * blocks + b;
                const float d = scale(w, block, o % 8) * x->d[row * blocks + b];
                acc = fmaf(d, (float)dot(w, block, o % 8, x->q + row * x->K + b * 32), acc);
                if (least != NULL)
                    acc = fmaf(least(w, block, o % 8),
                               x->d[row * blocks + b] * (float)mimo_act_sum(x->s[row * blocks + b]), acc);
            }
            y[t * ldy + o] = acc;
        }
    }
}

/* value(code): what a nibble stands for. */
static inline int32_t dot_nibbles(int (*value)(uint8_t code), const mimo_panel *w, size_t block, size_t r,
                                  const int8_t q[32])
{
    int32_t sum = 0;
    for (size_t i = 0; i < 4; i++) {
        for (size_t b = 0; b < 4; b++) {
            const uint8_t pair = w->data[block * 128 + i * 32 + r * 4 + b];
            sum += value(pair & 15) * q[8 * i + b] + value(pair >> 4) * q[8 * i + 4 + b];
        }
    }
    return sum;
}

static inline int32_t dot_mxfp4(const mimo_panel *w, size_t block, size_t r, const int8_t q[32])
{
    return dot_nibbles(mimo_e2m1_doubled, w, block, r, q);
}

static inline float scale_mxfp4(const mimo_panel *w, size_t block, size_t r)
{
    return mimo_e8m0_decode(w->scales[block * 8 + r]) * 0.5f;
}

static inline int32_t dot_q8(const mimo_panel *w, size_t block, size_t r, const int8_t q[32])
{
    const int8_t *data = (const int8_t *)w->data + block * 256;
    int32_t sum = 0;
    for (size_t k = 0; k < 32; k++)
        sum += data[k / 4 * 32 + r * 4 + k % 4] * q[k];
    return sum;
}

static inline float scale_q8(const mimo_panel *w, size_t block, size_t r)
{
    return mimo_bf16_decode(((const uint16_t *)w->scales)[block * 8 + r]);
}

static inline int level(uint8_t code)
{
    return code;
}

static inline int32_t dot_q4(const mimo_panel *w, size_t block, size_t r, const int8_t q[32])
{
    return dot_nibbles(level, w, block, r, q);
}

static inline float scale_q4(const mimo_panel *w, size_t block, size_t r)
{
    return mimo_f16_decode(((const uint16_t *)w->scales)[block * 16 + r]);
}

static inline float least_q4(const mimo_panel *w, size_t block, size_t r)
{
    return mimo_f16_decode(((const uint16_t *)w->scales)[block * 16 + 8 + r]);
}

void mimo_ref_gemm_q8_mxfp4(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                            const uint16_t *rows, size_t T)
{
    gemm(dot_mxfp4, scale_mxfp4, NULL, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_ref_gemm_q8_q8(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                         const uint16_t *rows, size_t T)
{
    gemm(dot_q8, scale_q8, NULL, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_ref_gemm_q8_q4(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                         const uint16_t *rows, size_t T)
{
    gemm(dot_q4, scale_q4, least_q4, y, ldy, w, octet, octets, x, rows, T);
}
