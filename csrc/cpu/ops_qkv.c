/* Queries, keys and values of a layer: the matrix by heads, norms of heads, rotary embedding, the KV cache. */
#include <string.h>

#include "base/size.h"
#include "cpu/cpu.h"
#include "cpu/draft.h"

/* A unit of the qkv matrix: a head, or half of one when its rotary pairs divide into octets. Heads are numbered queries
 * first, then keys, then values. */
typedef struct head_unit {
    uint32_t head, part, parts;
} head_unit;

/* Whole heads first, which are read in one piece; the last few are halved, so that workers end together. */
typedef struct head_units {
    uint32_t whole, parts, count;
} head_units;

/* Octets of a head that are rotated together: [low, low + octets) and [low + half, ...), where half is R/16 octets. */
static uint32_t head_parts(const mimo_attention *a)
{
    const bool even = a->rotary_dim % 32 == 0 && (a->head_dim - a->rotary_dim) % 16 == 0 && a->v_head_dim % 16 == 0;
    return even ? 2 : 1;
}

static head_units units_of(const mimo_cpu *cpu, uint32_t layer)
{
    const mimo_attention *a = mimo_layer_attention(cpu->config, layer);
    const uint32_t heads = a->heads + 2 * a->kv_heads, parts = cpu->layer[layer].q_norm != NULL ? 1 : head_parts(a);
    const uint32_t halved = (uint32_t)mimo_min(2 * cpu->threads, heads), whole = parts == 1 ? heads : heads - halved;
    return (head_units){whole, parts, whole + parts * (heads - whole)};
}

static head_unit unit_at(const head_units *u, size_t unit)
{
    if (unit < u->whole)
        return (head_unit){(uint32_t)unit, 0, 1};
    const uint32_t rest = (uint32_t)unit - u->whole;
    return (head_unit){u->whole + rest / u->parts, rest % u->parts, u->parts};
}

typedef struct qkv_run {
    const mimo_task *task;
    const mimo_attention *a;
    const mimo_panel *panel;
    mimo_act *act;
    mimo_ahead next; /* of the unit that follows */
    mimo_gemm *gemm;
    uint32_t layer;
    uint8_t kind;
} qkv_run;

/* Rows [row, row + count) of the matrix for all T rows of the step, to rows of `stride`; `next` rows from next_row on
 * are read after them, or the next unit if next is 0. */
static void project(const qkv_run *run, size_t row, size_t count, float *to, size_t stride, size_t next_row,
                    size_t next)
{
    run->act->ahead = next > 0 ? mimo_cpu_ahead(run->panel, next_row / 8, next / 8) : run->next;
    run->gemm(to, stride, run->panel, row / 8, count / 8, run->act, NULL, run->task->cpu->step->rows);
}

static void store(const qkv_run *run, uint32_t head, size_t t, const float *values, size_t first, size_t count)
{
    const mimo_cpu *cpu = run->task->cpu;
    const mimo_attention *a = run->a;
    if (head < a->heads)
        memcpy(cpu->q + (t * a->heads + head) * a->head_dim + first, values, count * sizeof(float));
    else
        mimo_kv_write_key(cpu->step->kv[t], run->layer, head - a->heads, cpu->step->position[t], values, first, count);
}

/* The rotated dims j in [first, first + m) and their partners j + R/2; `rest` rows from rest_row on are read after
 * them. */
static void project_rotated(const qkv_run *run, uint32_t head, size_t first, size_t m, size_t rest_row, size_t rest)
{
    const mimo_cpu *cpu = run->task->cpu;
    const size_t half = run->a->rotary_dim / 2, row = (size_t)head * run->a->head_dim;
    float *pairs = run->task->scratch->gemm; /* [T, 2 * m] */
    project(run, row + first, m, pairs, 2 * m, row + half + first, m);
    project(run, row + half + first, m, pairs + m, 2 * m, rest_row, rest);
    for (size_t t = 0; t < cpu->step->rows; t++, pairs += 2 * m) {
        cpu->kernels->rope(pairs, cpu->cos[run->kind] + t * half + first, cpu->sin[run->kind] + t * half + first,
                           2 * m);
        store(run, head, t, pairs, first, m);
        store(run, head, t, pairs + m, half + first, m);
    }
}

static void project_plain(const qkv_run *run, uint32_t head, size_t first, size_t count)
{
    if (count == 0)
        return;
    const float *values = run->task->scratch->gemm;
    project(run, (size_t)head * run->a->head_dim + first, count, run->task->scratch->gemm, count, 0, 0);
    for (size_t t = 0; t < run->task->cpu->step->rows; t++)
        store(run, head, t, values + t * count, first, count);
}

/* A head that is normed, rotated in pairs that do not fall into octets, or simply not halved. */
static void project_whole(const qkv_run *run, uint32_t head)
{
    const mimo_cpu *cpu = run->task->cpu;
    const size_t D = run->a->head_dim, R = run->a->rotary_dim;
    const mimo_cpu_layer *layer = &cpu->layer[run->layer];
    const float *norm = head < run->a->heads ? layer->q_norm : layer->k_norm;
    float *values = run->task->scratch->gemm;
    project(run, (size_t)head * D, D, values, D, 0, 0);
    for (size_t t = 0; t < cpu->step->rows; t++) {
        if (norm != NULL)
            cpu->kernels->rms_norm(values + t * D, values + t * D, norm, D, cpu->config->norm_eps);
        cpu->kernels->rope(values + t * D, cpu->cos[run->kind] + t * R / 2, cpu->sin[run->kind] + t * R / 2, R);
        store(run, head, t, values + t * D, 0, D);
    }
}

static void project_value(const qkv_run *run, uint32_t g, size_t first, size_t count)
{
    const mimo_cpu *cpu = run->task->cpu;
    const mimo_attention *a = run->a;
    const size_t row = (size_t)(a->heads + a->kv_heads) * a->head_dim + (size_t)g * a->v_head_dim + first;
    float *values = run->task->scratch->gemm;
    project(run, row, count, values, count, 0, 0);
    const float scale = cpu->config->value_scale;
    for (size_t t = 0; t < cpu->step->rows; t++) {
        float *v = values + t * count;
        for (size_t i = 0; i < count; i++)
            v[i] *= scale;
        mimo_kv_write_value(cpu->step->kv[t], run->layer, g, cpu->step->position[t], v, first, count);
    }
}

static void run_head_unit(const qkv_run *run, head_unit u)
{
    const mimo_attention *a = run->a;
    if (u.head >= a->heads + a->kv_heads) {
        const size_t count = a->v_head_dim / u.parts;
        project_value(run, u.head - a->heads - a->kv_heads, u.part * count, count);
    } else if (u.parts == 1) {
        project_whole(run, u.head);
    } else {
        const size_t pairs = a->rotary_dim / 4, rest = (a->head_dim - a->rotary_dim) / 2;
        const size_t plain_row = u.head * a->head_dim + a->rotary_dim + u.part * rest;
        if (pairs > 0)
            project_rotated(run, u.head, u.part * pairs, pairs, plain_row, rest);
        project_plain(run, u.head, a->rotary_dim + u.part * rest, rest);
    }
}

static qkv_run begin_qkv(const mimo_task *task, uint32_t layer, mimo_act *act)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_panel *panel = &cpu->layer[layer].qkv;
    return (qkv_run){.task = task,
                     .a = mimo_layer_attention(cpu->config, layer),
                     .panel = panel,
                     .act = act,
                     .gemm = mimo_cpu_gemm(cpu, panel),
                     .layer = layer,
                     .kind = cpu->config->sliding[layer]};
}

/* First row of a head in the matrix. */
static size_t head_row(const mimo_attention *a, size_t head)
{
    const size_t keys = (size_t)a->heads + a->kv_heads;
    return mimo_min(head, keys) * a->head_dim + (head > keys ? head - keys : 0) * a->v_head_dim;
}

/* A node's heads are those that begin in its octets. */
static mimo_units share_heads(const mimo_cpu *cpu, uint32_t layer, const head_units *u)
{
    const mimo_attention *a = mimo_layer_attention(cpu->config, layer);
    const size_t octets = mimo_panel_octets(&cpu->layer[layer].qkv), heads = (size_t)a->heads + 2 * a->kv_heads;
    mimo_units units = {.nodes = mimo_pool_nodes(cpu->pool), .count = u->count};
    for (size_t n = 1, head = 0; n < units.nodes; n++) {
        while (head < heads && head_row(a, head) < 8 * mimo_cpu_home(cpu, octets, n))
            head++;
        units.first[n] = head <= u->whole ? head : u->whole + u->parts * (head - u->whole);
    }
    units.first[units.nodes] = units.count;
    return units;
}

static mimo_ahead ahead_qkv(const mimo_cpu *cpu, uint32_t layer, const head_units *units, size_t unit)
{
    if (unit >= units->count)
        return (mimo_ahead){0};
    const mimo_attention *a = mimo_layer_attention(cpu->config, layer);
    const head_unit u = unit_at(units, unit);
    const size_t keys = a->heads + a->kv_heads;
    const size_t row = head_row(a, u.head) + u.part * (u.head < keys ? a->rotary_dim / 4 : a->v_head_dim / u.parts);
    return mimo_cpu_ahead(&cpu->layer[layer].qkv, row / 8, a->v_head_dim / 8);
}

mimo_ahead mimo_cpu_ahead_first_qkv(const mimo_task *task, uint32_t layer)
{
    const head_units heads = units_of(task->cpu, layer);
    const mimo_units units = share_heads(task->cpu, layer, &heads);
    return ahead_qkv(task->cpu, layer, &heads, mimo_units_begin(&units, task->worker));
}

void mimo_cpu_qkv(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_layer *layer = &cpu->layer[task->op->layer];
    const mimo_rows *rows = mimo_cpu_norm_rows(task, NULL, cpu->step->rows, layer->attention_norm);
    mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    qkv_run run = begin_qkv(task, task->op->layer, &act);
    const head_units heads = units_of(cpu, task->op->layer);
    const mimo_units units = share_heads(cpu, task->op->layer, &heads);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        run.next =
            c.next < units.count ? ahead_qkv(cpu, task->op->layer, &heads, c.next) : mimo_cpu_ahead_next_op(task);
        run_head_unit(&run, unit_at(&heads, c.unit));
    }
}

/* A unit of a drafter's context is one head of keys or values. */
static uint32_t context_units(const mimo_cpu *cpu, uint32_t layer)
{
    return 2 * mimo_layer_attention(cpu->config, layer)->kv_heads;
}

void mimo_cpu_draft_context(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_rows *rows = mimo_cpu_norm_rows(task, NULL, cpu->step->rows, cpu->draft->fuse_norm);
    mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    uint32_t layer = 0;
    for (size_t first = 0;;) { /* units of the layers before */
        const size_t unit = mimo_pool_take(task->worker);
        while (layer < cpu->config->layers && unit >= first + context_units(cpu, layer))
            first += context_units(cpu, layer++);
        if (layer == cpu->config->layers)
            return;
        const qkv_run run = begin_qkv(task, layer, &act);
        run_head_unit(&run, (head_unit){run.a->heads + (uint32_t)(unit - first), 0, 1});
    }
}
