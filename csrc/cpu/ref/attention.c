/* Attention of some query heads over one chunk of keys: the oracle. Chunks are merged by their (m, l, acc) elsewhere.
 */
#include "base/exp.h"
#include "cpu/variants.h"

#include "format/bf16.h"

#include <math.h>

typedef float element_at(const void *array, size_t i);

static inline float at_f32(const void *array, size_t i)
{
    return ((const float *)array)[i];
}

static inline float at_bf16(const void *array, size_t i)
{
    return mimo_bf16_decode(((const uint16_t *)array)[i]);
}

static inline void attend(element_at *at, float *m, float *l, float *acc, const float *q, size_t heads,
                          const mimo_keys *keys, float *scratch)
{
    const size_t begin = keys->begin, end = keys->end, D = keys->D, Dv = keys->Dv;
    for (size_t h = 0; h < heads; h++) {
        float *p = scratch, max = -INFINITY, lane[8] = {0};
        for (size_t j = begin; j < end; j++) {
            float sum = 0.0f;
            for (size_t d = 0; d < D; d++)
                sum = fmaf(q[h * D + d], at(keys->k, (j / 8 * D + d) * 8 + j % 8), sum);
            p[j] = sum * keys->scale;
            max = fmaxf(max, p[j]);
        }
        max = max + 0.0f; /* which zero a maximum of -0 and +0 is would depend on the order */
        for (size_t e = 0; e < Dv; e++)
            acc[h * Dv + e] = 0.0f;
        for (size_t j = begin; j < end; j++) {
            p[j] = mimo_expf(p[j] - max);
            lane[j % 8] += p[j];
            for (size_t e = 0; e < Dv; e++)
                acc[h * Dv + e] = fmaf(p[j], at(keys->v, j * Dv + e), acc[h * Dv + e]);
        }
        m[h] = max;
        l[h] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    }
}

void mimo_ref_attend_f32(float *m, float *l, float *acc, const float *q, size_t heads, const mimo_keys *keys,
                         float *scratch)
{
    attend(at_f32, m, l, acc, q, heads, keys, scratch);
}

void mimo_ref_attend_bf16(float *m, float *l, float *acc, const float *q, size_t heads, const mimo_keys *keys,
                          float *scratch)
{
    attend(at_bf16, m, l, acc, q, heads, keys, scratch);
}
