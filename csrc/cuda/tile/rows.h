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

enum { MIMO_TILE_EACH = 2 }; /* columns of a lane at a time: h and h + 32 */

/* A task's columns of row t, by one warp: x, N of them, and the sum of their squares. values(x, h): of a lane. */
template <class Team, class Values>
MIMO_BODY inline void mimo_tile_columns_of(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                           const mimo_cuda_state &s, uint32_t t, Values values)
{
    const uint32_t end = task.first + task.count;
    const float *weight = mimo_tile_next_norm(s, task);
    float *x = s.work.x + t * s.work.x_stride;
    typename Team::template lane_value<float> sum;
    team.lanes([&](uint32_t lane) {
        sum[lane] = 0.0f;
        for (uint32_t first = task.first + lane; first < end; first += MIMO_TILE_EACH * MIMO_LANES) {
            float own[MIMO_TILE_EACH];
            values(own, first);
            for (uint32_t j = 0; j < MIMO_TILE_EACH; j++) {
                const uint32_t h = first + j * MIMO_LANES;
                if (h >= end)
                    break;
                x[h] = own[j];
                mimo_tile_put(m.n, m.parts, t, h, own[j] * weight[h]);
                sum[lane] = fmaf(own[j], own[j], sum[lane]);
            }
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
        mimo_tile_columns_of(team, m, task, s, t, [&](float (&x)[MIMO_TILE_EACH], uint32_t first) {
            for (uint32_t j = 0, h = first; j < MIMO_TILE_EACH && h < task.first + task.count; j++, h += MIMO_LANES)
                x[j] = mask ? s.draft->mask[h] : mimo_cuda_embedding(s, s.step->token[t], h);
        });
    }
    mimo_tile_angles(team, task, s);
}

/* Rows first, first + 32, ... below end of P, for row t of the step: all splits, added in their order. What is asked
 * for together arrives together. Beyond the end 0. */
template <uint32_t each>
MIMO_BODY inline void mimo_tile_partials(float (&sum)[each], const mimo_tile_machine &m, uint32_t splits, uint32_t rows,
                                         uint32_t t, uint32_t first, uint32_t end)
{
    const auto part = [&](uint32_t split, uint32_t j) {
        const uint32_t row = first + j * MIMO_LANES;
        return split < splits && row < end ? m.p[((size_t)split * MIMO_TILE_TOKENS + t) * rows + row] : 0.0f;
    };
    for (uint32_t j = 0; j < each; j++)
        sum[j] = part(0, j);
    for (uint32_t split = 1; split < splits; split += 2) {
        float one[each], other[each];
        for (uint32_t j = 0; j < each; j++) {
            one[j] = part(split, j);
            other[j] = part(split + 1, j);
        }
        for (uint32_t j = 0; j < each; j++) {
            sum[j] += one[j];
            sum[j] = split + 1 < splits ? sum[j] + other[j] : sum[j];
        }
    }
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
        mimo_tile_columns_of(team, m, task, s, t, [&](float (&x)[MIMO_TILE_EACH], uint32_t first) {
            const uint32_t end = task.first + task.count;
            float before[MIMO_TILE_EACH];
            for (uint32_t j = 0, h = first; j < MIMO_TILE_EACH; j++, h += MIMO_LANES)
                before[j] = !fuse && h < end ? s.work.x[t * s.work.x_stride + h] : 0.0f;
            mimo_tile_partials(x, m, task.splits, H, t, first, end);
            for (uint32_t j = 0, h = first; j < MIMO_TILE_EACH && h < end; j++, h += MIMO_LANES) {
                x[j] = fuse ? x[j] : before[j] + x[j];
                for (uint32_t i = 0; layer_ends && i < step.taps; i++)
                    if (step.tap[i] == task.layer)
                        step.hidden[i * step.hidden_stride + (size_t)t * H + h] = x[j];
            }
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
            enum { EACH = 4 };
            for (uint32_t i = lane; i < width; i += EACH * MIMO_LANES) {
                float sum[EACH];
                mimo_tile_partials(sum, m, task.splits, rows, t, task.k_first + i, task.k_first + width);
                for (uint32_t j = 0; j < EACH; j++)
                    if (i + j * MIMO_LANES < width)
                        values[i + j * MIMO_LANES] = sum[j] * scale;
            }
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
    const uint32_t E = s.config->experts, splits = task.splits;
    const float *lean = mimo_cuda_lean(s, task.layer);
    mimo_cuda_choose(team, s, s.layer[task.layer], *m.moe, [&](uint32_t t) {
        const float scale = mimo_tile_scale(team, m, s, t);
        return [&m, &s, lean, E, splits, scale, t](float (&logit)[MIMO_CHOOSE_EACH], uint32_t lane) {
            mimo_tile_partials(logit, m, splits, E, t, lane, E);
            for (uint32_t j = 0; j < MIMO_CHOOSE_EACH; j++) {
                const uint32_t e = j * MIMO_LANES + lane, at = t * E + e;
                if (e >= E)
                    continue;
                logit[j] = lean != nullptr ? logit[j] * scale + lean[at] : logit[j] * scale;
                s.work.router_logits[at] = logit[j];
            }
        };
    });
}

#endif
