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

/* Router logits of experts [first, first + count). */
template <class Team>
MIMO_BODY inline void mimo_cuda_route(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t first,
                                      uint32_t count)
{
    const mimo_cuda_plain rows = mimo_cuda_rows(s, s.work.x, s.work.x_stride);
    const mimo_cuda_normed input = mimo_cuda_normed_rows(team, rows, s.layer[layer].mlp_norm);
    const uint32_t E = s.config->experts;
    mimo_cuda_columns(team, s.layer[layer].router, first, count, input, s.step->rows,
                      [&](uint32_t e, uint32_t t, float y) { s.work.router_logits[t * E + e] = y; });
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
                                           uint32_t t, uint32_t *chosen)
{
    const uint32_t E = s.config->experts, K = s.config->top_k;
    const float *logits = s.work.router_logits + t * E;
    uint32_t *expert = s.work.routes->expert + t * K;
    float *weight = s.work.routes->weight + t * K;
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
                                        expert[at] = chosen[k];
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

/* Rows by expert: each entry finds its own place. */
template <class Team> MIMO_BODY inline void mimo_cuda_group_rows(const Team &team, const mimo_cuda_state &s)
{
    mimo_cuda_routes *r = s.work.routes;
    const uint32_t K = s.config->top_k, n = s.step->rows * K;
    team.threads(n, [&](uint32_t i) {
        const uint32_t e = r->expert[i];
        uint32_t at = 0;
        for (uint32_t j = 0; j < n; j++)
            at += r->expert[j] < e || (r->expert[j] == e && j < i);
        r->owner[at] = e;
        r->row[at] = (uint16_t)(i / K);
        r->slot[at] = (uint16_t)i;
        r->share[at] = r->weight[i];
    });
    team.sync();
    team.threads(n, [&](uint32_t at) {
        /* cppcheck-suppress arrayIndexOutOfBoundsCond ; at < n, which cppcheck cannot see */
        if (at > 0 && r->owner[at] == r->owner[at - 1])
            return;
        uint32_t index = 0;
        bool last = true;
        for (uint32_t j = 1; j < n; j++) {
            const bool begins = r->owner[j] != r->owner[j - 1];
            index += begins && j <= at;
            last = last && !(begins && j > at);
        }
        r->active[index] = r->owner[at];
        r->first[index] = at;
        if (last) {
            r->actives = index + 1;
            r->first[index + 1] = n;
        }
    });
}

/* The experts of all rows, and their weights; by one team, when all router logits are there. */
template <class Team>
MIMO_BODY inline void mimo_cuda_choose_rows(const Team &team, const mimo_cuda_state &s, uint32_t layer)
{
    float *own = mimo_cuda_own_scratch(team) + team.warp() * MIMO_CUDA_CHUNK;
    uint32_t *chosen = reinterpret_cast<uint32_t *>(own); /* [K] */
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        mimo_cuda_choose_row(team, s, s.layer[layer], t, chosen);
        team.meet();
    }
    team.sync();
}

template <class Team>
MIMO_BODY inline void mimo_cuda_route_choose(const Team &team, const mimo_cuda_state &s, uint32_t layer)
{
    mimo_cuda_choose_rows(team, s, layer);
    mimo_cuda_group_rows(team, s);
}

#endif
