/* y[t, o] = sum_k w[o, k] * x[t, k], weights as stored and activations in float: the oracle. */
#include "cpu/variants.h"

#include "format/bf16.h"
#include "format/fp8.h"
#include "format/mxfp4.h"

#include <math.h>

/* w[8*octet + r, k] */
typedef float weight_at(const mimo_panel *w, size_t octet, size_t k, size_t r);

static inline void gemm(weight_at *at, float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets,
                        const mimo_act *x, const uint16_t *rows, size_t T)
{
    for (size_t t = 0; t < T; t++) {
        const float *f = x->f + (rows != NULL ? rows[t] : t) * x->K;
        for (size_t o = 0; o < 8 * octets; o++) {
            float acc = 0.0f;
            for (size_t k = 0; k < x->K; k++)
                acc = fmaf(at(w, octet + o / 8, k, o % 8), f[k], acc);
            y[t * ldy + o] = acc;
        }
    }
}

static inline float at_f32(const mimo_panel *w, size_t octet, size_t k, size_t r)
{
    return ((const float *)w->data)[(octet * w->cols + k) * 8 + r];
}

static inline float at_bf16(const mimo_panel *w, size_t octet, size_t k, size_t r)
{
    return mimo_bf16_decode(((const uint16_t *)w->data)[(octet * w->cols + k) * 8 + r]);
}

static inline float at_fp8(const mimo_panel *w, size_t octet, size_t k, size_t r)
{
    const size_t tiles = ((size_t)w->cols + 127) / 128;
    const float scale = ((const float *)w->scales)[(octet * tiles + k / 128) * 8 + r];
    return mimo_fp8_decode(w->data[(octet * w->cols + k) * 8 + r]) * scale;
}

static inline float at_mxfp4(const mimo_panel *w, size_t octet, size_t k, size_t r)
{
    const size_t block = octet * (w->cols / 32) + k / 32, i = k % 32 / 8, b = k % 4;
    const uint8_t pair = w->data[block * 128 + i * 32 + r * 4 + b];
    const uint8_t code = k % 8 < 4 ? pair & 15 : pair >> 4;
    return mimo_e2m1_decode(code) * mimo_e8m0_decode(w->scales[block * 8 + r]);
}

void mimo_ref_gemm_f32_f32(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                           const uint16_t *rows, size_t T)
{
    gemm(at_f32, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_ref_gemm_f32_bf16(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                            const uint16_t *rows, size_t T)
{
    gemm(at_bf16, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_ref_gemm_f32_fp8(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                           const uint16_t *rows, size_t T)
{
    gemm(at_fp8, y, ldy, w, octet, octets, x, rows, T);
}

void mimo_ref_gemm_f32_mxfp4(float *y, size_t ldy, const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                             const uint16_t *rows, size_t T)
{
    gemm(at_mxfp4, y, ldy, w, octet, octets, x, rows, T);
}
