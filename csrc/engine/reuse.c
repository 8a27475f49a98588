/* Prompts that begin alike are computed once: from the caches of finished jobs, and from a job that is ahead. */
#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

static void drop(mimo_engine *engine, mimo_idle_cache *idle)
{
    if (idle->kv != NULL)
        engine->backend->kv_close(engine->backend, idle->kv);
    mimo_free(idle->tokens);
    *idle = (mimo_idle_cache){0};
}

static size_t common_prefix(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count)
{
    const size_t most = mimo_min(a_count, b_count);
    size_t n = 0;
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

void mimo_idle_take(mimo_engine *engine, const uint32_t *tokens, size_t count, mimo_kv **kv, size_t *cached)
{
    mimo_idle_cache *best = NULL;
    *kv = NULL;
    *cached = 0;
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++) {
        mimo_idle_cache *idle = &engine->idle[i];
        if (idle->kv == NULL)
            continue;
        /* The last token is always computed: its logits choose the next one. */
        const size_t n = common_prefix(idle->tokens, idle->count, tokens, count - 1);
        if (n > *cached && engine->backend->kv_can_cut(engine->backend, idle->kv, n)) {
            best = idle;
            *cached = n;
        }
    }
    if (best == NULL)
        return;
    *kv = best->kv;
    mimo_free(best->tokens);
    *best = (mimo_idle_cache){0};
}

bool mimo_idle_drop_oldest(mimo_engine *engine)
{
    mimo_idle_cache *oldest = NULL;
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++) {
        mimo_idle_cache *idle = &engine->idle[i];
        if (idle->kv != NULL && (oldest == NULL || idle->used < oldest->used))
            oldest = idle;
    }
    if (oldest != NULL)
        drop(engine, oldest);
    return oldest != NULL;
}

static mimo_idle_cache *free_place(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++)
        if (engine->idle[i].kv == NULL)
            return &engine->idle[i];
    return NULL;
}

void mimo_idle_give(mimo_engine *engine, mimo_kv *kv, uint32_t *tokens, size_t count)
{
    mimo_idle_cache *place = free_place(engine);
    if (place == NULL && mimo_idle_drop_oldest(engine))
        place = free_place(engine);
    engine->backend->kv_trim(engine->backend, kv, count);
    *place = (mimo_idle_cache){kv, tokens, count, engine->finished_jobs++};
    mimo_budget_trim_idle(engine);
}

void mimo_idle_drop_all(mimo_engine *engine)
{
    while (mimo_idle_drop_oldest(engine)) {
    }
}

/* ---- jobs that follow another ---- */

/* Waiting for a job that is ahead pays only where it saves more than a step. */
enum { LEAST_SHARED = 16 };

void mimo_follow_begin(mimo_engine *engine, mimo_job *job)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *ahead = engine->slot[i];
        if (ahead == NULL || ahead == job || ahead->ahead != NULL)
            continue;
        if (job->spec.drafter && !ahead->spec.drafter)
            continue; /* its cache has no context of the drafter */
        /* Of its prompt only: a job whose reader has fallen behind may stop at any token of its answer. */
        const size_t n = common_prefix(ahead->tokens, ahead->stats.prompt_tokens, job->tokens, job->known - 1);
        if (n >= job->computed + LEAST_SHARED && n > job->shared) {
            job->ahead = ahead;
            job->shared = n;
        }
    }
}

void mimo_follow_resolve(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL || job->ahead == NULL || job->ahead->computed < job->shared)
            continue;
        if (engine->backend->kv_can_cut(engine->backend, job->ahead->kv, job->shared)) {
            engine->backend->kv_copy(engine->backend, job->kv, job->ahead->kv, job->shared);
            job->computed = job->shared;
            job->stats.cached_tokens = job->shared;
        }
        job->ahead = NULL;
    }
}

void mimo_follow_forget(mimo_engine *engine, const mimo_job *ended)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] != NULL && engine->slot[i]->ahead == ended)
            engine->slot[i]->ahead = NULL;
}
