/* From the checkpoint's files to the GPU: all workers read, check and send pieces of matrices as they are published. */
#include "cuda/load.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"

/* Bytes of weights that a worker sends at a time, and room beside them for what goes with those rows. */
enum { PIECE_BYTES = 4 << 20 };

typedef struct item {
    const mimo_matrix *from;
    const mimo_cuda_matrix *to;
} item;

typedef struct loader {
    mimo_cuda *cuda;
    const mimo_file *files;
    atomic_uint_fast64_t *done;
    const atomic_bool *cancel;
    item *item;    /* [items] */
    size_t *first; /* [items + 1] units before each item */
    size_t items, units;
    size_t staging_bytes; /* of a worker */
} loader;

/* ---- what is refused ---- */

static bool all_finite_16(const uint8_t *data, size_t count)
{
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, sizeof bits);
        finite &= (bits & 0x7f80u) != 0x7f80u;
    }
    return finite;
}

static bool all_finite_32(const uint8_t *data, size_t count)
{
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, sizeof bits);
        finite &= (bits & 0x7f800000u) != 0x7f800000u;
    }
    return finite;
}

const char *mimo_cuda_row_fault(mimo_format format, const uint8_t *data, size_t cols)
{
    bool finite = true;
    if (format == MIMO_FORMAT_F32)
        finite = all_finite_32(data, cols);
    else if (format == MIMO_FORMAT_BF16)
        finite = all_finite_16(data, cols);
    else if (format == MIMO_FORMAT_FP8)
        for (size_t i = 0; i < cols; i++)
            finite &= (data[i] & 0x7fu) != 0x7fu;
    return finite ? NULL : "expected finite weights, found a NaN or an infinity";
}

const char *mimo_cuda_scale_fault(mimo_format format, const uint8_t *scales, size_t count)
{
    if (format == MIMO_FORMAT_MXFP4) {
        uint8_t most = 0;
        for (size_t i = 0; i < count; i++)
            most = scales[i] > most ? scales[i] : most;
        return most <= 252  ? NULL
               : most < 255 ? "expected MXFP4 scales up to code 252, whose products fit a float32, found a larger one"
                            : "expected finite MXFP4 scales, found a NaN (code 255)";
    }
    for (size_t i = 0; i < count; i++) {
        float scale;
        memcpy(&scale, scales + i * sizeof scale, sizeof scale);
        if (!(fabsf(scale) <= FLT_MAX / 448.0f))
            return "expected finite FP8 scales whose products fit a float32, found a NaN, an infinity or a larger one";
    }
    return NULL;
}

/* ---- one piece ---- */

static size_t rows_at_once(const mimo_cuda_matrix *to)
{
    return mimo_max(1, PIECE_BYTES / mimo_max(1, to->row_bytes));
}

/* Scales beside a piece: MXFP4's of its rows, or the rows of FP8's grid that one segment has, and its rows in them. */
static size_t side_bytes(const mimo_matrix *from, const mimo_cuda_matrix *to)
{
    if (from->format == MIMO_FORMAT_MXFP4)
        return rows_at_once(to) * (from->cols / 32);
    if (from->format != MIMO_FORMAT_FP8)
        return 0;
    return ((size_t)from->rows / 128 + 2) * mimo_ceil_div(from->cols, 128) * sizeof(float) +
           rows_at_once(to) * sizeof(uint32_t);
}

/* Some rows of one segment, in a worker's staging memory. */
typedef struct piece {
    const loader *l;
    const mimo_matrix *from;
    const mimo_cuda_matrix *to;
    const mimo_segment *segment;
    size_t row, begin, rows; /* first row in the matrix, in the segment, and how many */
    size_t grid_row;         /* rows of the matrix's scale grid before the segment's */
    uint8_t *staging;
} piece;

static mimo_status fail(const piece *p, size_t row, const char *fault, mimo_error *err)
{
    return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: row %zu: %s", p->from->name, p->row + row, fault);
}

static mimo_status send(const piece *p, const void *to, size_t offset, const void *from, size_t bytes, mimo_error *err)
{
    return mimo_cuda_write(&p->l->cuda->device, (mimo_cuda_ptr)(uintptr_t)to + offset, from, bytes, err);
}

static mimo_status send_rows(const piece *p, mimo_error *err)
{
    const size_t stored = mimo_format_row_bytes(p->from->format, p->from->cols), padded = p->to->row_bytes;
    const mimo_file *file = &p->l->files[p->segment->file];
    const uint64_t at = p->segment->data + p->begin * stored;
    if (stored == padded)
        MIMO_TRY(mimo_file_read(file, p->staging, at, p->rows * stored, err));
    else
        memset(p->staging, 0, p->rows * padded);
    for (size_t i = 0; i < p->rows; i++) {
        if (stored != padded)
            MIMO_TRY(mimo_file_read(file, p->staging + i * padded, at + i * stored, stored, err));
        const char *fault = mimo_cuda_row_fault(p->from->format, p->staging + i * padded, p->from->cols);
        if (fault != NULL)
            return fail(p, i, fault, err);
    }
    return send(p, p->to->data, p->row * padded, p->staging, p->rows * padded, err);
}

static mimo_status send_mxfp4_scales(const piece *p, mimo_error *err)
{
    const size_t bytes = p->from->cols / 32;
    const mimo_file *file = &p->l->files[p->segment->scale_file];
    MIMO_TRY(mimo_file_read(file, p->staging, p->segment->scale + p->begin * bytes, p->rows * bytes, err));
    for (size_t i = 0; i < p->rows; i++) {
        const char *fault = mimo_cuda_scale_fault(MIMO_FORMAT_MXFP4, p->staging + i * bytes, bytes);
        if (fault != NULL)
            return fail(p, i, fault, err);
    }
    return send(p, p->to->scales, p->row * bytes, p->staging, p->rows * bytes, err);
}

/* The segment's part of the grid goes with its first rows; every row is told where its scales are. */
static mimo_status send_fp8_scales(const piece *p, mimo_error *err)
{
    const mimo_segment *s = p->segment;
    const size_t row_bytes = mimo_ceil_div(p->from->cols, 128) * sizeof(float), base = s->scale_row / 128;
    if (p->begin == 0) {
        const size_t rows = (s->scale_row + s->rows - 1) / 128 - base + 1;
        const mimo_file *file = &p->l->files[s->scale_file];
        MIMO_TRY(mimo_file_read(file, p->staging, s->scale + base * row_bytes, rows * row_bytes, err));
        const char *fault = mimo_cuda_scale_fault(MIMO_FORMAT_FP8, p->staging, rows * row_bytes / sizeof(float));
        if (fault != NULL)
            return fail(p, 0, fault, err);
        MIMO_TRY(send(p, p->to->scales, p->grid_row * row_bytes, p->staging, rows * row_bytes, err));
    }
    uint32_t *row = (uint32_t *)(void *)p->staging;
    for (size_t i = 0; i < p->rows; i++)
        row[i] = (uint32_t)(p->grid_row + (s->scale_row + p->begin + i) / 128 - base);
    return send(p, p->to->scale_row, p->row * sizeof *row, row, p->rows * sizeof *row, err);
}

static mimo_status send_piece(const piece *p, mimo_error *err)
{
    MIMO_TRY(send_rows(p, err));
    if (p->from->format == MIMO_FORMAT_MXFP4)
        MIMO_TRY(send_mxfp4_scales(p, err));
    if (p->from->format == MIMO_FORMAT_FP8)
        MIMO_TRY(send_fp8_scales(p, err));
    atomic_fetch_add(p->l->done, p->rows * mimo_format_row_bytes(p->from->format, p->from->cols));
    return MIMO_OK;
}

/* Rows [first, first + count) of a matrix, segment by segment. */
static mimo_status send_range(const loader *l, const item *it, size_t first, size_t count, uint8_t *staging,
                              mimo_error *err)
{
    piece p = {.l = l, .from = it->from, .to = it->to, .staging = staging};
    size_t before = 0; /* rows of the segments passed */
    for (uint32_t i = 0; i < it->from->segments && before < first + count; i++) {
        p.segment = &it->from->segment[i];
        const size_t rows = p.segment->rows, end = mimo_min(first + count, before + rows);
        if (first < before + rows && rows > 0) {
            p.row = mimo_max(first, before);
            p.begin = p.row - before;
            p.rows = end - p.row;
            MIMO_TRY(send_piece(&p, err));
        }
        if (rows > 0)
            p.grid_row += (p.segment->scale_row + rows - 1) / 128 - p.segment->scale_row / 128 + 1;
        before += rows;
    }
    return MIMO_OK;
}

/* ---- all of them ---- */

static mimo_status load_unit(const void *context, size_t item_number, size_t unit, uint8_t *staging, mimo_error *err)
{
    const loader *l = context;
    const item *it = &l->item[item_number];
    const size_t size = rows_at_once(it->to), first = unit * size;
    return send_range(l, it, first, mimo_min(size, it->from->rows - first), staging, err);
}

static void count_matrix(void *context, const mimo_matrix *from, const mimo_cuda_matrix *to)
{
    loader *l = context;
    if (to->data == NULL)
        return; /* it is in pages */
    l->items++;
    l->staging_bytes = mimo_max(l->staging_bytes, mimo_max(rows_at_once(to) * to->row_bytes, side_bytes(from, to)));
}

static void collect_matrix(void *context, const mimo_matrix *from, const mimo_cuda_matrix *to)
{
    loader *l = context;
    if (to->data == NULL)
        return;
    l->item[l->items] = (item){from, to};
    l->first[l->items++] = l->units;
    l->units += mimo_ceil_div(from->rows, rows_at_once(to));
}

static void visit_all(const mimo_cuda *cuda, mimo_cuda_visit *fn, void *context)
{
    mimo_cuda_visit_matrices(&cuda->target.model, fn, context);
    if (cuda->drafter.model.config != NULL)
        mimo_cuda_visit_matrices(&cuda->drafter.model, fn, context);
}

static void count_bytes(void *context, const mimo_matrix *from, const mimo_cuda_matrix *to)
{
    (void)to;
    *(uint64_t *)context += (uint64_t)from->rows * mimo_format_row_bytes(from->format, from->cols);
}

uint64_t mimo_cuda_load_bytes(const mimo_cuda *cuda)
{
    uint64_t bytes = 0;
    visit_all(cuda, count_bytes, &bytes);
    const mimo_cuda_model *target = &cuda->target.model;
    if (cuda->resident != NULL && target->config->tied_head) /* read once more, for its pages */
        count_bytes(&bytes, &target->weights->head, NULL);
    return bytes;
}

static mimo_status load_matrices(loader *l, mimo_error *err)
{
    visit_all(l->cuda, count_matrix, l);
    const size_t items = l->items;
    l->items = 0;
    MIMO_TRY(mimo_alloc_array(&l->item, items, sizeof *l->item, "loader", err));
    MIMO_TRY(mimo_alloc_array(&l->first, items + 1, sizeof *l->first, "loader", err));
    visit_all(l->cuda, collect_matrix, l);
    l->first[items] = l->units;
    const mimo_load_units units = {
        .first = l->first, .items = items, .staging_bytes = l->staging_bytes, .context = l, .load = load_unit};
    return mimo_cuda_load_units(l->cuda, &units, l->cancel, err);
}

static mimo_status zero(mimo_cuda *cuda, mimo_cuda_ptr memory, size_t bytes, mimo_error *err)
{
    const mimo_cuda_driver *driver = &cuda->device.driver;
    MIMO_TRY(mimo_cuda_check(driver, driver->fill(memory, 0, bytes, cuda->device.stream), MIMO_ERR_ENGINE,
                             "cannot clear memory of the GPU", err));
    return mimo_cuda_check(driver, driver->stream_wait(cuda->device.stream), MIMO_ERR_ENGINE,
                           "cannot clear memory of the GPU", err);
}

static mimo_status allocate(mimo_cuda *cuda, mimo_error *err)
{
    const mimo_cuda_memory *m = &cuda->memory;
    mimo_cuda_device *device = &cuda->device;
    const uint64_t rings = MIMO_CUDA_SEQUENCES * (m->ring[0] + m->ring[1]);
    const uint64_t tables = MIMO_CUDA_SEQUENCES * (m->table[0] + m->table[1]);
    const uint64_t weights = m->weights + m->embedding + m->draft_weights - m->pages[0] - m->pages[1];
    const uint64_t work = m->work - m->resident;
    MIMO_TRY(mimo_cuda_alloc(device, &cuda->weights, weights, "weights", err));
    MIMO_TRY(mimo_cuda_alloc(device, &cuda->tables, m->tables, "tables", err));
    MIMO_TRY(mimo_cuda_alloc(device, &cuda->work, work, "rows of a step", err));
    MIMO_TRY(mimo_cuda_alloc(device, &cuda->caches, rings + tables + m->chunks * (m->chunk[0] + m->chunk[1]),
                             "keys and values", err));
    MIMO_TRY(zero(cuda, cuda->work, work, err));
    cuda->kv.rings = cuda->caches;
    cuda->kv.tables = cuda->kv.rings + rings;
    cuda->kv.chunks = cuda->kv.tables + tables;
    mimo_cuda_places places = {
        .weights = {.base = cuda->weights}, .tables = {.base = cuda->tables}, .work = {.base = cuda->work}};
    mimo_cuda_place(&cuda->target.model, NULL, &places, cuda->exact, cuda->max_context);
    if (cuda->drafter.model.config != NULL)
        mimo_cuda_place(&cuda->drafter.model, &cuda->target.model, &places, cuda->exact, cuda->max_context);
    return cuda->resident != NULL ? mimo_resident_open(cuda->resident, device, err) : MIMO_OK;
}

static mimo_status allocate_host(mimo_cuda *cuda, mimo_error *err)
{
    mimo_cuda_device *device = &cuda->device;
    MIMO_TRY(mimo_cuda_alloc_host(device, &cuda->step, cuda->pieces * sizeof *cuda->step, "steps", err));
    const mimo_config *draft = cuda->drafter.model.config;
    if (draft == NULL)
        return MIMO_OK;
    const size_t floats = (size_t)draft->taps * MIMO_CUDA_ROWS * draft->hidden;
    return mimo_cuda_alloc_host(device, &cuda->features, cuda->pieces * floats * sizeof(float), "taps of a step", err);
}

static mimo_status load_tables(mimo_cuda *cuda, const mimo_file *files, mimo_error *err)
{
    MIMO_TRY(mimo_alloc_array(&cuda->host_tables, 1, cuda->memory.tables, "tables of the GPU", err));
    mimo_status status = mimo_cuda_fill_tables(cuda, files, err);
    if (status == MIMO_OK)
        status = mimo_cuda_write(&cuda->device, cuda->tables, cuda->host_tables, cuda->memory.tables, err);
    mimo_free(cuda->host_tables);
    cuda->host_tables = NULL;
    return status;
}

static mimo_status load_all(mimo_cuda *cuda, loader *l, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    MIMO_TRY(allocate(cuda, err));
    MIMO_TRY(allocate_host(cuda, err));
    MIMO_TRY(load_tables(cuda, l->files, err));
    MIMO_TRY(mimo_cuda_load_markov(cuda, l->files, err));
    MIMO_TRY(load_matrices(l, err));
    if (cuda->resident != NULL)
        MIMO_TRY(mimo_cuda_load_pages(cuda, l->files, l->done, l->cancel, err));
    return mimo_cuda_record_tapes(cuda, err);
}

mimo_status mimo_cuda_load(mimo_cuda *cuda, const mimo_file *files, atomic_uint_fast64_t *done,
                           const atomic_bool *cancel, mimo_error *err)
{
    loader l = {.cuda = cuda, .files = files, .done = done, .cancel = cancel};
    mimo_alloc_trim();
    const mimo_status status = load_all(cuda, &l, err);
    mimo_free(l.item);
    mimo_free(l.first);
    if (status != MIMO_OK)
        mimo_cuda_unload(cuda);
    return status;
}

static mimo_status make_all(mimo_cuda *cuda, uint64_t seed, mimo_error *err)
{
    const mimo_config *draft = cuda->drafter.model.config;
    if (draft != NULL && draft->markov_rank > 0)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "draft.markov_rank: expected 0 where weights are made up, found %u",
                         draft->markov_rank);
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    MIMO_TRY(allocate(cuda, err));
    MIMO_TRY(allocate_host(cuda, err));
    MIMO_TRY(load_tables(cuda, NULL, err));
    mimo_cuda_fill_weights(cuda, seed);
    mimo_cuda_wait(&cuda->device);
    MIMO_TRY(mimo_cuda_device_check(&cuda->device, err));
    return mimo_cuda_record_tapes(cuda, err);
}

mimo_status mimo_cuda_make(mimo_cuda *cuda, uint64_t seed, mimo_error *err)
{
    const mimo_status status = make_all(cuda, seed, err);
    if (status != MIMO_OK)
        mimo_cuda_unload(cuda);
    return status;
}

void mimo_cuda_unload(mimo_cuda *cuda)
{
    mimo_cuda_device *device = &cuda->device;
    mimo_cuda_forget_tapes(cuda);
    if (cuda->resident != NULL)
        mimo_resident_shut(cuda->resident);
    mimo_cuda_release_host(device, cuda->step);
    mimo_cuda_release_host(device, cuda->features);
    mimo_cuda_release(device, &cuda->weights);
    mimo_cuda_release(device, &cuda->tables);
    mimo_cuda_release(device, &cuda->work);
    mimo_cuda_release(device, &cuda->caches);
    mimo_free(cuda->markov_in);
    mimo_free(cuda->markov_out);
    cuda->step = NULL;
    cuda->features = cuda->markov_in = cuda->markov_out = NULL;
}
