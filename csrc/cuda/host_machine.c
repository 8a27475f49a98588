#include "cuda/host_machine.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/page.h"
#include "cuda/pages.h"

static const uint64_t patience = 60u * (uint64_t)1000000000u;

static mimo_status take(mimo_host_machine *host, void *out, size_t count, size_t size, mimo_error *err)
{
    return mimo_blocks_array(&host->blocks, out, count, size, "engine on the host", err);
}

/* ---- pages ---- */

typedef struct paging {
    mimo_host_machine *host;
    const mimo_cuda_state *state;
    const mimo_tile_shape *shape;
    uint8_t *next;
    mimo_error *err;
} paging;

static mimo_status pack_one(paging *p, const mimo_cuda_matrix *w, const mimo_cuda_matrix *up, uint32_t splits)
{
    const mimo_page_part part = {w, 0, w->rows}, other = {up, 0, w->rows};
    const mimo_status status = mimo_pages_pack(p->next, p->shape, splits, &part, up != NULL ? &other : NULL, 1, p->err);
    p->next += (size_t)p->shape->expert_pages * p->shape->page_bytes;
    return status;
}

static mimo_status pack_context(paging *p)
{
    const mimo_cuda_state *s = p->state;
    mimo_page_part *parts = NULL;
    MIMO_TRY(take(p->host, &parts, s->config->layers, sizeof *parts, p->err));
    for (uint32_t i = 0; i < s->config->layers; i++) {
        const uint32_t queries = s->layer[i].attention.heads * s->layer[i].attention.head_dim;
        parts[i] = (mimo_page_part){&s->layer[i].qkv, queries, s->layer[i].qkv.rows - queries};
    }
    return mimo_pages_pack(p->next, p->shape, p->shape->splits, parts, NULL, s->config->layers, p->err);
}

static mimo_status pack_op(paging *p, const mimo_op *op)
{
    const mimo_cuda_state *s = p->state;
    const mimo_cuda_layer *layer = op->layer != MIMO_NO_LAYER ? &s->layer[op->layer] : NULL;
    const uint32_t splits = p->shape->splits;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_DRAFT_FUSE:
        return pack_one(p, &s->draft->fuse, NULL, splits);
    case MIMO_OP_DRAFT_CONTEXT:
        return pack_context(p);
    case MIMO_OP_QKV:
        return pack_one(p, &layer->qkv, NULL, splits);
    case MIMO_OP_OUT_PROJ:
        return pack_one(p, &layer->out, NULL, splits);
    case MIMO_OP_ROUTE:
        return pack_one(p, &layer->router, NULL, splits);
    case MIMO_OP_EXPERT_UP:
        for (uint32_t e = 0; e < s->config->experts; e++)
            MIMO_TRY(pack_one(p, &layer->gate[e], &layer->up[e], splits));
        return MIMO_OK;
    case MIMO_OP_EXPERT_DOWN:
        for (uint32_t e = 0; e < s->config->experts; e++)
            MIMO_TRY(pack_one(p, &layer->down[e], NULL, 1));
        return MIMO_OK;
    case MIMO_OP_DENSE_UP:
        return pack_one(p, &layer->gate[0], &layer->up[0], splits);
    case MIMO_OP_DENSE_DOWN:
        return pack_one(p, &layer->down[0], NULL, splits);
    case MIMO_OP_HEAD:
        return pack_one(p, &s->head, NULL, splits);
    default:
        return MIMO_OK;
    }
}

static mimo_status pack_tape(mimo_host_machine *host, uint32_t tape, const mimo_cuda_host *model, mimo_error *err)
{
    const uint8_t **pages = NULL;
    MIMO_TRY(take(host, &pages, model->plan.count, sizeof *pages, err));
    host->machine.pages[tape] = pages;
    for (uint32_t i = 0; i < model->plan.count; i++) {
        const mimo_op *op = &model->plan.op[i];
        const mimo_tile_shape *shape = &host->queues.shape[tape][i];
        const bool expert = op->code == MIMO_OP_EXPERT_UP || op->code == MIMO_OP_EXPERT_DOWN;
        uint8_t *memory = NULL;
        const size_t bytes = (size_t)shape->expert_pages * shape->page_bytes;
        MIMO_TRY(take(host, &memory, bytes, expert ? model->state.config->experts : 1, err));
        pages[i] = memory;
        paging p = {host, &model->state, shape, memory, err};
        MIMO_TRY(pack_op(&p, op));
    }
    return MIMO_OK;
}

/* ---- opening ---- */

static mimo_status open_tape(mimo_tape *tape, const mimo_host_model *model, mimo_error *err)
{
    *tape = (mimo_tape){.plan = &model->host->plan, .config = model->host->state.config};
    return mimo_tape_formats(tape, model->weights, err);
}

/* A state of a tape whose rows are those of step `which`. */
static mimo_cuda_state state_of(const mimo_host_machine *host, const mimo_cuda_host *model, uint32_t which)
{
    mimo_cuda_state state = model->state;
    mimo_cuda_step *step = &host->machine.steps[which];
    state.step = step;
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++)
        step->kv[t] = model->cache;
    return state;
}

static mimo_status open_steps(mimo_host_machine *host, const mimo_cuda_host *target, const mimo_cuda_host *draft,
                              const uint32_t *taps, mimo_error *err)
{
    mimo_tile_machine *m = &host->machine;
    const mimo_config *c = target->state.config;
    MIMO_TRY(take(host, &m->steps, 3, sizeof *m->steps, err));
    m->target = state_of(host, target, 0);
    m->steps[0].logits_stride = c->vocab;
    MIMO_TRY(take(host, &m->steps[0].logits, MIMO_TILE_TOKENS * (size_t)c->vocab, sizeof(float), err));
    if (draft == NULL)
        return MIMO_OK;
    const mimo_config *d = draft->state.config;
    m->context = state_of(host, draft, 1);
    m->block = state_of(host, draft, 2);
    m->steps[2].logits_stride = d->vocab;
    MIMO_TRY(take(host, &m->steps[2].logits, MIMO_TILE_TOKENS * (size_t)d->vocab, sizeof(float), err));
    m->steps[0].taps = d->taps;
    memcpy(m->steps[0].tap, taps, d->taps * sizeof *taps);
    m->steps[0].hidden_stride = m->steps[1].features_stride = MIMO_TILE_TOKENS * (size_t)c->hidden;
    MIMO_TRY(take(host, &m->steps[0].hidden, d->taps, MIMO_TILE_TOKENS * c->hidden * sizeof(float), err));
    m->steps[1].features = m->steps[0].hidden;
    return MIMO_OK;
}

static mimo_status open_operand(mimo_host_machine *host, mimo_tile_operand *out, size_t rows, size_t width,
                                mimo_error *err)
{
    out->stride = mimo_round_up(width, MIMO_PAGE_BLOCK);
    out->part = rows * out->stride;
    return take(host, &out->at, host->machine.parts * out->part, sizeof *out->at, err);
}

/* biased: logits of a slot with a Markov head, 0 without one. */
static mimo_status open_areas(mimo_host_machine *host, const mimo_cuda_host *target, size_t biased, mimo_error *err)
{
    mimo_tile_machine *m = &host->machine;
    const mimo_queues *q = &host->queues;
    const mimo_config *c = target->state.config;
    const size_t T = MIMO_TILE_TOKENS;
    m->task = q->task;
    m->join = q->join;
    m->tasks = q->tasks;
    m->counters = q->counters;
    m->begin = q->begin;
    m->last = q->counters - 1;
    m->last_count = q->last_count;
    m->columns = q->columns;
    m->pieces = (uint32_t)mimo_ceil_div(c->hidden, q->columns);
    m->ids = q->ids;
    m->blocks = (uint32_t)mimo_ceil_div(q->ids, MIMO_TILE_IDS);
    m->parts = MIMO_TILE_EXACT_PARTS;
    memcpy(m->up_format, q->up_format, sizeof m->up_format);
    MIMO_TRY(take(host, &m->counter, q->counters + (size_t)q->joins, sizeof *m->counter, err));
    MIMO_TRY(open_operand(host, &m->n, T, c->hidden, err));
    MIMO_TRY(open_operand(host, &m->a, T, q->a_width, err));
    MIMO_TRY(open_operand(host, &m->u, T * mimo_max(1, c->top_k), q->u_width, err));
    MIMO_TRY(take(host, &m->squares, T * m->pieces, sizeof(float), err));
    MIMO_TRY(take(host, &m->p, q->partial_floats, sizeof(float), err));
    /* Four floats a head beyond the values, where the queues count two. */
    MIMO_TRY(take(host, &m->s, 2 * q->attend_floats, sizeof(float), err));
    MIMO_TRY(take(host, &m->moe, 1, sizeof *m->moe, err));
    MIMO_TRY(take(host, &m->maxima, T * m->blocks, sizeof *m->maxima, err));
    MIMO_TRY(take(host, &m->sums, T * m->blocks, sizeof *m->sums, err));
    MIMO_TRY(take(host, &m->kept, T * m->ids, sizeof *m->kept, err));
    MIMO_TRY(take(host, &m->kept_count, T, sizeof *m->kept_count, err));
    MIMO_TRY(take(host, &m->filter, T, sizeof *m->filter, err));
    MIMO_TRY(take(host, &m->best, T * m->blocks, sizeof *m->best, err));
    MIMO_TRY(take(host, &m->picked, T, sizeof *m->picked, err));
    if (biased > 0)
        MIMO_TRY(take(host, &m->biased, T * biased, sizeof(float), err));
    MIMO_TRY(take(host, &host->round.token, target->positions, sizeof(uint32_t), err));
    m->round = &host->round;
    mimo_host_ctas *ctas = &host->ctas;
    *ctas = (mimo_host_ctas){.machine = m,
                             .lost = &host->lost,
                             .patience = patience,
                             .ctas = q->sms,
                             .ring_bytes = q->shared.ring_bytes,
                             .scratch_floats = mimo_tile_scratch_floats(1, q->widest_head, q->widest_value)};
    MIMO_TRY(take(host, &ctas->scratch, ctas->scratch_floats * q->sms, sizeof(float), err));
    return take(host, &ctas->ring, q->sms, ctas->ring_bytes, err);
}

static mimo_status open_parts(mimo_host_machine *host, const mimo_host_model *target, const mimo_host_model *draft,
                              const mimo_draft_config *config, const mimo_gpu *gpu, mimo_error *err)
{
    mimo_tape tape, other;
    if (gpu->sms > MIMO_HOST_MOST_CTAS)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "ctas: expected at most %d, found %u", MIMO_HOST_MOST_CTAS, gpu->sms);
    MIMO_TRY(open_tape(&tape, target, err));
    if (config != NULL)
        MIMO_TRY(open_tape(&other, draft, err));
    MIMO_TRY(mimo_lower(&host->queues, &tape, config != NULL ? &other : NULL, gpu, err));
    host->machine.vocab = tape.config->vocab;
    if (config != NULL) {
        host->machine.draft_vocab = config->model.vocab;
        host->machine.draft_block = config->model.block;
    }
    const bool markov = config != NULL && config->model.markov_rank > 0;
    MIMO_TRY(open_areas(host, target->host, markov ? config->model.vocab : 0, err));
    MIMO_TRY(open_steps(host, target->host, draft->host, config != NULL ? config->tap : NULL, err));
    MIMO_TRY(pack_tape(host, MIMO_TAPE_TARGET, target->host, err));
    return config != NULL ? pack_tape(host, MIMO_TAPE_DRAFT, draft->host, err) : MIMO_OK;
}

mimo_status mimo_host_machine_open(mimo_host_machine **out, const mimo_host_model *target, const mimo_host_model *draft,
                                   const mimo_draft_config *config, const mimo_gpu *gpu, mimo_error *err)
{
    mimo_host_machine *host = NULL;
    *out = NULL;
    MIMO_TRY(mimo_alloc_array(&host, 1, sizeof *host, "engine on the host", err));
    host->machine.drafted = config != NULL ? config->target_id : NULL;
    const mimo_status status = open_parts(host, target, draft, config, gpu, err);
    if (status != MIMO_OK) {
        mimo_host_machine_close(host);
        return status;
    }
    *out = host;
    return MIMO_OK;
}

void mimo_host_machine_close(mimo_host_machine *host)
{
    if (host == NULL)
        return;
    mimo_queues_release(&host->queues);
    mimo_blocks_free(&host->blocks);
    mimo_free(host);
}

void mimo_host_machine_run(mimo_host_machine *host, uint32_t rounds)
{
    mimo_host_ctas_run(&host->ctas, host->step, host->step + rounds);
    host->step = host->machine.counter[host->machine.last] / host->machine.last_count;
}

void mimo_host_machine_begin(mimo_host_machine *host, const uint32_t *prompt, uint32_t count, uint32_t limit)
{
    mimo_tile_round *r = &host->round;
    mimo_cuda_step *steps = host->machine.steps;
    memcpy(r->token, prompt, count * sizeof *prompt);
    r->known = count;
    r->limit = limit;
    r->top_p = 1.0f;
    r->start = r->done = r->over = r->failed = r->accepted = r->rounds = r->context_begin = 0;
    steps[0].rows = (uint32_t)mimo_min(count, MIMO_TILE_TOKENS);
    for (uint32_t t = 0; t < steps[0].rows; t++) {
        steps[0].token[t] = prompt[t];
        steps[0].position[t] = t;
    }
    steps[1].rows = steps[2].rows = 0;
}

void mimo_host_machine_propose(mimo_host_machine *host, const uint32_t *drafts, uint32_t count)
{
    const mimo_tile_round *r = &host->round;
    mimo_cuda_step *step = &host->machine.steps[0];
    if (r->done || r->start + step->rows != r->known)
        return; /* there is more to read before anything is to be chosen */
    for (uint32_t i = 0; i < count && step->rows < r->width && r->known + i + 1 < r->limit; i++) {
        step->position[step->rows] = r->known + i;
        step->token[step->rows++] = drafts[i];
    }
}
