/* The time of steps by their rows: measured once for the choice of widths, or for whoever asks. */
#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

typedef struct timing {
    mimo_engine *engine;
    mimo_kv *kv;
    float *logits; /* [widest, engine->logits_stride] */
    uint32_t salt; /* tokens made up so far */
} timing;

/* Runs one step of tokens spread over the vocabulary, so that experts are drawn as if at random; its seconds. */
static double run_made_step(timing *t, size_t position, size_t rows, bool logits)
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
    const double begin = mimo_clock_seconds();
    engine->backend->step(engine->backend, &step);
    return mimo_clock_seconds() - begin;
}

/* A cache with room for `positions`, to be closed. */
static mimo_status open_cache(timing *t, size_t positions, mimo_error *err)
{
    mimo_backend *backend = t->engine->backend;
    MIMO_TRY(backend->kv_open(backend, &t->kv, err));
    const mimo_status status = backend->kv_reserve(backend, t->kv, positions, err);
    if (status != MIMO_OK)
        backend->kv_close(backend, t->kv);
    return status;
}

/* ---- once, after loading ---- */

/* Widths in order of interest, as the time may not suffice for all of a slow model. */
static const uint16_t widths[] = {1, 8, 4, 2, 6, 3, 5, 7, 16, 12, 32, 24, 64};
static const double budget_seconds = 0.2;
enum { REPEATS = 3, LEAST_WIDTHS = 2 };

static void measure(timing *t, double *seconds, size_t most)
{
    const double begin = mimo_clock_seconds();
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int repeat = 0; repeat <= REPEATS && widths[i] <= most; repeat++) {
            double *least = &seconds[widths[i]];
            const bool late = mimo_clock_seconds() - begin > budget_seconds;
            if (late && (i >= LEAST_WIDTHS || *least > 0.0))
                break;
            const double took = run_made_step(t, 0, widths[i], true);
            if (repeat > 0 || late) /* the first brings weights and code into the caches */
                *least = *least == 0.0 || took < *least ? took : *least;
        }
}

void mimo_engine_time_steps(mimo_engine *engine)
{
    double seconds[MIMO_TIMED_ROWS + 1] = {0};
    const size_t most = mimo_min(MIMO_STEP_OUTPUTS, engine->options.max_context);
    timing t = {.engine = engine};
    mimo_error error;
    /* Without memory for it, widths are judged without times. Logits of its own: the engine's take memory as rows are
     * written, and answers seldom have so many. */
    if (mimo_alloc_array(&t.logits, most * engine->logits_stride, sizeof(float), "logits", &error) == MIMO_OK &&
        open_cache(&t, most, &error) == MIMO_OK) {
        measure(&t, seconds, most);
        engine->backend->kv_close(engine->backend, t.kv);
    }
    mimo_free(t.logits);
    mimo_times_init(&engine->times, seconds);
}

/* ---- on demand ---- */

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
            call->step_ns[i] =
                (int64_t)(1e9 * run_made_step(t, call->context, call->widths[i % call->width_count], true));
        atomic_fetch_add(&call->progress, 1);
    }
    if (call->profile != NULL) {
        mimo_profile none;
        backend->read_profile(backend, call->profile, &none);
        backend->set_profile(backend, false);
    }
    return status;
}

mimo_status mimo_engine_time_call(mimo_engine *engine, mimo_call *call)
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
    MIMO_TRY(mimo_budget_claim(engine, call->context + widest, &call->error));
    MIMO_TRY(mimo_alloc_array(&t.logits, widest * engine->logits_stride, sizeof(float), "logits", &call->error));
    mimo_status status = open_cache(&t, call->context + widest, &call->error);
    if (status == MIMO_OK) {
        status = time_rounds(&t, call, widest);
        engine->backend->kv_close(engine->backend, t.kv);
    }
    mimo_free(t.logits);
    return status;
}
