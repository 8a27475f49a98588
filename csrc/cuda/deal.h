/* Stages of tile tasks and joins, dealt to SMs: what `lower.c` writes queues with, an operation's stages in
 * `lower_op.c`.
 *
 * Queues are dealt twice: the first pass counts each SM's tasks, and learns the last stage, for which the first one
 * waits; the second writes them. */
#ifndef MIMO_CUDA_DEAL_H
#define MIMO_CUDA_DEAL_H

#include "cuda/lower.h"

typedef struct mimo_deal {
    mimo_queues *q;
    const mimo_gpu *gpu;
    const mimo_tape *tape[2];
    uint32_t parts;   /* of the round */
    uint32_t *filled; /* [sms] tasks so far */
    bool writes;
    uint32_t turn; /* SM that a stage's first odd task goes to, so that none has all of them */
    uint32_t stage, stage_tasks;
    uint32_t join, joins;          /* the stage's first, and all so far */
    uint32_t before, before_count; /* counter of the stage before, and what it grows by in a step */
    uint32_t last, last_count;     /* of the whole round; known in the second pass */
    uint32_t route, route_count;   /* of the layer's ROUTE */
    mimo_tile_task common;         /* of the operation's tasks */
} mimo_deal;

/* A stage's joins come before its tasks, each a changed copy of what begin_join returned. */
mimo_tile_task mimo_deal_begin_join(const mimo_deal *d, mimo_tile_kind kind, uint32_t splits);
void mimo_deal_join(mimo_deal *d, const mimo_tile_task *join);

/* Begins a stage, which waits for the one before; its tasks are changed copies of what is returned. */
mimo_tile_task mimo_deal_begin(mimo_deal *d, mimo_tile_kind kind);
void mimo_deal_task(mimo_deal *d, uint32_t sm, const mimo_tile_task *task);
void mimo_deal_end(mimo_deal *d);
/* The next SM in turn, for stages of small tasks. */
uint32_t mimo_deal_next_sm(mimo_deal *d);
/* `count` units in runs of neighbours: SM `sm` has [*first, returned). Runs differ by one unit; the longer ones begin
 * at d->turn. */
uint32_t mimo_deal_run(const mimo_deal *d, uint32_t sm, uint32_t count, uint32_t *first);

/* The stages of one operation of the tape d->common.tape. */
void mimo_lower_op(mimo_deal *d, const mimo_op *op);
/* The shape of EXPERT_DOWN's tiles, of dimensions `dim`. */
void mimo_lower_pick_down(mimo_tile_shape *shape, const mimo_tape *tape, const uint32_t *dim, const mimo_gpu *gpu);

#endif
