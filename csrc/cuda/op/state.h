/* What lies where while the tape runs: plain structs that the host fills and operation bodies read.
 *
 * A body gets a mimo_cuda_state and the tile of its operation that it computes. Everything the structs point to is
 * memory that the bodies can reach: the device's, or the host's where bodies run there. Weights are as published.
 * Rows of activations are `stride` floats apart, a multiple of 8, and zero beyond their width; rows of a matrix begin
 * at multiples of 16 bytes and are zero beyond their columns: so bodies read whole units of 8. Letters: model/config.h.
 */
#ifndef MIMO_CUDA_OP_STATE_H
#define MIMO_CUDA_OP_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/moe.h"
#include "model/config.h"

enum {
    MIMO_CUDA_ROWS = 8,    /* most rows of a step */
    MIMO_CUDA_UNIT = 8,    /* elements that a lane reads at once */
    MIMO_CUDA_CHUNK = 256, /* positions that attention sums before it merges, by absolute position */
};

typedef struct mimo_cuda_matrix {
    const uint8_t *data;       /* [rows, row_bytes] */
    const void *scales;        /* FP8: float [*, ceil(cols/128)]; MXFP4: uint8_t [rows, cols/32]; else NULL */
    const uint32_t *scale_row; /* FP8: [rows] the row of `scales` that is a row's */
    size_t row_bytes;          /* a multiple of 16 */
    uint32_t rows, cols;
    uint32_t format; /* mimo_format */
} mimo_cuda_matrix;

typedef struct mimo_cuda_layer {
    mimo_attention attention;
    uint32_t sliding, sparse;
    const float *attention_norm, *mlp_norm;   /* [H], zero beyond, as are the next two */
    const float *q_norm, *k_norm;             /* [D] or NULL */
    const float *sinks;                       /* [N] or NULL */
    const float *router_bias;                 /* [E] */
    mimo_cuda_matrix qkv, out, router;        /* qkv: query heads, key heads, value heads */
    const mimo_cuda_matrix *gate, *up, *down; /* [E], or [1] of a dense layer; up[e].format is gate[e].format */
    size_t kv_offset;                         /* bytes, of this layer within a chunk of its kind */
} mimo_cuda_layer;

/* Keys and values of one sequence. A chunk holds 256 positions of all layers of a kind; in it, for each layer and
 * key/value head, keys [256, D] and values [256, Dv], float or BF16. */
typedef struct mimo_cuda_kv {
    uint8_t *const *chunk; /* full layers: [position / 256] */
    uint8_t *ring;         /* sliding layers: chunk position % ring / 256 */
} mimo_cuda_kv;

typedef struct mimo_cuda_kv_layout {
    uint32_t is_float;                                     /* else BF16 */
    uint32_t ring;                                         /* positions, a multiple of 256 */
    size_t chunk_bytes[2], head_bytes[2], value_offset[2]; /* by kind */
} mimo_cuda_kv_layout;

/* Rows of the step. */
typedef struct mimo_cuda_work {
    float *x;               /* [T, x_stride] residual stream */
    float *m;               /* [T, x_stride] input of the experts, normed */
    float *cos[2], *sin[2]; /* [T, R/2] of each attention kind */
    float *q;               /* [T, N * D] */
    float *a;               /* [T, a_stride] */
    float *u;               /* [T * K, u_stride], a row an entry of moe, or [T, u_stride] */
    float *router_logits;   /* [T, E] */
    float *part;            /* [T, N, part_chunks, Dv + 4]: acc, m, l of a chunk of keys */
    mimo_moe *moe;          /* the router's choice */
    size_t x_stride, a_stride, u_stride, part_chunks;
} mimo_cuda_work;

/* When a CTA of a launch began and ended, in nanoseconds of a clock that all share, and on which multiprocessor. */
typedef struct mimo_stamp {
    uint64_t begin, end;
    uint32_t sm, spare;
} mimo_stamp;

/* What changes from step to step. Rows of one sequence come in ascending, consecutive positions. */
typedef struct mimo_cuda_step {
    uint32_t rows;    /* T; 1 .. MIMO_CUDA_ROWS */
    uint32_t outputs; /* rows whose logits are wanted */
    uint32_t taps;    /* layers whose residual stream is wanted */
    uint32_t token[MIMO_CUDA_ROWS], position[MIMO_CUDA_ROWS];
    uint32_t output[MIMO_CUDA_ROWS]; /* [outputs] row numbers, ascending */
    uint32_t tap[MIMO_MAX_TAPS];
    const float *lean; /* [L, MIMO_CUDA_ROWS, E] added to what the routers say: choices that a benchmark drew; NULL */
    mimo_cuda_kv kv[MIMO_CUDA_ROWS]; /* of the row's sequence */
    float *logits;                   /* [outputs, logits_stride] */
    float *hidden;                   /* element (i, t, h) of [taps, T, H] is hidden[i * hidden_stride + t * H + h] */
    size_t logits_stride, hidden_stride;
    /* Of a drafter: rows are context, or a block of `rows` at `anchor`. */
    const float *features; /* element (i, t, h) of [M, *, H], as `hidden` of the target's step */
    size_t features_stride;
    uint32_t context_row[MIMO_CUDA_ROWS]; /* t of each row of context */
    uint32_t anchor;                      /* position; token[0] is its token */
    uint32_t context_begin;               /* the first position whose context the cache holds; anchor: none */
} mimo_cuda_step;

/* A drafter's own, NULL in a model. */
typedef struct mimo_cuda_drafter {
    mimo_cuda_matrix fuse;                  /* [H, M * H] */
    const float *fuse_norm;                 /* [H], zero beyond */
    const float *mask;                      /* [H] */
    mimo_cuda_matrix markov_in, markov_out; /* [V', rank]; rows 0: none */
    uint32_t causal[2];                     /* by kind: a block row sees no later row of its block */
    uint32_t window_from_anchor;            /* every row of a block sees context [anchor - window, anchor) */
} mimo_cuda_drafter;

typedef struct mimo_cuda_state {
    const mimo_config *config;
    const mimo_cuda_layer *layer; /* [L] */
    const mimo_cuda_drafter *draft;
    mimo_cuda_matrix embed, head; /* of a drafter: the target's embedding, the rows of its head that are drafted */
    const float *norm;            /* [H], zero beyond */
    const float *frequency[2];    /* [R/2] of each attention kind */
    mimo_cuda_kv_layout kv;
    mimo_cuda_work work;
    const mimo_cuda_step *step;
    mimo_stamp *stamps; /* [CTAs] of this launch; NULL: nobody asks */
} mimo_cuda_state;

/* Of a team of `warps` warps that chooses experts (choose.h). */
static inline size_t mimo_cuda_choose_floats(uint32_t warps)
{
    return MIMO_MOE_ENTRIES + MIMO_MOE_ENTRIES / 2 + MIMO_MOE_ENTRIES / 4 + (size_t)warps * 2 * MIMO_MOE_TOP_K;
}

/* Floats of scratch that a team of `warps` warps needs for any body. */
static inline size_t mimo_cuda_scratch_floats(const mimo_config *config, uint32_t warps)
{
    size_t head = 0;
    for (int kind = 0; kind < 2; kind++)
        head = config->attention[kind].head_dim > head ? config->attention[kind].head_dim : head;
    const size_t scores = (size_t)warps * MIMO_CUDA_CHUNK, rows = config->qk_norm ? MIMO_CUDA_ROWS * head : 0;
    const size_t choose = mimo_cuda_choose_floats(warps), most = scores > rows ? scores : rows;
    return MIMO_CUDA_ROWS * 9 + (most > choose ? most : choose);
}

#endif
