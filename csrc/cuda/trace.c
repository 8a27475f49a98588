#include "cuda/trace.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"
#include "cuda/page.h"
#include "format/bf16.h"

typedef struct tracing {
    mimo_cuda *cuda;
    mimo_cuda_sequence *sequence;
    uint32_t rows, stop; /* tokens; operations */
    mimo_slot slot;
    uint32_t layer;
} tracing;

/* ---- where a slot lies ---- */

/* Columns of a slot that lie together on the device; a row's are `stride` floats behind those of the row before. */
typedef struct block {
    const float *first;
    size_t stride, columns;
} block;

static const mimo_cuda_layer *layer_of(const tracing *t)
{
    return &t->cuda->target.model.layer[t->layer];
}

static const mimo_tile_machine *machine_of(const tracing *t)
{
    return &t->cuda->resident->machine[MIMO_RESIDENT_STEP];
}

static block angles_of(const tracing *t, uint32_t kind, bool sines)
{
    const mimo_cuda_work *w = &t->cuda->target.model.state.work;
    const size_t half = w->cos[kind] != NULL ? t->cuda->target.model.config->attention[kind].rotary_dim / 2 : 0;
    return (block){sines ? w->sin[kind] : w->cos[kind], half, half};
}

/* Keys of head `head`, or values of head - G. */
static block cached_of(const tracing *t, uint32_t head)
{
    const mimo_cuda_layer *layer = layer_of(t);
    const mimo_cuda_kv_layout *kv = &t->cuda->target.model.state.kv;
    const uint32_t G = layer->attention.kv_heads;
    const size_t width = head < G ? layer->attention.head_dim : layer->attention.v_head_dim;
    const uint64_t at = mimo_cuda_sequence_first(&t->cuda->kv, t->sequence, layer->sliding) + layer->kv_offset +
                        head % G * kv->head_bytes[layer->sliding] + (head < G ? 0 : kv->value_offset[layer->sliding]);
    return (block){(const float *)(uintptr_t)at, width, width};
}

static block rows_of(const tracing *t)
{
    const mimo_cuda_model *model = &t->cuda->target.model;
    const mimo_cuda_work *w = &model->state.work;
    const mimo_attention *a = &layer_of(t)->attention;
    const size_t H = model->config->hidden, queries = (size_t)a->heads * a->head_dim;
    switch (t->slot) {
    case MIMO_SLOT_X:
        return (block){w->x, w->x_stride, H};
    case MIMO_SLOT_M:
        return (block){w->m, w->x_stride, H};
    case MIMO_SLOT_Q:
        return (block){w->q, queries, queries};
    case MIMO_SLOT_A:
        return (block){w->a, w->a_stride, (size_t)a->heads * a->v_head_dim};
    case MIMO_SLOT_U:
        return (block){w->u, w->u_stride,
                       layer_of(t)->sparse ? model->config->expert_width : model->config->dense_width};
    case MIMO_SLOT_LOGITS:
        return (block){(const float *)(uintptr_t)model->spots.logits, model->spots.logits_stride, model->config->vocab};
    default:
        return (block){0};
    }
}

static uint32_t blocks_of(const tracing *t)
{
    return t->slot == MIMO_SLOT_ANGLES ? 4 : t->slot == MIMO_SLOT_KV ? 2 * layer_of(t)->attention.kv_heads : 1;
}

static block block_of(const tracing *t, uint32_t i)
{
    if (t->slot == MIMO_SLOT_ANGLES)
        return angles_of(t, i / 2, i % 2 == 1);
    return t->slot == MIMO_SLOT_KV ? cached_of(t, i) : rows_of(t);
}

static size_t rows_in(const tracing *t)
{
    const bool entries = t->slot == MIMO_SLOT_U && layer_of(t)->sparse;
    return entries ? (size_t)t->rows * t->cuda->target.model.config->top_k : t->rows;
}

static size_t columns_in(const tracing *t)
{
    size_t columns = 0;
    if (t->slot == MIMO_SLOT_ROUTES)
        return 2 * (size_t)t->cuda->target.model.config->top_k;
    for (uint32_t i = 0; i < blocks_of(t); i++)
        columns += block_of(t, i).columns;
    return columns;
}

/* ---- running and reading ---- */

static mimo_status run(const tracing *t, const uint32_t *tokens, mimo_error *err)
{
    mimo_cuda *cuda = t->cuda;
    const mimo_cuda_spots *spots = &cuda->target.model.spots;
    mimo_cuda_step *step = &cuda->step[0];
    *step = (mimo_cuda_step){.rows = t->rows,
                             .outputs = t->rows,
                             .logits = (float *)(uintptr_t)spots->logits,
                             .logits_stride = spots->logits_stride};
    for (uint32_t i = 0; i < t->rows; i++) {
        step->token[i] = tokens[i];
        step->position[i] = step->output[i] = i;
        step->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, t->sequence, 0);
    }
    mimo_cuda_queue_in(&cuda->device, spots->step, step, sizeof *step);
    if (cuda->resident != NULL)
        return mimo_resident_run_until(cuda->resident, t->stop, err);
    mimo_cuda_run(cuda, &cuda->target, 0, t->stop, t->rows);
    return MIMO_OK;
}

static mimo_status read_routes(const tracing *t, float *to, mimo_error *err)
{
    mimo_cuda_device *device = &t->cuda->device;
    const mimo_moe *from = t->cuda->resident != NULL ? machine_of(t)->moe : t->cuda->target.model.state.work.moe;
    const size_t K = t->cuda->target.model.config->top_k;
    mimo_moe moe;
    mimo_cuda_queue_out(device, &moe, (mimo_cuda_ptr)(uintptr_t)from, sizeof moe);
    mimo_cuda_wait(device);
    MIMO_TRY(mimo_cuda_device_check(device, err));
    for (size_t i = 0; i < t->rows * K; i++) {
        to[i / K * 2 * K + i % K] = (float)moe.chosen[i];
        to[i / K * 2 * K + K + i % K] = moe.share[i];
    }
    return MIMO_OK;
}

/* ---- operands of the resident path ---- */

static bool is_operand(const tracing *t)
{
    return t->cuda->resident != NULL && (t->slot == MIMO_SLOT_M || t->slot == MIMO_SLOT_A || t->slot == MIMO_SLOT_U);
}

static mimo_status read_operand(const tracing *t, const mimo_tile_operand *from, const mimo_trace *to, mimo_error *err)
{
    mimo_cuda_device *device = &t->cuda->device;
    const uint32_t parts = machine_of(t)->parts;
    uint16_t *stored; /* [parts, rows, stride] */
    MIMO_TRY(mimo_alloc_array(&stored, parts * to->rows * from->stride, sizeof *stored, "a trace", err));
    for (uint32_t p = 0; p < parts; p++)
        mimo_cuda_queue_out(device, stored + p * to->rows * from->stride,
                            (mimo_cuda_ptr)(uintptr_t)(from->at + p * from->part),
                            to->rows * from->stride * sizeof *stored);
    mimo_cuda_wait(device);
    for (size_t row = 0; row < to->rows; row++)
        for (size_t i = 0; i < to->columns; i++) {
            float value = 0.0f;
            const size_t at = row * from->stride + i / MIMO_PAGE_GROUP * MIMO_PAGE_GROUP +
                              mimo_page_place((uint32_t)(i % MIMO_PAGE_GROUP));
            for (uint32_t p = parts; p-- > 0;)
                value += mimo_bf16_decode(stored[p * to->rows * from->stride + at]);
            to->values[row * to->columns + i] = value;
        }
    mimo_free(stored);
    return mimo_cuda_device_check(device, err);
}

/* Rows of N are multiplied by their norms where they are read (tile/machine.h): here too. */
static mimo_status scale_normed(const tracing *t, const mimo_trace *to, mimo_error *err)
{
    mimo_cuda_device *device = &t->cuda->device;
    const mimo_config *c = t->cuda->target.model.config;
    const mimo_tile_machine *m = machine_of(t);
    float *squares; /* [T, pieces] */
    MIMO_TRY(mimo_alloc_array(&squares, (size_t)t->rows * m->pieces, sizeof *squares, "a trace", err));
    mimo_cuda_queue_out(device, squares, (mimo_cuda_ptr)(uintptr_t)m->squares,
                        (size_t)t->rows * m->pieces * sizeof *squares);
    mimo_cuda_wait(device);
    for (size_t i = 0; i < to->rows; i++) {
        float sum = 0.0f;
        for (uint32_t piece = 0; piece < m->pieces; piece++)
            sum += squares[i * m->pieces + piece];
        for (size_t h = 0; h < to->columns; h++)
            to->values[i * to->columns + h] *= 1.0f / sqrtf(sum / (float)c->hidden + c->norm_eps);
    }
    mimo_free(squares);
    return mimo_cuda_device_check(device, err);
}

/* Entries of U have their routing weights in them (tile/machine.h): not here. */
static mimo_status unweight_entries(const tracing *t, const mimo_trace *to, mimo_error *err)
{
    if (!layer_of(t)->sparse)
        return MIMO_OK;
    mimo_moe moe;
    mimo_cuda_queue_out(&t->cuda->device, &moe, (mimo_cuda_ptr)(uintptr_t)machine_of(t)->moe, sizeof moe);
    mimo_cuda_wait(&t->cuda->device);
    for (size_t i = 0; i < to->rows * to->columns; i++)
        to->values[i] /= moe.weight[i / to->columns];
    return mimo_cuda_device_check(&t->cuda->device, err);
}

static mimo_status read_operand_slot(const tracing *t, const mimo_trace *to, mimo_error *err)
{
    const mimo_tile_machine *m = machine_of(t);
    if (t->slot == MIMO_SLOT_A)
        return read_operand(t, &m->a, to, err);
    MIMO_TRY(read_operand(t, t->slot == MIMO_SLOT_M ? &m->n : &m->u, to, err));
    return t->slot == MIMO_SLOT_M ? scale_normed(t, to, err) : unweight_entries(t, to, err);
}

static mimo_status read_slot(const tracing *t, const mimo_trace *to, mimo_error *err)
{
    mimo_cuda_device *device = &t->cuda->device;
    if (t->slot == MIMO_SLOT_ROUTES)
        return read_routes(t, to->values, err);
    if (is_operand(t))
        return read_operand_slot(t, to, err);
    size_t column = 0;
    for (uint32_t i = 0; i < blocks_of(t); i++) {
        const block from = block_of(t, i);
        for (size_t row = 0; row < to->rows; row++)
            mimo_cuda_queue_out(device, to->values + row * to->columns + column,
                                (mimo_cuda_ptr)(uintptr_t)(from.first + row * from.stride),
                                from.columns * sizeof(float));
        column += from.columns;
    }
    mimo_cuda_wait(device);
    return mimo_cuda_device_check(device, err);
}

static mimo_status trace(const tracing *t, const uint32_t *tokens, mimo_trace *out, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_sequence_reserve(&t->cuda->kv, t->sequence, t->rows, err));
    *out = (mimo_trace){.rows = rows_in(t), .columns = columns_in(t)};
    if (out->columns == 0)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "trace: expected a slot that the target's operations write");
    MIMO_TRY(mimo_alloc_array(&out->values, out->rows * out->columns, sizeof *out->values, "a trace", err));
    mimo_status status = run(t, tokens, err);
    if (status == MIMO_OK)
        status = read_slot(t, out, err);
    if (status != MIMO_OK)
        mimo_free(out->values);
    return status;
}

mimo_status mimo_cuda_trace(mimo_backend *backend, const uint32_t *tokens, uint32_t rows, uint32_t stop, mimo_slot slot,
                            mimo_trace *out, mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)backend;
    const mimo_plan *plan = &cuda->target.plan;
    if (rows < 1 || rows > MIMO_CUDA_ROWS)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "trace: expected 1 to %d rows, found %u", MIMO_CUDA_ROWS, rows);
    if (stop < 1 || stop > plan->count)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "trace: expected 1 to %u operations, found %u", plan->count, stop);
    if (slot == MIMO_SLOT_KV && !cuda->exact)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "trace: expected keys and values in float (precision exact)");
    tracing t = {.cuda = cuda, .rows = rows, .stop = stop, .slot = slot};
    if (plan->op[stop - 1].layer != MIMO_NO_LAYER)
        t.layer = plan->op[stop - 1].layer;
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    MIMO_TRY(mimo_cuda_sequence_open(&cuda->kv, &t.sequence, err));
    const mimo_status status = trace(&t, tokens, out, err);
    mimo_cuda_sequence_close(&cuda->kv, t.sequence);
    return status;
}

/* ---- faults ---- */

/* The first task of a stage (others may have nothing to do in a step of few positions), or the first join of the
 * number-th stage that has some; NULL: there is none. */
static mimo_tile_task *task_to_skip(mimo_queues *q, uint32_t number)
{
    mimo_tile_task *found = NULL;
    for (uint32_t i = 0; i < q->tasks; i++) {
        mimo_tile_task *task = &q->task[i];
        if (task->signal == number && (found == NULL || task->split < found->split ||
                                       (task->split == found->split && task->first < found->first)))
            found = task;
    }
    uint32_t left = number - q->counters;
    for (uint32_t i = 0; number >= q->counters && i < q->joins && found == NULL; i++)
        if ((i == 0 || q->join[i].signal != q->join[i - 1].signal) && left-- == 0)
            found = &q->join[i];
    return found;
}

mimo_status mimo_cuda_skip(mimo_backend *backend, uint32_t number, uint32_t *op, mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)backend;
    mimo_queues *q = cuda->resident != NULL ? &cuda->resident->queues[MIMO_RESIDENT_STEP] : NULL;
    mimo_tile_task *found = q != NULL ? task_to_skip(q, number) : NULL;
    if (found == NULL)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "skip: expected a stage of the resident kernel's steps");
    *op = found->op;
    found->kind = MIMO_TILE_KINDS; /* none */
    found->tile_pages = 0;
    found->pages = 0;
    const mimo_tile_machine *m = &cuda->resident->machine[MIMO_RESIDENT_STEP];
    const mimo_tile_task *to =
        number < q->counters ? m->task + (found - q->task) : m->join + (found - q->join); /* of the device */
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    return mimo_cuda_write(&cuda->device, (mimo_cuda_ptr)(uintptr_t)to, found, sizeof *found, err);
}

mimo_status mimo_cuda_spoil(mimo_backend *backend, mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)backend;
    uint8_t *garbage;
    MIMO_TRY(mimo_alloc_array(&garbage, 1, cuda->memory.tables, "garbage", err));
    memset(garbage, 0xa5, cuda->memory.tables);
    mimo_status status = mimo_cuda_enter(&cuda->device, err);
    if (status == MIMO_OK)
        status = mimo_cuda_write(&cuda->device, cuda->tables, garbage, cuda->memory.tables, err);
    mimo_free(garbage);
    return status;
}

mimo_status mimo_cuda_break(mimo_backend *backend, uint32_t program, uint32_t task, uint32_t milliseconds,
                            mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)backend;
    mimo_resident *r = cuda->resident;
    if (r == NULL || program >= MIMO_RESIDENT_PROGRAMS || task >= r->queues[program].tasks)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "break: expected a task of a program of the resident kernel");
    mimo_tile_task broken = r->queues[program].task[task];
    broken.wait_count++;
    r->patience = milliseconds * (uint64_t)1000000;
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    const mimo_tile_task *to = r->machine[program].task + task; /* of the device */
    return mimo_cuda_write(&cuda->device, (mimo_cuda_ptr)(uintptr_t)to, &broken, sizeof broken, err);
}
