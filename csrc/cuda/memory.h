/* What lies where on the GPU, decided before anything is allocated.
 *
 *   weights    matrices as published, rows padded to 16 bytes: the target's, then the drafter's
 *   tables     what describes them to kernels; norms, sinks and other vectors as float
 *   work       rows of a step, of the target and of the drafter, and what goes in and out of a step
 *   sequences  for each of 40: the ring of sliding layers, and the table of its chunks
 *   chunks     keys and values of 256 positions of all full layers, the drafter's beside the target's: as many as the
 *              rest holds, or as all sequences can fill
 */
#ifndef MIMO_CUDA_MEMORY_H
#define MIMO_CUDA_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "cuda/op/state.h"
#include "model/draft.h"
#include "model/weights.h"

/* Sequences that may have a cache at once: the jobs in slots, the idle ones, and those of calls. */
enum { MIMO_CUDA_SEQUENCES = 40 };

/* What the driver may take for itself while steps run. */
#define MIMO_CUDA_RESERVE ((uint64_t)256 << 20)

typedef struct mimo_cuda_memory {
    uint64_t available; /* what was free */
    uint64_t kept;      /* of it for the caller of the backend */
    uint64_t weights, embedding, draft_weights, tables, work;
    uint64_t ring[2], table[2]; /* bytes of one sequence: [0] the target's, [1] the drafter's */
    uint64_t chunk[2];          /* bytes of 256 positions, likewise */
    uint64_t chunk_slots;       /* entries of a table */
    uint64_t chunks;            /* of the whole pool; 0: no full layers */
    uint64_t pages[2];          /* of weights, draft_weights: what is in pages of the resident path; */
    uint64_t resident;          /* of work: what it has beside them */
    uint64_t spare;             /* of them beyond what positions need: a drafter's block may reach into the next one */
} mimo_cuda_memory;

/* What the resident path has in the place of matrices as published, in bytes. */
typedef struct mimo_cuda_paged {
    uint64_t pages[2], work;
} mimo_cuda_paged;

/* paged: NULL on the plain path. max_context: positions of a sequence; kept: bytes that are left to the caller.
 * MIMO_ERR_NOMEM with the whole table if it does not fit `available` bytes. */
MIMO_MUST_CHECK mimo_status mimo_cuda_plan_memory(mimo_cuda_memory *out, const mimo_config *config,
                                                  const mimo_weights *weights, const mimo_draft *draft,
                                                  const mimo_cuda_paged *paged, bool exact, uint32_t max_context,
                                                  uint64_t available, uint64_t kept, mimo_error *err);

/* One item of the table; false beyond the last two, which are the sum and what is available. */
bool mimo_cuda_memory_item(const mimo_cuda_memory *m, size_t item, const char **what, uint64_t *bytes);

/* ---- places ---- */

/* Addresses handed out one after the other, each a multiple of 256; from 0 on, only sizes are meant. */
typedef struct mimo_carver {
    uint64_t base, used;
    bool overflow;
} mimo_carver;

uint64_t mimo_carve(mimo_carver *carver, uint64_t count, uint64_t size);

/* Where a model's parts are. */
typedef struct mimo_cuda_places {
    mimo_carver weights, tables, work;
    uint64_t embedding; /* bytes of weights that are the embedding table */
} mimo_cuda_places;

/* What goes in and out of a step, and where the tables lie; all addresses of the device. */
typedef struct mimo_cuda_spots {
    uint64_t config, layers, mlps, drafter;
    uint64_t step, features, logits, hidden;
    size_t logits_stride;
} mimo_cuda_spots;

/* The target's layers on the device, or a drafter's. */
typedef struct mimo_cuda_model {
    const mimo_config *config;
    const mimo_weights *weights;
    const mimo_draft_config *draft; /* NULL: the target */
    bool paged;                     /* matrices but the embedding and a Markov head are only described */
    size_t mlps;                    /* of all layers */
    mimo_cuda_layer *layer;         /* [L] as the device has them, as are the next three */
    mimo_cuda_matrix *mlp;          /* [3, mlps] */
    mimo_cuda_drafter drafter;
    mimo_cuda_state state;
    mimo_cuda_spots spots;
} mimo_cuda_model;

/* Storage for a model's descriptions. draft: the drafter's config, or NULL. Release also after failure. */
MIMO_MUST_CHECK mimo_status mimo_cuda_model_open(mimo_cuda_model *model, const mimo_config *config,
                                                 const mimo_weights *weights, const mimo_draft_config *draft,
                                                 mimo_error *err);
void mimo_cuda_model_close(mimo_cuda_model *model);

/* Gives every part of the model its address. target: of a drafter, whose embedding (and head) are the target's. */
void mimo_cuda_place(mimo_cuda_model *model, const mimo_cuda_model *target, mimo_cuda_places *places, bool exact,
                     uint32_t max_context);

/* Every matrix that is the model's own, in the order in which a step reads them. */
typedef void mimo_cuda_visit(void *context, const mimo_matrix *from, const mimo_cuda_matrix *to);
void mimo_cuda_visit_matrices(const mimo_cuda_model *model, mimo_cuda_visit *fn, void *context);
/* Every vector likewise; room is what it is padded to, with zeros. */
typedef void mimo_cuda_visit_vector(void *context, const mimo_vector *from, const float *to, size_t room);
void mimo_cuda_visit_vectors(const mimo_cuda_model *model, mimo_cuda_visit_vector *fn, void *context);

#endif
