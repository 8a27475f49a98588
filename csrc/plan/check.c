#include <string.h>

#include "plan/plan.h"

static mimo_status check_slots(const mimo_plan *plan, mimo_error *err)
{
    uint32_t written = MIMO_SLOT_TOKENS;
    for (uint32_t i = 0; i < plan->count; i++) {
        const mimo_op *op = &plan->op[i];
        if (op->code >= MIMO_OP_COUNT)
            return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan op %u: unknown code %u", i, op->code);
        const mimo_op_info *info = &mimo_op_infos[op->code];
        if ((info->reads & ~written) != 0)
            return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan op %u (%s, layer %u) reads slots 0x%x, written so far 0x%x", i,
                             info->name, op->layer, info->reads, written);
        written |= info->writes;
        /* A layer's own rows do not outlive it: reading those of the layer before is a bug. */
        if (op->code == MIMO_OP_EXPERT_DOWN || op->code == MIMO_OP_DENSE_DOWN)
            written &=
                ~(uint32_t)(MIMO_SLOT_Q | MIMO_SLOT_KV | MIMO_SLOT_A | MIMO_SLOT_M | MIMO_SLOT_ROUTES | MIMO_SLOT_U);
    }
    if ((written & MIMO_SLOT_LOGITS) == 0)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan: no operation writes the logits");
    return MIMO_OK;
}

mimo_status mimo_plan_check(const mimo_plan *plan, const mimo_config *config, mimo_error *err)
{
    if (plan->rows == 0 || plan->count > MIMO_MAX_OPS)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan: %u rows, %u operations", plan->rows, plan->count);
    MIMO_TRY(check_slots(plan, err));

    static const uint8_t sparse_ops[] = {MIMO_OP_QKV,   MIMO_OP_ATTENTION, MIMO_OP_OUT_PROJ,
                                         MIMO_OP_ROUTE, MIMO_OP_EXPERT_UP, MIMO_OP_EXPERT_DOWN};
    static const uint8_t dense_ops[] = {MIMO_OP_QKV, MIMO_OP_ATTENTION, MIMO_OP_OUT_PROJ, MIMO_OP_DENSE_UP,
                                        MIMO_OP_DENSE_DOWN};
    static const uint8_t draft_first[] = {MIMO_OP_DRAFT_FUSE, MIMO_OP_DRAFT_CONTEXT, MIMO_OP_DRAFT_EMBED},
                         model_first[] = {MIMO_OP_EMBED};
    const uint8_t *first = config->taps > 0 ? draft_first : model_first;
    const uint32_t firsts = config->taps > 0 ? sizeof draft_first : sizeof model_first;
    uint32_t at = 0;
    for (; at < firsts; at++)
        if (at >= plan->count || plan->op[at].code != first[at])
            return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan op %u: expected %s", at, mimo_op_infos[first[at]].name);
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const uint8_t *codes = config->sparse[layer] ? sparse_ops : dense_ops;
        const uint32_t count = config->sparse[layer] ? sizeof sparse_ops : sizeof dense_ops;
        for (uint32_t i = 0; i < count; i++, at++) {
            const mimo_op *op = &plan->op[at];
            if (at >= plan->count || op->code != codes[i] || op->layer != layer)
                return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan op %u: expected %s of layer %u", at,
                                 mimo_op_infos[codes[i]].name, layer);
            const mimo_attention *a = mimo_layer_attention(config, layer);
            if (op->code == MIMO_OP_ATTENTION && (op->dim[4] != a->window || op->dim[5] != a->sinks))
                return MIMO_FAIL(err, MIMO_ERR_ENGINE,
                                 "plan op %u: layer %u has window %u, sinks %u; the plan says %u, %u", at, layer,
                                 a->window, a->sinks, op->dim[4], op->dim[5]);
        }
    }
    if (at + 1 != plan->count || plan->op[at].code != MIMO_OP_HEAD)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "plan op %u: expected head, and nothing after it", at);
    return MIMO_OK;
}
