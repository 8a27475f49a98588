/* Tiles by tensor cores: the pages of tile/matrix.h for a team that has them (sm_80 and later).
 *
 * Weights are the narrow operation's A, 16 rows at a time, straight from a page in shared memory: E2M1 and E4M3 become
 * BF16 in registers, exactly, and a block's scale multiplies its float sums. The step's rows, rounded to BF16, are its
 * B, always eight of them: a row's sums do not depend on how many others there are. A warp takes every warps-th block
 * of 32 elements of K and all units; sums of warps are added in their order. Routers in float are multiplied in float.
 */
#ifndef MIMO_CUDA_SM90_MMA_H
#define MIMO_CUDA_SM90_MMA_H

#include "cuda/tile/matrix.h"

enum { MIMO_MMA_UNITS = 16, MIMO_MMA_VALUES = MIMO_PAGE_UNIT * MIMO_TILE_TOKENS };

struct mimo_mma_team : mimo_cta_team {
    uint8_t *activations; /* [K / 32, 32 lanes, 16 bytes]: of token g, elements 8 c + (0 4 1 5 2 6 3 7) */
    float *sums;          /* [2, warps, MIMO_MMA_VALUES]: the scratch that bodies have of their own (tile/machine.h) */
};

/* Lane 4 g + c: rows g and g + 8, tokens 2 c and 2 c + 1. */
template <> struct mimo_tile_sums<mimo_mma_team> {
    float v[MIMO_MMA_UNITS][4];
};

MIMO_BODY inline void mimo_tile_clear(const mimo_mma_team &, mimo_tile_sums<mimo_mma_team> &sums)
{
#pragma unroll
    for (uint32_t i = 0; i < MIMO_MMA_UNITS; i++)
        for (uint32_t j = 0; j < 4; j++)
            sums.v[i][j] = 0.0f;
}

/* Two floats as BF16, the first in the low half. */
MIMO_BODY inline uint32_t mimo_mma_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <class Input>
MIMO_BODY inline void mimo_tile_begin(const mimo_mma_team &team, const Input &input, uint32_t T, uint32_t k,
                                      uint32_t end)
{
    team.sync(); /* nobody reads the rows of before */
    const uint32_t blocks = (end - k + MIMO_PAGE_BLOCK - 1) / MIMO_PAGE_BLOCK;
    team.threads(blocks * MIMO_LANES, [&](uint32_t i) {
        const uint32_t lane = i % MIMO_LANES, t = lane / 4,
                       column = k + i / MIMO_LANES * MIMO_PAGE_BLOCK + lane % 4 * 8;
        float x[8] = {};
        if (t < T && column < end)
            input.load(x, t, column / 8);
        mimo_words4 words;
        for (uint32_t n = 0; n < 4; n++)
            words.v[n] = mimo_mma_pair(x[n], x[n + 4]);
        reinterpret_cast<mimo_words4 *>(team.activations)[i] = words;
    });
    team.sync();
}

/* sum += a b: 16 rows by 8 tokens by 16 elements. */
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

/* w[n]: elements n and n + 4 of a lane's group. */
template <uint32_t format>
MIMO_BODY inline void mimo_mma_group(uint32_t (&w)[4], const uint8_t *block, uint32_t lane, uint32_t upper)
{
    const uint8_t *group = block + mimo_page_group(format, lane, upper, 0);
    if constexpr (format == MIMO_FORMAT_BF16) {
        const mimo_words4 words = mimo_cuda_load<mimo_words4>(group);
        for (uint32_t n = 0; n < 4; n++)
            w[n] = words.v[n];
    } else if constexpr (format == MIMO_FORMAT_FP8) {
        const mimo_words2 words = mimo_cuda_load<mimo_words2>(group);
        for (uint32_t n = 0; n < 4; n++)
            w[n] = mimo_mma_scale(mimo_cuda_e4m3_bf16x2(words, n), 0x7b807b80u); /* 2^120 */
    } else {
        const uint32_t codes = mimo_cuda_load<uint32_t>(group);
        for (uint32_t n = 0; n < 4; n++)
            w[n] = mimo_mma_scale(mimo_cuda_e2m1_bf16x2(codes, n), 0x7e807e80u); /* 2^126 */
    }
}

/* One unit and block. */
template <uint32_t format>
MIMO_BODY inline void mimo_mma_block(float (&sum)[4], const uint8_t *block, const uint8_t *scales, uint32_t at,
                                     uint32_t lane, const mimo_words4 &x)
{
    uint32_t lower[4], upper[4];
    mimo_mma_group<format>(lower, block, lane, 0);
    mimo_mma_group<format>(upper, block, lane, 1);
    const uint32_t first[4] = {lower[0], upper[0], lower[1], upper[1]};
    const uint32_t second[4] = {lower[2], upper[2], lower[3], upper[3]};
    if constexpr (format == MIMO_FORMAT_BF16) {
        mimo_mma(sum, first, x.v[0], x.v[1]);
        mimo_mma(sum, second, x.v[2], x.v[3]);
    } else {
        float part[4] = {};
        mimo_mma(part, first, x.v[0], x.v[1]);
        mimo_mma(part, second, x.v[2], x.v[3]);
        const float low = mimo_tile_group_scale<format>(scales, at, lane / 4, 0);
        const float high = mimo_tile_group_scale<format>(scales, at, lane / 4, 1);
        sum[0] = fmaf(part[0], low, sum[0]);
        sum[1] = fmaf(part[1], low, sum[1]);
        sum[2] = fmaf(part[2], high, sum[2]);
        sum[3] = fmaf(part[3], high, sum[3]);
    }
}

/* Registers have no index: every unit's are passed by. */
MIMO_BODY inline void mimo_mma_add(mimo_tile_sums<mimo_mma_team> &sums, uint32_t unit, const float (&sum)[4])
{
#pragma unroll
    for (uint32_t i = 0; i < MIMO_MMA_UNITS; i++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            sums.v[i][j] = i == unit ? sums.v[i][j] + sum[j] : sums.v[i][j];
}

template <uint32_t format>
MIMO_BODY inline void mimo_mma_page(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums, const uint8_t *page,
                                    const mimo_tile_task &task, uint32_t units, uint32_t k, uint32_t end)
{
    const uint32_t blocks = task.k_page / MIMO_PAGE_BLOCK, lane = team.thread() % MIMO_LANES;
    const uint32_t present = (end - k + MIMO_PAGE_BLOCK - 1) / MIMO_PAGE_BLOCK, bytes = mimo_page_block_bytes(format);
    const uint8_t *scales = page + mimo_page_scales(format, units, task.k_page);
    const mimo_words4 *x = reinterpret_cast<const mimo_words4 *>(team.activations) +
                           (k - task.k_first) / MIMO_PAGE_BLOCK * MIMO_LANES + lane;
    for (uint32_t unit = 0; unit < units; unit++) {
        float sum[4] = {};
        for (uint32_t b = team.warp(); b < blocks && b < present; b += team.warps())
            mimo_mma_block<format>(sum, page + (unit * blocks + b) * bytes, scales,
                                   mimo_page_scale(format, unit, b, task.k_page), lane, x[b * MIMO_LANES]);
        mimo_mma_add(sums, unit, sum);
    }
}

/* Weights in float: the lanes of a quad add up their groups, and each keeps two tokens. */
template <class Input>
MIMO_BODY inline void mimo_mma_float_page(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums,
                                          const uint8_t *page, const mimo_tile_task &task, uint32_t units, uint32_t k,
                                          uint32_t end, const Input &input, uint32_t T)
{
    const uint32_t blocks = task.k_page / MIMO_PAGE_BLOCK, lane = team.thread() % MIMO_LANES, c = lane % 4;
    for (uint32_t unit = 0; unit < units; unit++) {
        mimo_cta_team::lane_value<float> part[2][MIMO_TILE_TOKENS] = {};
        for (uint32_t b = team.warp(); b < blocks; b += team.warps()) {
            const uint32_t column = k + b * MIMO_PAGE_BLOCK + c * MIMO_PAGE_GROUP;
            if (column >= end)
                break;
            const uint8_t *block = page + (unit * blocks + b) * mimo_page_block_bytes(MIMO_FORMAT_F32);
            float w[2][8], x[8];
            mimo_tile_group<MIMO_FORMAT_F32>(w[0], block, lane, 0, 1.0f);
            mimo_tile_group<MIMO_FORMAT_F32>(w[1], block, lane, 1, 1.0f);
#pragma unroll
            for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
                if (t >= T)
                    continue;
                input.load(x, t, column / 8);
#pragma unroll
                for (uint32_t j = 0; j < 8; j++) {
                    part[0][t].v = fmaf(w[0][j], x[j], part[0][t].v);
                    part[1][t].v = fmaf(w[1][j], x[j], part[1][t].v);
                }
            }
        }
        __syncwarp();
        float sum[4] = {};
#pragma unroll
        for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++)
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                team.sum_quads(part[h][t]);
                sum[2 * h + t % 2] += t / 2 == c ? part[h][t].v : 0.0f;
            }
        mimo_mma_add(sums, unit, sum);
    }
}

template <class Ring, class Input>
MIMO_BODY inline void mimo_tile_page(const mimo_mma_team &team, Ring &ring, mimo_tile_sums<mimo_mma_team> &sums,
                                     uint32_t format, const mimo_tile_task &task, uint32_t units, uint32_t k,
                                     uint32_t end, const Input &input, uint32_t T)
{
    const uint8_t *page = ring.take();
    if (format == MIMO_FORMAT_MXFP4)
        mimo_mma_page<MIMO_FORMAT_MXFP4>(team, sums, page, task, units, k, end);
    else if (format == MIMO_FORMAT_FP8)
        mimo_mma_page<MIMO_FORMAT_FP8>(team, sums, page, task, units, k, end);
    else if (format == MIMO_FORMAT_BF16)
        mimo_mma_page<MIMO_FORMAT_BF16>(team, sums, page, task, units, k, end);
    else
        mimo_mma_float_page(team, sums, page, task, units, k, end, input, T);
    ring.give();
}

/* value = i == unit ? of : value. What the compiler knows of the equality it would use to index by unit. */
MIMO_BODY inline void mimo_mma_pick(float &value, uint32_t i, uint32_t unit, float of)
{
    asm("{ .reg .pred p; setp.eq.u32 p, %1, %2; selp.f32 %0, %3, %0, p; }" : "+f"(value) : "r"(i), "r"(unit), "f"(of));
}

template <class Store>
MIMO_BODY inline void mimo_tile_store(const mimo_mma_team &team, mimo_tile_sums<mimo_mma_team> &sums, uint32_t units,
                                      uint32_t T, Store store)
{
    const uint32_t lane = team.thread() % MIMO_LANES, g = lane / 4, c = lane % 4, warps = team.warps();
    team.sync(); /* nobody reads the sums of the tile before */
    for (uint32_t unit = 0; unit < units; unit++) {
        float value[4] = {};
#pragma unroll
        for (uint32_t i = 0; i < MIMO_MMA_UNITS; i++)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                mimo_mma_pick(value[j], i, unit, sums.v[i][j]);
        float *all = team.sums + unit % 2 * warps * MIMO_MMA_VALUES, *own = all + team.warp() * MIMO_MMA_VALUES;
        for (uint32_t j = 0; j < 4; j++)
            own[(g + j / 2 * 8) * MIMO_TILE_TOKENS + 2 * c + j % 2] = value[j];
        team.sync();
        team.threads(MIMO_MMA_VALUES / 2, [&](uint32_t i) {
            const uint32_t t = i % MIMO_TILE_TOKENS;
            float lower = all[i], upper = all[i + MIMO_MMA_VALUES / 2];
            for (uint32_t w = 1; w < warps; w++) {
                lower += all[w * MIMO_MMA_VALUES + i];
                upper += all[w * MIMO_MMA_VALUES + i + MIMO_MMA_VALUES / 2];
            }
            if (t < T)
                store(unit, i / MIMO_TILE_TOKENS, t, lower, upper);
        });
    }
}

#endif
