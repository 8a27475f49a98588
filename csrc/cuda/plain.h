/* The kernels of the plain path: one CTA's share of an operation, as a loop over tiles.
 *
 * CTA `cta` of `ctas` takes every ctas-th tile, whatever their number, so the grid decides speed and no bit. plain.cu
 * makes them __global__ functions, plain.cc functions of the host for tests. */
#ifndef MIMO_CUDA_PLAIN_H
#define MIMO_CUDA_PLAIN_H

#include "cuda/op/bodies.h"
#include "cuda/team.h"

/* f(first, count) for this CTA's tiles of `columns`, each as wide as the team has warps, times `more`. */
template <class Team, class F>
MIMO_BODY inline void mimo_plain_columns(const Team &team, uint32_t columns, uint32_t more, uint32_t cta, uint32_t ctas,
                                         F f)
{
    const uint32_t width = team.warps() * more;
    for (uint32_t first = cta * width; first < columns; first += ctas * width)
        f(first, columns - first < width ? columns - first : width);
}

/* f(head, first, count) for this CTA's tiles of heads [begin, end) of a qkv matrix. A head that is normed is one tile.
 */
template <class Team, class F>
MIMO_BODY inline void mimo_plain_heads(const Team &team, const mimo_cuda_layer &layer, uint32_t begin, uint32_t end,
                                       uint32_t cta, uint32_t ctas, F f)
{
    const mimo_attention &a = layer.attention;
    const uint32_t width = team.warps(), widest = a.head_dim > a.v_head_dim ? a.head_dim : a.v_head_dim;
    const uint32_t tiles = (widest + width - 1) / width;
    for (uint32_t item = cta; item < (end - begin) * tiles; item += ctas) {
        const uint32_t head = begin + item / tiles, steps = mimo_cuda_head_steps(&a, head);
        const bool whole = layer.q_norm != nullptr && head < a.heads + a.kv_heads;
        const uint32_t size = whole ? steps : width, first = item % tiles * size;
        if (first < steps)
            f(head, first, steps - first < size ? steps - first : size);
    }
}

template <class Team>
MIMO_BODY inline void mimo_plain_embed(const Team &team, const mimo_cuda_state &s, uint32_t, uint32_t cta,
                                       uint32_t ctas)
{
    for (uint32_t t = cta; t < s.step->rows; t += ctas)
        mimo_cuda_embed(team, s, t);
}

template <class Team>
MIMO_BODY inline void mimo_plain_draft_fuse(const Team &team, const mimo_cuda_state &s, uint32_t, uint32_t cta,
                                            uint32_t ctas)
{
    mimo_plain_columns(team, s.config->hidden, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_draft_fuse(team, s, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_draft_context(const Team &team, const mimo_cuda_state &s, uint32_t, uint32_t cta,
                                               uint32_t ctas)
{
    mimo_cuda_prepare(team, s, MIMO_OP_DRAFT_CONTEXT);
    for (uint32_t layer = 0; layer < s.config->layers; layer++) {
        const uint32_t N = s.layer[layer].attention.heads, G = s.layer[layer].attention.kv_heads;
        mimo_plain_heads(team, s.layer[layer], N, N + 2 * G, cta, ctas,
                         [&](uint32_t head, uint32_t first, uint32_t count) {
                             mimo_cuda_draft_context(team, s, layer, head - N, first, count);
                         });
    }
}

template <class Team>
MIMO_BODY inline void mimo_plain_draft_embed(const Team &team, const mimo_cuda_state &s, uint32_t, uint32_t cta,
                                             uint32_t ctas)
{
    for (uint32_t t = cta; t < s.step->rows; t += ctas)
        mimo_cuda_draft_embed(team, s, t);
}

template <class Team>
MIMO_BODY inline void mimo_plain_qkv(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                     uint32_t ctas)
{
    const mimo_attention &a = s.layer[layer].attention;
    mimo_cuda_prepare(team, s, MIMO_OP_QKV);
    mimo_plain_heads(
        team, s.layer[layer], 0, a.heads + 2 * a.kv_heads, cta, ctas,
        [&](uint32_t head, uint32_t first, uint32_t count) { mimo_cuda_qkv(team, s, layer, head, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_attend(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                        uint32_t ctas)
{
    const uint32_t G = s.layer[layer].attention.kv_heads;
    for (uint32_t item = cta; item < s.step->rows * G; item += ctas)
        mimo_cuda_attend(team, s, layer, item / G, item % G);
}

/* Chunks of all queries side by side, */
template <class Team>
MIMO_BODY inline void mimo_plain_attend_chunks(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                               uint32_t ctas)
{
    const uint32_t G = s.layer[layer].attention.kv_heads, queries = s.step->rows * G;
    uint32_t chunks = 0;
    for (uint32_t t = 0; t < s.step->rows; t++) {
        const uint32_t own = mimo_cuda_chunks(mimo_cuda_keys_of(s, s.layer[layer], t));
        chunks = own > chunks ? own : chunks;
    }
    for (uint32_t item = cta; item < queries * chunks; item += ctas)
        mimo_cuda_attend_chunk(team, s, layer, item % queries / G, item % G, item / queries);
}

/* then their sums. */
template <class Team>
MIMO_BODY inline void mimo_plain_attend_merge(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                              uint32_t ctas)
{
    const uint32_t G = s.layer[layer].attention.kv_heads;
    for (uint32_t item = cta; item < s.step->rows * G; item += ctas)
        mimo_cuda_attend_merge(team, s, layer, item / G, item % G);
}

template <class Team>
MIMO_BODY inline void mimo_plain_out_proj(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                          uint32_t ctas)
{
    mimo_plain_columns(team, s.config->hidden, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_out_proj(team, s, layer, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_route(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                       uint32_t ctas)
{
    mimo_cuda_prepare(team, s, MIMO_OP_ROUTE);
    mimo_plain_columns(team, s.config->hidden, MIMO_LANES, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_route_norm(team, s, layer, first, count); });
    mimo_plain_columns(team, s.config->experts, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_route(team, s, layer, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_route_choose(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                              uint32_t)
{
    if (cta == 0)
        mimo_cuda_route_choose(team, s, layer);
}

template <class Team>
MIMO_BODY inline void mimo_plain_expert_up(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                           uint32_t ctas)
{
    const uint32_t F = s.config->expert_width, width = team.warps(), tiles = (F + width - 1) / width;
    for (uint32_t item = cta; item < s.work.moe->experts * tiles; item += ctas) {
        const uint32_t first = item % tiles * width;
        mimo_cuda_expert_up(team, s, layer, item / tiles, first, F - first < width ? F - first : width);
    }
}

template <class Team>
MIMO_BODY inline void mimo_plain_expert_down(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                             uint32_t ctas)
{
    mimo_plain_columns(team, s.config->hidden, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_expert_down(team, s, layer, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_dense_up(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                          uint32_t ctas)
{
    mimo_cuda_prepare(team, s, MIMO_OP_DENSE_UP);
    mimo_plain_columns(team, s.config->dense_width, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_dense_up(team, s, layer, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_dense_down(const Team &team, const mimo_cuda_state &s, uint32_t layer, uint32_t cta,
                                            uint32_t ctas)
{
    mimo_plain_columns(team, s.config->hidden, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_dense_down(team, s, layer, first, count); });
}

template <class Team>
MIMO_BODY inline void mimo_plain_head(const Team &team, const mimo_cuda_state &s, uint32_t, uint32_t cta, uint32_t ctas)
{
    if (s.step->outputs == 0)
        return;
    mimo_cuda_prepare(team, s, MIMO_OP_HEAD);
    mimo_plain_columns(team, s.head.rows, 1, cta, ctas,
                       [&](uint32_t first, uint32_t count) { mimo_cuda_head(team, s, first, count); });
}

#endif
