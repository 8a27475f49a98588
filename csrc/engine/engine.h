/* A model that answers: a backend, a driver thread that feeds it steps, and the jobs that wait for tokens.
 *
 * The driver thread alone runs steps. Each step carries the next token of every decoding job and, in the rows that are
 * left, the next piece of a prompt; a row's logits do not depend on its neighbours, so neither does any answer. Tokens
 * reach the reader through a bounded ring in the job; a full ring pauses its job and no other.
 *
 * Any thread may call these functions; in a forked child they answer MIMO_ERR_ENGINE at once, or do nothing. */
#ifndef MIMO_ENGINE_ENGINE_H
#define MIMO_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "dflash/round.h"
#include "dflash/verify.h"
#include "model/config.h"
#include "model/draft.h"
#include "model/weights.h"
#include "plan/backend.h"
#include "sample/sample.h"

typedef struct mimo_engine mimo_engine;
typedef struct mimo_job mimo_job;

enum {
    MIMO_STEP_ROWS = 128,   /* most rows of a step: the largest prefill tile */
    MIMO_SLOTS_JOBS = 32,   /* most jobs decoding at once */
    MIMO_STEP_OUTPUTS = 64, /* most rows of a step whose logits are wanted */
    MIMO_LOOKUP_BLOCK = 8,  /* most rows of a round without a drafter */
};

typedef struct mimo_engine_options {
    bool exact;
    bool pin;                /* each worker stays on one core of those this process may use */
    uint32_t threads;        /* 0: one per core this process may use */
    const mimo_nodes *nodes; /* of memory, with those cores; only while opening. NULL: one */
    uint32_t max_context;    /* positions of a sequence; 0: config.max_positions */
    uint64_t memory_limit;   /* bytes for weights, workspace and KV caches together; 0: as many as the system gives */
    const char *variant;     /* NULL: the best kernels that run here */
    bool cuda;               /* on the GPU number `device`, with the kernels of the file `image` */
    uint32_t device;
    const char *image;
} mimo_engine_options;

/* A drafter's config and tensors, whose file numbers count in the same list of files as the target's. */
typedef struct mimo_draft_source {
    mimo_draft_config config;
    const mimo_tensor *tensors; /* [count] */
    size_t count;
} mimo_draft_source;

/* Opens the files, checks config and tensors against each other and against the files, plans memory, starts the
 * workers. tensors and paths (and the text they point to) and the draft's target_id must outlive the engine. draft
 * NULL: none. Nothing is loaded. */
MIMO_MUST_CHECK mimo_status mimo_engine_open(mimo_engine **out, const mimo_engine_options *options,
                                             const mimo_config *config, const mimo_tensor *tensors, size_t count,
                                             const mimo_draft_source *draft, const char *const *paths, size_t files,
                                             mimo_error *err);
/* Ends every job ("cancelled") and call, and frees weights and threads. What is left answers MIMO_ERR_ENGINE.
 * Idempotent. */
void mimo_engine_close(mimo_engine *engine);
/* Closes, and frees the engine itself. All its jobs have been released. */
void mimo_engine_free(mimo_engine *engine);

const mimo_config *mimo_engine_config(const mimo_engine *engine);
const mimo_draft_config *mimo_engine_draft(const mimo_engine *engine); /* NULL without a drafter */
/* Most rows of a round: the drafter's block, or MIMO_LOOKUP_BLOCK. */
uint32_t mimo_engine_block(const mimo_engine *engine);
/* As planned; once loaded, as it is: weights that are found to need fewer bits take less. */
mimo_memory mimo_engine_memory(mimo_engine *engine);
const char *mimo_engine_backend(const mimo_engine *engine); /* "cpu", "cuda" */
const char *mimo_engine_variant(const mimo_engine *engine);
uint32_t mimo_engine_threads(const mimo_engine *engine);
uint32_t mimo_engine_max_context(const mimo_engine *engine);
uint64_t mimo_engine_memory_limit(const mimo_engine *engine);
bool mimo_engine_is_exact(const mimo_engine *engine);
bool mimo_engine_is_loaded(mimo_engine *engine);

/* ---- calls: work done by the driver thread between steps, for one caller that waits ---- */

typedef enum mimo_call_kind {
    MIMO_CALL_LOAD,
    MIMO_CALL_FORWARD,
    MIMO_CALL_DRAFT,
    MIMO_CALL_PROFILE,
    MIMO_CALL_TIME_STEPS
} mimo_call_kind;

typedef struct mimo_call {
    mimo_call_kind kind;
    /* MIMO_CALL_FORWARD: all of tokens [count] through the model from position 0, `rows` (1 .. MIMO_STEP_ROWS) at a
     * time */
    const uint32_t *tokens;
    size_t count, rows;
    float *logits; /* [count, logits_stride] or NULL; logits_stride >= round_up(V, 8) */
    size_t logits_stride;
    const uint32_t *taps; /* [tap_count] layers */
    size_t tap_count;
    float *hidden; /* [tap_count, count, H] */
    /* MIMO_CALL_DRAFT: tokens as above; logits [anchors, B - 1, logits_stride] over V', of a block behind each token
     * tokens[anchors[i]] with all before it as context. A Markov head's bias follows the likeliest token of each slot.
     */
    const uint32_t *anchors; /* [anchor_count] ascending, < count */
    size_t anchor_count;
    /* MIMO_CALL_PROFILE: what was counted since the last such call (zeros if nothing was), then counting goes on or
     * stops */
    mimo_profile *profile, *draft_profile; /* of the target and of a drafter */
    bool profile_on;
    /* MIMO_CALL_TIME_STEPS: how long a step of widths[i] rows (1 .. MIMO_STEP_ROWS) of one sequence takes after
     * `context` positions, logits of every row included and sampling not. Made-up tokens, other ones in every step;
     * `repeats` rounds over all widths, after one step that warms up. With `profile`, counts the timed steps there, and
     * counting is off afterwards. */
    const uint32_t *widths; /* [width_count] */
    size_t width_count, repeats, context;
    int64_t *step_ns; /* [repeats, width_count] */

    /* the engine's */
    atomic_uint_fast64_t progress; /* bytes loaded, or rows done */
    atomic_bool cancel;            /* set by the caller to end early, with MIMO_ERR_ENGINE */
    bool done;
    mimo_error error;
    struct mimo_call *next;
} mimo_call;

/* Queues the call, which must stay where it is until mimo_call_wait has returned true. */
MIMO_MUST_CHECK mimo_status mimo_engine_post(mimo_engine *engine, mimo_call *call, mimo_error *err);
/* Waits up to `seconds`; true when the call is done (its outcome is call->error). */
bool mimo_call_wait(mimo_engine *engine, mimo_call *call, double seconds);
/* Total that a load's progress rises to. */
uint64_t mimo_engine_load_bytes(const mimo_engine *engine);

/* ---- jobs: one answer each ---- */

/* How an answer is drafted. Coupled verification never changes what is said; rejection keeps its law. */
typedef struct mimo_speculative {
    bool on;            /* with the engine's drafter, if it has one */
    bool lookup;        /* drafts from the sequence itself, beside the drafter's or alone */
    bool argmax_drafts; /* the drafter's likeliest tokens, also at a temperature: for comparison */
    mimo_rule rule;
    uint32_t width; /* rows of every round, the anchor included, up to mimo_engine_block; 0: by cost */
    /* Guesses of the answer's tokens [script_count], verified in the place of drafts; copied. With script_right > 0
     * they are spoilt so that rounds emit that many tokens in the mean, if they are right: a benchmark's knob. */
    const uint32_t *script;
    size_t script_count;
    float script_right;
} mimo_speculative;

typedef struct mimo_job_options {
    const uint32_t *prompt; /* [prompt_count], at least one, each < V; copied */
    size_t prompt_count;
    size_t max_new_tokens; /* >= 1; prompt_count + max_new_tokens <= max_context, and their KV cache fits the limit */
    mimo_sampling sampling;
    const uint32_t *eos; /* [eos_count] ids that end the answer; copied */
    size_t eos_count;
    size_t queue_bytes; /* of tokens that wait for the reader */
    mimo_speculative speculative;
} mimo_job_options;

typedef enum mimo_finish {
    MIMO_RUNNING = 0,
    MIMO_FINISH_EOS,
    MIMO_FINISH_LENGTH,
    MIMO_FINISH_CANCELLED,
    MIMO_FINISH_ERROR
} mimo_finish;

/* One token of an answer. */
typedef struct mimo_token {
    mimo_choice choice;
    uint32_t step;             /* of the job, from 0; tokens of one step reach the reader together */
    double seconds;            /* from submission to the end of that step */
    uint8_t accepted, drafted; /* of that step's drafts */
} mimo_token;

typedef struct mimo_job_stats {
    uint64_t prompt_tokens, cached_tokens, completion_tokens, steps;
    double queue_seconds, prefill_seconds, decode_seconds, first_token_seconds; /* 0 until known */
} mimo_job_stats;

MIMO_MUST_CHECK mimo_status mimo_engine_submit(mimo_engine *engine, const mimo_job_options *options, mimo_job **out,
                                               mimo_error *err);
/* Waits up to `seconds` until a token is there or the job has ended; true if so. */
bool mimo_job_wait(mimo_job *job, double seconds);
/* Takes the tokens of the earliest waiting step, at most `room`; returns how many. */
size_t mimo_job_take(mimo_job *job, mimo_token *out, size_t room);
void mimo_job_cancel(mimo_job *job);
/* MIMO_RUNNING while tokens may still come; *waiting is the number of tokens not taken yet; *error is filled after
 * FINISH_ERROR. */
mimo_finish mimo_job_state(mimo_job *job, size_t *waiting, mimo_error *error);
mimo_job_stats mimo_job_read_stats(mimo_job *job);
bool mimo_job_drafts(const mimo_job *job);
uint32_t mimo_job_block(const mimo_job *job); /* mimo_engine_block */
/* Copies rounds from number `first` on, at most `room`; returns how many there are after it. The prompt's step is none,
 * and a job that does not draft has none. */
size_t mimo_job_read_rounds(const mimo_job *job, size_t first, mimo_round *out, size_t room);
/* Cancels, and frees when the driver has let go of it. */
void mimo_job_release(mimo_job *job);

#endif
