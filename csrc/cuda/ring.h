/* Where pages lie in the ring of a CTA: one behind the other as they come, whatever their sizes, each in one piece. One
 * that would reach beyond the end begins at the start. Who copies and who computes take the same pages in the same
 * order, so both know where each is. Plain C and C++. */
#ifndef MIMO_CUDA_RING_H
#define MIMO_CUDA_RING_H

#include <stdint.h>

#include "base/target.h"

enum { MIMO_RING_MOST = 32 }; /* pages at once: more have no barriers */

/* Where a page of so many bytes begins, after one that ends at `end`; a ring has room for any page. */
static inline MIMO_HD uint32_t mimo_ring_place(uint32_t end, uint32_t bytes, uint32_t ring_bytes)
{
    return end + bytes <= ring_bytes ? end : 0;
}

/* Whether it is free there while pages are in the ring, of which the oldest begins at `oldest`. */
static inline MIMO_HD int mimo_ring_has_room(uint32_t oldest, uint32_t end, uint32_t bytes, uint32_t ring_bytes)
{
    if (end > oldest) /* they lie between these two */
        return end + bytes <= ring_bytes || bytes <= oldest;
    return end + bytes <= oldest; /* they lie up to the ring's end, and again from its start on */
}

#endif
