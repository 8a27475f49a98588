/* What tasks may read and write, told from the tape and the config, not from the queues. */
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "python/probe_area.h"

static const char *const area_name[MIMO_AREAS] = {"STATE",  "ANGLES", "X",      "N",      "P",      "Q",    "KV",
                                                  "S",      "A",      "ROUTES", "U",      "LOGITS", "BEST", "FEATURES",
                                                  "BIASED", "MAXIMA", "KEPT",   "FILTER", "PICKED"};
static const char *const kind_name[MIMO_TILE_KINDS] = {
#define MIMO_TILE(kind, name, ...) name,
#include "cuda/tiles.def"
#undef MIMO_TILE
};
typedef enum touch_mode { CHECK, BEGIN_WRITE, END_WRITE } touch_mode;

typedef struct touching {
    mimo_probe_cells *c;
    const mimo_tile_task *task;
    const mimo_probe_phase *phase;
    uint32_t step, index; /* index: of the phase */
    touch_mode mode;
} touching;

static bool fail(const touching *t, const char *what, const char *area, uint32_t cell)
{
    const mimo_tile_task *k = t->task;
    if (t->c->text[0] == '\0')
        snprintf(t->c->text, sizeof t->c->text,
                 "%s: step %u, %s of %s op %u (%s), layer %u, first %u, split %u: %s cell %u", what, t->step,
                 kind_name[k->kind % MIMO_TILE_KINDS], k->tape ? "draft" : "target", k->op,
                 mimo_op_infos[t->phase->op->code].name, k->layer, k->first, k->split, area, cell);
    return false;
}

static bool touch(const touching *t, uint32_t area, uint32_t at, uint32_t count, uint32_t expected)
{
    mimo_probe_cells *c = t->c;
    if (count > c->size[area] || at > c->size[area] - count)
        return fail(t, "outside of an area", area_name[area], at);
    uint32_t *stamp = c->stamp + c->base[area];
    const uint32_t own = mimo_probe_stamp(c, t->step, t->index);
    for (uint32_t i = at; i < at + count; i++) {
        if (t->mode == CHECK && stamp[i] != expected)
            return fail(t,
                        (stamp[i] & (WRITING - 1)) > expected ? "overwritten before it was read"
                                                              : "read before it was written",
                        area_name[area], i);
        if (t->mode == BEGIN_WRITE && (stamp[i] & ~(uint32_t)WRITING) == own)
            return fail(t, "written twice", area_name[area], i);
        if (t->mode == END_WRITE && stamp[i] != (own | WRITING))
            return fail(t, "written by two at once", area_name[area], i);
        if (t->mode == BEGIN_WRITE)
            stamp[i] = own | WRITING;
        else if (t->mode == END_WRITE)
            stamp[i] = own;
    }
    return true;
}

/* Reads cells that this step's latest writer of the area wrote. */
static bool look(const touching *t, uint32_t area, uint32_t at, uint32_t count)
{
    const uint32_t from = t->phase->from[area];
    if (from == (uint32_t)NO_PHASE)
        return fail(t, "read, but never written", area_name[area], at);
    return touch(t, area, at, count, mimo_probe_stamp(t->c, t->step, from));
}

/* State of the step before (target), or as ACCEPT left it (draft). */
static bool look_state(const touching *t)
{
    const bool draft = t->phase->tape == MIMO_TAPE_DRAFT;
    const int64_t step = (int64_t)t->step - !draft;
    if (!touch(t, STATE, 0, 1, mimo_probe_stamp(t->c, step, t->c->accept)))
        return false;
    return draft || !t->c->model->has_draft ||
           touch(t, STATE, 1, 1, mimo_probe_stamp(t->c, (int64_t)t->step - 1, t->c->propose));
}

static bool look_rows(const touching *t, uint32_t area, uint32_t first, uint32_t count)
{
    const uint32_t end = (uint32_t)mimo_ceil_div(first + count, COLUMN_CELL);
    for (uint32_t row = 0; row < T; row++)
        if (!look(t, area, row * t->c->columns + first / COLUMN_CELL, end - first / COLUMN_CELL))
            return false;
    return true;
}

/* Partial sums of rows [first, first + count) of all splits; as many as the projection had. */
static bool look_sums(const touching *t, uint32_t first, uint32_t count, uint32_t splits)
{
    const uint32_t from = t->phase->from[P];
    if (from == (uint32_t)NO_PHASE || t->c->phase[from].splits != splits)
        return fail(t, "adds another number of splits than there are", area_name[P], splits);
    const uint32_t end = (uint32_t)mimo_ceil_div(first + count, ROW_CELL);
    for (uint32_t s = 0; s < splits; s++)
        if (!look(t, P, s * t->c->p_rows + first / ROW_CELL, end - first / ROW_CELL))
            return false;
    return true;
}

static bool look_features(const touching *t, uint32_t first, uint32_t count)
{
    const uint32_t H = t->c->model->tape[0].config->hidden;
    for (uint32_t k = first / COLUMN_CELL * COLUMN_CELL; k < first + count; k += COLUMN_CELL)
        for (uint32_t row = 0; row < T; row++) {
            const uint32_t tap = k / H, cell = (tap * T + row) * t->c->columns + k % H / COLUMN_CELL;
            if (tap >= t->c->features ||
                !touch(t, FEATURES, cell, 1, mimo_probe_stamp(t->c, t->step, t->c->feature_phase[tap])))
                return fail(t, "outside of an area", area_name[FEATURES], tap);
        }
    return true;
}

static bool look_projected(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t Dv = t->phase->op->dim[1];
    switch ((mimo_op_code)t->phase->op->code) {
    case MIMO_OP_OUT_PROJ:
        for (uint32_t row = 0; row < T; row++) {
            const uint32_t first = k->k_first / Dv, end = (uint32_t)mimo_ceil_div(k->k_first + k->k_count, Dv);
            if (!look(t, A, row * t->c->heads + first, end - first))
                return false;
        }
        return true;
    case MIMO_OP_DENSE_DOWN:
        return look(t, U, k->k_first / ROW_CELL, (uint32_t)mimo_ceil_div(k->k_count, ROW_CELL));
    case MIMO_OP_DRAFT_FUSE: /* of the rows that were accepted */
        return look_state(t) && look_features(t, k->k_first, k->k_count);
    case MIMO_OP_ROUTE: /* in float the stream itself */
        return look_rows(t, X, k->k_first, k->k_count) && look_rows(t, N, k->k_first, k->k_count);
    default:
        return look_rows(t, N, k->k_first, k->k_count);
    }
}

/* Cells of a layer's keys (0) or values (1) of key head g; `context`: the drafter's of committed positions. */
static uint32_t kv_cell(const mimo_probe_cells *c, uint8_t tape, uint32_t layer, bool context, uint32_t g,
                        uint32_t part)
{
    if (tape == MIMO_TAPE_DRAFT)
        layer += c->model->tape[0].config->layers + context * c->model->tape[1].config->layers;
    return (layer * c->kv_heads + g) * 2 + part;
}

static bool look_attended(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t heads = t->phase->op->dim[0], G = t->phase->op->dim[1], group = heads / G;
    if (k->split >= k->splits || k->count == 0 || k->first + k->count > heads || !look(t, Q, k->first, k->count))
        return fail(t, "outside of an area", area_name[Q], k->first);
    const uint8_t tape = t->phase->tape;
    const uint32_t *contexts = t->c->phase_of[1]; /* DRAFT_CONTEXT is operation 1 of its tape */
    for (uint32_t g = k->first / group; g <= (k->first + k->count - 1) / group; g++)
        for (uint32_t part = 0; part < 2; part++) {
            if (!look(t, KV, kv_cell(t->c, tape, k->layer, false, g, part), 1))
                return false;
            if (tape == MIMO_TAPE_DRAFT &&
                !touch(t, KV, kv_cell(t->c, tape, k->layer, true, g, part), 1,
                       mimo_probe_stamp(t->c, t->step, contexts[MIMO_TILE_KINDS + MIMO_TILE_HEADS])))
                return false;
        }
    return true;
}

static bool look_experts(const touching *t, uint32_t F)
{
    const mimo_moe *moe = &t->c->moe;
    for (uint32_t i = 0; i < moe->experts; i++)
        if (moe->expert[i] % t->task->splits == t->task->split &&
            !look(t, U, i * t->c->u_columns, (uint32_t)mimo_ceil_div(F, ROW_CELL)))
            return false;
    return true;
}

/* The drafter's tokens of slots [1, end), of earlier stages of this step. */
static bool look_picked(const touching *t, uint32_t end)
{
    const uint32_t op = (uint32_t)(t->phase->op - t->c->model->tape[MIMO_TAPE_DRAFT].plan->op);
    const uint32_t phase = t->c->phase_of[MIMO_TAPE_DRAFT][op * MIMO_TILE_KINDS + MIMO_TILE_PICK];
    return end <= 1 || touch(t, PICKED, 1, end - 1, mimo_probe_stamp(t->c, t->step, phase));
}

/* Blocks of ids of a task's rows, all or its own; of areas with a cell a row, that one. */
static bool look_blocks(const touching *t, uint32_t area, bool all)
{
    const uint32_t stride = t->c->size[area] / T, V = t->c->model->tape[t->phase->tape].config->vocab;
    const uint32_t first = all ? 0 : t->task->first / MIMO_TILE_IDS, ids = all ? V : t->task->count;
    const uint32_t count = stride == 1 ? 1 : (uint32_t)mimo_ceil_div(ids, MIMO_TILE_IDS);
    for (uint32_t row = t->task->split; row < (uint32_t)t->task->split + t->task->splits; row++)
        if (!(t->mode == CHECK ? look(t, area, row * stride + first, count)
                               : touch(t, area, row * stride + first, count, 0)))
            return false;
    return true;
}

static uint32_t biased_cell(const touching *t)
{
    const uint32_t V = t->c->model->tape[MIMO_TAPE_DRAFT].config->vocab;
    return t->task->split * (uint32_t)mimo_ceil_div(V, ROW_CELL) + t->task->first / ROW_CELL;
}

static bool look_logits(const touching *t)
{
    const uint32_t rows = (uint32_t)mimo_ceil_div(t->task->count, ROW_CELL);
    const bool biased = t->phase->tape == MIMO_TAPE_DRAFT && t->c->model->tape[1].config->markov_rank > 0;
    return look_state(t) &&
           (biased ? look(t, BIASED, biased_cell(t), rows) : look(t, LOGITS, t->task->first / ROW_CELL, rows));
}

static bool reads(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t rows = (uint32_t)mimo_ceil_div(k->count, ROW_CELL);
    const uint32_t *dim = t->phase->op->dim;
    switch ((mimo_tile_kind)t->phase->kind) {
    case MIMO_TILE_EMBED:
        return look_state(t);
    case MIMO_TILE_PROJECT:
        return look_projected(t);
    case MIMO_TILE_REDUCE:
        return look_sums(t, k->first, k->count, k->splits);
    case MIMO_TILE_HEADS:
        return look(t, ANGLES, 0, T) && look_sums(t, k->k_first, k->k_count, k->splits);
    case MIMO_TILE_ATTEND:
        return look_attended(t);
    case MIMO_TILE_MERGE:
        for (uint32_t s = 0; s < k->splits; s++)
            if (!look(t, S, s * t->c->heads + k->first, k->count))
                return false;
        return t->c->phase[t->phase->from[S]].splits == k->splits ||
               fail(t, "adds another number of splits than there are", area_name[S], k->splits);
    case MIMO_TILE_CHOOSE:
        return look_sums(t, 0, dim[1], k->splits);
    case MIMO_TILE_EXPERT_UP:
        return look(t, ROUTES, 0, 1) && look_rows(t, N, 0, dim[0]);
    case MIMO_TILE_EXPERT_DOWN:
        return look(t, ROUTES, 0, 1) && look_experts(t, dim[0]);
    case MIMO_TILE_DENSE_UP:
        return look_rows(t, N, 0, dim[0]);
    case MIMO_TILE_DRAFT_BIAS:
        return look_state(t) && look_picked(t, k->split) && look(t, LOGITS, k->first / ROW_CELL, rows);
    case MIMO_TILE_SCAN:
        return look_logits(t);
    case MIMO_TILE_COLLECT:
        return look_logits(t) && look_blocks(t, MAXIMA, true);
    case MIMO_TILE_CUT:
        return look_state(t) && look_blocks(t, MAXIMA, true) && look_blocks(t, KEPT, true);
    case MIMO_TILE_SAMPLE:
        return look_logits(t) && look_blocks(t, FILTER, true);
    case MIMO_TILE_PICK:
        return look_state(t) && look_blocks(t, BEST, true);
    case MIMO_TILE_ACCEPT: /* which writes the state that it reads */
        return look_blocks(t, BEST, true);
    case MIMO_TILE_PROPOSE:
        return look_state(t) && look_blocks(t, BEST, true) && look_picked(t, k->split);
    case MIMO_TILE_KINDS:
        break;
    }
    return true;
}

static bool write_columns(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t count = (uint32_t)mimo_ceil_div(k->count, COLUMN_CELL);
    if (k->first % t->c->model->q.columns != 0)
        return fail(t, "not where a piece begins", area_name[X], k->first);
    for (uint32_t row = 0; row < T; row++) {
        const uint32_t at = row * t->c->columns + k->first / COLUMN_CELL;
        if (!touch(t, X, at, count, 0) || !touch(t, N, at, count, 0))
            return false;
        for (uint32_t i = 0; i < t->c->features; i++)
            if (t->c->feature_phase[i] == t->index && !touch(t, FEATURES, i * T * t->c->columns + at, count, 0))
                return false;
    }
    const bool angles = t->phase->kind == MIMO_TILE_EMBED || t->phase->op->code == MIMO_OP_DRAFT_FUSE;
    return !angles || k->first != 0 || touch(t, ANGLES, 0, T, 0);
}

static bool write_head(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const bool context = t->phase->op->code == MIMO_OP_DRAFT_CONTEXT;
    const mimo_config *config = t->c->model->tape[t->phase->tape].config;
    if (k->count != 1 || k->layer >= config->layers)
        return fail(t, "no such head", area_name[KV], k->first);
    const mimo_attention *a = mimo_layer_attention(config, k->layer);
    const uint32_t queries = context ? 0 : a->heads, G = a->kv_heads, head = k->first;
    uint32_t row = 0;
    for (uint32_t i = 0; context && i < k->layer; i++) {
        const mimo_attention *before = mimo_layer_attention(config, i);
        row += before->kv_heads * (before->head_dim + before->v_head_dim);
    }
    const uint32_t keys = queries + G;
    row += (uint32_t)mimo_min(head, keys) * a->head_dim + (head > keys ? head - keys : 0) * a->v_head_dim;
    if (head >= keys + G || k->k_first != row || k->k_count != (head < keys ? a->head_dim : a->v_head_dim))
        return fail(t, "no such head", area_name[P], k->k_first);
    if (head < queries)
        return touch(t, Q, head, 1, 0);
    const uint32_t g = (head - queries) % G;
    return touch(t, KV, kv_cell(t->c, t->phase->tape, k->layer, context, g, head >= keys), 1, 0);
}

/* Units of a lane of EXPERT_UP. */
static bool write_units(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t F = t->phase->op->dim[1], tiles = k->expert_pages / k->tile_pages;
    for (uint32_t n = k->first; n < t->c->moe.experts * tiles; n += k->count) {
        const mimo_moe_unit unit = mimo_moe_unit_at(n, tiles);
        const uint32_t f = unit.tile * k->tile_rows;
        const uint32_t rows = (uint32_t)mimo_min(k->tile_rows, F - f);
        if (!touch(t, U, unit.index * t->c->u_columns + f / ROW_CELL, (uint32_t)mimo_ceil_div(rows, ROW_CELL), 0))
            return false;
        if (t->mode == END_WRITE)
            t->c->phase[t->index].done += rows;
    }
    return true;
}

static bool writes(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const uint32_t rows = (uint32_t)mimo_ceil_div(k->count, ROW_CELL);
    switch ((mimo_tile_kind)t->phase->kind) {
    case MIMO_TILE_EMBED:
    case MIMO_TILE_REDUCE:
        return write_columns(t);
    case MIMO_TILE_PROJECT:
        if (t->phase->op->code == MIMO_OP_HEAD)
            return touch(t, LOGITS, k->first / ROW_CELL, rows, 0);
        return touch(t, P, k->split * t->c->p_rows + k->first / ROW_CELL, rows, 0);
    case MIMO_TILE_EXPERT_DOWN:
        return touch(t, P, k->split * t->c->p_rows + k->first / ROW_CELL, rows, 0);
    case MIMO_TILE_HEADS:
        return write_head(t);
    case MIMO_TILE_ATTEND:
        if (k->splits > 1)
            return touch(t, S, k->split * t->c->heads + k->first, k->count, 0);
        for (uint32_t row = 0; row < T; row++)
            if (!touch(t, A, row * t->c->heads + k->first, k->count, 0))
                return false;
        return true;
    case MIMO_TILE_MERGE:
        return touch(t, A, k->split * t->c->heads + k->first, k->count, 0);
    case MIMO_TILE_CHOOSE:
        return touch(t, ROUTES, 0, 1, 0);
    case MIMO_TILE_EXPERT_UP:
        return write_units(t);
    case MIMO_TILE_DENSE_UP:
        return touch(t, U, k->first / ROW_CELL, rows, 0);
    case MIMO_TILE_DRAFT_BIAS:
        return touch(t, BIASED, biased_cell(t), rows, 0);
    case MIMO_TILE_SCAN:
        return look_blocks(t, MAXIMA, false);
    case MIMO_TILE_COLLECT:
        return look_blocks(t, KEPT, false);
    case MIMO_TILE_CUT:
        return look_blocks(t, FILTER, false);
    case MIMO_TILE_SAMPLE:
        return look_blocks(t, BEST, false);
    case MIMO_TILE_PICK:
        return look_blocks(t, PICKED, false);
    case MIMO_TILE_ACCEPT:
        return look_blocks(t, PICKED, false) && touch(t, STATE, 0, 1, 0);
    case MIMO_TILE_PROPOSE:
        return look_blocks(t, PICKED, false) && touch(t, STATE, 1, 1, 0);
    case MIMO_TILE_KINDS:
        break;
    }
    return true;
}

/* ---- tasks ---- */

static bool joins_sums(const mimo_tile_task *k)
{
    return k->kind == MIMO_TILE_REDUCE || k->kind == MIMO_TILE_HEADS || k->kind == MIMO_TILE_CHOOSE;
}

static bool joins_rows(const mimo_tile_task *k)
{
    return k->kind == MIMO_TILE_PICK || k->kind == MIMO_TILE_ACCEPT || k->kind == MIMO_TILE_PROPOSE;
}

/* Of the stages that choose tokens: tasks begin where a block of ids does. */
static bool names_ids(const mimo_tile_task *k)
{
    const bool is_row = k->kind == MIMO_TILE_CUT || k->kind == MIMO_TILE_PICK || k->kind == MIMO_TILE_DRAFT_BIAS;
    return k->first % MIMO_TILE_IDS == 0 && k->split + k->splits <= T && (!is_row || k->splits == 1) &&
           ((k->kind != MIMO_TILE_CUT && !joins_rows(k)) || (k->first == 0 && k->count == 0));
}

/* Whether a task or join that reads no weights leaves their fields 0, and others that it has no use for. */
static bool names_none(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const bool rows_of_p = k->kind == MIMO_TILE_HEADS;
    if ((joins_sums(k) || k->kind == MIMO_TILE_EMBED) && k->split != 0)
        return false;
    if (k->kind >= MIMO_TILE_DRAFT_BIAS && !names_ids(k))
        return false;
    if (k->kind == MIMO_TILE_CHOOSE && (k->first != 0 || k->count != t->phase->op->dim[1]))
        return false;
    if ((joins_sums(k) || joins_rows(k)) && (k->wait != MIMO_NO_COUNTER || k->load_wait != MIMO_NO_COUNTER))
        return false;
    return k->tile_rows == 0 && k->tile_pages == 0 && k->page == 0 && k->pages == 0 && k->page_bytes == 0 &&
           k->expert_pages == 0 && k->k_page == 0 && (k->joins > 0 ? k->kind == MIMO_TILE_SAMPLE : k->join == 0) &&
           (rows_of_p || (k->k_first == 0 && k->k_count == 0));
}

/* Whether a task names its weights as they lie in memory, and the K of its tiles. */
static bool names_weights(const touching *t)
{
    const mimo_tile_task *k = t->task;
    const mimo_tile_shape *shape = &t->c->model->q.shape[t->phase->tape][k->op];
    const bool is_up = k->kind == MIMO_TILE_EXPERT_UP, is_down = k->kind == MIMO_TILE_EXPERT_DOWN;
    if (!is_up && !is_down && k->kind != MIMO_TILE_PROJECT && k->kind != MIMO_TILE_DENSE_UP)
        return names_none(t);
    if (k->tile_rows != shape->tile_rows || k->tile_pages != shape->tile_pages || k->page_bytes != shape->page_bytes ||
        k->k_page != shape->k_page || k->page_bytes > MIMO_RING_PAGE || k->split >= k->splits)
        return false;
    if (k->expert_pages != (is_up || is_down ? shape->expert_pages : 0) || (k->joins == 0 && k->join != 0))
        return false;
    if (is_up)
        return k->split == 0 && k->splits == 1 && k->page == 0 && k->pages == k->tile_pages && k->k_first == 0 &&
               k->k_count == t->phase->op->dim[0];
    if (k->first % k->tile_rows != 0 || k->splits != shape->splits)
        return false;
    const uint32_t tile = k->first / k->tile_rows;
    if (is_down)
        return k->page == tile * k->tile_pages && k->pages == k->tile_pages && k->k_first == 0 &&
               k->k_count == t->phase->op->dim[0];
    const uint32_t tiles = (uint32_t)mimo_ceil_div(k->count, k->tile_rows);
    return k->page == (k->split * shape->tiles + tile) * k->tile_pages && k->pages == tiles * k->tile_pages &&
           k->k_first == k->split * shape->k_split && k->k_count <= shape->k_split &&
           (k->kind != MIMO_TILE_DENSE_UP || k->k_count == t->phase->op->dim[0]);
}

static bool find(touching *t, mimo_probe_cells *c, const mimo_tile_task *task, uint32_t step)
{
    *t = (touching){.c = c, .task = task, .phase = &c->phase[0], .step = step};
    if (task->kind >= MIMO_TILE_KINDS || task->tape > c->model->has_draft ||
        task->op >= c->model->tape[task->tape].plan->count)
        return fail(t, "no such operation", "kind", task->kind);
    t->index = c->phase_of[task->tape][task->op * MIMO_TILE_KINDS + task->kind];
    if (t->index >= c->phases)
        return fail(t, "not a kind of this operation", "kind", task->kind);
    t->phase = &c->phase[t->index];
    if (task->op_code != t->phase->op->code ||
        (task->layer != t->phase->op->layer &&
         (t->phase->op->code != MIMO_OP_DRAFT_CONTEXT || task->kind != MIMO_TILE_HEADS)))
        return fail(t, "another operation's code or layer", "op", task->op);
    return true;
}

bool mimo_probe_cells_begin(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step)
{
    touching t;
    if (!find(&t, cells, task, step))
        return false;
    if (!names_weights(&t))
        return fail(&t, "weights that are not the tile's", "page", task->page);
    mimo_probe_phase *phase = &cells->phase[t.index];
    if (phase->splits != 0 && phase->splits != task->splits)
        return fail(&t, "tasks of a phase differ in splits", "splits", task->splits);
    phase->splits = task->splits;
    if (phase->kind == MIMO_TILE_REDUCE && phase->op->code != MIMO_OP_DRAFT_FUSE &&
        !look_rows(&t, X, task->first, task->count))
        return false;
    if (!reads(&t))
        return false;
    t.mode = BEGIN_WRITE;
    return writes(&t);
}

/* The router's choice of a step: 1 to T rows, each of distinct experts. */
static void choose(touching *t, uint64_t *random)
{
    mimo_probe_cells *c = t->c;
    const uint32_t E = t->phase->op->dim[1], K = t->phase->op->dim[2], rows = 1 + mimo_probe_random(random, T);
    uint16_t *chosen = c->moe.chosen;
    for (uint32_t i = 0; i < rows * K; i++) {
        bool taken = true;
        while (taken) {
            chosen[i] = (uint16_t)mimo_probe_random(random, E);
            taken = false;
            for (uint32_t j = i / K * K; j < i; j++)
                taken |= chosen[j] == chosen[i];
        }
    }
    for (uint32_t i = 0; i < rows * K; i++)
        mimo_moe_mark(&c->moe, i);
    for (uint32_t i = 0; i < rows * K; i++)
        mimo_moe_place(&c->moe, rows * K, K, i);
    const mimo_op *up = t->phase->op + 1; /* in the tape */
    mimo_probe_phase *next = &c->phase[t->index + 1];
    next[0].expected += (uint64_t)c->moe.experts * up->dim[1];
    next[1].expected += (uint64_t)c->moe.experts * up->dim[0];
}

/* Elements of work that a task stands for; EXPERT_UP counts its own. */
static uint64_t work_of(const touching *t)
{
    const mimo_tile_task *k = t->task;
    uint64_t experts = 0;
    switch ((mimo_tile_kind)t->phase->kind) {
    case MIMO_TILE_PROJECT:
        return (uint64_t)k->count * k->k_count;
    case MIMO_TILE_HEADS:
        return k->k_count;
    case MIMO_TILE_EMBED:
    case MIMO_TILE_REDUCE:
        return (uint64_t)k->count * T;
    case MIMO_TILE_EXPERT_UP:
        return 0;
    case MIMO_TILE_EXPERT_DOWN:
        for (uint32_t i = 0; i < t->c->moe.experts; i++)
            experts += t->c->moe.expert[i] % k->splits == k->split;
        return experts * k->count;
    case MIMO_TILE_CHOOSE:
        return 1;
    case MIMO_TILE_SCAN:
    case MIMO_TILE_COLLECT:
    case MIMO_TILE_SAMPLE:
        return (uint64_t)k->count * k->splits;
    case MIMO_TILE_CUT:
    case MIMO_TILE_PICK:
    case MIMO_TILE_ACCEPT:
    case MIMO_TILE_PROPOSE:
        return k->splits;
    default:
        return k->count;
    }
}

bool mimo_probe_cells_end(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step, uint64_t *random)
{
    touching t;
    if (!find(&t, cells, task, step) || !reads(&t))
        return false;
    cells->phase[t.index].done += work_of(&t);
    t.mode = END_WRITE;
    if (!writes(&t))
        return false;
    if (task->kind == MIMO_TILE_CHOOSE)
        choose(&t, random);
    return true;
}

bool mimo_probe_cells_routed(mimo_probe_cells *cells, const mimo_tile_task *task, uint32_t step)
{
    touching t;
    return find(&t, cells, task, step) && look(&t, ROUTES, 0, 1);
}

bool mimo_probe_cells_complete(mimo_probe_cells *cells, uint32_t steps)
{
    for (uint32_t p = 0; p < cells->phases; p++) {
        const mimo_probe_phase *phase = &cells->phase[p];
        const bool experts = phase->kind == MIMO_TILE_EXPERT_UP || phase->kind == MIMO_TILE_EXPERT_DOWN;
        const uint64_t each = phase->kind == MIMO_TILE_ATTEND ? phase->splits : 1;
        const uint64_t expected = experts ? phase->expected : phase->expected * each * steps;
        if (phase->done == expected)
            continue;
        snprintf(cells->text, sizeof cells->text, "incomplete: %s of op %u (%s): %llu of %llu elements of work",
                 kind_name[phase->kind], (unsigned)(phase->op - cells->model->tape[phase->tape].plan->op),
                 mimo_op_infos[phase->op->code].name, (unsigned long long)phase->done, (unsigned long long)expected);
        return false;
    }
    return true;
}
