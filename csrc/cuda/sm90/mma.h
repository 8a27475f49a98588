/* Tiles by tensor cores: the pages of tile/multiply.h for a team that has them (sm_80 and later).
 *
 * Weights are the narrow operation's A, 16 rows at a time, straight from a page in shared memory: E2M1 and E4M3 become
 * BF16 in registers, exactly. (mma.sync of E4M3 would be no faster: for sm_90 and sm_100 ptxas makes FP16 of both
 * operands first; wgmma.h has products in E4M3.) A block's scale multiplies its weights (MXFP4) or its float sums
 * (FP8). The rows that they are multiplied with lie beside the ring, as long as they are needed, and are its B: always
 * eight columns, whichever rows there are, so that a row's sums do not depend on how many others there are. A warp
 * takes every eighth block of 32 elements of K, for all units; sums of warps are added in their order. Matrices in
 * float are multiplied in float. */
#ifndef MIMO_CUDA_SM90_MMA_H
#define MIMO_CUDA_SM90_MMA_H

#include "cuda/sm90/near.h"
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "cuda/sm90/wgmma.h"
#endif

/* Of a unit's sums of a warp in shared memory: 16 rows and a gap for each column, so that no two lanes meet in a bank.
 */
enum { MIMO_MMA_COLUMN = MIMO_PAGE_UNIT + 4, MIMO_MMA_VALUES = MIMO_MMA_COLUMN * MIMO_TILE_TOKENS };

/* Lane 4 g + c: rows g and g + 8, columns 2 c and 2 c + 1. */
template <> struct mimo_tile_sums<mimo_mma_team> {
    float v[MIMO_TILE_UNITS][4];
};

MIMO_BODY inline void mimo_tile_clear(const mimo_mma_team &, mimo_tile_sums<mimo_mma_team> &sums)
{
#pragma unroll
    for (uint32_t i = 0; i < MIMO_TILE_UNITS; i++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            sums.v[i][j] = 0.0f;
}

/* sum += a b: 16 rows by 8 columns by 16 elements. */
MIMO_BODY inline void mimo_mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Both halves times a power of two. */
MIMO_BODY inline uint32_t mimo_mma_scale(uint32_t pair, uint32_t factor)
{
    uint32_t out;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(pair), "r"(factor));
    return out;
}

/* A's registers of one unit and block for two operations, in the order in which a lane's rows g and g + 8 take turns.
 */
struct mimo_mma_weights {
    uint32_t first[4], second[4];

    MIMO_BODY void put(uint32_t n, uint32_t upper, uint32_t pair)
    {
        (n < 2 ? first : second)[n % 2 * 2 + upper] = pair;
    }
};

/* Of a block at an address in shared memory that is this lane's. */
MIMO_BODY inline mimo_mma_weights mimo_mma_bf16(uint32_t block)
{
    mimo_mma_weights w;
    const mimo_words4 first = mimo_near_words4(block);
    const mimo_words4 second = mimo_near_words4(block + 16 * MIMO_LANES);
    for (uint32_t i = 0; i < 4; i++) {
        w.first[i] = first.v[i];
        w.second[i] = second.v[i];
    }
    return w;
}

/* Weights without their scale. */
MIMO_BODY inline mimo_mma_weights mimo_mma_fp8(uint32_t block)
{
    mimo_mma_weights w;
    const mimo_words4 codes = mimo_near_words4(block);
#pragma unroll
    for (uint32_t upper = 0; upper < 2; upper++)
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            w.put(n, upper,
                  mimo_mma_scale(mimo_cuda_e4m3_bf16x2({{codes.v[2 * upper], codes.v[2 * upper + 1]}}, n),
                                 0x7b807b80u)); /* 2^120 */
    return w;
}

/* Weights times 2^-40; scale: the address of those of rows g and g + 8. */
MIMO_BODY inline mimo_mma_weights mimo_mma_mxfp4(uint32_t block, uint32_t scale)
{
    mimo_mma_weights w;
    const mimo_words2 codes = mimo_near_words2(block);
#pragma unroll
    for (uint32_t upper = 0; upper < 2; upper++) {
        const uint32_t factor = mimo_near_byte(scale + upper) * 0x00800080u; /* the exponent of both halves */
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            w.put(n, upper, mimo_mma_scale(mimo_cuda_e2m1_bf16x2(codes, upper, n), factor));
    }
    return w;
}

/* sum += a unit and block times a lane's part of eight columns; block, scale: this lane's addresses. */
template <uint32_t format>
MIMO_BODY inline void mimo_mma_block(float (&sum)[4], uint32_t block, uint32_t scale, const mimo_words4 &x)
{
    if constexpr (format == MIMO_FORMAT_FP8) {
        const mimo_mma_weights w = mimo_mma_fp8(block);
        const mimo_words2 both = mimo_near_words2(scale);
        float part[4] = {};
        mimo_mma(part, w.first, x.v[0], x.v[1]);
        mimo_mma(part, w.second, x.v[2], x.v[3]);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            sum[i] = fmaf(part[i], mimo_cuda_float(both.v[i / 2]), sum[i]);
    } else {
        const mimo_mma_weights w = format == MIMO_FORMAT_BF16 ? mimo_mma_bf16(block) : mimo_mma_mxfp4(block, scale);
        mimo_mma(sum, w.first, x.v[0], x.v[1]);
        mimo_mma(sum, w.second, x.v[2], x.v[3]);
    }
}

/* How many sums of its own a unit has: products that add to one sum wait for each other, so a warp with few units takes
 * turns. They are added where they are stored. Of MXFP4 three: a page of the ring often has six blocks for a warp. */
template <uint32_t format, uint32_t units> MIMO_BODY constexpr uint32_t mimo_mma_turns()
{
    return units == 1 ? (format == MIMO_FORMAT_MXFP4 ? 3 : 4) : units == 2 ? 2 : 1;
}

/* Bytes of a block that a lane reads at a time. */
template <uint32_t format> MIMO_BODY constexpr uint32_t mimo_mma_lane_bytes()
{
    return format == MIMO_FORMAT_MXFP4 ? 8 : 16;
}

/* Blocks [from, to) of a page that begins with block `number` of its segment, at an address in shared memory; x: the
 * address of this lane's column, from the page's first element on. */
template <uint32_t format, uint32_t units>
MIMO_BODY inline void mimo_mma_blocks(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums, uint32_t page,
                                      uint32_t k_page, uint32_t from, uint32_t to, uint32_t number, uint32_t x)
{
    constexpr uint32_t turns = mimo_mma_turns<format, units>();
    /* Else addresses for every number of units are worked out before one is chosen. */
    asm volatile("" : "+r"(page), "+r"(x));
    const uint32_t bytes = mimo_page_block_bytes(format), blocks = k_page / MIMO_PAGE_BLOCK,
                   lane = team.thread() % MIMO_LANES;
    const uint32_t scales = page + mimo_page_scales(format, units, k_page);
    const uint32_t codes = page + lane * mimo_mma_lane_bytes<format>();
    const auto add = [&](uint32_t b, uint32_t turn) {
        const mimo_words4 column = mimo_near_words4(x + b * MIMO_NEAR_BLOCK);
#pragma unroll
        for (uint32_t unit = 0; unit < units; unit++) {
            const uint32_t at = mimo_page_scale(format, unit, b, k_page);
            const uint32_t scale = scales + (format == MIMO_FORMAT_MXFP4 ? at + lane / 4 * 2 : 4 * at);
            mimo_mma_block<format>(sums.v[turn * units + unit], codes + (unit * blocks + b) * bytes, scale, column);
        }
    };
    uint32_t b = from + (team.warp() - number - from) % MIMO_MMA_WARPS;
    for (; b + (turns - 1) * MIMO_MMA_WARPS < to; b += turns * MIMO_MMA_WARPS)
#pragma unroll
        for (uint32_t turn = 0; turn < turns; turn++)
            add(b + turn * MIMO_MMA_WARPS, turn);
#pragma unroll
    for (uint32_t turn = 0; turn + 1 < turns; turn++)
        if (b + turn * MIMO_MMA_WARPS < to)
            add(b + turn * MIMO_MMA_WARPS, turn);
}

template <uint32_t format, class... Rest>
MIMO_BODY inline void mimo_mma_units(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums, uint32_t units,
                                     Rest... rest)
{
    switch (units) {
    case 1:
        return mimo_mma_blocks<format, 1>(team, sums, rest...);
    case 2:
        return mimo_mma_blocks<format, 2>(team, sums, rest...);
    case 3:
        return mimo_mma_blocks<format, 3>(team, sums, rest...);
    case 4:
        return mimo_mma_blocks<format, 4>(team, sums, rest...);
    case 5:
        return mimo_mma_blocks<format, 5>(team, sums, rest...);
    case 6:
        return mimo_mma_blocks<format, 6>(team, sums, rest...);
    case 7:
        return mimo_mma_blocks<format, 7>(team, sums, rest...);
    default:
        return mimo_mma_blocks<format, 8>(team, sums, rest...);
    }
}

/* Registers have no index: every unit's are passed by. */
MIMO_BODY inline void mimo_mma_add(mimo_tile_sums<mimo_mma_team> &sums, uint32_t unit, const float (&sum)[4])
{
#pragma unroll
    for (uint32_t i = 0; i < MIMO_TILE_UNITS; i++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            sums.v[i][j] = i == unit ? sums.v[i][j] + sum[j] : sums.v[i][j];
}

/* Weights in float, one unit: the lanes of a quad add up their groups, and each keeps two columns. */
MIMO_BODY inline void mimo_mma_floats(const mimo_mma_team &team, float (&sums)[4], const uint8_t *unit, uint32_t from,
                                      uint32_t to, uint32_t number, const uint8_t *x, uint32_t row_bytes,
                                      const mimo_tile_columns &columns, uint32_t first_row)
{
    const uint32_t lane = team.thread() % MIMO_LANES, c = lane % 4;
    mimo_cta_team::lane_value<float> part[2][MIMO_TILE_TOKENS] = {};
    for (uint32_t b = from + (team.warp() - number - from) % MIMO_MMA_WARPS; b < to; b += MIMO_MMA_WARPS) {
        const uint8_t *block = unit + b * mimo_page_block_bytes(MIMO_FORMAT_F32);
        float w[2][8];
        mimo_tile_group<MIMO_FORMAT_F32>(w[0], block, lane, 0, 1.0f);
        mimo_tile_group<MIMO_FORMAT_F32>(w[1], block, lane, 1, 1.0f);
#pragma unroll
        for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
            if (!columns.has(t))
                continue;
            float in[8];
            const uint8_t *row = x + (columns.row(t) - first_row) * row_bytes;
            mimo_cuda_floats(in, reinterpret_cast<const float *>(row + b * 2 * MIMO_NEAR_BLOCK) + 8 * c);
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                part[0][t].v = fmaf(w[0][j], in[j], part[0][t].v);
                part[1][t].v = fmaf(w[1][j], in[j], part[1][t].v);
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++)
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            team.sum_quads(part[h][t]);
            sums[2 * h + t % 2] += t / 2 == c ? part[h][t].v : 0.0f;
        }
}

/* Blocks [from, to) of a page for every part of the rows. */
MIMO_BODY_HERE void mimo_mma_parts(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums,
                                   const mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p, uint32_t page,
                                   uint32_t from, uint32_t to, uint32_t number, uint32_t column)
{
    for (uint32_t part = 0; part < p.m.parts; part++, column += near.part_bytes) {
        if (p.format == MIMO_FORMAT_MXFP4)
            mimo_mma_units<MIMO_FORMAT_MXFP4>(team, sums, p.units, page, p.k_page, from, to, number, column);
        else if (p.format == MIMO_FORMAT_FP8)
            mimo_mma_units<MIMO_FORMAT_FP8>(team, sums, p.units, page, p.k_page, from, to, number, column);
        else
            mimo_mma_units<MIMO_FORMAT_BF16>(team, sums, p.units, page, p.k_page, from, to, number, column);
    }
}

/* The address of this lane's column of a row, as if it were near from the page's first element on. Instead of a row
 * that is not there it is one of zeros, or, where only columns that are there are stored, any. */
MIMO_BODY inline uint32_t mimo_mma_column(const mimo_mma_team &team, const mimo_tile_near<mimo_mma_team> &near,
                                          const mimo_tile_columns &columns, uint32_t k_page)
{
    const uint32_t g = team.thread() % MIMO_LANES / 4, c = team.thread() % 4;
    const uint32_t none = columns.entries ? near.row_end - near.row_first : 0;
    const uint32_t row = columns.has(g) ? columns.row(g) - near.row_first : none;
    return mimo_near_address(team.activations) + row * near.row_bytes + 16 * c + 2 * (k_page - near.k_first);
}

/* Elements [k, end) of the page that begins at k_page, all of them near. */
MIMO_BODY inline void mimo_mma_page(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums,
                                    const mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p,
                                    const mimo_tile_columns &columns, const uint8_t *page, uint32_t k_page, uint32_t k,
                                    uint32_t end)
{
    const uint32_t from = (k - k_page) / MIMO_PAGE_BLOCK, to = (end - k_page + MIMO_PAGE_BLOCK - 1) / MIMO_PAGE_BLOCK;
    const uint32_t number = (k_page - p.k_first) / MIMO_PAGE_BLOCK;
    if (p.format != MIMO_FORMAT_F32)
        return mimo_mma_parts(team, sums, near, p, mimo_near_address(page), from, to, number,
                              mimo_mma_column(team, near, columns, k_page));
    /* Where the page's first element would be, if it were near as well. */
    const uint8_t *x = team.activations + (int32_t)(k_page - near.k_first) * (int32_t)sizeof(float);
    const uint32_t bytes = p.k_page / MIMO_PAGE_BLOCK * mimo_page_block_bytes(MIMO_FORMAT_F32);
    for (uint32_t unit = 0; unit < p.units; unit++) {
        float sum[4] = {};
        mimo_mma_floats(team, sum, page + unit * bytes, from, to, number, x, near.row_bytes, columns, near.row_first);
        mimo_mma_add(sums, unit, sum);
    }
}

/* The pages of a segment all of whose K is near: what they have in common is worked out once. add(page, to, number,
 * column): mimo_mma_parts of a page. */
template <class Ring, class Add>
MIMO_BODY_HERE void mimo_mma_whole(const mimo_mma_team &team, Ring &ring, const mimo_tile_near<mimo_mma_team> &near,
                                   const mimo_tile_product &p, const mimo_tile_columns &columns, Add add)
{
    const uint32_t blocks = p.k_page / MIMO_PAGE_BLOCK;
    uint32_t column = mimo_mma_column(team, near, columns, p.k_first),
             left = (near.k_end - p.k_first) / MIMO_PAGE_BLOCK;
    for (uint32_t i = 0; i < p.pages; i++) {
        const uint32_t page = mimo_near_address(ring.take(p.task.page_bytes));
        add(page, left < blocks ? left : blocks, i * blocks, column);
        ring.give(p.task.page_bytes);
        column += 2 * p.k_page;
        left -= blocks;
    }
}

/* Blocks [0, to) of a page of MXFP4, with so many units, for every part of the rows. */
template <uint32_t units>
MIMO_BODY_HERE void mimo_mma_expert_page(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums,
                                         const mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p,
                                         uint32_t page, uint32_t to, uint32_t number, uint32_t column)
{
    for (uint32_t part = 0; part < p.m.parts; part++, column += near.part_bytes)
        mimo_mma_blocks<MIMO_FORMAT_MXFP4, units>(team, sums, page, p.k_page, 0, to, number, column);
}

template <class Ring>
MIMO_BODY_HERE void mimo_tile_pages(const mimo_mma_team &team, Ring &ring, mimo_tile_sums<mimo_mma_team> &sums,
                                    mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p,
                                    const mimo_tile_columns &columns)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if (p.format == MIMO_PAGE_E4M3)
        return mimo_wgmma_pages(team, ring, sums.v, near, p);
#endif
    near.factor = p.format == MIMO_FORMAT_MXFP4 ? MIMO_PAGE_MXFP4_UNDO : 1.0f;
    mimo_near_fetch(team, near, p, columns, p.k_first);
    if (p.format == MIMO_FORMAT_MXFP4 && p.units == 1 && near.k_end >= p.k_end)
        return mimo_mma_whole(team, ring, near, p, columns,
                              [&](uint32_t page, uint32_t to, uint32_t number, uint32_t column) {
                                  mimo_mma_expert_page<1>(team, sums, near, p, page, to, number, column);
                              });
    if (p.format != MIMO_FORMAT_F32 && near.k_end >= p.k_end)
        return mimo_mma_whole(team, ring, near, p, columns,
                              [&](uint32_t page, uint32_t to, uint32_t number, uint32_t column) {
                                  mimo_mma_parts(team, sums, near, p, page, 0, to, number, column);
                              });
    for (uint32_t i = 0; i < p.pages; i++) {
        const uint8_t *page = ring.take(p.task.page_bytes);
        const uint32_t k_page = p.k_first + i * p.k_page;
        const uint32_t last = k_page + p.k_page < p.k_end ? k_page + p.k_page : p.k_end;
        for (uint32_t k = k_page; k < last;) {
            mimo_near_fetch(team, near, p, columns, k);
            const uint32_t end = near.k_end < last ? near.k_end : last;
            mimo_mma_page(team, sums, near, p, columns, page, k_page, k, end);
            k = end;
        }
        ring.give(p.task.page_bytes);
    }
}

/* Experts from s on whose tile is one page each, and all of whose rows are near. */
template <uint32_t units, class Ring>
MIMO_BODY_HERE void mimo_mma_experts(const mimo_mma_team &team, Ring &ring, mimo_tile_sums<mimo_mma_team> &sums,
                                     const mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p,
                                     const mimo_tile_walk &walk, mimo_tile_segment s)
{
    const uint32_t blocks = (near.k_end - p.k_first) / MIMO_PAGE_BLOCK;
    for (bool more = true; more;) {
        mimo_tile_segment next = s;
        next.at += walk.step;
        more = mimo_tile_find(walk, p.task, next); /* asked for before it is needed */
        const uint32_t column = mimo_mma_column(team, near, s.columns, p.k_first);
        const uint32_t page = mimo_near_address(ring.take(p.task.page_bytes));
        mimo_mma_expert_page<units>(team, sums, near, p, page, blocks, 0, column);
        ring.give(p.task.page_bytes);
        s = next;
    }
}

template <class Ring>
MIMO_BODY_HERE bool mimo_tile_experts(const mimo_mma_team &team, Ring &ring, mimo_tile_sums<mimo_mma_team> &sums,
                                      mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p,
                                      const mimo_tile_walk &walk, const mimo_tile_segment &s)
{
    if (p.format != MIMO_FORMAT_MXFP4 || p.pages != 1 || p.units > 4)
        return false;
    mimo_near_fetch(team, near, p, s.columns, p.k_first);
    if (near.k_end < p.k_end || near.row_end < p.last_row)
        return false;
    near.factor = MIMO_PAGE_MXFP4_UNDO;
    switch (p.units) {
    case 1:
        mimo_mma_experts<1>(team, ring, sums, near, p, walk, s);
        break;
    case 2:
        mimo_mma_experts<2>(team, ring, sums, near, p, walk, s);
        break;
    case 3:
        mimo_mma_experts<3>(team, ring, sums, near, p, walk, s);
        break;
    default:
        mimo_mma_experts<4>(team, ring, sums, near, p, walk, s);
        break;
    }
    return true;
}

/* The sums that a unit has by turns become one. */
MIMO_BODY inline void mimo_mma_join(mimo_tile_sums<mimo_mma_team> &sums, uint32_t units)
{
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        if (units == 1)
            sums.v[0][j] = (sums.v[0][j] + sums.v[2][j]) + (sums.v[1][j] + sums.v[3][j]);
        if (units == 2) {
            sums.v[0][j] += sums.v[2][j];
            sums.v[1][j] += sums.v[3][j];
        }
    }
}

/* A unit at a time: warps put their sums side by side, and two of them, others each time, add these while the rest go
 * on. */
template <class Store>
MIMO_BODY inline void mimo_tile_store(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums,
                                      mimo_tile_near<mimo_mma_team> &near, uint32_t units, uint32_t mask, Store store)
{
    const uint32_t lane = team.thread() % MIMO_LANES, g = lane / 4, c = lane % 4;
    mimo_mma_join(sums, units);
#pragma unroll
    for (uint32_t unit = 0; unit < MIMO_TILE_UNITS; unit++) {
        if (unit >= units)
            break;
        float *all = team.sums + near.turn % 2 * MIMO_MMA_WARPS * MIMO_MMA_VALUES;
        float *own = all + team.warp() * MIMO_MMA_VALUES + 2 * c * MIMO_MMA_COLUMN + g;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            own[j % 2 * MIMO_MMA_COLUMN + j / 2 * 8] = sums.v[unit][j];
        team.sync();
        const uint32_t i = (team.thread() - near.turn++ * 2 * MIMO_LANES) % (MIMO_MMA_WARPS * MIMO_LANES), t = i / 8;
        if (i >= 2 * MIMO_LANES || !(mask >> t & 1))
            continue;
        const float *value = all + t * MIMO_MMA_COLUMN + i % 8;
        float lower = value[0], upper = value[8];
#pragma unroll
        for (uint32_t w = 1; w < MIMO_MMA_WARPS; w++) {
            lower += value[w * MIMO_MMA_VALUES];
            upper += value[w * MIMO_MMA_VALUES + 8];
        }
        store(unit, i % 8, t, lower * near.factor, upper * near.factor);
    }
}

#endif
