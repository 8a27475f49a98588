/* What a backend gives the engine, and what the engine gives it for one step. */
#ifndef MIMO_PLAN_BACKEND_H
#define MIMO_PLAN_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "model/config.h"
#include "model/weights.h"
#include "plan/plan.h"

/* One sequence's keys and values; a backend's own. */
typedef struct mimo_kv mimo_kv;

/* T rows through the model. Rows of one sequence come in ascending, consecutive positions, and positions below the
 * first are in its cache already. */
typedef struct mimo_step {
    size_t rows;              /* T, 1 .. options.max_rows */
    const uint32_t *token;    /* [T] < V */
    const uint32_t *position; /* [T] < the capacity reserved in kv */
    mimo_kv *const *kv;       /* [T] */

    size_t outputs;         /* rows whose logits are wanted, 0 .. T */
    const uint16_t *output; /* [outputs] row numbers, ascending */
    float *logits;          /* [outputs, logits_stride] written up to round_up(V, 8) */
    size_t logits_stride;   /* >= round_up(V, 8) */

    size_t taps;         /* layers whose residual stream is wanted */
    const uint32_t *tap; /* [taps] layer numbers; a layer may come twice */
    float *hidden;       /* element (i, t, h) of [taps, T, H] is hidden[i * hidden_stride + t * H + h] */
    size_t hidden_stride;
} mimo_step;

typedef struct mimo_backend_options {
    bool exact;       /* float activations, weights as stored; else int8 activations, BF16 and FP8 repacked to 8 bits */
    uint32_t threads; /* >= 1 */
    uint32_t max_rows;   /* most rows of a step */
    const char *variant; /* kernels by name, NULL: the best that runs here */
} mimo_backend_options;

typedef struct mimo_memory {
    uint64_t weights, embedding, workspace;
    uint64_t kv_per_position; /* full-attention layers, one sequence */
    uint64_t kv_fixed;        /* sliding layers, one sequence */
    uint64_t read_per_token;  /* weight bytes that a step of one row reads */
} mimo_memory;

/* Where the time of steps went, one entry an operation of plan/ops.def, summed over layers and steps. */
typedef struct mimo_profile {
    uint64_t steps, rows;
    struct {
        uint64_t calls;
        uint64_t busy_ns, wait_ns; /* at work, and at the barrier after it; summed over workers */
        uint64_t wall_ns;          /* of the caller's worker, barrier included */
        uint64_t bytes;            /* of weights (experts: those in use) and of cached keys and values, read */
        uint64_t macs;             /* multiply-adds */
    } op[MIMO_OP_COUNT];
    uint64_t total_ns; /* from the first operation of a step to the end of its last */
} mimo_profile;

typedef struct mimo_backend mimo_backend;

/* Fills a fresh backend; config and weights must outlive it. Plans memory, starts the workers, loads nothing. */
MIMO_MUST_CHECK mimo_status mimo_cpu_backend_open(mimo_backend **out, const mimo_config *config,
                                                  const mimo_weights *weights, const mimo_backend_options *options,
                                                  mimo_error *err);

struct mimo_backend {
    const char *name;    /* "cpu" */
    const char *variant; /* "avx2", ... */
    mimo_memory memory;

    /* Reads and packs all weights. Raises *done towards load_bytes as it goes; soon after *cancel is set it ends with
     * MIMO_ERR_ENGINE. On failure nothing stays loaded. */
    mimo_status (*load)(mimo_backend *self, const mimo_file *files, atomic_uint_fast64_t *done,
                        const atomic_bool *cancel, mimo_error *err);
    uint64_t load_bytes;

    /* Runs one step; the caller's thread is one of the workers. Allocates nothing and cannot fail. */
    void (*step)(mimo_backend *self, const mimo_step *step);
    /* Starts counting from zero (on), or stops; reads what was counted. Between steps. */
    void (*set_profile)(mimo_backend *self, bool on);
    void (*read_profile)(const mimo_backend *self, mimo_profile *out);
    /* fn(context, i, worker) for i < n, on all workers; worker < threads. */
    void (*parallel)(mimo_backend *self, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n);

    mimo_status (*kv_open)(mimo_backend *self, mimo_kv **out, mimo_error *err);
    /* Room for `positions` positions; what is cached stays. */
    mimo_status (*kv_reserve)(mimo_backend *self, mimo_kv *kv, size_t positions, mimo_error *err);
    /* The first `positions` positions of `from` into `to`, which has room for them; kv_can_cut allows it. */
    void (*kv_copy)(mimo_backend *self, mimo_kv *to, const mimo_kv *from, size_t positions);
    /* Whether a cache that holds `cached` positions still serves a sequence cut back to `kept`. */
    bool (*kv_can_cut)(const mimo_backend *self, size_t cached, size_t kept);
    void (*kv_close)(mimo_backend *self, mimo_kv *kv);

    void (*close)(mimo_backend *self);
};

#endif
