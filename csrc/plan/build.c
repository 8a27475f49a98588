#include "plan/plan.h"

const mimo_op_info mimo_op_infos[MIMO_OP_COUNT] = {
#define MIMO_OP(code, text, in, out, letters, tensors)                                                                 \
    [MIMO_OP_##code] = {.name = (text), .dims = (letters), .weights = (tensors), .reads = (in), .writes = (out)},
#include "plan/ops.def"
#undef MIMO_OP
};

static void append(mimo_plan *plan, mimo_op op)
{
    plan->op[plan->count++] = op;
}

static void append_layer(mimo_plan *plan, const mimo_config *c, uint16_t layer)
{
    const mimo_attention *a = mimo_layer_attention(c, layer);
    const uint32_t H = c->hidden, N = a->heads, G = a->kv_heads, D = a->head_dim, Dv = a->v_head_dim;
    append(plan, (mimo_op){MIMO_OP_QKV, layer, {H, N, G, D, Dv, a->rotary_dim}});
    append(plan, (mimo_op){MIMO_OP_ATTENTION, layer, {N, G, D, Dv, a->window, a->sinks}});
    append(plan, (mimo_op){MIMO_OP_OUT_PROJ, layer, {N, Dv, H}});
    if (c->sparse[layer]) {
        append(plan, (mimo_op){MIMO_OP_ROUTE, layer, {H, c->experts, c->top_k}});
        append(plan, (mimo_op){MIMO_OP_EXPERT_UP, layer, {H, c->expert_width, c->experts, c->top_k}});
        append(plan, (mimo_op){MIMO_OP_EXPERT_DOWN, layer, {c->expert_width, H, c->experts, c->top_k}});
    } else {
        append(plan, (mimo_op){MIMO_OP_DENSE_UP, layer, {H, c->dense_width}});
        append(plan, (mimo_op){MIMO_OP_DENSE_DOWN, layer, {c->dense_width, H}});
    }
}

void mimo_plan_build(mimo_plan *plan, const mimo_config *config, uint32_t rows)
{
    plan->rows = rows;
    plan->count = 0;
    if (config->taps > 0) {
        append(plan, (mimo_op){MIMO_OP_DRAFT_FUSE, MIMO_NO_LAYER, {config->taps, config->hidden}});
        append(plan, (mimo_op){MIMO_OP_DRAFT_CONTEXT, MIMO_NO_LAYER, {config->layers, config->hidden}});
        append(plan, (mimo_op){MIMO_OP_DRAFT_EMBED, MIMO_NO_LAYER, {config->block, config->hidden}});
    } else {
        append(plan, (mimo_op){MIMO_OP_EMBED, MIMO_NO_LAYER, {config->vocab, config->hidden}});
    }
    for (uint16_t layer = 0; layer < config->layers; layer++)
        append_layer(plan, config, layer);
    append(plan, (mimo_op){MIMO_OP_HEAD, MIMO_NO_LAYER, {config->hidden, config->vocab}});
}
