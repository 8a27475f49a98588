/* Attention of some query heads over one chunk of keys. Lanes are keys while scoring and value elements while adding;
 * up to six heads share every load of a key or a value, and so many sums are made at a time that none waits for
 * itself. Include after the lanes and vectors (vec8.h), and with MIMO_KERNEL(name) defined. */
#include "cpu/lanes/exp.h"

#include "base/size.h"
#include "format/bf16.h"

#include <math.h>

enum { ATTEND_HEADS = MIMO_ATTEND_HEADS, ATTEND_GROUPS = 4, VEC_GROUPS = VEC_LANES / 8, CHUNK = 256 };

/* Keys and values as they are stored. */
typedef struct storage {
    vec (*keys)(const void *k, size_t i, size_t next); /* a group from element i on, and in longer vectors that from
                                                          i + next on */
    vec (*values)(const void *v, size_t i);
    f8 (*eight)(const void *v, size_t i);
    float (*one)(const void *v, size_t i);
} storage;

static ALWAYS_INLINE vec keys_f32(const void *k, size_t i, size_t next)
{
    return vec_join((const float *)k + i, (const float *)k + i + next);
}

static ALWAYS_INLINE vec keys_bf16(const void *k, size_t i, size_t next)
{
    return vec_join_bf16((const uint16_t *)k + i, (const uint16_t *)k + i + next);
}

static ALWAYS_INLINE vec values_f32(const void *v, size_t i)
{
    return vec_load((const float *)v + i);
}

static ALWAYS_INLINE vec values_bf16(const void *v, size_t i)
{
    return vec_load_bf16((const uint16_t *)v + i);
}

static ALWAYS_INLINE f8 eight_f32(const void *v, size_t i)
{
    return f8_load((const float *)v + i);
}

static ALWAYS_INLINE f8 eight_bf16(const void *v, size_t i)
{
    return f8_load_bf16((const uint16_t *)v + i);
}

static ALWAYS_INLINE float one_f32(const void *v, size_t i)
{
    return ((const float *)v)[i];
}

static ALWAYS_INLINE float one_bf16(const void *v, size_t i)
{
    return mimo_bf16_decode(((const uint16_t *)v)[i]);
}

/* What N heads of a chunk need. */
typedef struct sums {
    float *m, *l, *acc, *p; /* p [N, 256] */
    const float *q;
} sums;

/* Of so many heads the next to take, in turns of about the same size. */
static ALWAYS_INLINE size_t heads_together(size_t heads)
{
    return mimo_ceil_div(heads, mimo_ceil_div(heads, ATTEND_HEADS));
}

/* What is read after this chunk, asked for a little in every turn of an inner loop. */
typedef struct fetcher {
    const uint8_t *at;
    size_t step;
} fetcher;

/* In `turns` for every six of the heads. */
static fetcher fetch_of(const mimo_ahead *ahead, const void *other, size_t turns, size_t heads)
{
    const size_t all = mimo_max(turns * mimo_ceil_div(heads, ATTEND_HEADS), 1);
    return (fetcher){ahead->data != NULL ? ahead->data : other, mimo_ceil_div(ahead->bytes, all)};
}

static ALWAYS_INLINE void fetch(fetcher *f)
{
    __builtin_prefetch(f->at, 0, 2);
    f->at += f->step;
}

/* p[h][8*group ..] = scores of G vectors of keys for N heads. Group `last` and later ones are not read. */
static ALWAYS_INLINE void score(const storage *in, const sums *s, const mimo_keys *c, fetcher *f, size_t group,
                                size_t last, size_t N, size_t G)
{
    const size_t D = c->D;
    size_t begin[ATTEND_GROUPS], next[ATTEND_GROUPS];
    vec sum[ATTEND_HEADS][ATTEND_GROUPS];
    for (size_t g = 0; g < G; g++) {
        const size_t own = group + g * VEC_GROUPS;
        begin[g] = own * D * 8;
        next[g] = own + 1 < last ? D * 8 : 0;
    }
    for (size_t h = 0; h < N; h++)
        for (size_t g = 0; g < G; g++)
            sum[h][g] = vec_set(0.0f);
    for (size_t d = 0; d < D; d++) {
        vec key[ATTEND_GROUPS];
        for (size_t g = 0; g < G; g++)
            key[g] = in->keys(c->k, begin[g] + d * 8, next[g]);
        fetch(f);
        for (size_t h = 0; h < N; h++) {
            const vec x = vec_set(s->q[h * D + d]);
            for (size_t g = 0; g < G; g++)
                sum[h][g] = vec_fma(x, key[g], sum[h][g]);
        }
    }
    for (size_t h = 0; h < N; h++)
        for (size_t g = 0; g < G; g++)
            vec_store(s->p + h * CHUNK + 8 * group + g * VEC_LANES, vec_mul(sum[h][g], vec_set(c->scale)));
}

/* Scores of group g outside [begin, end) become -inf, whatever they were. */
static inline void hide_keys(float *p, size_t g, size_t begin, size_t end)
{
    const int low = begin > 8 * g ? (int)(begin - 8 * g) : 0;
    const int high = end - 8 * g < 8 ? (int)(end - 8 * g) : 8;
    f8_store(p + 8 * g, f8_keep_range(f8_load(p + 8 * g), f8_set(-INFINITY), low, high));
}

/* Scores become probabilities relative to their maximum; those outside [begin, end) become 0. */
static void soften(float *m, float *l, float *p, size_t begin, size_t end)
{
    const size_t first = begin / 8, last = (end + 7) / 8;
    hide_keys(p, first, begin, end);
    hide_keys(p, last - 1, begin, end);
    f8 high = f8_set(-INFINITY), sum = f8_set(0.0f);
    for (size_t g = first; g < last; g++)
        high = f8_max(high, f8_load(p + 8 * g));
    const float max = f8_highest(high) + 0.0f; /* never -0 */
    for (size_t g = first; g < last; g++) {
        const f8 e = f8_exp(f8_sub(f8_load(p + 8 * g), f8_set(max)));
        f8_store(p + 8 * g, e);
        sum = f8_add(sum, e);
    }
    *m = max;
    *l = f8_sum(sum);
}

/* acc[h][e ..] = sum_j p[h][j] * v[j][e ..] of V vectors for N heads; */
static ALWAYS_INLINE void add_values(const storage *in, const sums *s, const mimo_keys *c, fetcher *f, size_t e,
                                     size_t N, size_t V)
{
    const size_t Dv = c->Dv;
    vec sum[ATTEND_HEADS][ATTEND_GROUPS];
    for (size_t h = 0; h < N; h++)
        for (size_t i = 0; i < V; i++)
            sum[h][i] = vec_set(0.0f);
    for (size_t j = c->begin; j < c->end; j++) {
        vec value[ATTEND_GROUPS];
        for (size_t i = 0; i < V; i++)
            value[i] = in->values(c->v, j * Dv + e + i * VEC_LANES);
        fetch(f);
        for (size_t h = 0; h < N; h++) {
            const vec x = vec_set(s->p[h * CHUNK + j]);
            for (size_t i = 0; i < V; i++)
                sum[h][i] = vec_fma(x, value[i], sum[h][i]);
        }
    }
    for (size_t h = 0; h < N; h++)
        for (size_t i = 0; i < V; i++)
            vec_store(s->acc + h * Dv + e + i * VEC_LANES, sum[h][i]);
}

/* of eight elements, where longer vectors leave them; */
static ALWAYS_INLINE void add_eight(const storage *in, const sums *s, const mimo_keys *c, size_t e, size_t N)
{
    f8 sum[ATTEND_HEADS];
    for (size_t h = 0; h < N; h++)
        sum[h] = f8_set(0.0f);
    for (size_t j = c->begin; j < c->end; j++) {
        const f8 value = in->eight(c->v, j * c->Dv + e);
        for (size_t h = 0; h < N; h++)
            sum[h] = f8_fma(f8_set(s->p[h * CHUNK + j]), value, sum[h]);
    }
    for (size_t h = 0; h < N; h++)
        f8_store(s->acc + h * c->Dv + e, sum[h]);
}

/* of one. */
static ALWAYS_INLINE void add_one(const storage *in, const sums *s, const mimo_keys *c, size_t e, size_t N)
{
    for (size_t h = 0; h < N; h++) {
        float sum = 0.0f;
        for (size_t j = c->begin; j < c->end; j++)
            sum = fmaf(s->p[h * CHUNK + j], in->one(c->v, j * c->Dv + e), sum);
        s->acc[h * c->Dv + e] = sum;
    }
}

static ALWAYS_INLINE void attend_heads(const storage *in, const sums *s, const mimo_keys *c, fetcher *fetch_k,
                                       fetcher *fetch_v, size_t N)
{
    const size_t last = (c->end + 7) / 8, wide = vectors_together(N);
    size_t g = c->begin / 8 / VEC_GROUPS * VEC_GROUPS, e = 0; /* so that vectors of keys end within the chunk */
    for (; g + wide * VEC_GROUPS <= last; g += wide * VEC_GROUPS)
        score(in, s, c, fetch_k, g, last, N, wide);
    for (; g < last; g += VEC_GROUPS)
        score(in, s, c, fetch_k, g, last, N, 1);
    for (size_t h = 0; h < N; h++)
        soften(s->m + h, s->l + h, s->p + h * CHUNK, c->begin, c->end);
    for (; e + wide * VEC_LANES <= c->Dv; e += wide * VEC_LANES)
        add_values(in, s, c, fetch_v, e, N, wide);
    for (; e + 2 * VEC_LANES <= c->Dv; e += 2 * VEC_LANES)
        add_values(in, s, c, fetch_v, e, N, 2);
    for (; e + VEC_LANES <= c->Dv; e += VEC_LANES)
        add_values(in, s, c, fetch_v, e, N, 1);
    for (; e + 8 <= c->Dv; e += 8)
        add_eight(in, s, c, e, N);
    for (; e < c->Dv; e++)
        add_one(in, s, c, e, N);
}

static ALWAYS_INLINE void attend(const storage *in, sums s, size_t heads, const mimo_keys *c)
{
    const size_t lanes = VEC_LANES * vectors_together(heads_together(heads)), positions = c->end - c->begin;
    fetcher k = fetch_of(&c->ahead_k, c->k, mimo_ceil_div(positions, lanes) * c->D, heads);
    fetcher v = fetch_of(&c->ahead_v, c->v, positions * mimo_ceil_div(c->Dv, lanes), heads);
    for (size_t n; heads > 0; heads -= n) {
        n = heads_together(heads);
        if (n == 6)
            attend_heads(in, &s, c, &k, &v, 6);
        else if (n == 5)
            attend_heads(in, &s, c, &k, &v, 5);
        else if (n == 4)
            attend_heads(in, &s, c, &k, &v, 4);
        else if (n == 3)
            attend_heads(in, &s, c, &k, &v, 3);
        else if (n == 2)
            attend_heads(in, &s, c, &k, &v, 2);
        else
            attend_heads(in, &s, c, &k, &v, 1);
        s = (sums){s.m + n, s.l + n, s.acc + n * c->Dv, s.p, s.q + n * c->D};
    }
}

void MIMO_KERNEL(attend_f32)(float *m, float *l, float *acc, const float *q, size_t heads, const mimo_keys *keys,
                             float *scratch)
{
    attend(&(storage){keys_f32, values_f32, eight_f32, one_f32}, (sums){m, l, acc, scratch, q}, heads, keys);
}

void MIMO_KERNEL(attend_bf16)(float *m, float *l, float *acc, const float *q, size_t heads, const mimo_keys *keys,
                              float *scratch)
{
    attend(&(storage){keys_bf16, values_bf16, eight_bf16, one_bf16}, (sums){m, l, acc, scratch, q}, heads, keys);
}
