/* Tasks that read a matrix from pages: PROJECT, DENSE_UP, EXPERT_UP, EXPERT_DOWN.
 *
 * A task is a walk over segments: tiles of one matrix, units of several experts, or the experts that one tile sums
 * over. A segment's pages are taken from the ring, multiplied with the rows that its columns stand for, and given back;
 * where sums are complete they are stored. What a team does on its own is mimo_tile_sums, mimo_tile_clear,
 * mimo_tile_page and mimo_tile_store: here for any team, in sm90/mma.h by tensor cores. A column that is not there adds
 * zeros, so that a row's sums do not depend on the others. */
#ifndef MIMO_CUDA_TILE_MULTIPLY_H
#define MIMO_CUDA_TILE_MULTIPLY_H

#include "cuda/op/experts.h"
#include "cuda/tile/operand.h"

/* What is the same for all pages of a task. The rows it is multiplied with are looked up where they are fetched
 * (mimo_tile_source_of): nobody keeps them. */
struct mimo_tile_product {
    const mimo_tile_machine &m;
    const mimo_tile_task &task;
    uint32_t format;         /* of pages (page.h) */
    uint32_t units;          /* of 16 rows; of gate and up both together */
    uint32_t pages, k_page;  /* of a segment; elements of K on a page */
    uint32_t k_first, k_end; /* of K */
    uint32_t last_row;       /* rows of the source: a segment's columns, or those of all that follow, lie below */
};

/* Sums of up to 8 units. */
template <class Team> struct mimo_tile_sums {
    typename Team::template lane_value<float> v[MIMO_TILE_UNITS][2][MIMO_TILE_TOKENS];
};

/* What a team keeps near of the source, and from segment to segment; teams that read it where it is keep nothing. */
template <class Team> struct mimo_tile_near {};

template <class Team> MIMO_BODY inline void mimo_tile_clear(const Team &team, mimo_tile_sums<Team> &sums)
{
    team.lanes([&](uint32_t lane) {
        for (uint32_t i = 0; i < MIMO_TILE_UNITS; i++)
            for (uint32_t h = 0; h < 2; h++)
                for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++)
                    sums.v[i][h][t][lane] = 0.0f;
    });
}

/* The state of a task's rows. */
MIMO_BODY inline const mimo_cuda_state &mimo_tile_state(const mimo_tile_machine &m, const mimo_tile_task &task)
{
    if (task.tape == MIMO_TAPE_TARGET)
        return m.target;
    return task.op_code == MIMO_OP_DRAFT_FUSE || task.op_code == MIMO_OP_DRAFT_CONTEXT ? m.context : m.block;
}

/* What row t of N is to be multiplied with, by one warp; every lane gets it. */
template <class Team>
MIMO_BODY inline float mimo_tile_scale(const Team &team, const mimo_tile_machine &m, const mimo_cuda_state &s,
                                       uint32_t t)
{
    typename Team::template lane_value<float> sum;
    team.lanes([&](uint32_t lane) {
        sum[lane] = 0.0f;
        for (uint32_t i = lane; i < m.pieces; i += MIMO_LANES)
            sum[lane] += m.squares[t * m.pieces + i];
    });
    return 1.0f / sqrtf(team.sum(sum) / (float)s.config->hidden + s.config->norm_eps);
}

/* Of all rows, in the team's scratch. */
template <class Team>
MIMO_BODY inline const float *mimo_tile_scales(const Team &team, const mimo_tile_machine &m, const mimo_cuda_state &s)
{
    float *scale = mimo_cuda_scales(team);
    team.sync(); /* nobody reads those of before */
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        const float own = mimo_tile_scale(team, m, s, t);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                scale[t] = own;
        });
    }
    team.sync();
    return scale;
}

/* ---- what it is multiplied with ---- */

MIMO_BODY inline mimo_tile_source mimo_tile_source_of(const mimo_tile_product &p)
{
    const mimo_tile_machine &m = p.m;
    const mimo_tile_task &task = p.task;
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    mimo_tile_source source = {};
    source.parts = m.parts;
    source.operand = m.n;
    if (task.op_code == MIMO_OP_OUT_PROJ) {
        source.operand = m.a;
    } else if (task.op_code == MIMO_OP_EXPERT_DOWN || task.op_code == MIMO_OP_DENSE_DOWN) {
        source.operand = m.u;
    } else if (task.op_code == MIMO_OP_DRAFT_FUSE) {
        source.reading = MIMO_TILE_TAPS;
        source.taps = mimo_cuda_features(s);
    } else if (p.format == MIMO_FORMAT_F32) {
        source.reading = MIMO_TILE_NORMED;
        source.x = s.work.x;
        source.x_stride = s.work.x_stride;
        source.weight = mimo_tile_norm_before(s, task);
    }
    return source;
}

/* ---- pages ---- */

/* Eight weights of one group, times the scale of their row. Of MIMO_PAGE_E4M3 the scale is what the page has. */
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
        return;
    }
    if constexpr (format == MIMO_PAGE_E4M3) {
        const mimo_words2 table = mimo_cuda_e4m3_table((uint32_t)scale);
        for (uint32_t i = 0; i < 8; i++)
            w[i] = mimo_cuda_e4m3(
                mimo_cuda_e2m1_e4m3x4(mimo_cuda_load<uint32_t>(group + 4 * upper), i / 4, table) >> 8 * (i % 4) & 255);
        return;
    }
    uint32_t pair[4]; /* elements n and n + 4 as BF16 */
    float factor = 1.0f;
    if constexpr (format == MIMO_FORMAT_BF16) {
        for (uint32_t n = 0; n < 4; n++)
            pair[n] = mimo_cuda_load<uint32_t>(block + mimo_page_group(format, lane, upper, n));
    } else if constexpr (format == MIMO_FORMAT_FP8) {
        const mimo_words2 words = mimo_cuda_load<mimo_words2>(group);
        for (uint32_t n = 0; n < 4; n++)
            pair[n] = mimo_cuda_e4m3_bf16x2(words, n);
        factor = 0x1p120f;
    } else if constexpr (format == MIMO_FORMAT_MXFP4) {
        const mimo_words2 words = mimo_cuda_load<mimo_words2>(group);
        for (uint32_t n = 0; n < 4; n++)
            pair[n] = mimo_cuda_e2m1_bf16x2(words, upper, n);
        factor = MIMO_PAGE_MXFP4_UNDO;
    }
    for (uint32_t n = 0; n < 4; n++) {
        w[n] = mimo_bf16_decode((uint16_t)pair[n]) * factor * scale;
        w[n + 4] = mimo_bf16_decode((uint16_t)(pair[n] >> 16)) * factor * scale;
    }
}

/* The scale of row g + 8 * upper in a unit and block; `at`: mimo_page_scale. */
template <uint32_t format>
MIMO_BODY inline float mimo_tile_group_scale(const uint8_t *scales, uint32_t at, uint32_t g, uint32_t upper)
{
    if constexpr (format == MIMO_FORMAT_FP8)
        return mimo_cuda_float(mimo_cuda_load<uint32_t>(scales + 4 * (at + upper)));
    else if constexpr (format == MIMO_FORMAT_MXFP4)
        return mimo_cuda_float((uint32_t)scales[at + 2 * g + upper] << 23);
    else if constexpr (format == MIMO_PAGE_E4M3)
        return scales[at + 2 * g + upper];
    else
        return 1.0f;
}

/* What sums of row g + 8 * upper of a unit are to be multiplied with. */
template <uint32_t format>
MIMO_BODY inline float mimo_tile_row_scale(const uint8_t *page, uint32_t units, uint32_t k_page, uint32_t unit,
                                           uint32_t g, uint32_t upper)
{
    if constexpr (format == MIMO_PAGE_E4M3)
        return mimo_cuda_float((uint32_t)page[mimo_page_rows(units, k_page) + MIMO_PAGE_UNIT * unit + 2 * g + upper]
                               << 23);
    else
        return 1.0f;
}

/* Rows as they are multiplied: of MIMO_PAGE_E4M3 they are rounded to E4M3 times a scale of their own, so that the
 * largest element is 448. */
template <uint32_t format>
MIMO_BODY inline void mimo_tile_row_scales(float scale[MIMO_TILE_TOKENS], const mimo_tile_product &p,
                                           const mimo_tile_columns &columns)
{
    const mimo_tile_source source = mimo_tile_source_of(p);
    for (uint32_t t = 0; t < MIMO_TILE_TOKENS && format == MIMO_PAGE_E4M3; t++) {
        float most = 0.0f, x[8];
        for (uint32_t k = 0; k < p.k_end && columns.has(t); k += 8) {
            source.load(x, columns.row(t), k / 8);
            for (uint32_t j = 0; j < 8; j++)
                most = fmaxf(most, fabsf(x[j]));
        }
        scale[t] = most / 448.0f;
    }
}

/* One page from column k of the matrix on: a warp takes units; lane 4 g + c adds up its groups of rows g and g + 8 in
 * ascending order of K over all pages, and the lanes of a quad are added in the end. */
template <uint32_t format, class Team>
MIMO_BODY inline void mimo_tile_page_of(const Team &team, mimo_tile_sums<Team> &sums, const mimo_tile_product &p,
                                        const mimo_tile_columns &columns, const uint8_t *page, uint32_t k)
{
    const uint32_t blocks = p.k_page / MIMO_PAGE_BLOCK;
    const uint8_t *scales = page + mimo_page_scales(format, p.units, p.k_page);
    const mimo_tile_source source = mimo_tile_source_of(p);
    float row_scale[MIMO_TILE_TOKENS];
    mimo_tile_row_scales<format>(row_scale, p, columns);
    for (uint32_t unit = team.warp(); unit < p.units; unit += team.warps())
        team.lanes([&](uint32_t lane) {
            const uint32_t g = lane / 4, c = lane % 4;
            for (uint32_t b = 0; b < blocks; b++) {
                const uint32_t column = k + b * MIMO_PAGE_BLOCK + c * MIMO_PAGE_GROUP;
                if (column >= p.k_end)
                    break;
                const uint8_t *block = page + (unit * blocks + b) * (size_t)mimo_page_block_bytes(format);
                const uint32_t at = mimo_page_scale(format, unit, b, p.k_page);
                float w[2][8], x[8];
                for (uint32_t h = 0; h < 2; h++) {
                    mimo_tile_group<format>(w[h], block, lane, h, mimo_tile_group_scale<format>(scales, at, g, h));
                    const float factor = mimo_tile_row_scale<format>(page, p.units, p.k_page, unit, g, h);
                    for (uint32_t j = 0; j < 8 && format == MIMO_PAGE_E4M3; j++)
                        w[h][j] *= factor;
                }
                for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
                    if (!columns.has(t))
                        continue;
                    source.load(x, columns.row(t), column / 8);
                    if constexpr (format == MIMO_PAGE_E4M3)
                        for (uint32_t j = 0; j < 8; j++)
                            x[j] =
                                row_scale[t] > 0.0f ? mimo_cuda_round_e4m3(x[j] / row_scale[t]) * row_scale[t] : 0.0f;
                    for (uint32_t h = 0; h < 2; h++)
                        for (uint32_t j = 0; j < 8; j++)
                            sums.v[unit / team.warps()][h][t][lane] =
                                fmaf(w[h][j], x[j], sums.v[unit / team.warps()][h][t][lane]);
                }
            }
        });
}

/* The pages of a segment: each is taken from the ring, added, given back. */
template <class Team, class Ring>
MIMO_BODY inline void mimo_tile_pages(const Team &team, Ring &ring, mimo_tile_sums<Team> &sums, mimo_tile_near<Team> &,
                                      const mimo_tile_product &p, const mimo_tile_columns &columns)
{
    for (uint32_t i = 0; i < p.pages; i++) {
        const uint8_t *page = ring.take(p.task.page_bytes);
        const uint32_t k = p.k_first + i * p.k_page;
        switch (p.format) {
        case MIMO_FORMAT_F32:
            mimo_tile_page_of<MIMO_FORMAT_F32>(team, sums, p, columns, page, k);
            break;
        case MIMO_FORMAT_BF16:
            mimo_tile_page_of<MIMO_FORMAT_BF16>(team, sums, p, columns, page, k);
            break;
        case MIMO_FORMAT_FP8:
            mimo_tile_page_of<MIMO_FORMAT_FP8>(team, sums, p, columns, page, k);
            break;
        case MIMO_FORMAT_MXFP4:
            mimo_tile_page_of<MIMO_FORMAT_MXFP4>(team, sums, p, columns, page, k);
            break;
        default:
            mimo_tile_page_of<MIMO_PAGE_E4M3>(team, sums, p, columns, page, k);
            break;
        }
        ring.give(p.task.page_bytes);
    }
}

/* store(unit, g, t, lower, upper): the sums of rows g and g + 8 of a unit for every column t of mask, by one lane. */
template <class Team, class Store>
MIMO_BODY inline void mimo_tile_store(const Team &team, mimo_tile_sums<Team> &sums, mimo_tile_near<Team> &,
                                      uint32_t units, uint32_t mask, Store store)
{
    for (uint32_t unit = team.warp(), i = 0; unit < units; unit += team.warps(), i++)
        for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
            if (!(mask >> t & 1))
                continue;
            team.sum_quads(sums.v[i][0][t]);
            team.sum_quads(sums.v[i][1][t]);
            team.lanes([&](uint32_t lane) {
                if (lane % 4 == t % 4)
                    store(unit, lane / 4, t, sums.v[i][0][t][lane], sums.v[i][1][t][lane]);
            });
        }
}

/* ---- what a task multiplies ---- */

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

/* The format of the pages of a task's matrix, and its rows (of EXPERT_UP and DENSE_UP: of gate). */
struct mimo_tile_whole {
    uint32_t format, rows;
};

MIMO_BODY inline mimo_tile_whole mimo_tile_matrix(const mimo_tile_machine &m, const mimo_cuda_state &s,
                                                  const mimo_tile_task &task)
{
    const mimo_cuda_layer *layer = task.layer != MIMO_NO_LAYER ? &s.layer[task.layer] : nullptr;
    switch (task.op_code) {
    case MIMO_OP_QKV:
        return {layer->qkv.format, layer->qkv.rows};
    case MIMO_OP_ROUTE:
        return {layer->router.format, layer->router.rows};
    case MIMO_OP_OUT_PROJ:
        return {layer->out.format, layer->out.rows};
    case MIMO_OP_EXPERT_UP:
        return {m.up_format[task.tape], layer->gate[0].rows};
    case MIMO_OP_DENSE_UP:
        return {layer->gate[0].format, layer->gate[0].rows};
    case MIMO_OP_EXPERT_DOWN:
    case MIMO_OP_DENSE_DOWN:
        return {layer->down[0].format, layer->down[0].rows};
    case MIMO_OP_DRAFT_CONTEXT:
        return {s.layer[0].qkv.format, mimo_tile_context_rows(s)};
    case MIMO_OP_DRAFT_FUSE:
        return {s.draft->fuse.format, s.draft->fuse.rows};
    default:
        return {s.head.format, s.head.rows};
    }
}

MIMO_BODY inline mimo_tile_product mimo_tile_product_of(const mimo_tile_machine &m, const mimo_cuda_state &s,
                                                        const mimo_tile_task &task, uint32_t format)
{
    mimo_tile_product p = {m, task, 0, 0, 0, 0, 0, 0, 0};
    const bool up = task.kind == MIMO_TILE_EXPERT_UP || task.kind == MIMO_TILE_DENSE_UP;
    p.format = format;
    p.units = (up ? 2 : 1) * task.tile_rows / MIMO_PAGE_UNIT;
    p.pages = task.tile_pages;
    p.k_page = task.k_page;
    p.k_first = task.k_first;
    p.k_end = task.k_first + task.k_count;
    p.last_row = s.step->rows;
    if (task.kind == MIMO_TILE_EXPERT_DOWN)
        p.last_row = m.moe->begin[m.moe->experts];
    return p;
}

/* ---- segments ---- */

/* Where a task's walk stands. */
struct mimo_tile_segment {
    uint32_t at;    /* PROJECT, DENSE_UP: the tile's first row; EXPERT_UP: the unit; EXPERT_DOWN: index of the expert */
    uint32_t first; /* row of the matrix (of gate) that its tile begins with */
    mimo_tile_columns columns;
};

MIMO_BODY inline mimo_tile_columns mimo_tile_expert_columns(const mimo_moe &moe, uint32_t index, bool entries)
{
    return {moe.mask[index], moe.begin[index], entries};
}

/* What a task's segments have in common. */
struct mimo_tile_walk {
    const mimo_moe &moe;
    uint32_t end, step; /* of `at` */
    uint32_t tiles;     /* of an expert */
    uint32_t rows;      /* of the step, a bit each */
};

MIMO_BODY inline mimo_tile_walk mimo_tile_walk_of(const mimo_tile_machine &m, const mimo_tile_task &task, uint32_t rows)
{
    const mimo_moe &moe = *m.moe;
    const uint32_t all = (1u << rows) - 1;
    if (task.kind == MIMO_TILE_EXPERT_UP) {
        const uint32_t tiles = task.expert_pages / task.tile_pages;
        return {moe, moe.experts * tiles, task.count, tiles, all};
    }
    if (task.kind == MIMO_TILE_EXPERT_DOWN)
        return {moe, moe.experts, 1, 1, all};
    return {moe, task.first + task.count, task.tile_rows, 1, all};
}

/* The segment at s.at, or the next one there is; false: none. */
MIMO_BODY inline bool mimo_tile_find(const mimo_tile_walk &walk, const mimo_tile_task &task, mimo_tile_segment &s)
{
    const mimo_moe &moe = walk.moe;
    while (task.kind == MIMO_TILE_EXPERT_DOWN && task.splits > 1 && s.at < walk.end &&
           moe.expert[s.at] % task.splits != task.split)
        s.at++;
    if (s.at >= walk.end)
        return false;
    s.first = task.kind == MIMO_TILE_EXPERT_DOWN ? task.first : s.at;
    s.columns = {walk.rows, 0, false};
    if (task.kind == MIMO_TILE_EXPERT_UP) {
        const mimo_moe_unit unit = mimo_moe_unit_at(s.at, walk.tiles);
        s.first = unit.tile * task.tile_rows;
        s.columns = mimo_tile_expert_columns(moe, unit.index, false);
    } else if (task.kind == MIMO_TILE_EXPERT_DOWN) {
        s.columns = mimo_tile_expert_columns(moe, s.at, true);
    }
    return true;
}

/* ---- results ---- */

/* Sums of the segment's tile go where the task's kind has them; scale: of the rows of N, where they are needed. */
template <class Team>
MIMO_BODY inline void mimo_tile_results(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                        mimo_tile_sums<Team> &sums, mimo_tile_near<Team> &near,
                                        const mimo_cuda_state &s, const mimo_tile_whole &whole,
                                        const mimo_tile_segment &segment, uint32_t units, const float *scale)
{
    const uint32_t rows = s.step->rows, first = segment.first;
    if (task.kind == MIMO_TILE_EXPERT_UP || task.kind == MIMO_TILE_DENSE_UP) {
        const bool sparse = task.kind == MIMO_TILE_EXPERT_UP;
        const mimo_tile_columns entries = {segment.columns.mask, segment.columns.first, sparse};
        mimo_tile_store(team, sums, near, units, segment.columns.mask,
                        [&](uint32_t unit, uint32_t g, uint32_t t, float gate, float up) {
                            const uint32_t f = first + unit * (MIMO_PAGE_UNIT / 2) + g, entry = entries.row(t);
                            const float weight = sparse ? m.moe->weight[entry] : 1.0f;
                            if (f < whole.rows)
                                mimo_tile_put(m.u, m.parts, entry, f,
                                              weight * mimo_cuda_swiglu(gate * scale[t], up * scale[t]));
                        });
        return;
    }
    const bool head = task.op_code == MIMO_OP_HEAD;
    float *to = head ? s.step->logits : m.p + (size_t)task.split * MIMO_TILE_TOKENS * whole.rows;
    const size_t stride = head ? s.step->logits_stride : whole.rows;
    mimo_tile_store(team, sums, near, units, (1u << rows) - 1,
                    [&](uint32_t unit, uint32_t g, uint32_t t, float lower, float upper) {
                        const uint32_t row = first + unit * MIMO_PAGE_UNIT + g, last = task.first + task.count;
                        const float factor = head ? scale[t] : 1.0f;
                        if (row < last)
                            to[t * stride + row] = lower * factor;
                        if (row + 8 < last)
                            to[t * stride + row + 8] = upper * factor;
                    });
}

/* All segments of an EXPERT_DOWN from s on, if the team has a way of its own for them. */
template <class Team, class Ring>
MIMO_BODY inline bool mimo_tile_experts(const Team &, Ring &, mimo_tile_sums<Team> &, mimo_tile_near<Team> &,
                                        const mimo_tile_product &, const mimo_tile_walk &, const mimo_tile_segment &)
{
    return false;
}

template <class Team, class Ring>
MIMO_BODY_HERE void mimo_tile_multiply(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                       Ring &ring)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_tile_whole whole = mimo_tile_matrix(m, s, task);
    const mimo_tile_product product = mimo_tile_product_of(m, s, task, whole.format);
    const bool scaled =
                   task.kind == MIMO_TILE_EXPERT_UP || task.kind == MIMO_TILE_DENSE_UP || task.op_code == MIMO_OP_HEAD,
               sums_up = task.kind == MIMO_TILE_EXPERT_DOWN; /* segments are added up */
    const float *scale = scaled ? mimo_tile_scales(team, m, s) : nullptr;
    mimo_tile_near<Team> near = {};
    mimo_tile_sums<Team> sums;
    const mimo_tile_walk walk = mimo_tile_walk_of(m, task, s.step->rows);
    mimo_tile_segment segment = {sums_up ? 0 : task.first, task.first, {}};
    mimo_tile_clear(team, sums);
    bool more = mimo_tile_find(walk, task, segment);
    if (more && sums_up && mimo_tile_experts(team, ring, sums, near, product, walk, segment))
        more = false;
    while (more) {
        mimo_tile_segment next = segment;
        next.at += walk.step;
        more = mimo_tile_find(walk, task, next); /* asked for before it is needed */
        mimo_tile_pages(team, ring, sums, near, product, segment.columns);
        if (!sums_up) {
            mimo_tile_results(team, m, task, sums, near, s, whole, segment, product.units, scale);
            mimo_tile_clear(team, sums);
        }
        segment = next;
    }
    if (sums_up)
        mimo_tile_results(team, m, task, sums, near, s, whole, segment, product.units, scale);
}

#endif
