/* The call that asks a drafter what it would draft behind some tokens of a known sequence. */
#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

typedef struct run {
    mimo_engine *engine;
    mimo_call *call;
    mimo_kv *kv;
    float *hidden; /* [M, MIMO_STEP_ROWS, H] taps of the rows of one step */
    size_t first;  /* token of its row 0 */
    size_t fed;    /* tokens whose context the drafter has */
} run;

static const mimo_config *model(const run *r)
{
    return &r->engine->draft->config.model;
}

/* Tokens [r->first, r->first + rows) through the target, for their taps. */
static void tap(const run *r, size_t rows)
{
    mimo_engine *engine = r->engine;
    for (size_t i = 0; i < rows; i++) {
        engine->token[i] = r->call->tokens[r->first + i];
        engine->position[i] = (uint32_t)(r->first + i);
        engine->kv[i] = r->kv;
    }
    const mimo_step step = {.rows = rows,
                            .token = engine->token,
                            .position = engine->position,
                            .kv = engine->kv,
                            .taps = model(r)->taps,
                            .tap = engine->draft->config.tap,
                            .hidden = r->hidden,
                            .hidden_stride = MIMO_STEP_ROWS * (size_t)engine->config.hidden};
    engine->backend->step(engine->backend, &step);
}

/* Gives the drafter its context up to token `end`. */
static void feed(run *r, size_t end)
{
    mimo_engine *engine = r->engine;
    uint16_t row[MIMO_STEP_ROWS];
    const size_t n = end - r->fed;
    for (size_t i = 0; i < n; i++) {
        row[i] = (uint16_t)(r->fed + i - r->first);
        engine->position[i] = (uint32_t)(r->fed + i);
        engine->kv[i] = r->kv;
    }
    const mimo_draft_step step = {.contexts = n,
                                  .features = r->hidden,
                                  .features_stride = MIMO_STEP_ROWS * (size_t)engine->config.hidden,
                                  .context_row = row,
                                  .context_position = engine->position,
                                  .context_kv = engine->kv};
    engine->backend->draft(engine->backend, &step);
    r->fed = end;
}

static uint32_t likeliest(const float *logits, uint32_t V)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < V; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void fill_block(const run *r, size_t i)
{
    mimo_engine *engine = r->engine;
    const uint32_t position = r->call->anchors[i], B = model(r)->block;
    const size_t stride = r->call->logits_stride;
    uint32_t token = r->call->tokens[position];
    float *logits = r->call->logits + i * (B - 1) * stride;
    const mimo_draft_step step = {.blocks = 1,
                                  .anchor = &token,
                                  .position = &position,
                                  .block_kv = &r->kv,
                                  .width = B,
                                  .slots = B - 1,
                                  .logits = logits,
                                  .logits_stride = stride};
    engine->backend->draft(engine->backend, &step);
    for (uint32_t k = 0; model(r)->markov_rank > 0 && k < B - 1; k++, logits += stride) {
        engine->backend->draft_bias(engine->backend, logits, token);
        token = mimo_draft_token(&engine->draft->config, likeliest(logits, model(r)->vocab));
    }
}

static mimo_status run_all(run *r)
{
    mimo_call *call = r->call;
    const size_t needed = call->anchor_count > 0 ? call->anchors[call->anchor_count - 1] : 0;
    size_t anchor = 0;
    for (size_t rows; anchor < call->anchor_count; r->first += rows) {
        if (atomic_load(&call->cancel))
            return MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the call was cancelled");
        rows = mimo_min(call->rows, needed - r->first);
        if (rows > 0)
            tap(r, rows);
        for (; anchor < call->anchor_count && call->anchors[anchor] <= r->first + rows; anchor++) {
            feed(r, call->anchors[anchor]);
            fill_block(r, anchor);
        }
        feed(r, r->first + rows);
        atomic_fetch_add(&call->progress, rows);
    }
    return MIMO_OK;
}

mimo_status mimo_engine_draft_call(mimo_engine *engine, mimo_call *call)
{
    run r = {.engine = engine, .call = call};
    MIMO_TRY(mimo_budget_claim(engine, call->count, &call->error));
    MIMO_TRY(engine->backend->kv_open(engine->backend, &r.kv, &call->error));
    mimo_status status = engine->backend->kv_reserve(engine->backend, r.kv, call->count, &call->error);
    if (status == MIMO_OK)
        status = mimo_alloc_array(&r.hidden, model(&r)->taps * (size_t)MIMO_STEP_ROWS,
                                  engine->config.hidden * sizeof(float), "taps of a step", &call->error);
    if (status == MIMO_OK)
        status = run_all(&r);
    mimo_free(r.hidden);
    engine->backend->kv_close(engine->backend, r.kv);
    return status;
}
