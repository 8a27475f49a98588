/* The simulator's memory: which phases a step has, told from the tape, and the cells that they write. */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "python/probe_area.h"

static const uint32_t kind_writes[MIMO_TILE_KINDS] = {
#define MIMO_TILE(kind, name, reads, writes) writes,
#include "cuda/tiles.def"
#undef MIMO_TILE
};

/* ---- phases ---- */

/* The areas that a phase really writes: some kinds depend on the operation. */
static uint32_t written(const mimo_op *op, uint8_t kind, uint8_t tape)
{
    uint32_t areas = kind_writes[kind];
    if (kind == MIMO_TILE_PROJECT)
        areas = op->code == MIMO_OP_HEAD ? MIMO_AREA_LOGITS : MIMO_AREA_P;
    if (kind == MIMO_TILE_REDUCE && op->code != MIMO_OP_DRAFT_FUSE)
        areas &= ~(uint32_t)MIMO_AREA_ANGLES;
    if (kind == MIMO_TILE_REDUCE && tape == MIMO_TAPE_DRAFT)
        areas &= ~(uint32_t)MIMO_AREA_FEATURES;
    return areas;
}

static void add_phase(mimo_probe_cells *c, uint32_t *last, uint8_t tape, uint32_t op, uint8_t kind, uint64_t work)
{
    mimo_probe_phase *phase = &c->phase[c->phases];
    *phase = (mimo_probe_phase){.op = &c->model->tape[tape].plan->op[op], .kind = kind, .tape = tape, .expected = work};
    memcpy(phase->from, last, sizeof phase->from);
    const uint32_t areas = written(phase->op, kind, tape);
    for (uint32_t a = 0; a < MIMO_AREAS; a++)
        if (areas >> a & 1)
            last[a] = c->phases;
    c->phase_of[tape][op * MIMO_TILE_KINDS + kind] = c->phases++;
}

static uint64_t product(uint64_t a, uint64_t b)
{
    return a * b;
}

static uint32_t context_rows(const mimo_config *config)
{
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const mimo_attention *a = mimo_layer_attention(config, layer);
        rows += a->kv_heads * (a->head_dim + a->v_head_dim);
    }
    return rows;
}

static void add_op(mimo_probe_cells *c, uint32_t *last, uint8_t tape, uint32_t i, const bool *merges)
{
    const mimo_op *op = &c->model->tape[tape].plan->op[i];
    const mimo_config *config = c->model->tape[tape].config;
    const uint32_t *d = op->dim, H = config->hidden, rows = tape == MIMO_TAPE_TARGET ? T : config->block - 1;
#define ADD(kind, work) add_phase(c, last, tape, i, MIMO_TILE_##kind, work)
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_EMBED:
    case MIMO_OP_DRAFT_EMBED:
        ADD(EMBED, product(T, H));
        break;
    case MIMO_OP_DRAFT_FUSE:
        ADD(PROJECT, product(H, mimo_fuse_width(d, c->model->gpu.ranks)));
        ADD(REDUCE, product(T, H));
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        ADD(PROJECT, product(context_rows(config), H));
        ADD(HEADS, context_rows(config));
        break;
    case MIMO_OP_QKV:
        ADD(PROJECT, product(d[1] * d[3] + d[2] * (d[3] + d[4]), H));
        ADD(HEADS, d[1] * d[3] + d[2] * (d[3] + d[4]));
        break;
    case MIMO_OP_ATTENTION:
        ADD(ATTEND, d[0]); /* times splits, known from the tasks */
        if (merges[i])
            ADD(MERGE, product(T, d[0]));
        break;
    case MIMO_OP_OUT_PROJ:
        ADD(PROJECT, product(H, d[0] * d[1]));
        ADD(REDUCE, product(T, H));
        break;
    case MIMO_OP_ROUTE:
        ADD(PROJECT, product(d[1], H));
        ADD(CHOOSE, 1);
        break;
    case MIMO_OP_EXPERT_UP:
        ADD(EXPERT_UP, 0); /* known from the choices */
        break;
    case MIMO_OP_EXPERT_DOWN:
        ADD(EXPERT_DOWN, 0);
        ADD(REDUCE, product(T, H));
        break;
    case MIMO_OP_DENSE_UP:
        ADD(DENSE_UP, d[1]);
        break;
    case MIMO_OP_DENSE_DOWN:
        ADD(PROJECT, product(H, d[0]));
        ADD(REDUCE, product(T, H));
        break;
    case MIMO_OP_HEAD:
        ADD(PROJECT, product(d[1], H));
        if (tape == MIMO_TAPE_DRAFT && config->markov_rank > 0)
            ADD(DRAFT_BIAS, product(config->block - 1, d[1]));
        ADD(SCAN, product(rows, d[1]));
        ADD(COLLECT, product(rows, d[1]));
        ADD(CUT, rows);
        ADD(SAMPLE, product(rows, d[1]));
        if (tape == MIMO_TAPE_TARGET) {
            c->accept = c->phases;
            ADD(ACCEPT, rows);
        } else {
            if (config->markov_rank > 0 && rows > 1)
                ADD(PICK, rows - 1);
            c->propose = c->phases;
            ADD(PROPOSE, config->markov_rank > 0 ? 1 : rows);
        }
        break;
    case MIMO_OP_COUNT:
        break;
    }
#undef ADD
}

static int open_phases(mimo_probe_cells *c, const mimo_tile_task *tasks, uint32_t count)
{
    const mimo_probe_model *m = c->model;
    uint32_t last[MIMO_AREAS], ops = 0;
    memset(last, 0xff, sizeof last);
    for (uint32_t which = 0; which <= m->has_draft; which++) {
        const size_t entries = (size_t)m->tape[which].plan->count * MIMO_TILE_KINDS;
        ops += m->tape[which].plan->count;
        if (mimo_alloc_array(&c->phase_of[which], entries, sizeof(uint32_t), "phases", NULL) != MIMO_OK)
            return -1;
        memset(c->phase_of[which], 0xff, entries * sizeof(uint32_t));
    }
    if (mimo_alloc_array(&c->phase, (size_t)ops * 4 + 2 * TOKEN_PHASES, sizeof *c->phase, "phases", NULL) != MIMO_OK)
        return -1;
    for (uint8_t which = 0; which <= m->has_draft; which++) {
        bool merges[MIMO_MAX_OPS] = {false};
        for (uint32_t i = 0; i < count; i++)
            if (tasks[i].tape == which && tasks[i].kind == MIMO_TILE_MERGE && tasks[i].op < MIMO_MAX_OPS)
                merges[tasks[i].op] = true;
        for (uint32_t i = 0; i < m->tape[which].plan->count; i++)
            add_op(c, last, which, i, merges);
    }
    if (!m->has_draft)
        return 0;
    for (uint32_t i = 0; i < m->tape[1].config->taps; i++)
        for (uint32_t p = 0; p < c->phases; p++)
            if (c->phase[p].tape == MIMO_TAPE_TARGET && c->phase[p].kind == MIMO_TILE_REDUCE &&
                c->phase[p].op->code != MIMO_OP_OUT_PROJ && c->phase[p].op->layer == m->tap[i])
                c->feature_phase[i] = p;
    return 0;
}

/* ---- cells ---- */

static void size_cells(mimo_probe_cells *c, uint32_t *total)
{
    const mimo_probe_model *m = c->model;
    uint32_t widest = 0, top_k = 1, rows = m->tape[0].config->hidden, layers = 0, V = 0, splits = 1;
    for (uint32_t which = 0; which <= m->has_draft; which++) {
        const mimo_config *config = m->tape[which].config;
        widest = (uint32_t)mimo_max(widest, mimo_max(config->dense_width, config->expert_width));
        top_k = (uint32_t)mimo_max(top_k, config->top_k);
        V = (uint32_t)mimo_max(V, config->vocab);
        rows = (uint32_t)mimo_max(rows, mimo_max(config->experts, which == 1 ? context_rows(config) : 0));
        layers += config->layers * (1 + which);
        for (uint32_t kind = 0; kind < 2; kind++) {
            const mimo_attention *a = &config->attention[kind];
            rows = (uint32_t)mimo_max(rows, mimo_qkv_rows(a));
            c->heads = (uint32_t)mimo_max(c->heads, a->heads);
            c->kv_heads = (uint32_t)mimo_max(c->kv_heads, a->kv_heads);
        }
        for (uint32_t i = 0; i < m->tape[which].plan->count; i++)
            splits = (uint32_t)mimo_max(splits, m->q.shape[which][i].splits);
    }
    c->columns = (uint32_t)mimo_ceil_div(m->tape[0].config->hidden, COLUMN_CELL);
    c->blocks = (uint32_t)mimo_ceil_div(V, MIMO_TILE_IDS);
    c->p_rows = (uint32_t)mimo_ceil_div(rows, ROW_CELL);
    c->u_columns = (uint32_t)mimo_ceil_div(widest, ROW_CELL);
    c->features = m->has_draft ? m->tape[1].config->taps : 0;
    const uint32_t size[MIMO_AREAS] = {[STATE] = 2,
                                       [ANGLES] = T,
                                       [X] = T * c->columns,
                                       [N] = T * c->columns,
                                       [P] = splits * c->p_rows,
                                       [Q] = c->heads,
                                       [KV] = layers * 2 * c->kv_heads,
                                       [S] = MIMO_TILE_MOST_SPLITS * c->heads,
                                       [A] = T * c->heads,
                                       [ROUTES] = 1,
                                       [U] = T * top_k * c->u_columns,
                                       [LOGITS] = (uint32_t)mimo_ceil_div(V, ROW_CELL),
                                       [BEST] = T * c->blocks,
                                       [MAXIMA] = T * c->blocks,
                                       [KEPT] = T * c->blocks,
                                       [FILTER] = T,
                                       [PICKED] = T,
                                       [FEATURES] = c->features * T * c->columns,
                                       [BIASED] = T * (uint32_t)mimo_ceil_div(V, ROW_CELL)};
    *total = 0;
    for (uint32_t a = 0; a < MIMO_AREAS; a++) {
        c->base[a] = *total;
        c->size[a] = size[a];
        *total += size[a];
    }
}

int mimo_probe_cells_open(mimo_probe_cells *cells, const mimo_probe_model *model, const mimo_tile_task *tasks,
                          uint32_t count)
{
    *cells = (mimo_probe_cells){.model = model};
    uint32_t total;
    size_cells(cells, &total);
    if (open_phases(cells, tasks, count) < 0 ||
        mimo_alloc_array(&cells->stamp, total, sizeof *cells->stamp, "cells", NULL) != MIMO_OK) {
        mimo_probe_cells_close(cells);
        return -1;
    }
    return 0;
}

void mimo_probe_cells_close(mimo_probe_cells *cells)
{
    mimo_free(cells->phase_of[0]);
    mimo_free(cells->phase_of[1]);
    mimo_free(cells->phase);
    mimo_free(cells->stamp);
    *cells = (mimo_probe_cells){0};
}

void mimo_probe_cells_reset(mimo_probe_cells *c)
{
    const uint32_t last = MIMO_AREAS - 1;
    memset(c->stamp, 0, (c->base[last] + c->size[last]) * sizeof *c->stamp);
    c->stamp[0] = mimo_probe_stamp(c, -1, c->accept);
    c->stamp[1] = mimo_probe_stamp(c, -1, c->propose);
    c->text[0] = '\0';
    c->moe.experts = 0;
    for (uint32_t p = 0; p < c->phases; p++) {
        c->phase[p].done = c->phase[p].splits = 0;
        if (c->phase[p].kind == MIMO_TILE_EXPERT_UP || c->phase[p].kind == MIMO_TILE_EXPERT_DOWN)
            c->phase[p].expected = 0;
    }
}
