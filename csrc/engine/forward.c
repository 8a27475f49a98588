/* Calls: loading, profiling, and a whole sequence through the model for its logits or hidden states. */
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

static mimo_status forward(mimo_engine *engine, mimo_call *call)
{
    mimo_kv *kv;
    MIMO_TRY(mimo_budget_claim(engine, call->count, &call->error));
    MIMO_TRY(engine->backend->kv_open(engine->backend, &kv, &call->error));
    mimo_status status = engine->backend->kv_reserve(engine->backend, kv, call->count, &call->error);
    if (status == MIMO_OK)
        status = forward_rows(engine, call, kv);
    engine->backend->kv_close(engine->backend, kv);
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
    engine->loaded_memory = engine->backend->memory;
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
        engine->backend->read_profile(engine->backend, call->profile, call->draft_profile);
        engine->backend->set_profile(engine->backend, call->profile_on);
    } else if (!engine->loaded) {
        status = MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the engine's weights are not loaded");
    } else if (call->kind == MIMO_CALL_TIME_STEPS) {
        status = mimo_engine_time_call(engine, call);
    } else if (call->kind == MIMO_CALL_DRAFT) {
        status = mimo_engine_draft_call(engine, call);
    } else {
        status = forward(engine, call);
    }
    (void)status; /* its reader finds it in call->error */
}
