/* The kernels of the plain path, for the device. */
#include "cuda/plain.h"

enum { MIMO_PLAIN_THREADS = 256 };

#define MIMO_CUDA_KERNEL(name)                                                                                         \
    extern "C" __global__ void __launch_bounds__(MIMO_PLAIN_THREADS, 1)                                                \
        mimo_plain_##name(const __grid_constant__ mimo_cuda_state s, uint32_t layer)                                   \
    {                                                                                                                  \
        extern __shared__ float scratch[];                                                                             \
        const mimo_cta_team team = {scratch, 0, MIMO_PLAIN_THREADS, 0};                                                \
        mimo_plain_##name(team, s, layer, blockIdx.x, gridDim.x);                                                      \
    }
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL
