/* The kernels of the plain path as functions of the host (plain.cc), for tests. */
#ifndef MIMO_CUDA_PLAIN_HOST_H
#define MIMO_CUDA_PLAIN_HOST_H

#include <stdint.h>

#include "cuda/op/fill.h"
#include "cuda/op/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs all `ctas` CTAs of the kernel of that name, one after the other; 0 if there is none. `scratch` is what a CTA has
 * of shared memory for one warp. */
int mimo_plain_host_run(const char *name, const mimo_cuda_state *s, uint32_t layer, uint32_t ctas, float *scratch);
void mimo_fill_host_run(const mimo_fill *fill, uint32_t ctas);

#ifdef __cplusplus
}
#endif

#endif
