/* What lies on a page of weights (task.h: rows by elements of K, with their scales), in the order in which the lanes of
 * a warp read it.
 *
 * A unit is 16 rows, a block 32 elements of K. In a unit and block, lane 4 g + c has the eight elements 8 c .. 8 c + 7
 * of row g, and of row g + 8 (its upper half): a group. That is the A fragment of two m16n8k16 tensor core operations
 * with K in the order 0 4 1 5 2 6 3 7 of each group, which is also the order in which BF16 elements lie in it; those of
 * the other formats lie as published. A unit of gate and up is 8 rows of gate, then the same 8 rows of up: a lane has
 * both. Scales come after all groups: MXFP4 16 a unit and block, FP8 2 (rows 0 .. 7, rows 8 .. 15) a unit and 128
 * elements. */
#ifndef MIMO_CUDA_PAGE_H
#define MIMO_CUDA_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/target.h"
#include "model/weights.h"

enum { MIMO_PAGE_UNIT = 16, MIMO_PAGE_BLOCK = 32, MIMO_PAGE_GROUP = 8, MIMO_PAGE_TILE = 128 };

/* Bytes of one unit and block without scales. */
static inline MIMO_HD uint32_t mimo_page_block_bytes(uint32_t format)
{
    const uint32_t bytes[4] = {2048, 1024, 512, 256};
    return bytes[format];
}

/* Where a lane's group begins in a unit and block; `part` 0 or 1 of F32, whose groups are in two pieces. */
static inline MIMO_HD uint32_t mimo_page_group(uint32_t format, uint32_t lane, uint32_t upper, uint32_t part)
{
    switch (format) {
    case MIMO_FORMAT_F32:
        return ((2 * upper + part) * 32 + lane) * 16;
    case MIMO_FORMAT_BF16:
        return (upper * 32 + lane) * 16;
    case MIMO_FORMAT_FP8:
        return lane * 16 + upper * 8;
    default:
        return lane * 8 + upper * 4;
    }
}

/* Where the scales of a page of `units` units and `k` elements begin, */
static inline MIMO_HD uint32_t mimo_page_scales(uint32_t format, uint32_t units, uint32_t k)
{
    return units * (k / MIMO_PAGE_BLOCK) * mimo_page_block_bytes(format);
}

/* and how many of them go before those of a unit and block. */
static inline MIMO_HD uint32_t mimo_page_scale(uint32_t format, uint32_t unit, uint32_t block, uint32_t k)
{
    if (format == MIMO_FORMAT_MXFP4)
        return (unit * (k / MIMO_PAGE_BLOCK) + block) * MIMO_PAGE_UNIT;
    return (unit * ((k + MIMO_PAGE_TILE - 1) / MIMO_PAGE_TILE) + block / 4) * 2;
}

#endif
