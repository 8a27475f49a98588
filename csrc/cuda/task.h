/* A tile task: the unit of work of a resident CTA.
 *
 * lower.h cuts the operations of a round (the target's tape, sampling and verification, the drafter's tape) into tasks
 * and deals them to the SMs; every SM has a queue of its own that never changes. Two roles of a CTA walk the same queue
 * at their own pace: the loader copies the tasks' pages of weights into a ring of shared memory, the compute role waits
 * for what a task reads, runs its body and signals. This header is plain C and C++: the device, the host's own loop of
 * the tests and the simulator read the same queues.
 *
 * Compute role, of every task in order:
 *   1. if wait != MIMO_NO_COUNTER: until mimo_task_is_ready(...)   (acquire)
 *   2. the body; it takes `pages` pages from the ring in order, and gives each back as soon as it is read
 *   3. all threads' writes done; counter[signal] += 1   (release)
 * But a task with `joins` has made parts of what others make parts of, too: of sums, or of a row's choice. A join is a
 * record of its own: what becomes of some of it when all parts are there (tiles.def). In the place of 3:
 *   3. all threads' writes done; for each of its joins j: counter[counters + j] += 1 (acquire and release)
 *   4. the bodies of those joins whose last arrival of this step (wait_count of them) that was
 *   5. all threads' writes done; counter[signal] += joins that it ran   (release)
 * So the last of those who add up finishes what they have made, without another wait of everybody.
 * Loader role, of every task in order:
 *   1. if load_wait != MIMO_NO_COUNTER: L2 hints for the next `ahead` tasks' weights, then wait as above. Only tasks
 *      whose pages depend on the router have one
 *   2. for each of its pages: until the ring has a free place; copy
 *
 * Counters only grow: a task or join adds one, a counter grows by its count of them (`wait_count` of those who wait) in
 * every step, and what is waited for in step s (0, 1, ... since the counters were zero) is the full count of that step.
 * All of it is modulo 2^32: counters and goals wrap together, and the comparison looks at the sign of their difference.
 * It is right while that is below 2^31; a counter is never more than one step ahead of who waits for it, as all of a
 * step waits for all of the step before. */
#ifndef MIMO_CUDA_TASK_H
#define MIMO_CUDA_TASK_H

#include <stdint.h>

#ifdef __CUDACC__
#define MIMO_ANYWHERE static inline __host__ __device__
#else
#define MIMO_ANYWHERE static inline
#endif

enum {
    MIMO_TILE_TOKENS = 8,        /* T <= 8: the narrow side of an MMA tile */
    MIMO_TILE_UNIT = 16,         /* rows of weights of an MMA tile; a tile has a multiple of it, */
    MIMO_TILE_UNITS = 8,         /* up to so many (of gate and up together) */
    MIMO_TILE_CHUNK = 64,        /* positions of keys and values that attention takes at a time */
    MIMO_TILE_MOST_SPLITS = 128, /* of a row's chunks */
    MIMO_TILE_IDS = 256,         /* of a vocabulary, that a warp looks at together */
    MIMO_RING_PAGE = 17408,      /* most bytes of a page: 16 rows by 2048 of MXFP4 with their scales */
    MIMO_NO_COUNTER = 0xffff
};

/* What tasks read and write, one bit each; T stands for MIMO_TILE_TOKENS. All but KV, FEATURES and STATE are scratch
 * that the target's tape and the drafter's share. */
typedef enum mimo_area {
    MIMO_AREA_STATE = 1 << 0,     /* the step: tokens, positions, rows, drafts, sampling */
    MIMO_AREA_ANGLES = 1 << 1,    /* cos and sin of the rows' positions */
    MIMO_AREA_X = 1 << 2,         /* [T, H] f32 residual stream */
    MIMO_AREA_N = 1 << 3,         /* [T, H] x times a norm's weight, and its sums of squares (REDUCE) */
    MIMO_AREA_P = 1 << 4,         /* [splits, T, rows] f32 partial sums of the last projection */
    MIMO_AREA_Q = 1 << 5,         /* [T, N*D] */
    MIMO_AREA_KV = 1 << 6,        /* keys and values, the drafter's included */
    MIMO_AREA_S = 1 << 7,         /* [splits, T, N, Dv + 2] f32 partial attention */
    MIMO_AREA_A = 1 << 8,         /* [T, N*Dv] */
    MIMO_AREA_ROUTES = 1 << 9,    /* a mimo_moe (moe.h) */
    MIMO_AREA_U = 1 << 10,        /* [T*K, F] by mimo_moe's entry, or [T, F] of a dense layer */
    MIMO_AREA_LOGITS = 1 << 11,   /* [T, V] f32 */
    MIMO_AREA_BEST = 1 << 12,     /* [T, V / MIMO_TILE_IDS] what SAMPLE found in so many ids */
    MIMO_AREA_FEATURES = 1 << 13, /* [taps, T, H] streams of the target for the drafter */
    MIMO_AREA_BIASED = 1 << 14,   /* [T, V'] f32 logits of a block's slots with a Markov head's bias */
    MIMO_AREA_MAXIMA = 1 << 15,   /* [T, V / MIMO_TILE_IDS] f32 their largest logits */
    MIMO_AREA_KEPT = 1 << 16,     /* [T, V] in any order, tokens that a filter may keep, and sums of all weights */
    MIMO_AREA_FILTER = 1 << 17,   /* [T] where a filter cuts */
    MIMO_AREA_PICKED = 1 << 18,   /* [T] tokens */
    MIMO_AREAS = 19
} mimo_area;

typedef enum mimo_tile_kind {
#define MIMO_TILE(kind, ...) MIMO_TILE_##kind,
#include "cuda/tiles.def"
#undef MIMO_TILE
    MIMO_TILE_KINDS
} mimo_tile_kind;

/* Which tape `op` is an index of. */
enum { MIMO_TAPE_TARGET = 0, MIMO_TAPE_DRAFT = 1 };

/* A task, or a join, which reads no weights. 72 bytes, no pointers. Weights of an operation lie as
 * [expert][split][tile][page of the tile]: a page is tile_rows rows by up to k_page elements of K with their scales,
 * page_bytes apart, and all of page_bytes are copied. Page numbers count from the operation's first page. A task's
 * pages are consecutive: those of its tiles, one after the other. count may end within its last tile, whose other rows
 * are zeros. */
typedef struct mimo_tile_task {
    uint8_t kind;      /* mimo_tile_kind */
    uint8_t tape;      /* MIMO_TAPE_* */
    uint8_t op_code;   /* mimo_op_code (plan/plan.h) of op; of SCAN and later kinds HEAD */
    uint8_t wait_back; /* 1: waits for the step before this one (the first stage of a step), else 0 */
    uint16_t op;       /* index in the tape */
    uint16_t layer;    /* of the operation, or MIMO_NO_LAYER */

    uint32_t first, count;     /* tiles.def says of what */
    uint16_t split, splits;    /* of K, of chunks, of experts, or rows; tiles.def. Of a join: parts of a sum, or rows */
    uint32_t k_first, k_count; /* elements of K of every row; HEADS: rows of P */

    uint16_t tile_rows;    /* rows of a tile; of EXPERT_UP and DENSE_UP rows of gate and as many of up */
    uint16_t tile_pages;   /* pages of a tile; 0: reads no weights through the ring */
    uint32_t page;         /* the first page; in EXPERT_UP and EXPERT_DOWN counted from the expert's first */
    uint32_t pages;        /* of the task; in EXPERT_DOWN of each expert, in EXPERT_UP of each unit */
    uint32_t page_bytes;   /* a multiple of 128, at most the ring's page */
    uint32_t expert_pages; /* EXPERT_*: pages from one expert's first to the next one's */
    uint16_t k_page;       /* elements of K on a page; the last page of a tile may have less */

    uint16_t ahead;           /* loader: tasks after this one whose weights are hinted to L2 before load_wait */
    uint16_t signal;          /* counter to add one to */
    uint16_t wait;            /* counter, or MIMO_NO_COUNTER */
    uint16_t load_wait;       /* counter, or MIMO_NO_COUNTER; always of this step */
    uint16_t load_wait_count; /* what these counters grow by in a step */
    uint32_t wait_count;      /* of a join: arrivals in a step */

    uint32_t join, joins; /* the first of the joins that a task's sums are parts of (mimo_queues.join), and how many */
} mimo_tile_task;

#ifdef __cplusplus
static_assert(sizeof(mimo_tile_task) == 72, "a task is 72 bytes");
#else
_Static_assert(sizeof(mimo_tile_task) == 72, "a task is 72 bytes");
#endif

/* Whether a counter that stands at `value` has all `count` signals of step - back. At step 0 the step before is done.
 */
MIMO_ANYWHERE int mimo_task_is_ready(uint32_t value, uint32_t step, uint32_t back, uint32_t count)
{
    return (int32_t)(value - (step + 1 - back) * count) >= 0;
}

#endif
