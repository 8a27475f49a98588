/* What loading refuses, by itself for tests. */
#ifndef MIMO_CUDA_LOAD_H
#define MIMO_CUDA_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "model/weights.h"

/* Why a row as stored, or scales, are refused; NULL: they are not. */
const char *mimo_cuda_row_fault(mimo_format format, const uint8_t *data, size_t cols);
/* count codes (MXFP4) or floats (FP8). */
const char *mimo_cuda_scale_fault(mimo_format format, const uint8_t *scales, size_t count);

#endif
