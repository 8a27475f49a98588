/* Counters of operations, kept only while somebody asks for them. */
#include "cpu/profile.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cpu/draft.h"

static uint64_t panel_bytes(const mimo_panel *p)
{
    return mimo_panel_octets(p) *
           (mimo_panel_octet_bytes(p->packing, p->cols) + mimo_panel_octet_scale_bytes(p->packing, p->cols));
}

static uint64_t panel_macs(const mimo_panel *p)
{
    return (uint64_t)p->rows * p->cols;
}

/* Keys that neighbouring rows of one sequence share are read once. */
static void count_attention(const mimo_cpu *cpu, const mimo_op *op, uint64_t *bytes, uint64_t *macs)
{
    const mimo_attention *a = mimo_layer_attention(cpu->config, op->layer);
    const mimo_step *step = cpu->step;
    const uint64_t width = a->head_dim + a->v_head_dim;
    size_t low = 0, high = 0; /* of the sequence */
    for (size_t t = 0; t < step->rows; t++) {
        size_t lowest, after;
        mimo_cpu_keys(cpu, a, t, &lowest, &after);
        const bool same = t > 0 && step->kv[t] == step->kv[t - 1];
        low = same ? mimo_min(low, lowest) : lowest;
        high = same ? mimo_max(high, after) : after;
        *macs += (after - lowest) * width * a->heads;
        if (t + 1 == step->rows || step->kv[t + 1] != step->kv[t])
            *bytes += (high - low) * width * a->kv_heads * cpu->kv_layout.element_bytes;
    }
}

/* Keys and values of all layers of a drafter. */
static void count_context(const mimo_cpu *cpu, uint64_t *bytes, uint64_t *macs)
{
    for (uint32_t i = 0; i < cpu->config->layers; i++) {
        const mimo_attention *a = mimo_layer_attention(cpu->config, i);
        const mimo_panel *qkv = &cpu->layer[i].qkv;
        const uint64_t rows = (uint64_t)a->kv_heads * (a->head_dim + a->v_head_dim);
        *bytes += panel_bytes(qkv) * rows / qkv->rows;
        *macs += cpu->step->rows * rows * qkv->cols;
    }
}

/* What the operation reads and multiplies in this step. Called when it is done, before the next begins. */
static void count_op(const mimo_cpu *cpu, const mimo_op *op, uint64_t *bytes, uint64_t *macs)
{
    const mimo_cpu_layer *layer = op->layer == MIMO_NO_LAYER ? NULL : &cpu->layer[op->layer];
    const uint64_t T = cpu->step->rows, entries = T * cpu->config->top_k, actives = cpu->routes.actives;
    const mimo_panel *panel = NULL;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_QKV:
        panel = &layer->qkv;
        break;
    case MIMO_OP_OUT_PROJ:
        panel = &layer->out;
        break;
    case MIMO_OP_ROUTE:
        panel = &layer->router;
        break;
    case MIMO_OP_ATTENTION:
        count_attention(cpu, op, bytes, macs);
        return;
    case MIMO_OP_EXPERT_UP:
        *bytes += actives * 2 * panel_bytes(&layer->gate[0]);
        *macs += entries * 2 * panel_macs(&layer->gate[0]);
        return;
    case MIMO_OP_EXPERT_DOWN:
        *bytes += actives * panel_bytes(&layer->down[0]);
        *macs += entries * panel_macs(&layer->down[0]);
        return;
    case MIMO_OP_DENSE_UP:
        *bytes += 2 * panel_bytes(&layer->gate[0]);
        *macs += T * 2 * panel_macs(&layer->gate[0]);
        return;
    case MIMO_OP_DENSE_DOWN:
        panel = &layer->down[0];
        break;
    case MIMO_OP_HEAD:
        *bytes += cpu->step->outputs > 0 ? panel_bytes(&cpu->head) : 0;
        *macs += cpu->step->outputs * panel_macs(&cpu->head);
        return;
    case MIMO_OP_DRAFT_FUSE:
        panel = &cpu->draft->fuse;
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        count_context(cpu, bytes, macs);
        return;
    case MIMO_OP_EMBED:
    case MIMO_OP_DRAFT_EMBED:
    case MIMO_OP_COUNT:
        return;
    }
    *bytes += panel_bytes(panel);
    *macs += T * panel_macs(panel);
}

void mimo_profile_op(mimo_cpu *cpu, const mimo_op *op, size_t worker, uint64_t begin, uint64_t done, uint64_t end)
{
    mimo_profile *p = &cpu->profile[worker];
    p->op[op->code].busy_ns += done - begin;
    p->op[op->code].wait_ns += end - done;
    if (worker != 0)
        return;
    p->op[op->code].calls++;
    p->op[op->code].wall_ns += end - begin;
    p->total_ns += end - begin;
}

void mimo_profile_count(mimo_cpu *cpu, const mimo_op *op)
{
    count_op(cpu, op, &cpu->profile[0].op[op->code].bytes, &cpu->profile[0].op[op->code].macs);
}

static void set(mimo_cpu *cpu, bool on)
{
    cpu->profiling = on;
    if (on)
        memset(cpu->profile, 0, cpu->threads * sizeof *cpu->profile);
}

void mimo_cpu_set_profile(mimo_backend *self, bool on)
{
    mimo_cpu *cpu = (mimo_cpu *)self;
    set(cpu, on);
    if (cpu->draft != NULL)
        set(&cpu->draft->cpu, on);
}

static mimo_profile sum(const mimo_cpu *cpu)
{
    mimo_profile out = cpu->profile[0];
    for (size_t i = 1; i < cpu->threads; i++)
        for (size_t code = 0; code < MIMO_OP_COUNT; code++) {
            out.op[code].busy_ns += cpu->profile[i].op[code].busy_ns;
            out.op[code].wait_ns += cpu->profile[i].op[code].wait_ns;
        }
    return out;
}

void mimo_cpu_read_profile(const mimo_backend *self, mimo_profile *target, mimo_profile *drafter)
{
    const mimo_cpu *cpu = (const mimo_cpu *)self;
    *target = sum(cpu);
    *drafter = cpu->draft != NULL ? sum(&cpu->draft->cpu) : (mimo_profile){0};
}
