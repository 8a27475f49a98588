/* How much memory KV caches may take: what the limit leaves beside weights and workspace. Every job in a slot counts
 * with all the positions it may reach, so that none is stopped half-way for want of memory. */
#include "base/size.h"
#include "engine/state.h"

/* What idle caches may take together, as a part of the weights; the latest one stays whatever it takes, because the
 * next prompt most often goes on where the last answer ended. */
enum { IDLE_PART = 8 };

static uint64_t fixed_bytes(const mimo_engine *engine)
{
    return engine->memory.weights + engine->memory.embedding + engine->memory.workspace;
}

static uint64_t cache_limit(const mimo_engine *engine)
{
    const uint64_t limit = engine->options.memory_limit, fixed = fixed_bytes(engine);
    if (limit == 0)
        return UINT64_MAX;
    return limit > fixed ? limit - fixed : 0;
}

static uint64_t cache_bytes(const mimo_engine *engine, size_t positions)
{
    const mimo_memory *m = &engine->memory;
    return m->kv_fixed + mimo_ceil_div(positions, m->kv_chunk) * m->kv_chunk * m->kv_per_position;
}

static uint64_t running_bytes(const mimo_engine *engine)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] != NULL)
            bytes += cache_bytes(engine, engine->slot[i]->limit);
    return bytes;
}

static uint64_t idle_bytes(const mimo_engine *engine)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++)
        if (engine->idle[i].kv != NULL)
            bytes += cache_bytes(engine, engine->idle[i].count);
    return bytes;
}

static size_t idle_count(const mimo_engine *engine)
{
    size_t count = 0;
    for (size_t i = 0; i < MIMO_IDLE_CACHES; i++)
        count += engine->idle[i].kv != NULL;
    return count;
}

static double mb(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

mimo_status mimo_budget_check_load(const mimo_engine *engine, mimo_error *err)
{
    const uint64_t least = cache_bytes(engine, 1);
    if (cache_limit(engine) >= least)
        return MIMO_OK;
    const mimo_memory *m = &engine->memory;
    return MIMO_FAIL(err, MIMO_ERR_NOMEM,
                     "out of memory: the model does not fit\n"
                     "  %12.1f MB  packed weights\n"
                     "  %12.1f MB  embedding\n"
                     "  %12.1f MB  workspace of %u threads\n"
                     "  %12.1f MB  the smallest KV cache\n"
                     "  %12.1f MB  needed\n"
                     "  %12.1f MB  may be used",
                     mb(m->weights), mb(m->embedding), mb(m->workspace), engine->options.threads, mb(least),
                     mb(fixed_bytes(engine) + least), mb(engine->options.memory_limit));
}

mimo_status mimo_budget_check_job(const mimo_engine *engine, size_t positions, mimo_error *err)
{
    const uint64_t need = cache_bytes(engine, positions), most = cache_limit(engine);
    if (need <= most)
        return MIMO_OK;
    return MIMO_FAIL(err, MIMO_ERR_NOMEM,
                     "out of memory: the KV cache of %zu positions needs %.1f MB, and %.1f MB are left beside the "
                     "weights; fewer new tokens need less",
                     positions, mb(need), mb(most));
}

bool mimo_budget_has_room(const mimo_engine *engine, size_t positions)
{
    const uint64_t running = running_bytes(engine), most = cache_limit(engine);
    return running <= most && cache_bytes(engine, positions) <= most - running;
}

void mimo_budget_make_room(mimo_engine *engine, size_t positions)
{
    const uint64_t held = running_bytes(engine) + cache_bytes(engine, positions);
    while (idle_count(engine) > 0 && held + idle_bytes(engine) > cache_limit(engine))
        (void)mimo_idle_drop_oldest(engine);
}

mimo_status mimo_budget_claim(mimo_engine *engine, size_t positions, mimo_error *err)
{
    MIMO_TRY(mimo_budget_check_job(engine, positions, err));
    if (!mimo_budget_has_room(engine, positions))
        return MIMO_FAIL(err, MIMO_ERR_NOMEM,
                         "out of memory: the KV cache of %zu tokens does not fit beside those of the running answers",
                         positions);
    pthread_mutex_lock(&engine->mutex);
    mimo_budget_make_room(engine, positions);
    pthread_mutex_unlock(&engine->mutex);
    return MIMO_OK;
}

void mimo_budget_trim_idle(mimo_engine *engine)
{
    const uint64_t most = (engine->memory.weights + engine->memory.embedding) / IDLE_PART;
    while (idle_count(engine) > 1 && idle_bytes(engine) > most)
        (void)mimo_idle_drop_oldest(engine);
}
