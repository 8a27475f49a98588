/* Weights made up on the GPU: every matrix, and the caches, for a benchmark of a model that no file holds. */
#include <math.h>

#include "base/size.h"
#include "cuda/cuda.h"
#include "cuda/page.h"

/* Kernels that may wait in the queue. */
enum { MOST_QUEUED = 1024 };

typedef struct maker {
    mimo_cuda *cuda;
    uint64_t seed;
    uint32_t number;
} maker;

static const void *address(uint64_t at)
{
    return (const void *)(uintptr_t)at;
}

static void queue(maker *m, const void *to, mimo_fill fill)
{
    fill.to = (uint8_t *)(uintptr_t)to;
    fill.seed = m->seed;
    fill.number = m->number++;
    mimo_cuda_queue_fill(&m->cuda->device, &fill);
    if (m->number % MOST_QUEUED == 0)
        mimo_cuda_wait(&m->cuda->device);
}

static const mimo_fill_kind kinds[MIMO_FORMAT_COUNT] = {MIMO_FILL_F32, MIMO_FILL_BF16, MIMO_FILL_FP8, MIMO_FILL_MXFP4};

/* `bytes` bytes in one piece. */
static mimo_fill piece(mimo_fill_kind kind, uint64_t bytes, float size)
{
    return (mimo_fill){.rows = 1,
                       .stride = mimo_round_up(bytes, MIMO_FILL_GRAIN),
                       .bytes = bytes,
                       .room = bytes,
                       .kind = (uint32_t)kind,
                       .size = size};
}

/* Of elements of variance 1 / K, so that a row of inputs of order one gives outputs of order one. */
static void fill_matrix(void *context, const mimo_matrix *from, const mimo_cuda_matrix *to)
{
    maker *m = context;
    if (to->data == NULL) /* it is in pages */
        return;
    const float deviation = 1.0f / sqrtf((float)to->cols);
    queue(m, to->data,
          (mimo_fill){.rows = to->rows,
                      .stride = to->row_bytes,
                      .bytes = mimo_format_row_bytes(from->format, to->cols),
                      .room = to->row_bytes,
                      .kind = (uint32_t)kinds[from->format],
                      .size = deviation * sqrtf(3.0f)});
    if (from->format == MIMO_FORMAT_MXFP4)
        queue(m, to->scales, piece(MIMO_FILL_MXSCALE, (uint64_t)to->rows * (to->cols / 32), deviation / 2.93f));
    if (from->format != MIMO_FORMAT_FP8)
        return;
    const uint64_t scales = mimo_ceil_div(to->rows, 128) * mimo_ceil_div(to->cols, 128);
    queue(m, to->scales, piece(MIMO_FILL_FP8SCALE, scales * sizeof(float), deviation / 0.6f));
    queue(m, to->scale_row, piece(MIMO_FILL_TILE, (uint64_t)to->rows * sizeof(uint32_t), 0.0f));
}

/* All pages of an operation, of all experts: elements, then scales, on each. */
static void fill_pages(maker *m, uint32_t tape, uint32_t op)
{
    const mimo_resident *r = m->cuda->resident;
    const mimo_op *o = &r->model[tape].plan->op[op];
    const mimo_tile_shape *shape;
    const mimo_cuda_ptr to = mimo_resident_pages(r, tape, op, 0, &shape);
    if (to == 0)
        return;
    const uint32_t format = shape->format;
    const bool mxfp4 = format == MIMO_FORMAT_MXFP4 || format == MIMO_PAGE_E4M3;
    const bool paired = o->code == MIMO_OP_EXPERT_UP || o->code == MIMO_OP_DENSE_UP,
               sparse = o->code == MIMO_OP_EXPERT_UP || o->code == MIMO_OP_EXPERT_DOWN;
    const uint32_t units = (paired ? 2 : 1) * shape->tile_rows / MIMO_PAGE_UNIT;
    const uint32_t elements = mimo_page_scales(format, units, shape->k_page);
    const float deviation = 1.0f / sqrtf((float)shape->k_split * (float)(sparse ? 1 : shape->splits));
    mimo_fill fill = {.rows = shape->expert_pages * (uint64_t)(sparse ? r->tape[tape].config->experts : 1),
                      .stride = shape->page_bytes,
                      .bytes = elements,
                      .room = elements,
                      .kind = (uint32_t)kinds[r->tape[tape].format[o->code]],
                      .size = deviation * sqrtf(3.0f)};
    queue(m, address(to), fill);
    if (format == MIMO_FORMAT_F32 || format == MIMO_FORMAT_BF16)
        return;
    const uint32_t rows = format == MIMO_PAGE_E4M3 ? mimo_page_rows(units, shape->k_page) : shape->page_bytes;
    fill.bytes = fill.room = rows - elements;
    fill.kind = mxfp4 ? MIMO_FILL_MXSCALE : MIMO_FILL_FP8SCALE;
    /* bytes of MXFP4's scales are not those that are stored elsewhere */
    fill.size = format == MIMO_PAGE_E4M3 ? ldexpf(1.0f, MIMO_PAGE_E4M3_SCALES - 127)
                : mxfp4                  ? ldexpf(deviation / 2.93f, MIMO_PAGE_MXFP4_BIAS)
                                         : deviation / 0.6f;
    queue(m, address(to + elements), fill);
    if (format != MIMO_PAGE_E4M3)
        return;
    fill.bytes = fill.room = shape->page_bytes - rows;
    fill.size = ldexpf(deviation / 2.93f, -MIMO_PAGE_E4M3_BIAS);
    queue(m, address(to + rows), fill);
}

static void fill_resident(maker *m)
{
    const mimo_resident *r = m->cuda->resident;
    for (uint32_t tape = 0; tape <= (r->has_draft ? 1 : 0); tape++)
        for (uint32_t op = 0; op < r->model[tape].plan->count; op++)
            fill_pages(m, tape, op);
}

/* Keys and values of order one in all rings and chunks. */
static void fill_caches(maker *m)
{
    const mimo_cuda_memory *memory = &m->cuda->memory;
    const mimo_fill_kind kind = m->cuda->exact ? MIMO_FILL_F32 : MIMO_FILL_BF16;
    const uint64_t rings = MIMO_CUDA_SEQUENCES * (memory->ring[0] + memory->ring[1]);
    const uint64_t chunks = memory->chunks * (memory->chunk[0] + memory->chunk[1]);
    queue(m, address(m->cuda->kv.rings), piece(kind, rings, 1.7f));
    queue(m, address(m->cuda->kv.chunks), piece(kind, chunks, 1.7f));
}

void mimo_cuda_fill_weights(mimo_cuda *cuda, uint64_t seed)
{
    maker m = {cuda, seed, 0};
    mimo_cuda_visit_matrices(&cuda->target.model, fill_matrix, &m);
    if (cuda->drafter.model.config != NULL)
        mimo_cuda_visit_matrices(&cuda->drafter.model, fill_matrix, &m);
    if (cuda->resident != NULL)
        fill_resident(&m);
    fill_caches(&m);
}
