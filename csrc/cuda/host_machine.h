/* A model and a drafter that host_ctas.h runs, prompts included, without an engine. For tests. */
#ifndef MIMO_CUDA_HOST_MACHINE_H
#define MIMO_CUDA_HOST_MACHINE_H

#include "base/alloc.h"
#include "cuda/host.h"
#include "cuda/host_ctas.h"
#include "cuda/lower.h"
#include "cuda/tile/machine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mimo_host_machine {
    mimo_tile_machine machine;
    mimo_tile_round round;
    mimo_queues queues;
    mimo_host_ctas ctas;
    mimo_mail_lost lost;
    uint32_t step;      /* rounds begun since the counters were zero */
    mimo_blocks blocks; /* all memory */
} mimo_host_machine;

/* A model, or a drafter, and what its matrices were bound to. */
typedef struct mimo_host_model {
    const mimo_cuda_host *host; /* NULL: there is none */
    const mimo_weights *weights;
} mimo_host_model;

/* config: the drafter's, or NULL. All must outlive it. On failure *out is NULL. */
MIMO_MUST_CHECK mimo_status mimo_host_machine_open(mimo_host_machine **out, const mimo_host_model *target,
                                                   const mimo_host_model *draft, const mimo_draft_config *config,
                                                   const mimo_gpu *gpu, mimo_error *err);
void mimo_host_machine_close(mimo_host_machine *host);

/* Puts a prompt [count] at the beginning of an empty cache; tokens may grow to `limit`, within the cache. */
void mimo_host_machine_begin(mimo_host_machine *host, const uint32_t *prompt, uint32_t count, uint32_t limit);
/* Drafts [count] for the tokens after those that are known, between launches. */
void mimo_host_machine_propose(mimo_host_machine *host, const uint32_t *drafts, uint32_t count);
/* Up to `rounds` rounds by all CTAs. */
void mimo_host_machine_run(mimo_host_machine *host, uint32_t rounds);

#ifdef __cplusplus
}
#endif

#endif
