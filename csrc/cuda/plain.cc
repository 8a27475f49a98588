/* The kernels of the plain path, for the host: what a GPU would compute, for tests without one. */

#include "base/clock.h"
#include "cuda/plain.h"
#include "cuda/plain_host.h"

namespace
{

template <class F> void run_all(F f, unsigned ctas, mimo_stamp *stamps)
{
    for (uint32_t cta = 0; cta < ctas; cta++) {
        const uint64_t begin = stamps != nullptr ? mimo_clock_ns() : 0;
        f(cta);
        if (stamps != nullptr)
            stamps[cta] = {begin, mimo_clock_ns(), cta, 0};
    }
}

} // namespace

extern "C" int mimo_plain_host_run(const char *name, const mimo_cuda_state *s, uint32_t layer, uint32_t ctas,
                                   float *scratch)
{
    const mimo_host_team team = {scratch};
#define MIMO_CUDA_KERNEL(kernel)                                                                                       \
    if (__builtin_strcmp(name, "mimo_plain_" #kernel) == 0) {                                                          \
        run_all([&](uint32_t cta) { mimo_plain_##kernel(team, *s, layer, cta, ctas); }, ctas, s->stamps);              \
        return 1;                                                                                                      \
    }
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL
    return 0;
}

extern "C" void mimo_fill_host_run(const mimo_fill *fill, uint32_t ctas)
{
    const mimo_host_team team = {nullptr};
    for (uint32_t cta = 0; cta < ctas; cta++)
        mimo_fill_run(team, *fill, cta, ctas);
}
