#include "cpu/draft.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

/* Operations of a drafter's tape that make context; the others fill blocks. */
enum { CONTEXT_OPS = 2 };

static void run_contexts(mimo_cpu_draft *draft, const mimo_draft_step *step)
{
    for (size_t t = 0; t < step->contexts; t++) {
        draft->kv[t] = step->context_kv[t]->draft;
        mimo_span_add(&draft->kv[t]->span, draft->cpu.kv_layout.ring, step->context_position[t]);
    }
    const mimo_step rows = {.rows = step->contexts, .position = step->context_position, .kv = draft->kv};
    mimo_cpu_run(&draft->cpu, &rows, 0, CONTEXT_OPS);
}

static void run_blocks(mimo_cpu_draft *draft, const mimo_draft_step *step)
{
    size_t outputs = 0;
    for (size_t b = 0; b < step->blocks; b++) {
        const uint32_t anchor = step->position[b];
        size_t end;
        mimo_kv_span *span = &step->block_kv[b]->draft->span;
        mimo_span_block(span, anchor, step->width);
        mimo_span_read(span, draft->cpu.kv_layout.ring, anchor, &draft->begin[b], &end);
        if (end != anchor)
            draft->begin[b] = anchor;
        for (size_t k = 0; k < step->width; k++) {
            const size_t t = b * step->width + k;
            draft->position[t] = anchor + (uint32_t)k;
            draft->kv[t] = step->block_kv[b]->draft;
            if (1 <= k && k <= step->slots)
                draft->output[outputs++] = (uint16_t)t;
        }
    }
    const mimo_step rows = {.rows = step->blocks * step->width,
                            .position = draft->position,
                            .kv = draft->kv,
                            .outputs = outputs,
                            .output = draft->output,
                            .logits = step->logits,
                            .logits_stride = step->logits_stride};
    mimo_cpu_run(&draft->cpu, &rows, CONTEXT_OPS, draft->cpu.plan.count);
}

static void draft_step(mimo_backend *self, const mimo_draft_step *step)
{
    mimo_cpu_draft *draft = ((mimo_cpu *)self)->draft;
    draft->step = step;
    if (step->contexts > 0)
        run_contexts(draft, step);
    if (step->blocks > 0)
        run_blocks(draft, step);
    draft->step = NULL;
    if (draft->cpu.profiling) {
        draft->cpu.profile[0].steps += step->blocks > 0;
        draft->cpu.profile[0].rows += step->blocks * step->width;
    }
}

void mimo_cpu_draft_keys(const mimo_cpu *cpu, const mimo_attention *a, size_t t, size_t *lowest, size_t *after)
{
    const mimo_cpu_draft *draft = cpu->draft;
    const size_t width = draft->step->width, block = t / width, anchor = draft->step->position[block];
    if (draft->config->window_from_anchor)
        *lowest = a->window > 0 && anchor > a->window ? anchor - a->window : 0;
    *lowest = mimo_min(mimo_max(*lowest, draft->begin[block]), anchor);
    if (!draft->config->causal[a->window > 0 ? MIMO_SLIDING : MIMO_FULL])
        *after = anchor + width;
}

/* ---- the Markov head ---- */

static void draft_bias(const mimo_backend *self, float *logits, uint32_t previous)
{
    const mimo_cpu_draft *draft = ((const mimo_cpu *)self)->draft;
    const mimo_panel *in = &draft->markov_in, *out = &draft->markov_out;
    const size_t index = draft->index != NULL ? draft->index[previous] : previous;
    if (in->rows == 0 || index >= in->rows)
        return;
    float row[MIMO_MAX_MARKOV_RANK], bias[8 * MIMO_UNIT_OCTETS];
    mimo_panel_read_row(row, in, index);
    const mimo_act act = {.f = row, .K = in->cols};
    mimo_gemm *gemm = draft->cpu.kernels->gemm_f32[out->packing];
    const size_t octets = mimo_panel_octets(out);
    for (size_t first = 0; first < octets; first += MIMO_UNIT_OCTETS) {
        const size_t count = mimo_min(MIMO_UNIT_OCTETS, octets - first);
        gemm(bias, 8 * count, out, first, count, &act, NULL, 1);
        for (size_t i = 0; i < 8 * count; i++)
            logits[8 * first + i] += bias[i];
    }
}

/* ---- operations ---- */

void mimo_cpu_draft_fuse(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_draft *draft = cpu->draft;
    const mimo_draft_step *step = draft->step;
    const size_t H = cpu->config->hidden, K = draft->taps.K;
    for (size_t t; (t = mimo_pool_take(task->worker)) < step->contexts;) {
        for (size_t i = 0; i < cpu->config->taps; i++)
            memcpy(draft->taps.f + t * K + i * H, step->features + i * step->features_stride + step->context_row[t] * H,
                   H * sizeof(float));
        mimo_cpu_quantize(cpu, &draft->taps, K, t, 0, K);
        mimo_cpu_angles(cpu, t);
    }
    mimo_pool_barrier(task->worker, NULL, NULL);
    const mimo_act act = mimo_cpu_act(&draft->taps, K);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, &draft->fuse);
    const size_t octets = mimo_panel_octets(&draft->fuse), size = mimo_cpu_unit_octets(cpu, octets, 1);
    for (size_t first; (first = size * mimo_pool_take(task->worker)) < octets;) {
        const size_t count = mimo_min(size, octets - first), columns = mimo_min(8 * count, H - 8 * first);
        gemm(task->scratch->gemm, 8 * count, &draft->fuse, first, count, &act, NULL, step->contexts);
        for (size_t t = 0; t < step->contexts; t++)
            memcpy(cpu->x + t * H + 8 * first, task->scratch->gemm + t * 8 * count, columns * sizeof(float));
    }
}

void mimo_cpu_draft_embed(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_cpu_draft *draft = cpu->draft;
    const size_t H = cpu->config->hidden, width = draft->step->width;
    for (size_t t; (t = mimo_pool_take(task->worker)) < cpu->step->rows;) {
        float *x = cpu->x + t * H;
        if (t % width == 0)
            mimo_cpu_embed_token(draft->target, x, draft->step->anchor[t / width]);
        else
            memcpy(x, draft->mask, H * sizeof(float));
        mimo_cpu_angles(cpu, t);
    }
}

/* ---- opening ---- */

static mimo_status open_index(mimo_cpu_draft *draft, mimo_error *err)
{
    const uint32_t V = draft->target->config->vocab, known = draft->config->model.vocab;
    if (draft->config->target_id == NULL)
        return MIMO_OK;
    MIMO_TRY(mimo_alloc_array(&draft->index, V, sizeof *draft->index, "the drafter's ids", err));
    for (uint32_t id = 0; id < V; id++)
        draft->index[id] = known;
    for (uint32_t i = 0; i < known; i++)
        draft->index[draft->config->target_id[i]] = i;
    return MIMO_OK;
}

static mimo_status open_parts(mimo_cpu_draft *draft, mimo_error *err)
{
    mimo_cpu *cpu = &draft->cpu;
    if (cpu->max_rows < cpu->config->block)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "max_rows: expected at least the drafter's block of %u, found %zu",
                         cpu->config->block, cpu->max_rows);
    mimo_plan_build(&cpu->plan, cpu->config, (uint32_t)cpu->max_rows);
    MIMO_TRY(mimo_plan_check(&cpu->plan, cpu->config, err));
    mimo_kv_layout_init(&cpu->kv_layout, cpu->config, cpu->exact, cpu->max_rows);
    MIMO_TRY(mimo_cpu_plan_weights(cpu, err));
    MIMO_TRY(mimo_cpu_open_workspace(cpu, err));
    return open_index(draft, err);
}

static void kv_draft_span(const mimo_backend *self, const mimo_kv *kv, size_t position, size_t *begin, size_t *end)
{
    const mimo_cpu_draft *draft = ((const mimo_cpu *)self)->draft;
    mimo_span_read(&kv->draft->span, draft->cpu.kv_layout.ring, position, begin, end);
}

mimo_status mimo_cpu_draft_open(mimo_cpu *target, const mimo_draft *source, mimo_error *err)
{
    mimo_cpu_draft *draft;
    MIMO_TRY(mimo_alloc_array(&draft, 1, sizeof *draft, "CPU drafter", err));
    target->draft = draft;
    draft->target = target;
    draft->config = &source->config;
    mimo_cpu *cpu = &draft->cpu;
    cpu->config = &source->config.model;
    cpu->weights = &source->weights;
    cpu->kernels = target->kernels;
    cpu->exact = target->exact;
    cpu->threads = target->threads;
    cpu->max_rows = target->max_rows;
    cpu->draft = draft;
    MIMO_TRY(open_parts(draft, err));

    target->base.memory.workspace += cpu->base.memory.workspace;
    mimo_cpu_count_kv(target, &cpu->kv_layout);
    target->base.load_bytes += cpu->base.load_bytes;
    target->base.draft = draft_step;
    target->base.draft_bias = draft_bias;
    target->base.kv_draft_span = kv_draft_span;
    return MIMO_OK;
}

mimo_status mimo_cpu_draft_load(mimo_cpu_draft *draft, const mimo_file *files, atomic_uint_fast64_t *done,
                                const atomic_bool *cancel, mimo_error *err)
{
    draft->cpu.pool = draft->target->pool;
    MIMO_TRY(mimo_cpu_load(&draft->cpu, files, done, cancel, err));
    if (draft->config->target_id == NULL)
        draft->cpu.head = draft->target->head;
    return MIMO_OK;
}

void mimo_cpu_draft_close(mimo_cpu_draft *draft)
{
    if (draft == NULL)
        return;
    mimo_cpu_close_parts(&draft->cpu);
    mimo_free(draft->index);
    mimo_free(draft);
}
