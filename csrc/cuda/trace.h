/* A step that stops in the middle, for tests that compare a GPU with the host operation by operation. */
#ifndef MIMO_CUDA_TRACE_H
#define MIMO_CUDA_TRACE_H

#include "plan/backend.h"
#include "plan/plan.h"

/* What a trace reads: [rows, columns], to be given to mimo_free. */
typedef struct mimo_trace {
    size_t rows, columns;
    float *values;
} mimo_trace;

/* Of a loaded CUDA backend between steps: runs the first `stop` operations of the target's tape (1 .. all) for tokens
 * [rows] (at most 8) at positions 0, 1, ... of a sequence of their own, then reads a slot as they left it. Where layers
 * differ it is that of the last operation's layer:
 *   X, Q, A, LOGITS  a row for each token, as plan/plan.h says
 *   ANGLES           full layers' cosines, their sines, then those of sliding layers, of the kinds that there are
 *   KV               keys of all heads, then values of all heads; MIMO_ERR_UNSUPPORTED unless they are cached as float
 *   M                normed rows: of the plain path as ROUTE leaves them; the resident path norms whatever it adds to X
 *                    for the operation that comes next
 *   ROUTES           the K experts of each row, then their K weights
 *   U                of a dense layer a row for each token; of experts one for each entry of moe.h */
MIMO_MUST_CHECK mimo_status mimo_cuda_trace(mimo_backend *backend, const uint32_t *tokens, uint32_t rows, uint32_t stop,
                                            mimo_slot slot, mimo_trace *out, mimo_error *err);

/* A fault to be found by it: a task of a stage, or one of its joins (task.h: stages by their number in the order of the
 * tape, then those that have joins likewise), does nothing in any later step of the resident kernel. *op is the
 * operation it was of. MIMO_ERR_VALUE if there is no such stage. */
MIMO_MUST_CHECK mimo_status mimo_cuda_skip(mimo_backend *backend, uint32_t number, uint32_t *op, mimo_error *err);

/* Spoils what the GPU's kernels find their memory by: the next step reads where nothing is, and the device is lost. Not
 * for a device made up by a test, which would take the process with it. */
MIMO_MUST_CHECK mimo_status mimo_cuda_spoil(mimo_backend *backend, mimo_error *err);

/* Lets a task of a program of the resident kernel wait for a signal that never comes, and all waits be that long.
 * MIMO_ERR_VALUE if there is no such task. */
MIMO_MUST_CHECK mimo_status mimo_cuda_break(mimo_backend *backend, uint32_t program, uint32_t task,
                                            uint32_t milliseconds, mimo_error *err);

#endif
