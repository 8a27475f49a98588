/* The tape's ends, and the projection after attention. */
#ifndef MIMO_CUDA_OP_DENSE_H
#define MIMO_CUDA_OP_DENSE_H

#include "cuda/op/angle.h"
#include "cuda/op/norm.h"

/* Cosines and sines of row t, at its position. */
template <class Team> MIMO_BODY inline void mimo_cuda_angles(const Team &team, const mimo_cuda_state &s, uint32_t t)
{
    const float position = (float)s.step->position[t];
    for (int kind = 0; kind < 2; kind++) {
        const uint32_t half = s.work.cos[kind] != nullptr ? s.config->attention[kind].rotary_dim / 2 : 0;
        team.threads(half, [&](uint32_t j) {
            const size_t at = (size_t)t * half + j;
            mimo_cuda_turn(&s.work.cos[kind][at], &s.work.sin[kind][at], position * s.frequency[kind][j]);
        });
    }
}

/* Element h of a token's row in the embedding table, F32 or BF16. */
MIMO_BODY inline float mimo_cuda_embedding(const mimo_cuda_state &s, uint32_t token, uint32_t h)
{
    const uint8_t *row = s.embed.data + token * s.embed.row_bytes;
    return s.embed.format == MIMO_FORMAT_F32 ? reinterpret_cast<const float *>(row)[h]
                                             : mimo_bf16_decode(reinterpret_cast<const uint16_t *>(row)[h]);
}

/* Row t of x = the row of `token` in the embedding table. */
template <class Team>
MIMO_BODY inline void mimo_cuda_embed_token(const Team &team, const mimo_cuda_state &s, uint32_t t, uint32_t token)
{
    float *x = s.work.x + t * s.work.x_stride;
    team.threads(s.config->hidden, [&](uint32_t h) { x[h] = mimo_cuda_embedding(s, token, h); });
}

template <class Team> MIMO_BODY inline void mimo_cuda_embed(const Team &team, const mimo_cuda_state &s, uint32_t t)
{
    mimo_cuda_embed_token(team, s, t, s.step->token[t]);
    mimo_cuda_angles(team, s, t);
}

template <class Team>
MIMO_BODY inline void mimo_cuda_out_proj(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t first,
                                         uint32_t count)
{
    const mimo_cuda_plain input = mimo_cuda_rows(s, s.work.a, s.work.a_stride);
    mimo_cuda_columns(team, s.layer[layer].out, first, count, input, s.step->rows,
                      [&](uint32_t o, uint32_t t, float y) { mimo_cuda_add(s, layer, false, o, t, y); });
}

template <class Team>
MIMO_BODY inline void mimo_cuda_head(const Team &team, const mimo_cuda_state &s, uint32_t first, uint32_t count)
{
    const mimo_cuda_normed input = mimo_cuda_normed_rows(team, mimo_cuda_outputs(s), s.norm);
    mimo_cuda_columns(team, s.head, first, count, input, s.step->outputs,
                      [&](uint32_t o, uint32_t t, float y) { s.step->logits[t * s.step->logits_stride + o] = y; });
}

#endif
