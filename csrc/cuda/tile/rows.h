/* EMBED, and what joins partial sums: REDUCE, HEADS, CHOOSE. */
#ifndef MIMO_CUDA_TILE_ROWS_H
#define MIMO_CUDA_TILE_ROWS_H

#include "cuda/op/dense.h"
#include "cuda/op/route.h"
#include "cuda/tile/multiply.h"

/* The weight of the norm before the operation after a task's. */
MIMO_BODY inline const float *mimo_tile_next_norm(const mimo_cuda_state &s, const mimo_tile_task &task)
{
    switch (task.op_code) {
    case MIMO_OP_EMBED:
    case MIMO_OP_DRAFT_EMBED:
        return s.layer[0].attention_norm;
    case MIMO_OP_OUT_PROJ:
        return s.layer[task.layer].mlp_norm;
    case MIMO_OP_DRAFT_FUSE:
        return s.draft->fuse_norm;
    default:
        return task.layer + 1u < s.config->layers ? s.layer[task.layer + 1].attention_norm : s.norm;
    }
}

/* x[h] = value(h) for a task's columns of row t, by one warp: N of them, and the sum of their squares. */
template <class Team, class Value>
MIMO_BODY inline void mimo_tile_columns_of(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                           const mimo_cuda_state &s, uint32_t t, Value value)
{
    const float *weight = mimo_tile_next_norm(s, task);
    float *x = s.work.x + t * s.work.x_stride;
    typename Team::template lane_value<float> sum;
    team.lanes([&](uint32_t lane) {
        sum[lane] = 0.0f;
        for (uint32_t i = lane; i < task.count; i += MIMO_LANES) {
            const uint32_t h = task.first + i;
            const float own = value(h);
            x[h] = own;
            mimo_tile_put(m.n, m.parts, t, h, own * weight[h]);
            sum[lane] = fmaf(own, own, sum[lane]);
        }
    });
    const float total = team.sum(sum);
    team.lanes([&](uint32_t lane) {
        if (lane == 0)
            m.squares[t * m.pieces + task.first / m.columns] = total;
    });
}

/* Angles of all rows, by the task that has the first columns. */
template <class Team>
MIMO_BODY inline void mimo_tile_angles(const Team &team, const mimo_tile_task &task, const mimo_cuda_state &s)
{
    for (uint32_t t = 0; task.first == 0 && t < s.step->rows; t++)
        mimo_cuda_angles(team, s, t);
}

template <class Team>
MIMO_BODY inline void mimo_tile_embed(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        const bool mask = task.op_code == MIMO_OP_DRAFT_EMBED && t > 0;
        mimo_tile_columns_of(team, m, task, s, t, [&](uint32_t h) {
            return mask ? s.draft->mask[h] : mimo_cuda_embedding(s, s.step->token[t], h);
        });
    }
    mimo_tile_angles(team, task, s);
}

/* Element `row` of row t of P: the sum of its splits, in order. */
MIMO_BODY inline float mimo_tile_partial(const mimo_tile_machine &m, uint32_t splits, uint32_t rows, uint32_t t,
                                         uint32_t row)
{
    float sum = m.p[(size_t)t * rows + row];
    for (uint32_t split = 1; split < splits; split++)
        sum += m.p[((size_t)split * MIMO_TILE_TOKENS + t) * rows + row];
    return sum;
}

template <class Team>
MIMO_BODY inline void mimo_tile_reduce(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_cuda_step &step = *s.step;
    const uint32_t H = s.config->hidden;
    const bool fuse = task.op_code == MIMO_OP_DRAFT_FUSE;
    const bool layer_ends = task.op_code == MIMO_OP_EXPERT_DOWN || task.op_code == MIMO_OP_DENSE_DOWN;
    for (uint32_t t = team.warp(); t < step.rows; t += team.warps())
        mimo_tile_columns_of(team, m, task, s, t, [&](uint32_t h) {
            const float sum = mimo_tile_partial(m, task.splits, H, t, h);
            const float x = fuse ? sum : s.work.x[t * s.work.x_stride + h] + sum;
            for (uint32_t i = 0; layer_ends && i < step.taps; i++)
                if (step.tap[i] == task.layer)
                    step.hidden[i * step.hidden_stride + (size_t)t * H + h] = x;
            return x;
        });
    if (fuse)
        mimo_tile_angles(team, task, s);
}

/* ---- HEADS ---- */

/* One normed, rotated, scaled head of row t, whose values [D or Dv] are in `row`, by one warp. */
template <class Team>
MIMO_BODY inline void mimo_tile_finish_head(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                            uint32_t head, uint32_t t, const float *row)
{
    const mimo_attention &a = layer.attention;
    const bool turns = head < a.heads + a.kv_heads;
    const uint32_t width = turns ? a.head_dim : a.v_head_dim, half = turns ? a.rotary_dim / 2 : 0;
    const float *weight = !turns ? nullptr : head < a.heads ? layer.q_norm : layer.k_norm;
    float scale = 1.0f;
    if (weight != nullptr) {
        typename Team::template lane_value<float> sum;
        team.lanes([&](uint32_t lane) {
            sum[lane] = 0.0f;
            for (uint32_t d = lane; d < width; d += MIMO_LANES)
                sum[lane] = fmaf(row[d], row[d], sum[lane]);
        });
        scale = 1.0f / sqrtf(team.sum(sum) / (float)width + s.config->norm_eps);
    }
    team.lanes([&](uint32_t lane) {
        const auto value = [&](uint32_t d) { return weight != nullptr ? row[d] * scale * weight[d] : row[d]; };
        for (uint32_t j = lane; j < half; j += MIMO_LANES)
            mimo_cuda_pair_store(s, layer, head, t, j, value(j), value(j + half));
        for (uint32_t d = 2 * half + lane; d < width; d += MIMO_LANES)
            mimo_cuda_head_store(s, layer, head, t, d, value(d));
    });
}

template <class Team>
MIMO_BODY inline void mimo_tile_heads(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_cuda_layer &layer = s.layer[task.layer];
    const bool context = task.op_code == MIMO_OP_DRAFT_CONTEXT;
    const uint32_t rows = context ? mimo_tile_context_rows(s) : layer.qkv.rows, width = task.k_count;
    const uint32_t head = task.first + (context ? layer.attention.heads : 0);
    float *values = mimo_cuda_own_scratch(team) + team.warp() * (size_t)width; /* [warps, width] */
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        const float scale = mimo_tile_scale(team, m, s, t);
        team.lanes([&](uint32_t lane) {
            for (uint32_t i = lane; i < width; i += MIMO_LANES)
                values[i] = mimo_tile_partial(m, task.splits, rows, t, task.k_first + i) * scale;
        });
        team.meet();
        mimo_tile_finish_head(team, s, layer, head, t, values);
        team.meet();
    }
    team.sync(); /* the scratch may be another's */
}

/* ---- CHOOSE ---- */

template <class Team>
MIMO_BODY inline void mimo_tile_choose(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const uint32_t E = s.config->experts, T = s.step->rows, splits = task.splits;
    const float *scale = mimo_tile_scales(team, m, s), *lean = mimo_cuda_lean(s, task.layer);
    team.threads(T * E, [&](uint32_t i) {
        const uint32_t t = i / E;
        const float y = mimo_tile_partial(m, splits, E, t, i % E) * scale[t];
        s.work.router_logits[i] = lean != nullptr ? y + lean[i] : y;
    });
    team.sync();
    mimo_cuda_choose(team, s, task.layer, *m.moe);
}

#endif
