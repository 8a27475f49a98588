/* The engine's own state, shared by the files of this room.
 *
 * One mutex guards what submitters, readers and the driver share; the driver's steps run without it. Fields of a job
 * below the line are the driver's alone while the job is active. */
#ifndef MIMO_ENGINE_STATE_H
#define MIMO_ENGINE_STATE_H

#include <pthread.h>
#include <sys/types.h>

#include "base/clock.h"
#include "dflash/lookup.h"
#include "dflash/width.h"
#include "engine/engine.h"
#include "sample/seen.h"

enum { MIMO_IDLE_CACHES = 4 };

/* Buffers of draft steps. */
typedef struct mimo_drafting {
    float *hidden;  /* [M, MIMO_STEP_ROWS, H] the taps of the last step */
    float *waiting; /* [M, MIMO_SLOTS_JOBS, waits, H] those of answers that the drafter has not seen yet, by slot */
    size_t waits;
    uint16_t context_row[MIMO_STEP_ROWS];
    uint32_t context_position[MIMO_STEP_ROWS];
    mimo_kv *context_kv[MIMO_STEP_ROWS];
    size_t most_blocks; /* of one draft step */
    float *logits;      /* [most_blocks * (B - 1), logits_stride] over V' */
    size_t logits_stride;
    float *spread;                  /* [threads, V] a row of them by the target's ids; NULL: they are that already */
    mimo_job *job[MIMO_SLOTS_JOBS]; /* of each block */
    uint32_t anchor[MIMO_SLOTS_JOBS], position[MIMO_SLOTS_JOBS];
    mimo_kv *kv[MIMO_SLOTS_JOBS];
    size_t slots;
    double usual_time[2][MIMO_SLOTS_JOBS + 1]; /* seconds of drafting short and long blocks for so many jobs */
} mimo_drafting;

/* The KV cache of a finished job, kept for a prompt that begins alike. */
typedef struct mimo_idle_cache {
    mimo_kv *kv;      /* no larger than its tokens need */
    uint32_t *tokens; /* [count] whose keys and values it holds */
    size_t count;
    uint64_t used; /* when, in finished jobs */
} mimo_idle_cache;

/* What one source offers for a round. */
typedef struct mimo_offer {
    mimo_origin origin;
    size_t count;
    uint32_t token[MIMO_BLOCK_ROWS - 1]; /* [count] */
    uint8_t grade[MIMO_BLOCK_ROWS - 1];
} mimo_offer;

/* A job's side of drafting; all the driver's but the rounds, which the mutex guards. */
typedef struct mimo_speculation {
    bool on, drafter, argmax, lookup_was_right;
    bool ran_out; /* the drafter's last offer was right to its end */
    mimo_rule rule;
    uint32_t width; /* 0: by cost */
    uint32_t *script;
    size_t script_count;
    float script_right;
    mimo_lookup lookup;
    float *drawn_from; /* [B - 1, V] logits that the drafter's offer was drawn from; NULL: it is certain */
    double *laws;      /* [2, V]; of verify="rejection" at a temperature */
    mimo_patience patience;
    size_t waiting, waiting_from, place; /* rows of taps that wait for the drafter, their first position, the slot */
    mimo_round *rounds;                  /* [max_new_tokens] */
    size_t round_count;

    /* this round */
    mimo_match match;
    mimo_offer drafted, looked_up;
    const mimo_offer *used; /* one of them; NULL: no drafts */
} mimo_speculation;

struct mimo_job {
    mimo_engine *engine;
    mimo_job *next; /* in the engine's queue of waiting jobs */
    pthread_cond_t readable;
    bool held;   /* by its reader */
    bool active; /* waiting for a slot or in one: the driver may touch it */
    atomic_bool cancel;
    mimo_token *ring; /* [ring_slots] */
    size_t ring_slots, ring_first, ring_count;
    mimo_finish finish;
    mimo_error error;
    mimo_job_stats stats;
    double submitted; /* clock seconds */

    /* ---- the driver's ---- */
    mimo_sampling sampling;
    uint32_t *eos;
    size_t eos_count;
    mimo_kv *kv;
    uint32_t *tokens;       /* [limit] prompt, then answer */
    size_t known, computed; /* tokens known; tokens whose keys and values are cached */
    size_t limit;           /* prompt_count + max_new_tokens: the room that kv has */
    mimo_job *ahead;        /* a job that is computing the first `shared` tokens of this one, which waits for them */
    size_t shared;
    mimo_seen seen; /* of all known tokens; without ids if there is no repetition penalty */
    mimo_speculation spec;
    bool ready;         /* takes part in this step, */
    size_t room;        /* in which its reader's ring has room for this many tokens; */
    size_t first, rows; /* its rows in it, */
    size_t kept;        /* of which so many, the first ones, are of tokens that stand */
    uint32_t steps;
    double started, prefilled;
};

struct mimo_engine {
    mimo_config config;
    mimo_weights weights;
    mimo_draft *draft; /* NULL: none */
    mimo_backend *backend;
    mimo_file *files;
    size_t file_count;
    mimo_engine_options options;
    mimo_memory memory; /* of the backend as planned, kept for after it is closed, as are the next three */
    uint64_t load_bytes;
    const char *name, *variant;
    pid_t pid; /* of the process whose threads these are */
    pthread_t driver;
    bool driver_runs;

    pthread_mutex_t mutex;
    pthread_cond_t work;      /* something for the driver */
    pthread_cond_t call_done; /* some call ended */
    bool closing, closed, loaded;
    mimo_memory loaded_memory; /* where loaded */
    mimo_error lost;           /* why the backend no longer runs, and nothing else will; code 0: it does */
    mimo_call *running_call;   /* the one that the driver is in, so that closing can cancel it */
    mimo_call *first_call, **last_call;
    mimo_job *first_waiting, **last_waiting;
    mimo_idle_cache idle[MIMO_IDLE_CACHES];
    uint64_t finished_jobs;

    /* ---- the driver's ---- */
    mimo_job *slot[MIMO_SLOTS_JOBS];
    uint32_t token[MIMO_STEP_ROWS], position[MIMO_STEP_ROWS];
    mimo_kv *kv[MIMO_STEP_ROWS];
    uint16_t output[MIMO_STEP_OUTPUTS];
    mimo_job *answering[MIMO_SLOTS_JOBS]; /* jobs that get tokens from this step, */
    size_t answers;                       /* so many, */
    size_t first_output[MIMO_SLOTS_JOBS]; /* from these of its outputs on */
    mimo_verdict verdict[MIMO_SLOTS_JOBS];
    mimo_error verdict_error[MIMO_SLOTS_JOBS];
    float *logits; /* [MIMO_STEP_OUTPUTS, logits_stride] */
    size_t logits_stride;
    uint8_t *sample_scratch; /* [threads, sample_scratch_bytes] */
    size_t sample_scratch_bytes;
    mimo_times times;
    mimo_trust trust;
    mimo_patience patience;               /* of the job that drafted last */
    double draft_seconds, verify_seconds; /* of this round */
    mimo_drafting drafting;               /* empty without a drafter */
};

/* Waits on a condition of this room (monotonic clock) until it is signalled or `seconds` have passed. */
void mimo_wait_seconds(pthread_cond_t *condition, pthread_mutex_t *mutex, double seconds);
int mimo_condition_init(pthread_cond_t *condition);

/* MIMO_ERR_ENGINE in a forked child. Takes no lock: whatever a caller may reach asks this before it locks the mutex,
 * which may have been held when it was copied and then never opens. */
MIMO_MUST_CHECK mimo_status mimo_engine_check_process(const mimo_engine *engine, mimo_error *err);
/* MIMO_ERR_ENGINE if the engine is closed or lost. The mutex is held. */
MIMO_MUST_CHECK mimo_status mimo_engine_check_open(const mimo_engine *engine, mimo_error *err);

/* MIMO_ERR_ENGINE if the backend's device is lost: no result of its steps is to be used. The driver's. */
MIMO_MUST_CHECK mimo_status mimo_engine_check_backend(const mimo_engine *engine, mimo_error *err);

/* driver.c */
/* Whether somebody but the jobs in slots waits for the driver, or one of them is cancelled. The mutex is held. */
bool mimo_driver_is_wanted(const mimo_engine *engine);
void *mimo_driver_main(void *engine);

/* round.c: one step with what is drafted before it and verified after it. The driver's. */
/* Which jobs take part, and how many tokens each may get. The mutex is held. */
void mimo_round_select(mimo_engine *engine);
/* Runs the step, if any job takes part; the jobs that ended in it are handed to `end` with the mutex held. */
void mimo_round_run(mimo_engine *engine,
                    void (*end)(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error));

/* Whether the token ends the job's answer. */
bool mimo_job_ends_with(const mimo_job *job, uint32_t token);

/* decode.c: rounds of one job by a backend that decodes by itself. */
/* If the job that alone takes part can be decoded so, decodes it until it ends, its reader's ring is full or the driver
 * is wanted elsewhere; false: it cannot. */
bool mimo_decode_run(mimo_engine *engine,
                     void (*end)(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error));

/* draft.c */
MIMO_MUST_CHECK mimo_status mimo_drafting_open(mimo_engine *engine, mimo_error *err);
void mimo_drafting_close(mimo_engine *engine);
/* Whether a job that takes part decodes: its next row is the last token of its answer. */
bool mimo_job_decodes(const mimo_job *job);
/* Drafts for all jobs that decode, and how many rows of each are verified: job->rows, >= 1. */
void mimo_draft_round(mimo_engine *engine);
/* Learns from what a round of the job gave: token [came] from its first draft's place on. */
void mimo_draft_learn(mimo_engine *engine, mimo_job *job, const uint32_t *token, size_t came);
/* How much of a cache's `cached` positions to keep for a job that drafts: if it was filled without the drafter, its
 * last window is computed again. */
size_t mimo_draft_reach(const mimo_engine *engine, const mimo_kv *kv, size_t cached);
/* context.c */
MIMO_MUST_CHECK mimo_status mimo_context_open(mimo_engine *engine, mimo_error *err);
/* Takes the taps of the rows of the last step that stand: now, or to be added to a draft step later. */
void mimo_context_take(mimo_engine *engine);
/* A draft step without blocks, to which the contexts that wait can be added; */
void mimo_context_begin(mimo_engine *engine, mimo_draft_step *step);
/* adds a job's, after running those that fill the step up. */
void mimo_context_add_waiting(mimo_engine *engine, mimo_draft_step *step, mimo_job *job);

/* Runs a job's that wait. */
void mimo_context_flush(mimo_engine *engine, mimo_job *job);

/* speculation.c */
MIMO_MUST_CHECK mimo_status mimo_speculation_check(const mimo_engine *engine, const mimo_speculative *o,
                                                   mimo_error *err);
MIMO_MUST_CHECK mimo_status mimo_speculation_open(mimo_job *job, const mimo_job_options *o, mimo_error *err);
void mimo_speculation_close(mimo_speculation *spec); /* all but the rounds, which are read after the end */

/* timing.c: measures steps by their rows, for engine->times. The weights are loaded. */
void mimo_engine_time_steps(mimo_engine *engine);
/* The call that asks for the times of steps behind a context. */
MIMO_MUST_CHECK mimo_status mimo_engine_time_call(mimo_engine *engine, mimo_call *call);

/* forward.c: one call, on the driver's thread. */
void mimo_engine_run_call(mimo_engine *engine, mimo_call *call);

/* draft_call.c */
MIMO_MUST_CHECK mimo_status mimo_engine_draft_call(mimo_engine *engine, mimo_call *call);

/* job.c */
/* Gives a job that enters a slot its cache: an idle one, or a fresh one, with room up to its limit. The mutex is held.
 */
MIMO_MUST_CHECK mimo_status mimo_job_open_cache(mimo_job *job, mimo_error *err);
/* Ends an active job: its reader learns why, its cache goes to the idle ones. The mutex is held. */
void mimo_job_end(mimo_job *job, mimo_finish finish, const mimo_error *error);
/* Hands a token to the reader. The mutex is held and the ring has room. */
void mimo_job_push(mimo_job *job, const mimo_choice *choice, size_t accepted, size_t drafted);

/* budget.c */
/* MIMO_ERR_NOMEM, with all parts, if weights, workspace and the smallest cache exceed the memory limit. */
MIMO_MUST_CHECK mimo_status mimo_budget_check_load(const mimo_engine *engine, mimo_error *err);
/* MIMO_ERR_NOMEM if a cache with room for `positions` can never fit. */
MIMO_MUST_CHECK mimo_status mimo_budget_check_job(const mimo_engine *engine, size_t positions, mimo_error *err);
/* Whether a cache with room for `positions` fits beside those of the jobs in slots, if all of them fill. */
bool mimo_budget_has_room(const mimo_engine *engine, size_t positions);
/* Drops idle caches until such a cache fits beside them too. The mutex is held. */
void mimo_budget_make_room(mimo_engine *engine, size_t positions);
/* For a call's cache beside those of the jobs, which go on after it: MIMO_ERR_NOMEM if it does not fit, else makes
 * room. */
MIMO_MUST_CHECK mimo_status mimo_budget_claim(mimo_engine *engine, size_t positions, mimo_error *err);
/* Drops idle caches, never the latest, until they are small beside the weights. The mutex is held. */
void mimo_budget_trim_idle(mimo_engine *engine);

/* reuse.c; the mutex is held in the first five. */
/* The idle cache that holds the longest beginning of tokens, cut back to it; *cached is its length, 0 with *kv NULL. */
void mimo_idle_take(mimo_engine *engine, const uint32_t *tokens, size_t count, mimo_kv **kv, size_t *cached);
/* Keeps kv and tokens (both now the engine's), dropping the cache that was used longest ago if there are too many. */
void mimo_idle_give(mimo_engine *engine, mimo_kv *kv, uint32_t *tokens, size_t count);
/* Frees the cache that was used longest ago; false if there is none. */
bool mimo_idle_drop_oldest(mimo_engine *engine);
void mimo_idle_drop_all(mimo_engine *engine);
/* The driver's. Lets a job that was just admitted wait for one in a slot that computes the same beginning; */
void mimo_follow_begin(mimo_engine *engine, mimo_job *job);
/* copies what is there by now to those that wait for it; */
void mimo_follow_resolve(mimo_engine *engine);
/* lets nobody wait for a job that has ended. */
void mimo_follow_forget(mimo_engine *engine, const mimo_job *ended);

#endif
