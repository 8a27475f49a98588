#define _GNU_SOURCE
#include "engine/engine.h"

#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

int mimo_condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    const int code = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
}

void mimo_wait_seconds(pthread_cond_t *condition, pthread_mutex_t *mutex, double seconds)
{
    const double until = mimo_clock_seconds() + seconds;
    struct timespec deadline = {.tv_sec = (time_t)until};
    deadline.tv_nsec = (long)((until - (double)deadline.tv_sec) * 1e9);
    pthread_cond_timedwait(condition, mutex, &deadline);
}

static uint32_t available_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
    return 1;
}

mimo_status mimo_engine_check_process(const mimo_engine *engine, mimo_error *err)
{
    if (engine->pid == getpid())
        return MIMO_OK;
    return MIMO_FAIL(err, MIMO_ERR_ENGINE,
                     "the engine belongs to process %ld: a forked child cannot use it; open the model after the fork",
                     (long)engine->pid);
}

mimo_status mimo_engine_check_open(const mimo_engine *engine, mimo_error *err)
{
    if (engine->closing || engine->closed)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "the engine is closed");
    if (engine->lost.code != MIMO_OK)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "%s", engine->lost.text);
    return MIMO_OK;
}

mimo_status mimo_engine_check_backend(const mimo_engine *engine, mimo_error *err)
{
    return engine->backend->check != NULL ? engine->backend->check(engine->backend, err) : MIMO_OK;
}

/* ---- opening and closing ---- */

static mimo_status open_files(mimo_engine *engine, const char *const *paths, uint64_t *bytes, mimo_error *err)
{
    for (size_t i = 0; i < engine->file_count; i++) {
        MIMO_TRY(mimo_file_open(&engine->files[i], paths[i], err));
        bytes[i] = engine->files[i].size;
    }
    return MIMO_OK;
}

/* The tensors and files of a checkpoint, as the engine's caller lists them. */
typedef struct sources {
    const mimo_tensor *tensors;
    size_t count;
    const mimo_draft_source *draft;
    const char *const *paths;
} sources;

static mimo_status bind_draft(mimo_engine *engine, const mimo_draft_source *draft, const uint64_t *bytes,
                              mimo_error *err)
{
    mimo_draft *out;
    MIMO_TRY(mimo_alloc_array(&out, 1, sizeof *out, "drafter", err));
    const mimo_status status = mimo_draft_bind(out, &draft->config, &engine->config, &engine->weights, draft->tensors,
                                               draft->count, bytes, engine->file_count, err);
    if (status == MIMO_OK)
        engine->draft = out;
    else
        mimo_free(out);
    return status;
}

static mimo_status bind_weights(mimo_engine *engine, const sources *from, mimo_error *err)
{
    uint64_t *bytes;
    MIMO_TRY(mimo_alloc_array(&bytes, engine->file_count, sizeof *bytes, "file sizes", err));
    mimo_status status = open_files(engine, from->paths, bytes, err);
    if (status == MIMO_OK)
        status = mimo_weights_bind(&engine->weights, &engine->config, from->tensors, from->count, bytes,
                                   engine->file_count, err);
    if (status == MIMO_OK && from->draft != NULL)
        status = bind_draft(engine, from->draft, bytes, err);
    mimo_free(bytes);
    return status;
}

static mimo_status open_parts(mimo_engine *engine, const sources *from, mimo_error *err)
{
    mimo_engine_options *o = &engine->options;
    MIMO_TRY(mimo_config_check(&engine->config, err));
    if (o->threads == 0)
        o->threads = available_cores();
    if (o->threads > 1024)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "threads: expected 1 to 1024 (0: one per core), found %u", o->threads);
    if (o->max_context > engine->config.max_positions)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "max_context: expected at most the model's %u positions, found %u",
                         engine->config.max_positions, o->max_context);
    if (o->max_context == 0)
        o->max_context = engine->config.max_positions;
    MIMO_TRY(mimo_alloc_array(&engine->files, engine->file_count, sizeof *engine->files, "table of files", err));
    for (size_t i = 0; i < engine->file_count; i++)
        engine->files[i].fd = -1;
    MIMO_TRY(bind_weights(engine, from, err));

    const mimo_backend_options backend = {.exact = o->exact,
                                          .pin = o->pin,
                                          .nodes = o->nodes,
                                          .threads = o->threads,
                                          .max_rows = MIMO_STEP_ROWS,
                                          .max_context = o->max_context,
                                          .variant = o->variant,
                                          .device = o->device,
                                          .image = o->image};
    MIMO_TRY((o->cuda ? mimo_cuda_backend_open : mimo_cpu_backend_open)(
        &engine->backend, &engine->config, &engine->weights, engine->draft, &backend, err));
    o->nodes = NULL;
    engine->memory = engine->backend->memory;
    if (engine->memory.limit > 0 && (o->memory_limit == 0 || o->memory_limit > engine->memory.limit))
        o->memory_limit = engine->memory.limit;
    engine->name = engine->backend->name;
    engine->load_bytes = engine->backend->load_bytes;
    engine->variant = engine->backend->variant;
    engine->logits_stride = mimo_round_up(engine->config.vocab, 16);
    MIMO_TRY(
        mimo_alloc_array(&engine->logits, MIMO_STEP_OUTPUTS * engine->logits_stride, sizeof(float), "logits", err));
    engine->sample_scratch_bytes = mimo_round_up(mimo_sample_scratch_bytes(engine->config.vocab), 64);
    mimo_trust_init(&engine->trust);
    MIMO_TRY(
        mimo_alloc_array(&engine->sample_scratch, o->threads, engine->sample_scratch_bytes, "sampling scratch", err));
    return mimo_drafting_open(engine, err);
}

mimo_status mimo_engine_open(mimo_engine **out, const mimo_engine_options *options, const mimo_config *config,
                             const mimo_tensor *tensors, size_t count, const mimo_draft_source *draft,
                             const char *const *paths, size_t files, mimo_error *err)
{
    mimo_engine *engine;
    MIMO_TRY(mimo_alloc_array(&engine, 1, sizeof *engine, "engine", err));
    engine->config = *config;
    engine->options = *options;
    engine->file_count = files;
    engine->pid = getpid();
    engine->last_call = &engine->first_call;
    engine->last_waiting = &engine->first_waiting;
    pthread_mutex_init(&engine->mutex, NULL);
    mimo_condition_init(&engine->work);
    mimo_condition_init(&engine->call_done);

    const sources from = {tensors, count, draft, paths};
    mimo_status status = open_parts(engine, &from, err);
    if (status == MIMO_OK) {
        const int code = pthread_create(&engine->driver, NULL, mimo_driver_main, engine);
        engine->driver_runs = code == 0;
        if (code != 0)
            status = MIMO_FAIL(err, MIMO_ERR_NOMEM, "could not start the driver thread: %s", strerror(code));
    }
    if (status != MIMO_OK) {
        mimo_engine_free(engine);
        return status;
    }
    *out = engine;
    return MIMO_OK;
}

void mimo_engine_close(mimo_engine *engine)
{
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK) /* none of the threads to wait for */
        return;
    pthread_mutex_lock(&engine->mutex);
    const bool first = !engine->closing;
    engine->closing = true;
    if (engine->running_call != NULL)
        atomic_store(&engine->running_call->cancel, true);
    pthread_cond_signal(&engine->work);
    while (!first && !engine->closed) /* another thread is closing it */
        pthread_cond_wait(&engine->call_done, &engine->mutex);
    pthread_mutex_unlock(&engine->mutex);
    if (!first)
        return;
    if (engine->driver_runs)
        pthread_join(engine->driver, NULL);
    pthread_mutex_lock(&engine->mutex);
    if (engine->backend != NULL) {
        mimo_idle_drop_all(engine);
        engine->backend->close(engine->backend);
        engine->backend = NULL;
    }
    engine->closed = true;
    pthread_cond_broadcast(&engine->call_done);
    pthread_mutex_unlock(&engine->mutex);
}

void mimo_engine_free(mimo_engine *engine)
{
    if (engine == NULL)
        return;
    mimo_engine_close(engine);
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return; /* the parent's memory, seen through copy on write: nothing here is worth the risk */
    for (size_t i = 0; i < engine->file_count && engine->files != NULL; i++)
        mimo_file_close(&engine->files[i]);
    mimo_free(engine->files);
    mimo_weights_release(&engine->weights);
    if (engine->draft != NULL)
        mimo_draft_release(engine->draft);
    mimo_free(engine->draft);
    mimo_free(engine->logits);
    mimo_free(engine->sample_scratch);
    mimo_drafting_close(engine);
    pthread_cond_destroy(&engine->call_done);
    pthread_cond_destroy(&engine->work);
    pthread_mutex_destroy(&engine->mutex);
    mimo_free(engine);
}

/* ---- reading ---- */

const mimo_config *mimo_engine_config(const mimo_engine *engine)
{
    return &engine->config;
}

const mimo_draft_config *mimo_engine_draft(const mimo_engine *engine)
{
    return engine->draft != NULL ? &engine->draft->config : NULL;
}

mimo_memory mimo_engine_memory(mimo_engine *engine)
{
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return engine->memory;
    pthread_mutex_lock(&engine->mutex);
    const mimo_memory memory = engine->loaded ? engine->loaded_memory : engine->memory;
    pthread_mutex_unlock(&engine->mutex);
    return memory;
}

const char *mimo_engine_backend(const mimo_engine *engine)
{
    return engine->name;
}

const char *mimo_engine_variant(const mimo_engine *engine)
{
    return engine->variant;
}

uint32_t mimo_engine_threads(const mimo_engine *engine)
{
    return engine->options.threads;
}

uint32_t mimo_engine_max_context(const mimo_engine *engine)
{
    return engine->options.max_context;
}

uint64_t mimo_engine_memory_limit(const mimo_engine *engine)
{
    return engine->options.memory_limit;
}

bool mimo_engine_is_exact(const mimo_engine *engine)
{
    return engine->options.exact;
}

bool mimo_engine_is_loaded(mimo_engine *engine)
{
    if (mimo_engine_check_process(engine, NULL) != MIMO_OK)
        return false;
    pthread_mutex_lock(&engine->mutex);
    const bool loaded = engine->loaded && !engine->closing;
    pthread_mutex_unlock(&engine->mutex);
    return loaded;
}

/* ---- calls ---- */

uint64_t mimo_engine_load_bytes(const mimo_engine *engine)
{
    return engine->load_bytes;
}

static mimo_status check_draft_call(const mimo_engine *engine, const mimo_call *call, mimo_error *err)
{
    if (engine->draft == NULL)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft: this engine was opened without a drafter");
    for (size_t i = 0; i < call->anchor_count; i++)
        if (call->anchors[i] >= call->count || (i > 0 && call->anchors[i] <= call->anchors[i - 1]))
            return MIMO_FAIL(err, MIMO_ERR_VALUE,
                             "anchors: item %zu: expected ascending positions below %zu tokens, found %u", i,
                             call->count, call->anchors[i]);
    return MIMO_OK;
}

mimo_status mimo_engine_post(mimo_engine *engine, mimo_call *call, mimo_error *err)
{
    for (size_t i = 0; i < call->count; i++)
        if (call->tokens[i] >= engine->config.vocab)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "token %zu: expected an id below %u, found %u", i,
                             engine->config.vocab, call->tokens[i]);
    if (call->count > engine->options.max_context)
        return MIMO_FAIL(err, MIMO_ERR_CONTEXT,
                         "context overflow: %zu tokens need more than the %u positions of max_context", call->count,
                         engine->options.max_context);
    for (size_t i = 0; i < call->tap_count; i++)
        if (call->taps[i] >= engine->config.layers)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "layers: expected numbers below %u, found %u", engine->config.layers,
                             call->taps[i]);
    MIMO_TRY(mimo_engine_check_process(engine, err));
    if (call->kind == MIMO_CALL_DRAFT)
        MIMO_TRY(check_draft_call(engine, call, err));
    pthread_mutex_lock(&engine->mutex);
    const mimo_status status = mimo_engine_check_open(engine, err);
    if (status == MIMO_OK) {
        call->next = NULL;
        *engine->last_call = call;
        engine->last_call = &call->next;
        pthread_cond_signal(&engine->work);
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

bool mimo_call_wait(mimo_engine *engine, mimo_call *call, double seconds)
{
    if (mimo_engine_check_process(engine, &call->error) != MIMO_OK)
        return true; /* forked between two waits: this copy of the call stays as it is */
    pthread_mutex_lock(&engine->mutex);
    if (!call->done)
        mimo_wait_seconds(&engine->call_done, &engine->mutex, seconds);
    const bool done = call->done;
    pthread_mutex_unlock(&engine->mutex);
    return done;
}
