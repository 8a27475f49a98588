/* y[t, o] = sum_k w[o, k] * x[t, k] for up to 8 rows t, by warps.
 *
 * A warp takes a row or two of the matrix. Unit u of 8 elements belongs to lane u % 32, which adds its units in
 * ascending order, acc = fma(w, x, acc); the lanes are added as a butterfly. One accumulator a (row, t): neither the
 * number of rows nor what else the warp computes changes a bit. */
#ifndef MIMO_CUDA_OP_GEMV_H
#define MIMO_CUDA_OP_GEMV_H

#include <math.h>

#include "cuda/op/decode.h"
#include "cuda/team.h"

/* Inputs: load(x, j, unit) gives unit `unit` of the j-th row. */

/* Rows as they lie. */
struct mimo_cuda_plain {
    const float *row[MIMO_CUDA_ROWS];

    MIMO_BODY void load(float x[8], uint32_t j, uint32_t unit) const
    {
        mimo_cuda_floats(x, row[j] + 8 * (size_t)unit);
    }
};

/* Rows normed on the way: (x * scale) * weight. */
struct mimo_cuda_normed {
    const float *row[MIMO_CUDA_ROWS], *weight;
    const float *scale; /* [rows], of the team's scratch */

    MIMO_BODY void load(float x[8], uint32_t j, uint32_t unit) const
    {
        float w[8];
        mimo_cuda_floats(x, row[j] + 8 * (size_t)unit);
        mimo_cuda_floats(w, weight + 8 * (size_t)unit);
        for (int i = 0; i < 8; i++)
            x[i] = x[i] * scale[j] * w[i];
    }
};

template <uint32_t format, uint32_t R, uint32_t W, class Team, class Input>
MIMO_BODY inline void mimo_cuda_dot_wide(const Team &team, float (&y)[R][MIMO_CUDA_ROWS], const mimo_cuda_row (&row)[R],
                                         uint32_t units, const Input &input, uint32_t T)
{
    typename Team::template lane_value<float> sum[R][W];
    team.lanes([&](uint32_t lane) {
        float acc[R][W] = {};
        for (uint32_t u = lane; u < units; u += MIMO_LANES) {
            float w[R][8];
            for (uint32_t r = 0; r < R; r++)
                mimo_cuda_weights<format>(w[r], row[r], u);
            for (uint32_t t = 0; t < W; t++) {
                if (t >= T)
                    continue;
                float x[8];
                input.load(x, t, u);
                for (uint32_t r = 0; r < R; r++)
                    for (uint32_t i = 0; i < 8; i++)
                        acc[r][t] = fmaf(w[r][i], x[i], acc[r][t]);
            }
        }
        for (uint32_t r = 0; r < R; r++)
            for (uint32_t t = 0; t < W; t++)
                sum[r][t][lane] = acc[r][t];
    });
    for (uint32_t r = 0; r < R; r++)
        for (uint32_t t = 0; t < W; t++)
            y[r][t] = t < T ? team.sum(sum[r][t]) : 0.0f;
}

template <uint32_t format, uint32_t R, class Team, class Input>
MIMO_BODY inline void mimo_cuda_dot_of(const Team &team, float (&y)[R][MIMO_CUDA_ROWS], const mimo_cuda_row (&row)[R],
                                       uint32_t units, const Input &input, uint32_t T)
{
    if (T == 1)
        mimo_cuda_dot_wide<format, R, 1>(team, y, row, units, input, T);
    else
        mimo_cuda_dot_wide<format, R, MIMO_CUDA_ROWS>(team, y, row, units, input, T);
}

/* y[r][t] of R rows of one format and width; all lanes get them. */
template <uint32_t R, class Team, class Input>
MIMO_BODY inline void mimo_cuda_dot(const Team &team, float (&y)[R][MIMO_CUDA_ROWS], const mimo_cuda_row (&row)[R],
                                    uint32_t format, uint32_t cols, const Input &input, uint32_t T)
{
    const uint32_t units = (cols + 7) / 8;
    switch (format) {
    case MIMO_FORMAT_F32:
        return mimo_cuda_dot_of<MIMO_FORMAT_F32>(team, y, row, units, input, T);
    case MIMO_FORMAT_BF16:
        return mimo_cuda_dot_of<MIMO_FORMAT_BF16>(team, y, row, units, input, T);
    case MIMO_FORMAT_FP8:
        return mimo_cuda_dot_of<MIMO_FORMAT_FP8>(team, y, row, units, input, T);
    default:
        return mimo_cuda_dot_of<MIMO_FORMAT_MXFP4>(team, y, row, units, input, T);
    }
}

/* store(o, t, y) for rows [first, first + count) of w, by one lane of a warp: that of t. */
template <class Team, class Input, class Store>
MIMO_BODY inline void mimo_cuda_columns(const Team &team, const mimo_cuda_matrix &w, uint32_t first, uint32_t count,
                                        const Input &input, uint32_t T, Store store)
{
    const uint32_t end = first + count;
    for (uint32_t o = first + 2 * team.warp(); o < end; o += 2 * team.warps()) {
        const uint32_t other = o + 1 < end ? o + 1 : o;
        const mimo_cuda_row row[2] = {mimo_cuda_row_of(w, o), mimo_cuda_row_of(w, other)};
        float y[2][MIMO_CUDA_ROWS];
        mimo_cuda_dot<2>(team, y, row, w.format, w.cols, input, T);
        team.lanes([&](uint32_t lane) {
            for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
                if (t < T && t == lane) {
                    store(o, t, y[0][t]);
                    if (other != o)
                        store(other, t, y[1][t]);
                }
        });
    }
}

#endif
