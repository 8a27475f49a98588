#include "base/size.h"
#include "cuda/deal.h"
#include "cuda/page.h"

enum { T = MIMO_TILE_TOKENS };

static void keep_largest(uint64_t *largest, uint64_t value)
{
    *largest = mimo_max(*largest, value);
}

static void keep_widest(uint32_t *widest, uint32_t value)
{
    *widest = (uint32_t)mimo_max(*widest, value);
}

static mimo_tile_shape *shape_of(mimo_deal *d)
{
    return &d->q->shape[d->common.tape][d->common.op];
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
static void lower_tiles(mimo_deal *d, mimo_tile_kind kind, const mimo_tile_matrix *m)
{
    const mimo_tile_shape *shape = shape_of(d);
    mimo_tile_task task = mimo_deal_begin(d, kind);
    set_weights(&task, shape);
    task.splits = (uint16_t)shape->splits;
    const uint32_t count = shape->tiles * shape->splits;
    for (uint32_t sm = 0; sm < d->q->sms; sm++) {
        uint32_t first;
        const uint32_t end = mimo_deal_run(d, sm, count, &first);
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
            mimo_deal_task(d, sm, &task);
            first += tiles;
        }
    }
    d->turn = (d->turn + count) % d->q->sms;
    mimo_deal_end(d);
}

/* x and N of the step from sums of H columns. */
static void join_columns(mimo_deal *d, uint32_t H)
{
    mimo_tile_task join = mimo_deal_begin_join(d, MIMO_TILE_REDUCE, shape_of(d)->splits);
    for (uint32_t first = 0; first < H; first += d->q->columns) {
        join.first = first;
        join.count = (uint32_t)mimo_min(d->q->columns, H - first);
        mimo_deal_join(d, &join);
    }
}

/* One join a head of `layer`: `queries` query heads, then G keys and G values, whose rows of P begin at `row`. Returns
 * where they end. */
static uint32_t join_heads(mimo_deal *d, uint16_t layer, uint32_t queries, const mimo_attention *a, uint32_t row)
{
    mimo_tile_task join = mimo_deal_begin_join(d, MIMO_TILE_HEADS, shape_of(d)->splits);
    join.layer = layer;
    join.count = 1;
    for (uint32_t head = 0; head < queries + 2 * a->kv_heads; head++) {
        join.first = head;
        join.k_first = row;
        join.k_count = head < queries + a->kv_heads ? a->head_dim : a->v_head_dim;
        row += join.k_count;
        mimo_deal_join(d, &join);
    }
    return row;
}

/* The rows of a matrix by K; reducers: SMs that add its partial sums. */
static mimo_tile_matrix pick_project(mimo_deal *d, uint32_t rows, uint32_t K, uint32_t reducers)
{
    const mimo_tile_matrix m = {.rows = rows,
                                .K = K,
                                .format = d->tape[d->common.tape]->format[d->common.op_code],
                                .whole = reducers == 0,
                                .reducers = reducers};
    mimo_pick_matrix(shape_of(d), &m, d->gpu, &d->q->shared);
    keep_largest(&d->q->partial_floats, (uint64_t)shape_of(d)->splits * T * rows);
    return m;
}

static void project(mimo_deal *d, uint32_t H, uint32_t K)
{
    const mimo_tile_matrix m = pick_project(d, H, K, d->q->sms);
    join_columns(d, H);
    lower_tiles(d, MIMO_TILE_PROJECT, &m);
}

static void lower_dense_up(mimo_deal *d, uint32_t H, uint32_t F)
{
    const mimo_tile_matrix m = {
        .rows = F, .K = H, .format = d->tape[d->common.tape]->format[MIMO_OP_DENSE_UP], .paired = true, .whole = true};
    mimo_pick_matrix(shape_of(d), &m, d->gpu, &d->q->shared);
    lower_tiles(d, MIMO_TILE_DENSE_UP, &m);
    keep_largest(&d->q->u_elements, (uint64_t)T * F);
    keep_widest(&d->q->u_width, F);
}

static mimo_tile_task begin_expert_stage(mimo_deal *d, mimo_tile_kind kind)
{
    mimo_tile_task task = mimo_deal_begin(d, kind);
    set_weights(&task, shape_of(d));
    task.expert_pages = shape_of(d)->expert_pages;
    task.load_wait = (uint16_t)d->route;
    task.load_wait_count = (uint16_t)d->route_count;
    return task;
}

static void lower_expert_up(mimo_deal *d, const uint32_t *dim)
{
    const uint32_t H = dim[0], F = dim[1], E = dim[2], K = dim[3];
    const mimo_format stored = d->tape[d->common.tape]->format[MIMO_OP_EXPERT_UP];
    const bool e4m3 = d->gpu->e4m3 && stored == MIMO_FORMAT_MXFP4 && H <= MIMO_PAGE_E4M3_K;
    const uint32_t format = e4m3 ? (uint32_t)MIMO_PAGE_E4M3 : (uint32_t)stored;
    const mimo_tile_matrix m = {.rows = F, .K = H, .format = format, .paired = true, .experts = E, .top_k = K};
    mimo_pick_expert_up(shape_of(d), &m, d->gpu);
    d->q->up_format[d->common.tape] = format;
    mimo_tile_task task = begin_expert_stage(d, MIMO_TILE_EXPERT_UP);
    task.k_count = H;
    task.count = d->q->sms;
    task.pages = task.tile_pages;
    /* Units in turn start where the stage before left off, as its longer runs do. */
    for (uint32_t sm = 0; sm < d->q->sms; sm++) {
        task.first = (sm + d->q->sms - d->turn) % d->q->sms;
        mimo_deal_task(d, sm, &task);
    }
    mimo_deal_end(d);
    keep_largest(&d->q->u_elements, (uint64_t)T * K * F);
    keep_widest(&d->q->u_width, F);
}

void mimo_lower_pick_down(mimo_tile_shape *shape, const mimo_tape *tape, const uint32_t *dim, const mimo_gpu *gpu)
{
    const mimo_tile_matrix m = {
        .rows = dim[1], .K = dim[0], .format = tape->format[MIMO_OP_EXPERT_DOWN], .experts = dim[2], .top_k = dim[3]};
    mimo_pick_expert_down(shape, &m, gpu);
}

static void lower_expert_down(mimo_deal *d, const uint32_t *dim)
{
    const uint32_t F = dim[0], H = dim[1];
    mimo_tile_shape *shape = shape_of(d);
    mimo_lower_pick_down(shape, d->tape[d->common.tape], dim, d->gpu);
    join_columns(d, H);
    mimo_tile_task task = begin_expert_stage(d, MIMO_TILE_EXPERT_DOWN);
    task.splits = (uint16_t)shape->splits;
    task.k_count = F;
    const uint32_t count = shape->tiles * shape->splits;
    for (uint32_t sm = 0; sm < d->q->sms; sm++) {
        uint32_t first;
        /* A tile a task: accumulators of one tile live through all experts. */
        for (const uint32_t end = mimo_deal_run(d, sm, count, &first); first < end; first++) {
            const uint32_t tile = first % shape->tiles;
            task.split = (uint16_t)(first / shape->tiles);
            task.first = tile * shape->tile_rows;
            task.count = (uint32_t)mimo_min(shape->tile_rows, H - task.first);
            task.page = tile * shape->tile_pages;
            task.pages = task.tile_pages;
            mimo_deal_task(d, sm, &task);
        }
    }
    d->turn = (d->turn + count) % d->q->sms;
    mimo_deal_end(d);
    keep_largest(&d->q->partial_floats, (uint64_t)shape->splits * T * H);
}

/* ---- stages of small tasks ---- */

static void lower_qkv(mimo_deal *d, const uint32_t *dim, const mimo_attention *a)
{
    const mimo_tile_matrix m = pick_project(d, dim[1] * dim[3] + dim[2] * (dim[3] + dim[4]), dim[0], d->q->sms);
    (void)join_heads(d, d->common.layer, a->heads, a, 0);
    lower_tiles(d, MIMO_TILE_PROJECT, &m);
    keep_largest(&d->q->q_elements, (uint64_t)T * a->heads * a->head_dim);
}

/* The experts of all rows are one SM's choice. */
static void lower_route(mimo_deal *d, const uint32_t *dim)
{
    const mimo_tile_matrix m = pick_project(d, dim[1], dim[0], 1);
    mimo_tile_task join = mimo_deal_begin_join(d, MIMO_TILE_CHOOSE, shape_of(d)->splits);
    join.count = dim[1];
    mimo_deal_join(d, &join);
    lower_tiles(d, MIMO_TILE_PROJECT, &m);
    d->route = d->before;
    d->route_count = d->before_count;
}

static void lower_context(mimo_deal *d, const mimo_config *config)
{
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const mimo_attention *a = mimo_layer_attention(config, layer);
        rows += a->kv_heads * (a->head_dim + a->v_head_dim);
    }
    const mimo_tile_matrix m = pick_project(d, rows, config->hidden, d->q->sms);
    rows = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++)
        rows = join_heads(d, (uint16_t)layer, 0, mimo_layer_attention(config, layer), rows);
    lower_tiles(d, MIMO_TILE_PROJECT, &m);
}

/* All rows of H columns. */
static void lower_embed(mimo_deal *d, uint32_t H)
{
    mimo_tile_task task = mimo_deal_begin(d, MIMO_TILE_EMBED);
    for (uint32_t first = 0; first < H; first += d->q->columns) {
        task.first = first;
        task.count = (uint32_t)mimo_min(d->q->columns, H - first);
        mimo_deal_task(d, mimo_deal_next_sm(d), &task);
    }
    mimo_deal_end(d);
}

/* A row's heads in pieces, so that all SMs have some. */
static void lower_merge(mimo_deal *d, uint32_t N, uint32_t splits)
{
    const uint32_t heads = (uint32_t)mimo_ceil_div(N * T, d->q->sms);
    mimo_tile_task task = mimo_deal_begin(d, MIMO_TILE_MERGE);
    task.splits = (uint16_t)splits;
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t first = 0; first < N; first += heads) {
            task.split = (uint16_t)t;
            task.first = first;
            task.count = (uint32_t)mimo_min(heads, N - first);
            mimo_deal_task(d, mimo_deal_next_sm(d), &task);
        }
    mimo_deal_end(d);
}

static void lower_attention(mimo_deal *d, const uint32_t *dim)
{
    const uint32_t N = dim[0], G = dim[1], Dv = dim[3], W = dim[4];
    uint32_t heads, splits;
    mimo_pick_attend(&heads, &splits, N, G, W, d->gpu);
    mimo_tile_task task = mimo_deal_begin(d, MIMO_TILE_ATTEND);
    task.splits = (uint16_t)splits;
    task.count = heads;
    for (uint32_t split = 0; split < splits; split++)
        for (uint32_t first = 0; first < N; first += heads) {
            task.split = (uint16_t)split;
            task.first = first;
            mimo_deal_task(d, mimo_deal_next_sm(d), &task);
        }
    mimo_deal_end(d);
    keep_largest(&d->q->a_elements, (uint64_t)T * N * Dv);
    keep_widest(&d->q->a_width, N * Dv);
    if (splits == 1)
        return;
    lower_merge(d, N, splits);
    keep_largest(&d->q->attend_floats, (uint64_t)splits * T * N * (Dv + 2));
}

void mimo_lower_op(mimo_deal *d, const mimo_op *op)
{
    const uint32_t *dim = op->dim;
    const mimo_config *config = d->tape[d->common.tape]->config;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_EMBED:
    case MIMO_OP_DRAFT_EMBED:
        lower_embed(d, dim[1]);
        break;
    case MIMO_OP_DRAFT_FUSE:
        project(d, dim[1], mimo_fuse_width(dim, d->gpu->ranks));
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        lower_context(d, config);
        break;
    case MIMO_OP_QKV:
        lower_qkv(d, dim, mimo_layer_attention(config, op->layer));
        break;
    case MIMO_OP_ATTENTION:
        lower_attention(d, dim);
        break;
    case MIMO_OP_OUT_PROJ:
        project(d, dim[2], dim[0] * dim[1]);
        break;
    case MIMO_OP_ROUTE:
        lower_route(d, dim);
        break;
    case MIMO_OP_EXPERT_UP:
        lower_expert_up(d, dim);
        break;
    case MIMO_OP_EXPERT_DOWN:
        lower_expert_down(d, dim);
        break;
    case MIMO_OP_DENSE_UP:
        lower_dense_up(d, dim[0], dim[1]);
        break;
    case MIMO_OP_DENSE_DOWN:
        project(d, dim[1], dim[0]);
        break;
    case MIMO_OP_HEAD: {
        const mimo_tile_matrix m = pick_project(d, dim[1], dim[0], 0);
        lower_tiles(d, MIMO_TILE_PROJECT, &m);
        break;
    }
    case MIMO_OP_COUNT:
        break;
    }
}
