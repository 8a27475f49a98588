#include "cuda/lower.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/launch.h"

enum { T = MIMO_TILE_TOKENS };

/* The queues are lowered twice: the first pass counts each SM's tasks, and learns the last stage, for which the first
 * one waits; the second writes them. */
typedef struct lowering {
    mimo_queues *q;
    const mimo_gpu *gpu;
    const mimo_tape *tape[2];
    uint32_t parts;   /* of the round */
    uint32_t *filled; /* [sms] tasks so far */
    bool writes;
    uint32_t turn; /* SM that a stage's first odd task goes to, so that none has all of them */
    uint32_t stage, stage_tasks;
    uint32_t join, joins;          /* the stage's first, and all so far */
    uint32_t before, before_count; /* counter of the stage before, and what it grows by in a step */
    uint32_t last, last_count;     /* of the whole round; known in the second pass */
    uint32_t route, route_count;   /* of the layer's ROUTE */
    mimo_tile_task common;         /* of the operation's tasks */
} lowering;

/* ---- joins: a stage's are added before its tasks ---- */

static mimo_tile_task begin_join(const lowering *b, mimo_tile_kind kind, uint32_t splits)
{
    mimo_tile_task join = b->common;
    join.kind = (uint8_t)kind;
    join.splits = (uint16_t)splits;
    join.wait = join.load_wait = MIMO_NO_COUNTER;
    join.signal = (uint16_t)b->stage;
    return join;
}

static void add_join(lowering *b, const mimo_tile_task *join)
{
    if (b->writes)
        b->q->join[b->joins] = *join;
    b->joins++;
}

/* The rows of P that a join adds up: of all splits. */
static void join_rows(const mimo_tile_task *join, uint32_t *first, uint32_t *end)
{
    const bool heads = join->kind == MIMO_TILE_HEADS;
    *first = heads ? join->k_first : join->first;
    *end = *first + (heads ? join->k_count : join->count);
}

/* The joins that a task's rows are in, which are neighbours; they learn of it. */
static void set_joins(lowering *b, mimo_tile_task *task)
{
    task->joins = 0;
    for (uint32_t j = b->join; j < b->joins; j++) {
        mimo_tile_task *join = &b->q->join[j];
        uint32_t first, end;
        join_rows(join, &first, &end);
        if (task->first >= end || first >= task->first + task->count)
            continue;
        if (task->joins++ == 0)
            task->join = j;
        join->wait_count++;
    }
}

/* ---- tasks ---- */

static void emit(lowering *b, uint32_t sm, const mimo_tile_task *task)
{
    const uint32_t at = b->filled[sm]++;
    b->stage_tasks++;
    if (!b->writes)
        return;
    mimo_tile_task *to = &b->q->task[b->q->begin[sm] + at];
    *to = *task;
    set_joins(b, to);
}

/* Begins a stage; its tasks are copies of what is returned. */
static mimo_tile_task begin_stage(lowering *b, mimo_tile_kind kind)
{
    mimo_tile_task task = b->common;
    const bool first = b->stage == 0;
    task.kind = (uint8_t)kind;
    task.signal = (uint16_t)b->stage;
    task.wait = (uint16_t)(first ? b->last : b->before);
    task.wait_count = first ? b->last_count : b->before_count;
    task.wait_back = first;
    task.load_wait = MIMO_NO_COUNTER;
    task.splits = 1;
    b->stage_tasks = 0;
    return task;
}

static void end_stage(lowering *b)
{
    b->before = b->stage++;
    b->before_count = b->joins > b->join ? b->joins - b->join : b->stage_tasks;
    b->join = b->joins;
}

/* The next SM in turn, for stages of small tasks. */
static uint32_t next_sm(lowering *b)
{
    const uint32_t sm = b->turn;
    b->turn = (b->turn + 1) % b->q->sms;
    return sm;
}

/* `count` units in runs of neighbours: SM `sm` has [*first, returned). Runs differ by one unit; the longer ones begin
 * at b->turn. */
static uint32_t run_of(const lowering *b, uint32_t sm, uint32_t count, uint32_t *first)
{
    const uint32_t sms = b->q->sms, place = (sm + sms - b->turn) % sms, odd = count % sms;
    *first = place * (count / sms) + (uint32_t)mimo_min(place, odd);
    return *first + count / sms + (place < odd);
}

static void keep_largest(uint64_t *largest, uint64_t value)
{
    *largest = mimo_max(*largest, value);
}

static void keep_widest(uint32_t *widest, uint32_t value)
{
    *widest = (uint32_t)mimo_max(*widest, value);
}

static mimo_tile_shape *shape_of(lowering *b)
{
    return &b->q->shape[b->common.tape][b->common.op];
}

static void set_weights(mimo_tile_task *task, const mimo_tile_shape *shape)
{
    task->tile_rows = (uint16_t)shape->tile_rows;
    task->tile_pages = (uint16_t)shape->tile_pages;
    task->page_bytes = shape->page_bytes;
    task->k_page = (uint16_t)shape->k_page;
}

/* ---- stages that read a matrix ---- */

/* Tiles of all splits, each SM a run of neighbours: a task for each split in its run. */
static void lower_tiles(lowering *b, mimo_tile_kind kind, const mimo_tile_matrix *m)
{
    const mimo_tile_shape *shape = shape_of(b);
    mimo_tile_task task = begin_stage(b, kind);
    set_weights(&task, shape);
    task.splits = (uint16_t)shape->splits;
    const uint32_t count = shape->tiles * shape->splits;
    for (uint32_t sm = 0; sm < b->q->sms; sm++) {
        uint32_t first;
        const uint32_t end = run_of(b, sm, count, &first);
        while (first < end) {
            const uint32_t split = first / shape->tiles, tile = first % shape->tiles;
            const uint32_t tiles = (uint32_t)mimo_min(end - first, shape->tiles - tile);
            task.split = (uint16_t)split;
            task.first = tile * shape->tile_rows;
            task.count = (uint32_t)mimo_min(tiles * shape->tile_rows, m->rows - task.first);
            task.k_first = split * shape->k_split;
            task.k_count = (uint32_t)mimo_min(shape->k_split, m->K - task.k_first);
            task.page = first * shape->tile_pages;
            task.pages = tiles * shape->tile_pages;
            emit(b, sm, &task);
            first += tiles;
        }
    }
    b->turn = (b->turn + count) % b->q->sms;
    end_stage(b);
}

/* x and N of the step from sums of H columns. */
static void join_columns(lowering *b, uint32_t H)
{
    mimo_tile_task join = begin_join(b, MIMO_TILE_REDUCE, shape_of(b)->splits);
    for (uint32_t first = 0; first < H; first += b->q->columns) {
        join.first = first;
        join.count = (uint32_t)mimo_min(b->q->columns, H - first);
        add_join(b, &join);
    }
}

/* One join a head of `layer`: `queries` query heads, then G keys and G values, whose rows of P begin at `row`. Returns
 * where they end. */
static uint32_t join_heads(lowering *b, uint16_t layer, uint32_t queries, const mimo_attention *a, uint32_t row)
{
    mimo_tile_task join = begin_join(b, MIMO_TILE_HEADS, shape_of(b)->splits);
    join.layer = layer;
    join.count = 1;
    for (uint32_t head = 0; head < queries + 2 * a->kv_heads; head++) {
        join.first = head;
        join.k_first = row;
        join.k_count = head < queries + a->kv_heads ? a->head_dim : a->v_head_dim;
        row += join.k_count;
        add_join(b, &join);
    }
    return row;
}

/* The rows of a matrix by K; reducers: SMs that add its partial sums. */
static mimo_tile_matrix pick_project(lowering *b, uint32_t rows, uint32_t K, uint32_t reducers)
{
    const mimo_tile_matrix m = {.rows = rows,
                                .K = K,
                                .format = b->tape[b->common.tape]->format[b->common.op_code],
                                .whole = reducers == 0,
                                .reducers = reducers};
    mimo_pick_matrix(shape_of(b), &m, b->gpu, &b->q->shared);
    keep_largest(&b->q->partial_floats, (uint64_t)shape_of(b)->splits * T * rows);
    return m;
}

static void project(lowering *b, uint32_t H, uint32_t K)
{
    const mimo_tile_matrix m = pick_project(b, H, K, b->q->sms);
    join_columns(b, H);
    lower_tiles(b, MIMO_TILE_PROJECT, &m);
}

static void lower_dense_up(lowering *b, uint32_t H, uint32_t F)
{
    const mimo_tile_matrix m = {
        .rows = F, .K = H, .format = b->tape[b->common.tape]->format[MIMO_OP_DENSE_UP], .paired = true, .whole = true};
    mimo_pick_matrix(shape_of(b), &m, b->gpu, &b->q->shared);
    lower_tiles(b, MIMO_TILE_DENSE_UP, &m);
    keep_largest(&b->q->u_elements, (uint64_t)T * F);
    keep_widest(&b->q->u_width, F);
}

static mimo_tile_task begin_expert_stage(lowering *b, mimo_tile_kind kind)
{
    mimo_tile_task task = begin_stage(b, kind);
    set_weights(&task, shape_of(b));
    task.expert_pages = shape_of(b)->expert_pages;
    task.load_wait = (uint16_t)b->route;
    task.load_wait_count = (uint16_t)b->route_count;
    return task;
}

static void lower_expert_up(lowering *b, const uint32_t *dim)
{
    const uint32_t H = dim[0], F = dim[1], E = dim[2], K = dim[3];
    const mimo_format format = b->tape[b->common.tape]->format[MIMO_OP_EXPERT_UP];
    const mimo_tile_matrix m = {.rows = F, .K = H, .format = format, .paired = true, .experts = E, .top_k = K};
    mimo_pick_expert_up(shape_of(b), &m, b->gpu);
    mimo_tile_task task = begin_expert_stage(b, MIMO_TILE_EXPERT_UP);
    task.k_count = H;
    task.count = b->q->sms;
    task.pages = task.tile_pages;
    /* Units in turn start where the stage before left off, as its longer runs do. */
    for (uint32_t sm = 0; sm < b->q->sms; sm++) {
        task.first = (sm + b->q->sms - b->turn) % b->q->sms;
        emit(b, sm, &task);
    }
    end_stage(b);
    keep_largest(&b->q->u_elements, (uint64_t)T * K * F);
    keep_widest(&b->q->u_width, F);
}

static void pick_expert_down(mimo_tile_shape *shape, const mimo_tape *tape, const uint32_t *dim, const mimo_gpu *gpu)
{
    const mimo_tile_matrix m = {
        .rows = dim[1], .K = dim[0], .format = tape->format[MIMO_OP_EXPERT_DOWN], .experts = dim[2], .top_k = dim[3]};
    mimo_pick_expert_down(shape, &m, gpu);
}

static void lower_expert_down(lowering *b, const uint32_t *dim)
{
    const uint32_t F = dim[0], H = dim[1];
    mimo_tile_shape *shape = shape_of(b);
    pick_expert_down(shape, b->tape[b->common.tape], dim, b->gpu);
    join_columns(b, H);
    mimo_tile_task task = begin_expert_stage(b, MIMO_TILE_EXPERT_DOWN);
    task.splits = (uint16_t)shape->splits;
    task.k_count = F;
    const uint32_t count = shape->tiles * shape->splits;
    for (uint32_t sm = 0; sm < b->q->sms; sm++) {
        uint32_t first;
        /* A tile a task: accumulators of one tile live through all experts. */
        for (const uint32_t end = run_of(b, sm, count, &first); first < end; first++) {
            const uint32_t tile = first % shape->tiles;
            task.split = (uint16_t)(first / shape->tiles);
            task.first = tile * shape->tile_rows;
            task.count = (uint32_t)mimo_min(shape->tile_rows, H - task.first);
            task.page = tile * shape->tile_pages;
            task.pages = task.tile_pages;
            emit(b, sm, &task);
        }
    }
    b->turn = (b->turn + count) % b->q->sms;
    end_stage(b);
    keep_largest(&b->q->partial_floats, (uint64_t)shape->splits * T * H);
}

/* ---- stages of small tasks ---- */

/* `rows` rows, from row `row` on, of `length` elements in pieces of `span`. */
static void lower_rows(lowering *b, mimo_tile_kind kind, uint32_t row, uint32_t rows, uint32_t length, uint32_t span,
                       uint32_t splits)
{
    mimo_tile_task task = begin_stage(b, kind);
    task.splits = (uint16_t)splits;
    for (uint32_t t = row; t < row + rows; t++)
        for (uint32_t first = 0; first < length; first += span) {
            task.split = (uint16_t)t;
            task.first = first;
            task.count = (uint32_t)mimo_min(span, length - first);
            emit(b, next_sm(b), &task);
        }
    end_stage(b);
}

static void lower_one(lowering *b, mimo_tile_kind kind, uint32_t splits)
{
    mimo_tile_task task = begin_stage(b, kind);
    task.splits = (uint16_t)splits;
    emit(b, next_sm(b), &task);
    end_stage(b);
}

static void lower_qkv(lowering *b, const uint32_t *dim, const mimo_attention *a)
{
    const mimo_tile_matrix m = pick_project(b, dim[1] * dim[3] + dim[2] * (dim[3] + dim[4]), dim[0], b->q->sms);
    (void)join_heads(b, b->common.layer, a->heads, a, 0);
    lower_tiles(b, MIMO_TILE_PROJECT, &m);
    keep_largest(&b->q->q_elements, (uint64_t)T * a->heads * a->head_dim);
}

/* The experts of all rows are one SM's choice. */
static void lower_route(lowering *b, const uint32_t *dim)
{
    const mimo_tile_matrix m = pick_project(b, dim[1], dim[0], 1);
    mimo_tile_task join = begin_join(b, MIMO_TILE_CHOOSE, shape_of(b)->splits);
    join.count = dim[1];
    add_join(b, &join);
    lower_tiles(b, MIMO_TILE_PROJECT, &m);
    b->route = b->before;
    b->route_count = b->before_count;
}

static void lower_context(lowering *b, const mimo_config *config)
{
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const mimo_attention *a = mimo_layer_attention(config, layer);
        rows += a->kv_heads * (a->head_dim + a->v_head_dim);
    }
    const mimo_tile_matrix m = pick_project(b, rows, config->hidden, b->q->sms);
    rows = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++)
        rows = join_heads(b, (uint16_t)layer, 0, mimo_layer_attention(config, layer), rows);
    lower_tiles(b, MIMO_TILE_PROJECT, &m);
}

/* All rows of H columns. */
static void lower_embed(lowering *b, uint32_t H)
{
    mimo_tile_task task = begin_stage(b, MIMO_TILE_EMBED);
    for (uint32_t first = 0; first < H; first += b->q->columns) {
        task.first = first;
        task.count = (uint32_t)mimo_min(b->q->columns, H - first);
        emit(b, next_sm(b), &task);
    }
    end_stage(b);
}

static void lower_attention(lowering *b, const uint32_t *dim)
{
    const uint32_t N = dim[0], G = dim[1], Dv = dim[3], W = dim[4];
    uint32_t heads, splits;
    mimo_pick_attend(&heads, &splits, N, G, W, b->gpu);
    mimo_tile_task task = begin_stage(b, MIMO_TILE_ATTEND);
    task.splits = (uint16_t)splits;
    task.count = heads;
    for (uint32_t split = 0; split < splits; split++)
        for (uint32_t first = 0; first < N; first += heads) {
            task.split = (uint16_t)split;
            task.first = first;
            emit(b, next_sm(b), &task);
        }
    end_stage(b);
    keep_largest(&b->q->a_elements, (uint64_t)T * N * Dv);
    keep_widest(&b->q->a_width, N * Dv);
    if (splits == 1)
        return;
    lower_rows(b, MIMO_TILE_MERGE, 0, T, N, (uint32_t)mimo_ceil_div(N * T, b->q->sms), splits);
    keep_largest(&b->q->attend_floats, (uint64_t)splits * T * N * (Dv + 2));
}

/* ---- tapes ---- */

static void lower_op(lowering *b, const mimo_op *op)
{
    const uint32_t *dim = op->dim;
    const mimo_config *config = b->tape[b->common.tape]->config;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_EMBED:
    case MIMO_OP_DRAFT_EMBED:
        lower_embed(b, dim[1]);
        break;
    case MIMO_OP_DRAFT_FUSE:
        project(b, dim[1], mimo_fuse_width(dim, b->gpu->ranks));
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        lower_context(b, config);
        break;
    case MIMO_OP_QKV:
        lower_qkv(b, dim, mimo_layer_attention(config, op->layer));
        break;
    case MIMO_OP_ATTENTION:
        lower_attention(b, dim);
        break;
    case MIMO_OP_OUT_PROJ:
        project(b, dim[2], dim[0] * dim[1]);
        break;
    case MIMO_OP_ROUTE:
        lower_route(b, dim);
        break;
    case MIMO_OP_EXPERT_UP:
        lower_expert_up(b, dim);
        break;
    case MIMO_OP_EXPERT_DOWN:
        lower_expert_down(b, dim);
        break;
    case MIMO_OP_DENSE_UP:
        lower_dense_up(b, dim[0], dim[1]);
        break;
    case MIMO_OP_DENSE_DOWN:
        project(b, dim[1], dim[0]);
        break;
    case MIMO_OP_HEAD: {
        const mimo_tile_matrix m = pick_project(b, dim[1], dim[0], 0);
        lower_tiles(b, MIMO_TILE_PROJECT, &m);
        break;
    }
    case MIMO_OP_COUNT:
        break;
    }
}

static uint32_t part_of(uint32_t which, uint32_t code)
{
    if (which == MIMO_TAPE_TARGET)
        return code == MIMO_OP_HEAD ? MIMO_PART_HEAD : MIMO_PART_READ;
    return code == MIMO_OP_DRAFT_FUSE || code == MIMO_OP_DRAFT_CONTEXT ? MIMO_PART_CONTEXT : MIMO_PART_BLOCK;
}

static void lower_tape(lowering *b, uint8_t which)
{
    const mimo_plan *plan = b->tape[which]->plan;
    for (uint32_t i = 0; i < plan->count; i++) {
        const mimo_op *op = &plan->op[i];
        if ((part_of(which, op->code) & b->parts) == 0)
            continue;
        b->common =
            (mimo_tile_task){.tape = which, .op_code = (uint8_t)op->code, .op = (uint16_t)i, .layer = op->layer};
        lower_op(b, op);
    }
}

static void lower_choice(lowering *b)
{
    const uint32_t V = b->tape[MIMO_TAPE_TARGET]->config->vocab, span = mimo_pick_span(V, b->gpu);
    b->q->spans = (uint32_t)mimo_ceil_div(V, span);
    lower_rows(b, MIMO_TILE_SAMPLE, 0, T, V, span, 1);
    lower_one(b, MIMO_TILE_ACCEPT, 1);
}

static void lower_proposal(lowering *b)
{
    const mimo_config *draft = b->tape[MIMO_TAPE_DRAFT]->config;
    const uint32_t slots = draft->block - 1, drafted = mimo_pick_span(draft->vocab, b->gpu);
    /* A Markov head's bias of a slot depends on the slot before. */
    const uint32_t together = draft->markov_rank > 0 ? 1 : slots;
    for (uint32_t slot = 1; slot <= slots; slot += together) {
        if (draft->markov_rank > 0)
            lower_rows(b, MIMO_TILE_DRAFT_BIAS, slot, 1, draft->vocab, drafted, 1);
        lower_rows(b, MIMO_TILE_DRAFT_SAMPLE, slot, together, draft->vocab, drafted, 1);
    }
    lower_one(b, MIMO_TILE_PROPOSE, 1);
    b->q->spans = (uint32_t)mimo_max(b->q->spans, mimo_ceil_div(draft->vocab, drafted));
}

static void lower_round(lowering *b)
{
    b->stage = b->turn = b->join = b->joins = 0;
    memset(b->filled, 0, b->q->sms * sizeof *b->filled);
    lower_tape(b, MIMO_TAPE_TARGET);
    if (b->parts & MIMO_PART_CHOOSE)
        lower_choice(b);
    if (b->tape[MIMO_TAPE_DRAFT] != NULL) {
        lower_tape(b, MIMO_TAPE_DRAFT);
        if (b->parts & MIMO_PART_PROPOSE)
            lower_proposal(b);
    }
    b->last = b->before;
    b->last_count = b->before_count;
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
            pick_expert_down(&shape, target, target->plan->op[i].dim, gpu);
            return shape.tile_rows;
        }
    return (uint32_t)mimo_round_up(mimo_ceil_div(target->config->hidden, gpu->sms), MIMO_TILE_UNIT);
}

static mimo_status allocate(lowering *b, mimo_error *err)
{
    mimo_queues *q = b->q;
    MIMO_TRY(mimo_alloc_array(&q->begin, (size_t)q->sms + 1, sizeof *q->begin, "queues of SMs", err));
    MIMO_TRY(mimo_alloc_array(&b->filled, q->sms, sizeof *b->filled, "queues of SMs", err));
    for (uint32_t which = 0; which < 2; which++)
        if (b->tape[which] != NULL)
            MIMO_TRY(mimo_alloc_array(&q->shape[which], b->tape[which]->plan->count, sizeof *q->shape[which],
                                      "shapes of tiles", err));
    lower_round(b);
    q->counters = b->stage;
    if (q->counters >= MIMO_NO_COUNTER)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: expected less than %d stages, found %u", MIMO_NO_COUNTER,
                         q->counters);
    for (uint32_t sm = 0; sm < q->sms; sm++)
        q->begin[sm + 1] = q->begin[sm] + b->filled[sm];
    q->tasks = q->begin[q->sms];
    q->joins = b->joins;
    q->last_count = b->last_count;
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
    MIMO_TRY(mimo_pick_shared(&out->shared, gpu, widest, mimo_resident_fixed_bytes(out->widest_head, out->widest_value),
                              err));
    lowering b = {.q = out, .gpu = gpu, .tape = {target, draft}, .parts = parts};
    const mimo_status status = allocate(&b, err);
    if (status == MIMO_OK) {
        b.writes = true;
        lower_round(&b);
        set_ahead(out, gpu);
    } else {
        mimo_queues_release(out);
    }
    mimo_free(b.filled);
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
