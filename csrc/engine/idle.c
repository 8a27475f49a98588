/* Caches of finished jobs: a prompt that begins with what one of them holds is not computed again. */
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

static size_t common_prefix(const mimo_idle_cache *idle, const uint32_t *tokens, size_t count)
{
    const size_t most = mimo_min(idle->count, count);
    size_t n = 0;
    while (n < most && idle->tokens[n] == tokens[n])
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
        const size_t n = common_prefix(idle, tokens, count - 1);
        if (n > *cached && engine->backend->kv_can_cut(engine->backend, idle->count, n)) {
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

void mimo_idle_give(mimo_engine *engine, mimo_kv *kv, uint32_t *tokens, size_t count)
{
    mimo_idle_cache *oldest = &engine->idle[0];
    for (size_t i = 0; i < MIMO_IDLE_CACHES && oldest->kv != NULL; i++)
        if (engine->idle[i].kv == NULL || engine->idle[i].used < oldest->used)
            oldest = &engine->idle[i];
    drop(engine, oldest);
    *oldest = (mimo_idle_cache){kv, tokens, count, engine->finished_jobs++};
}

void mimo_idle_drop_all(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++)
        drop(engine, &engine->idle[i]);
}
