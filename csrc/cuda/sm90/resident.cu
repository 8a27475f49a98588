/* The resident kernel: one CTA on each SM, a warp group that loads and two that compute. */
#include "cuda/op/fill.h"
#include "cuda/sm90/cta.h"

static constexpr int LOAD_REGISTERS = 40, COMPUTE_REGISTERS = 232;

static_assert(MIMO_RESIDENT_WARPS == MIMO_MMA_WARPS && MIMO_TILE_SUMS == 2 * MIMO_MMA_VALUES, "a team of tensor cores");
static_assert(MIMO_RESIDENT_LOADERS * LOAD_REGISTERS + MIMO_RESIDENT_TEAM * COMPUTE_REGISTERS <= 65536,
              "registers of an SM");

__device__ __forceinline__ uint8_t *mimo_resident_shared()
{
    extern __shared__ __align__(128) uint8_t shared[];
    return shared;
}

__device__ __forceinline__ mimo_resident_given &mimo_resident_said()
{
    return *reinterpret_cast<mimo_resident_given *>(mimo_resident_shared() + MIMO_RESIDENT_GIVEN);
}

/* One role's view of the CTA. */
__device__ __forceinline__ mimo_resident_cta mimo_resident_role(bool computes)
{
    uint8_t *shared = mimo_resident_shared();
    const mimo_resident_given &given = mimo_resident_said();
    mimo_mma_team team;
    team.shared = reinterpret_cast<float *>(shared + MIMO_RESIDENT_SCRATCH);
    team.first = MIMO_RESIDENT_LOADERS;
    team.size = MIMO_RESIDENT_TEAM;
    team.barrier = MIMO_RESIDENT_BARRIER;
    team.activations = shared + given.layout.activations;
    team.activation_bytes = given.layout.ring - given.layout.activations;
    team.sums = mimo_cuda_own_scratch(team);
    return {given.machine, given.layout, given.lost, shared, team, computes, 0, 0, 0, 0};
}

/* A function of its own, or the compiler would give it the registers of the other role. What the roles keep is theirs
 * alone, and never in memory. */
__device__ __noinline__ void mimo_resident_load()
{
    const mimo_resident_given &given = mimo_resident_said();
    mimo_resident_cta cta = mimo_resident_role(false);
    mimo_engine_load(cta, given.machine, given.step, given.end);
}

/* Part of the kernel: wgmma goes on while other things are done only where no function is called. */
__device__ __forceinline__ void mimo_resident_compute()
{
    const mimo_resident_given &given = mimo_resident_said();
    mimo_resident_cta cta = mimo_resident_role(true);
    mimo_engine_compute(cta, given.machine, given.step, given.end);
}

/* Words of a launch's parameter to shared memory, by all threads. */
template <class T> __device__ __forceinline__ void mimo_resident_keep(T &to, const T &from)
{
    static_assert(sizeof(T) % sizeof(uint32_t) == 0, "whole words");
    for (uint32_t i = threadIdx.x; i < sizeof(T) / sizeof(uint32_t); i += blockDim.x)
        reinterpret_cast<uint32_t *>(&to)[i] = reinterpret_cast<const uint32_t *>(&from)[i];
}

extern "C" __global__ void __launch_bounds__(MIMO_RESIDENT_LOADERS + MIMO_RESIDENT_TEAM, 1)
    mimo_resident(const __grid_constant__ mimo_tile_machine machine,
                  const __grid_constant__ mimo_resident_layout layout, mimo_mail_lost *lost, uint32_t step,
                  uint32_t end)
{
    mimo_resident_keep(mimo_resident_said().machine, machine);
    mimo_resident_keep(mimo_resident_said().layout, layout);
    if (threadIdx.x == 0) {
        mimo_resident_said().lost = lost;
        mimo_resident_said().step = step;
        mimo_resident_said().end = end;
    }
    __syncthreads();
    mimo_resident_role(false).open();
    __syncthreads();
    if (threadIdx.x >= MIMO_RESIDENT_LOADERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        mimo_resident_compute();
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOAD_REGISTERS));
        if (threadIdx.x == 0)
            mimo_resident_load();
    }
}

MIMO_FILL_KERNEL(32 * MIMO_RESIDENT_WARPS)
