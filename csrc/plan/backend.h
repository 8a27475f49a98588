/* What a backend gives the engine, and what the engine gives it for one step. */
#ifndef MIMO_PLAN_BACKEND_H
#define MIMO_PLAN_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/pool.h"
#include "base/status.h"
#include "model/config.h"
#include "model/draft.h"
#include "model/weights.h"
#include "plan/plan.h"

/* One sequence's keys and values, the drafter's included; a backend's own. */
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

/* Context and blocks through the drafter: first all context rows become draft keys and values of their sequences, then
 * the blocks are filled. Either may be empty, and both may be of many sequences; a row's results depend on its sequence
 * alone. A block of a sequence whose context ends before the anchor sees none of it. Nothing has to be rolled back: a
 * context row at a position that was there already cuts the sequence's context back to it, and what a block writes is
 * forgotten. */
typedef struct mimo_draft_step {
    size_t contexts;                  /* rows, 0 .. options.max_rows; those of a sequence ascending and consecutive */
    const float *features;            /* the `hidden` of a target step whose tap is the drafter's: */
    size_t features_stride;           /* element (i, t, h) of [M, *, H] is features[i * features_stride + t * H + h] */
    const uint16_t *context_row;      /* [contexts] t of each */
    const uint32_t *context_position; /* [contexts] */
    mimo_kv *const *context_kv;       /* [contexts] */

    size_t blocks;            /* of different sequences; blocks * width <= options.max_rows */
    const uint32_t *anchor;   /* [blocks] < V: the last token known, whose own context does not exist yet */
    const uint32_t *position; /* [blocks] of the anchor, < the capacity reserved in kv */
    mimo_kv *const *block_kv; /* [blocks] */
    size_t width;             /* rows of each block, the anchor included, 1 .. B; as trained: B */
    size_t slots;             /* drafts wanted of each block, the first ones, 0 .. width - 1 */
    float *logits;            /* [blocks * slots, logits_stride]: row b * slots + k - 1 is slot k of block b, over V' */
    size_t logits_stride;     /* >= round_up(V', 8), up to which is written */
} mimo_draft_step;

/* A token that a backend has decoded by itself: of a round of `rows` rows in which `accepted` drafts stood (before any
 * cut by an end); `last` of that round, whose drafts were `looked_up` in the text. */
typedef struct mimo_decoded {
    uint32_t token;
    uint8_t accepted, rows;
    bool last, looked_up;
} mimo_decoded;

/* One sequence, decoded by the backend from its last token on until it ends. The token at a position is what
 * sample/sample.h chooses with these settings. */
typedef struct mimo_decode {
    mimo_kv *kv;            /* holds the keys and values of all tokens but the last; room for `limit` positions */
    const uint32_t *tokens; /* [known] */
    size_t known;
    size_t limit;         /* no more tokens than that; > known */
    const uint32_t *stop; /* [stops] ids that end it */
    size_t stops;
    float temperature, top_p, min_p; /* sample/sample.h says what they are; no penalty, no log-probabilities */
    uint32_t top_k;
    uint32_t stream;
    uint64_t seed;
    bool draft;   /* with the drafter, */
    bool lookup;  /* beside it with prompt lookup, */
    size_t width; /* and rounds of up to so many rows; 0: the backend's choice */
    /* Gets every token, on the caller's thread. false: no more are wanted; those of rounds that have begun still come.
     */
    bool (*take)(void *context, const mimo_decoded *token);
    void *context;
    bool failed; /* afterwards: it ended because logits were no numbers */
} mimo_decode;

typedef struct mimo_backend_options {
    bool exact;       /* float activations, weights as stored; else int8 activations, BF16 and FP8 repacked to 8 bits */
    bool pin;         /* each worker stays on one core */
    uint32_t threads; /* >= 1 */
    const mimo_nodes *nodes; /* of memory, while opening; NULL: one */
    uint32_t max_rows;       /* most rows of a step */
    uint32_t max_context;    /* most positions of a sequence */
    const char *variant;     /* kernels by name, NULL: the best that runs here; of CUDA "plain" (NULL), "resident" or
                                "resident-e4m3" */
    uint32_t device;         /* number of the GPU, and the file of its kernels; neither is the CPU's, */
    const char *image;
    uint64_t kept;  /* nor are bytes of it that are left to the caller, */
    uint32_t ranks; /* and how many GPUs share a model of which `config` is one's share; 0 and 1: none */
} mimo_backend_options;

typedef struct mimo_memory {
    uint64_t weights, embedding, workspace;
    uint64_t draft_weights;   /* part of weights: the drafter's own */
    uint64_t kv_per_position; /* full-attention layers, the drafter's included, one sequence */
    uint64_t kv_chunk;        /* positions by which these grow */
    uint64_t kv_fixed;        /* sliding layers, the drafter's included, one sequence */
    uint64_t read_per_token;  /* weight bytes that a step of one row reads, without the drafter's */
    uint64_t limit;           /* all of it together, where the backend has memory of its own; 0: the engine decides */
} mimo_memory;

/* Where the time of steps went, one entry an operation of plan/ops.def, summed over layers and steps. */
typedef struct mimo_profile {
    uint64_t steps, rows; /* of a drafter: those that filled blocks, and the rows of these */
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

/* Fills a fresh backend; config, weights and draft (NULL: no drafter) must outlive it. Plans memory, starts the
 * workers, loads nothing. */
MIMO_MUST_CHECK mimo_status mimo_cpu_backend_open(mimo_backend **out, const mimo_config *config,
                                                  const mimo_weights *weights, const mimo_draft *draft,
                                                  const mimo_backend_options *options, mimo_error *err);

/* The same on a GPU (options->device), of whose memory all parts are. MIMO_ERR_UNSUPPORTED without driver or GPU. */
MIMO_MUST_CHECK mimo_status mimo_cuda_backend_open(mimo_backend **out, const mimo_config *config,
                                                   const mimo_weights *weights, const mimo_draft *draft,
                                                   const mimo_backend_options *options, mimo_error *err);

struct mimo_backend {
    const char *name;    /* "cpu", "cuda" */
    const char *variant; /* "avx2", ...; "plain", "resident", "resident-e4m3" */
    mimo_memory memory;

    /* Reads and packs all weights. Raises *done towards load_bytes as it goes; soon after *cancel is set it ends with
     * MIMO_ERR_ENGINE. On failure nothing stays loaded. */
    mimo_status (*load)(mimo_backend *self, const mimo_file *files, atomic_uint_fast64_t *done,
                        const atomic_bool *cancel, mimo_error *err);
    uint64_t load_bytes;

    /* NULL: the backend cannot be lost. MIMO_ERR_ENGINE with the reason once its device is: whatever a step has written
     * since the last MIMO_OK is worthless, and all later ones will be. */
    mimo_status (*check)(const mimo_backend *self, mimo_error *err);

    /* Runs one step; the caller's thread is one of the workers. Allocates nothing and fails only as `check` says. */
    void (*step)(mimo_backend *self, const mimo_step *step);
    /* The same for the drafter; NULL without one. */
    void (*draft)(mimo_backend *self, const mimo_draft_step *step);
    /* logits[V'] += the Markov head's bias after token `previous` (an id of the target); nothing if there is no such
     * head or it does not know the token. Any thread of `parallel`; allocates nothing. NULL without a drafter. */
    void (*draft_bias)(const mimo_backend *self, float *logits, uint32_t previous);
    /* Decodes as mimo_decode says, with the very tokens that steps and the sampler would give; fails as `step` does.
     * NULL where the backend cannot; can_decode: not this. */
    void (*decode)(mimo_backend *self, mimo_decode *decode);
    bool (*can_decode)(const mimo_backend *self, const mimo_decode *decode);
    /* Starts counting from zero (on), or stops; reads what was counted. Between steps. */
    void (*set_profile)(mimo_backend *self, bool on);
    void (*read_profile)(const mimo_backend *self, mimo_profile *target, mimo_profile *drafter);
    /* fn(context, i, worker) for i < n, on all workers; worker < threads. */
    void (*parallel)(mimo_backend *self, void (*fn)(void *context, size_t i, size_t worker), void *context, size_t n);

    mimo_status (*kv_open)(mimo_backend *self, mimo_kv **out, mimo_error *err);
    /* Room for `positions` positions; what is cached stays. Address space: memory is taken as positions are written. */
    mimo_status (*kv_reserve)(mimo_backend *self, mimo_kv *kv, size_t positions, mimo_error *err);
    /* Gives back the room beyond `positions`. */
    void (*kv_trim)(mimo_backend *self, mimo_kv *kv, size_t positions);
    /* The first `positions` positions of `from` into `to`, which has room for them; kv_can_cut allows it. */
    void (*kv_copy)(mimo_backend *self, mimo_kv *to, const mimo_kv *from, size_t positions);
    /* Whether a cache still serves its sequence cut back to `kept` positions, whatever was written beyond. The drafter
     * has no say: after a cut its context may be shorter than the window, see kv_draft_span. */
    bool (*kv_can_cut)(const mimo_backend *self, const mimo_kv *kv, size_t kept);
    /* The positions [*begin, *end) whose draft context the cache holds for a block anchored at `position` (its context
     * is [max(begin, position - window), position) if end reaches position, else empty). NULL without a drafter. */
    void (*kv_draft_span)(const mimo_backend *self, const mimo_kv *kv, size_t position, size_t *begin, size_t *end);
    void (*kv_close)(mimo_backend *self, mimo_kv *kv);

    void (*close)(mimo_backend *self);
};

#endif
