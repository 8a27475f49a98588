/* The engine's own state, shared by the files of this room.
 *
 * One mutex guards what submitters, readers and the driver share; the driver's steps run without it. Fields of a job
 * below the line are the driver's alone while the job is active. */
#ifndef MIMO_ENGINE_STATE_H
#define MIMO_ENGINE_STATE_H

#include <pthread.h>
#include <sys/types.h>

#include "engine/engine.h"

enum { MIMO_IDLE_CACHES = 4 };

/* The KV cache of a finished job, kept for a prompt that begins alike. */
typedef struct mimo_idle_cache {
    mimo_kv *kv;      /* no larger than its tokens need */
    uint32_t *tokens; /* [count] whose keys and values it holds */
    size_t count;
    uint64_t used; /* when, in finished jobs */
} mimo_idle_cache;

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
    uint32_t *seen;      /* distinct ids so far; NULL without a repetition penalty */
    uint64_t *seen_bits; /* [V / 64] */
    size_t seen_count;
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
    mimo_memory memory; /* of the backend, kept for after it is closed, as are the next two */
    uint64_t load_bytes;
    const char *variant;
    pid_t pid; /* of the process whose threads these are */
    pthread_t driver;
    bool driver_runs;

    pthread_mutex_t mutex;
    pthread_cond_t work;      /* something for the driver */
    pthread_cond_t call_done; /* some call ended */
    bool closing, closed, loaded;
    mimo_call *running_call; /* the one that the driver is in, so that closing can cancel it */
    mimo_call *first_call, **last_call;
    mimo_job *first_waiting, **last_waiting;
    mimo_idle_cache idle[MIMO_IDLE_CACHES];
    uint64_t finished_jobs;

    /* ---- the driver's ---- */
    mimo_job *slot[MIMO_SLOTS_JOBS];
    uint32_t token[MIMO_STEP_ROWS], position[MIMO_STEP_ROWS];
    mimo_kv *kv[MIMO_STEP_ROWS];
    uint16_t output[MIMO_SLOTS_JOBS];
    mimo_job *output_job[MIMO_SLOTS_JOBS];
    mimo_choice choice[MIMO_SLOTS_JOBS];
    mimo_error choice_error[MIMO_SLOTS_JOBS];
    float *logits; /* [MIMO_SLOTS_JOBS, logits_stride] */
    size_t logits_stride;
    uint8_t *sample_scratch; /* [threads, sample_scratch_bytes] */
    size_t sample_scratch_bytes;
};

double mimo_clock_seconds(void);
/* Waits on a condition of this room (monotonic clock) until it is signalled or `seconds` have passed. */
void mimo_wait_seconds(pthread_cond_t *condition, pthread_mutex_t *mutex, double seconds);
int mimo_condition_init(pthread_cond_t *condition);

/* MIMO_ERR_ENGINE in a forked child. Takes no lock: whatever a caller may reach asks this before it locks the mutex,
 * which may have been held when it was copied and then never opens. */
MIMO_MUST_CHECK mimo_status mimo_engine_check_process(const mimo_engine *engine, mimo_error *err);
/* MIMO_ERR_ENGINE if the engine is closed. The mutex is held. */
MIMO_MUST_CHECK mimo_status mimo_engine_check_open(const mimo_engine *engine, mimo_error *err);

/* driver.c */
void *mimo_driver_main(void *engine);

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
void mimo_job_push(mimo_job *job, const mimo_choice *choice); /* the mutex is held and the ring has room */

/* budget.c */
/* MIMO_ERR_NOMEM, with all parts, if weights, workspace and the smallest cache exceed the memory limit. */
MIMO_MUST_CHECK mimo_status mimo_budget_check_load(const mimo_engine *engine, mimo_error *err);
/* MIMO_ERR_NOMEM if a cache with room for `positions` can never fit. */
MIMO_MUST_CHECK mimo_status mimo_budget_check_job(const mimo_engine *engine, size_t positions, mimo_error *err);
/* Whether a cache with room for `positions` fits beside those of the jobs in slots, if all of them fill. */
bool mimo_budget_has_room(const mimo_engine *engine, size_t positions);
/* Drops idle caches until such a cache fits beside them too. The mutex is held. */
void mimo_budget_make_room(mimo_engine *engine, size_t positions);
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
