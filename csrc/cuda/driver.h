/* The CUDA driver as a table of functions, found in libcuda.so.1 when a model asks for a GPU and not before. Tests fill
 * the table with functions of their own, so that everything above it runs without a GPU. */
#ifndef MIMO_CUDA_DRIVER_H
#define MIMO_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef unsigned long long mimo_cuda_ptr; /* an address of the device */

typedef struct mimo_cuda_driver {
    void *library; /* of dlopen; NULL in a table that was filled otherwise */
#define MIMO_CUDA_CALL(field, symbol, parameters) int(*field) parameters;
#include "cuda/driver.def"
#undef MIMO_CUDA_CALL
} mimo_cuda_driver;

/* Results and attributes of the driver that the engine knows by number. */
enum {
    MIMO_CUDA_OUT_OF_MEMORY = 2,
    MIMO_CUDA_NO_DEVICE = 100,
    MIMO_CUDA_NO_BINARY = 209,
    MIMO_CUDA_NOT_READY = 600,
    MIMO_CUDA_ATTRIBUTE_PROCESSORS = 16,
    MIMO_CUDA_ATTRIBUTE_L2_BYTES = 38,
    MIMO_CUDA_ATTRIBUTE_SHARED_BYTES = 97, /* that a CTA may have if its kernel asks for them: */
    MIMO_CUDA_FUNCTION_SHARED_BYTES = 8,
    MIMO_CUDA_ATTRIBUTE_MAJOR = 75,
    MIMO_CUDA_ATTRIBUTE_MINOR = 76,
    MIMO_CUDA_CAPTURE_THREAD = 1,
    MIMO_CUDA_STREAM_ALONE = 1, /* does not wait for the default stream */
};

/* Opens libcuda.so.1 and starts the driver. MIMO_ERR_UNSUPPORTED says what is missing. */
MIMO_MUST_CHECK mimo_status mimo_cuda_driver_open(mimo_cuda_driver *driver, mimo_error *err);
void mimo_cuda_driver_close(mimo_cuda_driver *driver);

/* For tests: what the next mimo_cuda_driver_open gives; NULL: libcuda.so.1 again. `driver` must outlive its use. */
void mimo_cuda_driver_replace(const mimo_cuda_driver *driver);

/* MIMO_OK for result 0; else `code` (out of memory: MIMO_ERR_NOMEM) with what was tried and what the driver says. */
mimo_status mimo_cuda_check(const mimo_cuda_driver *driver, int result, mimo_status code, const char *what,
                            mimo_error *err);

#endif
