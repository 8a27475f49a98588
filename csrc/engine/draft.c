/* Where a round's drafts come from, and how many of them are verified. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

_Static_assert((int)MIMO_BLOCK_ROWS >= (int)MIMO_MAX_BLOCK, "a round takes a drafter's block");
_Static_assert((int)MIMO_TIMED_ROWS >= (int)MIMO_STEP_ROWS, "every step has a time");

enum { DRAFT_ROWS = 64 }; /* most rows of a draft step: bounds its logits */

mimo_status mimo_drafting_open(mimo_engine *engine, mimo_error *err)
{
    if (engine->draft == NULL)
        return MIMO_OK;
    mimo_drafting *d = &engine->drafting;
    const mimo_draft_config *config = &engine->draft->config;
    const size_t B = config->model.block, V = engine->config.vocab;
    d->most_blocks = mimo_min(DRAFT_ROWS / B, MIMO_SLOTS_JOBS);
    d->logits_stride = mimo_round_up(config->model.vocab, 16);
    MIMO_TRY(mimo_context_open(engine, err));
    MIMO_TRY(
        mimo_alloc_array(&d->logits, d->most_blocks * (B - 1) * d->logits_stride, sizeof(float), "draft logits", err));
    if (config->target_id == NULL)
        return MIMO_OK;
    MIMO_TRY(mimo_alloc_array(&d->spread, engine->options.threads * V, sizeof(float), "draft logits", err));
    for (size_t i = 0; i < engine->options.threads * V; i++)
        d->spread[i] = -INFINITY; /* ids that the drafter has none of stay so */
    return MIMO_OK;
}

void mimo_drafting_close(mimo_engine *engine)
{
    mimo_free(engine->drafting.hidden);
    mimo_free(engine->drafting.waiting);
    mimo_free(engine->drafting.logits);
    mimo_free(engine->drafting.spread);
}

bool mimo_job_decodes(const mimo_job *job)
{
    return job->prefilled > 0 && job->known - job->computed == 1;
}

/* ---- sources ---- */

/* Guesses that were given with the job. Every round in turn as many are left right as the mean wants. */
static void follow_script(mimo_job *job, size_t most)
{
    mimo_speculation *spec = &job->spec;
    mimo_offer *offer = &spec->drafted;
    const size_t begin = job->known - job->stats.prompt_tokens;
    offer->count = 0;
    for (size_t i = begin; i < spec->script_count && offer->count < most; i++)
        offer->token[offer->count++] = spec->script[i];
    spec->used = offer;
    if (spec->script_right == 0.0f)
        return;
    const double each = (double)spec->script_right - 1.0, round = (double)spec->round_count;
    const size_t right = (size_t)(floor((round + 1.0) * each) - floor(round * each));
    if (right < offer->count)
        offer->token[right] = (offer->token[right] + 1) % job->engine->config.vocab;
}

static void look_up(mimo_job *job, size_t most)
{
    mimo_speculation *spec = &job->spec;
    mimo_offer *offer = &spec->looked_up;
    offer->origin = MIMO_FROM_LOOKUP;
    offer->count = 0;
    if (spec->lookup.place == NULL)
        return;
    spec->match = mimo_lookup_find(&spec->lookup, job->tokens, job->known);
    if (spec->match.length == 0)
        return;
    offer->count = most;
    mimo_match_continue(&spec->match, job->tokens, job->known, offer->token, most);
    memset(offer->grade, mimo_grade_of_match(spec->match.length, spec->lookup_was_right), sizeof offer->grade);
}

static bool is_sampled(const mimo_job *job)
{
    return job->sampling.temperature > 0.0f;
}

/* The draft's law is needed to verify it. */
static bool is_drawn(const mimo_job *job)
{
    return job->spec.drawn_from != NULL;
}

/* Chooses slot k (from 0) of the drafter's offer from its logits [V'], as the model's own token will be chosen. */
static bool choose_draft(mimo_engine *engine, mimo_job *job, size_t k, float *logits, size_t worker)
{
    const mimo_draft_config *config = &engine->draft->config;
    const size_t V = engine->config.vocab;
    mimo_offer *offer = &job->spec.drafted;
    void *scratch = engine->sample_scratch + worker * engine->sample_scratch_bytes;
    mimo_sampling sampling = job->sampling;
    sampling.logprobs = 0;
    if (job->spec.argmax)
        sampling.temperature = 0.0f;
    if (is_drawn(job))
        sampling.purpose = MIMO_NOISE_DRAFT;
    float *row = logits;
    size_t row_count = config->model.vocab;
    if (config->target_id != NULL && (job->seen.count > 0 || is_drawn(job))) {
        row = engine->drafting.spread + worker * V;
        row_count = V;
        for (size_t i = 0; i < config->model.vocab; i++)
            row[config->target_id[i]] = logits[i];
    } else {
        sampling.ids = config->target_id;
    }
    if (is_drawn(job))
        memcpy(job->spec.drawn_from + k * V, row, V * sizeof(float));
    mimo_choice choice;
    if (mimo_sample(&choice, row, row_count, &sampling, job->known + k, job->seen.ids, job->seen.count, scratch,
                    NULL) != MIMO_OK)
        return false;
    offer->token[k] = row == logits ? mimo_draft_token(config, choice.token) : choice.token;
    offer->grade[k] = mimo_grade_of_chance(exp((double)choice.logprob));
    return true;
}

/* How sure the drafter is of slot k, whatever is drawn there or before: what a width may depend on when the drafts are
 * random and their law is to count (a width that looked at them would favour some). */
static uint8_t blind_grade(mimo_engine *engine, float *logits, size_t worker)
{
    const mimo_sampling greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f};
    mimo_choice choice;
    if (mimo_sample(&choice, logits, engine->draft->config.model.vocab, &greedy, 0, NULL, 0,
                    engine->sample_scratch + worker * engine->sample_scratch_bytes, NULL) != MIMO_OK)
        return 0;
    return mimo_grade_of_chance(exp((double)choice.logprob));
}

static void choose_block(void *context, size_t b, size_t worker)
{
    mimo_engine *engine = context;
    mimo_drafting *d = &engine->drafting;
    mimo_job *job = d->job[b];
    mimo_offer *offer = &job->spec.drafted;
    const size_t seen = job->seen.count;
    uint32_t previous = d->anchor[b];
    for (offer->count = 0; offer->count < d->slots; offer->count++) {
        const size_t k = offer->count;
        float *logits = d->logits + (b * d->slots + k) * d->logits_stride;
        const uint8_t grade = is_drawn(job) ? blind_grade(engine, logits, worker) : 0;
        engine->backend->draft_bias(engine->backend, logits, previous);
        if (!choose_draft(engine, job, k, logits, worker))
            break; /* a drafter that gives no numbers costs speed only */
        if (is_drawn(job))
            offer->grade[k] = grade;
        previous = offer->token[k];
        mimo_seen_add(&job->seen, previous);
    }
    mimo_seen_cut(&job->seen, seen);
}

/* The drafter's offers to jobs [count]. */
static void draft(mimo_engine *engine, mimo_job *const *jobs, size_t count, size_t slots)
{
    const mimo_draft_config *config = &engine->draft->config;
    mimo_drafting *d = &engine->drafting;
    d->slots = slots;
    for (size_t first = 0; first < count; first += d->most_blocks) {
        const size_t blocks = mimo_min(d->most_blocks, count - first);
        mimo_draft_step step;
        mimo_context_begin(engine, &step);
        for (size_t b = 0; b < blocks; b++) {
            mimo_job *job = d->job[b] = jobs[first + b];
            mimo_context_add_waiting(engine, &step, job);
            d->anchor[b] = job->tokens[job->known - 1];
            d->position[b] = (uint32_t)(job->known - 1);
            d->kv[b] = job->kv;
        }
        step.blocks = blocks;
        step.anchor = d->anchor;
        step.position = d->position;
        step.block_kv = d->kv;
        step.width = slots < config->short_block ? config->short_block : config->model.block;
        step.slots = slots;
        step.logits = d->logits;
        step.logits_stride = d->logits_stride;
        engine->backend->draft(engine->backend, &step);
        engine->backend->parallel(engine->backend, choose_block, engine, blocks);
    }
}

/* ---- bids ---- */

static void fill_chances(const mimo_engine *engine, const mimo_job *job, const mimo_offer *offer, mimo_bid *bid)
{
    for (size_t k = 0; k < offer->count; k++)
        bid->chance[k] = mimo_trust_rate(&engine->trust, offer->origin, is_sampled(job), k, offer->grade[k]);
    bid->most = mimo_min(bid->most, offer->count + 1);
}

/* Judges a lookup anew, now that the drafter has spoken. Not where drafts are random and their law counts: there a
 * choice that depended on them would change it. */
static void compare(mimo_job *job)
{
    mimo_offer *a = &job->spec.looked_up;
    const mimo_offer *b = &job->spec.drafted;
    if (a->count == 0 || b->count == 0 || is_drawn(job))
        return;
    size_t agreed = 0;
    while (agreed < a->count && agreed < b->count && a->token[agreed] == b->token[agreed])
        agreed++;
    a->origin = MIMO_FROM_BESIDE;
    memset(a->grade, mimo_grade_beside(job->spec.match.length, agreed), sizeof a->grade);
}

/* The better of the offers, as a bid. */
static void make_bid(const mimo_engine *engine, mimo_job *job, mimo_bid *bid)
{
    mimo_speculation *spec = &job->spec;
    if (spec->script != NULL) {
        bid->most = mimo_min(bid->most, spec->used->count + 1);
        bid->least = bid->most;
        return;
    }
    mimo_bid other = *bid;
    fill_chances(engine, job, &spec->drafted, bid);
    fill_chances(engine, job, &spec->looked_up, &other);
    spec->used = &spec->drafted;
    if (mimo_bid_tokens(&other, other.most) > mimo_bid_tokens(bid, bid->most)) {
        *bid = other;
        spec->used = &spec->looked_up;
    }
    bid->least = spec->width > 0 ? bid->most : 1;
}

/* Whether to ask the drafter at all: not where what was looked up promises more, and seldom where drafts do not pay. */
static bool wants_drafter(mimo_engine *engine, mimo_job *job, size_t most)
{
    mimo_speculation *spec = &job->spec;
    if (!spec->drafter || most < 2)
        return false;
    if (spec->width > 0)
        return true;
    if (spec->round_count == 0) {
        spec->patience = engine->patience; /* as it went with other answers, */
        spec->patience.left = 0;           /* but tried once at least */
    }
    if (spec->looked_up.count > 0) {
        mimo_bid bid = {.least = 1, .most = most};
        fill_chances(engine, job, &spec->looked_up, &bid);
        const double gain = mimo_width_choose(&bid, 1, 0, most, &engine->times, 0.0);
        if (gain > 1.0 && gain > spec->patience.gain && spec->patience.gain > 0.0)
            return false;
    }
    return mimo_patience_allows(&spec->patience);
}

/* Drafts to ask for: where width goes by cost, those of a short block, until one has come true as a whole. */
static size_t slots_of(const mimo_engine *engine, const mimo_job *job, size_t most)
{
    const size_t brief = engine->draft->config.short_block;
    return (brief > 0 && job->spec.width == 0 && !job->spec.ran_out ? mimo_min(most, brief) : most) - 1;
}

/* Rows that a job may verify: no more than it has room and need for. */
static size_t most_rows(const mimo_engine *engine, const mimo_job *job)
{
    const mimo_speculation *spec = &job->spec;
    if (!spec->on)
        return 1;
    const size_t B = spec->width > 0 ? spec->width : mimo_engine_block(engine);
    return mimo_min(B, mimo_min(job->room, job->limit - job->known));
}

/* Seconds that this round's drafts are to be judged by. One that was held up, or that follows a pause and finds cold
 * caches and much context to take in, says little of the next. */
static double draft_cost(mimo_engine *engine, size_t asked, size_t slots)
{
    if (asked == 0)
        return engine->draft_seconds;
    const bool is_long = slots >= engine->draft->config.short_block;
    return mimo_usual_time(&engine->drafting.usual_time[is_long][asked], engine->draft_seconds);
}

void mimo_draft_round(mimo_engine *engine)
{
    mimo_job *deciding[MIMO_SLOTS_JOBS], *asking[MIMO_SLOTS_JOBS];
    mimo_bid bid[MIMO_SLOTS_JOBS];
    size_t count = 0, asked = 0, slots = 0, others = 0, prompts = 0;
    for (size_t i = 0; i < MIMO_SLOTS_JOBS; i++) {
        mimo_job *job = engine->slot[i];
        if (job == NULL || !job->ready)
            continue;
        if (mimo_job_decodes(job)) {
            deciding[count++] = job;
        } else {
            others += job->known - job->computed;
            prompts++;
        }
    }
    engine->draft_seconds = 0.0;
    if (count == 0)
        return;
    const double begin = mimo_clock_seconds();
    const size_t room = MIMO_STEP_OUTPUTS - prompts;
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        mimo_job *job = deciding[i];
        mimo_speculation *spec = &job->spec;
        bid[i] = (mimo_bid){.least = 1, .most = most_rows(engine, job)};
        if (spec->width > 0 || spec->script != NULL)
            bid[i].most = mimo_min(bid[i].most, room / count);
        spec->used = NULL;
        spec->drafted.count = 0;
        any |= spec->on;
        if (!spec->on)
            continue;
        if (spec->script != NULL)
            follow_script(job, bid[i].most - 1);
        else
            look_up(job, bid[i].most - 1);
        if (wants_drafter(engine, job, bid[i].most)) {
            asking[asked++] = job;
            slots = mimo_max(slots, slots_of(engine, job, bid[i].most));
        }
    }
    if (asked > 0)
        draft(engine, asking, asked, slots);
    for (size_t i = 0; i < count; i++)
        if (deciding[i]->spec.on) {
            compare(deciding[i]);
            make_bid(engine, deciding[i], &bid[i]);
        }
    if (any)
        engine->draft_seconds = mimo_clock_seconds() - begin;
    others = mimo_min(others, MIMO_STEP_ROWS - count);
    const double cost = draft_cost(engine, asked, slots);
    const double gain = mimo_width_choose(bid, count, others, room, &engine->times, cost);
    for (size_t i = 0; i < count; i++)
        deciding[i]->rows = bid[i].rows;
    for (size_t i = 0; i < asked; i++)
        if (asking[i]->spec.width == 0) {
            mimo_patience_learn(&asking[i]->spec.patience, gain);
            engine->patience = asking[i]->spec.patience;
        }
}

void mimo_draft_learn(mimo_engine *engine, mimo_job *job, const uint32_t *token, size_t came)
{
    mimo_speculation *spec = &job->spec;
    if (!spec->on || spec->script != NULL)
        return;
    const mimo_offer *offers[] = {&spec->drafted, &spec->looked_up};
    for (size_t i = 0; i < 2; i++)
        mimo_trust_observe(&engine->trust, offers[i]->origin, is_sampled(job), offers[i]->grade, offers[i]->token,
                           offers[i]->count, token, came);
    if (spec->drafted.count > 0)
        spec->ran_out = spec->used == &spec->drafted && came > spec->drafted.count;
    spec->lookup_was_right = spec->looked_up.count > 0 && spec->looked_up.token[0] == token[0];
}

size_t mimo_draft_reach(const mimo_engine *engine, const mimo_kv *kv, size_t cached)
{
    const mimo_backend *backend = engine->backend;
    const size_t window = engine->draft->config.model.attention[MIMO_SLIDING].window;
    size_t begin, end;
    backend->kv_draft_span(backend, kv, cached, &begin, &end);
    const size_t least =
        window > 0 && cached > window ? cached - window : 0; /* where the window of the next block begins */
    const size_t kept = begin <= least && end > least ? mimo_min(end, cached) : least;
    return backend->kv_can_cut(backend, kv, kept) ? kept : cached;
}
