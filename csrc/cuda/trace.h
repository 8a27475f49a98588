/* A step that stops in the middle, for tests that compare a GPU with the host operation by operation. */
#ifndef MIMO_CUDA_TRACE_H
#define MIMO_CUDA_TRACE_H

#include "plan/backend.h"
#include "plan/plan.h"

/* Of a loaded CUDA backend between steps: runs the first `stop` operations of the target's tape for tokens [rows] (at
 * most 8) at positions 0, 1, ... of a sequence of their own. Then out [rows, columns] is the beginning of the rows of
 * `slot`: X, Q, A, M, U or LOGITS (of every row). Returns what a row of it holds in *width, with out NULL only that. */
MIMO_MUST_CHECK mimo_status mimo_cuda_trace(mimo_backend *backend, const uint32_t *tokens, uint32_t rows, uint32_t stop,
                                            mimo_slot slot, float *out, size_t columns, size_t *width, mimo_error *err);

/* Spoils what the GPU's kernels find their memory by: the next step reads where nothing is, and the device is lost. Not
 * for a device made up by a test, which would take the process with it. */
MIMO_MUST_CHECK mimo_status mimo_cuda_spoil(mimo_backend *backend, mimo_error *err);

/* Lets a task of a program of the resident kernel wait for a signal that never comes, and all waits be that long.
 * MIMO_ERR_VALUE if there is no such task. */
MIMO_MUST_CHECK mimo_status mimo_cuda_break(mimo_backend *backend, uint32_t program, uint32_t task,
                                            uint32_t milliseconds, mimo_error *err);

#endif
