/* Everything a step writes, sized once for the largest step. */
#include <math.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cpu/cpu.h"
#include "cpu/draft.h"
#include "format/mxfp4.h"

/* Two passes over the same requests: the first adds sizes, the second hands out addresses. */
typedef struct carver {
    uint8_t *base; /* NULL in the first pass */
    size_t used;
    bool overflow;
} carver;

static void *carve(carver *c, size_t count, size_t size)
{
    void *block = c->base != NULL ? c->base + c->used : NULL;
    size_t bytes;
    c->overflow |= !mimo_size_mul(count, size, &bytes) || !mimo_size_add(c->used, bytes, &c->used);
    c->used = mimo_round_up(c->used, 64);
    return block;
}

static void carve_rows(carver *c, mimo_rows *rows, size_t count, size_t K, bool exact)
{
    *rows = (mimo_rows){.K = K};
    rows->f = carve(c, count * K, sizeof(float));
    if (exact)
        return;
    rows->q = carve(c, count * K, 1);
    rows->d = carve(c, count * mimo_ceil_div(K, MIMO_MX_BLOCK), sizeof(float));
    rows->s = carve(c, count * mimo_ceil_div(K, MIMO_MX_BLOCK), sizeof(int32_t));
}

static void carve_routes(carver *c, mimo_routes *r, size_t T, size_t E, size_t K)
{
    r->expert = carve(c, T * K, sizeof(uint32_t));
    r->weight = carve(c, T * K, sizeof(float));
    r->active = carve(c, E, sizeof(uint32_t));
    r->first = carve(c, E + 1, sizeof(uint32_t));
    r->row = carve(c, T * K, sizeof(uint16_t));
    r->slot = carve(c, T * K, sizeof(uint16_t));
    r->share = carve(c, T * K, sizeof(float));
}

/* The largest of each dimension over the layers in use. */
typedef struct sizes {
    size_t q, a, u, attention, split;
} sizes;

static sizes measure(mimo_cpu *cpu)
{
    const mimo_config *c = cpu->config;
    const size_t T = cpu->max_rows;
    sizes s = {0};
    for (uint32_t i = 0; i < c->layers; i++) {
        const mimo_attention *a = mimo_layer_attention(c, i);
        const size_t group = a->heads / a->kv_heads;
        s.q = mimo_max(s.q, (size_t)a->heads * a->head_dim);
        s.a = mimo_max(s.a, (size_t)a->heads * a->v_head_dim);
        cpu->angles[c->sliding[i]] = a->rotary_dim / 2;
        /* a tile's queries, their results, those of a chunk */
        const size_t of_head = (size_t)a->head_dim + 2 * ((size_t)a->v_head_dim + 2);
        s.attention = mimo_max(s.attention, MIMO_ATTEND_SCRATCH + MIMO_TILE_ROWS * group * of_head + 64);
        s.split = mimo_max(s.split, mimo_round_up(group * ((size_t)a->v_head_dim + 2), 16));
        s.u = mimo_max(s.u, c->sparse[i] ? T * c->top_k * c->expert_width : T * c->dense_width);
    }
    return s;
}

/* A drafter's own rows. */
static void carve_draft(carver *c, mimo_cpu_draft *draft, size_t T)
{
    carve_rows(c, &draft->taps, T, (size_t)draft->cpu.config->taps * draft->cpu.config->hidden, draft->cpu.exact);
    draft->position = carve(c, T, sizeof *draft->position);
    draft->kv = carve(c, T, sizeof(mimo_kv *));
    draft->output = carve(c, T, sizeof *draft->output);
    draft->begin = carve(c, T, sizeof *draft->begin);
}

static void carve_all(mimo_cpu *cpu, carver *c, const sizes *s)
{
    const mimo_config *config = cpu->config;
    const size_t T = cpu->max_rows, H = config->hidden;
    cpu->x = carve(c, T * H, sizeof(float));
    for (int kind = 0; kind < 2; kind++) {
        cpu->cos[kind] = carve(c, T * cpu->angles[kind], sizeof(float));
        cpu->sin[kind] = carve(c, T * cpu->angles[kind], sizeof(float));
        cpu->frequency[kind] = carve(c, cpu->angles[kind], sizeof(float));
    }
    cpu->q = carve(c, T * s->q, sizeof(float));
    carve_rows(c, &cpu->a, T, s->a, cpu->exact);
    carve_rows(c, &cpu->m, T, H, cpu->exact);
    carve_rows(c, &cpu->u, 1, s->u, cpu->exact);
    if (config->taps > 0)
        carve_draft(c, cpu->draft, T);
    cpu->router_logits = carve(c, T * mimo_round_up(config->experts, 8), sizeof(float));
    carve_routes(c, &cpu->routes, T, config->experts, config->top_k);
    cpu->split_width = s->split;
    cpu->split_total = carve(c, MIMO_SPLIT_QUERIES * cpu->threads, s->split * sizeof(float));
    cpu->split_part = carve(c, 2 * (size_t)MIMO_SPLIT_PARTS * cpu->threads, s->split * sizeof(float));
    for (size_t i = 0; i < cpu->threads; i++) {
        mimo_scratch unused = {0};
        mimo_scratch *scratch = c->base != NULL ? &cpu->scratch[i] : &unused;
        carve_rows(c, &scratch->local, mimo_min(T, MIMO_LOCAL_ROWS), H, cpu->exact);
        scratch->gemm = carve(c, 2 * T * cpu->block, sizeof(float));
        scratch->sum = carve(c, T * cpu->block, sizeof(float));
        scratch->attention = carve(c, s->attention, sizeof(float));
    }
}

/* theta^(-2j/R) in float, as the reference computes it. */
static void fill_frequencies(mimo_cpu *cpu)
{
    for (int kind = 0; kind < 2; kind++)
        for (size_t j = 0; j < cpu->angles[kind]; j++) {
            const float exponent = (float)(2 * j) / (float)(2 * cpu->angles[kind]);
            cpu->frequency[kind][j] = 1.0f / (float)pow(cpu->config->attention[kind].rope_theta, exponent);
        }
}

mimo_status mimo_cpu_open_workspace(mimo_cpu *cpu, mimo_error *err)
{
    MIMO_TRY(mimo_alloc_array(&cpu->scratch, cpu->threads, sizeof *cpu->scratch, "scratch of workers", err));
    MIMO_TRY(mimo_alloc_array(&cpu->profile, cpu->threads, sizeof *cpu->profile, "profile counters", err));
    /* A unit is at most MIMO_UNIT_OCTETS octets, or one head. */
    cpu->block = 8 * MIMO_UNIT_OCTETS;
    for (int kind = 0; kind < 2; kind++)
        cpu->block = mimo_max(
            cpu->block,
            mimo_round_up(mimo_max(cpu->config->attention[kind].head_dim, cpu->config->attention[kind].v_head_dim), 8));
    const sizes s = measure(cpu);
    carver c = {0};
    carve_all(cpu, &c, &s);
    if (c.overflow)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the workspace of %zu rows exceeds the address space",
                         cpu->max_rows);
    MIMO_TRY(mimo_alloc_array(&cpu->workspace, 1, c.used, "workspace", err));
    cpu->base.memory.workspace = c.used;
    c = (carver){.base = cpu->workspace};
    carve_all(cpu, &c, &s);
    fill_frequencies(cpu);
    return MIMO_OK;
}
