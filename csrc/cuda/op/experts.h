/* The MLPs of a layer: u = silu(gate) * up, and x += down, of the chosen experts or of the one of a dense layer. */
#ifndef MIMO_CUDA_OP_EXPERTS_H
#define MIMO_CUDA_OP_EXPERTS_H

#include "base/exp.h"
#include "cuda/op/norm.h"

MIMO_BODY inline float mimo_cuda_swiglu(float gate, float up)
{
    return gate / (1.0f + mimo_expf(-gate)) * up;
}

/* Columns [first, first + count) of u for T rows of input, which go to rows `to` and after of u. */
template <class Team, class Input>
MIMO_BODY inline void mimo_cuda_up(const Team &team, const mimo_cuda_state &s, const mimo_cuda_matrix &gate,
                                   const mimo_cuda_matrix &up, uint32_t first, uint32_t count, const Input &input,
                                   uint32_t to, uint32_t T)
{
    for (uint32_t o = first + team.warp(); o < first + count; o += team.warps()) {
        const mimo_cuda_row row[2] = {mimo_cuda_row_of(gate, o), mimo_cuda_row_of(up, o)};
        float y[2][MIMO_CUDA_ROWS];
        mimo_cuda_dot<2>(team, y, row, gate.format, gate.cols, input, T);
        team.lanes([&](uint32_t lane) {
            for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
                if (t < T && t == lane)
                    s.work.u[(to + t) * s.work.u_stride + o] = mimo_cuda_swiglu(y[0][t], y[1][t]);
        });
    }
}

template <class Team>
MIMO_BODY inline void mimo_cuda_expert_up(const Team &team, const mimo_cuda_state &s, uint32_t number, uint32_t i,
                                          uint32_t first, uint32_t count)
{
    const mimo_cuda_layer &layer = s.layer[number];
    const mimo_moe &moe = *s.work.moe;
    const uint32_t e = moe.expert[i], at = moe.begin[i], n = moe.begin[i + 1] - at;
    mimo_cuda_plain input = {};
    for (uint32_t j = 0; j < MIMO_CUDA_ROWS; j++)
        input.row[j] = s.work.m + moe.row[at + (j < n ? j : 0)] * s.work.x_stride;
    mimo_cuda_up(team, s, layer.gate[e], layer.up[e], first, count, input, at, n);
}

/* x += sum over a row's experts, by id, of weight * down: the sum first. */
template <class Team>
MIMO_BODY inline void mimo_cuda_expert_down(const Team &team, const mimo_cuda_state &s, uint32_t number, uint32_t first,
                                            uint32_t count)
{
    const mimo_cuda_layer &layer = s.layer[number];
    const mimo_moe &moe = *s.work.moe;
    for (uint32_t o = first + team.warp(); o < first + count; o += team.warps()) {
        float sum[MIMO_CUDA_ROWS] = {};
        for (uint32_t i = 0; i < moe.experts; i++) {
            const mimo_cuda_matrix &down = layer.down[moe.expert[i]];
            const uint32_t at = moe.begin[i], n = moe.begin[i + 1] - at;
            mimo_cuda_plain input = {};
            for (uint32_t j = 0; j < MIMO_CUDA_ROWS; j++)
                input.row[j] = s.work.u + (at + (j < n ? j : 0)) * s.work.u_stride;
            float y[1][MIMO_CUDA_ROWS];
            mimo_cuda_dot<1>(team, y, {mimo_cuda_row_of(down, o)}, down.format, down.cols, input, n);
            for (uint32_t j = 0; j < MIMO_CUDA_ROWS; j++) {
                if (j >= n)
                    continue;
                const float part = moe.weight[at + j] * y[0][j];
                for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++) /* registers have no index */
                    sum[t] = t == moe.row[at + j] ? sum[t] + part : sum[t];
            }
        }
        team.lanes([&](uint32_t lane) {
            for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
                if (t < s.step->rows && t == lane)
                    mimo_cuda_add(s, number, true, o, t, sum[t]);
        });
    }
}

template <class Team>
MIMO_BODY inline void mimo_cuda_dense_up(const Team &team, const mimo_cuda_state &s, uint32_t number, uint32_t first,
                                         uint32_t count)
{
    const mimo_cuda_layer &layer = s.layer[number];
    const mimo_cuda_plain rows = mimo_cuda_rows(s, s.work.x, s.work.x_stride);
    const mimo_cuda_normed input = mimo_cuda_normed_rows(team, rows, layer.mlp_norm);
    mimo_cuda_up(team, s, layer.gate[0], layer.up[0], first, count, input, 0, s.step->rows);
}

template <class Team>
MIMO_BODY inline void mimo_cuda_dense_down(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t first,
                                           uint32_t count)
{
    const mimo_cuda_plain input = mimo_cuda_rows(s, s.work.u, s.work.u_stride);
    mimo_cuda_columns(team, s.layer[layer].down[0], first, count, input, s.step->rows,
                      [&](uint32_t o, uint32_t t, float y) { mimo_cuda_add(s, layer, true, o, t, y); });
}

#endif
