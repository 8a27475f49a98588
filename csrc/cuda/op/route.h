/* x -> norm -> router logits; K experts per row by choose.h. */
#ifndef MIMO_CUDA_OP_ROUTE_H
#define MIMO_CUDA_OP_ROUTE_H

#include "cuda/op/choose.h"

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

/* The experts of all rows, when all router logits are there; by one team. */
template <class Team>
MIMO_BODY inline void mimo_cuda_route_choose(const Team &team, const mimo_cuda_state &s, uint32_t layer)
{
    const uint32_t E = s.config->experts;
    mimo_cuda_choose(team, s, s.layer[layer], *s.work.moe, [&](uint32_t t) {
        return [&s, E, t](float (&logit)[MIMO_CHOOSE_EACH], uint32_t lane) {
            for (uint32_t j = 0; j < MIMO_CHOOSE_EACH; j++) {
                const uint32_t e = j * MIMO_LANES + lane;
                logit[j] = e < E ? s.work.router_logits[t * E + e] : 0.0f;
            }
        };
    });
}

#endif
