/* One of several ranks of a model, with weights made up on the GPU: what a benchmark times where no checkpoint is.
 *
 * A rank's step is that of a model of its share's sizes. What ranks tell each other is left out: a rank's partial sums
 * stand for the whole ones, so its results mean nothing and have the right sizes and costs. Which experts are read is
 * drawn by the caller and forced on the routers (mimo_cuda_step.lean), which compute and choose as ever. */
#ifndef MIMO_CUDA_RANK_H
#define MIMO_CUDA_RANK_H

#include "cuda/memory.h"
#include "cuda/timeline.h"
#include "plan/backend.h"
#include "plan/plan.h"

enum { MIMO_RANK_RUNS = 16 }; /* at most, one after the other */

typedef struct mimo_rank_options {
    uint32_t world;   /* 1 .. 8 */
    uint32_t context; /* positions before a step */
    uint64_t copied;  /* bytes of a copy that is timed */
} mimo_rank_options;

typedef struct mimo_rank {
    mimo_rank_options options;
    mimo_config config;
    mimo_weights weights;
    mimo_draft draft;
    bool has_draft;

    /* While a GPU is open: */
    struct mimo_cuda *cuda;
    struct mimo_cuda_sequence *sequence;
    mimo_cuda_ptr copy_from, copy_to, lean, stamps;
    uint32_t leans; /* tables at `lean` */
    void *event[2 * MIMO_RANK_RUNS];
} mimo_rank;

/* The share of a model and its drafter (NULL: none), which must outlive it. Close it also after failure. */
MIMO_MUST_CHECK mimo_status mimo_rank_shard(mimo_rank *rank, const mimo_config *config, const mimo_weights *weights,
                                            const mimo_draft *draft, const mimo_rank_options *options, mimo_error *err);
void mimo_rank_close(mimo_rank *rank);

/* What would lie where in `available` bytes; MIMO_ERR_NOMEM with the whole table if it does not fit. */
MIMO_MUST_CHECK mimo_status mimo_rank_memory(mimo_cuda_memory *out, const mimo_rank *rank, uint64_t available,
                                             mimo_error *err);

/* Opens GPU number `device` for a path ("plain", "resident", "resident-e4m3"), whose kernels are the file `image`, and
 * makes the weights. name [128]: the GPU's. */
MIMO_MUST_CHECK mimo_status mimo_rank_open(mimo_rank *rank, uint32_t device, const char *path, const char *image,
                                           uint64_t seed, char *name, mimo_error *err);
/* Gives the GPU back. */
void mimo_rank_shut(mimo_rank *rank);

/* The rest is for an open rank. Seconds of `count` runs, one after the other without a pause. */

/* Copies on the GPU of options.copied bytes each. */
MIMO_MUST_CHECK mimo_status mimo_rank_time_copies(mimo_rank *rank, double *seconds, size_t count, mimo_error *err);
/* Drawn experts [sets, L, MIMO_CUDA_ROWS, K], those of a row distinct; what is of dense layers is not read. Sets beyond
 * MIMO_RANK_RUNS are not kept. */
MIMO_MUST_CHECK mimo_status mimo_rank_draw(mimo_rank *rank, const uint16_t *experts, uint32_t sets, mimo_error *err);
/* Steps of the target of `rows` rows, logits of all of them; run i chooses experts as drawn in set i modulo sets. */
MIMO_MUST_CHECK mimo_status mimo_rank_time_steps(mimo_rank *rank, uint32_t rows, double *seconds, size_t count,
                                                 mimo_error *err);
/* The drafter's context of `rows` rows, whose features are on the GPU, and a block of drafts. */
MIMO_MUST_CHECK mimo_status mimo_rank_time_drafts(mimo_rank *rank, uint32_t rows, double *seconds, size_t count,
                                                  mimo_error *err);

/* One step (draft: one context and block) with the stamps of all its CTAs, or tasks, in the order of its launches.
 * Release the arrays with mimo_free. */
typedef struct mimo_rank_trace {
    mimo_timeline line; /* line.launch is the array of launches */
    mimo_stamp *stamp;  /* [line.used] */
} mimo_rank_trace;
MIMO_MUST_CHECK mimo_status mimo_rank_trace_step(mimo_rank *rank, uint32_t rows, bool draft, mimo_rank_trace *out,
                                                 mimo_error *err);

/* Of the last step: experts [rows, K] that its last sparse layer chose, and the logits [rows, V] of its rows. Either
 * may be NULL. */
MIMO_MUST_CHECK mimo_status mimo_rank_read(mimo_rank *rank, uint32_t rows, uint16_t *experts, float *logits,
                                           mimo_error *err);

/* Bytes that a step reads of one operation: `fixed` always, `expert` for each of the experts chosen, `position` for
 * each position of keys and values that is visible (window 0: all). */
typedef struct mimo_rank_bytes {
    uint64_t fixed, expert, position;
    uint32_t window;
} mimo_rank_bytes;
/* Of operation `op` of the target's plan, or the drafter's. */
mimo_rank_bytes mimo_rank_op_bytes(const mimo_rank *rank, bool draft, const mimo_op *op);

#endif
