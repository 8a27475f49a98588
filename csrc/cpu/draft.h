/* The drafter of the CPU backend: its layers are a mimo_cpu of their own, with tape, weights and workspace, that shares
 * the target's workers and kernels. */
#ifndef MIMO_CPU_DRAFT_H
#define MIMO_CPU_DRAFT_H

#include "cpu/cpu.h"

typedef struct mimo_cpu_draft {
    mimo_cpu cpu; /* first: its `draft` is this struct, too */
    mimo_cpu *target;
    const mimo_draft_config *config;
    mimo_panel fuse, markov_in, markov_out;
    const float *fuse_norm, *mask; /* [H] */
    uint32_t *index;               /* [V] index of a target's id, or V' where it has none; NULL: the same */

    /* Rows of the step */
    mimo_rows taps;     /* [T, M*H] */
    uint32_t *position; /* [T] */
    mimo_kv **kv;       /* [T] the drafter's */
    uint16_t *output;   /* [T] */
    size_t *begin;      /* [T] first visible position of context, of a block */
    const mimo_draft_step *step;
} mimo_cpu_draft;

/* Fills target->draft and target's functions, memory and load_bytes. The pool need not be open yet. */
MIMO_MUST_CHECK mimo_status mimo_cpu_draft_open(mimo_cpu *target, const mimo_draft *draft, mimo_error *err);
MIMO_MUST_CHECK mimo_status mimo_cpu_draft_load(mimo_cpu_draft *draft, const mimo_file *files,
                                                atomic_uint_fast64_t *done, const atomic_bool *cancel, mimo_error *err);
void mimo_cpu_draft_close(mimo_cpu_draft *draft);

/* The keys [*lowest, *after) that row t of the block step sees; *lowest is what the window alone allows. */
void mimo_cpu_draft_keys(const mimo_cpu *cpu, const mimo_attention *a, size_t t, size_t *lowest, size_t *after);

#endif
