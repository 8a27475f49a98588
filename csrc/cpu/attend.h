/* Attention of a tile: some rows of a step times some query heads, a chunk of keys at a time. */
#ifndef MIMO_CPU_ATTEND_H
#define MIMO_CPU_ATTEND_H

#include "cpu/cpu.h"

/* Results of some keys for query heads, those of a row after those of the row before: softmax numerators are relative
 * to m, l is their sum, acc their weighted values. */
typedef struct mimo_partial {
    float *m, *l, *acc; /* [heads], [heads], [heads, Dv] */
} mimo_partial;

/* memory [heads * (Dv + 2)]. */
mimo_partial mimo_partial_at(float *memory, size_t heads);

/* The keys that a row sees, and the chunks they are in: [first, last). */
typedef struct mimo_sight {
    size_t lowest, after; /* keys lowest <= j < after */
    size_t first, last;
} mimo_sight;

mimo_sight mimo_sight_of(const mimo_cpu *cpu, const mimo_attention *a, size_t t);

/* Neighbouring rows of the step, times query heads that share a key/value head. Rows that see all of a chunk take it
 * together, others one after the other: it is read from memory once if they are of one sequence. */
typedef struct mimo_tile {
    const mimo_task *task;
    const mimo_attention *a;
    size_t t, rows, head, heads;
    size_t first, last; /* chunks that any row sees; no rows: there is no such tile */
    mimo_sight row[MIMO_TILE_ROWS];
} mimo_tile;

/* Rows [t, t + rows) as far as the step has them, heads [head, head + heads). */
mimo_tile mimo_tile_of(const mimo_task *task, const mimo_attention *a, size_t t, size_t rows, size_t head,
                       size_t heads);
/* Its queries side by side [rows * heads, D], in `memory` of that size where they do not lie so. */
const float *mimo_tile_queries(const mimo_tile *x, float *memory);
/* Results of one chunk: to `total` for rows of which it is the first, to `part` for others; chunk `after` of `next`
 * is asked for on the way. Uses the worker's scratch.attention, MIMO_ATTEND_SCRATCH floats. */
void mimo_tile_attend(const mimo_tile *x, size_t chunk, const float *queries, const mimo_partial *total,
                      const mimo_partial *part, const mimo_tile *next, size_t after);
/* Then, in the order of the chunks: `part` joins `total`, and rows that have seen all write their output. */
void mimo_tile_merge(const mimo_tile *x, size_t chunk, const mimo_partial *total, const mimo_partial *part);

#endif
