#include "model/draft.h"

#include "base/alloc.h"
#include "base/size.h"

static mimo_status check_range(const char *field, uint32_t value, uint32_t low, uint32_t high, mimo_error *err)
{
    if (value < low || value > high)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.%s: expected %u to %u, found %u", field, low, high, value);
    return MIMO_OK;
}

static mimo_status check_ids(const mimo_draft_config *draft, const mimo_config *target, mimo_error *err)
{
    const uint32_t V = draft->model.vocab;
    if (draft->target_id == NULL && V != target->vocab)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.vocab: expected the target's %u without a list of ids, found %u",
                         target->vocab, V);
    for (uint32_t i = 0; draft->target_id != NULL && i < V; i++)
        if (draft->target_id[i] >= target->vocab)
            return MIMO_FAIL(err, MIMO_ERR_VALUE,
                             "config.target_id[%u]: expected an id below the target's %u, found %u", i, target->vocab,
                             draft->target_id[i]);
    return MIMO_OK;
}

static mimo_status check_config(const mimo_draft_config *draft, const mimo_config *target, mimo_error *err)
{
    const mimo_config *model = &draft->model;
    MIMO_TRY(mimo_config_check(model, err));
    MIMO_TRY(check_range("taps", model->taps, 1, MIMO_MAX_TAPS, err));
    MIMO_TRY(check_range("block", model->block, 2, MIMO_MAX_BLOCK, err));
    if (draft->short_block != 0)
        MIMO_TRY(check_range("short_block", draft->short_block, 2, model->block - 1, err));
    MIMO_TRY(check_range("markov_rank", model->markov_rank, 0, MIMO_MAX_MARKOV_RANK, err));
    MIMO_TRY(check_range("causal_full", draft->causal[MIMO_FULL], 0, 1, err));
    MIMO_TRY(check_range("causal_sliding", draft->causal[MIMO_SLIDING], 0, 1, err));
    MIMO_TRY(check_range("window_from_anchor", draft->window_from_anchor, 0, 1, err));
    MIMO_TRY(check_range("qkv_chunks", model->qkv_chunks, 0, 0, err));
    for (uint32_t i = 0; i < model->taps; i++)
        if (draft->tap[i] >= target->layers)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.tap[%u]: expected a layer of the target's %u, found %u", i,
                             target->layers, draft->tap[i]);
    for (uint32_t i = 0; i < model->layers; i++)
        if (model->sparse[i])
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.layer_sparse[%u]: expected 0, found 1", i);
    if (model->hidden != target->hidden)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "config.hidden: expected the target's %u, found %u", target->hidden,
                         model->hidden);
    return check_ids(draft, target, err);
}

/* The rows of the target's head that the drafter knows, neighbours in one segment. */
static mimo_status gather_head(mimo_draft *draft, const mimo_matrix *head, mimo_error *err)
{
    const uint32_t V = draft->config.model.vocab, *id = draft->config.target_id;
    draft->weights.head = *head;
    if (id == NULL)
        return MIMO_OK;
    mimo_segment *segment;
    MIMO_TRY(mimo_alloc_array(&segment, V, sizeof *segment, "the description of the drafter's head", err));
    draft->weights.arena[3] = segment;
    const mimo_segment *table = &head->segment[0]; /* a table is never cut in segments: weights.c */
    const size_t row_bytes = mimo_format_row_bytes(head->format, head->cols);
    uint32_t segments = 0;
    for (uint32_t i = 0, next; i < V; i = next) {
        for (next = i + 1; next < V && id[next] == id[next - 1] + 1;)
            next++;
        segment[segments++] =
            (mimo_segment){.rows = next - i, .file = table->file, .data = table->data + id[i] * row_bytes};
    }
    draft->weights.head.rows = V;
    draft->weights.head.segments = segments;
    draft->weights.head.segment = segment;
    return MIMO_OK;
}

mimo_status mimo_draft_bind(mimo_draft *out, const mimo_draft_config *config, const mimo_config *target,
                            const mimo_weights *target_weights, const mimo_tensor *tensors, size_t count,
                            const uint64_t *file_bytes, size_t files, mimo_error *err)
{
    *out = (mimo_draft){.config = *config};
    mimo_error inner = {0};
    mimo_status status = check_config(config, target, &inner);
    if (status == MIMO_OK)
        status = mimo_weights_bind(&out->weights, &out->config.model, tensors, count, file_bytes, files, &inner);
    if (status == MIMO_OK)
        status = gather_head(out, &target_weights->head, &inner);
    if (status != MIMO_OK) {
        mimo_weights_release(&out->weights);
        return MIMO_FAIL(err, status, status == MIMO_ERR_NOMEM ? "%s" : "draft: %s", inner.text);
    }
    return MIMO_OK;
}

void mimo_draft_release(mimo_draft *draft)
{
    mimo_weights_release(&draft->weights);
}
