/* Operation bodies by a team of one. */
#include "cuda/host.h"

#include "cuda/op/bodies.h"
#include "cuda/tile/multiply.h"

namespace
{

typedef mimo_host_team team_type;

/* f(first, count) for the tiles of `columns`, from the last one on: no order is promised. */
template <class F> void tiles(uint32_t columns, uint32_t tile, F f)
{
    for (uint32_t i = (columns + tile - 1) / tile; i-- > 0;)
        f(i * tile, columns - i * tile < tile ? columns - i * tile : tile);
}

template <class F> void heads(const mimo_cuda_layer &layer, uint32_t begin, uint32_t end, uint32_t tile, F f)
{
    const mimo_attention &a = layer.attention;
    for (uint32_t head = begin; head < end; head++) {
        const uint32_t steps = mimo_cuda_head_steps(&a, head);
        const bool whole = layer.q_norm != nullptr && head < a.heads + a.kv_heads;
        tiles(steps, whole ? steps : tile, [&](uint32_t first, uint32_t count) { f(head, first, count); });
    }
}

void attention(const team_type &team, const mimo_cuda_state &s, uint32_t layer, bool split)
{
    const uint32_t G = s.layer[layer].attention.kv_heads;
    for (uint32_t t = 0; t < s.step->rows; t++)
        for (uint32_t g = 0; g < G; g++) {
            if (!split) {
                mimo_cuda_attend(team, s, layer, t, g);
                continue;
            }
            for (uint32_t i = mimo_cuda_chunks(mimo_cuda_keys_of(s, s.layer[layer], t)); i-- > 0;)
                mimo_cuda_attend_chunk(team, s, layer, t, g, i);
            mimo_cuda_attend_merge(team, s, layer, t, g);
        }
}

void route(const team_type &team, const mimo_cuda_state &s, uint32_t layer, uint32_t tile)
{
    tiles(s.config->hidden, tile,
          [&](uint32_t first, uint32_t count) { mimo_cuda_route_norm(team, s, layer, first, count); });
    tiles(s.config->experts, tile,
          [&](uint32_t first, uint32_t count) { mimo_cuda_route(team, s, layer, first, count); });
    mimo_cuda_route_choose(team, s, layer);
}

void draft_context(const team_type &team, const mimo_cuda_state &s, uint32_t tile)
{
    for (uint32_t layer = 0; layer < s.config->layers; layer++) {
        const uint32_t N = s.layer[layer].attention.heads, G = s.layer[layer].attention.kv_heads;
        heads(s.layer[layer], N, N + 2 * G, tile, [&](uint32_t head, uint32_t first, uint32_t count) {
            mimo_cuda_draft_context(team, s, layer, head - N, first, count);
        });
    }
}

template <uint32_t format>
void unpack(float *out, const uint8_t *page, uint32_t units, uint32_t unit, uint32_t k)
{
    const uint32_t blocks = k / MIMO_PAGE_BLOCK;
    const uint8_t *scales = page + mimo_page_scales(format, units, k);
    for (uint32_t b = 0; b < blocks; b++)
        for (uint32_t i = 0; i < 2 * MIMO_LANES; i++) {
            const uint32_t lane = i / 2, upper = i % 2, g = lane / 4, c = lane % 4;
            const uint8_t *block = page + (unit * blocks + b) * (size_t)mimo_page_block_bytes(format);
            const uint32_t at = mimo_page_scale(format, unit, b, k);
            float *w = out + (g + 8 * upper) * (size_t)k + b * MIMO_PAGE_BLOCK + c * MIMO_PAGE_GROUP;
            mimo_tile_group<format>(w, block, lane, upper, mimo_tile_group_scale<format>(scales, at, g, upper));
            for (uint32_t j = 0; j < MIMO_PAGE_GROUP; j++)
                w[j] *= mimo_tile_row_scale<format>(page, units, k, unit, g, upper);
        }
}

} // namespace

void mimo_cuda_host_run(mimo_cuda_host *host, const mimo_op *op, uint32_t tile, bool split)
{
    const mimo_cuda_state &s = host->state;
    const team_type team = {host->scratch};
    const uint32_t layer = op->layer, H = s.config->hidden;
    mimo_cuda_prepare(team, s, op->code);
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_EMBED:
        for (uint32_t t = 0; t < s.step->rows; t++)
            mimo_cuda_embed(team, s, t);
        break;
    case MIMO_OP_DRAFT_FUSE:
        tiles(H, tile, [&](uint32_t first, uint32_t count) { mimo_cuda_draft_fuse(team, s, first, count); });
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        draft_context(team, s, tile);
        break;
    case MIMO_OP_DRAFT_EMBED:
        for (uint32_t t = 0; t < s.step->rows; t++)
            mimo_cuda_draft_embed(team, s, t);
        break;
    case MIMO_OP_QKV:
        heads(
            s.layer[layer], 0, s.layer[layer].attention.heads + 2 * s.layer[layer].attention.kv_heads, tile,
            [&](uint32_t head, uint32_t first, uint32_t count) { mimo_cuda_qkv(team, s, layer, head, first, count); });
        break;
    case MIMO_OP_ATTENTION:
        attention(team, s, layer, split);
        break;
    case MIMO_OP_OUT_PROJ:
        tiles(H, tile, [&](uint32_t first, uint32_t count) { mimo_cuda_out_proj(team, s, layer, first, count); });
        break;
    case MIMO_OP_ROUTE:
        route(team, s, layer, tile);
        break;
    case MIMO_OP_EXPERT_UP:
        for (uint32_t i = s.work.moe->experts; i-- > 0;)
            tiles(s.config->expert_width, tile,
                  [&](uint32_t first, uint32_t count) { mimo_cuda_expert_up(team, s, layer, i, first, count); });
        break;
    case MIMO_OP_EXPERT_DOWN:
        tiles(H, tile, [&](uint32_t first, uint32_t count) { mimo_cuda_expert_down(team, s, layer, first, count); });
        break;
    case MIMO_OP_DENSE_UP:
        tiles(s.config->dense_width, tile,
              [&](uint32_t first, uint32_t count) { mimo_cuda_dense_up(team, s, layer, first, count); });
        break;
    case MIMO_OP_DENSE_DOWN:
        tiles(H, tile, [&](uint32_t first, uint32_t count) { mimo_cuda_dense_down(team, s, layer, first, count); });
        break;
    case MIMO_OP_HEAD:
        if (s.step->outputs > 0)
            tiles(s.head.rows, tile, [&](uint32_t first, uint32_t count) { mimo_cuda_head(team, s, first, count); });
        break;
    case MIMO_OP_COUNT:
        break;
    }
}

void mimo_cuda_host_gemv(float *y, const mimo_cuda_matrix *w, const float *x, size_t x_stride, uint32_t T)
{
    const team_type team = {nullptr};
    mimo_cuda_plain input = {};
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
        input.row[t] = x + (t < T ? t : 0) * x_stride;
    mimo_cuda_columns(team, *w, 0, w->rows, input, T,
                      [&](uint32_t o, uint32_t t, float value) { y[(size_t)t * w->rows + o] = value; });
}

void mimo_cuda_host_unit(float *out, uint32_t format, const uint8_t *page, uint32_t units, uint32_t unit, uint32_t k)
{
    switch (format) {
    case MIMO_FORMAT_F32:
        return unpack<MIMO_FORMAT_F32>(out, page, units, unit, k);
    case MIMO_FORMAT_BF16:
        return unpack<MIMO_FORMAT_BF16>(out, page, units, unit, k);
    case MIMO_FORMAT_FP8:
        return unpack<MIMO_FORMAT_FP8>(out, page, units, unit, k);
    case MIMO_FORMAT_MXFP4:
        return unpack<MIMO_FORMAT_MXFP4>(out, page, units, unit, k);
    default:
        return unpack<MIMO_PAGE_E4M3>(out, page, units, unit, k);
    }
}

void mimo_cuda_host_round(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = mimo_cuda_round_e4m3(x[i]);
}
