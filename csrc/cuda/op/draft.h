/* A drafter's own operations; the rest of its tape is a model's. */
#ifndef MIMO_CUDA_OP_DRAFT_H
#define MIMO_CUDA_OP_DRAFT_H

#include "cuda/op/dense.h"
#include "cuda/op/qkv.h"

/* Rows of M taps, H wide each, one after the other. */
struct mimo_cuda_taps {
    const float *features;
    const uint32_t *row; /* of the features, for each row of the step */
    size_t stride;       /* from one tap to the next */
    uint32_t H, K;

    MIMO_BODY void load(float x[8], uint32_t j, uint32_t unit) const
    {
        const uint32_t k = 8 * unit;
        const float *first = features + (size_t)row[j] * H;
        if (H % 8 == 0) { /* taps are whole units, which lie as they are read */
            const float *from = first + k / H * stride + k % H;
            for (uint32_t i = 0; i < 8; i++)
                x[i] = from[i];
            return;
        }
        for (uint32_t i = 0; i < 8; i++)
            x[i] = k + i < K ? first[(k + i) / H * stride + (k + i) % H] : 0.0f;
    }
};

MIMO_BODY inline mimo_cuda_taps mimo_cuda_features(const mimo_cuda_state &s)
{
    const mimo_cuda_step &step = *s.step;
    const uint32_t H = s.config->hidden;
    return {step.features, step.context_row, step.features_stride, H, s.config->taps * H};
}

/* Columns [first, first + count) of x = fc [taps]. */
template <class Team>
MIMO_BODY inline void mimo_cuda_draft_fuse(const Team &team, const mimo_cuda_state &s, uint32_t first, uint32_t count)
{
    mimo_cuda_columns(team, s.draft->fuse, first, count, mimo_cuda_features(s), s.step->rows,
                      [&](uint32_t o, uint32_t t, float y) { s.work.x[t * s.work.x_stride + o] = y; });
    for (uint32_t t = 0; first == 0 && t < s.step->rows; t++)
        mimo_cuda_angles(team, s, t);
}

/* Of head `head` of a layer's context: keys are numbered first, then values. */
template <class Team>
MIMO_BODY inline void mimo_cuda_draft_context(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t head,
                                              uint32_t first, uint32_t count)
{
    mimo_cuda_project(team, s, s.layer[layer], s.layer[layer].attention.heads + head, first, count, s.draft->fuse_norm);
}

template <class Team>
MIMO_BODY inline void mimo_cuda_draft_embed(const Team &team, const mimo_cuda_state &s, uint32_t t)
{
    if (t == 0) {
        mimo_cuda_embed_token(team, s, 0, s.step->token[0]);
    } else {
        float *x = s.work.x + t * s.work.x_stride;
        team.threads(s.config->hidden, [&](uint32_t h) { x[h] = s.draft->mask[h]; });
    }
    mimo_cuda_angles(team, s, t);
}

#endif
