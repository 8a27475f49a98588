/* What several operations share, and the first and last operation. */
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "cpu/cpu.h"
#include "format/bf16.h"
#include "format/mxfp4.h"

mimo_gemm *mimo_cpu_gemm(const mimo_cpu *cpu, const mimo_panel *panel)
{
    const bool integer = mimo_packing_is_rounded(panel->packing) || (panel->packing == MIMO_PACK_MXFP4 && !cpu->exact);
    return integer ? cpu->kernels->gemm_q8[panel->packing] : cpu->kernels->gemm_f32[panel->packing];
}

mimo_ahead mimo_cpu_ahead(const mimo_panel *panel, size_t octet, size_t octets)
{
    const size_t all = mimo_panel_octets(panel), bytes = mimo_panel_octet_bytes(panel->packing, panel->cols);
    if (octet >= all)
        return (mimo_ahead){0};
    const size_t scales = octet * mimo_panel_octet_scale_bytes(panel->packing, panel->cols);
    return (mimo_ahead){.data = panel->data + octet * bytes,
                        .scales = panel->scales != NULL ? panel->scales + scales : panel->data,
                        .bytes = mimo_min(octets, all - octet) * bytes};
}

mimo_ahead mimo_cpu_ahead_unit(const mimo_panel *panel, const mimo_units *units, size_t unit)
{
    if (unit >= units->count)
        return (mimo_ahead){0};
    const mimo_piece p = mimo_units_at(units, unit);
    return mimo_cpu_ahead(panel, p.octet, p.octets);
}

static mimo_ahead ahead_first(const mimo_task *task, const mimo_panel *panel, size_t multiple)
{
    const mimo_units units = mimo_units_of(task->cpu, panel, multiple);
    return mimo_cpu_ahead_unit(panel, &units, mimo_units_begin(&units, task->worker));
}

mimo_ahead mimo_cpu_ahead_next_op(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_op *op = task->op + 1, *end = cpu->plan.op + cpu->plan.count;
    if (op < end && op->code == MIMO_OP_ATTENTION)
        op++;
    if (op >= end)
        return (mimo_ahead){0};
    const mimo_cpu_layer *layer = op->layer == MIMO_NO_LAYER ? NULL : &cpu->layer[op->layer];
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_QKV:
        return mimo_cpu_ahead_first_qkv(task, op->layer);
    case MIMO_OP_OUT_PROJ:
        return ahead_first(task, &layer->out, 1);
    case MIMO_OP_ROUTE:
        return layer->routes_alike ? (mimo_ahead){0} : mimo_cpu_ahead(&layer->router, task->worker->index, 1);
    case MIMO_OP_EXPERT_DOWN:
        return ahead_first(task, &layer->down[cpu->routes.active[0]], 1);
    case MIMO_OP_DENSE_UP:
        return ahead_first(task, &layer->gate[0], MIMO_HOME_OCTETS);
    case MIMO_OP_DENSE_DOWN:
        return ahead_first(task, &layer->down[0], 1);
    case MIMO_OP_HEAD:
        return ahead_first(task, &cpu->head, 1);
    default:
        return (mimo_ahead){0};
    }
}

mimo_act mimo_cpu_act(const mimo_rows *rows, size_t K)
{
    return (mimo_act){.f = rows->f, .q = rows->q, .d = rows->d, .s = rows->s, .K = K};
}

void mimo_cpu_quantize(const mimo_cpu *cpu, const mimo_rows *rows, size_t K, size_t row, size_t first, size_t count)
{
    if (rows->q == NULL || K % MIMO_MX_BLOCK != 0 || first % MIMO_MX_BLOCK != 0 || count % MIMO_MX_BLOCK != 0)
        return;
    const size_t at = row * K + first, block = at / MIMO_MX_BLOCK;
    cpu->kernels->quantize(rows->q + at, rows->d + block, rows->s + block, rows->f + at, count);
}

static void norm_row(const mimo_cpu *cpu, const mimo_rows *to, size_t i, const float *x, const float *weight)
{
    const size_t H = cpu->config->hidden;
    cpu->kernels->rms_norm(to->f + i * H, x, weight, H, cpu->config->norm_eps);
    mimo_cpu_quantize(cpu, to, H, i, 0, H);
}

const mimo_rows *mimo_cpu_norm_rows(const mimo_task *task, const uint16_t *row, size_t count, const float *weight)
{
    const mimo_cpu *cpu = task->cpu;
    const size_t H = cpu->config->hidden;
    if (count <= MIMO_LOCAL_ROWS) {
        for (size_t i = 0; i < count; i++)
            norm_row(cpu, &task->scratch->local, i, cpu->x + (row != NULL ? row[i] : i) * H, weight);
        return &task->scratch->local;
    }
    for (size_t i; (i = mimo_pool_take(task->worker)) < count;)
        norm_row(cpu, &cpu->m, i, cpu->x + (row != NULL ? row[i] : i) * H, weight);
    mimo_pool_barrier(task->worker, NULL, NULL);
    return &cpu->m;
}

size_t mimo_cpu_unit_octets(const mimo_cpu *cpu, size_t octets, size_t multiple)
{
    /* About six units a worker: long enough runs for the memory's own prefetching, enough to even out a slow worker. */
    const size_t wanted = mimo_ceil_div(octets, 6 * cpu->threads);
    const size_t most = MIMO_UNIT_OCTETS / multiple * multiple;
    return mimo_min(mimo_round_up(mimo_max(wanted, 1), multiple), most);
}

void mimo_cpu_add_residual(const mimo_task *task, const float *values, size_t stride, size_t octet, size_t octets,
                           bool layer_ends)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_step *step = cpu->step;
    const size_t H = cpu->config->hidden, first = 8 * octet, count = mimo_min(8 * octets, H - first);
    for (size_t t = 0; t < step->rows; t++) {
        float *x = cpu->x + t * H + first;
        const float *v = values + t * stride;
        for (size_t i = 0; i < count; i++)
            x[i] += v[i];
        if (!layer_ends)
            continue;
        for (size_t i = 0; i < step->taps; i++)
            if (step->tap[i] == task->op->layer)
                memcpy(step->hidden + i * step->hidden_stride + t * H + first, x, count * sizeof(float));
    }
}

void mimo_cpu_embed_token(const mimo_cpu *cpu, float *x, size_t token)
{
    const size_t H = cpu->config->hidden;
    if (cpu->weights->embed.format == MIMO_FORMAT_F32) {
        memcpy(x, (const float *)(const void *)cpu->embed + token * H, H * sizeof(float));
    } else {
        const uint16_t *from = (const uint16_t *)(const void *)cpu->embed + token * H;
        for (size_t h = 0; h < H; h++)
            x[h] = mimo_bf16_decode(from[h]);
    }
}

void mimo_cpu_angles(const mimo_cpu *cpu, size_t t)
{
    const float position = (float)cpu->step->position[t];
    for (int kind = 0; kind < 2; kind++) {
        const size_t half = cpu->angles[kind];
        for (size_t j = 0; j < half; j++) {
            const float angle = position * cpu->frequency[kind][j];
            cpu->cos[kind][t * half + j] = cosf(angle);
            cpu->sin[kind][t * half + j] = sinf(angle);
        }
    }
}

void mimo_cpu_embed(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    for (size_t t; (t = mimo_pool_take(task->worker)) < cpu->step->rows;) {
        mimo_cpu_embed_token(cpu, cpu->x + t * cpu->config->hidden, cpu->step->token[t]);
        mimo_cpu_angles(cpu, t);
    }
}

void mimo_cpu_head(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_step *step = cpu->step;
    if (step->outputs == 0)
        return;
    const mimo_rows *rows = mimo_cpu_norm_rows(task, step->output, step->outputs, cpu->norm);
    mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, &cpu->head);
    const mimo_units units = mimo_units_of(cpu, &cpu->head, 1);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        act.ahead = mimo_cpu_ahead_unit(&cpu->head, &units, c.next);
        gemm(step->logits + 8 * p.octet, step->logits_stride, &cpu->head, p.octet, p.octets, &act, NULL, step->outputs);
    }
}
