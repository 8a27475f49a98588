/* How matrices are cut into tiles: the shape of least cost on a GPU, from dimensions alone. */
#ifndef MIMO_CUDA_PICK_H
#define MIMO_CUDA_PICK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "cuda/task.h"
#include "model/weights.h"

enum {
    MIMO_RING_LEAST = 4,       /* largest pages: fewer would not hide the latency of memory */
    MIMO_ACTIVATION_BYTES = 2, /* of an element of N, A or U as tiles read it: BF16 */
    MIMO_ATTEND_FEW_CHUNKS = 4 /* windows of so many chunks or less are not split */
};

typedef struct mimo_gpu {
    uint32_t sms;          /* CTAs, one on each SM */
    uint32_t shared_bytes; /* that a CTA may have */
    uint32_t l2_bytes;
    uint32_t ranks; /* GPUs that share the model, this one included */
    bool e4m3;      /* gate and up of MXFP4 experts are multiplied in E4M3, where page.h has them */
} mimo_gpu;

/* Shared memory of a CTA. */
typedef struct mimo_shared {
    uint32_t fixed_bytes;      /* barriers and scratch, */
    uint32_t activation_bytes; /* of the rows that a task multiplies with */
    uint32_t ring_bytes;       /* all that is left */
} mimo_shared;

/* rows by K of one format. of experts (0: a single matrix), top_k of which each row of the step reads. */
typedef struct mimo_tile_matrix {
    uint32_t rows, K;
    uint32_t format;   /* mimo_format, or MIMO_PAGE_E4M3 */
    bool paired;       /* gate and up, `rows` of each; a page has tile_rows of gate, then as many of up */
    bool whole;        /* K must not be split */
    uint32_t reducers; /* SMs that add its partial sums */
    uint32_t experts, top_k;
} mimo_tile_matrix;

/* One matrix (of each expert) in memory: [splits][tiles][tile_pages] pages; see mimo_tile_task. */
typedef struct mimo_tile_shape {
    uint32_t tile_rows, tiles;
    uint32_t splits;  /* of K; of EXPERT_DOWN's experts */
    uint32_t k_split; /* elements of K of a split; the last may have less, but has as many pages */
    uint32_t k_page, tile_pages, page_bytes;
    uint32_t expert_pages; /* of the whole matrix */
    uint32_t format;       /* of its pages (page.h) */
} mimo_tile_shape;

/* Bytes of rows by k elements with their scales: FP8 has two F32 scales per 16 rows and 128 elements (page.h). */
uint32_t mimo_pick_page_bytes(uint32_t format, uint32_t rows, uint32_t k);

/* Bytes of `rows` rows of activations of k elements in shared memory: rows lie in different banks (sm90/near.h). */
static inline uint32_t mimo_pick_activations(uint32_t rows, uint32_t k)
{
    return rows * ((MIMO_ACTIVATION_BYTES * k + 127) / 128 * 128 + 64);
}

/* Bytes of eight rows of k elements in E4M3 there, with three blocks of zeros and a float each (sm90/wgmma.h). */
static inline uint32_t mimo_pick_e4m3(uint32_t k)
{
    return MIMO_TILE_TOKENS * (k + 3 * 32 + (uint32_t)sizeof(float));
}

/* Bytes that eight warps need there for what they have attended of a head each: [warps, T, value + 1] floats, then two
 * of each row (sm90/attend.h). */
static inline uint32_t mimo_pick_attended(uint32_t value)
{
    return 8 * MIMO_TILE_TOKENS * (value + 1 + 2) * (uint32_t)sizeof(float);
}

/* Shared memory for tasks whose unsplit K is at most `widest` and whose heads' values are at most `value` wide, beside
 * `fixed` bytes (cuda/launch.h); MIMO_ERR_UNSUPPORTED if no ring is left. */
MIMO_MUST_CHECK mimo_status mimo_pick_shared(mimo_shared *out, const mimo_gpu *gpu, uint32_t widest, uint32_t value,
                                             uint32_t fixed, mimo_error *err);

/* A matrix all rows of which every step reads. */
void mimo_pick_matrix(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu,
                      const mimo_shared *shared);
/* The experts' gate and up, and their down, balanced for steps of 1 and of MIMO_TILE_TOKENS rows that choose alike. */
void mimo_pick_expert_up(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu);
void mimo_pick_expert_down(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu);

/* Distinct experts that `rows` independent, uniform choices of top_k among experts are expected to read. */
double mimo_pick_union(uint32_t experts, uint32_t top_k, uint32_t rows);

/* Attention of N heads over G, W the window or 0: heads of a task and splits of the chunks. */
void mimo_pick_attend(uint32_t *heads, uint32_t *splits, uint32_t N, uint32_t G, uint32_t W, const mimo_gpu *gpu);

/* Elements of a task if `count` elements of each of MIMO_TILE_TOKENS rows are shared among all SMs. */
uint32_t mimo_pick_span(uint32_t count, const mimo_gpu *gpu);

#endif
