/* What the tests' kernels of single bodies share. */
#ifndef PTX_TEAM_H
#define PTX_TEAM_H

#include "cuda/team.h"

/* All of a CTA's threads as a team, with `scratch` of its shared memory. */
template <class Team> __device__ Team test_team(uint8_t *scratch)
{
    Team team = {};
    team.shared = reinterpret_cast<float *>(scratch);
    team.first = 0;
    team.size = blockDim.x;
    team.barrier = 1;
    return team;
}

/* Shared memory that a test's kernel fills with what it runs on, by one thread. */
template <class Memory, class Case> __device__ void test_fill(Memory &memory, const Case *c)
{
    if (threadIdx.x == 0) {
        memset(&memory, 0, sizeof memory);
        fill(memory, *c);
    }
    __syncthreads();
}

#endif
