/* One GPU with our kernels loaded: memory, copies and launches, each checked.
 *
 * The first call that fails while steps run makes the device lost: `lost` says why, and nothing is asked of it any
 * more. Functions may be called from any thread that has called mimo_cuda_enter, one at a time but for copies in. */
#ifndef MIMO_CUDA_DEVICE_H
#define MIMO_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "cuda/driver.h"
#include "cuda/op/fill.h"
#include "cuda/op/state.h"

typedef enum mimo_cuda_kernel {
#define MIMO_CUDA_KERNEL(name) MIMO_CUDA_##name,
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL
    MIMO_CUDA_PLAIN_KERNELS,
    MIMO_CUDA_fill = MIMO_CUDA_PLAIN_KERNELS, /* of a mimo_fill (op/fill.h) */
    MIMO_CUDA_KERNELS
} mimo_cuda_kernel;

enum {
    MIMO_CUDA_WARPS = 8,               /* of a CTA of the plain path, as plain.cu has it; */
    MIMO_CUDA_PLAIN_SHARED = 48 << 10, /* bytes of shared memory that it may have without asking for more */
};

typedef struct mimo_cuda_device {
    mimo_cuda_driver driver;
    int number;
    bool retained;
    void *context, *module, *stream;
    void *function[MIMO_CUDA_KERNELS]; /* of the plain path, or */
    void *resident;                    /* of the resident one, which has `fill` too */
    uint32_t processors, shared_bytes, l2_bytes;
    uint32_t capability; /* of sm_90 90 */
    uint64_t available;  /* bytes that were free when it was opened, kernels loaded */
    char name[128];
    mimo_error lost; /* code 0: it is not */
} mimo_cuda_device;

/* The names of the GPUs here, the first `room` of *count. MIMO_ERR_UNSUPPORTED says what is missing. */
MIMO_MUST_CHECK mimo_status mimo_cuda_list(char (*names)[128], size_t room, size_t *count, mimo_error *err);

/* Device number `ordinal`, and the kernels of the file `image`: those of the plain path, or the resident one.
 * MIMO_ERR_UNSUPPORTED says what is missing: a driver, a GPU, kernels for its architecture. On failure nothing stays
 * open. */
MIMO_MUST_CHECK mimo_status mimo_cuda_device_open(mimo_cuda_device *device, uint32_t ordinal, const char *image,
                                                  bool resident, mimo_error *err);
void mimo_cuda_device_close(mimo_cuda_device *device);

/* Makes the device the calling thread's. */
MIMO_MUST_CHECK mimo_status mimo_cuda_enter(mimo_cuda_device *device, mimo_error *err);

/* bytes of the device, or of the host's memory that it copies from and to without a detour; 0 and NULL after failure.
 */
MIMO_MUST_CHECK mimo_status mimo_cuda_alloc(mimo_cuda_device *device, mimo_cuda_ptr *out, size_t bytes,
                                            const char *what, mimo_error *err);
MIMO_MUST_CHECK mimo_status mimo_cuda_alloc_host(mimo_cuda_device *device, void *out, size_t bytes, const char *what,
                                                 mimo_error *err);
/* Forgets what it frees; 0 and NULL are fine. */
void mimo_cuda_release(mimo_cuda_device *device, mimo_cuda_ptr *memory);
void mimo_cuda_release_host(mimo_cuda_device *device, void *memory);

/* Copies and waits. */
MIMO_MUST_CHECK mimo_status mimo_cuda_write(mimo_cuda_device *device, mimo_cuda_ptr to, const void *from, size_t bytes,
                                            mimo_error *err);

/* What follows is queued, in order, and fails into `lost`. */
void mimo_cuda_queue_in(mimo_cuda_device *device, mimo_cuda_ptr to, const void *from, size_t bytes);
void mimo_cuda_queue_out(mimo_cuda_device *device, void *to, mimo_cuda_ptr from, size_t bytes);
void mimo_cuda_queue_over(mimo_cuda_device *device, mimo_cuda_ptr to, mimo_cuda_ptr from, size_t bytes);
void mimo_cuda_queue_kernel(mimo_cuda_device *device, mimo_cuda_kernel kernel, uint32_t ctas, size_t scratch_bytes,
                            const mimo_cuda_state *state, uint32_t layer);
void mimo_cuda_queue_fill(mimo_cuda_device *device, const mimo_fill *fill);
void mimo_cuda_queue_graph(mimo_cuda_device *device, void *graph);
void mimo_cuda_queue_event(mimo_cuda_device *device, void *event);
/* The resident kernel, all of whose CTAs run at once or not at all. */
void mimo_cuda_queue_resident(mimo_cuda_device *device, uint32_t ctas, uint32_t threads, void **parameters);
/* Whether what was queued is done; also when the device is lost. */
bool mimo_cuda_is_idle(mimo_cuda_device *device);
/* Waits for all that was queued. */
void mimo_cuda_wait(mimo_cuda_device *device);

/* What is queued between them is kept, not run: *graph runs it with mimo_cuda_queue_graph. */
void mimo_cuda_record(mimo_cuda_device *device);
MIMO_MUST_CHECK mimo_status mimo_cuda_recorded(mimo_cuda_device *device, void **graph, mimo_error *err);
void mimo_cuda_forget(mimo_cuda_device *device, void *graph);

/* Marks in the queue, and the seconds between two that have been passed. NULL is fine to close. */
MIMO_MUST_CHECK mimo_status mimo_cuda_event_open(mimo_cuda_device *device, void **event, mimo_error *err);
void mimo_cuda_event_close(mimo_cuda_device *device, void *event);
double mimo_cuda_event_seconds(mimo_cuda_device *device, void *begin, void *end);

/* MIMO_ERR_ENGINE with the reason once the device is lost. */
MIMO_MUST_CHECK mimo_status mimo_cuda_device_check(const mimo_cuda_device *device, mimo_error *err);

#endif
