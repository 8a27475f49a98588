/* A CUDA driver for tests: its device memory is the host's, and its kernels are the same templates run there, or
 * machine code that a test brings with what runs it.
 *
 * What is queued on a stream is done when the stream is waited for and not before, later than any GPU would: a step
 * that changes what a copy still needs gives wrong results here. Every call can be made to fail, as a GPU's would. */
#ifndef MIMO_CUDA_FAKE_H
#define MIMO_CUDA_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda/driver.h"

/* What runs kernels of a test's own (tests/ptx). */
typedef struct mimo_cuda_fake_kernels {
    /* Memory that kernels may touch from now on, or no longer. */
    void (*memory)(const void *at, size_t bytes, int live);
    /* Runs one to its end, all CTAs at once if `together`; a result of the driver. */
    int (*launch)(const char *kernel, uint32_t ctas, uint32_t threads, uint32_t shared_bytes, void *const *parameters,
                  int together);
    /* Why it failed; empty: it did not. */
    const char *(*fault)(void);
} mimo_cuda_fake_kernels;

typedef struct mimo_cuda_fake_options {
    uint64_t memory; /* bytes of the device */
    uint32_t processors;
    uint32_t devices;
    uint32_t capability; /* of sm_90 90 */
    int init_result;     /* of cuInit */
    int module_result;   /* of cuModuleLoadData */
    uint64_t fail_at;    /* the number of the call that fails, from 1; 0: none. All calls but errors' names count */
    int fail_result;     /* what it returns, */
    bool fail_for_good;  /* and every call after it, as from a device that is lost */
    const mimo_cuda_fake_kernels *kernels; /* NULL: the host's templates */
} mimo_cuda_fake_options;

typedef struct mimo_cuda_fake_stats {
    uint64_t calls, launches, graphs, copied_in, copied_out;
    uint64_t live_bytes, live_blocks, live_handles; /* what is allocated, and not closed */
} mimo_cuda_fake_stats;

/* Makes the fake what mimo_cuda_driver_open gives, with counters from zero; NULL: the system's driver again. */
void mimo_cuda_fake_use(const mimo_cuda_fake_options *options);
mimo_cuda_fake_stats mimo_cuda_fake_read_stats(void);

#endif
