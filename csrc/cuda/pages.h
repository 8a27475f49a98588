/* Matrices as stored become pages in the order in which tile tasks read them. */
#ifndef MIMO_CUDA_PAGES_H
#define MIMO_CUDA_PAGES_H

#include "base/status.h"
#include "cuda/op/state.h"
#include "cuda/pick.h"

/* Rows [first, first + rows) of a matrix. The rows of several parts, one after the other, are one matrix. */
typedef struct mimo_page_part {
    const mimo_cuda_matrix *matrix;
    uint32_t first, rows;
} mimo_page_part;

/* All pages of a matrix (of one expert): [splits][tiles][tile_pages] of page_bytes each; `splits` of K. Parts are of
 * one format and width. up: NULL, or the parts of the matrix that is read with this one. MIMO_ERR_UNSUPPORTED names
 * what does not fit: formats that differ, or FP8 scales that change within eight rows. */
MIMO_MUST_CHECK mimo_status mimo_pages_pack(uint8_t *out, const mimo_tile_shape *shape, uint32_t splits,
                                            const mimo_page_part *parts, const mimo_page_part *up, uint32_t count,
                                            mimo_error *err);

#endif
