/* A model whose operation bodies run on the host: what a device would compute, for tests without one. */
#ifndef MIMO_CUDA_HOST_H
#define MIMO_CUDA_HOST_H

#include <stdbool.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/status.h"
#include "cuda/op/state.h"
#include "model/draft.h"
#include "model/weights.h"
#include "plan/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A model or a drafter, with the cache of one sequence. */
typedef struct mimo_cuda_host {
    mimo_cuda_state state;
    mimo_plan plan;
    mimo_cuda_step step;
    mimo_cuda_kv cache;
    uint32_t positions; /* room in the cache */
    float *scratch;
    mimo_blocks blocks; /* all memory */
} mimo_cuda_host;

typedef struct mimo_cuda_host_options {
    bool exact;         /* keys and values in float */
    uint32_t positions; /* room for so many */
} mimo_cuda_host_options;

/* Reads all weights. draft: config and weights are a drafter's, target what it drafts for; else both NULL. On failure
 * *out is NULL. */
MIMO_MUST_CHECK mimo_status mimo_cuda_host_open(mimo_cuda_host **out, const mimo_config *config,
                                                const mimo_weights *weights, const mimo_draft_config *draft,
                                                const mimo_cuda_host *target, const mimo_file *files,
                                                const mimo_cuda_host_options *options, mimo_error *err);
void mimo_cuda_host_close(mimo_cuda_host *host);

/* Runs one operation of the tape by a team of one, in tiles of `tile` columns or steps; split: attention chunk by
 * chunk, in descending order, and then merged. (host_run.cc) */
void mimo_cuda_host_run(mimo_cuda_host *host, const mimo_op *op, uint32_t tile, bool split);
/* y [T, rows] = w x [T, x_stride]; T <= MIMO_CUDA_ROWS. (host_run.cc) */
void mimo_cuda_host_gemv(float *y, const mimo_cuda_matrix *w, const float *x, size_t x_stride, uint32_t T);
/* One unit of a page (page.h) as floats, [MIMO_PAGE_UNIT, k]. (host_run.cc) */
void mimo_cuda_host_unit(float *out, uint32_t format, const uint8_t *page, uint32_t units, uint32_t unit, uint32_t k);
/* count floats, rounded to E4M3 (op/decode.h) where they are. (host_run.cc) */
void mimo_cuda_host_round(float *x, size_t count);

#ifdef __cplusplus
}
#endif

#endif
