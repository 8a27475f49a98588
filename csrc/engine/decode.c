/* Rounds of one job by a backend that decodes by itself. What such a backend does not do (penalties,
 * log-probabilities, drafts that are looked up alone, scripts, rejection sampling, several jobs at once) goes through
 * rounds of the engine's own, whose tokens are the same. */
#include "base/size.h"
#include "engine/state.h"

typedef struct decoding {
    mimo_engine *engine;
    mimo_job *job;
    mimo_decoded token[MIMO_BLOCK_ROWS]; /* of the round under way */
    size_t tokens;
    double begun; /* clock seconds of the round */
    mimo_finish finish;
} decoding;

/* The job that alone takes part in this round and decodes; NULL: there is none. */
static mimo_job *only_job(const mimo_engine *engine)
{
    mimo_job *only = NULL;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL || !job->ready)
            continue;
        if (only != NULL || !mimo_job_decodes(job))
            return NULL;
        only = job;
    }
    return only;
}

static bool is_plain(const mimo_sampling *s)
{
    return s->repetition_penalty == 1.0f && s->logprobs == UINT32_MAX;
}

static bool drafts_alike(const mimo_job *job)
{
    const mimo_speculation *spec = &job->spec;
    const bool greedy = job->sampling.temperature == 0.0f;
    return !spec->on || (spec->drafter && spec->laws == NULL && (greedy || !spec->argmax));
}

static void record(decoding *d, const mimo_decoded *last)
{
    mimo_speculation *spec = &d->job->spec;
    const double now = mimo_clock_seconds();
    if (spec->on)
        spec->rounds[spec->round_count++] = (mimo_round){.width = last->rows,
                                                         .accepted = last->accepted,
                                                         .lookup = (uint8_t)(last->looked_up ? last->rows - 1 : 0),
                                                         .emitted = (uint8_t)d->tokens,
                                                         .verify_seconds = (float)(now - d->begun)};
    d->begun = now;
    d->job->steps++;
}

/* Tokens of a round reach the reader together. */
static bool take(void *context, const mimo_decoded *token)
{
    decoding *d = context;
    d->token[d->tokens++] = *token;
    if (!token->last)
        return true;
    pthread_mutex_lock(&d->engine->mutex);
    for (size_t i = 0; i < d->tokens; i++) {
        const mimo_choice choice = {.token = d->token[i].token};
        mimo_job_push(d->job, &choice, token->accepted, token->rows - (size_t)1);
        if (mimo_job_ends_with(d->job, choice.token))
            d->finish = MIMO_FINISH_EOS;
        else if (d->job->known == d->job->limit)
            d->finish = MIMO_FINISH_LENGTH;
    }
    record(d, token);
    d->tokens = 0;
    const bool goes_on = !mimo_driver_is_wanted(d->engine);
    pthread_mutex_unlock(&d->engine->mutex);
    return goes_on;
}

static void finish(decoding *d, bool failed,
                   void (*end)(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error))
{
    mimo_job *job = d->job;
    mimo_error error = {0};
    job->computed = job->known - 1;
    if (failed && d->finish == MIMO_RUNNING) {
        (void)MIMO_FAIL(&error, MIMO_ERR_ENGINE, "logits of position %zu: expected numbers, the largest finite",
                        job->known);
        d->finish = MIMO_FINISH_ERROR;
    }
    if (d->finish == MIMO_RUNNING)
        return;
    pthread_mutex_lock(&d->engine->mutex);
    end(d->engine, job, d->finish, &error);
    pthread_mutex_unlock(&d->engine->mutex);
}

bool mimo_decode_run(mimo_engine *engine,
                     void (*end)(mimo_engine *engine, mimo_job *job, mimo_finish finish, const mimo_error *error))
{
    mimo_backend *backend = engine->backend;
    mimo_job *job = backend->decode != NULL ? only_job(engine) : NULL;
    if (job == NULL || !is_plain(&job->sampling) || !drafts_alike(job))
        return false;
    decoding d = {.engine = engine, .job = job};
    mimo_decode call = {.kv = job->kv,
                        .tokens = job->tokens,
                        .known = job->known,
                        .limit = mimo_min(job->limit, job->known + job->room),
                        .stop = job->eos,
                        .stops = job->eos_count,
                        .temperature = job->sampling.temperature,
                        .top_p = job->sampling.top_p,
                        .min_p = job->sampling.min_p,
                        .top_k = job->sampling.top_k,
                        .stream = job->sampling.stream,
                        .seed = job->sampling.seed,
                        .draft = job->spec.on,
                        .lookup = job->spec.lookup.place != NULL,
                        .width = job->spec.width,
                        .take = take,
                        .context = &d};
    if (!backend->can_decode(backend, &call))
        return false;
    if (call.draft)
        mimo_context_flush(engine, job);
    d.begun = mimo_clock_seconds();
    backend->decode(backend, &call);
    if (mimo_engine_check_backend(engine, NULL) == MIMO_OK) /* else the driver ends the jobs */
        finish(&d, call.failed, end);
    return true;
}
