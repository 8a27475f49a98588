/* Kernels over one row of activations. Include after the lanes and with MIMO_KERNEL(name) defined. */
#include "cpu/lanes/exp.h"

#include <math.h>

void MIMO_KERNEL(rms_norm)(float *y, const float *x, const float *w, size_t H, float eps)
{
    f8 lanes = f8_set(0.0f);
    size_t h = 0;
    for (; h + 8 <= H; h += 8) {
        const f8 v = f8_load(x + h);
        lanes = f8_fma(v, v, lanes);
    }
    float lane[8];
    f8_store(lane, lanes);
    for (; h < H; h++)
        lane[h % 8] = fmaf(x[h], x[h], lane[h % 8]);
    const float r = 1.0f / sqrtf(f8_sum(f8_load(lane)) / (float)H + eps);
    for (h = 0; h + 8 <= H; h += 8)
        f8_store(y + h, f8_mul(f8_mul(f8_load(x + h), f8_set(r)), f8_load(w + h)));
    for (; h < H; h++)
        y[h] = x[h] * r * w[h];
}

void MIMO_KERNEL(quantize)(int8_t *q, float *d, int32_t *s, const float *x, size_t K)
{
    for (size_t b = 0; b < K / 32; b++) {
        f8 v[4], high = f8_set(0.0f);
        for (size_t i = 0; i < 4; i++) {
            v[i] = f8_load(x + 32 * b + 8 * i);
            high = f8_max(high, f8_abs(v[i]));
        }
        const float amax = f8_highest(high), inverse = 127.0f / amax;
        if (isfinite(inverse)) {
            d[b] = amax / 127.0f;
            s[b] = f8_quantize_block(q + 32 * b, v, f8_set(inverse));
        } else {
            d[b] = 0.0f;
            s[b] = 0;
            memset(q + 32 * b, 0, 32);
        }
    }
}

void MIMO_KERNEL(swiglu)(float *h, const float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const f8 g = f8_load(gate + i);
        const f8 silu = f8_div(g, f8_add(f8_set(1.0f), f8_exp(f8_neg(g))));
        f8_store(h + i, f8_mul(silu, f8_load(up + i)));
    }
    for (; i < n; i++)
        h[i] = gate[i] / (1.0f + mimo_expf(-gate[i])) * up[i];
}

void MIMO_KERNEL(rope)(float *x, const float *cos, const float *sin, size_t R)
{
    float *x2 = x + R / 2;
    size_t j = 0;
    for (; j + 8 <= R / 2; j += 8) {
        const f8 a = f8_load(x + j), b = f8_load(x2 + j), c = f8_load(cos + j), s = f8_load(sin + j);
        f8_store(x + j, f8_sub(f8_mul(a, c), f8_mul(b, s)));
        f8_store(x2 + j, f8_add(f8_mul(b, c), f8_mul(a, s)));
    }
    for (; j < R / 2; j++) {
        const float a = x[j], b = x2[j];
        x[j] = a * cos[j] - b * sin[j];
        x2[j] = b * cos[j] + a * sin[j];
    }
}
