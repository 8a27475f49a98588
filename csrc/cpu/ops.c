/* What several operations share, and the first and last operation. */
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "cpu/cpu.h"
#include "format/bf16.h"
#include "format/mxfp4.h"

mimo_gemm *mimo_cpu_gemm(const mimo_cpu *cpu, const mimo_panel *panel)
{
    const bool integer = panel->packing == MIMO_PACK_Q8 || (panel->packing == MIMO_PACK_MXFP4 && !cpu->exact);
    return integer ? cpu->kernels->gemm_q8[panel->packing] : cpu->kernels->gemm_f32[panel->packing];
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
    /* About twelve units a worker: few enough to cost nothing, enough to even out a slow worker. */
    const size_t wanted = mimo_ceil_div(octets, 12 * cpu->threads);
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
    const mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, &cpu->head);
    const size_t octets = mimo_panel_octets(&cpu->head), size = mimo_cpu_unit_octets(cpu, octets, 1);
    for (size_t first; (first = size * mimo_pool_take(task->worker)) < octets;)
        gemm(step->logits + 8 * first, step->logits_stride, &cpu->head, first, mimo_min(size, octets - first), &act,
             NULL, step->outputs);
}
