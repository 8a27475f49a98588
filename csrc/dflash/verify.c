#include "dflash/verify.h"

#include <assert.h>

/* What follows row k, as decoding without drafts chooses it. */
static mimo_status choose(mimo_verdict *out, const mimo_block *block, size_t k, const mimo_seen *seen, void *scratch,
                          mimo_error *err)
{
    MIMO_TRY(mimo_sample(&out->choice[k], block->logits + k * block->stride, block->V, block->sampling,
                         block->position + k, seen->ids, seen->count, scratch, err));
    out->chosen = k + 1;
    return MIMO_OK;
}

mimo_status mimo_verify_coupled(mimo_verdict *out, const mimo_block *block, mimo_seen *seen, void *scratch,
                                mimo_error *err)
{
    assert(block->rows >= 1 && block->rows <= MIMO_BLOCK_ROWS);
    const size_t before = seen->count;
    mimo_status status = MIMO_OK;
    out->accepted = out->chosen = 0;
    for (size_t k = 0; k < block->rows && status == MIMO_OK; k++) {
        status = choose(out, block, k, seen, scratch, err);
        if (status != MIMO_OK || k + 1 == block->rows || out->choice[k].token != block->draft[k])
            break;
        out->accepted++;
        mimo_seen_add(seen, block->draft[k]);
    }
    mimo_seen_cut(seen, before);
    return status;
}

/* ---- rejection ---- */

static double rest_of(const double *p, const double *q, size_t v, uint32_t draft)
{
    const double other = q != NULL ? q[v] : (double)(v == draft);
    return p[v] > other ? p[v] - other : 0.0;
}

uint32_t mimo_reject_one(const double *p, const double *q, size_t V, uint32_t draft, double accept, double residual,
                         bool *kept)
{
    *kept = accept * (q != NULL ? q[draft] : 1.0) < p[draft];
    if (*kept)
        return draft;
    double total = 0.0;
    for (size_t v = 0; v < V; v++)
        total += rest_of(p, q, v, draft);
    double left = residual * total;
    uint32_t last = draft;
    for (size_t v = 0; v < V; v++) {
        const double rest = rest_of(p, q, v, draft);
        if (rest <= 0.0)
            continue;
        last = (uint32_t)v;
        left -= rest;
        if (left < 0.0)
            break;
    }
    return last;
}

static double uniform_of(const mimo_block *block, size_t k, mimo_purpose purpose)
{
    const mimo_sampling *s = block->sampling;
    const mimo_noise noise = {s->seed, block->position + k, s->stream, purpose};
    return mimo_uniform(&noise);
}

/* Verifies draft k + 1 by the logits of row k. */
static mimo_status reject_row(mimo_verdict *out, const mimo_block *block, size_t k, const mimo_seen *seen,
                              void *scratch, bool *kept, mimo_error *err)
{
    const uint64_t position = block->position + k;
    float *logits = block->logits + k * block->stride, *drawn_from = block->drawn_from[k];
    MIMO_TRY(
        mimo_sample_law(block->p, logits, block->V, block->sampling, position, seen->ids, seen->count, scratch, err));
    if (drawn_from != NULL)
        MIMO_TRY(mimo_sample_law(block->q, drawn_from, block->V, block->sampling, position, seen->ids, seen->count,
                                 scratch, err));
    const uint32_t token =
        mimo_reject_one(block->p, drawn_from != NULL ? block->q : NULL, block->V, block->draft[k],
                        uniform_of(block, k, MIMO_NOISE_ACCEPT), uniform_of(block, k, MIMO_NOISE_RESIDUAL), kept);
    MIMO_TRY(mimo_sample_report(&out->choice[k], logits, block->V, block->sampling, position, token, scratch, err));
    out->chosen = k + 1;
    return MIMO_OK;
}

mimo_status mimo_verify_rejection(mimo_verdict *out, const mimo_block *block, mimo_seen *seen, void *scratch,
                                  mimo_error *err)
{
    if (block->sampling->temperature == 0.0f)
        return mimo_verify_coupled(out, block, seen, scratch, err);
    const size_t before = seen->count;
    mimo_status status = MIMO_OK;
    bool kept = true;
    out->accepted = out->chosen = 0;
    for (size_t k = 0; k + 1 < block->rows && kept && status == MIMO_OK; k++) {
        status = reject_row(out, block, k, seen, scratch, &kept, err);
        if (status == MIMO_OK && kept) {
            out->accepted++;
            mimo_seen_add(seen, block->draft[k]);
        }
    }
    if (status == MIMO_OK && kept)
        status = choose(out, block, block->rows - 1, seen, scratch, err);
    mimo_seen_cut(seen, before);
    return status;
}
