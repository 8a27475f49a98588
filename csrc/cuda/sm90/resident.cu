/* The resident kernel: one CTA on each SM, a warp group that loads and two that compute. */
#include "cuda/op/fill.h"
#include "cuda/sm90/cta.h"

static constexpr int LOAD_REGISTERS = 40, COMPUTE_REGISTERS = 232;

static_assert(MIMO_RESIDENT_WARPS == MIMO_MMA_WARPS && MIMO_TILE_SUMS == 2 * MIMO_MMA_VALUES, "a team of tensor cores");
static_assert(MIMO_RESIDENT_LOADERS * LOAD_REGISTERS + MIMO_RESIDENT_TEAM * COMPUTE_REGISTERS <= 65536,
              "registers of an SM");

/* One role's view of the CTA. */
__device__ __forceinline__ mimo_resident_cta mimo_resident_role(const mimo_tile_machine &machine,
                                                                const mimo_resident_layout &layout,
                                                                mimo_mail_lost *lost, bool computes)
{
    extern __shared__ __align__(128) uint8_t shared[];
    mimo_mma_team team;
    team.shared = reinterpret_cast<float *>(shared + MIMO_RESIDENT_SCRATCH);
    team.first = MIMO_RESIDENT_LOADERS;
    team.size = MIMO_RESIDENT_TEAM;
    team.barrier = MIMO_RESIDENT_BARRIER;
    team.activations = shared + layout.activations;
    team.activation_bytes = layout.ring - layout.activations;
    team.sums = mimo_cuda_own_scratch(team);
    return {machine, layout, lost, shared, team, computes, 0};
}

/* Roles are functions of their own, or the compiler would give both the registers of the larger. What they keep is
 * theirs alone, and never in memory. */
__device__ __noinline__ void mimo_resident_load(const mimo_tile_machine &machine, const mimo_resident_layout &layout,
                                                mimo_mail_lost *lost, uint32_t step, uint32_t end)
{
    mimo_resident_cta cta = mimo_resident_role(machine, layout, lost, false);
    mimo_engine_load(cta, machine, step, end);
}

__device__ __noinline__ void mimo_resident_compute(const mimo_tile_machine &machine, const mimo_resident_layout &layout,
                                                   mimo_mail_lost *lost, uint32_t step, uint32_t end)
{
    mimo_resident_cta cta = mimo_resident_role(machine, layout, lost, true);
    mimo_engine_compute(cta, machine, step, end);
}

extern "C" __global__ void __launch_bounds__(MIMO_RESIDENT_LOADERS + MIMO_RESIDENT_TEAM, 1)
    mimo_resident(const __grid_constant__ mimo_tile_machine machine,
                  const __grid_constant__ mimo_resident_layout layout, mimo_mail_lost *lost, uint32_t step,
                  uint32_t end)
{
    const mimo_resident_cta cta = mimo_resident_role(machine, layout, lost, false);
    if (threadIdx.x < layout.pages) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(cta.barrier(threadIdx.x, false)) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(cta.barrier(threadIdx.x, true)),
                     "r"(MIMO_RESIDENT_TEAM / MIMO_LANES)
                     : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= MIMO_RESIDENT_LOADERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        mimo_resident_compute(machine, layout, lost, step, end);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOAD_REGISTERS));
        if (threadIdx.x == 0)
            mimo_resident_load(machine, layout, lost, step, end);
    }
}

MIMO_FILL_KERNEL(32 * MIMO_RESIDENT_WARPS)
