/* The driver thread: it takes calls and jobs and runs round after round; between admission and the end of a job it
 * allocates nothing. */
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

bool mimo_driver_is_wanted(const mimo_engine *engine)
{
    if (engine->closing || engine->first_call != NULL)
        return true;
    bool free_slot = false;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        const mimo_job *job = engine->slot[i];
        free_slot |= job == NULL;
        if (job != NULL && atomic_load(&job->cancel))
            return true;
    }
    return free_slot && can_admit(engine);
}

static bool anything_to_do(const mimo_engine *engine)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        const mimo_job *job = engine->slot[i];
        if (job != NULL && has_room(job) && job->ahead == NULL)
            return true;
    }
    return mimo_driver_is_wanted(engine);
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

static void end_running(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] == job)
            end_in_slot(engine, i, finish, error);
}

static void end_all(mimo_engine *engine, mimo_finish finish, const mimo_error *error)
{
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++)
        if (engine->slot[i] != NULL)
            end_in_slot(engine, i, finish, error);
    while (engine->first_waiting != NULL)
        mimo_job_end(pop_waiting(engine), finish, error);
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

/* What the driver does next: a call, or a round. The mutex is held, but not while it is done. */
static void work(mimo_engine *engine)
{
    mimo_call *call = pop_call(engine);
    admit_and_end(engine);
    engine->running_call = call;
    mimo_follow_resolve(engine); /* for a job that follows one that is far ahead already */
    mimo_round_select(engine);
    pthread_mutex_unlock(&engine->mutex);
    if (call != NULL)
        mimo_engine_run_call(engine, call);
    else if (!mimo_decode_run(engine, end_running))
        mimo_round_run(engine, end_running);
    mimo_error lost = {0};
    (void)!mimo_engine_check_backend(engine, &lost);
    pthread_mutex_lock(&engine->mutex);
    if (lost.code != MIMO_OK) {
        engine->lost = lost;
        end_all(engine, MIMO_FINISH_ERROR, &lost);
        mimo_idle_drop_all(engine);
        if (call != NULL && call->error.code == MIMO_OK)
            call->error = lost;
    }
    if (call != NULL)
        end_call(engine, call);
}

/* Ends the calls that wait, with the reason. The mutex is held. */
static void refuse_calls(mimo_engine *engine)
{
    for (mimo_call *call; (call = pop_call(engine)) != NULL; end_call(engine, call))
        (void)MIMO_FAIL(&call->error, MIMO_ERR_ENGINE, "%s",
                        engine->lost.code != MIMO_OK ? engine->lost.text : "the engine was closed");
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
        if (engine->lost.code != MIMO_OK)
            refuse_calls(engine);
        else
            work(engine);
    }
    end_all(engine, MIMO_FINISH_CANCELLED, NULL);
    refuse_calls(engine);
    pthread_mutex_unlock(&engine->mutex);
    return NULL;
}
