/* Verifying a block of drafts against the model's logits.
 *
 * Row 0 of a block is the anchor, the last token that is known; row k is the k-th draft. The logits of row k say what
 * stands after it: they verify draft k + 1, and give the token that is emitted when it is wrong, or when there is none.
 *
 * Coupled: at every row the model's own token is sampled; drafts are right while they equal it, and the first token
 * that differs is emitted. The output is token for token what decoding without drafts gives.
 *
 * Rejection (Leviathan et al. 2023; Chen et al. 2023): draft d, drawn from q, is kept with probability
 * min(1, p(d) / q(d)), where p is what the model's token would be drawn from; when it is rejected, its place is drawn
 * from max(0, p - q), normalised. The output has the law of decoding without drafts. */
#ifndef MIMO_DFLASH_VERIFY_H
#define MIMO_DFLASH_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "sample/sample.h"
#include "sample/seen.h"

enum { MIMO_BLOCK_ROWS = 16 }; /* most rows of a block, the anchor included */

typedef enum mimo_rule { MIMO_VERIFY_COUPLED, MIMO_VERIFY_REJECTION } mimo_rule;

typedef struct mimo_block {
    const mimo_sampling *sampling;
    uint64_t position; /* of the token after the anchor */
    size_t rows, V;
    const uint32_t *draft; /* [rows - 1] */
    float *logits;         /* [rows, stride]; may be overwritten */
    size_t stride;
    /* Rejection only. */
    float *const *drawn_from; /* [rows - 1] logits [V] that a draft was drawn from, as mimo_sample does with
                                 MIMO_NOISE_DRAFT and seen tokens of its row; NULL: it was certain */
    double *p, *q;            /* [V] scratch */
} mimo_block;

typedef struct mimo_verdict {
    size_t accepted; /* leading drafts that stand */
    size_t chosen;   /* choices made: accepted + 1, or less after an error */
    mimo_choice choice[MIMO_BLOCK_ROWS];
} mimo_verdict;

/* Both leave `seen` (the tokens before the block and the anchor) as it was; it has room for rows - 1 more. On failure
 * the choices before the bad row stand. */
MIMO_MUST_CHECK mimo_status mimo_verify_coupled(mimo_verdict *out, const mimo_block *block, mimo_seen *seen,
                                                void *scratch, mimo_error *err);
MIMO_MUST_CHECK mimo_status mimo_verify_rejection(mimo_verdict *out, const mimo_block *block, mimo_seen *seen,
                                                  void *scratch, mimo_error *err);

/* Rejection at one row. p [V]; q [V], or NULL when the draft was certain. accept, residual: uniform on [0, 1). *kept:
 * whether the draft stands; returns the token of its place. */
uint32_t mimo_reject_one(const double *p, const double *q, size_t V, uint32_t draft, double accept, double residual,
                         bool *kept);

#endif
