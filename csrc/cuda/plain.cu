/* The kernels of the plain path, for the device. */
#include "cuda/op/fill.h"
#include "cuda/plain.h"

enum { MIMO_PLAIN_THREADS = 256 };

static __device__ uint64_t mimo_plain_clock()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

/* When this CTA began and ended, and where. */
static __device__ void mimo_plain_stamp(const mimo_cta_team &team, const mimo_cuda_state &s, uint64_t begin)
{
    uint32_t sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    team.sync();
    if (threadIdx.x == 0)
        s.stamps[blockIdx.x] = {begin, mimo_plain_clock(), sm, 0};
}

#define MIMO_CUDA_KERNEL(name)                                                                                         \
    extern "C" __global__ void __launch_bounds__(MIMO_PLAIN_THREADS, 1)                                                \
        mimo_plain_##name(const __grid_constant__ mimo_cuda_state s, uint32_t layer)                                   \
    {                                                                                                                  \
        extern __shared__ float scratch[];                                                                             \
        const mimo_cta_team team = {scratch, 0, MIMO_PLAIN_THREADS, 0};                                                \
        const uint64_t begin = s.stamps != nullptr ? mimo_plain_clock() : 0;                                           \
        mimo_plain_##name(team, s, layer, blockIdx.x, gridDim.x);                                                      \
        if (s.stamps != nullptr)                                                                                       \
            mimo_plain_stamp(team, s, begin);                                                                          \
    }
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL

MIMO_FILL_KERNEL(MIMO_PLAIN_THREADS)
