/* A recorded tape that notes when each CTA of each launch began and ended, and where. */
#ifndef MIMO_CUDA_TIMELINE_H
#define MIMO_CUDA_TIMELINE_H

#include <stddef.h>

#include "cuda/driver.h"
#include "cuda/op/state.h"

typedef struct mimo_timeline_launch {
    uint32_t kernel;      /* mimo_cuda_kernel; of the resident path, where a stage is a launch, mimo_tile_kind */
    uint16_t code, layer; /* of the operation: mimo_op_code, and its layer or MIMO_NO_LAYER */
    uint32_t ctas;        /* or tasks */
    size_t first;         /* its first stamp */
} mimo_timeline_launch;

typedef struct mimo_timeline {
    mimo_cuda_ptr stamps; /* [room] of the device */
    size_t room, used;
    mimo_timeline_launch *launch; /* [most_launches] */
    size_t launches, most_launches;
} mimo_timeline;

/* Where the stamps of the next launch go; NULL: there is no room. */
static inline mimo_stamp *mimo_timeline_add(mimo_timeline *line, mimo_timeline_launch launch)
{
    if (line->launches == line->most_launches || line->room - line->used < launch.ctas)
        return NULL;
    launch.first = line->used;
    line->launch[line->launches++] = launch;
    line->used += launch.ctas;
    return (mimo_stamp *)(uintptr_t)line->stamps + launch.first;
}

#endif
