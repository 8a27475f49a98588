/* The rows that a tensor-core team multiplies with, in shared memory beside the ring: those of a segment, or of as many
 * segments as there is room for, from all of K or a part of it. */
#ifndef MIMO_CUDA_SM90_NEAR_H
#define MIMO_CUDA_SM90_NEAR_H

#include "cuda/tile/multiply.h"

enum {
    MIMO_MMA_WARPS = 8,                    /* of a team */
    MIMO_NEAR_BLOCK = 2 * MIMO_PAGE_BLOCK, /* bytes of a block of BF16 */
    MIMO_NEAR_LINE = 128,
    MIMO_NEAR_GAP = 64 /* rows are lines and half a one: those of a block lie in different banks */
};

struct mimo_mma_team : mimo_cta_team {
    uint8_t *activations; /* [parts, rows, MIMO_NEAR_BLOCK each of its blocks and a gap], or floats; after rows of
                             entries one of zeros */
    uint32_t activation_bytes;
    float *sums; /* [2, warps, MIMO_MMA_VALUES]: the scratch that bodies have of their own (tile/machine.h) */
};

/* Rows [row_first, row_end), elements [k_first, k_end); nothing at first. */
template <> struct mimo_tile_near<mimo_mma_team> {
    uint32_t row_first, row_end, k_first, k_end;
    uint32_t row_bytes, part_bytes;
    uint32_t turn; /* units stored so far */
    float factor;  /* of all sums */
};

/* Shared memory by its own short addresses. Volatile: never before a page has come, nor after it is given back. */
MIMO_BODY inline uint32_t mimo_near_address(const uint8_t *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

MIMO_BODY inline mimo_words4 mimo_near_words4(uint32_t at)
{
    mimo_words4 out;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.v[0]), "=r"(out.v[1]), "=r"(out.v[2]), "=r"(out.v[3])
                 : "r"(at));
    return out;
}

MIMO_BODY inline mimo_words2 mimo_near_words2(uint32_t at)
{
    mimo_words2 out;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(out.v[0]), "=r"(out.v[1]) : "r"(at));
    return out;
}

MIMO_BODY inline uint32_t mimo_near_byte(uint32_t at)
{
    uint32_t out;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(out) : "r"(at));
    return out;
}

/* 16 bytes from global to shared memory; they are there after mimo_near_wait, for the thread that asked. */
MIMO_BODY inline void mimo_near_copy(uint8_t *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(mimo_near_address(to)), "l"(from) : "memory");
}

MIMO_BODY inline void mimo_near_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Two floats as BF16, the first in the low half. */
MIMO_BODY inline uint32_t mimo_near_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Eight floats of row `row`, from element k on: as they are, or as parts in BF16. */
MIMO_BODY inline void mimo_near_put(const mimo_mma_team &team, const mimo_tile_near<mimo_mma_team> &near, bool floats,
                                    uint32_t parts, uint32_t row, uint32_t k, float (&x)[8])
{
    uint8_t *to = team.activations + (row - near.row_first) * near.row_bytes + (k - near.k_first) * (floats ? 4 : 2);
    if (floats) {
        for (uint32_t i = 0; i < 2; i++) {
            mimo_words4 words;
            for (uint32_t j = 0; j < 4; j++)
                words.v[j] = mimo_cuda_bits(x[4 * i + j]);
            reinterpret_cast<mimo_words4 *>(to)[i] = words;
        }
        return;
    }
    for (uint32_t p = 0; p < parts; p++, to += near.part_bytes) {
        mimo_words4 words;
        for (uint32_t n = 0; n < 4; n++) {
            words.v[n] = mimo_near_pair(x[n], x[n + 4]);
            x[n] -= mimo_cuda_float(words.v[n] << 16);
            x[n + 4] -= mimo_cuda_float(words.v[n] & 0xffff0000u);
        }
        *reinterpret_cast<mimo_words4 *>(to) = words;
    }
}

/* Fetches what `near` says, and `zeros` rows of zeros. A warp takes rows, or parts of them. */
MIMO_BODY inline void mimo_near_fill(const mimo_mma_team &team, const mimo_tile_near<mimo_mma_team> &near,
                                     const mimo_tile_product &p, uint32_t zeros)
{
    const bool floats = p.format == MIMO_FORMAT_F32;
    const mimo_tile_source source = mimo_tile_source_of(p);
    const uint32_t parts = source.parts, rows = near.row_end - near.row_first, lane = team.thread() % MIMO_LANES;
    if (floats || source.reading != MIMO_TILE_PARTS) {
        for (uint32_t row = near.row_first + team.warp(); row < near.row_end; row += MIMO_MMA_WARPS)
            for (uint32_t k = near.k_first + 8 * lane; k < near.k_end; k += 8 * MIMO_LANES) {
                float x[8] = {};
                if (k < p.k_end)
                    source.load(x, row, k / 8);
                mimo_near_put(team, near, floats, parts, row, k, x);
            }
        return;
    }
    for (uint32_t i = team.warp(); i < (rows + zeros) * parts; i += MIMO_MMA_WARPS) {
        const uint32_t part = i / (rows + zeros), row = i % (rows + zeros);
        const mimo_tile_operand &from = source.operand;
        const uint16_t *first = from.at + part * from.part + (near.row_first + row) * from.stride + near.k_first;
        uint8_t *to = team.activations + part * near.part_bytes + row * near.row_bytes;
        for (uint32_t at = 8 * lane; at < near.k_end - near.k_first; at += 8 * MIMO_LANES) {
            if (row < rows)
                mimo_near_copy(to + 2 * at, first + at);
            else
                *reinterpret_cast<mimo_words4 *>(to + 2 * at) = {};
        }
    }
    mimo_near_wait();
}

/* Bytes of a row of `bytes` bytes, and how many there are in one of `room`. */
MIMO_BODY inline uint32_t mimo_near_row(uint32_t bytes)
{
    return (bytes + MIMO_NEAR_LINE - 1) / MIMO_NEAR_LINE * MIMO_NEAR_LINE + MIMO_NEAR_GAP;
}

MIMO_BODY inline uint32_t mimo_near_room(uint32_t room)
{
    return (room - MIMO_NEAR_GAP) / MIMO_NEAR_LINE * MIMO_NEAR_LINE;
}

/* The rows of these columns are near from element k on, up to near.k_end; the whole team comes. */
MIMO_BODY inline void mimo_near_fetch(const mimo_mma_team &team, mimo_tile_near<mimo_mma_team> &near,
                                      const mimo_tile_product &p, const mimo_tile_columns &columns, uint32_t k)
{
    const uint32_t first = columns.entries ? columns.first : 0;
    const uint32_t count = columns.entries ? columns.before(MIMO_TILE_TOKENS) : p.last_row;
    if (first >= near.row_first && first + count <= near.row_end && k >= near.k_first && k < near.k_end)
        return;
    const bool floats = p.format == MIMO_FORMAT_F32;
    const uint32_t width = floats ? 4 : 2, parts = floats ? 1 : p.m.parts;
    const uint32_t wide = (p.k_end - p.k_first + MIMO_PAGE_BLOCK - 1) / MIMO_PAGE_BLOCK * MIMO_PAGE_BLOCK;
    const uint32_t whole = parts * mimo_near_row(wide * width), zeros = columns.entries && !floats;
    near.row_first = first;
    if ((count + zeros) * whole <= team.activation_bytes) {
        const uint32_t room = team.activation_bytes / whole - zeros, left = p.last_row - first;
        near.row_end = first + (left < room ? left : room);
        near.k_first = p.k_first;
        near.k_end = p.k_first + wide;
    } else {
        const uint32_t room = mimo_near_room(team.activation_bytes / (parts * (count + zeros))) / width;
        const uint32_t left = p.k_first + wide - k;
        near.row_end = first + count;
        near.k_first = k;
        near.k_end = k + (left < room ? left : room);
    }
    near.row_bytes = mimo_near_row((near.k_end - near.k_first) * width);
    near.part_bytes = near.row_bytes * (near.row_end - near.row_first + zeros);
    team.sync(); /* nobody reads what was near */
    mimo_near_fill(team, near, p, zeros);
    team.sync();
}

#endif
