#include "model/draft.h"

enum { LARGEST_RANK = 1 << 12 };

static mimo_status check_range(const char *field, uint32_t value, uint32_t low, uint32_t high, mimo_error *err)
{
    if (value < low || value > high)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.%s: expected %u to %u, found %u", field, low, high, value);
    return MIMO_OK;
}

static mimo_status check_ids(const mimo_draft_config *draft, const mimo_config *target, mimo_error *err)
{
    const uint32_t V = draft->model.vocab;
    if (draft->target_id == NULL && V != target->vocab)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.vocab: expected the target's %u without a list of ids, found %u",
                         target->vocab, V);
    for (uint32_t i = 0; draft->target_id != NULL && i < V; i++)
        if (draft->target_id[i] >= target->vocab)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.target_id[%u]: expected an id below the target's %u, found %u",
                             i, target->vocab, draft->target_id[i]);
    return MIMO_OK;
}

mimo_status mimo_draft_config_check(const mimo_draft_config *draft, const mimo_config *target, mimo_error *err)
{
    const mimo_config *model = &draft->model;
    mimo_error inner = {0};
    if (mimo_config_check(model, &inner) != MIMO_OK)
        return MIMO_FAIL(err, inner.code, "draft %s", inner.text);
    MIMO_TRY(check_range("taps", model->taps, 1, MIMO_MAX_TAPS, err));
    MIMO_TRY(check_range("block", model->block, 2, MIMO_MAX_BLOCK, err));
    MIMO_TRY(check_range("markov_rank", model->markov_rank, 0, LARGEST_RANK, err));
    MIMO_TRY(check_range("causal", draft->causal, 0, 1, err));
    MIMO_TRY(check_range("window_from_anchor", draft->window_from_anchor, 0, 1, err));
    MIMO_TRY(check_range("qkv_chunks", model->qkv_chunks, 0, 0, err));
    for (uint32_t i = 0; i < model->taps; i++)
        if (draft->tap[i] >= target->layers)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.tap[%u]: expected a layer of the target's %u, found %u", i,
                             target->layers, draft->tap[i]);
    for (uint32_t i = 0; i < model->layers; i++)
        if (model->sparse[i])
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.layer_sparse[%u]: expected 0, found 1", i);
    if (model->hidden != target->hidden)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft.hidden: expected the target's %u, found %u", target->hidden,
                         model->hidden);
    return check_ids(draft, target, err);
}
