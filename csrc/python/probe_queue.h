/* Queues of tile tasks run in random orders: what the simulator and its checker share. */
#ifndef MIMO_PYTHON_PROBE_QUEUE_H
#define MIMO_PYTHON_PROBE_QUEUE_H

#include "cuda/lower.h"
#include "cuda/moe.h"
#include "model/draft.h"

enum { MIMO_PROBE_STEPS = 8 }; /* at most */

/* What a model was lowered from and to. */
typedef struct mimo_probe_model {
    mimo_tape tape[2];
    bool has_draft;
    const uint32_t *tap; /* [tape[1].config->taps] layers of the target */
    mimo_gpu gpu;
    mimo_queues q;
} mimo_probe_model;

/* A phase is all that one operation's tasks or joins of a kind do in a step, told from the tape alone. */
typedef struct mimo_probe_phase {
    const mimo_op *op;
    uint8_t kind, tape;
    uint32_t from[MIMO_AREAS]; /* the phase that wrote an area last, before this one */
    uint32_t splits;           /* of its tasks, all the same */
    uint64_t expected, done;   /* elements of work in all steps */
} mimo_probe_phase;

/* Memory as cells that remember who wrote them in which step. */
typedef struct mimo_probe_cells {
    const mimo_probe_model *model;
    mimo_probe_phase *phase; /* [phases] */
    uint32_t phases;
    uint32_t *phase_of[2]; /* [operations, MIMO_TILE_KINDS] */
    uint32_t feature_phase[MIMO_MAX_TAPS];
    uint32_t accept, propose; /* phases */
    uint32_t base[MIMO_AREAS], size[MIMO_AREAS];
    uint32_t *stamp;
    uint32_t columns, p_rows, u_columns, heads, kv_heads, features, blocks; /* strides, in cells */
    mimo_moe moe;
    char text[256]; /* what went wrong; empty: nothing */
} mimo_probe_cells;

/* -1: out of memory. tasks: those that will run. */
int mimo_probe_cells_open(mimo_probe_cells *cells, const mimo_probe_model *model, const mimo_tile_task *tasks,
                          uint32_t count);
void mimo_probe_cells_close(mimo_probe_cells *cells);
/* Forgets all but the state that the first step reads. */
void mimo_probe_cells_reset(mimo_probe_cells *cells);

/* A task's body from its first read to its last write, in two parts between which others run. False: text says why. */
bool mimo_probe_cells_begin(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step);
bool mimo_probe_cells_end(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step, uint64_t *random);
/* Whether all work of `steps` steps is done. */
bool mimo_probe_cells_complete(mimo_probe_cells *cells, uint32_t steps);
/* Whether the router's choice that a loader reads is that of its step. */
bool mimo_probe_cells_routed(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step);

/* Queues as they are run: those of the model, or changed ones. */
typedef struct mimo_probe_list {
    const mimo_tile_task *task, *join;
    const uint32_t *begin; /* [sms + 1] */
    uint32_t joins;
} mimo_probe_list;

typedef struct mimo_probe_run {
    uint64_t seed;
    uint32_t orders, steps, first_step;
    bool ring_overrun, plain_compare, early_signal; /* bugs that an engine could have */
} mimo_probe_run;

typedef struct mimo_probe_stats {
    uint64_t events, pages, early_pages; /* early: asked for before what their task waits for was ready */
} mimo_probe_stats;

/* Runs `orders` random orders of `steps` steps. 0, 1: text says what went wrong, -1: out of memory. */
int mimo_probe_queue_run(char *text, size_t size, mimo_probe_stats *stats, const mimo_probe_model *model,
                         const mimo_probe_list *list, const mimo_probe_run *run);

/* A number below n. */
static inline uint32_t mimo_probe_random(uint64_t *state, uint32_t n)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)((*state >> 32) * (uint64_t)n >> 32);
}

#endif
