/* The decode loop. The driver thread takes calls and jobs, builds steps, runs them, samples, and hands the tokens out;
 * between admission and the end of a job it allocates nothing. */
#include "base/size.h"
#include "engine/state.h"

static bool has_room(const mimo_job *job)
{
    return job->ring_count < job->ring_slots;
}

/* The first waiting job can enter a slot if its cache fits, or leave. */
static bool can_admit(const mimo_engine *engine)
{
    const mimo_job *job = engine->first_waiting;
    return job != NULL && (atomic_load(&job->cancel) || mimo_budget_has_room(engine, job->limit));
}

static bool anything_to_do(const mimo_engine *engine)
{
    if (engine->closing || engine->first_call != NULL)
        return true;
    bool free_slot = false;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        const mimo_job *job = engine->slot[i];
        free_slot |= job == NULL;
        if (job != NULL && ((has_room(job) && job->ahead == NULL) || atomic_load(&job->cancel)))
            return true;
    }
    return free_slot && can_admit(engine);
}

static mimo_job *pop_waiting(mimo_engine *engine)
{
    mimo_job *job = engine->first_waiting;
    engine->first_waiting = job->next;
    if (engine->first_waiting == NULL)
        engine->last_waiting = &engine->first_waiting;
    return job;
}

static void end_in_slot(mimo_engine *engine, size_t i, mimo_finish finish, const mimo_error *error)
{
    mimo_job *job = engine->slot[i];
    engine->slot[i] = NULL;
    mimo_follow_forget(engine, job);
    mimo_job_end(job, finish, error);
}

/* Fills free slots with waiting jobs, in the order of submission, as far as their caches fit, and ends cancelled jobs.
 * The mutex is held. */
static void admit_and_end(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        if (engine->slot[i] != NULL && atomic_load(&engine->slot[i]->cancel))
            end_in_slot(engine, i, MIMO_FINISH_CANCELLED, NULL);
        while (engine->slot[i] == NULL && can_admit(engine)) {
            mimo_job *job = pop_waiting(engine);
            mimo_error error = {0};
            if (atomic_load(&job->cancel))
                mimo_job_end(job, MIMO_FINISH_CANCELLED, NULL);
            else if (mimo_job_open_cache(job, &error) != MIMO_OK)
                mimo_job_end(job, MIMO_FINISH_ERROR, &error);
            else
                mimo_follow_begin(engine, engine->slot[i] = job);
        }
    }
}

static void cancel_all(mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] != NULL)
            end_in_slot(engine, i, MIMO_FINISH_CANCELLED, NULL);
    while (engine->first_waiting != NULL)
        mimo_job_end(pop_waiting(engine), MIMO_FINISH_CANCELLED, NULL);
}

/* ---- one step ---- */

/* Adds up to `most` rows of a job to the step. */
static void add_rows(mimo_engine *engine, mimo_step *step, mimo_job *job, size_t most)
{
    const size_t n = mimo_min(job->known - job->computed, most);
    for (size_t i = 0; i < n; i++, step->rows++) {
        engine->token[step->rows] = job->tokens[job->computed + i];
        engine->position[step->rows] = (uint32_t)(job->computed + i);
        engine->kv[step->rows] = job->kv;
    }
    job->computed += n;
    if (n > 0 && job->computed == job->known) {
        engine->output[step->outputs] = (uint16_t)(step->rows - 1);
        engine->output_job[step->outputs++] = job;
    }
    if (job->started == 0)
        job->started = mimo_clock_seconds();
}

/* Rows of all jobs that can go on: first those that decode, one row each, then prompts with the rows that are left. The
 * mutex is held. */
static void build_step(mimo_engine *engine, mimo_step *step)
{
    *step = (mimo_step){.token = engine->token,
                        .position = engine->position,
                        .kv = engine->kv,
                        .output = engine->output,
                        .logits = engine->logits,
                        .logits_stride = engine->logits_stride};
    for (int prompts = 0; prompts < 2; prompts++)
        for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
            mimo_job *job = engine->slot[i];
            const bool is_prompt = job != NULL && job->known - job->computed > 1;
            if (job != NULL && job->ahead == NULL && has_room(job) && is_prompt == prompts &&
                job->computed < job->known)
                add_rows(engine, step, job, MIMO_STEP_ROWS - step->rows);
        }
}

static void sample_output(void *context, size_t i, size_t worker)
{
    mimo_engine *engine = context;
    mimo_job *job = engine->output_job[i];
    engine->choice_error[i].code = MIMO_OK;
    /* Its status is in choice_error, which the driver reads. */
    (void)!mimo_sample(&engine->choice[i], engine->logits + i * engine->logits_stride, engine->config.vocab,
                       &job->sampling, job->known, job->seen, job->seen_count,
                       engine->sample_scratch + worker * engine->sample_scratch_bytes, &engine->choice_error[i]);
}

static bool is_eos(const mimo_job *job, uint32_t token)
{
    for (size_t i = 0; i < job->eos_count; i++)
        if (job->eos[i] == token)
            return true;
    return false;
}

/* Hands out the i-th output's token. Returns how the job ended, or MIMO_RUNNING. The mutex is held. */
static mimo_finish deliver(mimo_engine *engine, size_t i)
{
    mimo_job *job = engine->output_job[i];
    if (job->prefilled == 0)
        job->prefilled = mimo_clock_seconds();
    if (engine->choice_error[i].code != MIMO_OK)
        return MIMO_FINISH_ERROR;
    mimo_job_push(job, &engine->choice[i]);
    job->steps++;
    if (is_eos(job, engine->choice[i].token))
        return MIMO_FINISH_EOS;
    return job->known == job->limit ? MIMO_FINISH_LENGTH : MIMO_RUNNING;
}

static void run_step(mimo_engine *engine, const mimo_step *step)
{
    engine->backend->step(engine->backend, step);
    mimo_follow_resolve(engine);
    if (step->outputs > 0)
        engine->backend->parallel(engine->backend, sample_output, engine, step->outputs);
    pthread_mutex_lock(&engine->mutex);
    for (size_t i = 0; i < step->outputs; i++) {
        const mimo_finish finish = deliver(engine, i);
        for (size_t slot = 0; finish != MIMO_RUNNING && slot < MIMO_SLOTS_JOBS; slot++)
            if (engine->slot[slot] == engine->output_job[i])
                end_in_slot(engine, slot, finish, &engine->choice_error[i]);
    }
    pthread_mutex_unlock(&engine->mutex);
}

static void end_call(mimo_engine *engine, mimo_call *call)
{
    engine->running_call = NULL;
    call->done = true;
    pthread_cond_broadcast(&engine->call_done);
}

static mimo_call *pop_call(mimo_engine *engine)
{
    mimo_call *call = engine->first_call;
    if (call == NULL)
        return NULL;
    engine->first_call = call->next;
    if (engine->first_call == NULL)
        engine->last_call = &engine->first_call;
    return call;
}

void *mimo_driver_main(void *argument)
{
    mimo_engine *engine = argument;
    pthread_mutex_lock(&engine->mutex);
    for (;;) {
        while (!anything_to_do(engine))
            pthread_cond_wait(&engine->work, &engine->mutex);
        if (engine->closing)
            break;
        mimo_call *call = pop_call(engine);
        admit_and_end(engine);
        engine->running_call = call;
        mimo_follow_resolve(engine); /* for a job that follows one that is far ahead already */
        mimo_step step;
        if (call == NULL)
            build_step(engine, &step);
        pthread_mutex_unlock(&engine->mutex);
        if (call != NULL)
            mimo_engine_run_call(engine, call);
        else if (step.rows > 0)
            run_step(engine, &step);
        pthread_mutex_lock(&engine->mutex);
        if (call != NULL)
            end_call(engine, call);
    }
    cancel_all(engine);
    for (mimo_call *call; (call = pop_call(engine)) != NULL; end_call(engine, call))
        (void)MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "the engine was closed");
    pthread_mutex_unlock(&engine->mutex);
    return NULL;
}
