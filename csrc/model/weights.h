/* Which tensor of a checkpoint is which weight: names, shapes and dtypes, checked against the config and the files.
 *
 * The caller lists every text-model tensor it found (Python parsed the safetensors headers). mimo_weights_bind matches
 * the list against the table of this room (weights.def) and describes each logical matrix as segments of file bytes, so
 * that the packer of a backend can read it without knowing any checkpoint layout. Layouts of fused and split qkv and of
 * the FP8 scale grids: weights.def. Nothing is read from the files here. */
#ifndef MIMO_MODEL_WEIGHTS_H
#define MIMO_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"

typedef enum mimo_dtype {
    MIMO_DTYPE_F32,
    MIMO_DTYPE_BF16,
    MIMO_DTYPE_F8_E4M3,
    MIMO_DTYPE_U8,
    MIMO_DTYPE_OTHER
} mimo_dtype;

/* One tensor as its safetensors header states it. */
typedef struct mimo_tensor {
    const char *name;
    const char *dtype_name; /* as written in the header, for messages */
    mimo_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    uint32_t file;       /* index into the list of files */
    uint64_t begin, end; /* byte span in the file, absolute */
} mimo_tensor;

typedef enum mimo_format {
    MIMO_FORMAT_F32,
    MIMO_FORMAT_BF16,
    MIMO_FORMAT_FP8,   /* E4M3, one F32 scale per 128 x 128 tile, which multiplies */
    MIMO_FORMAT_MXFP4, /* E2M1, low nibble = even element; one E8M0 scale per 32 elements of a row */
    MIMO_FORMAT_COUNT
} mimo_format;

/* Consecutive stored rows of one matrix. Row i of the segment (0 <= i < rows):
 *   elements: `data` + i * row_bytes(format, cols)
 *   FP8:      scale of column c is F32 at `scale` + 4 * (((scale_row + i) / 128) * ceil(cols/128) + c/128)
 *   MXFP4:    scales at `scale` + i * cols/32 */
typedef struct mimo_segment {
    uint32_t rows;
    uint32_t file, scale_file;
    uint64_t data, scale; /* byte offsets, absolute */
    uint32_t scale_row;   /* row of the segment's first row within its scale grid */
} mimo_segment;

/* A logical matrix [rows, cols], y = W x; rows in logical order are the segments one after the other. */
typedef struct mimo_matrix {
    const char *name; /* of the (first) data tensor, for messages */
    mimo_format format;
    uint32_t rows, cols;
    uint32_t segments;
    const mimo_segment *segment;
} mimo_matrix;

/* A vector of F32 or BF16. length 0: the model has none. */
typedef struct mimo_vector {
    const char *name;
    mimo_dtype dtype;
    uint32_t length, file;
    uint64_t data;
} mimo_vector;

typedef struct mimo_layer_weights {
    mimo_vector attention_norm, mlp_norm; /* [H] */
    mimo_vector sinks;                    /* [N] or none */
    mimo_vector q_norm, k_norm;           /* [D] or none */
    mimo_matrix qkv;                      /* [N*D + G*D + G*Dv, H]: Q heads, K heads, V heads */
    mimo_matrix out;                      /* [H, N*Dv] */
    mimo_matrix router;                   /* [E, H]; rows 0 in a dense layer */
    mimo_vector router_bias;              /* [E], e_score_correction_bias */
    uint32_t mlps;                        /* E, or 1 in a dense layer */
    const mimo_matrix *gate, *up, *down;  /* [mlps] of [F, H], [F, H], [H, F] */
} mimo_layer_weights;

typedef struct mimo_weights {
    mimo_matrix embed, head;         /* [V, H]; tied: head describes the bytes of embed */
    mimo_vector norm;                /* [H] */
    mimo_matrix fuse;                /* [H, M*H] fc of a drafter, as are the next four */
    mimo_vector fuse_norm, mask;     /* [H] */
    mimo_matrix markov_in;           /* [V', r]; rows 0: none */
    mimo_matrix markov_out;          /* [V', r] */
    const mimo_layer_weights *layer; /* [L] */
    void *arena[4];                  /* owned storage behind the pointers above, the last for draft.c */
} mimo_weights;

/* Fills *out from `tensors`, which (with their names) must outlive it. One error names the tensor, what was expected
 * and what was found: missing, superfluous, duplicate, wrong dtype, wrong shape, span outside the file or of the wrong
 * size, overlapping another tensor's span. config has passed mimo_config_check. On failure *out needs no release. */
MIMO_MUST_CHECK mimo_status mimo_weights_bind(mimo_weights *out, const mimo_config *config, const mimo_tensor *tensors,
                                              size_t count, const uint64_t *file_bytes, size_t files, mimo_error *err);
void mimo_weights_release(mimo_weights *weights);

/* Bytes of one stored row of `cols` elements, scales not counted. */
size_t mimo_format_row_bytes(mimo_format format, uint32_t cols);
const char *mimo_format_name(mimo_format format); /* "f32", "bf16", "fp8", "mxfp4" */

#endif
