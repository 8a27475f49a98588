/* What the stages of lowered queues read, for models of the time that they take. */
#ifndef MIMO_CUDA_STAGES_H
#define MIMO_CUDA_STAGES_H

#include "cuda/lower.h"

/* All tasks of one counter. bytes: of pages that every step reads (of EXPERT_UP and EXPERT_DOWN one expert's); busiest:
 * of the SM that reads most of them (of EXPERT_*: 0); join: the kind of its joins, or MIMO_TILE_KINDS. */
typedef struct mimo_stage {
    uint8_t kind, join, tape;
    uint16_t op;
    uint32_t tasks;
    uint64_t bytes, busiest;
} mimo_stage;

/* out [queues->counters] in their order. */
MIMO_MUST_CHECK mimo_status mimo_stages_of(mimo_stage *out, const mimo_queues *queues, mimo_error *err);

#endif
