/* One round: drafts, a step of all jobs' rows, the choice of tokens, and their delivery. Allocates nothing. */
#include "base/size.h"
#include "engine/state.h"

void mimo_round_select(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL)
            continue;
        job->room = job->ring_slots - job->ring_count;
        job->ready = job->room > 0 && job->ahead == NULL;
        job->rows = job->kept = 0;
    }
}

/* ---- the step ---- */

/* Adds rows to the step: known tokens from the first that is not computed, then drafts. */
static void add_rows(mimo_engine *engine, mimo_step *step, mimo_job *job, size_t rows)
{
    const size_t known = mimo_min(job->known - job->computed, rows);
    job->first = step->rows;
    job->rows = rows;
    for (size_t i = 0; i < rows; i++, step->rows++) {
        engine->token[step->rows] = i < known ? job->tokens[job->computed + i] : job->spec.used->token[i - known];
        engine->position[step->rows] = (uint32_t)(job->computed + i);
        engine->kv[step->rows] = job->kv;
    }
    if (job->started == 0)
        job->started = mimo_clock_seconds();
}

/* The job gets tokens, by the logits of its last `outputs` rows. */
static void add_answer(mimo_engine *engine, mimo_step *step, mimo_job *job, size_t outputs)
{
    engine->first_output[engine->answers] = step->outputs;
    engine->answering[engine->answers++] = job;
    for (size_t row = step->rows - outputs; row < step->rows; row++)
        engine->output[step->outputs++] = (uint16_t)row;
}

/* Rows of all jobs that take part: first those that decode, then prompts with the rows that are left. Returns how many
 * are of prompts. */
static size_t build_step(mimo_engine *engine, mimo_step *step)
{
    *step = (mimo_step){.token = engine->token,
                        .position = engine->position,
                        .kv = engine->kv,
                        .output = engine->output,
                        .logits = engine->logits,
                        .logits_stride = engine->logits_stride};
    engine->answers = 0;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job != NULL && job->ready && mimo_job_decodes(job)) {
            add_rows(engine, step, job, job->rows);
            add_answer(engine, step, job, job->rows);
        }
    }
    const size_t decoding = step->rows;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL || !job->ready || mimo_job_decodes(job))
            continue;
        const size_t rows = mimo_min(job->known - job->computed, MIMO_STEP_ROWS - step->rows);
        if (rows == 0)
            continue;
        add_rows(engine, step, job, rows);
        job->kept = rows;
        job->computed += rows;
        if (job->computed == job->known)
            add_answer(engine, step, job, 1);
    }
    return step->rows - decoding;
}

/* Asks for the drafter's taps if any job of the step will use them. */
static void add_taps(mimo_engine *engine, mimo_step *step)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        const mimo_job *job = engine->slot[i];
        if (job == NULL || job->rows == 0 || !job->spec.drafter)
            continue;
        step->taps = engine->draft->config.model.taps;
        step->tap = engine->draft->config.tap;
        step->hidden = engine->drafting.hidden;
        step->hidden_stride = (size_t)MIMO_STEP_ROWS * engine->config.hidden;
    }
}

/* ---- tokens ---- */

/* Drafts among the rows that the i-th answer comes from. */
static size_t drafts_of(const mimo_job *job)
{
    return job->prefilled > 0 ? job->rows - 1 : 0;
}

static void verify_answer(void *context, size_t i, size_t worker)
{
    mimo_engine *engine = context;
    mimo_job *job = engine->answering[i];
    const size_t V = engine->config.vocab, drafts = drafts_of(job);
    float *drawn_from[MIMO_BLOCK_ROWS];
    const bool is_drawn = job->spec.used == &job->spec.drafted && job->spec.drawn_from != NULL;
    for (size_t k = 0; k < drafts; k++)
        drawn_from[k] = is_drawn ? job->spec.drawn_from + k * V : NULL;
    const mimo_block block = {
        .sampling = &job->sampling,
        .position = job->known,
        .rows = 1 + drafts,
        .V = V,
        .draft = drafts > 0 ? job->spec.used->token : NULL,
        .logits = engine->logits + engine->first_output[i] * engine->logits_stride,
        .stride = engine->logits_stride,
        .drawn_from = drawn_from,
        .p = job->spec.laws,
        .q = job->spec.laws != NULL ? job->spec.laws + V : NULL,
    };
    void *scratch = engine->sample_scratch + worker * engine->sample_scratch_bytes;
    mimo_error *err = &engine->verdict_error[i];
    err->code = MIMO_OK;
    /* Its status is in verdict_error, which the driver reads. */
    if (job->spec.laws != NULL)
        (void)!mimo_verify_rejection(&engine->verdict[i], &block, &job->seen, scratch, err);
    else
        (void)!mimo_verify_coupled(&engine->verdict[i], &block, &job->seen, scratch, err);
    if (job->prefilled > 0)
        job->kept = 1 + engine->verdict[i].accepted;
}

bool mimo_job_ends_with(const mimo_job *job, uint32_t token)
{
    for (size_t i = 0; i < job->eos_count; i++)
        if (job->eos[i] == token)
            return true;
    return false;
}

/* Hands out tokens in order, up to one that ends the answer. Returns how it ended, or MIMO_RUNNING. */
static mimo_finish emit(mimo_job *job, const mimo_verdict *verdict, size_t drafts, size_t *emitted)
{
    for (*emitted = 0; *emitted < verdict->chosen;) {
        const mimo_choice *choice = &verdict->choice[(*emitted)++];
        mimo_job_push(job, choice, verdict->accepted, drafts);
        if (mimo_job_ends_with(job, choice->token))
            return MIMO_FINISH_EOS;
        if (job->known == job->limit)
            return MIMO_FINISH_LENGTH;
    }
    return MIMO_RUNNING;
}

static void keep_record(mimo_engine *engine, mimo_job *job, const mimo_verdict *verdict, size_t drafts, size_t emitted)
{
    mimo_speculation *spec = &job->spec;
    if (!spec->on)
        return;
    spec->rounds[spec->round_count++] = (mimo_round){
        .width = (uint8_t)(1 + drafts),
        .accepted = (uint8_t)verdict->accepted,
        .emitted = (uint8_t)emitted,
        .lookup = (uint8_t)(spec->used == &spec->looked_up ? drafts : 0),
        .draft_seconds = (float)engine->draft_seconds,
        .verify_seconds = (float)engine->verify_seconds,
    };
    uint32_t token[MIMO_BLOCK_ROWS] = {0};
    for (size_t k = 0; k < verdict->chosen; k++)
        token[k] = verdict->choice[k].token;
    mimo_draft_learn(engine, job, token, verdict->chosen);
}

/* Hands out the i-th answer's tokens. Returns how the job ended, or MIMO_RUNNING. The mutex is held. */
static mimo_finish deliver(mimo_engine *engine, size_t i)
{
    mimo_job *job = engine->answering[i];
    const mimo_verdict *verdict = &engine->verdict[i];
    const size_t drafts = drafts_of(job), known = job->known;
    size_t emitted;
    const mimo_finish finish = emit(job, verdict, drafts, &emitted);
    if (job->prefilled > 0) {
        job->computed = mimo_min(job->computed + job->kept, job->known);
        if (emitted > 0)
            keep_record(engine, job, verdict, drafts, emitted);
    } else {
        job->prefilled = mimo_clock_seconds();
    }
    job->steps += job->known > known;
    return finish == MIMO_RUNNING && engine->verdict_error[i].code != MIMO_OK ? MIMO_FINISH_ERROR : finish;
}

void mimo_round_run(mimo_engine *engine,
                    void (*end)(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error))
{
    mimo_draft_round(engine);
    mimo_step step;
    const size_t prompt_rows = build_step(engine, &step);
    if (step.rows == 0)
        return;
    add_taps(engine, &step);
    const double begin = mimo_clock_seconds();
    engine->backend->step(engine->backend, &step);
    if (mimo_engine_check_backend(engine, NULL) != MIMO_OK)
        return; /* the driver ends the jobs */
    if (prompt_rows == 0)
        mimo_times_observe(&engine->times, step.rows, mimo_clock_seconds() - begin);
    if (engine->answers > 0)
        engine->backend->parallel(engine->backend, verify_answer, engine, engine->answers);
    engine->verify_seconds = mimo_clock_seconds() - begin;
    if (step.taps > 0)
        mimo_context_take(engine);
    mimo_follow_resolve(engine);
    pthread_mutex_lock(&engine->mutex);
    for (size_t i = 0; i < engine->answers; i++) {
        const mimo_finish finish = deliver(engine, i);
        if (finish != MIMO_RUNNING)
            end(engine, engine->answering[i], finish, &engine->verdict_error[i]);
    }
    pthread_mutex_unlock(&engine->mutex);
}
