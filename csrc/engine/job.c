/* One answer: from submission through its ring of tokens to its release. */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

enum { LEAST_RING = 2 };

static void free_parts(mimo_job *job)
{
    if (job->kv != NULL)
        job->engine->backend->kv_close(job->engine->backend, job->kv);
    mimo_free(job->tokens);
    mimo_free(job->eos);
    mimo_free(job->seen.ids);
    mimo_free(job->seen.bits);
    mimo_speculation_close(&job->spec);
    job->kv = NULL;
    job->tokens = job->eos = NULL;
    job->seen = (mimo_seen){0};
}

static void free_job(mimo_job *job)
{
    free_parts(job);
    mimo_free(job->ring);
    mimo_free(job->spec.rounds);
    pthread_cond_destroy(&job->readable);
    mimo_free(job);
}

static mimo_status check_options(const mimo_engine *engine, const mimo_job_options *o, mimo_error *err)
{
    MIMO_TRY(mimo_sampling_check(&o->sampling, err));
    MIMO_TRY(mimo_speculation_check(engine, &o->speculative, err));
    if (o->prompt_count == 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "prompt: expected at least one token, found none");
    for (size_t i = 0; i < o->prompt_count; i++)
        if (o->prompt[i] >= engine->config.vocab)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "prompt: token %zu: expected an id below %u, found %u", i,
                             engine->config.vocab, o->prompt[i]);
    if (o->max_new_tokens == 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "max_new_tokens: expected at least 1, found 0");
    const size_t most = engine->options.max_context;
    if (o->prompt_count > most || o->max_new_tokens > most - o->prompt_count)
        return MIMO_FAIL(
            err, MIMO_ERR_CONTEXT,
            "context overflow: %zu prompt tokens and %zu new ones need more than the %zu positions of max_context",
            o->prompt_count, o->max_new_tokens, most);
    return mimo_budget_check_job(engine, o->prompt_count + o->max_new_tokens, err);
}

static mimo_status fill(mimo_job *job, const mimo_job_options *o, mimo_error *err)
{
    mimo_engine *engine = job->engine;
    job->sampling = o->sampling;
    job->limit = o->prompt_count + o->max_new_tokens;
    job->known = o->prompt_count;
    job->stats.prompt_tokens = o->prompt_count;
    MIMO_TRY(mimo_alloc_array(&job->tokens, job->limit, sizeof(uint32_t), "tokens of a job", err));
    memcpy(job->tokens, o->prompt, o->prompt_count * sizeof(uint32_t));
    MIMO_TRY(mimo_alloc_array(&job->eos, o->eos_count, sizeof(uint32_t), "eos ids", err));
    if (o->eos_count > 0)
        memcpy(job->eos, o->eos, o->eos_count * sizeof(uint32_t));
    job->eos_count = o->eos_count;
    job->ring_slots = mimo_max(o->queue_bytes / sizeof(mimo_token), LEAST_RING);
    MIMO_TRY(mimo_alloc_array(&job->ring, job->ring_slots, sizeof(mimo_token), "token queue", err));
    if (o->sampling.repetition_penalty != 1.0f) {
        const size_t V = engine->config.vocab;
        const size_t room = mimo_min(V, job->limit + MIMO_BLOCK_ROWS); /* drafts are seen for a moment */
        MIMO_TRY(mimo_alloc_array(&job->seen.ids, room, sizeof(uint32_t), "seen ids", err));
        MIMO_TRY(mimo_alloc_array(&job->seen.bits, V / 64 + 1, sizeof(uint64_t), "seen ids", err));
        for (size_t i = 0; i < job->known; i++)
            mimo_seen_add(&job->seen, job->tokens[i]);
    }
    return mimo_speculation_open(job, o, err);
}

mimo_status mimo_job_open_cache(mimo_job *job, mimo_error *err)
{
    mimo_engine *engine = job->engine;
    mimo_idle_take(engine, job->tokens, job->known, &job->kv, &job->computed);
    mimo_budget_make_room(engine, job->limit);
    if (job->kv != NULL && job->spec.drafter)
        job->computed = mimo_draft_reach(engine, job->kv, job->computed);
    job->stats.cached_tokens = job->computed;
    if (job->kv == NULL)
        MIMO_TRY(engine->backend->kv_open(engine->backend, &job->kv, err));
    return engine->backend->kv_reserve(engine->backend, job->kv, job->limit, err);
}

static mimo_status make_job(mimo_engine *engine, const mimo_job_options *options, mimo_job **out, mimo_error *err)
{
    MIMO_TRY(check_options(engine, options, err));
    mimo_job *job;
    MIMO_TRY(mimo_alloc_array(&job, 1, sizeof *job, "job", err));
    job->engine = engine;
    if (mimo_condition_init(&job->readable) != 0) {
        mimo_free(job);
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: a job's condition variable");
    }
    const mimo_status status = fill(job, options, err);
    if (status != MIMO_OK) {
        free_job(job);
        return status;
    }
    job->held = job->active = true;
    job->submitted = mimo_clock_seconds();
    *out = job;
    return MIMO_OK;
}

/* Takes a waiting place for the job, or frees it if the engine was closed meanwhile. The mutex is held. */
static mimo_status enqueue(mimo_engine *engine, mimo_job *job, mimo_error *err)
{
    const mimo_status status = mimo_engine_check_open(engine, err);
    if (status != MIMO_OK) {
        free_job(job);
        return status;
    }
    *engine->last_waiting = job;
    engine->last_waiting = &job->next;
    pthread_cond_signal(&engine->work);
    return MIMO_OK;
}

mimo_status mimo_engine_submit(mimo_engine *engine, const mimo_job_options *options, mimo_job **out, mimo_error *err)
{
    MIMO_TRY(mimo_engine_check_process(engine, err));
    pthread_mutex_lock(&engine->mutex);
    mimo_status status = mimo_engine_check_open(engine, err);
    if (status == MIMO_OK && !engine->loaded)
        status = MIMO_FAIL(err, MIMO_ERR_ENGINE, "the engine's weights are not loaded");
    pthread_mutex_unlock(&engine->mutex);
    MIMO_TRY(status);

    MIMO_TRY(make_job(engine, options, out, err));
    pthread_mutex_lock(&engine->mutex);
    status = enqueue(engine, *out, err);
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

void mimo_job_push(mimo_job *job, const mimo_choice *choice, size_t accepted, size_t drafted)
{
    const double now = mimo_clock_seconds() - job->submitted;
    job->ring[(job->ring_first + job->ring_count++) % job->ring_slots] = (mimo_token){.choice = *choice,
                                                                                      .step = job->steps,
                                                                                      .seconds = now,
                                                                                      .accepted = (uint8_t)accepted,
                                                                                      .drafted = (uint8_t)drafted};
    if (job->stats.completion_tokens++ == 0)
        job->stats.first_token_seconds = now;
    job->tokens[job->known++] = choice->token;
    mimo_seen_add(&job->seen, choice->token);
    pthread_cond_broadcast(&job->readable);
}

void mimo_job_end(mimo_job *job, mimo_finish finish, const mimo_error *error)
{
    const double now = mimo_clock_seconds();
    mimo_job_stats *s = &job->stats;
    s->steps = job->steps;
    s->queue_seconds = (job->started > 0 ? job->started : now) - job->submitted;
    if (job->started > 0)
        s->prefill_seconds = (job->prefilled > 0 ? job->prefilled : now) - job->started;
    if (job->prefilled > 0)
        s->decode_seconds = now - job->prefilled;
    job->finish = finish;
    if (error != NULL)
        job->error = *error;
    if (job->computed > 0 && finish != MIMO_FINISH_ERROR) {
        mimo_idle_give(job->engine, job->kv, job->tokens, job->computed);
        job->kv = NULL;
        job->tokens = NULL;
    }
    free_parts(job);
    job->active = false;
    pthread_cond_broadcast(&job->readable);
    if (!job->held)
        free_job(job);
}

/* Something for the reader: a token, or the end. */
static bool is_readable(const mimo_job *job)
{
    return job->ring_count > 0 || job->finish != MIMO_RUNNING;
}

bool mimo_job_wait(mimo_job *job, double seconds)
{
    mimo_engine *engine = job->engine;
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return true;
    const double until = mimo_clock_seconds() + seconds;
    pthread_mutex_lock(&engine->mutex);
    for (double left = seconds; !is_readable(job) && left > 0; left = until - mimo_clock_seconds())
        mimo_wait_seconds(&job->readable, &engine->mutex, left);
    const bool readable = is_readable(job);
    pthread_mutex_unlock(&engine->mutex);
    return readable;
}

size_t mimo_job_take(mimo_job *job, mimo_token *out, size_t room)
{
    mimo_engine *engine = job->engine;
    size_t n = 0;
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return 0;
    pthread_mutex_lock(&engine->mutex);
    const bool was_full = job->ring_count == job->ring_slots;
    while (n < room && job->ring_count > 0 && (n == 0 || job->ring[job->ring_first].step == out[0].step)) {
        out[n++] = job->ring[job->ring_first];
        job->ring_first = (job->ring_first + 1) % job->ring_slots;
        job->ring_count--;
    }
    if (was_full && n > 0)
        pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->mutex);
    return n;
}

void mimo_job_cancel(mimo_job *job)
{
    if (mimo_engine_check_process(job->engine, NULL) != MIMO_OK)
        return;
    pthread_mutex_lock(&job->engine->mutex);
    atomic_store(&job->cancel, true);
    pthread_cond_signal(&job->engine->work);
    pthread_mutex_unlock(&job->engine->mutex);
}

mimo_finish mimo_job_state(mimo_job *job, size_t *waiting, mimo_error *error)
{
    *waiting = 0;
    if (mimo_engine_check_process(job->engine, error) != MIMO_OK)
        return MIMO_FINISH_ERROR;
    pthread_mutex_lock(&job->engine->mutex);
    const mimo_finish finish = job->finish;
    *waiting = job->ring_count;
    if (finish == MIMO_FINISH_ERROR)
        *error = job->error;
    pthread_mutex_unlock(&job->engine->mutex);
    return finish;
}

mimo_job_stats mimo_job_read_stats(mimo_job *job)
{
    if (mimo_engine_check_process(job->engine, NULL) != MIMO_OK)
        return (mimo_job_stats){0};
    pthread_mutex_lock(&job->engine->mutex);
    const mimo_job_stats stats = job->stats;
    pthread_mutex_unlock(&job->engine->mutex);
    return stats;
}

uint32_t mimo_job_block(const mimo_job *job)
{
    return mimo_engine_block(job->engine);
}

bool mimo_job_drafts(const mimo_job *job)
{
    return job->spec.on;
}

size_t mimo_job_read_rounds(const mimo_job *job, size_t first, mimo_round *out, size_t room)
{
    mimo_engine *engine = job->engine;
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return 0;
    pthread_mutex_lock(&engine->mutex);
    const size_t count = job->spec.round_count > first ? job->spec.round_count - first : 0;
    for (size_t i = 0; i < mimo_min(count, room); i++)
        out[i] = job->spec.rounds[first + i];
    pthread_mutex_unlock(&engine->mutex);
    return count;
}

void mimo_job_release(mimo_job *job)
{
    mimo_engine *engine = job->engine;
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return;
    pthread_mutex_lock(&engine->mutex);
    const bool active = job->active;
    job->held = false;
    atomic_store(&job->cancel, true);
    pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->mutex);
    if (!active)
        free_job(job);
}
