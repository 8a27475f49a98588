/* Attention of some query heads over one chunk of keys. Lanes are keys while scoring and value elements while adding;
 * up to four heads share every load of a key or a value, and so many sums are made at a time that none waits for
 * itself. Include after the lanes and with MIMO_KERNEL(name) defined. */
#include "cpu/lanes/exp.h"

#include "format/bf16.h"

#include <math.h>

enum { ATTEND_HEADS = 4, ATTEND_GROUPS = 4, CHUNK = 256 };

typedef f8 load8(const void *array, size_t i);
typedef float load1(const void *array, size_t i);

static ALWAYS_INLINE f8 load8_f32(const void *array, size_t i)
{
    return f8_load((const float *)array + i);
}

static ALWAYS_INLINE f8 load8_bf16(const void *array, size_t i)
{
    return f8_load_bf16((const uint16_t *)array + i);
}

static ALWAYS_INLINE float load1_f32(const void *array, size_t i)
{
    return ((const float *)array)[i];
}

static ALWAYS_INLINE float load1_bf16(const void *array, size_t i)
{
    return mimo_bf16_decode(((const uint16_t *)array)[i]);
}

/* p[h][8*group ..] = scores of G groups of keys for N heads. */
static ALWAYS_INLINE void score(load8 *load, float *p, const float *q, const void *k, size_t group, size_t D,
                                float scale, size_t N, size_t G)
{
    f8 sum[ATTEND_HEADS][ATTEND_GROUPS];
    for (size_t h = 0; h < N; h++)
        for (size_t g = 0; g < G; g++)
            sum[h][g] = f8_set(0.0f);
    for (size_t d = 0; d < D; d++) {
        f8 x[ATTEND_HEADS];
        for (size_t h = 0; h < N; h++)
            x[h] = f8_set(q[h * D + d]);
        for (size_t g = 0; g < G; g++) {
            const f8 key = load(k, ((group + g) * D + d) * 8);
            for (size_t h = 0; h < N; h++)
                sum[h][g] = f8_fma(x[h], key, sum[h][g]);
        }
    }
    for (size_t h = 0; h < N; h++)
        for (size_t g = 0; g < G; g++)
            f8_store(p + h * CHUNK + 8 * (group + g), f8_mul(sum[h][g], f8_set(scale)));
}

/* The lanes of group g (of eight keys) that lie in [begin, end), as f8_keep_range wants them. */
static inline f8 keep_keys(f8 x, float other, size_t g, size_t begin, size_t end)
{
    const int low = begin > 8 * g ? (int)(begin - 8 * g) : 0;
    const int high = end - 8 * g < 8 ? (int)(end - 8 * g) : 8;
    return f8_keep_range(x, f8_set(other), low, high);
}

/* Scores become probabilities relative to their maximum; those outside [begin, end) become 0. */
static void soften(float *m, float *l, float *p, size_t begin, size_t end)
{
    const size_t first = begin / 8, last = (end + 7) / 8;
    f8 high = f8_set(-INFINITY), sum = f8_set(0.0f);
    for (size_t g = first; g < last; g++)
        high = f8_max(high, keep_keys(f8_load(p + 8 * g), -INFINITY, g, begin, end));
    const float max = f8_highest(high) + 0.0f; /* never -0 */
    for (size_t g = first; g < last; g++) {
        const f8 e = keep_keys(f8_exp(f8_sub(f8_load(p + 8 * g), f8_set(max))), 0.0f, g, begin, end);
        f8_store(p + 8 * g, e);
        sum = f8_add(sum, e);
    }
    *m = max;
    *l = f8_sum(sum);
}

/* acc[h][e .. e + 8*V) = sum_j p[h][j] * v[j][e ..] for N heads. */
static ALWAYS_INLINE void add_values(load8 *load, float *acc, const float *p, const void *v, size_t begin, size_t end,
                                     size_t Dv, size_t e, size_t N, size_t V)
{
    f8 sum[ATTEND_HEADS][ATTEND_GROUPS];
    for (size_t h = 0; h < N; h++)
        for (size_t i = 0; i < V; i++)
            sum[h][i] = f8_set(0.0f);
    for (size_t j = begin; j < end; j++) {
        f8 x[ATTEND_HEADS];
        for (size_t h = 0; h < N; h++)
            x[h] = f8_set(p[h * CHUNK + j]);
        for (size_t i = 0; i < V; i++) {
            const f8 value = load(v, j * Dv + e + 8 * i);
            for (size_t h = 0; h < N; h++)
                sum[h][i] = f8_fma(x[h], value, sum[h][i]);
        }
    }
    for (size_t h = 0; h < N; h++)
        for (size_t i = 0; i < V; i++)
            f8_store(acc + h * Dv + e + 8 * i, sum[h][i]);
}

static ALWAYS_INLINE void attend_heads(load8 *load, load1 *load_one, float *m, float *l, float *acc, const float *q,
                                       const void *k, const void *v, size_t begin, size_t end, size_t D, size_t Dv,
                                       float scale, float *p, size_t N)
{
    const size_t last = (end + 7) / 8;
    size_t g = begin / 8, e = 0;
    const size_t keys = N <= 3 ? 3 : 2, values = N <= 3 ? 4 : 2; /* vectors whose sums all stay in registers */
    for (; g + keys <= last; g += keys)
        score(load, p, q, k, g, D, scale, N, keys);
    for (; g + 2 <= last; g += 2)
        score(load, p, q, k, g, D, scale, N, 2);
    if (g < last)
        score(load, p, q, k, g, D, scale, N, 1);
    for (size_t h = 0; h < N; h++)
        soften(m + h, l + h, p + h * CHUNK, begin, end);
    for (; e + 8 * values <= Dv; e += 8 * values)
        add_values(load, acc, p, v, begin, end, Dv, e, N, values);
    for (; e + 16 <= Dv; e += 16)
        add_values(load, acc, p, v, begin, end, Dv, e, N, 2);
    for (; e + 8 <= Dv; e += 8)
        add_values(load, acc, p, v, begin, end, Dv, e, N, 1);
    for (; e < Dv; e++) {
        for (size_t h = 0; h < N; h++) {
            float sum = 0.0f;
            for (size_t j = begin; j < end; j++)
                sum = fmaf(p[h * CHUNK + j], load_one(v, j * Dv + e), sum);
            acc[h * Dv + e] = sum;
        }
    }
}

static ALWAYS_INLINE void attend(load8 *load, load1 *load_one, float *m, float *l, float *acc, const float *q,
                                 const void *k, const void *v, size_t begin, size_t end, size_t heads, size_t D,
                                 size_t Dv, float scale, float *scratch)
{
    size_t h = 0;
    for (; h + 4 <= heads; h += 4)
        attend_heads(load, load_one, m + h, l + h, acc + h * Dv, q + h * D, k, v, begin, end, D, Dv, scale,
                     scratch + h * CHUNK, 4);
    if (heads - h == 3)
        attend_heads(load, load_one, m + h, l + h, acc + h * Dv, q + h * D, k, v, begin, end, D, Dv, scale,
                     scratch + h * CHUNK, 3);
    else if (heads - h == 2)
        attend_heads(load, load_one, m + h, l + h, acc + h * Dv, q + h * D, k, v, begin, end, D, Dv, scale,
                     scratch + h * CHUNK, 2);
    else if (heads - h == 1)
        attend_heads(load, load_one, m + h, l + h, acc + h * Dv, q + h * D, k, v, begin, end, D, Dv, scale,
                     scratch + h * CHUNK, 1);
}

void MIMO_KERNEL(attend_f32)(float *m, float *l, float *acc, const float *q, const void *k, const void *v, size_t begin,
                             size_t end, size_t heads, size_t D, size_t Dv, float scale, float *scratch)
{
    attend(load8_f32, load1_f32, m, l, acc, q, k, v, begin, end, heads, D, Dv, scale, scratch);
}

void MIMO_KERNEL(attend_bf16)(float *m, float *l, float *acc, const float *q, const void *k, const void *v,
                              size_t begin, size_t end, size_t heads, size_t D, size_t Dv, float scale, float *scratch)
{
    attend(load8_bf16, load1_bf16, m, l, acc, q, k, v, begin, end, heads, D, Dv, scale, scratch);
}
