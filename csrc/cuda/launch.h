/* A CTA of the resident kernel: its threads and its shared memory. Plain C and C++, for the kernel and who launches it.
 */
#ifndef MIMO_CUDA_LAUNCH_H
#define MIMO_CUDA_LAUNCH_H

#include <stdint.h>

#include "cuda/ring.h"
#include "cuda/tile/machine.h"

enum {
    MIMO_RESIDENT_LOADERS = 128, /* threads; one of them copies */
    MIMO_RESIDENT_TEAM = 256,    /* threads that compute */
    MIMO_RESIDENT_WARPS = MIMO_RESIDENT_TEAM / 32,
    MIMO_RESIDENT_BEGINS = 2 * MIMO_RING_MOST * 8, /* offset: where pages begin, behind their barriers (full, empty) */
    MIMO_RESIDENT_FLAG = MIMO_RESIDENT_BEGINS + MIMO_RING_MOST * 4, /* offset of a flag */
    MIMO_RESIDENT_GIVEN = (MIMO_RESIDENT_FLAG / 128 + 1) * 128,     /* offset of what the launch says */
    MIMO_SM90_SHARED = 227 << 10, /* bytes of shared memory that a CTA may have on sm_90 */
};

/* Shared memory in bytes from its beginning: barriers, pages' places and a flag, what the launch says, the team's
 * scratch, activations, the ring. */
typedef struct mimo_resident_layout {
    uint32_t activations, ring; /* offsets */
    uint32_t ring_bytes;
    uint32_t patience, stretch; /* ticks of 1024 ns that a wait may take, and that one look at the clock may add */
} mimo_resident_layout;

/* What the launch says, in shared memory: there everything has an address that needs no register. */
typedef struct mimo_resident_given {
    mimo_tile_machine machine;
    mimo_resident_layout layout;
    mimo_mail_lost *lost;
    uint32_t step, end;
} mimo_resident_given;

enum {
    MIMO_RESIDENT_SCRATCH = MIMO_RESIDENT_GIVEN + (sizeof(mimo_resident_given) + 127) / 128 * 128, /* offset */
    MIMO_RESIDENT_TICK_NS = 1024,
    MIMO_RESIDENT_STRETCHES = 256
};

/* Of it, what is neither activations nor ring: heads are up to `head` wide, their values up to `value`. */
static inline uint32_t mimo_resident_fixed_bytes(uint32_t head, uint32_t value)
{
    const size_t scratch = mimo_tile_scratch_floats(MIMO_RESIDENT_WARPS, head, value) * sizeof(float);
    return MIMO_RESIDENT_SCRATCH + (uint32_t)((scratch + 127) / 128 * 128);
}

/* What a launch tells the kernel, of the sizes that were picked (mimo_shared, pick.h) and a patience in nanoseconds. */
static inline mimo_resident_layout mimo_resident_layout_of(uint32_t fixed, uint32_t activations, uint32_t ring_bytes,
                                                           uint64_t patience)
{
    mimo_resident_layout layout;
    layout.activations = fixed;
    layout.ring = fixed + activations;
    layout.ring_bytes = ring_bytes;
    layout.patience = (uint32_t)(patience / MIMO_RESIDENT_TICK_NS);
    layout.stretch = layout.patience / MIMO_RESIDENT_STRETCHES + 1;
    return layout;
}

/* Where the layout ends. */
static inline uint32_t mimo_resident_layout_end(const mimo_resident_layout *layout)
{
    return layout->ring + layout->ring_bytes;
}

#endif
