/* x -> norm -> sigmoid router -> K experts per row, grouped by expert. */
#ifndef MIMO_CUDA_OP_ROUTE_H
#define MIMO_CUDA_OP_ROUTE_H

#include "base/exp.h"
#include "cuda/op/norm.h"

/* Columns [first, first + count) of m: the experts' input. */
template <class Team>
MIMO_BODY inline void mimo_cuda_route_norm(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t first,
                                           uint32_t count)
{
    const float *weight = s.layer[layer].mlp_norm, *scale = mimo_cuda_scales(team);
    team.threads(s.step->rows * count, [&](uint32_t i) {
        const uint32_t t = i / count, h = first + i % count;
        const size_t at = t * s.work.x_stride + h;
        s.work.m[at] = s.work.x[at] * scale[t] * weight[h];
    });
}

/* [T, E] of a layer, or NULL: see mimo_cuda_step. */
MIMO_BODY inline const float *mimo_cuda_lean(const mimo_cuda_state &s, uint32_t layer)
{
    const float *lean = s.step->lean;
    return lean != nullptr ? lean + (size_t)layer * MIMO_CUDA_ROWS * s.config->experts : nullptr;
}

/* Router logits of experts [first, first + count). */
template <class Team>
MIMO_BODY inline void mimo_cuda_route(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t first,
                                      uint32_t count)
{
    const mimo_cuda_plain rows = mimo_cuda_rows(s, s.work.x, s.work.x_stride);
    const mimo_cuda_normed input = mimo_cuda_normed_rows(team, rows, s.layer[layer].mlp_norm);
    const uint32_t E = s.config->experts;
    const float *lean = mimo_cuda_lean(s, layer);
    mimo_cuda_columns(team, s.layer[layer].router, first, count, input, s.step->rows,
                      [&](uint32_t e, uint32_t t, float y) {
                          s.work.router_logits[t * E + e] = lean != nullptr ? y + lean[t * E + e] : y;
                      });
}

MIMO_BODY inline float mimo_cuda_sigmoid(float x)
{
    return 1.0f / (1.0f + mimo_expf(-x));
}

/* Larger for the larger score, and for the lower id where scores are equal; never 0. */
MIMO_HD inline uint64_t mimo_cuda_score_key(float score, uint32_t id)
{
    const uint32_t bits = mimo_cuda_bits(score + 0.0f); /* -0 and 0 are equal */
    return (uint64_t)(bits ^ (bits >> 31 ? UINT32_MAX : (uint32_t)1 << 31)) << 32 | (UINT32_MAX - id);
}

/* The K experts of row t by sigmoid score plus bias, by ascending id, with their weights; by one warp. */
template <class Team>
MIMO_BODY inline void mimo_cuda_choose_row(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                           mimo_moe &moe, uint32_t t, uint32_t *chosen)
{
    const uint32_t E = s.config->experts, K = s.config->top_k;
    const float *logits = s.work.router_logits + t * E;
    uint16_t *expert = moe.chosen + t * K;
    float *weight = moe.share + t * K;
    uint64_t last = UINT64_MAX;
    for (uint32_t k = 0; k < K; k++) {
        typename Team::template lane_value<uint64_t> best;
        team.lanes([&](uint32_t lane) {
            best[lane] = 0;
            for (uint32_t e = lane; e < E; e += MIMO_LANES) {
                const uint64_t key = mimo_cuda_score_key(mimo_cuda_sigmoid(logits[e]) + layer.router_bias[e], e);
                if (key < last && key > best[lane])
                    best[lane] = key;
            }
        });
        last = team.max(best);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                chosen[k] = UINT32_MAX - (uint32_t)last;
        });
    }
    team.meet();
    team.lanes([&](uint32_t lane) { /* by id: the order in which experts are summed */
                                    for (uint32_t k = lane; k < K; k += MIMO_LANES) {
                                        uint32_t at = 0;
                                        for (uint32_t i = 0; i < K; i++)
                                            at += chosen[i] < chosen[k];
                                        expert[at] = (uint16_t)chosen[k];
                                    }
    });
    team.meet();
    team.lanes([&](uint32_t lane) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < K; k++)
            sum += mimo_cuda_sigmoid(logits[expert[k]]);
        const float scale = s.config->norm_topk ? s.config->routed_scale / (sum + 1e-20f) : s.config->routed_scale;
        for (uint32_t k = lane; k < K; k += MIMO_LANES)
            weight[k] = mimo_cuda_sigmoid(logits[expert[k]]) * scale;
    });
}

/* The experts of all rows with their weights, sorted; by one team, when all router logits are there. */
template <class Team>
MIMO_BODY inline void mimo_cuda_choose(const Team &team, const mimo_cuda_state &s, uint32_t layer, mimo_moe &moe)
{
    const uint32_t K = s.config->top_k, entries = s.step->rows * K;
    float *own = mimo_cuda_own_scratch(team) + team.warp() * MIMO_CUDA_CHUNK;
    uint32_t *chosen = reinterpret_cast<uint32_t *>(own); /* [K] */
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        mimo_cuda_choose_row(team, s, s.layer[layer], moe, t, chosen);
        team.meet();
    }
    team.sync();
    team.threads(entries, [&](uint32_t i) { mimo_moe_mark(&moe, i); });
    team.sync();
    team.threads(entries, [&](uint32_t i) { mimo_moe_place(&moe, entries, K, i); });
}

template <class Team>
MIMO_BODY inline void mimo_cuda_route_choose(const Team &team, const mimo_cuda_state &s, uint32_t layer)
{
    mimo_cuda_choose(team, s, layer, *s.work.moe);
}

#endif
