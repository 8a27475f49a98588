/* The router's choice, as the experts' operations read it. Sorted in any order of threads with the same result: which
 * experts are read and who reads what is a function of the choice alone. */
#ifndef MIMO_CUDA_MOE_H
#define MIMO_CUDA_MOE_H

#include "cuda/task.h"

enum {
    MIMO_MOE_EXPERTS = 512,
    MIMO_MOE_TOP_K = 64,
    MIMO_MOE_ENTRIES = MIMO_TILE_TOKENS * MIMO_MOE_TOP_K
}; /* at most */

/* An entry is a (row, chosen expert), in order of expert, then row; U has a row for each. */
typedef struct mimo_moe {
    uint32_t experts;                     /* distinct ones */
    uint16_t expert[MIMO_MOE_ENTRIES];    /* [experts] ascending */
    uint16_t begin[MIMO_MOE_ENTRIES + 1]; /* [experts + 1] entries of expert[i]: begin[i] .. begin[i + 1] - 1 */
    uint8_t mask[MIMO_MOE_ENTRIES];       /* [experts] rows that chose expert[i], one bit each */
    uint8_t row[MIMO_MOE_ENTRIES];        /* [entries] */
    float weight[MIMO_MOE_ENTRIES];       /* [entries] */
    /* What it is sorted from: experts of each row, ascending, with their weights. */
    uint16_t chosen[MIMO_MOE_ENTRIES]; /* [T, K] */
    float share[MIMO_MOE_ENTRIES];     /* [T, K] */
    uint8_t first[MIMO_MOE_ENTRIES];   /* [T, K] whether no row before has the expert; of mimo_moe_mark alone */
} mimo_moe;

/* The choice is sorted in two passes over i < entries = T*K; each may go through them in any order or all at once, but
 * the second begins when the first has ended. Rows of `chosen` have distinct experts. */
MIMO_ANYWHERE void mimo_moe_mark(mimo_moe *moe, uint32_t i)
{
    uint8_t is_first = 1;
    for (uint32_t j = 0; j < i; j++)
        is_first &= moe->chosen[j] != moe->chosen[i];
    moe->first[i] = is_first;
}

MIMO_ANYWHERE void mimo_moe_place(mimo_moe *moe, uint32_t entries, uint32_t K, uint32_t i)
{
    const uint16_t *chosen = moe->chosen;
    const uint8_t *first = moe->first;
    uint32_t at = 0, index = 0, larger = 0, mask = 0;
    for (uint32_t j = 0; j < entries; j++) {
        at += chosen[j] < chosen[i] || (chosen[j] == chosen[i] && j < i);
        index += chosen[j] < chosen[i] && first[j];
        larger += chosen[j] > chosen[i];
        mask |= (uint32_t)(chosen[j] == chosen[i]) << j / K;
    }
    moe->row[at] = (uint8_t)(i / K);
    moe->weight[at] = moe->share[i];
    if (!first[i])
        return;
    moe->expert[index] = chosen[i];
    moe->begin[index] = (uint16_t)at;
    moe->mask[index] = (uint8_t)mask;
    if (larger == 0) {
        moe->experts = index + 1;
        moe->begin[index + 1] = (uint16_t)entries;
    }
}

/* A unit of EXPERT_UP: tile `tile` of the index-th chosen expert. */
typedef struct mimo_moe_unit {
    uint32_t index, tile;
} mimo_moe_unit;

/* Unit n of all experts' `tiles` tiles, for n < experts * tiles. Neighbours go to different lanes, so lanes differ by
 * one unit at most. */
MIMO_ANYWHERE mimo_moe_unit mimo_moe_unit_at(uint32_t n, uint32_t tiles)
{
    const mimo_moe_unit unit = {n / tiles, n % tiles};
    return unit;
}

#endif
