/* The CUDA backend's own state, shared by the files of this room. */
#ifndef MIMO_CUDA_CUDA_H
#define MIMO_CUDA_CUDA_H

#include "base/pool.h"
#include "cuda/device.h"
#include "cuda/kv.h"
#include "cuda/memory.h"
#include "cuda/resident.h"
#include "cuda/timeline.h"
#include "plan/backend.h"
#include "plan/plan.h"

/* A model's layers, its tape, and the tape recorded for every number of rows. */
typedef struct mimo_cuda_tape {
    mimo_cuda_model model;
    mimo_plan plan;
    uint32_t context_ops;               /* of a drafter's tape: those that make context; 0 in a target's */
    void *graph[2][MIMO_CUDA_ROWS + 1]; /* [0] the tape after its context_ops, [1] those; by rows */
} mimo_cuda_tape;

typedef struct mimo_cuda {
    mimo_backend base;
    mimo_cuda_device device;
    mimo_cuda_memory memory;
    mimo_cuda_pool kv;
    mimo_cuda_tape target, drafter; /* drafter.model.config is NULL without one */
    mimo_resident *resident;        /* NULL: the plain path */
    bool e4m3;                      /* of the resident path: mimo_gpu.e4m3 */
    bool exact;
    size_t max_rows;
    uint32_t max_context;
    uint64_t kept;  /* bytes left to the caller */
    uint32_t ranks; /* >= 1 */
    mimo_pool *pool;

    mimo_cuda_ptr weights, tables, work, caches;
    uint8_t *host_tables; /* the tables as they are on the device, while loading */
    bool loaded;

    /* Memory of the host that the device copies from; one entry for every piece of a step. */
    mimo_cuda_step *step; /* [pieces] */
    float *features;      /* [pieces, M, MIMO_CUDA_ROWS, H]; of a drafter */
    size_t pieces;

    /* The Markov head of a drafter, for drafts that the host chooses. */
    float *markov_in, *markov_out; /* [V', rank] */
    uint32_t *index;               /* [V] index of a target's id, or V' where it has none; NULL: the same */

    bool profiling;
    mimo_profile profile, draft_profile;
    mimo_timeline *timeline; /* of what is queued from now on; NULL: none */
} mimo_cuda;

/* load.c */
/* Allocates, reads the files and tells the device. On failure nothing stays. */
MIMO_MUST_CHECK mimo_status mimo_cuda_load(mimo_cuda *cuda, const mimo_file *files, atomic_uint_fast64_t *done,
                                           const atomic_bool *cancel, mimo_error *err);
/* The same with weights, and keys and values, made up on the GPU (op/fill.h); vectors are ones. */
MIMO_MUST_CHECK mimo_status mimo_cuda_make(mimo_cuda *cuda, uint64_t seed, mimo_error *err);
uint64_t mimo_cuda_load_bytes(const mimo_cuda *cuda);
void mimo_cuda_unload(mimo_cuda *cuda);

/* load_pages.c: the pages of the resident path. */
MIMO_MUST_CHECK mimo_status mimo_cuda_load_pages(mimo_cuda *cuda, const mimo_file *files, atomic_uint_fast64_t *done,
                                                 const atomic_bool *cancel, mimo_error *err);

/* make.c: queues what fills all matrices that are placed, and all caches. */
void mimo_cuda_fill_weights(mimo_cuda *cuda, uint64_t seed);

/* vectors.c: what is small. The tables are placed and cuda->host_tables is theirs. files NULL: vectors are ones. */
MIMO_MUST_CHECK mimo_status mimo_cuda_fill_tables(mimo_cuda *cuda, const mimo_file *files, mimo_error *err);
/* The Markov head's matrices, on the host. */
MIMO_MUST_CHECK mimo_status mimo_cuda_load_markov(mimo_cuda *cuda, const mimo_file *files, mimo_error *err);

/* run.c */
/* Queues operations [first, end) of the tape for steps of `rows` rows. */
void mimo_cuda_run(mimo_cuda *cuda, mimo_cuda_tape *tape, uint32_t first, uint32_t end, uint32_t rows);
/* Runs the tapes once, then records them for every number of rows. */
MIMO_MUST_CHECK mimo_status mimo_cuda_record_tapes(mimo_cuda *cuda, mimo_error *err);
void mimo_cuda_forget_tapes(mimo_cuda *cuda);
/* Waits for all that is queued. */
void mimo_cuda_settle(mimo_cuda *cuda);
/* Logits of the i-th row that a step wants: their row among those on the device. The resident path makes every row's.
 */
static inline size_t mimo_cuda_logits_row(const mimo_cuda *cuda, const mimo_cuda_step *step, size_t i)
{
    return cuda->resident != NULL ? step->output[i] : i;
}
/* Runs the tape's part (0, 1: see mimo_cuda_tape.graph) for cuda->step[piece]. */
void mimo_cuda_run_piece(mimo_cuda *cuda, mimo_cuda_tape *tape, int part, size_t piece);
void mimo_cuda_backend_step(mimo_backend *self, const mimo_step *step);

/* decode.c: of the resident path. */
void mimo_cuda_backend_decode(mimo_backend *self, mimo_decode *decode);
bool mimo_cuda_backend_can_decode(const mimo_backend *self, const mimo_decode *decode);

/* draft.c */
MIMO_MUST_CHECK mimo_status mimo_cuda_draft_open(mimo_cuda *cuda, const mimo_draft *draft, mimo_error *err);

#endif
