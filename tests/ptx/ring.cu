/* The ring of a resident CTA alone (csrc/cuda/sm90/cta.h): one thread copies pages, the team adds up their words. */
#include "cuda/sm90/cta.h"

enum { RING = 2048 }; /* offset, behind what the CTA keeps there */
static_assert(RING >= MIMO_RESIDENT_GIVEN, "no barrier lies in the ring");

/* sum[i]: of page i, which has size[i] bytes, those of all pages one after the other in data. */
extern "C" __global__ void __launch_bounds__(MIMO_RESIDENT_LOADERS + MIMO_RESIDENT_TEAM)
    ring(const uint8_t *data, const uint32_t *size, uint32_t *sum, mimo_mail_lost *lost, uint32_t pages,
         uint32_t ring_bytes)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ mimo_tile_machine machine;
    __shared__ mimo_resident_layout layout;
    if (threadIdx.x == 0)
        layout = {RING, RING, ring_bytes, 1u << 28, 1u << 28};
    __syncthreads();
    mimo_mma_team team = {};
    team.first = MIMO_RESIDENT_LOADERS;
    team.size = MIMO_RESIDENT_TEAM;
    team.barrier = MIMO_RESIDENT_BARRIER;
    const bool computes = threadIdx.x >= MIMO_RESIDENT_LOADERS;
    mimo_resident_cta cta = {machine, layout, lost, shared, team, computes, 0, 0, 0, 0};
    cta.open();
    __syncthreads();
    for (uint32_t i = 0; i < pages && threadIdx.x == 0; i++) {
        if (!cta.copy(data, size[i]))
            return;
        data += size[i];
    }
    for (uint32_t i = 0; i < pages && computes; i++) {
        const uint32_t *page = reinterpret_cast<const uint32_t *>(cta.take(size[i]));
        uint32_t own = 0;
        for (uint32_t at = team.thread(); at < size[i] / 4; at += MIMO_RESIDENT_TEAM)
            own += page[at] * (at + 1);
        atomicAdd(&sum[i], own);
        cta.give(size[i]);
    }
}
