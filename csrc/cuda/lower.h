/* From tapes to queues: the tasks of one round (task.h), dealt to SMs.
 *
 * A round is a step of the target, the choice and verification of its tokens, and, with a drafter, its context and a
 * block of drafts. Every stage waits for all of the stage before, with its joins, the first one for the last of the
 * round before: what a step reads is the same whatever the order of SMs, and no task is ahead of another by more than a
 * round. Only loaders run ahead: weights are static, so pages are asked for as far ahead as the ring is long, across
 * stages. Where the router decides what is read, a loader has to wait for it; before it does, it hints the next layer's
 * weights to L2.
 *
 * Plain C without a GPU: `python/probe_queue.c` runs the queues in random orders. */
#ifndef MIMO_CUDA_LOWER_H
#define MIMO_CUDA_LOWER_H

#include "base/status.h"
#include "cuda/mail.h"
#include "cuda/pick.h"
#include "cuda/task.h"
#include "model/config.h"
#include "plan/plan.h"

/* A tape with what it was built from. config of a rank: mimo_shard_config. */
typedef struct mimo_tape {
    const mimo_plan *plan;
    const mimo_config *config;
    mimo_format format[MIMO_OP_COUNT]; /* of each operation's matrix, the same in all layers */
} mimo_tape;

typedef struct mimo_queues {
    uint32_t sms, tasks, joins, counters;
    uint32_t ids;              /* of the widest row that tokens are chosen from; 0: none are */
    uint32_t last_count;       /* what the last stage's counter grows by in a step */
    uint32_t *begin;           /* [sms + 1]: the queue of an SM is task[begin[sm]] .. task[begin[sm + 1] - 1] */
    mimo_tile_task *task;      /* [tasks] */
    mimo_tile_task *join;      /* [joins]; the counter of join j is number counters + j */
    mimo_tile_shape *shape[2]; /* [operations of the tape] how its matrix lies in memory; tiles 0: none */
    mimo_shared shared;
    uint32_t widest_head, widest_value;          /* elements of any head: of its keys, of its values */
    uint32_t columns;                            /* of H in an EMBED task or a REDUCE, but the last */
    uint64_t partial_floats, attend_floats;      /* largest P and S */
    uint64_t u_elements, a_elements, q_elements; /* largest U, A and Q */
    uint32_t u_width, a_width;                   /* widest rows of U and A */
    uint32_t up_format[2];                       /* of the pages of a tape's EXPERT_UP (page.h) */
} mimo_queues;

/* Parts of a round, in their order, one bit each. */
enum {
    MIMO_PART_READ = 1 << 0,    /* the target's tape without its head */
    MIMO_PART_HEAD = 1 << 1,    /* its head */
    MIMO_PART_CHOOSE = 1 << 2,  /* the tokens of all rows */
    MIMO_PART_CONTEXT = 1 << 3, /* the drafter's context */
    MIMO_PART_BLOCK = 1 << 4,   /* the drafter's block */
    MIMO_PART_PROPOSE = 1 << 5, /* the drafts */
    MIMO_PARTS_ROUND = (1 << 6) - 1
};

/* The formats of a tape's matrices; MIMO_ERR_UNSUPPORTED if layers differ. */
MIMO_MUST_CHECK mimo_status mimo_tape_formats(mimo_tape *tape, const mimo_weights *weights, mimo_error *err);

/* draft: NULL without a drafter. MIMO_ERR_UNSUPPORTED says which dimension is too large. *out needs a release only on
 * success. */
MIMO_MUST_CHECK mimo_status mimo_lower(mimo_queues *out, const mimo_tape *target, const mimo_tape *draft,
                                       const mimo_gpu *gpu, mimo_error *err);
/* Some parts of a round alone (without a drafter those of its own are empty), whose matrices lie in memory as the whole
 * round's: `shape` says it of those that are in them. */
MIMO_MUST_CHECK mimo_status mimo_lower_parts(mimo_queues *out, const mimo_tape *target, const mimo_tape *draft,
                                             const mimo_gpu *gpu, uint32_t parts, mimo_error *err);
void mimo_queues_release(mimo_queues *queues);
/* Who waited for what, in words. */
void mimo_queues_say(char *text, size_t size, const mimo_queues *queues, const mimo_mail_lost *lost);

/* Elements of K of DRAFT_FUSE, of dimensions `dim`, that a rank multiplies: every rank has the features, and one part
 * of the matrix's columns where they can be shared out. */
static inline uint32_t mimo_fuse_width(const uint32_t *dim, uint32_t ranks)
{
    const uint32_t K = dim[0] * dim[1];
    return ranks > 1 && K % (32 * ranks) == 0 ? K / ranks : K;
}

/* The part of a model that one of `world` ranks has: query heads, widths of MLPs and the head's vocabulary divided; key
 * heads divided, or one of them that several ranks have. Routers and norms are every rank's. MIMO_ERR_UNSUPPORTED names
 * what does not divide. */
MIMO_MUST_CHECK mimo_status mimo_shard_config(mimo_config *out, const mimo_config *config, uint32_t world,
                                              mimo_error *err);

#endif
