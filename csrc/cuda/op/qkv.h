/* x -> norm -> q, k, v -> norm of heads, rotary embedding, value scale -> q and the KV cache.
 *
 * A head's dims are taken in steps: first its R/2 rotary pairs (j, j + R/2), then dim R and those after it; a value
 * head has Dv steps of one dim. With norms of heads (drafters) a tile is a whole head. */
#ifndef MIMO_CUDA_OP_QKV_H
#define MIMO_CUDA_OP_QKV_H

#include "cuda/op/norm.h"

/* Steps of head `head`: queries are numbered first, then keys, then values. */
MIMO_HD inline uint32_t mimo_cuda_head_steps(const mimo_attention *a, uint32_t head)
{
    return head < a->heads + a->kv_heads ? a->head_dim - a->rotary_dim / 2 : a->v_head_dim;
}

/* Keys of key/value head g in the chunk that holds `position`; *values is set to its values. */
MIMO_BODY inline uint8_t *mimo_cuda_kv_head(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t t,
                                            uint32_t g, uint32_t position, uint8_t **values)
{
    const mimo_cuda_kv *kv = &s.step->kv[t];
    const uint32_t kind = layer.sliding;
    uint8_t *chunk = kind == MIMO_SLIDING
                         ? kv->ring + position % s.kv.ring / MIMO_CUDA_CHUNK * s.kv.chunk_bytes[MIMO_SLIDING]
                         : kv->chunk[position / MIMO_CUDA_CHUNK];
    uint8_t *head = chunk + layer.kv_offset + g * s.kv.head_bytes[kind];
    *values = head + s.kv.value_offset[kind];
    return head;
}

/* The same from `position` on. */
MIMO_BODY inline uint8_t *mimo_cuda_kv_rows(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t t,
                                            uint32_t g, uint32_t position, uint8_t **values)
{
    uint8_t *keys = mimo_cuda_kv_head(s, layer, t, g, position, values);
    const size_t rows = position % MIMO_CUDA_CHUNK * (s.kv.is_float ? sizeof(float) : sizeof(uint16_t));
    *values += rows * layer.attention.v_head_dim;
    return keys + rows * layer.attention.head_dim;
}

MIMO_BODY inline void mimo_cuda_kv_write(const mimo_cuda_state &s, uint8_t *to, size_t at, float value)
{
    if (s.kv.is_float)
        reinterpret_cast<float *>(to)[at] = value;
    else
        reinterpret_cast<uint16_t *>(to)[at] = mimo_bf16_encode(value);
}

/* Dim d of a head, done: a query, or a key or value of row t's position. */
MIMO_BODY inline void mimo_cuda_head_store(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t head,
                                           uint32_t t, uint32_t d, float value)
{
    const mimo_attention &a = layer.attention;
    if (head < a.heads) {
        s.work.q[((size_t)t * a.heads + head) * a.head_dim + d] = value;
        return;
    }
    const uint32_t position = s.step->position[t], slot = position % MIMO_CUDA_CHUNK, g = (head - a.heads) % a.kv_heads;
    uint8_t *values, *keys = mimo_cuda_kv_head(s, layer, t, g, position, &values);
    if (head < a.heads + a.kv_heads)
        mimo_cuda_kv_write(s, keys, (size_t)slot * a.head_dim + d, value);
    else
        mimo_cuda_kv_write(s, values, (size_t)slot * a.v_head_dim + d, value * s.config->value_scale);
}

/* A rotary pair, products rounded, then added. */
MIMO_BODY inline void mimo_cuda_pair_store(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t head,
                                           uint32_t t, uint32_t j, float a, float b)
{
    const uint32_t half = layer.attention.rotary_dim / 2;
    const float c = s.work.cos[layer.sliding][(size_t)t * half + j],
                z = s.work.sin[layer.sliding][(size_t)t * half + j];
    mimo_cuda_head_store(s, layer, head, t, j, a * c - b * z);
    mimo_cuda_head_store(s, layer, head, t, j + half, b * c + a * z);
}

/* Steps [first, first + count) of a head without norm: a warp takes a pair, or two of the other dims. */
template <class Team, class Input>
MIMO_BODY inline void mimo_cuda_head_steps_run(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                               uint32_t head, uint32_t first, uint32_t count, const Input &input)
{
    const mimo_attention &a = layer.attention;
    const uint32_t keys = a.heads + a.kv_heads, T = s.step->rows;
    const bool turns = head < keys;
    const uint32_t row = turns ? head * a.head_dim : keys * a.head_dim + (head - keys) * a.v_head_dim;
    const uint32_t half = turns ? a.rotary_dim / 2 : 0, end = first + count;
    const uint32_t paired = first < half ? (end < half ? end : half) - first : 0, rest = count - paired;
    for (uint32_t item = team.warp(); item < paired + (rest + 1) / 2; item += team.warps()) {
        const bool pair = item < paired;
        const uint32_t step = pair ? first + item : first + paired + 2 * (item - paired);
        const uint32_t d = pair ? step : step + half, other = pair ? d + half : (step + 1 < end ? d + 1 : d);
        const mimo_cuda_row rows[2] = {mimo_cuda_row_of(layer.qkv, row + d), mimo_cuda_row_of(layer.qkv, row + other)};
        float y[2][MIMO_CUDA_ROWS];
        mimo_cuda_dot<2>(team, y, rows, layer.qkv.format, layer.qkv.cols, input, T);
        team.lanes([&](uint32_t lane) {
            for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++) {
                if (t >= T || t != lane)
                    continue;
                if (pair) {
                    mimo_cuda_pair_store(s, layer, head, t, d, y[0][t], y[1][t]);
                    continue;
                }
                mimo_cuda_head_store(s, layer, head, t, d, y[0][t]);
                if (other != d)
                    mimo_cuda_head_store(s, layer, head, t, other, y[1][t]);
            }
        });
    }
}

/* A whole query or key head with its norm: rows [T, D] in scratch, normed, rotated. */
template <class Team, class Input>
MIMO_BODY inline void mimo_cuda_head_normed(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                            uint32_t head, const Input &input)
{
    const mimo_attention &a = layer.attention;
    const uint32_t D = a.head_dim, half = a.rotary_dim / 2, T = s.step->rows;
    const float *weight = head < a.heads ? layer.q_norm : layer.k_norm;
    float *values = mimo_cuda_own_scratch(team);
    team.sync(); /* nobody reads the head of before */
    mimo_cuda_columns(team, layer.qkv, head * D, D, input, T,
                      [&](uint32_t o, uint32_t t, float y) { values[t * D + o - head * D] = y; });
    team.sync();
    for (uint32_t t = team.warp(); t < T; t += team.warps()) {
        float *row = values + t * D;
        typename Team::template lane_value<float> sum;
        team.lanes([&](uint32_t lane) {
            float acc = 0.0f;
            for (uint32_t d = lane; d < D; d += MIMO_LANES)
                acc = fmaf(row[d], row[d], acc);
            sum[lane] = acc;
        });
        const float scale = 1.0f / sqrtf(team.sum(sum) / (float)D + s.config->norm_eps);
        team.lanes([&](uint32_t lane) {
            for (uint32_t j = lane; j < half; j += MIMO_LANES)
                mimo_cuda_pair_store(s, layer, head, t, j, row[j] * scale * weight[j],
                                     row[j + half] * scale * weight[j + half]);
            for (uint32_t d = 2 * half + lane; d < D; d += MIMO_LANES)
                mimo_cuda_head_store(s, layer, head, t, d, row[d] * scale * weight[d]);
        });
    }
}

template <class Team>
MIMO_BODY inline void mimo_cuda_project(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                        uint32_t head, uint32_t first, uint32_t count, const float *norm)
{
    const mimo_cuda_plain rows = mimo_cuda_rows(s, s.work.x, s.work.x_stride);
    const mimo_cuda_normed input = mimo_cuda_normed_rows(team, rows, norm);
    if (layer.q_norm != nullptr && head < layer.attention.heads + layer.attention.kv_heads)
        mimo_cuda_head_normed(team, s, layer, head, input);
    else
        mimo_cuda_head_steps_run(team, s, layer, head, first, count, input);
}

template <class Team>
MIMO_BODY inline void mimo_cuda_qkv(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t head,
                                    uint32_t first, uint32_t count)
{
    mimo_cuda_project(team, s, s.layer[layer], head, first, count, s.layer[layer].attention_norm);
}

#endif
