/* The resident path's launcher: programs lowered to queues, weights as pages, and one kernel that runs `rounds` of a
 * program a launch.
 *
 * Order of calls: mimo_resident_plan (nothing is allocated; sizes are known), mimo_resident_open (memory of the device;
 * queues and tables are there, pages are whatever was in that memory), the pages are filled (mimo_resident_pages says
 * where; load_pages.c does it from files), mimo_resident_begin, then mimo_resident_launch and mimo_resident_wait as
 * often as there are rounds to run. Counters are zero once and only grow: launches of one program follow one another.
 */
#ifndef MIMO_CUDA_RESIDENT_H
#define MIMO_CUDA_RESIDENT_H

#include "cuda/device.h"
#include "cuda/lower.h"
#include "cuda/mail.h"
#include "cuda/memory.h"
#include "cuda/tile/machine.h"

/* What a launch runs, again and again. */
typedef enum mimo_resident_program {
    MIMO_RESIDENT_ROUND,   /* a step of the target, the choice of its tokens, the drafter's context and its drafts */
    MIMO_RESIDENT_TOKEN,   /* the same without the drafter */
    MIMO_RESIDENT_STEP,    /* the target's tape: rows of any sequences, logits of every row */
    MIMO_RESIDENT_READ,    /* the same without its head */
    MIMO_RESIDENT_CONTEXT, /* the drafter's context */
    MIMO_RESIDENT_BLOCK,   /* a block of drafts: its logits */
    MIMO_RESIDENT_PROGRAMS
} mimo_resident_program;

/* A tape with the model that it is of, as place.c laid it out for the device; all must outlive the launcher. */
typedef struct mimo_resident_model {
    const mimo_plan *plan;
    const mimo_cuda_model *model; /* its addresses are read by mimo_resident_open, and are the device's by then */
} mimo_resident_model;

/* What goes to the kernel before a launch and comes back after it; the host's, pinned. */
typedef struct mimo_resident_told {
    uint32_t counter; /* of a program's last stage */
    mimo_mail_lost lost;
    mimo_tile_round round;
    mimo_cuda_step step[3]; /* these two go there */
} mimo_resident_told;

typedef struct mimo_resident {
    mimo_cuda_device *device;
    mimo_gpu gpu;
    mimo_resident_model model[2];
    mimo_tape tape[2];
    bool has_draft;
    uint32_t positions;
    mimo_queues queues[MIMO_RESIDENT_PROGRAMS];        /* without tasks: no such program */
    mimo_tile_machine machine[MIMO_RESIDENT_PROGRAMS]; /* its addresses are the device's */
    uint32_t step[MIMO_RESIDENT_PROGRAMS];             /* rounds over since the counters were zero */
    uint64_t page_bytes[2], work_bytes;                /* of the device: a tape's pages, and all but pages */
    uint64_t *page[2];                                 /* [operations of a tape] where its pages begin */
    mimo_cuda_ptr pages, work;                         /* what is allocated */
    mimo_cuda_ptr lost, token;
    mimo_mail *mail; /* the host's, pinned */
    mimo_resident_told *told;
    mimo_resident_program running; /* launched last */
    uint32_t read;                 /* tokens read from the mail */
    uint64_t patience;             /* nanoseconds that a wait of the kernel may take */
    uint32_t parts;                /* of activations: 1, or MIMO_TILE_EXACT_PARTS */
} mimo_resident;

/* What the device offers, to give to mimo_resident_plan. */
mimo_gpu mimo_resident_gpu(const mimo_cuda_device *device);

/* Lowers all programs, for sequences of up to `positions` tokens; exact: activations are floats, in three BF16. draft:
 * NULL without one. Close also after failure. */
MIMO_MUST_CHECK mimo_status mimo_resident_plan(mimo_resident *r, const mimo_resident_model *target,
                                               const mimo_resident_model *draft, const mimo_gpu *gpu,
                                               uint32_t positions, bool exact, mimo_error *err);
/* Allocates, uploads queues, zeroes counters. The device has the kernel (mimo_cuda_device_open). */
MIMO_MUST_CHECK mimo_status mimo_resident_open(mimo_resident *r, mimo_cuda_device *device, mimo_error *err);
/* Gives memory of the device back; mimo_resident_open may follow. */
void mimo_resident_shut(mimo_resident *r);
void mimo_resident_close(mimo_resident *r);

/* The pages of an operation (of its expert number `expert`; 0 of others) on the device, [splits][tiles][tile_pages] of
 * shape.page_bytes as mimo_pages_pack writes them (EXPERT_DOWN: one split); 0: it has none, or they are the target's.
 */
mimo_cuda_ptr mimo_resident_pages(const mimo_resident *r, uint32_t tape, uint32_t op, uint32_t expert,
                                  const mimo_tile_shape **shape);

/* The sequence that ROUND or TOKEN decodes. */
typedef struct mimo_resident_sequence {
    mimo_cuda_kv kv[2];    /* the target's cache, with the keys and values of all tokens but the last; the drafter's */
    const uint32_t *token; /* [known] */
    uint32_t known;
    uint32_t context_begin; /* the first position whose context the drafter's cache holds, up to the last token */
    mimo_tile_round round;  /* limit, stop, stops, width, lookup, temperature, stream, seed; the rest is filled in */
} mimo_resident_sequence;

/* Queues what the kernel needs to know of a sequence. */
void mimo_resident_begin(mimo_resident *r, const mimo_resident_sequence *sequence);
/* Queues up to `rounds` rounds of a program on the device's stream: at most MIMO_RESIDENT_MOST_ROUNDS of those that
 * send tokens, which all are read before the next launch; */
void mimo_resident_launch(mimo_resident *r, mimo_resident_program program, uint32_t rounds);
/* waits for all that is queued. A wait of the kernel that took too long loses the device (device->lost), with who
 * waited for what. */
void mimo_resident_wait(mimo_resident *r);
/* The next token by mail; false: it is not there yet. While a launch runs or after it. */
bool mimo_resident_read(mimo_resident *r, mimo_mail_token *out);

/* Runs operations [0, stop) of a step's tape, by the tasks that steps run, in queues that end there; waits. For who
 * looks at what they wrote: it allocates. */
MIMO_MUST_CHECK mimo_status mimo_resident_run_until(mimo_resident *r, uint32_t stop, mimo_error *err);

enum { MIMO_RESIDENT_MOST_ROUNDS = MIMO_MAIL_TOKENS / MIMO_TILE_TOKENS };

#endif
