/* The drafter's context: taps of tokens that stand become its keys and values. Those of prompts do at once; those of an
 * answer wait until the drafter is asked or they are many, because its weights are read once for all of them. What
 * still waits when a job ends is lost, and computed again by the job that takes over its cache (mimo_draft_reach). */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

static size_t taps_of(const mimo_engine *engine)
{
    return engine->draft->config.model.taps;
}

mimo_status mimo_context_open(mimo_engine *engine, mimo_error *err)
{
    const size_t row_bytes = engine->config.hidden * sizeof(float), M = taps_of(engine);
    MIMO_TRY(mimo_alloc_array(&engine->drafting.hidden, M * MIMO_STEP_ROWS, row_bytes, "taps of a step", err));
    engine->drafting.waits = 2 * (size_t)engine->draft->config.model.block;
    return mimo_alloc_array(&engine->drafting.waiting, M * MIMO_SLOTS_JOBS * engine->drafting.waits, row_bytes,
                            "taps that wait for the drafter", err);
}

void mimo_context_begin(mimo_engine *engine, mimo_draft_step *step)
{
    mimo_drafting *d = &engine->drafting;
    *step = (mimo_draft_step){
        .features = d->waiting,
        .features_stride = MIMO_SLOTS_JOBS * d->waits * engine->config.hidden,
        .context_row = d->context_row,
        .context_position = d->context_position,
        .context_kv = d->context_kv,
    };
}

static void run(mimo_engine *engine, mimo_draft_step *step)
{
    if (step->contexts > 0)
        engine->backend->draft(engine->backend, step);
    step->contexts = 0;
}

static void add(mimo_engine *engine, mimo_draft_step *step, mimo_kv *kv, size_t row, size_t position)
{
    mimo_drafting *d = &engine->drafting;
    d->context_row[step->contexts] = (uint16_t)row;
    d->context_position[step->contexts] = (uint32_t)position;
    d->context_kv[step->contexts++] = kv;
}

void mimo_context_add_waiting(mimo_engine *engine, mimo_draft_step *step, mimo_job *job)
{
    mimo_speculation *spec = &job->spec;
    if (step->contexts + spec->waiting > MIMO_STEP_ROWS)
        run(engine, step);
    for (size_t i = 0; i < spec->waiting; i++)
        add(engine, step, job->kv, spec->place * engine->drafting.waits + i, spec->waiting_from + i);
    spec->waiting = 0;
}

void mimo_context_flush(mimo_engine *engine, mimo_job *job)
{
    mimo_draft_step step;
    mimo_context_begin(engine, &step);
    mimo_context_add_waiting(engine, &step, job);
    run(engine, &step);
}

/* All jobs' at once, as soon as one has no room for another round. */
static void feed_waiting(mimo_engine *engine)
{
    mimo_draft_step step;
    mimo_context_begin(engine, &step);
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] != NULL)
            mimo_context_add_waiting(engine, &step, engine->slot[i]);
    run(engine, &step);
}

/* The taps of the step's rows of a prompt. */
static void feed_prompts(mimo_engine *engine)
{
    mimo_draft_step step;
    mimo_context_begin(engine, &step);
    step.features = engine->drafting.hidden;
    step.features_stride = (size_t)MIMO_STEP_ROWS * engine->config.hidden;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        const mimo_job *job = engine->slot[i];
        if (job == NULL || !job->ready || !job->spec.drafter || job->prefilled > 0)
            continue;
        for (size_t row = job->first; row < job->first + job->kept; row++)
            add(engine, &step, job->kv, row, engine->position[row]);
    }
    run(engine, &step);
}

/* Sets the taps of an answer's rows that stand aside. */
static void keep_answers(mimo_engine *engine)
{
    const size_t H = engine->config.hidden;
    mimo_drafting *d = &engine->drafting;
    bool full = false;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL || !job->ready || !job->spec.drafter || job->prefilled == 0)
            continue;
        mimo_speculation *spec = &job->spec;
        if (spec->waiting == 0)
            spec->waiting_from = engine->position[job->first];
        spec->place = i;
        for (size_t m = 0; m < taps_of(engine); m++)
            memcpy(d->waiting + ((m * MIMO_SLOTS_JOBS + i) * d->waits + spec->waiting) * H,
                   d->hidden + (m * MIMO_STEP_ROWS + job->first) * H, job->kept * H * sizeof(float));
        spec->waiting += job->kept;
        full |= spec->waiting + engine->draft->config.model.block > d->waits;
    }
    if (full)
        feed_waiting(engine);
}

void mimo_context_take(mimo_engine *engine)
{
    feed_prompts(engine);
    keep_answers(engine);
}
