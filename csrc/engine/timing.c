#include "base/size.h"
#include "engine/state.h"

/* Widths in order of interest, as the time may not suffice for all of a slow model. */
static const uint16_t widths[] = {1, 8, 4, 2, 6, 3, 5, 7, 16, 12, 32, 24, 64};
static const double budget_seconds = 0.2;
enum { REPEATS = 3, LEAST_WIDTHS = 2 };

static double time_step(mimo_engine *engine, mimo_kv *kv, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        engine->token[i] = (uint32_t)(i * 7919 % engine->config.vocab); /* far apart: they want experts of their own */
        engine->position[i] = (uint32_t)i;
        engine->kv[i] = kv;
        engine->output[i] = (uint16_t)i;
    }
    const mimo_step step = {
        .rows = rows,
        .token = engine->token,
        .position = engine->position,
        .kv = engine->kv,
        .outputs = rows,
        .output = engine->output,
        .logits = engine->logits,
        .logits_stride = engine->logits_stride,
    };
    const double begin = mimo_clock_seconds();
    engine->backend->step(engine->backend, &step);
    return mimo_clock_seconds() - begin;
}

static void measure(mimo_engine *engine, mimo_kv *kv, double *seconds, size_t most)
{
    const double begin = mimo_clock_seconds();
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int repeat = 0; repeat <= REPEATS && widths[i] <= most; repeat++) {
            double *least = &seconds[widths[i]];
            const bool late = mimo_clock_seconds() - begin > budget_seconds;
            if (late && (i >= LEAST_WIDTHS || *least > 0.0))
                break;
            const double took = time_step(engine, kv, widths[i]);
            if (repeat > 0 || late) /* the first brings weights and code into the caches */
                *least = *least == 0.0 || took < *least ? took : *least;
        }
}

void mimo_engine_time_steps(mimo_engine *engine)
{
    double seconds[MIMO_TIMED_ROWS + 1] = {0};
    const size_t most = mimo_min(MIMO_STEP_OUTPUTS, engine->options.max_context);
    mimo_kv *kv;
    mimo_error error;
    /* Without memory for it, widths are judged without times. */
    if (engine->backend->kv_open(engine->backend, &kv, &error) == MIMO_OK) {
        if (engine->backend->kv_reserve(engine->backend, kv, most, &error) == MIMO_OK)
            measure(engine, kv, seconds, most);
        engine->backend->kv_close(engine->backend, kv);
    }
    mimo_times_init(&engine->times, seconds);
}
