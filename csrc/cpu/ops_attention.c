/* The attention half of a layer: qkv, attention, out_proj. */
#include <math.h>
#include <string.h>

#include "base/exp.h"
#include "base/size.h"
#include "cpu/cpu.h"
#include "cpu/draft.h"

/* ---- qkv ---- */

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

/* ---- attention ---- */

/* Results of some keys for one query head: softmax numerators are relative to m, l is their sum, acc [Dv] their
 * weighted values. */
typedef struct partial {
    float *m, *l, *acc; /* [heads], [heads], [heads, Dv] */
} partial;

static partial partial_at(float *memory, size_t heads)
{
    return (partial){.m = memory, .l = memory + heads, .acc = memory + 2 * heads};
}

/* into += chunk, both relative to the larger maximum. Chunks are merged in ascending order of position, always. */
static void merge(const partial *into, const partial *chunk, size_t heads, size_t Dv)
{
    for (size_t h = 0; h < heads; h++) {
        const float m = into->m[h] > chunk->m[h] ? into->m[h] : chunk->m[h];
        const float a = mimo_expf(into->m[h] - m), b = mimo_expf(chunk->m[h] - m);
        into->m[h] = m;
        into->l[h] = into->l[h] * a + chunk->l[h] * b;
        float *to = into->acc + h * Dv;
        const float *from = chunk->acc + h * Dv;
        for (size_t e = 0; e < Dv; e++)
            to[e] = to[e] * a + from[e] * b;
    }
}

/* Some query heads of one row that share a key/value head, and the chunks of keys that they see. */
typedef struct query {
    const mimo_task *task;
    const mimo_attention *a;
    size_t t, head, heads;
    size_t lowest, after; /* keys lowest <= j < after */
    size_t first_chunk, chunks;
} query;

void mimo_cpu_keys(const mimo_cpu *cpu, const mimo_attention *a, size_t t, size_t *lowest, size_t *after)
{
    const size_t position = cpu->step->position[t];
    *lowest = a->window > 0 && position + 1 > a->window ? position + 1 - a->window : 0;
    *after = position + 1;
    if (cpu->config->taps > 0)
        mimo_cpu_draft_keys(cpu, a, t, lowest, after);
}

static query query_of(const mimo_task *task, const mimo_attention *a, size_t t, size_t head, size_t heads)
{
    size_t lowest, after;
    mimo_cpu_keys(task->cpu, a, t, &lowest, &after);
    const size_t first = lowest / MIMO_KV_CHUNK;
    return (query){.task = task,
                   .a = a,
                   .t = t,
                   .head = head,
                   .heads = heads,
                   .lowest = lowest,
                   .after = after,
                   .first_chunk = first,
                   .chunks = mimo_ceil_div(after, MIMO_KV_CHUNK) - first};
}

/* The i-th chunk that the query sees. scores [heads, 256] is scratch. */
static void attend_chunk(const query *r, size_t i, const partial *to, float *scores)
{
    const mimo_cpu *cpu = r->task->cpu;
    const mimo_attention *a = r->a;
    const size_t first = (r->first_chunk + i) * MIMO_KV_CHUNK, D = a->head_dim;
    const size_t begin = mimo_max(r->lowest, first) - first, end = mimo_min(r->after - first, MIMO_KV_CHUNK);
    const uint32_t g = (uint32_t)(r->head / (a->heads / a->kv_heads));
    const float *q = cpu->q + (r->t * a->heads + r->head) * D;
    uint8_t *values;
    const uint8_t *keys = mimo_kv_head(cpu->step->kv[r->t], r->task->op->layer, g, first, &values);
    (cpu->exact ? cpu->kernels->attend_f32 : cpu->kernels->attend_bf16)(
        to->m, to->l, to->acc, q, keys, values, begin, end, r->heads, D, a->v_head_dim, 1.0f / sqrtf((float)D), scores);
}

/* The sink joins, and the weighted values become the query's part of the output row. */
static void finish(const query *r, const partial *total)
{
    const mimo_cpu *cpu = r->task->cpu;
    const mimo_attention *a = r->a;
    const size_t Dv = a->v_head_dim;
    const float *sinks = cpu->layer[r->task->op->layer].sinks;
    for (size_t h = 0; h < r->heads; h++) {
        float scale_all = 1.0f, sink = 0.0f;
        if (a->sinks) {
            const float s = sinks[r->head + h], m = total->m[h] > s ? total->m[h] : s;
            scale_all = mimo_expf(total->m[h] - m);
            sink = mimo_expf(s - m);
        }
        const float inverse = scale_all / (total->l[h] * scale_all + sink);
        float *out = cpu->a.f + (r->t * a->heads + r->head + h) * Dv;
        for (size_t e = 0; e < Dv; e++)
            out[e] = total->acc[h * Dv + e] * inverse;
    }
    mimo_cpu_quantize(cpu, &cpu->a, (size_t)a->heads * Dv, r->t, r->head * Dv, r->heads * Dv);
}

/* All chunks by one worker. */
static void attend(const query *r)
{
    const size_t Dv = r->a->v_head_dim, width = r->heads * (Dv + 2);
    float *memory = r->task->scratch->attention;
    const partial total = partial_at(memory, r->heads), chunk = partial_at(memory + width, r->heads);
    float *scores = memory + mimo_round_up(2 * width, 16);
    attend_chunk(r, 0, &total, scores);
    for (size_t i = 1; i < r->chunks; i++) {
        attend_chunk(r, i, &chunk, scores);
        merge(&total, &chunk, r->heads, Dv);
    }
    finish(r, &total);
}

/* ---- long contexts: a query's chunks by several workers ---- */

/* The chunks of all queries are computed in waves. While one wave is computed the one before is merged, in the order of
 * the chunks, so that the sum is the one that a single worker makes. */
typedef struct waves {
    const mimo_task *task;
    const mimo_attention *a;
    size_t count, chunks; /* waves, and chunks of a query in each */
} waves;

static query wave_query(const waves *w, size_t i)
{
    const size_t group = w->a->heads / w->a->kv_heads;
    return query_of(w->task, w->a, i / w->a->kv_heads, i % w->a->kv_heads * group, group);
}

/* Where chunk i of a query leaves its results: the first one in the query's total, others in the slots of their wave.
 */
static partial wave_partial(const waves *w, size_t query_number, size_t i, size_t heads)
{
    const mimo_cpu *cpu = w->task->cpu;
    if (i == 0)
        return partial_at(cpu->split_total + query_number * cpu->split_width, heads);
    const size_t half = i / w->chunks % 2 * MIMO_SPLIT_PARTS * cpu->threads;
    const size_t slot = half + query_number * w->chunks + i % w->chunks;
    return partial_at(cpu->split_part + slot * cpu->split_width, heads);
}

static void compute_part(const waves *w, size_t wave, size_t unit)
{
    const size_t number = unit / w->chunks, i = wave * w->chunks + unit % w->chunks;
    const query r = wave_query(w, number);
    if (i >= r.chunks)
        return;
    const partial to = wave_partial(w, number, i, r.heads);
    attend_chunk(&r, i, &to, w->task->scratch->attention);
}

static void merge_wave(const waves *w, size_t wave, size_t number)
{
    const query r = wave_query(w, number);
    const partial total = wave_partial(w, number, 0, r.heads);
    const size_t end = mimo_min((wave + 1) * w->chunks, r.chunks);
    for (size_t i = mimo_max(wave * w->chunks, 1); i < end; i++) {
        const partial chunk = wave_partial(w, number, i, r.heads);
        merge(&total, &chunk, r.heads, r.a->v_head_dim);
    }
    if (wave + 1 == w->count)
        finish(&r, &total);
}

static void attend_waves(const waves *w)
{
    const size_t queries = w->task->cpu->step->rows * w->a->kv_heads;
    for (size_t wave = 0; wave <= w->count; wave++) {
        const size_t merges = wave > 0 ? queries : 0, parts = wave < w->count ? queries * w->chunks : 0;
        for (size_t unit; (unit = mimo_pool_take(w->task->worker)) < merges + parts;) {
            if (unit < merges)
                merge_wave(w, wave - 1, unit);
            else
                compute_part(w, wave, unit - merges);
        }
        if (wave < w->count)
            mimo_pool_barrier(w->task->worker, NULL, NULL);
    }
}

/* Most chunks that a row of the step sees, or 0 if none sees more keys than one chunk holds: sharing pays from there
 * on. */
static size_t chunks_to_share(const mimo_task *task, const mimo_attention *a)
{
    size_t keys = 0, chunks = 0;
    for (size_t t = 0; t < task->cpu->step->rows; t++) {
        const query r = query_of(task, a, t, 0, 1);
        keys = mimo_max(keys, r.after - r.lowest);
        chunks = mimo_max(chunks, r.chunks);
    }
    return keys > MIMO_KV_CHUNK ? chunks : 0;
}

void mimo_cpu_attention(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_attention *a = mimo_layer_attention(cpu->config, task->op->layer);
    const size_t T = cpu->step->rows, group = a->heads / a->kv_heads, queries = T * a->kv_heads;
    const bool few = cpu->threads > 1 && queries < MIMO_SPLIT_QUERIES * cpu->threads;
    const size_t chunks = few ? chunks_to_share(task, a) : 0;
    if (chunks > 1) {
        const size_t count = mimo_ceil_div(chunks, MIMO_SPLIT_PARTS * cpu->threads / queries);
        const waves w = {.task = task, .a = a, .count = count, .chunks = mimo_ceil_div(chunks, count)};
        attend_waves(&w);
        return;
    }
    /* Heads of a group share the keys they read: together while there are units enough for all workers. */
    size_t heads = group;
    while (few && heads > 1 && queries * mimo_ceil_div(group, heads) < MIMO_SPLIT_QUERIES * cpu->threads)
        heads = mimo_ceil_div(heads, 2);
    const size_t per_group = mimo_ceil_div(group, heads), units = queries * per_group;
    /* Neighbouring units are of one key/value head: rows of one sequence find its keys in the first-level cache. */
    for (size_t unit; (unit = mimo_pool_take(task->worker)) < units;) {
        const size_t t = unit % T, part = unit / T, first = part % per_group * heads;
        const query r = query_of(task, a, t, part / per_group * group + first, mimo_min(heads, group - first));
        attend(&r);
    }
}

void mimo_cpu_out_proj(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_panel *panel = &cpu->layer[task->op->layer].out;
    mimo_act act = mimo_cpu_act(&cpu->a, panel->cols);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, panel);
    const mimo_units units = mimo_units_of(cpu, panel, 1);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        act.ahead = c.next < units.count ? mimo_cpu_ahead_unit(panel, &units, c.next) : mimo_cpu_ahead_next_op(task);
        gemm(task->scratch->gemm, 8 * p.octets, panel, p.octet, p.octets, &act, NULL, cpu->step->rows);
        mimo_cpu_add_residual(task, task->scratch->gemm, 8 * p.octets, p.octet, p.octets, false);
    }
}
