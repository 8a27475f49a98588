/* Tasks that read a matrix from pages: PROJECT, DENSE_UP, EXPERT_UP, EXPERT_DOWN.
 *
 * A warp takes units of 16 rows of a page. Lane 4 g + c adds up its groups of rows g and g + 8 in ascending order of K
 * over all pages of a tile, then the four lanes of a quad are added: one accumulator a (row, t). */
#ifndef MIMO_CUDA_TILE_MATRIX_H
#define MIMO_CUDA_TILE_MATRIX_H

#include "cuda/op/draft.h"
#include "cuda/op/experts.h"
#include "cuda/page.h"
#include "cuda/tile/machine.h"

/* Rows of input, `stride` apart; row t is the row[t]-th, NULL: the t-th. Nothing here is indexed: it stays in
 * registers.
 */
struct mimo_tile_rows {
    const float *first;
    size_t stride;
    const uint8_t *row;

    MIMO_BODY void load(float x[8], uint32_t t, uint32_t unit) const
    {
        mimo_cuda_floats(x, first + (row != nullptr ? row[t] : t) * stride + 8 * (size_t)unit);
    }
};

/* The sums of a tile's units, of those that a warp has. */
template <class Team> struct mimo_tile_sums {
    typename Team::template lane_value<float> v[Team::most_units][2][MIMO_TILE_TOKENS];
};

template <class Team> MIMO_BODY inline void mimo_tile_clear(const Team &team, mimo_tile_sums<Team> &sums)
{
    team.lanes([&](uint32_t lane) {
        for (uint32_t i = 0; i < Team::most_units; i++)
            for (uint32_t h = 0; h < 2; h++)
                for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++)
                    sums.v[i][h][t][lane] = 0.0f;
    });
}

/* Columns [k, end) of T rows of input are about to be multiplied: teams that keep a copy of them make it here. */
template <class Team, class Input>
MIMO_BODY inline void mimo_tile_begin(const Team &, const Input &, uint32_t, uint32_t, uint32_t)
{
}

/* The state of a task's rows. */
MIMO_BODY inline const mimo_cuda_state &mimo_tile_state(const mimo_tile_machine &m, const mimo_tile_task &task)
{
    if (task.tape == MIMO_TAPE_TARGET)
        return m.target;
    return task.op_code == MIMO_OP_DRAFT_FUSE || task.op_code == MIMO_OP_DRAFT_CONTEXT ? m.context : m.block;
}

/* What row t of N is to be multiplied with. */
MIMO_BODY inline float mimo_tile_scale(const mimo_tile_machine &m, const mimo_cuda_state &s, uint32_t t)
{
    float sum = 0.0f;
    for (uint32_t i = 0; i < m.pieces; i++)
        sum += m.squares[t * m.pieces + i];
    return 1.0f / sqrtf(sum / (float)s.config->hidden + s.config->norm_eps);
}

/* Scales of all rows in the team's scratch. */
template <class Team>
MIMO_BODY inline const float *mimo_tile_scales(const Team &team, const mimo_tile_machine &m, const mimo_cuda_state &s)
{
    float *scale = mimo_cuda_scales(team);
    team.sync(); /* nobody reads those of before */
    team.threads(s.step->rows, [&](uint32_t t) { scale[t] = mimo_tile_scale(m, s, t); });
    team.sync();
    return scale;
}

/* Eight weights of one group, times the scale of their row. */
template <uint32_t format>
MIMO_BODY inline void mimo_tile_group(float w[8], const uint8_t *block, uint32_t lane, uint32_t upper, float scale)
{
    const uint8_t *group = block + mimo_page_group(format, lane, upper, 0);
    if constexpr (format == MIMO_FORMAT_F32) {
        const mimo_words4 low = mimo_cuda_load<mimo_words4>(group);
        const mimo_words4 high = mimo_cuda_load<mimo_words4>(block + mimo_page_group(format, lane, upper, 1));
        for (uint32_t i = 0; i < 4; i++) {
            w[i] = mimo_cuda_float(low.v[i]);
            w[i + 4] = mimo_cuda_float(high.v[i]);
        }
    } else if constexpr (format == MIMO_FORMAT_BF16) {
        const mimo_words4 words = mimo_cuda_load<mimo_words4>(group);
        for (uint32_t i = 0; i < 4; i++) {
            w[i] = mimo_bf16_decode((uint16_t)words.v[i]);
            w[i + 4] = mimo_bf16_decode((uint16_t)(words.v[i] >> 16));
        }
    } else if constexpr (format == MIMO_FORMAT_FP8) {
        const mimo_words2 words = mimo_cuda_load<mimo_words2>(group);
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_cuda_e4m3(words.v[i / 4] >> 8 * (i % 4) & 255) * scale;
    } else {
        const uint32_t codes = mimo_cuda_load<uint32_t>(group);
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_cuda_e2m1(codes >> 4 * i & 15) * scale;
    }
}

/* The scale of row g + 8 * upper in a unit and block. */
template <uint32_t format>
MIMO_BODY inline float mimo_tile_group_scale(const uint8_t *scales, uint32_t at, uint32_t g, uint32_t upper)
{
    if constexpr (format == MIMO_FORMAT_FP8)
        return mimo_cuda_float(mimo_cuda_load<uint32_t>(scales + 4 * (at + upper)));
    else if constexpr (format == MIMO_FORMAT_MXFP4)
        return mimo_cuda_e8m0(scales[at + 8 * upper + g]);
    else
        return 1.0f;
}

/* One page: columns [k, end) of the matrix for T rows of input. */
template <uint32_t format, class Team, class Input>
MIMO_BODY inline void mimo_tile_page_of(const Team &team, mimo_tile_sums<Team> &sums, const uint8_t *page,
                                        const mimo_tile_task &task, uint32_t units, uint32_t k, uint32_t end,
                                        const Input &input, uint32_t T)
{
    const uint32_t blocks = task.k_page / MIMO_PAGE_BLOCK;
    const uint8_t *scales = page + mimo_page_scales(format, units, task.k_page);
    for (uint32_t unit = team.warp(), i = 0; unit < units; unit += team.warps(), i++)
        team.lanes([&](uint32_t lane) {
            const uint32_t g = lane / 4, c = lane % 4;
            for (uint32_t b = 0; b < blocks; b++) {
                const uint32_t column = k + b * MIMO_PAGE_BLOCK + c * MIMO_PAGE_GROUP;
                if (column >= end)
                    break;
                const uint8_t *block = page + (unit * blocks + b) * (size_t)mimo_page_block_bytes(format);
                const uint32_t at = mimo_page_scale(format, unit, b, task.k_page);
                float w[2][8], x[8];
                for (uint32_t h = 0; h < 2; h++)
                    mimo_tile_group<format>(w[h], block, lane, h, mimo_tile_group_scale<format>(scales, at, g, h));
                for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
                    if (t >= T)
                        continue;
                    input.load(x, t, column / 8);
                    for (uint32_t h = 0; h < 2; h++)
                        for (uint32_t j = 0; j < 8; j++)
                            sums.v[i][h][t][lane] = fmaf(w[h][j], x[j], sums.v[i][h][t][lane]);
                }
            }
        });
}

/* Takes the next page from the ring, adds it, gives it back. */
template <class Team, class Ring, class Input>
MIMO_BODY inline void mimo_tile_page(const Team &team, Ring &ring, mimo_tile_sums<Team> &sums, uint32_t format,
                                     const mimo_tile_task &task, uint32_t units, uint32_t k, uint32_t end,
                                     const Input &input, uint32_t T)
{
    const uint8_t *page = ring.take();
    switch (format) {
    case MIMO_FORMAT_F32:
        mimo_tile_page_of<MIMO_FORMAT_F32>(team, sums, page, task, units, k, end, input, T);
        break;
    case MIMO_FORMAT_BF16:
        mimo_tile_page_of<MIMO_FORMAT_BF16>(team, sums, page, task, units, k, end, input, T);
        break;
    case MIMO_FORMAT_FP8:
        mimo_tile_page_of<MIMO_FORMAT_FP8>(team, sums, page, task, units, k, end, input, T);
        break;
    default:
        mimo_tile_page_of<MIMO_FORMAT_MXFP4>(team, sums, page, task, units, k, end, input, T);
        break;
    }
    ring.give();
}

/* store(unit, g, t, lower, upper): the sums of rows g and g + 8 of a unit, by one lane. */
template <class Team, class Store>
MIMO_BODY inline void mimo_tile_store(const Team &team, mimo_tile_sums<Team> &sums, uint32_t units, uint32_t T,
                                      Store store)
{
    for (uint32_t unit = team.warp(), i = 0; unit < units; unit += team.warps(), i++)
        for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
            if (t >= T)
                continue;
            team.sum_quads(sums.v[i][0][t]);
            team.sum_quads(sums.v[i][1][t]);
            team.lanes([&](uint32_t lane) {
                if (lane % 4 == t % 4)
                    store(unit, lane / 4, t, sums.v[i][0][t][lane], sums.v[i][1][t][lane]);
            });
        }
}

/* ---- PROJECT ---- */

template <class Team, class Ring, class Input>
MIMO_BODY inline void mimo_tile_project_rows(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                             Ring &ring, const mimo_cuda_state &s, uint32_t format, uint32_t rows,
                                             const Input &input)
{
    const uint32_t units = task.tile_rows / MIMO_PAGE_UNIT, end = task.k_first + task.k_count, T = s.step->rows;
    const bool head = task.op_code == MIMO_OP_HEAD;
    const float *scale = head ? mimo_tile_scales(team, m, s) : nullptr;
    mimo_tile_begin(team, input, T, task.k_first, end);
    for (uint32_t first = task.first; first < task.first + task.count; first += task.tile_rows) {
        mimo_tile_sums<Team> sums;
        mimo_tile_clear(team, sums);
        for (uint32_t i = 0; i < task.tile_pages; i++)
            mimo_tile_page(team, ring, sums, format, task, units, task.k_first + i * task.k_page, end, input, T);
        mimo_tile_store(team, sums, units, T, [&](uint32_t unit, uint32_t g, uint32_t t, float lower, float upper) {
            const uint32_t row = first + unit * MIMO_PAGE_UNIT + g, last = task.first + task.count;
            float *to = head ? s.step->logits + t * s.step->logits_stride
                             : m.p + ((size_t)task.split * MIMO_TILE_TOKENS + t) * rows;
            if (row < last)
                to[row] = head ? lower * scale[t] : lower;
            if (row + 8 < last)
                to[row + 8] = head ? upper * scale[t] : upper;
        });
    }
}

/* Rows of keys and values of all layers of a drafter's context. */
MIMO_BODY inline uint32_t mimo_tile_context_rows(const mimo_cuda_state &s)
{
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < s.config->layers; layer++) {
        const mimo_attention &a = s.layer[layer].attention;
        rows += a.kv_heads * (a.head_dim + a.v_head_dim);
    }
    return rows;
}

template <class Team, class Ring>
MIMO_BODY inline void mimo_tile_project(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                        Ring &ring)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_cuda_layer *layer = task.layer != MIMO_NO_LAYER ? &s.layer[task.layer] : nullptr;
    const mimo_tile_rows normed = {m.n, s.work.x_stride, nullptr};
    switch (task.op_code) {
    case MIMO_OP_QKV:
        return mimo_tile_project_rows(team, m, task, ring, s, layer->qkv.format, layer->qkv.rows, normed);
    case MIMO_OP_ROUTE:
        return mimo_tile_project_rows(team, m, task, ring, s, layer->router.format, layer->router.rows, normed);
    case MIMO_OP_OUT_PROJ:
        return mimo_tile_project_rows(team, m, task, ring, s, layer->out.format, layer->out.rows,
                                      mimo_tile_rows{s.work.a, s.work.a_stride, nullptr});
    case MIMO_OP_DENSE_DOWN:
        return mimo_tile_project_rows(team, m, task, ring, s, layer->down[0].format, layer->down[0].rows,
                                      mimo_tile_rows{s.work.u, s.work.u_stride, nullptr});
    case MIMO_OP_DRAFT_CONTEXT:
        return mimo_tile_project_rows(team, m, task, ring, s, s.layer[0].qkv.format, mimo_tile_context_rows(s), normed);
    case MIMO_OP_DRAFT_FUSE:
        return mimo_tile_project_rows(team, m, task, ring, s, s.draft->fuse.format, s.draft->fuse.rows,
                                      mimo_cuda_features(s));
    default:
        return mimo_tile_project_rows(team, m, task, ring, s, s.head.format, s.head.rows, normed);
    }
}

/* ---- DENSE_UP, EXPERT_UP, EXPERT_DOWN ---- */

/* A tile of gate and up whose first row is `first`, of a matrix that ends at `last`; row t of input is row[t] of the
 * step and goes to row to + t of U. */
template <class Team, class Ring, class Input>
MIMO_BODY inline void mimo_tile_up(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task, Ring &ring,
                                   const mimo_cuda_state &s, uint32_t format, uint32_t first, uint32_t last,
                                   const Input &input, const uint8_t *row, uint32_t to, uint32_t T, const float *scale)
{
    (void)m;
    const uint32_t units = 2 * task.tile_rows / MIMO_PAGE_UNIT;
    mimo_tile_sums<Team> sums;
    mimo_tile_clear(team, sums);
    for (uint32_t i = 0; i < task.tile_pages; i++)
        mimo_tile_page(team, ring, sums, format, task, units, i * task.k_page, task.k_count, input, T);
    mimo_tile_store(team, sums, units, T, [&](uint32_t unit, uint32_t g, uint32_t t, float gate, float up) {
        const uint32_t f = first + unit * (MIMO_PAGE_UNIT / 2) + g;
        const float r = scale[row != nullptr ? row[t] : t];
        if (f < last)
            s.work.u[(to + t) * s.work.u_stride + f] = mimo_cuda_swiglu(gate * r, up * r);
    });
}

template <class Team, class Ring>
MIMO_BODY inline void mimo_tile_dense_up(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                         Ring &ring)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_tile_rows input = {m.n, s.work.x_stride, nullptr};
    const float *scale = mimo_tile_scales(team, m, s);
    mimo_tile_begin(team, input, s.step->rows, 0, task.k_count);
    for (uint32_t first = task.first; first < task.first + task.count; first += task.tile_rows)
        mimo_tile_up(team, m, task, ring, s, s.layer[task.layer].gate[0].format, first, task.first + task.count, input,
                     nullptr, 0, s.step->rows, scale);
}

template <class Team, class Ring>
MIMO_BODY inline void mimo_tile_expert_up(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                          Ring &ring)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_moe &moe = *m.moe;
    const uint32_t F = s.config->expert_width, tiles = task.expert_pages / task.tile_pages;
    const float *scale = mimo_tile_scales(team, m, s);
    for (uint32_t n = task.first; n < moe.experts * tiles; n += task.count) {
        const mimo_moe_unit unit = mimo_moe_unit_at(n, tiles);
        const uint32_t at = moe.begin[unit.index], rows = moe.begin[unit.index + 1] - at;
        const mimo_tile_rows input = {m.n, s.work.x_stride, moe.row + at};
        mimo_tile_begin(team, input, rows, 0, task.k_count);
        mimo_tile_up(team, m, task, ring, s, s.layer[task.layer].gate[moe.expert[unit.index]].format,
                     unit.tile * task.tile_rows, F, input, moe.row + at, at, rows, scale);
    }
}

template <class Team, class Ring>
MIMO_BODY inline void mimo_tile_expert_down(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                            Ring &ring)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_moe &moe = *m.moe;
    const uint32_t units = task.tile_rows / MIMO_PAGE_UNIT, H = s.config->hidden;
    float *p = m.p + (size_t)task.split * MIMO_TILE_TOKENS * H;
    const uint32_t last = task.first + task.count;
    team.threads(s.step->rows * task.count,
                 [&](uint32_t i) { p[i / task.count * H + task.first + i % task.count] = 0.0f; });
    team.sync();
    for (uint32_t index = 0; index < moe.experts; index++) {
        if (moe.expert[index] % task.splits != task.split)
            continue;
        const uint32_t at = moe.begin[index], rows = moe.begin[index + 1] - at;
        const mimo_tile_rows input = {s.work.u + at * s.work.u_stride, s.work.u_stride, nullptr};
        mimo_tile_begin(team, input, rows, 0, task.k_count);
        mimo_tile_sums<Team> sums;
        mimo_tile_clear(team, sums);
        for (uint32_t i = 0; i < task.tile_pages; i++)
            mimo_tile_page(team, ring, sums, s.layer[task.layer].down[moe.expert[index]].format, task, units,
                           i * task.k_page, task.k_count, input, rows);
        mimo_tile_store(team, sums, units, rows, [&](uint32_t unit, uint32_t g, uint32_t j, float lower, float upper) {
            const uint32_t row = task.first + unit * MIMO_PAGE_UNIT + g;
            float *to = p + moe.row[at + j] * H;
            if (row < last)
                to[row] += moe.weight[at + j] * lower;
            if (row + 8 < last)
                to[row + 8] += moe.weight[at + j] * upper;
        });
        team.meet(); /* the next expert's row may be another lane's */
    }
}

#endif
