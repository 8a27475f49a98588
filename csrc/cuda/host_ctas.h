/* The resident kernel on the host: a CTA is a pair of threads, a loader and a team of one. For tests without a GPU. */
#ifndef MIMO_CUDA_HOST_CTAS_H
#define MIMO_CUDA_HOST_CTAS_H

#include "cuda/tile/machine.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MIMO_HOST_MOST_CTAS = 64 };

typedef struct mimo_host_ctas {
    const mimo_tile_machine *machine;
    mimo_mail_lost *lost;
    uint64_t patience; /* nanoseconds that a wait may take */
    uint32_t ctas;     /* at most MIMO_HOST_MOST_CTAS */
    uint32_t ring_bytes;
    size_t scratch_floats; /* mimo_tile_scratch_floats of a warp */
    float *scratch;        /* [ctas, scratch_floats] */
    uint8_t *ring;         /* [ctas, ring_bytes] */
} mimo_host_ctas;

/* Rounds [step, end), counted since the machine's counters were zero. (host_engine.cc) */
void mimo_host_ctas_run(const mimo_host_ctas *all, uint32_t step, uint32_t end);

/* What tile/lookup.h finds in text [count]. scratch: mimo_tile_scratch_floats of a warp. (host_engine.cc) */
mimo_tile_match mimo_host_look_up(const uint32_t *text, uint32_t count, float *scratch);

#ifdef __cplusplus
}
#endif

#endif
