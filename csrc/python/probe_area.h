/* Cells of the simulator's memory, for the two files that know them. */
#ifndef MIMO_PYTHON_PROBE_AREA_H
#define MIMO_PYTHON_PROBE_AREA_H

#include "python/probe_queue.h"

enum { T = MIMO_TILE_TOKENS, COLUMN_CELL = 16, ROW_CELL = 8, WRITING = 1 << 30, NO_PHASE = -1 };
enum { TOKEN_PHASES = MIMO_TILE_KINDS - MIMO_TILE_DRAFT_BIAS }; /* at most, beside an operation's own */
/* Areas by number. */
enum { STATE, ANGLES, X, N, P, Q, KV, S, A, ROUTES, U, LOGITS, BEST, FEATURES, BIASED, MAXIMA, KEPT, FILTER, PICKED };

/* The stamp of a cell that a phase wrote in a step, which may be -1. */
static inline uint32_t mimo_probe_stamp(const mimo_probe_cells *c, int64_t step, uint32_t phase)
{
    return (uint32_t)(step + 1) * c->phases + phase + 1;
}

#endif
