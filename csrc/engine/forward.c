/* Calls: loading, profiling, a whole sequence through the model for its logits or hidden states, and steps for their
 * time. */
#include <time.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

static mimo_status forward_rows(mimo_engine *engine, mimo_call *call, mimo_kv *kv)
{
    for (size_t first = 0; first < call->count; first += call->rows) {
        if (atomic_load(&call->cancel))
            return MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the call was cancelled");
        const size_t rows = mimo_min(call->rows, call->count - first);
        uint16_t output[MIMO_STEP_ROWS];
        for (size_t i = 0; i < rows; i++) {
            engine->token[i] = call->tokens[first + i];
            engine->position[i] = (uint32_t)(first + i);
            engine->kv[i] = kv;
            output[i] = (uint16_t)i;
        }
        const size_t H = engine->config.hidden;
        const mimo_step step = {
            .rows = rows,
            .token = engine->token,
            .position = engine->position,
            .kv = engine->kv,
            .outputs = call->logits != NULL ? rows : 0,
            .output = output,
            .logits = call->logits != NULL ? call->logits + first * call->logits_stride : NULL,
            .logits_stride = call->logits_stride,
            .taps = call->tap_count,
            .tap = call->taps,
            .hidden = call->hidden != NULL ? call->hidden + first * H : NULL,
            .hidden_stride = call->count * H,
        };
        engine->backend->step(engine->backend, &step);
        atomic_fetch_add(&call->progress, rows);
    }
    return MIMO_OK;
}

/* The call's cache beside those of the jobs in slots, which go on after it. */
static mimo_status make_room(mimo_engine *engine, mimo_call *call)
{
    MIMO_TRY(mimo_budget_check_job(engine, call->count, &call->error));
    if (!mimo_budget_has_room(engine, call->count))
        return MIMO_FAIL(&call->error, MIMO_ERR_NOMEM,
                         "out of memory: the KV cache of %zu tokens does not fit beside those of the running answers",
                         call->count);
    pthread_mutex_lock(&engine->mutex);
    mimo_budget_make_room(engine, call->count);
    pthread_mutex_unlock(&engine->mutex);
    return MIMO_OK;
}

static mimo_status forward(mimo_engine *engine, mimo_call *call)
{
    mimo_kv *kv;
    MIMO_TRY(make_room(engine, call));
    MIMO_TRY(engine->backend->kv_open(engine->backend, &kv, &call->error));
    mimo_status status = engine->backend->kv_reserve(engine->backend, kv, call->count, &call->error);
    if (status == MIMO_OK)
        status = forward_rows(engine, call, kv);
    engine->backend->kv_close(engine->backend, kv);
    return status;
}

/* ---- the time of steps ---- */

typedef struct timing {
    mimo_engine *engine;
    mimo_kv *kv;
    float *logits; /* [widest, engine->logits_stride] */
    uint32_t salt; /* tokens made up so far */
} timing;

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Runs one step of tokens spread over the vocabulary, so that experts are drawn as if at random; its ns. */
static int64_t run_made_step(timing *t, size_t position, size_t rows, bool logits)
{
    mimo_engine *engine = t->engine;
    uint16_t output[MIMO_STEP_ROWS];
    for (size_t i = 0; i < rows; i++) {
        engine->token[i] = ++t->salt * 2654435761u % engine->config.vocab;
        engine->position[i] = (uint32_t)(position + i);
        engine->kv[i] = t->kv;
        output[i] = (uint16_t)i;
    }
    const mimo_step step = {
        .rows = rows,
        .token = engine->token,
        .position = engine->position,
        .kv = engine->kv,
        .outputs = logits ? rows : 0,
        .output = output,
        .logits = t->logits,
        .logits_stride = engine->logits_stride,
    };
    const int64_t begin = clock_ns();
    engine->backend->step(engine->backend, &step);
    return clock_ns() - begin;
}

/* Each step writes the positions behind the context over those of the step before. */
static mimo_status time_rounds(timing *t, mimo_call *call, size_t widest)
{
    mimo_backend *backend = t->engine->backend;
    for (size_t first = 0; first < call->context; first += MIMO_STEP_ROWS)
        run_made_step(t, first, mimo_min(MIMO_STEP_ROWS, call->context - first), false);
    run_made_step(t, call->context, widest, true);
    if (call->profile != NULL)
        backend->set_profile(backend, true);
    mimo_status status = MIMO_OK;
    for (size_t i = 0; status == MIMO_OK && i < call->repeats * call->width_count; i++) {
        if (atomic_load(&call->cancel))
            status = MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the call was cancelled");
        else
            call->step_ns[i] = run_made_step(t, call->context, call->widths[i % call->width_count], true);
        atomic_fetch_add(&call->progress, 1);
    }
    if (call->profile != NULL) {
        backend->read_profile(backend, call->profile);
        backend->set_profile(backend, false);
    }
    return status;
}

static mimo_status time_steps(mimo_engine *engine, mimo_call *call)
{
    size_t widest = 0;
    for (size_t i = 0; i < call->width_count; i++) {
        const uint32_t width = call->widths[i];
        if (width < 1 || width > MIMO_STEP_ROWS)
            return MIMO_FAIL(&call->error, MIMO_ERR_VALUE, "widths: expected 1 to %d rows, found %u", MIMO_STEP_ROWS,
                             width);
        widest = mimo_max(widest, width);
    }
    if (widest == 0)
        return MIMO_FAIL(&call->error, MIMO_ERR_VALUE, "widths: expected at least one");
    const size_t most = engine->options.max_context;
    if (widest > most || call->context > most - widest)
        return MIMO_FAIL(&call->error, MIMO_ERR_CONTEXT,
                         "context overflow: a context of %zu and a step of %zu rows need more than the %zu positions "
                         "of max_context",
                         call->context, widest, most);
    timing t = {.engine = engine};
    MIMO_TRY(mimo_alloc_array(&t.logits, widest * engine->logits_stride, sizeof(float), "logits", &call->error));
    mimo_status status = engine->backend->kv_open(engine->backend, &t.kv, &call->error);
    if (status == MIMO_OK) {
        status = engine->backend->kv_reserve(engine->backend, t.kv, call->context + widest, &call->error);
        if (status == MIMO_OK)
            status = time_rounds(&t, call, widest);
        engine->backend->kv_close(engine->backend, t.kv);
    }
    mimo_free(t.logits);
    return status;
}

static mimo_status load(mimo_engine *engine, mimo_call *call)
{
    if (engine->loaded)
        return MIMO_OK;
    MIMO_TRY(mimo_budget_check_load(engine, &call->error));
    MIMO_TRY(engine->backend->load(engine->backend, engine->files, &call->progress, &call->cancel, &call->error));
    mimo_engine_time_steps(engine);
    for (size_t i = 0; i < engine->file_count; i++)
        mimo_file_close(&engine->files[i]);
    pthread_mutex_lock(&engine->mutex);
    engine->loaded = true;
    pthread_mutex_unlock(&engine->mutex);
    return MIMO_OK;
}

void mimo_engine_run_call(mimo_engine *engine, mimo_call *call)
{
    mimo_status status = MIMO_OK;
    if (call->kind == MIMO_CALL_LOAD) {
        status = load(engine, call);
    } else if (call->kind == MIMO_CALL_PROFILE) {
        engine->backend->read_profile(engine->backend, call->profile);
        engine->backend->set_profile(engine->backend, call->profile_on);
    } else if (!engine->loaded) {
        status = MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the engine's weights are not loaded");
    } else if (call->kind == MIMO_CALL_TIME_STEPS) {
        status = time_steps(engine, call);
    } else if (call->kind == MIMO_CALL_DRAFT) {
        status = mimo_engine_draft_call(engine, call);
    } else {
        status = forward(engine, call);
    }
    (void)status; /* its reader finds it in call->error */
}
