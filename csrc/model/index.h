/* The tensors of a checkpoint by name, once their spans are known to be sound. Used by weights.c. */
#ifndef MIMO_MODEL_INDEX_H
#define MIMO_MODEL_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/weights.h"

typedef struct mimo_index {
    const mimo_tensor *tensors; /* [count], borrowed */
    size_t count, slots;        /* slots: a power of two */
    struct mimo_index_slot *slot;
    uint8_t *taken; /* [count] */
} mimo_index;

/* Checks every tensor alone (rank, file number, span within the file and as large as dtype and shape say), that no name
 * comes twice and that no two spans overlap. On failure nothing is left to close. */
MIMO_MUST_CHECK mimo_status mimo_index_open(mimo_index *index, const mimo_tensor *tensors, size_t count,
                                            const uint64_t *file_bytes, size_t files, mimo_error *err);
void mimo_index_close(mimo_index *index);

/* NULL when there is none. */
const mimo_tensor *mimo_index_find(const mimo_index *index, const char *name);
/* The same, and the tensor counts as used from now on. */
const mimo_tensor *mimo_index_take(mimo_index *index, const char *name);
/* The first tensor nobody took, or NULL. */
const mimo_tensor *mimo_index_untaken(const mimo_index *index);

#endif
