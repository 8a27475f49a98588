/* RMS norm: what a row is divided by, kept in the team's scratch; and what several operations share.
 *
 * The sum of squares is kept in 8 x 32 lanes: unit u of a row belongs to lane u % 32 of slice u / 32 % 8, slices are
 * added as ((0+4)+(2+6)) + ((1+5)+(3+7)), so that the sum does not depend on how many warps share a row. */
#ifndef MIMO_CUDA_OP_NORM_H
#define MIMO_CUDA_OP_NORM_H

#include "cuda/op/gemv.h"
#include "plan/plan.h"

enum { MIMO_CUDA_SLICES = 8 };

/* The scratch of a team: sums of slices, then the scales, then an operation's own. */
template <class Team> MIMO_BODY inline float *mimo_cuda_scales(const Team &team)
{
    return team.scratch() + MIMO_CUDA_ROWS * MIMO_CUDA_SLICES;
}

template <class Team> MIMO_BODY inline float *mimo_cuda_own_scratch(const Team &team)
{
    return mimo_cuda_scales(team) + MIMO_CUDA_ROWS;
}

/* Scales of the rows `input` [n], H wide and zero beyond. */
template <class Team>
MIMO_BODY inline void mimo_cuda_norm_scales(const Team &team, const mimo_cuda_plain &input, uint32_t n, uint32_t H,
                                            float eps)
{
    float *slice = team.scratch(), *scale = mimo_cuda_scales(team);
    const uint32_t units = (H + 7) / 8;
    team.sync(); /* nobody reads the scales of before */
    for (uint32_t item = team.warp(); item < n * MIMO_CUDA_SLICES; item += team.warps()) {
        const uint32_t row = item / MIMO_CUDA_SLICES, first = item % MIMO_CUDA_SLICES * MIMO_LANES;
        typename Team::template lane_value<float> sum;
        team.lanes([&](uint32_t lane) {
            float acc = 0.0f, x[8];
            for (uint32_t u = first + lane; u < units; u += MIMO_CUDA_SLICES * MIMO_LANES) {
                input.load(x, row, u);
                for (int i = 0; i < 8; i++)
                    acc = fmaf(x[i], x[i], acc);
            }
            sum[lane] = acc;
        });
        const float total = team.sum(sum);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                slice[item] = total;
        });
    }
    team.sync();
    team.threads(n, [&](uint32_t i) {
        const float *p = slice + i * MIMO_CUDA_SLICES;
        const float sum = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
        scale[i] = 1.0f / sqrtf(sum / (float)H + eps);
    });
    team.sync();
}

/* All rows of the step, `stride` apart. */
MIMO_BODY inline mimo_cuda_plain mimo_cuda_rows(const mimo_cuda_state &s, const float *from, size_t stride)
{
    mimo_cuda_plain input = {};
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
        input.row[t] = from + (t < s.step->rows ? t : 0) * stride;
    return input;
}

MIMO_BODY inline mimo_cuda_plain mimo_cuda_outputs(const mimo_cuda_state &s)
{
    mimo_cuda_plain input = {};
    for (uint32_t i = 0; i < MIMO_CUDA_ROWS; i++)
        input.row[i] = s.work.x + (i < s.step->outputs ? s.step->output[i] : 0) * s.work.x_stride;
    return input;
}

/* Rows that prepare() has seen, normed with `weight`. */
template <class Team>
MIMO_BODY inline mimo_cuda_normed mimo_cuda_normed_rows(const Team &team, const mimo_cuda_plain &rows,
                                                        const float *weight)
{
    mimo_cuda_normed input = {};
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
        input.row[t] = rows.row[t];
    input.weight = weight;
    input.scale = mimo_cuda_scales(team);
    return input;
}

template <class Team> MIMO_BODY inline void mimo_cuda_prepare(const Team &team, const mimo_cuda_state &s, uint32_t code)
{
    const bool output = code == MIMO_OP_HEAD;
    if (!output && code != MIMO_OP_QKV && code != MIMO_OP_ROUTE && code != MIMO_OP_DENSE_UP &&
        code != MIMO_OP_DRAFT_CONTEXT)
        return;
    const mimo_cuda_plain rows = output ? mimo_cuda_outputs(s) : mimo_cuda_rows(s, s.work.x, s.work.x_stride);
    mimo_cuda_norm_scales(team, rows, output ? s.step->outputs : s.step->rows, s.config->hidden, s.config->norm_eps);
}

/* x[t, o] += y; where the layer ends, its taps are taken too. */
MIMO_BODY inline void mimo_cuda_add(const mimo_cuda_state &s, uint32_t layer, bool layer_ends, uint32_t o, uint32_t t,
                                    float y)
{
    float *x = s.work.x + t * s.work.x_stride + o;
    *x += y;
    if (!layer_ends)
        return;
    for (uint32_t i = 0; i < s.step->taps; i++)
        if (s.step->tap[i] == layer)
            s.step->hidden[i * s.step->hidden_stride + (size_t)t * s.config->hidden + o] = *x;
}

#endif
