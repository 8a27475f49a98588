#include "cuda/trace.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"

/* Rows of a slot on the device: the first one's address, and floats from one to the next. */
typedef struct slot_rows {
    const float *first;
    size_t stride;
} slot_rows;

static slot_rows rows_of(const mimo_cuda *cuda, mimo_slot slot)
{
    const mimo_cuda_model *model = &cuda->target.model;
    const mimo_cuda_work *w = &model->state.work;
    switch (slot) {
    case MIMO_SLOT_X:
        return (slot_rows){w->x, w->x_stride};
    case MIMO_SLOT_M:
        return (slot_rows){w->m, w->x_stride};
    case MIMO_SLOT_Q: { /* full layers and sliding ones may differ: the first layer's */
        const mimo_attention *a = mimo_layer_attention(model->config, 0);
        return (slot_rows){w->q, (size_t)a->heads * a->head_dim};
    }
    case MIMO_SLOT_A:
        return (slot_rows){w->a, w->a_stride};
    case MIMO_SLOT_U:
        return (slot_rows){w->u, w->u_stride};
    case MIMO_SLOT_LOGITS:
        return (slot_rows){(const float *)(uintptr_t)model->spots.logits, model->spots.logits_stride};
    default:
        return (slot_rows){NULL, 0};
    }
}

static void run(mimo_cuda *cuda, const mimo_cuda_sequence *sequence, const uint32_t *tokens, uint32_t rows,
                uint32_t stop)
{
    const mimo_cuda_spots *spots = &cuda->target.model.spots;
    mimo_cuda_step *step = &cuda->step[0];
    *step = (mimo_cuda_step){.rows = rows,
                             .outputs = rows,
                             .logits = (float *)(uintptr_t)spots->logits,
                             .logits_stride = spots->logits_stride};
    for (uint32_t i = 0; i < rows; i++) {
        step->token[i] = tokens[i];
        step->position[i] = step->output[i] = i;
        step->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, sequence, 0);
    }
    mimo_cuda_queue_in(&cuda->device, spots->step, step, sizeof *step);
    mimo_cuda_run(cuda, &cuda->target, 0, mimo_min(stop, cuda->target.plan.count), rows);
}

mimo_status mimo_cuda_trace(mimo_backend *backend, const uint32_t *tokens, uint32_t rows, uint32_t stop, mimo_slot slot,
                            float *out, size_t columns, size_t *width, mimo_error *err)
{
    mimo_cuda *cuda = (mimo_cuda *)backend;
    if (cuda->resident != NULL)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "trace: expected the plain path, found the resident one");
    const slot_rows from = rows_of(cuda, slot);
    *width = from.stride;
    if (rows < 1 || rows > MIMO_CUDA_ROWS || from.first == NULL || columns > from.stride)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "trace: expected 1 to %d rows of a slot of floats", MIMO_CUDA_ROWS);
    if (out == NULL)
        return MIMO_OK;
    MIMO_TRY(mimo_cuda_enter(&cuda->device, err));
    mimo_cuda_sequence *sequence;
    MIMO_TRY(mimo_cuda_sequence_open(&cuda->kv, &sequence, err));
    mimo_status status = mimo_cuda_sequence_reserve(&cuda->kv, sequence, rows, err);
    if (status == MIMO_OK) {
        run(cuda, sequence, tokens, rows, stop);
        for (uint32_t i = 0; i < rows; i++)
            mimo_cuda_queue_out(&cuda->device, out + i * columns,
                                (mimo_cuda_ptr)(uintptr_t)(from.first + i * from.stride), columns * sizeof(float));
        mimo_cuda_wait(&cuda->device);
        status = mimo_cuda_device_check(&cuda->device, err);
    }
    mimo_cuda_sequence_close(&cuda->kv, sequence);
    return status;
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
