/* Kernels over one row of activations: norm, quantisation, SwiGLU, rotary embedding. The oracle. */
#include "base/exp.h"
#include "cpu/variants.h"

#include <math.h>

void mimo_ref_rms_norm(float *y, const float *x, const float *w, size_t H, float eps)
{
    float lane[8] = {0};
    for (size_t h = 0; h < H; h++)
        lane[h % 8] = fmaf(x[h], x[h], lane[h % 8]);
    const float sum = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    const float r = 1.0f / sqrtf(sum / (float)H + eps);
    for (size_t h = 0; h < H; h++)
        y[h] = x[h] * r * w[h];
}

static void quantize_block(int8_t q[32], float *d, int32_t *s, const float x[32])
{
    float amax = 0.0f;
    for (size_t k = 0; k < 32; k++)
        amax = fmaxf(amax, fabsf(x[k]));
    const float inverse = 127.0f / amax;
    const int is_zero = !isfinite(inverse);
    int32_t sum[2] = {0, 0};
    for (size_t k = 0; k < 32; k++) {
        q[k] = is_zero ? 0 : (int8_t)rintf(x[k] * inverse);
        sum[k % 4 / 2] += q[k];
    }
    *d = is_zero ? 0.0f : amax / 127.0f;
    *s = (int32_t)((uint32_t)sum[1] << 16 | ((uint32_t)sum[0] & 0xffffu));
}

void mimo_ref_quantize(int8_t *q, float *d, int32_t *s, const float *x, size_t K)
{
    for (size_t b = 0; b < K / 32; b++)
        quantize_block(q + 32 * b, d + b, s + b, x + 32 * b);
}

void mimo_ref_swiglu(float *h, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h[i] = gate[i] / (1.0f + mimo_expf(-gate[i])) * up[i];
}

void mimo_ref_rope(float *x, const float *cos, const float *sin, size_t R)
{
    for (size_t j = 0; j < R / 2; j++) {
        const float a = x[j], b = x[j + R / 2];
        x[j] = a * cos[j] - b * sin[j];
        x[j + R / 2] = b * cos[j] + a * sin[j];
    }
}
