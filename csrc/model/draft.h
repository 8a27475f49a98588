/* A DFlash drafter: a few layers that fill a block of B positions in one pass.
 *
 * c_t = norm(fc [taps of position t]) is one row of context, made of the target's residual stream after the layers of
 * `tap`. In every layer its keys and values are k_proj and v_proj of c_t itself, kept for the last `window` committed
 * positions. The rows of a block are the anchor's embedding (the last known token, at position a) and B - 1 times the
 * mask embedding; row k predicts the token at position a + k. Block rows see the context before a within the window,
 * and each other. Head and embedding are the target's. */
#ifndef MIMO_MODEL_DRAFT_H
#define MIMO_MODEL_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"
#include "model/weights.h"

typedef struct mimo_draft_config {
    mimo_config model;           /* the drafter's own layers; its vocab is V', the ids its head can draft */
    uint32_t tap[MIMO_MAX_TAPS]; /* [model.taps] layers of the target */
    uint32_t causal[2];          /* in layers of a kind, 1: a block row sees no later row of its block */
    uint32_t window_from_anchor; /* 1: every row of a block sees context [a - window, a); 0: row at p sees [p - window +
                                    1, a) */
    uint32_t short_block;        /* rows of a cheaper block that it was trained to fill as well; 0: none */
    const uint32_t *target_id;   /* [V'] the target's id of each drafted index; NULL: the same, and V' is V */
} mimo_draft_config;

/* A drafter as a backend takes it. Its weights' head are the V' rows of the target's head. */
typedef struct mimo_draft {
    mimo_draft_config config;
    mimo_weights weights;
} mimo_draft;

/* Checks and binds a drafter as mimo_weights_bind does, alone and beside `target`, which has passed mimo_config_check;
 * its head are the rows of the target's that it can draft. target and config's target_id must outlive it. On failure
 * *out needs no release; errors begin with "draft: ". */
MIMO_MUST_CHECK mimo_status mimo_draft_bind(mimo_draft *out, const mimo_draft_config *config, const mimo_config *target,
                                            const mimo_weights *target_weights, const mimo_tensor *tensors,
                                            size_t count, const uint64_t *file_bytes, size_t files, mimo_error *err);
void mimo_draft_release(mimo_draft *draft);

static inline uint32_t mimo_draft_token(const mimo_draft_config *draft, uint32_t index)
{
    return draft->target_id != NULL ? draft->target_id[index] : index;
}

#endif
