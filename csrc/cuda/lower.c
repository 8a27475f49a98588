#include "cuda/lower.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/deal.h"
#include "cuda/launch.h"

enum { T = MIMO_TILE_TOKENS };

static uint32_t part_of(uint32_t which, uint32_t code)
{
    if (which == MIMO_TAPE_TARGET)
        return code == MIMO_OP_HEAD ? MIMO_PART_HEAD : MIMO_PART_READ;
    return code == MIMO_OP_DRAFT_FUSE || code == MIMO_OP_DRAFT_CONTEXT ? MIMO_PART_CONTEXT : MIMO_PART_BLOCK;
}

static void lower_tape(mimo_deal *d, uint8_t which)
{
    const mimo_plan *plan = d->tape[which]->plan;
    for (uint32_t i = 0; i < plan->count; i++) {
        const mimo_op *op = &plan->op[i];
        if ((part_of(which, op->code) & d->parts) == 0)
            continue;
        d->common =
            (mimo_tile_task){.tape = which, .op_code = (uint8_t)op->code, .op = (uint16_t)i, .layer = op->layer};
        mimo_lower_op(d, op);
    }
}

/* A stage over a vocabulary of V, for rows [row, row + rows). */
static void lower_spans(mimo_deal *d, mimo_tile_kind kind, uint32_t row, uint32_t rows, uint32_t V)
{
    const uint32_t span = mimo_pick_span(V, d->gpu);
    mimo_tile_task task = mimo_deal_begin(d, kind);
    task.split = (uint16_t)row;
    task.splits = (uint16_t)rows;
    for (uint32_t first = 0; first < V; first += span) {
        task.first = first;
        task.count = (uint32_t)mimo_min(span, V - first);
        mimo_deal_task(d, mimo_deal_next_sm(d), &task);
    }
    mimo_deal_end(d);
}

static void lower_cuts(mimo_deal *d, uint32_t row, uint32_t rows)
{
    mimo_tile_task task = mimo_deal_begin(d, MIMO_TILE_CUT);
    for (uint32_t t = row; t < row + rows; t++) {
        task.split = (uint16_t)t;
        mimo_deal_task(d, mimo_deal_next_sm(d), &task);
    }
    mimo_deal_end(d);
}

/* The tokens of rows [row, row + rows), and what `last` does with them. */
static void lower_tokens(mimo_deal *d, uint32_t row, uint32_t rows, uint32_t V, mimo_tile_kind last)
{
    lower_spans(d, MIMO_TILE_SCAN, row, rows, V);
    lower_spans(d, MIMO_TILE_COLLECT, row, rows, V);
    lower_cuts(d, row, rows);
    mimo_tile_task join = mimo_deal_begin_join(d, last, rows);
    join.split = (uint16_t)row;
    mimo_deal_join(d, &join);
    lower_spans(d, MIMO_TILE_SAMPLE, row, rows, V);
    d->q->ids = (uint32_t)mimo_max(d->q->ids, V);
}

static void lower_proposal(mimo_deal *d)
{
    const mimo_config *draft = d->tape[MIMO_TAPE_DRAFT]->config;
    const uint32_t slots = draft->block - 1;
    if (draft->markov_rank == 0)
        return lower_tokens(d, 1, slots, draft->vocab, MIMO_TILE_PROPOSE);
    for (uint32_t slot = 1; slot <= slots; slot++) { /* whose bias depends on the token before */
        lower_spans(d, MIMO_TILE_DRAFT_BIAS, slot, 1, draft->vocab);
        lower_tokens(d, slot, 1, draft->vocab, slot < slots ? MIMO_TILE_PICK : MIMO_TILE_PROPOSE);
    }
}

static void lower_round(mimo_deal *d)
{
    d->stage = d->turn = d->join = d->joins = 0;
    memset(d->filled, 0, d->q->sms * sizeof *d->filled);
    lower_tape(d, MIMO_TAPE_TARGET);
    if (d->parts & MIMO_PART_CHOOSE)
        lower_tokens(d, 0, T, d->tape[MIMO_TAPE_TARGET]->config->vocab, MIMO_TILE_ACCEPT);
    if (d->tape[MIMO_TAPE_DRAFT] != NULL) {
        lower_tape(d, MIMO_TAPE_DRAFT);
        if (d->parts & MIMO_PART_PROPOSE)
            lower_proposal(d);
    }
    d->last = d->before;
    d->last_count = d->before_count;
}

/* How many of the next tasks a loader may hint to L2 before it waits for the router: its part of half the cache, and no
 * further than the next choice. */
static void set_ahead(mimo_queues *q, const mimo_gpu *gpu)
{
    for (uint32_t sm = 0; sm < q->sms; sm++)
        for (uint32_t i = q->begin[sm]; i < q->begin[sm + 1]; i++) {
            mimo_tile_task *task = &q->task[i];
            if (task->kind != MIMO_TILE_EXPERT_UP)
                continue;
            uint64_t left = gpu->l2_bytes / 2 / q->sms;
            uint32_t ahead = 0;
            for (uint32_t j = i + 1; j < q->begin[sm + 1] && q->task[j].kind != MIMO_TILE_EXPERT_UP; j++) {
                const bool is_static = q->task[j].load_wait == MIMO_NO_COUNTER;
                const uint64_t bytes = is_static ? (uint64_t)q->task[j].pages * q->task[j].page_bytes : 0;
                if (bytes > left)
                    break;
                left -= bytes;
                if (bytes > 0)
                    ahead = j - i;
            }
            task->ahead = (uint16_t)ahead;
        }
}

/* ---- opening ---- */

static mimo_status check_tape(const mimo_tape *tape, const char *name, mimo_error *err)
{
    const mimo_config *c = tape->config;
    const struct {
        const char *field;
        uint32_t value, most;
    } limits[] = {{"rows of a step", tape->plan->rows, T},
                  {"block", c->block, T},
                  {"experts", c->experts, MIMO_MOE_EXPERTS},
                  {"top_k", c->top_k, MIMO_MOE_TOP_K},
                  {"heads", c->attention[MIMO_FULL].heads, UINT16_MAX},
                  {"expert_width", c->expert_width, UINT16_MAX}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].value > limits[i].most)
            return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: %s.%s: expected at most %u, found %u", name,
                             limits[i].field, limits[i].most, limits[i].value);
    return MIMO_OK;
}

static uint32_t widest_rows(const mimo_config *c)
{
    return (uint32_t)mimo_max(c->hidden, c->expert_width);
}

static uint32_t widest_head(const mimo_tape *target, const mimo_tape *draft, bool value)
{
    size_t widest = 0;
    for (uint32_t i = 0; i < (draft != NULL ? 4 : 2); i++) {
        const mimo_attention *a = &(i < 2 ? target : draft)->config->attention[i % 2];
        widest = mimo_max(widest, value ? a->v_head_dim : a->head_dim);
    }
    return (uint32_t)widest;
}

/* Columns of a REDUCE: a tile of the experts' down matrix, whose sums are then often whole. */
static uint32_t columns_of(const mimo_tape *target, const mimo_gpu *gpu)
{
    for (uint32_t i = 0; i < target->plan->count; i++)
        if (target->plan->op[i].code == MIMO_OP_EXPERT_DOWN) {
            mimo_tile_shape shape;
            mimo_lower_pick_down(&shape, target, target->plan->op[i].dim, gpu);
            return shape.tile_rows;
        }
    return (uint32_t)mimo_round_up(mimo_ceil_div(target->config->hidden, gpu->sms), MIMO_TILE_UNIT);
}

static mimo_status allocate(mimo_deal *d, mimo_error *err)
{
    mimo_queues *q = d->q;
    MIMO_TRY(mimo_alloc_array(&q->begin, (size_t)q->sms + 1, sizeof *q->begin, "queues of SMs", err));
    MIMO_TRY(mimo_alloc_array(&d->filled, q->sms, sizeof *d->filled, "queues of SMs", err));
    for (uint32_t which = 0; which < 2; which++)
        if (d->tape[which] != NULL)
            MIMO_TRY(mimo_alloc_array(&q->shape[which], d->tape[which]->plan->count, sizeof *q->shape[which],
                                      "shapes of tiles", err));
    lower_round(d);
    q->counters = d->stage;
    if (q->counters >= MIMO_NO_COUNTER)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: expected less than %d stages, found %u", MIMO_NO_COUNTER,
                         q->counters);
    for (uint32_t sm = 0; sm < q->sms; sm++)
        q->begin[sm + 1] = q->begin[sm] + d->filled[sm];
    q->tasks = q->begin[q->sms];
    q->joins = d->joins;
    q->last_count = d->last_count;
    MIMO_TRY(mimo_alloc_array(&q->join, q->joins, sizeof *q->join, "joins of tile tasks", err));
    return mimo_alloc_array(&q->task, q->tasks, sizeof *q->task, "tile tasks", err);
}

mimo_status mimo_lower(mimo_queues *out, const mimo_tape *target, const mimo_tape *draft, const mimo_gpu *gpu,
                       mimo_error *err)
{
    return mimo_lower_parts(out, target, draft, gpu, MIMO_PARTS_ROUND, err);
}

mimo_status mimo_lower_parts(mimo_queues *out, const mimo_tape *target, const mimo_tape *draft, const mimo_gpu *gpu,
                             uint32_t parts, mimo_error *err)
{
    if (gpu->sms < 1 || gpu->sms > UINT16_MAX)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "gpu.sms: expected 1 to %d, found %u", UINT16_MAX, gpu->sms);
    MIMO_TRY(check_tape(target, "config", err));
    uint32_t widest = widest_rows(target->config);
    if (draft != NULL) {
        MIMO_TRY(check_tape(draft, "draft", err));
        widest = (uint32_t)mimo_max(widest, widest_rows(draft->config));
    }
    *out = (mimo_queues){.sms = gpu->sms, .columns = columns_of(target, gpu)};
    out->widest_head = widest_head(target, draft, false);
    out->widest_value = widest_head(target, draft, true);
    MIMO_TRY(mimo_pick_shared(&out->shared, gpu, widest, out->widest_value,
                              mimo_resident_fixed_bytes(out->widest_head, out->widest_value), err));
    mimo_deal d = {.q = out, .gpu = gpu, .tape = {target, draft}, .parts = parts};
    const mimo_status status = allocate(&d, err);
    if (status == MIMO_OK) {
        d.writes = true;
        lower_round(&d);
        set_ahead(out, gpu);
    } else {
        mimo_queues_release(out);
    }
    mimo_free(d.filled);
    return status;
}

void mimo_queues_release(mimo_queues *queues)
{
    mimo_free(queues->begin);
    mimo_free(queues->task);
    mimo_free(queues->join);
    mimo_free(queues->shape[MIMO_TAPE_TARGET]);
    mimo_free(queues->shape[MIMO_TAPE_DRAFT]);
    *queues = (mimo_queues){0};
}
