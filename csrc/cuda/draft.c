/* The drafter: a tape of its own beside the target's, whose context and blocks run piece by piece. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/size.h"
#include "cuda/cuda.h"

static mimo_cuda_sequence *sequence_of(mimo_kv *kv)
{
    return (mimo_cuda_sequence *)kv;
}

/* ---- context ---- */

/* The taps of rows [first, first + rows) of the contexts, side by side for the piece. */
static const float *gather_features(mimo_cuda *cuda, const mimo_draft_step *step, size_t first, size_t rows,
                                    size_t piece)
{
    const mimo_config *c = cuda->drafter.model.config;
    const size_t H = c->hidden;
    float *to = cuda->features + piece * c->taps * MIMO_CUDA_ROWS * H;
    for (size_t i = 0; i < c->taps; i++)
        for (size_t t = 0; t < rows; t++)
            memcpy(to + (i * MIMO_CUDA_ROWS + t) * H,
                   step->features + i * step->features_stride + step->context_row[first + t] * H, H * sizeof(float));
    return to;
}

static void run_contexts(mimo_cuda *cuda, const mimo_draft_step *step)
{
    const mimo_config *c = cuda->drafter.model.config;
    const mimo_cuda_spots *spots = &cuda->drafter.model.spots;
    const size_t H = c->hidden;
    for (size_t first = 0, piece = 0; first < step->contexts; first += MIMO_CUDA_ROWS, piece++) {
        const size_t rows = mimo_min(MIMO_CUDA_ROWS, step->contexts - first);
        mimo_cuda_step *to = &cuda->step[piece];
        *to = (mimo_cuda_step){.rows = (uint32_t)rows,
                               .features = (const float *)(uintptr_t)spots->features,
                               .features_stride = MIMO_CUDA_ROWS * H};
        for (size_t i = 0; i < rows; i++) {
            mimo_cuda_sequence *sequence = sequence_of(step->context_kv[first + i]);
            mimo_span_add(&sequence->span, cuda->kv.ring[1], step->context_position[first + i]);
            to->position[i] = step->context_position[first + i];
            to->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, sequence, 1);
            to->context_row[i] = (uint32_t)i;
        }
        const float *features = gather_features(cuda, step, first, rows, piece);
        mimo_cuda_queue_in(&cuda->device, spots->features, features, c->taps * MIMO_CUDA_ROWS * H * sizeof(float));
        mimo_cuda_run_piece(cuda, &cuda->drafter, 1, piece);
    }
}

/* ---- blocks ---- */

static void run_block(mimo_cuda *cuda, const mimo_draft_step *step, size_t b)
{
    const mimo_cuda_spots *spots = &cuda->drafter.model.spots;
    mimo_cuda_sequence *sequence = sequence_of(step->block_kv[b]);
    const uint32_t anchor = step->position[b];
    size_t begin, end;
    mimo_span_block(&sequence->span, anchor, step->width);
    mimo_span_read(&sequence->span, cuda->kv.ring[1], anchor, &begin, &end);
    mimo_cuda_step *to = &cuda->step[b % cuda->pieces];
    *to = (mimo_cuda_step){.rows = (uint32_t)step->width,
                           .outputs = (uint32_t)step->slots,
                           .logits = (float *)(uintptr_t)spots->logits,
                           .logits_stride = spots->logits_stride,
                           .anchor = anchor,
                           .context_begin = end == anchor ? (uint32_t)begin : anchor};
    to->token[0] = step->anchor[b];
    for (uint32_t k = 0; k < step->width; k++) {
        to->position[k] = anchor + k;
        to->kv[k] = mimo_cuda_sequence_kv(&cuda->kv, sequence, 1);
    }
    for (uint32_t k = 0; k < step->slots; k++)
        to->output[k] = k + 1;
    mimo_cuda_run_piece(cuda, &cuda->drafter, 0, b % cuda->pieces);
    for (size_t k = 0; k < step->slots; k++)
        mimo_cuda_queue_out(&cuda->device, step->logits + (b * step->slots + k) * step->logits_stride,
                            spots->logits + mimo_cuda_logits_row(cuda, to, k) * spots->logits_stride * sizeof(float),
                            spots->logits_stride * sizeof(float));
}

static void draft_step(mimo_backend *self, const mimo_draft_step *step)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    if (mimo_cuda_enter(&cuda->device, &cuda->device.lost) != MIMO_OK)
        return;
    const uint64_t begin = mimo_clock_ns();
    run_contexts(cuda, step);
    mimo_cuda_settle(cuda); /* its entries of cuda->step are written again */
    for (size_t b = 0; b < step->blocks; b++) {
        run_block(cuda, step, b);
        if ((b + 1) % cuda->pieces == 0)
            mimo_cuda_settle(cuda);
    }
    mimo_cuda_settle(cuda);
    if (cuda->profiling) {
        cuda->draft_profile.total_ns += cuda->resident != NULL ? mimo_clock_ns() - begin : 0;
        cuda->draft_profile.steps += step->blocks > 0;
        cuda->draft_profile.rows += step->blocks * step->width;
    }
}

/* ---- the Markov head ---- */

static void draft_bias(const mimo_backend *self, float *logits, uint32_t previous)
{
    const mimo_cuda *cuda = (const mimo_cuda *)self;
    const mimo_config *c = cuda->drafter.model.config;
    const uint32_t index = cuda->index != NULL ? cuda->index[previous] : previous;
    if (cuda->markov_in == NULL || index >= c->vocab)
        return;
    const size_t rank = c->markov_rank;
    const float *in = cuda->markov_in + index * rank;
    for (size_t i = 0; i < c->vocab; i++) {
        const float *out = cuda->markov_out + i * rank;
        float sum = 0.0f;
        for (size_t j = 0; j < rank; j++)
            sum += in[j] * out[j];
        logits[i] += sum;
    }
}

/* ---- opening ---- */

static void kv_draft_span(const mimo_backend *self, const mimo_kv *kv, size_t position, size_t *begin, size_t *end)
{
    const mimo_cuda *cuda = (const mimo_cuda *)self;
    mimo_span_read(&((const mimo_cuda_sequence *)kv)->span, cuda->kv.ring[1], position, begin, end);
}

static mimo_status open_index(mimo_cuda *cuda, const mimo_draft_config *draft, mimo_error *err)
{
    const uint32_t V = cuda->target.model.config->vocab, known = draft->model.vocab;
    if (draft->target_id == NULL)
        return MIMO_OK;
    MIMO_TRY(mimo_alloc_array(&cuda->index, V, sizeof *cuda->index, "the drafter's ids", err));
    for (uint32_t id = 0; id < V; id++)
        cuda->index[id] = known;
    for (uint32_t i = 0; i < known; i++)
        cuda->index[draft->target_id[i]] = i;
    return MIMO_OK;
}

mimo_status mimo_cuda_draft_open(mimo_cuda *cuda, const mimo_draft *draft, mimo_error *err)
{
    enum { CONTEXT_OPS = 2 };
    const mimo_config *c = &draft->config.model;
    if (c->block > MIMO_CUDA_ROWS)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "CUDA: expected a drafter with blocks of up to %d rows, found %u",
                         MIMO_CUDA_ROWS, c->block);
    mimo_cuda_tape *tape = &cuda->drafter;
    MIMO_TRY(mimo_cuda_model_open(&tape->model, c, &draft->weights, &draft->config, err));
    mimo_plan_build(&tape->plan, c, MIMO_CUDA_ROWS);
    MIMO_TRY(mimo_plan_check(&tape->plan, c, err));
    tape->context_ops = CONTEXT_OPS;
    MIMO_TRY(open_index(cuda, &draft->config, err));
    cuda->base.draft = draft_step;
    cuda->base.draft_bias = draft_bias;
    cuda->base.kv_draft_span = kv_draft_span;
    return MIMO_OK;
}
