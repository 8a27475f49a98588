/* What waits on a stream of the driver that a test makes up, and how it is done. */
#ifndef MIMO_CUDA_FAKE_WORK_H
#define MIMO_CUDA_FAKE_WORK_H

#include "cuda/fake.h"
#include "cuda/launch.h"
#include "cuda/mail.h"
#include "cuda/op/fill.h"

enum { FAKE_OUT_OF_MEMORY = 2, FAKE_INVALID_VALUE = 1 }; /* results of the driver */

typedef enum mimo_fake_kind {
    WORK_COPY,
    WORK_FILL,
    WORK_LAUNCH,
    WORK_RESIDENT,
    WORK_VALUES,
    WORK_EVENT
} mimo_fake_kind;

/* What the resident kernel was launched with. */
typedef struct mimo_fake_resident {
    mimo_tile_machine machine;
    mimo_resident_layout layout;
    mimo_mail_lost *lost;
    uint32_t step, end;
} mimo_fake_resident;

/* What waits on a stream. */
typedef struct mimo_fake_work {
    mimo_fake_kind kind;
    void *to;
    const void *from;
    size_t bytes; /* or of shared memory */
    const char *kernel;
    union {
        mimo_cuda_state state;
        mimo_fake_resident resident;
        mimo_fill fill;
    };
    uint32_t layer, ctas, threads; /* threads of a CTA */
} mimo_fake_work;

/* Does it, with a test's kernels or (NULL) the host's; a result of the driver. */
int mimo_fake_run(mimo_fake_work *item, const mimo_cuda_fake_kernels *kernels);

#endif
