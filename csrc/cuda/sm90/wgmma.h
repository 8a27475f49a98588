/* Pages of MIMO_PAGE_E4M3 by a tensor-core team: weights and rows in E4M3, products by wgmma (PTX ISA 9.0, 9.7.15;
 * sm_90a alone has it).
 *
 * A warp group multiplies 64 rows of A, 16 of each of its warps, with all columns of B. Here its four warps have the
 * same rows of weights, but blocks of K of their own, and B has eight columns for each of these four blocks: of the 32
 * sums of a row a warp needs those of its own eight columns. The others cost tensor cores what they would wait anyway,
 * and no instruction. A is decoded into registers, with scales in its exponents (page.h), so that sums need none of
 * their own until a row is complete.
 *
 * Rows lie beside the ring, each as E4M3 times a factor that makes its largest element 448: [blocks of K, 2, 8 rows, 16
 * bytes], core matrices without swizzle. The first half of a block has elements 8 c .. 8 c + 3 of it in bytes 4 c .. 4
 * c
 * + 3, the second half 8 c + 4 .. 8 c + 7, as lanes have them of a page. Then three blocks of zeros, which warps
 * multiply with when others have the last blocks, and a float a row, what its sums are to be multiplied with. */
#ifndef MIMO_CUDA_SM90_WGMMA_H
#define MIMO_CUDA_SM90_WGMMA_H

#include "cuda/sm90/near.h"

enum {
    MIMO_WGMMA_WARPS = 4,                                                  /* of a warp group; a team is two */
    MIMO_WGMMA_HALF = 16 * MIMO_TILE_TOKENS,                               /* bytes of half a block of all rows */
    MIMO_WGMMA_BLOCK = 2 * MIMO_WGMMA_HALF,                                /* and of a block */
    MIMO_WGMMA_SUMS = 4 * MIMO_WGMMA_WARPS,                                /* of a lane */
    MIMO_WGMMA_MOST = MIMO_PAGE_E4M3_K / MIMO_PAGE_BLOCK / MIMO_MMA_WARPS, /* blocks of K of a warp */
};

/* ---- rows ---- */

MIMO_BODY inline float *mimo_wgmma_factors(const mimo_mma_team &team, const mimo_tile_product &p)
{
    const uint32_t blocks = p.k_end / MIMO_PAGE_BLOCK + MIMO_WGMMA_WARPS - 1;
    return reinterpret_cast<float *>(team.activations + blocks * MIMO_WGMMA_BLOCK);
}

/* Four floats, those beyond 448 as that; the first in the low byte. */
MIMO_BODY inline uint32_t mimo_wgmma_e4m3x4(float a, float b, float c, float d)
{
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return (uint32_t)high << 16 | low;
}

/* The largest magnitude of pairs of BF16, as the bits of a float; NaN is larger than all. */
MIMO_BODY inline uint32_t mimo_wgmma_most(uint32_t most, const mimo_words4 &pairs)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t low = pairs.v[i] << 16 & 0x7fffffffu, high = pairs.v[i] & 0x7fff0000u;
        most = most > low ? most : low;
        most = most > high ? most : high;
    }
    return most;
}

/* The most of all lanes of a row, of all warps; the whole team comes. */
MIMO_BODY inline float mimo_wgmma_row_most(const mimo_mma_team &team, uint32_t most)
{
    const uint32_t g = team.thread() % MIMO_LANES / 4;
    uint32_t *all = reinterpret_cast<uint32_t *>(team.sums);
#pragma unroll
    for (int other = 1; other <= 2; other *= 2) {
        const uint32_t theirs = __shfl_xor_sync(0xffffffffu, most, other);
        most = most > theirs ? most : theirs;
    }
    if (team.thread() % 4 == 0)
        all[team.warp() * MIMO_TILE_TOKENS + g] = most;
    team.sync();
#pragma unroll
    for (uint32_t w = 0; w < MIMO_MMA_WARPS; w++) {
        const uint32_t theirs = all[w * MIMO_TILE_TOKENS + g];
        most = most > theirs ? most : theirs;
    }
    return mimo_cuda_float(most);
}

/* Rows of N, once a task. A warp has every eighth block in registers until the largest element of a row is known. */
MIMO_BODY inline void mimo_wgmma_fetch(const mimo_mma_team &team, mimo_tile_near<mimo_mma_team> &near,
                                       const mimo_tile_product &p)
{
    if (near.k_end != 0)
        return;
    near.k_end = p.k_end;
    near.factor = 1.0f;
    const uint32_t g = team.thread() % MIMO_LANES / 4, c = team.thread() % 4, blocks = p.k_end / MIMO_PAGE_BLOCK;
    const mimo_tile_operand from = mimo_tile_source_of(p).operand;
    const uint16_t *row = from.at + g * from.stride + MIMO_PAGE_GROUP * c;
    mimo_words4 x[MIMO_WGMMA_MOST];
    uint32_t most = 0;
#pragma unroll
    for (uint32_t i = 0; i < MIMO_WGMMA_MOST; i++) {
        const uint32_t block = team.warp() + i * MIMO_MMA_WARPS;
        x[i] = {};
        if (block < blocks && g < p.last_row)
            x[i] = mimo_cuda_load<mimo_words4>(row + block * MIMO_PAGE_BLOCK);
        most = mimo_wgmma_most(most, x[i]);
    }
    const float largest = mimo_wgmma_row_most(team, most);
    const float times = largest == 0.0f ? 0.0f : 448.0f / largest;
    uint8_t *to = team.activations + team.warp() * MIMO_WGMMA_BLOCK + 16 * g + 4 * c;
#pragma unroll
    for (uint32_t i = 0; i < MIMO_WGMMA_MOST; i++, to += MIMO_MMA_WARPS * MIMO_WGMMA_BLOCK) {
        if (team.warp() + i * MIMO_MMA_WARPS >= blocks)
            break;
        float low[4], high[4];
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) {
            low[n] = mimo_cuda_float(x[i].v[n] << 16) * times;
            high[n] = mimo_cuda_float(x[i].v[n] & 0xffff0000u) * times;
        }
        *reinterpret_cast<uint32_t *>(to) = mimo_wgmma_e4m3x4(low[0], low[1], low[2], low[3]);
        *reinterpret_cast<uint32_t *>(to + MIMO_WGMMA_HALF) = mimo_wgmma_e4m3x4(high[0], high[1], high[2], high[3]);
    }
    if (team.warp() == 0 && c == 0)
        mimo_wgmma_factors(team, p)[g] = largest / 448.0f;
    uint32_t *beyond = reinterpret_cast<uint32_t *>(team.activations + blocks * MIMO_WGMMA_BLOCK);
    if (team.thread() < (MIMO_WGMMA_WARPS - 1) * MIMO_WGMMA_BLOCK / sizeof *beyond)
        beyond[team.thread()] = 0;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* wgmma reads what was written here */
    team.sync();
}

/* ---- wgmma ---- */

MIMO_BODY inline void mimo_wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* What was begun since the last one is a group. */
MIMO_BODY inline void mimo_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until all groups are over. */
MIMO_BODY inline void mimo_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* sums += a b: this warp's 16 rows by 32 columns by 32 elements. */
MIMO_BODY inline void mimo_wgmma(float (&d)[MIMO_WGMMA_SUMS], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
        "%12, %13, %14, %15}, {%16, %17, %18, %19}, %20, 1, 1, 1;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* The matrix descriptor of eight columns each of four blocks from an address on: core matrices are 8 columns of 16
 * elements of K, the next along K half a block further, the next columns a block. Its low word is of the address: the
 * next block's is MIMO_WGMMA_BLOCK / 16 more. */
MIMO_BODY inline uint32_t mimo_wgmma_columns(uint32_t address)
{
    return MIMO_WGMMA_HALF / 16 << 16 | address >> 4;
}

MIMO_BODY inline uint64_t mimo_wgmma_descriptor(uint32_t columns)
{
    return (uint64_t)(MIMO_WGMMA_BLOCK / 16) << 32 | columns;
}

/* A's registers of a unit and block, of rows g and g + 8 in turn: a lane's codes and scales at these addresses. */
MIMO_BODY inline void mimo_wgmma_weights(uint32_t (&a)[4], uint32_t codes, uint32_t scales)
{
    const mimo_words2 words = mimo_near_words2(codes);
#pragma unroll
    for (uint32_t upper = 0; upper < 2; upper++) {
        const mimo_words2 table = mimo_cuda_e4m3_table(mimo_near_byte(scales + upper));
#pragma unroll
        for (uint32_t n = 0; n < 2; n++)
            a[2 * n + upper] = mimo_cuda_e2m1_e4m3x4(words.v[upper], n, table);
    }
}

/* Where a lane reads a page's blocks: addresses of the one that is its warp's own; and the columns of the first four.
 */
struct mimo_wgmma_place {
    uint32_t codes, scales, columns;

    MIMO_BODY void pass(uint32_t blocks)
    {
        codes += blocks * 8 * MIMO_LANES;
        scales += blocks * MIMO_PAGE_UNIT;
        columns += blocks * (MIMO_WGMMA_BLOCK / 16);
    }
};

/* How many blocks a warp decodes before it multiplies: nothing else is worked out while wgmma is under way. */
template <uint32_t units> MIMO_BODY constexpr uint32_t mimo_wgmma_depth()
{
    return units == 1 ? 3 : 2;
}

/* `depth` blocks, each eight further; `blocks` of a page before the next unit's. own: whether the last of them is this
 * warp's, or its weights are zeros. */
template <uint32_t units, uint32_t depth, bool all>
MIMO_BODY inline void mimo_wgmma_step(float (&sums)[units][MIMO_WGMMA_SUMS], const mimo_wgmma_place &at,
                                      uint32_t blocks, bool own)
{
    uint32_t a[depth][units][4];
#pragma unroll
    for (uint32_t i = 0; i < depth; i++)
#pragma unroll
        for (uint32_t unit = 0; unit < units; unit++) {
            const uint32_t block = unit * blocks + i * MIMO_MMA_WARPS;
            mimo_wgmma_weights(a[i][unit], at.codes + block * 8 * MIMO_LANES, at.scales + block * MIMO_PAGE_UNIT);
#pragma unroll
            for (uint32_t j = 0; j < 4 && !all; j++)
                a[i][unit][j] = own ? a[i][unit][j] : 0;
        }
    mimo_wgmma_begin();
#pragma unroll
    for (uint32_t i = 0; i < depth; i++)
#pragma unroll
        for (uint32_t unit = 0; unit < units; unit++)
            mimo_wgmma(sums[unit], a[i][unit],
                       mimo_wgmma_descriptor(at.columns + i * MIMO_MMA_WARPS * (MIMO_WGMMA_BLOCK / 16)));
    mimo_wgmma_commit();
    mimo_wgmma_wait();
}

/* The first `to` of `blocks` blocks of a page, of which a warp takes every eighth; all sums are there after it. Of four
 * blocks some may not be there any more: these warps' lanes read the last one that is. */
template <uint32_t units>
MIMO_BODY inline void mimo_wgmma_page(const mimo_mma_team &team, float (&sums)[units][MIMO_WGMMA_SUMS], uint32_t page,
                                      uint32_t rows, uint32_t blocks, uint32_t to)
{
    constexpr uint32_t depth = mimo_wgmma_depth<units>();
    const uint32_t lane = team.thread() % MIMO_LANES, warp = team.warp() % MIMO_WGMMA_WARPS;
    /* The same for all lanes, so that it needs no register of each. */
    uint32_t first = __shfl_sync(0xffffffffu, team.warp(), 0) / MIMO_WGMMA_WARPS * MIMO_WGMMA_WARPS;
    mimo_wgmma_place at = {page + lane * 8, page + units * blocks * 8 * MIMO_LANES + lane / 4 * 2,
                           mimo_wgmma_columns(__shfl_sync(0xffffffffu, rows + first * MIMO_WGMMA_BLOCK, 0))};
    at.codes += (first + warp) * 8 * MIMO_LANES;
    at.scales += (first + warp) * MIMO_PAGE_UNIT;
    for (; first + (depth - 1) * MIMO_MMA_WARPS + MIMO_WGMMA_WARPS <= to; first += depth * MIMO_MMA_WARPS) {
        mimo_wgmma_step<units, depth, true>(sums, at, blocks, true);
        at.pass(depth * MIMO_MMA_WARPS);
    }
    for (; first < to; first += MIMO_MMA_WARPS) {
        const uint32_t past = first + warp < to ? 0 : first + warp - (to - 1);
        at.codes -= past * 8 * MIMO_LANES;
        at.scales -= past * MIMO_PAGE_UNIT;
        mimo_wgmma_step<units, 1, false>(sums, at, blocks, past == 0);
        at.pass(MIMO_MMA_WARPS);
    }
}

/* Of the sums of all columns those of a warp's own, times the factors of rows of weights and of N. */
template <uint32_t units>
MIMO_BODY inline void mimo_wgmma_take(const mimo_mma_team &team, float (&to)[MIMO_TILE_UNITS][4],
                                      const float (&sums)[units][MIMO_WGMMA_SUMS], uint32_t exponents,
                                      const float *factor)
{
    const uint32_t warp = team.warp() % MIMO_WGMMA_WARPS, lane = team.thread() % MIMO_LANES;
#pragma unroll
    for (uint32_t unit = 0; unit < units; unit++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            float own = sums[unit][i];
#pragma unroll
            for (uint32_t w = 1; w < MIMO_WGMMA_WARPS; w++)
                own = warp == w ? sums[unit][4 * w + i] : own;
            const uint32_t exponent = mimo_near_byte(exponents + unit * MIMO_PAGE_UNIT + lane / 4 * 2 + i / 2);
            to[unit][i] = own * mimo_cuda_float(exponent << 23) * factor[lane % 4 * 2 + i % 2];
        }
}

/* The pages of a segment: all of its sums. */
template <uint32_t units, class Ring>
MIMO_BODY inline void mimo_wgmma_segment(const mimo_mma_team &team, Ring &ring, float (&to)[MIMO_TILE_UNITS][4],
                                         const mimo_tile_product &p)
{
    float sums[units][MIMO_WGMMA_SUMS] = {};
#pragma unroll
    for (uint32_t i = 0; i < 4 * MIMO_TILE_UNITS; i++) /* which they are; but so nobody keeps them until here */
        to[i / 4][i % 4] = 0.0f;
    const uint32_t blocks = p.k_page / MIMO_PAGE_BLOCK;
    uint32_t left = (p.k_end - p.k_first) / MIMO_PAGE_BLOCK, rows = mimo_near_address(team.activations);
    for (uint32_t i = 0; i < p.pages; i++) {
        uint32_t page = mimo_near_address(ring.take(p.task.page_bytes));
        /* Else addresses for every number of units are worked out before one is chosen. */
        asm volatile("" : "+r"(page), "+r"(rows));
        mimo_wgmma_page<units>(team, sums, page, rows, blocks, left < blocks ? left : blocks);
        if (i + 1 == p.pages)
            mimo_wgmma_take<units>(team, to, sums, page + mimo_page_rows(units, p.k_page), mimo_wgmma_factors(team, p));
        ring.give(p.task.page_bytes);
        rows += blocks * MIMO_WGMMA_BLOCK;
        left -= blocks;
    }
}

template <class Ring>
MIMO_BODY_HERE void mimo_wgmma_pages(const mimo_mma_team &team, Ring &ring, float (&sums)[MIMO_TILE_UNITS][4],
                                     mimo_tile_near<mimo_mma_team> &near, const mimo_tile_product &p)
{
    static_assert(MIMO_PAGE_E4M3_UNITS == 2, "each has code of its own");
    mimo_wgmma_fetch(team, near, p);
    if (p.units == 1)
        return mimo_wgmma_segment<1>(team, ring, sums, p);
    mimo_wgmma_segment<2>(team, ring, sums, p);
}

#endif
