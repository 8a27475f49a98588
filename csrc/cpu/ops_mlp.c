/* The MLP half of a layer: route, expert_up and expert_down, or dense_up and dense_down. */
#include <string.h>

#include "base/exp.h"
#include "base/size.h"
#include "cpu/cpu.h"
#include "format/mxfp4.h"

/* ---- routing ---- */

/* The K experts of row t with the highest sigmoid score plus bias (lower id on a tie), by ascending id, with their
 * weights. */
static void choose_experts(mimo_cpu *cpu, const mimo_cpu_layer *layer, size_t t)
{
    const mimo_config *c = cpu->config;
    const size_t E = c->experts, K = c->top_k;
    const float *logits = cpu->router_logits + t * mimo_round_up(E, 8);
    uint32_t *chosen = cpu->routes.expert + t * K;
    float *weight = cpu->routes.weight + t * K;
    float ranked[MIMO_MAX_TOP_K]; /* biased scores of chosen, descending */
    size_t n = 0;
    for (uint32_t e = 0; e < E; e++) {
        const float score = 1.0f / (1.0f + mimo_expf(-logits[e])) + layer->router_bias[e];
        if (n == K && !(score > ranked[K - 1]))
            continue;
        size_t at = n < K ? n++ : K - 1;
        for (; at > 0 && score > ranked[at - 1]; at--) {
            ranked[at] = ranked[at - 1];
            chosen[at] = chosen[at - 1];
        }
        ranked[at] = score;
        chosen[at] = e;
    }
    for (size_t i = 1; i < K; i++) { /* insertion sort by id: the order in which experts are summed */
        const uint32_t id = chosen[i];
        size_t at = i;
        for (; at > 0 && chosen[at - 1] > id; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = id;
    }
    float sum = 0.0f;
    for (size_t i = 0; i < K; i++) {
        weight[i] = 1.0f / (1.0f + mimo_expf(-logits[chosen[i]]));
        sum += weight[i];
    }
    const float scale = c->norm_topk ? c->routed_scale / (sum + 1e-20f) : c->routed_scale;
    for (size_t i = 0; i < K; i++)
        weight[i] *= scale;
}

/* Rows by expert: a counting sort, rows ascending within an expert. */
static void group_rows(mimo_cpu *cpu)
{
    const size_t E = cpu->config->experts, K = cpu->config->top_k, entries = cpu->step->rows * K;
    mimo_routes *r = &cpu->routes;
    memset(r->first, 0, (E + 1) * sizeof *r->first);
    for (size_t i = 0; i < entries; i++)
        r->first[r->expert[i] + 1]++;
    r->actives = 0;
    for (uint32_t e = 0; e < E; e++) {
        if (r->first[e + 1] > 0)
            r->active[r->actives++] = e;
        r->first[e + 1] += r->first[e];
    }
    for (size_t i = 0; i < entries; i++) {
        const uint32_t at = r->first[r->expert[i]]++;
        r->row[at] = (uint16_t)(i / K);
        r->slot[at] = (uint16_t)i;
        r->share[at] = r->weight[i];
    }
    memmove(r->first + 1, r->first, E * sizeof *r->first); /* each now holds its successor's start */
    r->first[0] = 0;
}

/* What a router of zeros says of every row. */
static void choose_alike(mimo_cpu *cpu, const mimo_cpu_layer *layer)
{
    const size_t K = cpu->config->top_k;
    memset(cpu->router_logits, 0, cpu->config->experts * sizeof(float));
    choose_experts(cpu, layer, 0);
    for (size_t t = 1; t < cpu->step->rows; t++) {
        memcpy(cpu->routes.expert + t * K, cpu->routes.expert, K * sizeof *cpu->routes.expert);
        memcpy(cpu->routes.weight + t * K, cpu->routes.weight, K * sizeof *cpu->routes.weight);
    }
}

void mimo_cpu_route_end(mimo_cpu *cpu, const mimo_op *op)
{
    const mimo_cpu_layer *layer = &cpu->layer[op->layer];
    if (layer->routes_alike)
        choose_alike(cpu, layer);
    else if (cpu->step->rows <= MIMO_LOCAL_ROWS)
        for (size_t t = 0; t < cpu->step->rows; t++)
            choose_experts(cpu, layer, t);
    group_rows(cpu);
}

void mimo_cpu_mark_routes(mimo_cpu *cpu)
{
    for (uint32_t i = 0; i < cpu->config->layers; i++) {
        const mimo_panel *router = &cpu->layer[i].router;
        const size_t bytes = mimo_panel_octets(router) * mimo_panel_octet_bytes(router->packing, router->cols);
        cpu->layer[i].routes_alike = cpu->config->sparse[i];
        for (size_t at = 0; at < bytes && cpu->layer[i].routes_alike; at++)
            cpu->layer[i].routes_alike = router->data[at] == 0;
    }
}

void mimo_cpu_route(const mimo_task *task)
{
    mimo_cpu *cpu = task->cpu;
    const mimo_cpu_layer *layer = &cpu->layer[task->op->layer];
    const size_t T = cpu->step->rows;
    const mimo_rows *rows = mimo_cpu_norm_rows(task, NULL, T, layer->mlp_norm);
    if (layer->routes_alike)
        return;
    const mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, &layer->router);
    const size_t octets = mimo_panel_octets(&layer->router);
    for (size_t octet; (octet = mimo_pool_take(task->worker)) < octets;)
        gemm(cpu->router_logits + 8 * octet, 8 * octets, &layer->router, octet, 1, &act, NULL, T);
    if (T <= MIMO_LOCAL_ROWS)
        return; /* few rows: mimo_cpu_route_end does the rest, which saves a barrier */
    mimo_pool_barrier(task->worker, NULL, NULL);
    for (size_t t; (t = mimo_pool_take(task->worker)) < T;)
        choose_experts(cpu, layer, t);
}

/* ---- matrices ---- */

/* Gate and up projections of octets [octet, octet + octets) for n rows, SwiGLU, into rows slot[i] of u (slot NULL: row
 * i). */
static void up_unit(const mimo_task *task, const mimo_panel *gate, const mimo_panel *up, mimo_act *act,
                    const uint16_t *row, const uint16_t *slot, size_t n, size_t octet, size_t octets)
{
    const mimo_ahead next = act->ahead;
    act->ahead = mimo_cpu_ahead(up, octet, octets);
    const mimo_cpu *cpu = task->cpu;
    const size_t F = gate->rows, stride = 8 * octets, first = 8 * octet, count = mimo_min(stride, F - first);
    float *g = task->scratch->gemm, *u = g + n * stride;
    mimo_cpu_gemm(cpu, gate)(g, stride, gate, octet, octets, act, row, n);
    act->ahead = next;
    mimo_cpu_gemm(cpu, up)(u, stride, up, octet, octets, act, row, n);
    cpu->kernels->swiglu(g, g, u, n * stride);
    for (size_t i = 0; i < n; i++) {
        const size_t to = slot != NULL ? slot[i] : i;
        memcpy(cpu->u.f + to * F + first, g + i * stride, count * sizeof(float));
        mimo_cpu_quantize(cpu, &cpu->u, F, to, first, count);
    }
}

_Static_assert(8 * (int)MIMO_HOME_OCTETS == (int)MIMO_MX_BLOCK, "shares of rows are whole blocks");

/* Rows of the experts in use, in blocks, so that u can be quantised piece by piece. */
static mimo_units up_units(const mimo_cpu *cpu, const mimo_cpu_layer *layer)
{
    const size_t octets = mimo_panel_octets(&layer->gate[0]);
    const size_t most = mimo_cpu_unit_octets(cpu, octets * cpu->routes.actives, MIMO_HOME_OCTETS);
    const size_t size = mimo_round_up(mimo_ceil_div(octets, mimo_ceil_div(octets, most)), MIMO_HOME_OCTETS);
    return mimo_units_share(cpu, octets, size, cpu->routes.actives);
}

void mimo_cpu_expert_up(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_layer *layer = &cpu->layer[task->op->layer];
    const mimo_routes *r = &cpu->routes;
    const mimo_rows *rows = cpu->step->rows <= MIMO_LOCAL_ROWS ? &task->scratch->local : &cpu->m;
    mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    const mimo_units units = up_units(cpu, layer);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        const uint32_t e = r->active[p.matrix], at = r->first[e];
        act.ahead =
            c.next < units.count
                ? mimo_cpu_ahead_unit(&layer->gate[r->active[mimo_units_at(&units, c.next).matrix]], &units, c.next)
                : mimo_cpu_ahead_next_op(task);
        up_unit(task, &layer->gate[e], &layer->up[e], &act, r->row + at, r->slot + at, r->first[e + 1] - at, p.octet,
                p.octets);
    }
}

void mimo_cpu_expert_down(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_layer *layer = &cpu->layer[task->op->layer];
    const mimo_routes *r = &cpu->routes;
    mimo_act act = mimo_cpu_act(&cpu->u, layer->down[0].cols);
    const mimo_units units = mimo_units_of(cpu, &layer->down[0], 1);
    float *sum = task->scratch->sum, *y = task->scratch->gemm;
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        const size_t first = p.octet, count = p.octets, stride = 8 * count;
        memset(sum, 0, cpu->step->rows * stride * sizeof(float));
        for (size_t i = 0; i < r->actives; i++) {
            const uint32_t e = r->active[i], at = r->first[e], n = r->first[e + 1] - at;
            act.ahead = i + 1 < r->actives     ? mimo_cpu_ahead(&layer->down[r->active[i + 1]], first, count)
                        : c.next < units.count ? mimo_cpu_ahead_unit(&layer->down[r->active[0]], &units, c.next)
                                               : mimo_cpu_ahead_next_op(task);
            mimo_cpu_gemm(cpu, &layer->down[e])(y, stride, &layer->down[e], first, count, &act, r->slot + at, n);
            for (uint32_t j = 0; j < n; j++) {
                float *to = sum + r->row[at + j] * stride;
                const float share = r->share[at + j];
                for (size_t o = 0; o < stride; o++)
                    to[o] += share * y[j * stride + o];
            }
        }
        mimo_cpu_add_residual(task, sum, stride, first, count, true);
    }
}

void mimo_cpu_dense_up(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_layer *layer = &cpu->layer[task->op->layer];
    const mimo_rows *rows = mimo_cpu_norm_rows(task, NULL, cpu->step->rows, layer->mlp_norm);
    mimo_act act = mimo_cpu_act(rows, cpu->config->hidden);
    const mimo_units units = mimo_units_of(cpu, &layer->gate[0], MIMO_HOME_OCTETS);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        act.ahead =
            c.next < units.count ? mimo_cpu_ahead_unit(&layer->gate[0], &units, c.next) : mimo_cpu_ahead_next_op(task);
        up_unit(task, &layer->gate[0], &layer->up[0], &act, NULL, NULL, cpu->step->rows, p.octet, p.octets);
    }
}

void mimo_cpu_dense_down(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_panel *down = &cpu->layer[task->op->layer].down[0];
    mimo_act act = mimo_cpu_act(&cpu->u, down->cols);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, down);
    const mimo_units units = mimo_units_of(cpu, down, 1);
    float *y = task->scratch->gemm;
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        act.ahead = c.next < units.count ? mimo_cpu_ahead_unit(down, &units, c.next) : mimo_cpu_ahead_next_op(task);
        gemm(y, 8 * p.octets, down, p.octet, p.octets, &act, NULL, cpu->step->rows);
        mimo_cpu_add_residual(task, y, 8 * p.octets, p.octet, p.octets, true);
    }
}
