/* Kernels of a test's own, from a library that runs them (tests/ptx/machine.h). */
#ifndef MIMO_CUDA_FAKE_LIBRARY_H
#define MIMO_CUDA_FAKE_LIBRARY_H

#include "base/status.h"
#include "cuda/fake.h"

typedef struct mimo_cuda_fake_library {
    mimo_cuda_fake_kernels kernels;
    void (*set)(uint64_t seed, int races);
    void (*counts)(uint64_t counts[3]);
    void *handle;
} mimo_cuda_fake_library;

/* It stays open until the process ends: drivers that use it may outlive their test. */
MIMO_MUST_CHECK mimo_status mimo_cuda_fake_library_open(mimo_cuda_fake_library *library, const char *path,
                                                        mimo_error *err);

#endif
