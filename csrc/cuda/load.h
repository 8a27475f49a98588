/* What the loaders of the two paths share. */
#ifndef MIMO_CUDA_LOAD_H
#define MIMO_CUDA_LOAD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/cuda.h"
#include "model/weights.h"

/* Items to load, each in units of work that any worker may take. */
typedef struct mimo_load_units {
    const size_t *first; /* [items + 1] units before each item */
    size_t items;
    size_t staging_bytes; /* of a worker's memory that the GPU reads */
    const void *context;
    mimo_status (*load)(const void *context, size_t item, size_t unit, uint8_t *staging, mimo_error *err);
} mimo_load_units;

/* All of them, by all workers. The first error ends it; so does *cancel. */
MIMO_MUST_CHECK mimo_status mimo_cuda_load_units(mimo_cuda *cuda, const mimo_load_units *units,
                                                 const atomic_bool *cancel, mimo_error *err);

/* Why a row as stored, or scales, are refused; NULL: they are not. */
const char *mimo_cuda_row_fault(mimo_format format, const uint8_t *data, size_t cols);
/* count codes (MXFP4) or floats (FP8). */
const char *mimo_cuda_scale_fault(mimo_format format, const uint8_t *scales, size_t count);

#endif
