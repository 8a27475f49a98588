/* softmax(q k / sqrt(D), sink) v.
 *
 * Keys are summed chunk by chunk of 256 absolute positions, a chunk's (acc, m, l) relative to its own largest score m,
 * and chunks are merged in ascending order: who computes which chunk changes no bit. The sink joins once, at the end.
 */
#ifndef MIMO_CUDA_OP_ATTENTION_H
#define MIMO_CUDA_OP_ATTENTION_H

#include "base/exp.h"
#include "cuda/op/qkv.h"

/* The keys that a row sees: begin <= position < end. */
typedef struct mimo_cuda_keys {
    uint32_t begin, end;
} mimo_cuda_keys;

MIMO_BODY inline mimo_cuda_keys mimo_cuda_keys_of(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t t)
{
    const uint32_t position = s.step->position[t], window = layer.attention.window;
    mimo_cuda_keys keys = {window > 0 && position + 1 > window ? position + 1 - window : 0, position + 1};
    if (s.draft == nullptr)
        return keys;
    const uint32_t anchor = s.step->anchor, context = s.step->context_begin;
    if (s.draft->window_from_anchor)
        keys.begin = window > 0 && anchor > window ? anchor - window : 0;
    keys.begin = keys.begin > context ? keys.begin : context;
    keys.begin = keys.begin < anchor ? keys.begin : anchor;
    if (!s.draft->causal[layer.sliding])
        keys.end = anchor + s.step->rows;
    return keys;
}

/* How many chunks hold them, the first of which holds keys.begin. */
MIMO_HD inline uint32_t mimo_cuda_chunks(mimo_cuda_keys keys)
{
    return (keys.end + MIMO_CUDA_CHUNK - 1) / MIMO_CUDA_CHUNK - keys.begin / MIMO_CUDA_CHUNK;
}

/* acc [Dv], m, l of one query head and chunk. */
MIMO_BODY inline float *mimo_cuda_part(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t t,
                                       uint32_t head, uint32_t i)
{
    const mimo_attention &a = layer.attention;
    return s.work.part + (((size_t)t * a.heads + head) * s.work.part_chunks + i) * (a.v_head_dim + 4);
}

/* Elements [8 * unit, 8 * unit + 8) of a cached row. */
template <bool is_float> MIMO_BODY inline void mimo_cuda_cached(float out[8], const uint8_t *row, uint32_t unit)
{
    mimo_cuda_weights<is_float ? (uint32_t)MIMO_FORMAT_F32 : (uint32_t)MIMO_FORMAT_BF16>(out, {row, nullptr}, unit);
}

/* Keys begin <= j < end of a chunk for one query head, by one warp; p [256] is the warp's scratch. */
template <bool is_float, class Team>
MIMO_BODY inline void mimo_cuda_attend_head(const Team &team, float *part, const float *q, const uint8_t *keys,
                                            const uint8_t *values, uint32_t begin, uint32_t end,
                                            const mimo_attention &a, float *p)
{
    const size_t bytes = is_float ? 4 : 2, key_bytes = a.head_dim * bytes, value_bytes = a.v_head_dim * bytes;
    const float scale = 1.0f / sqrtf((float)a.head_dim);
    const uint32_t Dv = a.v_head_dim;
    typename Team::template lane_value<float> most, sum;
    team.lanes([&](uint32_t lane) {
        most[lane] = -INFINITY;
        for (uint32_t j = begin + lane; j < end; j += MIMO_LANES) {
            float score = 0.0f, k[8], x[8];
            for (uint32_t u = 0; u < a.head_dim / 8; u++) {
                mimo_cuda_cached<is_float>(k, keys + j * key_bytes, u);
                mimo_cuda_floats(x, q + 8 * u);
                for (int i = 0; i < 8; i++)
                    score = fmaf(x[i], k[i], score);
            }
            p[j] = score * scale;
            most[lane] = fmaxf(most[lane], p[j]);
        }
    });
    const float m = team.max(most) + 0.0f; /* which zero a maximum of -0 and +0 is would depend on the order */
    team.lanes([&](uint32_t lane) {
        sum[lane] = 0.0f;
        for (uint32_t j = begin + lane; j < end; j += MIMO_LANES) {
            p[j] = mimo_expf(p[j] - m);
            sum[lane] += p[j];
        }
    });
    const float l = team.sum(sum);
    team.meet();
    team.lanes([&](uint32_t lane) {
        for (uint32_t u = lane; u < Dv / 8; u += MIMO_LANES) {
            float acc[8] = {}, v[8];
            for (uint32_t j = begin; j < end; j++) {
                mimo_cuda_cached<is_float>(v, values + j * value_bytes, u);
                for (int i = 0; i < 8; i++)
                    acc[i] = fmaf(p[j], v[i], acc[i]);
            }
            for (int i = 0; i < 8; i++)
                part[8 * u + i] = acc[i];
        }
        if (lane == 0) {
            part[Dv] = m;
            part[Dv + 1] = l;
        }
    });
    team.meet();
}

template <class Team>
MIMO_BODY inline void mimo_cuda_attend_chunk(const Team &team, const mimo_cuda_state &s, uint32_t number, uint32_t t,
                                             uint32_t g, uint32_t i)
{
    const mimo_cuda_layer &layer = s.layer[number];
    const mimo_attention &a = layer.attention;
    const uint32_t group = a.heads / a.kv_heads;
    const mimo_cuda_keys seen = mimo_cuda_keys_of(s, layer, t);
    if (i >= mimo_cuda_chunks(seen))
        return;
    const uint32_t first = (seen.begin / MIMO_CUDA_CHUNK + i) * MIMO_CUDA_CHUNK;
    const uint32_t begin = seen.begin > first ? seen.begin - first : 0;
    const uint32_t left = seen.end - first, chunk = MIMO_CUDA_CHUNK, end = left < chunk ? left : chunk;
    uint8_t *values, *keys = mimo_cuda_kv_head(s, layer, t, g, first, &values);
    float *p = mimo_cuda_own_scratch(team) + team.warp() * MIMO_CUDA_CHUNK;
    for (uint32_t head = g * group + team.warp(); head < (g + 1) * group; head += team.warps()) {
        const float *q = s.work.q + ((size_t)t * a.heads + head) * a.head_dim;
        float *part = mimo_cuda_part(s, layer, t, head, i);
        if (s.kv.is_float)
            mimo_cuda_attend_head<true>(team, part, q, keys, values, begin, end, a, p);
        else
            mimo_cuda_attend_head<false>(team, part, q, keys, values, begin, end, a, p);
    }
}

/* The factors of two parts relative to the larger maximum. */
MIMO_BODY inline void mimo_cuda_rescale(float *a, float *b, float *m, float other)
{
    const float larger = *m > other ? *m : other;
    *a = mimo_expf(*m - larger);
    *b = mimo_expf(other - larger);
    *m = larger;
}

template <class Team>
MIMO_BODY inline void mimo_cuda_attend_merge(const Team &team, const mimo_cuda_state &s, uint32_t number, uint32_t t,
                                             uint32_t g)
{
    const mimo_cuda_layer &layer = s.layer[number];
    const mimo_attention &attention = layer.attention;
    const uint32_t group = attention.heads / attention.kv_heads, Dv = attention.v_head_dim;
    const uint32_t chunks = mimo_cuda_chunks(mimo_cuda_keys_of(s, layer, t));
    for (uint32_t head = g * group + team.warp(); head < (g + 1) * group; head += team.warps()) {
        const float *part = mimo_cuda_part(s, layer, t, head, 0);
        float *out = s.work.a + t * s.work.a_stride + (size_t)head * Dv;
        team.lanes([&](uint32_t lane) {
            for (uint32_t e = lane; e < Dv; e += MIMO_LANES) {
                float acc = part[e], m = part[Dv], l = part[Dv + 1], a, b;
                for (uint32_t i = 1; i < chunks; i++) {
                    const float *next = part + i * (size_t)(Dv + 4);
                    mimo_cuda_rescale(&a, &b, &m, next[Dv]);
                    l = l * a + next[Dv + 1] * b;
                    acc = acc * a + next[e] * b;
                }
                a = 1.0f;
                b = 0.0f;
                if (attention.sinks)
                    mimo_cuda_rescale(&a, &b, &m, layer.sinks[head]);
                out[e] = acc * (a / (l * a + b));
            }
        });
    }
}

/* All chunks, then their merge: each head is one warp's throughout. */
template <class Team>
MIMO_BODY inline void mimo_cuda_attend(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t t,
                                       uint32_t g)
{
    const uint32_t chunks = mimo_cuda_chunks(mimo_cuda_keys_of(s, s.layer[layer], t));
    for (uint32_t i = 0; i < chunks; i++)
        mimo_cuda_attend_chunk(team, s, layer, t, g, i);
    mimo_cuda_attend_merge(team, s, layer, t, g);
}

#endif
