#include "cpu/attend.h"

#include <math.h>
#include <string.h>

#include "base/exp.h"
#include "base/size.h"
#include "cpu/draft.h"

mimo_partial mimo_partial_at(float *memory, size_t heads)
{
    return (mimo_partial){.m = memory, .l = memory + heads, .acc = memory + 2 * heads};
}

/* From `head` on. */
static mimo_partial partial_from(const mimo_partial *p, size_t head, size_t Dv)
{
    return (mimo_partial){.m = p->m + head, .l = p->l + head, .acc = p->acc + head * Dv};
}

/* into += chunk, both relative to the larger maximum. Chunks are merged in ascending order of position, always. */
static void merge(const mimo_partial *into, const mimo_partial *chunk, size_t heads, size_t Dv)
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

void mimo_cpu_keys(const mimo_cpu *cpu, const mimo_attention *a, size_t t, size_t *lowest, size_t *after)
{
    const size_t position = cpu->step->position[t];
    *lowest = a->window > 0 && position + 1 > a->window ? position + 1 - a->window : 0;
    *after = position + 1;
    if (cpu->config->taps > 0)
        mimo_cpu_draft_keys(cpu, a, t, lowest, after);
}

mimo_sight mimo_sight_of(const mimo_cpu *cpu, const mimo_attention *a, size_t t)
{
    mimo_sight s;
    mimo_cpu_keys(cpu, a, t, &s.lowest, &s.after);
    s.first = s.lowest / MIMO_KV_CHUNK;
    s.last = mimo_ceil_div(s.after, MIMO_KV_CHUNK);
    return s;
}

mimo_tile mimo_tile_of(const mimo_task *task, const mimo_attention *a, size_t t, size_t rows, size_t head, size_t heads)
{
    mimo_tile x = {.task = task, .a = a, .t = t, .head = head, .heads = heads, .first = SIZE_MAX};
    x.rows = mimo_min(rows, task->cpu->step->rows - t);
    for (size_t r = 0; r < x.rows; r++) {
        x.row[r] = mimo_sight_of(task->cpu, a, t + r);
        x.first = mimo_min(x.first, x.row[r].first);
        x.last = mimo_max(x.last, x.row[r].last);
    }
    return x;
}

static bool sees(const mimo_tile *x, size_t r, size_t chunk)
{
    return chunk >= x->row[r].first && chunk < x->row[r].last;
}

/* Neighbouring rows of a tile to which a chunk is the same. */
typedef struct run {
    size_t row, rows;
    size_t begin, end; /* keys of the chunk */
    bool first;        /* it is the first chunk that they see */
    mimo_kv *kv;
} run;

static run run_of(const mimo_tile *x, size_t r, size_t chunk)
{
    const size_t position = chunk * MIMO_KV_CHUNK;
    return (run){.row = r,
                 .rows = 1,
                 .begin = mimo_max(x->row[r].lowest, position) - position,
                 .end = mimo_min(x->row[r].after - position, MIMO_KV_CHUNK),
                 .first = chunk == x->row[r].first,
                 .kv = x->task->cpu->step->kv[x->t + r]};
}

/* The run that begins at row r or, if the chunk is nothing to it, later; no rows: there is none. */
static run next_run(const mimo_tile *x, size_t r, size_t chunk)
{
    while (r < x->rows && !sees(x, r, chunk))
        r++;
    if (r == x->rows)
        return (run){.row = r};
    run now = run_of(x, r, chunk);
    for (; ++r < x->rows && sees(x, r, chunk); now.rows++) {
        const run same = run_of(x, r, chunk);
        if (same.kv != now.kv || same.begin != now.begin || same.end != now.end || same.first != now.first)
            break;
    }
    return now;
}

static uint8_t *keys_of(const mimo_tile *x, const mimo_kv *kv, size_t chunk, uint8_t **values)
{
    const uint32_t g = (uint32_t)(x->head / (x->a->heads / x->a->kv_heads));
    return mimo_kv_head(kv, x->task->op->layer, g, chunk * MIMO_KV_CHUNK, values);
}

/* Rows [r, r + rows) of `of` equal parts of `count` elements. */
static mimo_ahead share(const uint8_t *data, size_t count, size_t element, size_t r, size_t rows, size_t of)
{
    const size_t bytes = count * element / of;
    return (mimo_ahead){.data = data + r * bytes, .bytes = rows * bytes};
}

/* The part of rows [r, r + rows) in asking for a chunk of their tile, while they compute another. */
static void ask(mimo_keys *keys, const mimo_tile *x, size_t r, size_t rows, size_t chunk)
{
    if (r + rows > x->rows || !sees(x, r, chunk))
        return;
    const mimo_cpu *cpu = x->task->cpu;
    const run seen = run_of(x, r, chunk);
    uint8_t *v;
    const uint8_t *k = keys_of(x, seen.kv, chunk, &v);
    const size_t D = x->a->head_dim, Dv = x->a->v_head_dim, element = cpu->kv_layout.element_bytes;
    const size_t begin = seen.begin / 8 * 8, count = seen.end - begin;
    keys->ahead_k = share(k + begin * D * element, mimo_round_up(count, 8) * D, element, r, rows, x->rows);
    keys->ahead_v = share(v + begin * Dv * element, count * Dv, element, r, rows, x->rows);
}

const float *mimo_tile_queries(const mimo_tile *x, float *memory)
{
    const size_t all = (size_t)x->a->heads * x->a->head_dim, count = x->heads * x->a->head_dim;
    const float *q = x->task->cpu->q + x->t * all + x->head * x->a->head_dim;
    if (x->rows <= 1 || count == all)
        return q;
    for (size_t r = 0; r < x->rows; r++)
        memcpy(memory + r * count, q + r * all, count * sizeof(float));
    return memory;
}

/* queries and results: of the tile. */
static void attend_run(const mimo_tile *x, const run *rows, size_t chunk, const float *queries, const mimo_partial *to,
                       const mimo_tile *next, size_t after)
{
    const mimo_cpu *cpu = x->task->cpu;
    const mimo_attention *a = x->a;
    uint8_t *values;
    const uint8_t *k = keys_of(x, rows->kv, chunk, &values);
    mimo_keys keys = {.k = k,
                      .v = values,
                      .begin = rows->begin,
                      .end = rows->end,
                      .D = a->head_dim,
                      .Dv = a->v_head_dim,
                      .scale = 1.0f / sqrtf((float)a->head_dim)};
    ask(&keys, next, rows->row, rows->rows, after);
    const mimo_partial p = partial_from(to, rows->row * x->heads, a->v_head_dim);
    (cpu->exact ? cpu->kernels->attend_f32
                : cpu->kernels->attend_bf16)(p.m, p.l, p.acc, queries + rows->row * x->heads * a->head_dim,
                                             rows->rows * x->heads, &keys, x->task->scratch->attention);
}

void mimo_tile_attend(const mimo_tile *x, size_t chunk, const float *queries, const mimo_partial *total,
                      const mimo_partial *part, const mimo_tile *next, size_t after)
{
    for (run i = next_run(x, 0, chunk); i.rows > 0; i = next_run(x, i.row + i.rows, chunk))
        attend_run(x, &i, chunk, queries, i.first ? total : part, next, after);
}

/* The sink joins, and the weighted values become a part of row r's output. total: the row's. */
static void finish(const mimo_tile *x, size_t r, const mimo_partial *total)
{
    const mimo_cpu *cpu = x->task->cpu;
    const mimo_attention *a = x->a;
    const size_t Dv = a->v_head_dim;
    const float *sinks = cpu->layer[x->task->op->layer].sinks;
    for (size_t h = 0; h < x->heads; h++) {
        float scale_all = 1.0f, sink = 0.0f;
        if (a->sinks) {
            const float s = sinks[x->head + h], m = total->m[h] > s ? total->m[h] : s;
            scale_all = mimo_expf(total->m[h] - m);
            sink = mimo_expf(s - m);
        }
        const float inverse = scale_all / (total->l[h] * scale_all + sink);
        float *out = cpu->a.f + ((x->t + r) * a->heads + x->head + h) * Dv;
        for (size_t e = 0; e < Dv; e++)
            out[e] = total->acc[h * Dv + e] * inverse;
    }
    mimo_cpu_quantize(cpu, &cpu->a, (size_t)a->heads * Dv, x->t + r, x->head * Dv, x->heads * Dv);
}

void mimo_tile_merge(const mimo_tile *x, size_t chunk, const mimo_partial *total, const mimo_partial *part)
{
    const size_t Dv = x->a->v_head_dim;
    for (size_t r = 0; r < x->rows; r++) {
        if (!sees(x, r, chunk))
            continue;
        const mimo_partial into = partial_from(total, r * x->heads, Dv), from = partial_from(part, r * x->heads, Dv);
        if (chunk > x->row[r].first)
            merge(&into, &from, x->heads, Dv);
        if (chunk + 1 == x->row[r].last)
            finish(x, r, &into);
    }
}
