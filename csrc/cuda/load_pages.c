/* From the checkpoint's files to the pages of the resident path: workers read some tiles' rows, check them, lay them
 * out as the kernel reads them, and send them. */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"
#include "cuda/load.h"
#include "cuda/pages.h"

/* Bytes of rows that a worker packs at a time, if a tile is not more. */
enum { PIECE_BYTES = 4 << 20, TILE = 128 };

/* Rows [first, first + rows) of a stored matrix. */
typedef struct stored {
    const mimo_matrix *from;
    uint32_t first, rows;
} stored;

/* A matrix as it lies in pages: parts one after the other, and beside each what is read with it. */
typedef struct item {
    const mimo_tile_shape *shape;
    mimo_cuda_ptr to;
    const stored *part, *up; /* [parts]; up NULL: nothing */
    uint32_t parts, rows, splits;
    uint32_t tiles; /* of a unit */
} item;

typedef struct loader {
    mimo_cuda *cuda;
    const mimo_file *files;
    atomic_uint_fast64_t *done;
    const atomic_bool *cancel;
    item *item;     /* [room] */
    stored *stored; /* [room + layers of a drafter, 2] */
    size_t *first;  /* [room + 1] units before each item */
    size_t items, units, used;
    size_t rows_bytes, pages_bytes; /* of a worker's staging: stored rows with their scales, pages */
} loader;

/* ---- one piece ---- */

static size_t scale_bytes(const mimo_matrix *from)
{
    return from->format == MIMO_FORMAT_MXFP4 ? from->cols / 32
           : from->format == MIMO_FORMAT_FP8 ? mimo_ceil_div(from->cols, TILE) * sizeof(float)
                                             : 0;
}

/* A stored row, its scales and their number. */
static size_t staged_row_bytes(const mimo_matrix *from)
{
    return mimo_round_up(mimo_format_row_bytes(from->format, from->cols), 16) + scale_bytes(from) + sizeof(uint32_t);
}

/* Room for `rows` rows, whose contents are to come. */
static mimo_cuda_matrix stage(uint8_t **staging, const mimo_matrix *from, uint32_t rows)
{
    mimo_cuda_matrix to = {.rows = rows, .cols = from->cols, .format = from->format};
    to.row_bytes = mimo_round_up(mimo_format_row_bytes(from->format, from->cols), 16);
    to.data = *staging;
    to.scales = *staging + rows * to.row_bytes;
    to.scale_row = (uint32_t *)(void *)((uint8_t *)*staging + rows * (to.row_bytes + scale_bytes(from)));
    *staging += mimo_round_up(rows * staged_row_bytes(from), 64);
    return to;
}

typedef struct filling {
    const loader *l;
    const mimo_cuda_matrix *to;
    uint8_t *data, *scales;
    uint32_t *scale_row;
    uint32_t at; /* rows there */
    mimo_error *err;
} filling;

static mimo_status fault(const filling *f, const mimo_matrix *from, size_t row, const char *why)
{
    return MIMO_FAIL(f->err, MIMO_ERR_FORMAT, "%s: row %zu: %s", from->name, row, why);
}

/* Row i of a segment, row `row` of the matrix. */
static mimo_status fill_row(filling *f, const mimo_matrix *from, const mimo_segment *s, size_t i, size_t row)
{
    const size_t bytes = mimo_format_row_bytes(from->format, from->cols), scale = scale_bytes(from);
    uint8_t *data = f->data + f->at * f->to->row_bytes, *scales = f->scales + f->at * scale;
    MIMO_TRY(mimo_file_read(&f->l->files[s->file], data, s->data + i * bytes, bytes, f->err));
    const char *why = mimo_cuda_row_fault(from->format, data, from->cols);
    if (why != NULL)
        return fault(f, from, row, why);
    if (scale > 0) {
        const size_t grid = from->format == MIMO_FORMAT_FP8 ? (s->scale_row + i) / TILE : i;
        MIMO_TRY(mimo_file_read(&f->l->files[s->scale_file], scales, s->scale + grid * scale, scale, f->err));
        why = mimo_cuda_scale_fault(from->format, scales,
                                    from->format == MIMO_FORMAT_FP8 ? scale / sizeof(float) : scale);
        if (why != NULL)
            return fault(f, from, row, why);
    }
    f->scale_row[f->at] = f->at;
    f->at++;
    return MIMO_OK;
}

/* Rows [first, end) of a matrix. */
static mimo_status fill_rows(filling *f, const mimo_matrix *from, size_t first, size_t end)
{
    size_t before = 0; /* rows of the segments passed */
    for (uint32_t i = 0; i < from->segments && before < end; i++) {
        const mimo_segment *s = &from->segment[i];
        for (size_t row = mimo_max(first, before); row < mimo_min(end, before + s->rows); row++)
            MIMO_TRY(fill_row(f, from, s, row - before, row));
        before += s->rows;
    }
    return MIMO_OK;
}

/* Rows [first, first + to->rows) of all parts, one after the other. */
static mimo_status fill_parts(const loader *l, const mimo_cuda_matrix *to, uint8_t *memory, const stored *part,
                              uint32_t parts, uint32_t first, mimo_error *err)
{
    filling f = {.l = l, .to = to, .data = memory, .err = err};
    f.scales = memory + to->rows * to->row_bytes;
    f.scale_row = (uint32_t *)(void *)(f.scales + to->rows * scale_bytes(part->from));
    uint32_t before = 0;
    for (uint32_t i = 0; i < parts; i++) {
        const uint32_t begin = (uint32_t)mimo_max(first, before),
                       end = (uint32_t)mimo_min(first + to->rows, before + part[i].rows);
        if (begin < end)
            MIMO_TRY(fill_rows(&f, part[i].from, part[i].first + begin - before, part[i].first + end - before));
        before += part[i].rows;
    }
    if (parts == 1) /* several are rows that another operation has as well */
        atomic_fetch_add(l->done, to->rows * mimo_format_row_bytes(part->from->format, part->from->cols));
    return MIMO_OK;
}

/* Tiles [tile, tile + tiles) of an item. */
static mimo_status load_tiles(const loader *l, const item *it, uint32_t tile, uint32_t tiles, uint8_t *staging,
                              mimo_error *err)
{
    mimo_tile_shape shape = *it->shape;
    const uint32_t first = tile * shape.tile_rows,
                   rows = (uint32_t)mimo_min((size_t)tiles * shape.tile_rows, it->rows - first);
    uint8_t *memory[2] = {staging, NULL}, *next = staging;
    const mimo_cuda_matrix one = stage(&next, it->part->from, rows);
    memory[1] = next;
    const mimo_cuda_matrix other = stage(&next, it->part->from, rows);
    MIMO_TRY(fill_parts(l, &one, memory[0], it->part, it->parts, first, err));
    if (it->up != NULL)
        MIMO_TRY(fill_parts(l, &other, memory[1], it->up, it->parts, first, err));
    uint8_t *pages = staging + l->rows_bytes;
    const mimo_page_part part = {&one, 0, rows}, up = {&other, 0, rows};
    shape.tiles = tiles;
    MIMO_TRY(mimo_pages_pack(pages, &shape, it->splits, &part, it->up != NULL ? &up : NULL, 1, err));
    const size_t tile_bytes = (size_t)shape.tile_pages * shape.page_bytes;
    for (uint32_t split = 0; split < it->splits; split++)
        MIMO_TRY(mimo_cuda_write(&l->cuda->device, it->to + (split * (size_t)it->shape->tiles + tile) * tile_bytes,
                                 pages + split * tiles * tile_bytes, tiles * tile_bytes, err));
    return MIMO_OK;
}

/* ---- what there is ---- */

static const stored *add_stored(loader *l, const mimo_matrix *from, uint32_t first, uint32_t rows)
{
    l->stored[l->used] = (stored){from, first, rows};
    return &l->stored[l->used++];
}

static void add_item(loader *l, uint32_t tape, uint32_t op, uint32_t expert, const stored *part, uint32_t parts,
                     const stored *up)
{
    item *it = &l->item[l->items];
    const mimo_resident *r = l->cuda->resident;
    *it = (item){.part = part, .up = up, .parts = parts};
    it->to = mimo_resident_pages(r, tape, op, expert, &it->shape);
    if (it->to == 0)
        return;
    for (uint32_t i = 0; i < parts; i++)
        it->rows += part[i].rows;
    it->splits = r->model[tape].plan->op[op].code == MIMO_OP_EXPERT_DOWN ? 1 : it->shape->splits;
    const size_t row_bytes = staged_row_bytes(part->from), tile = it->shape->tile_rows * row_bytes;
    it->tiles = (uint32_t)mimo_min(it->shape->tiles, mimo_max(1, PIECE_BYTES / tile));
    l->rows_bytes = mimo_max(l->rows_bytes, 2 * (mimo_round_up(it->tiles * tile, 64)));
    l->pages_bytes =
        mimo_max(l->pages_bytes, (size_t)it->splits * it->tiles * it->shape->tile_pages * it->shape->page_bytes);
    l->first[l->items++] = l->units;
    l->units += mimo_ceil_div(it->shape->tiles, it->tiles);
}

static void add_matrix(loader *l, uint32_t tape, uint32_t op, uint32_t expert, const mimo_matrix *from,
                       const mimo_matrix *up)
{
    const stored *part = add_stored(l, from, 0, from->rows);
    add_item(l, tape, op, expert, part, 1, up != NULL ? add_stored(l, up, 0, up->rows) : NULL);
}

/* Keys and values of all layers of a drafter. */
static void add_context(loader *l, uint32_t op, const mimo_cuda_model *model)
{
    const stored *first = &l->stored[l->used];
    for (uint32_t i = 0; i < model->config->layers; i++) {
        const mimo_attention *a = mimo_layer_attention(model->config, i);
        const uint32_t queries = a->heads * a->head_dim;
        const mimo_matrix *qkv = &model->weights->layer[i].qkv;
        (void)add_stored(l, qkv, queries, qkv->rows - queries);
    }
    add_item(l, MIMO_TAPE_DRAFT, op, 0, first, model->config->layers, NULL);
}

static void add_op(loader *l, uint32_t tape, uint32_t i, const mimo_op *op, const mimo_cuda_model *model)
{
    const mimo_weights *w = model->weights;
    const mimo_layer_weights *layer = op->layer != MIMO_NO_LAYER ? &w->layer[op->layer] : NULL;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_DRAFT_FUSE:
        add_matrix(l, tape, i, 0, &w->fuse, NULL);
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        add_context(l, i, model);
        break;
    case MIMO_OP_QKV:
        add_matrix(l, tape, i, 0, &layer->qkv, NULL);
        break;
    case MIMO_OP_OUT_PROJ:
        add_matrix(l, tape, i, 0, &layer->out, NULL);
        break;
    case MIMO_OP_ROUTE:
        add_matrix(l, tape, i, 0, &layer->router, NULL);
        break;
    case MIMO_OP_EXPERT_UP:
    case MIMO_OP_DENSE_UP:
        for (uint32_t e = 0; e < layer->mlps; e++)
            add_matrix(l, tape, i, e, &layer->gate[e], &layer->up[e]);
        break;
    case MIMO_OP_EXPERT_DOWN:
    case MIMO_OP_DENSE_DOWN:
        for (uint32_t e = 0; e < layer->mlps; e++)
            add_matrix(l, tape, i, e, &layer->down[e], NULL);
        break;
    case MIMO_OP_HEAD:
        add_matrix(l, tape, i, 0, &w->head, NULL);
        break;
    default:
        break;
    }
}

/* ---- all of them ---- */

static mimo_status load_unit(const void *context, size_t item_number, size_t unit, uint8_t *staging, mimo_error *err)
{
    const loader *l = context;
    const item *it = &l->item[item_number];
    const uint32_t tile = (uint32_t)unit * it->tiles;
    return load_tiles(l, it, tile, (uint32_t)mimo_min(it->tiles, it->shape->tiles - tile), staging, err);
}

static mimo_status load_all(loader *l, mimo_error *err)
{
    const mimo_cuda_tape *tapes[2] = {&l->cuda->target, &l->cuda->drafter};
    size_t room = 0;
    for (uint32_t tape = 0; tape < 2; tape++)
        if (tapes[tape]->model.config != NULL)
            room += tapes[tape]->plan.count + 3 * tapes[tape]->model.mlps + tapes[tape]->model.config->layers;
    MIMO_TRY(mimo_alloc_array(&l->item, room, sizeof *l->item, "loader", err));
    MIMO_TRY(mimo_alloc_array(&l->stored, room, sizeof *l->stored, "loader", err));
    MIMO_TRY(mimo_alloc_array(&l->first, room + 1, sizeof *l->first, "loader", err));
    for (uint32_t tape = 0; tape < 2; tape++)
        for (uint32_t i = 0; tapes[tape]->model.config != NULL && i < tapes[tape]->plan.count; i++)
            add_op(l, tape, i, &tapes[tape]->plan.op[i], &tapes[tape]->model);
    l->first[l->items] = l->units;
    const mimo_load_units units = {.first = l->first,
                                   .items = l->items,
                                   .staging_bytes = l->rows_bytes + l->pages_bytes,
                                   .context = l,
                                   .load = load_unit};
    return mimo_cuda_load_units(l->cuda, &units, l->cancel, err);
}

mimo_status mimo_cuda_load_pages(mimo_cuda *cuda, const mimo_file *files, atomic_uint_fast64_t *done,
                                 const atomic_bool *cancel, mimo_error *err)
{
    loader l = {.cuda = cuda, .files = files, .done = done, .cancel = cancel};
    const mimo_status status = load_all(&l, err);
    mimo_free(l.item);
    mimo_free(l.stored);
    mimo_free(l.first);
    return status;
}
