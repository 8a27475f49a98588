#include "cuda/rank.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/cuda.h"
#include "cuda/lower.h"
#include "cuda/shard.h"

/* What a GPU has at most, for the room that stamps may take. */
enum { MOST_PROCESSORS = 256, CTAS_OF_PROCESSOR = 2, KERNELS_OF_OP = 2, STAMPS_OF_OP = 8 };

/* ---- the share ---- */

mimo_status mimo_rank_shard(mimo_rank *rank, const mimo_config *config, const mimo_weights *weights,
                            const mimo_draft *draft, const mimo_rank_options *options, mimo_error *err)
{
    *rank = (mimo_rank){.options = *options};
    MIMO_TRY(mimo_shard_config(&rank->config, config, options->world, err));
    MIMO_TRY(mimo_shard_weights(&rank->weights, &rank->config, weights, options->world, err));
    if (draft != NULL) {
        MIMO_TRY(mimo_shard_draft(&rank->draft, draft, &rank->weights, options->world, err));
        rank->has_draft = true;
    }
    if (options->context < 1 || options->context > config->max_positions - 2 * MIMO_CUDA_ROWS)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "context: expected 1 to %u positions, found %u",
                         config->max_positions - 2 * MIMO_CUDA_ROWS, options->context);
    return MIMO_OK;
}

static const mimo_draft *draft_of(const mimo_rank *rank)
{
    return rank->has_draft ? &rank->draft : NULL;
}

static uint32_t positions_of(const mimo_rank *rank)
{
    return rank->options.context + MIMO_CUDA_ROWS;
}

static uint64_t lean_floats(const mimo_rank *rank)
{
    return (uint64_t)rank->config.layers * MIMO_CUDA_ROWS * rank->config.experts;
}

/* Bytes of the GPU that measuring takes: what is copied, drawn experts, stamps, each rounded by the driver. */
static uint64_t kept_bytes(const mimo_rank *rank)
{
    const uint64_t stamps = (uint64_t)STAMPS_OF_OP * MOST_PROCESSORS * sizeof(mimo_stamp);
    return 2 * rank->options.copied + MIMO_RANK_RUNS * lean_floats(rank) * sizeof(float) +
           stamps * (6 * (uint64_t)rank->config.layers + 4) + ((uint64_t)8 << 20);
}

mimo_status mimo_rank_memory(mimo_cuda_memory *out, const mimo_rank *rank, uint64_t available, mimo_error *err)
{
    return mimo_cuda_plan_memory(out, &rank->config, &rank->weights, draft_of(rank), NULL, false, positions_of(rank),
                                 available, kept_bytes(rank), err);
}

static uint64_t stored_bytes(const mimo_matrix *m)
{
    const uint64_t scales = m->format == MIMO_FORMAT_MXFP4 ? (uint64_t)m->rows * (m->cols / 32)
                            : m->format == MIMO_FORMAT_FP8
                                ? mimo_ceil_div(m->rows, 128) * mimo_ceil_div(m->cols, 128) * sizeof(float)
                                : 0;
    return (uint64_t)m->rows * mimo_format_row_bytes(m->format, m->cols) + scales;
}

static mimo_rank_bytes layer_bytes(const mimo_config *c, const mimo_layer_weights *w, const mimo_op *op)
{
    const bool sparse = c->sparse[op->layer];
    const mimo_attention *a = mimo_layer_attention(c, op->layer);
    const uint64_t up = stored_bytes(&w->gate[0]) + stored_bytes(&w->up[0]), down = stored_bytes(&w->down[0]);
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_QKV:
        return (mimo_rank_bytes){.fixed = stored_bytes(&w->qkv)};
    case MIMO_OP_ATTENTION:
        return (mimo_rank_bytes){.position = a->kv_heads * (a->head_dim + a->v_head_dim) * (uint64_t)sizeof(uint16_t),
                                 .window = a->window};
    case MIMO_OP_OUT_PROJ:
        return (mimo_rank_bytes){.fixed = stored_bytes(&w->out)};
    case MIMO_OP_ROUTE:
        return (mimo_rank_bytes){.fixed = stored_bytes(&w->router)};
    case MIMO_OP_EXPERT_UP:
    case MIMO_OP_DENSE_UP:
        return (mimo_rank_bytes){.fixed = sparse ? 0 : up, .expert = sparse ? up : 0};
    case MIMO_OP_EXPERT_DOWN:
    case MIMO_OP_DENSE_DOWN:
        return (mimo_rank_bytes){.fixed = sparse ? 0 : down, .expert = sparse ? down : 0};
    default:
        return (mimo_rank_bytes){0};
    }
}

mimo_rank_bytes mimo_rank_op_bytes(const mimo_rank *rank, bool draft, const mimo_op *op)
{
    const mimo_config *c = draft ? &rank->draft.config.model : &rank->config;
    const mimo_weights *w = draft ? &rank->draft.weights : &rank->weights;
    if (op->layer != MIMO_NO_LAYER)
        return layer_bytes(c, &w->layer[op->layer], op);
    uint64_t fixed = 0;
    if (op->code == MIMO_OP_HEAD)
        fixed = stored_bytes(&w->head);
    else if (op->code == MIMO_OP_DRAFT_FUSE)
        fixed = stored_bytes(&w->fuse);
    else if (op->code == MIMO_OP_DRAFT_CONTEXT)
        for (uint32_t i = 0; i < c->layers; i++) {
            const mimo_attention *a = mimo_layer_attention(c, i);
            const uint64_t rows = (uint64_t)a->kv_heads * (a->head_dim + a->v_head_dim);
            fixed += stored_bytes(&w->layer[i].qkv) * rows / w->layer[i].qkv.rows;
        }
    return (mimo_rank_bytes){.fixed = fixed};
}

/* ---- opening ---- */

static mimo_status open_device(mimo_rank *rank, uint32_t device, const char *path, const char *image, uint64_t seed,
                               mimo_error *err)
{
    const mimo_backend_options options = {.threads = 1,
                                          .max_rows = MIMO_RANK_RUNS * MIMO_CUDA_ROWS,
                                          .max_context = positions_of(rank),
                                          .variant = path,
                                          .ranks = rank->options.world,
                                          .device = device,
                                          .image = image,
                                          .kept = kept_bytes(rank)};
    mimo_backend *backend = NULL;
    MIMO_TRY(mimo_cuda_backend_open(&backend, &rank->config, &rank->weights, draft_of(rank), &options, err));
    mimo_cuda *cuda = rank->cuda = (mimo_cuda *)backend;
    MIMO_TRY(mimo_cuda_make(cuda, seed, err));
    MIMO_TRY(mimo_cuda_alloc(&cuda->device, &rank->copy_from, rank->options.copied, "bytes to copy", err));
    MIMO_TRY(mimo_cuda_alloc(&cuda->device, &rank->copy_to, rank->options.copied, "bytes to copy", err));
    for (size_t i = 0; i < 2 * MIMO_RANK_RUNS; i++)
        MIMO_TRY(mimo_cuda_event_open(&cuda->device, &rank->event[i], err));
    MIMO_TRY(mimo_cuda_sequence_open(&cuda->kv, &rank->sequence, err));
    return mimo_cuda_sequence_reserve(&cuda->kv, rank->sequence, positions_of(rank), err);
}

void mimo_rank_shut(mimo_rank *rank)
{
    mimo_cuda *cuda = rank->cuda;
    if (cuda == NULL)
        return;
    (void)!mimo_cuda_enter(&cuda->device, NULL);
    for (size_t i = 0; i < 2 * MIMO_RANK_RUNS; i++)
        mimo_cuda_event_close(&cuda->device, rank->event[i]);
    mimo_cuda_release(&cuda->device, &rank->copy_from);
    mimo_cuda_release(&cuda->device, &rank->copy_to);
    mimo_cuda_release(&cuda->device, &rank->lean);
    mimo_cuda_sequence_close(&cuda->kv, rank->sequence);
    cuda->base.close(&cuda->base);
    memset(rank->event, 0, sizeof rank->event);
    rank->sequence = NULL;
    rank->cuda = NULL;
}

mimo_status mimo_rank_open(mimo_rank *rank, uint32_t device, const char *path, const char *image, uint64_t seed,
                           char *name, mimo_error *err)
{
    const mimo_status status = open_device(rank, device, path, image, seed, err);
    if (status == MIMO_OK)
        memcpy(name, rank->cuda->device.name, sizeof rank->cuda->device.name);
    else
        mimo_rank_shut(rank);
    return status;
}

void mimo_rank_close(mimo_rank *rank)
{
    mimo_rank_shut(rank);
    mimo_weights_release(&rank->weights);
    mimo_weights_release(&rank->draft.weights);
    *rank = (mimo_rank){0};
}

/* ---- drawn experts ---- */

/* Far above and below any score that a router gives. */
static const float chosen = 32.0f;

mimo_status mimo_rank_draw(mimo_rank *rank, const uint16_t *experts, uint32_t sets, mimo_error *err)
{
    const mimo_config *c = &rank->config;
    mimo_cuda_device *device = &rank->cuda->device;
    const size_t rows = (size_t)c->layers * MIMO_CUDA_ROWS, floats = lean_floats(rank);
    sets = (uint32_t)mimo_min(sets, MIMO_RANK_RUNS);
    float *table;
    MIMO_TRY(mimo_cuda_enter(device, err));
    mimo_cuda_release(device, &rank->lean);
    rank->leans = 0;
    if (c->experts == 0 || sets == 0)
        return MIMO_OK;
    MIMO_TRY(mimo_cuda_alloc(device, &rank->lean, sets * floats * sizeof *table, "drawn experts", err));
    MIMO_TRY(mimo_alloc_array(&table, floats, sizeof *table, "drawn experts", err));
    mimo_status status = MIMO_OK;
    for (uint32_t set = 0; status == MIMO_OK && set < sets; set++) {
        for (size_t i = 0; i < floats; i++)
            table[i] = -chosen;
        for (size_t row = 0; row < rows; row++)
            for (uint32_t k = 0; k < c->top_k; k++)
                table[row * c->experts + experts[(set * rows + row) * c->top_k + k] % c->experts] = chosen;
        status = mimo_cuda_write(device, rank->lean + set * floats * sizeof *table, table, floats * sizeof *table, err);
    }
    mimo_free(table);
    rank->leans = status == MIMO_OK ? sets : 0;
    return status;
}

/* ---- runs ---- */

static void write_step(mimo_rank *rank, uint32_t rows, uint32_t run)
{
    mimo_cuda *cuda = rank->cuda;
    const mimo_cuda_spots *spots = &cuda->target.model.spots;
    mimo_cuda_step *step = &cuda->step[run];
    *step = (mimo_cuda_step){.rows = rows,
                             .outputs = rows,
                             .logits = (float *)(uintptr_t)spots->logits,
                             .hidden = (float *)(uintptr_t)spots->hidden,
                             .logits_stride = spots->logits_stride,
                             .hidden_stride = MIMO_CUDA_ROWS * (size_t)rank->config.hidden};
    for (uint32_t i = 0; i < rows; i++) {
        step->token[i] = (run * 8191 + i * 127) % rank->config.vocab;
        step->position[i] = rank->options.context + i;
        step->output[i] = i;
        step->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, rank->sequence, 0);
    }
    if (rank->has_draft)
        step->taps = rank->draft.config.model.taps;
    memcpy(step->tap, rank->draft.config.tap, sizeof step->tap);
    if (rank->leans > 0)
        step->lean = (const float *)(uintptr_t)rank->lean + run % rank->leans * lean_floats(rank);
}

/* The context of `rows` rows, whose features are where the target leaves them; */
static void write_context(mimo_rank *rank, uint32_t rows, uint32_t run)
{
    mimo_cuda *cuda = rank->cuda;
    mimo_cuda_step *step = &cuda->step[run];
    *step = (mimo_cuda_step){.rows = rows,
                             .features = (const float *)(uintptr_t)cuda->target.model.spots.hidden,
                             .features_stride = MIMO_CUDA_ROWS * (size_t)rank->config.hidden};
    for (uint32_t i = 0; i < rows; i++) {
        step->position[i] = rank->options.context - mimo_min(rank->options.context, rows) + i;
        step->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, rank->sequence, 1);
        step->context_row[i] = i;
    }
}

/* and the block behind it. */
static void write_block(mimo_rank *rank, uint32_t run)
{
    mimo_cuda *cuda = rank->cuda;
    const mimo_cuda_spots *spots = &cuda->drafter.model.spots;
    const uint32_t B = rank->draft.config.model.block, anchor = rank->options.context;
    mimo_cuda_step *step = &cuda->step[run];
    *step = (mimo_cuda_step){.rows = B,
                             .outputs = B - 1,
                             .logits = (float *)(uintptr_t)spots->logits,
                             .logits_stride = spots->logits_stride,
                             .anchor = anchor};
    step->token[0] = run % rank->config.vocab;
    for (uint32_t i = 0; i < B; i++) {
        step->position[i] = anchor + i;
        step->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, rank->sequence, 1);
        if (i > 0)
            step->output[i - 1] = i;
    }
}

static mimo_status finish(mimo_rank *rank, double *seconds, size_t count, mimo_error *err)
{
    mimo_cuda_device *device = &rank->cuda->device;
    mimo_cuda_settle(rank->cuda);
    for (size_t i = 0; i < count; i++)
        seconds[i] = mimo_cuda_event_seconds(device, rank->event[2 * i], rank->event[2 * i + 1]);
    return mimo_cuda_device_check(device, err);
}

static mimo_status begin(mimo_rank *rank, uint32_t rows, size_t count, mimo_error *err)
{
    if (rows < 1 || rows > MIMO_CUDA_ROWS || count < 1 || count > MIMO_RANK_RUNS)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "expected 1 to %d rows and 1 to %d runs, found %u and %zu",
                         MIMO_CUDA_ROWS, MIMO_RANK_RUNS, rows, count);
    return mimo_cuda_enter(&rank->cuda->device, err);
}

mimo_status mimo_rank_time_copies(mimo_rank *rank, double *seconds, size_t count, mimo_error *err)
{
    mimo_cuda_device *device = &rank->cuda->device;
    MIMO_TRY(begin(rank, 1, count, err));
    for (size_t i = 0; i < count; i++) {
        mimo_cuda_queue_event(device, rank->event[2 * i]);
        mimo_cuda_queue_over(device, rank->copy_to, rank->copy_from, rank->options.copied);
        mimo_cuda_queue_event(device, rank->event[2 * i + 1]);
    }
    return finish(rank, seconds, count, err);
}

mimo_status mimo_rank_time_steps(mimo_rank *rank, uint32_t rows, double *seconds, size_t count, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    MIMO_TRY(begin(rank, rows, count, err));
    for (size_t i = 0; i < count; i++) {
        write_step(rank, rows, (uint32_t)i);
        mimo_cuda_queue_event(&cuda->device, rank->event[2 * i]);
        mimo_cuda_run_piece(cuda, &cuda->target, 0, i);
        mimo_cuda_queue_event(&cuda->device, rank->event[2 * i + 1]);
    }
    return finish(rank, seconds, count, err);
}

static mimo_status check_draft(const mimo_rank *rank, mimo_error *err)
{
    if (!rank->has_draft)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "draft: expected a rank with a drafter, found none");
    return MIMO_OK;
}

mimo_status mimo_rank_time_drafts(mimo_rank *rank, uint32_t rows, double *seconds, size_t count, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    MIMO_TRY(check_draft(rank, err));
    MIMO_TRY(begin(rank, rows, 2 * count, err));
    for (size_t i = 0; i < count; i++) {
        write_context(rank, rows, (uint32_t)(2 * i));
        write_block(rank, (uint32_t)(2 * i + 1));
        mimo_cuda_queue_event(&cuda->device, rank->event[2 * i]);
        mimo_cuda_run_piece(cuda, &cuda->drafter, 1, 2 * i);
        mimo_cuda_run_piece(cuda, &cuda->drafter, 0, 2 * i + 1);
        mimo_cuda_queue_event(&cuda->device, rank->event[2 * i + 1]);
    }
    return finish(rank, seconds, count, err);
}

/* ---- stamps ---- */

static mimo_status open_trace(mimo_rank *rank, mimo_rank_trace *out, mimo_error *err)
{
    mimo_timeline *line = &out->line;
    const size_t bytes = line->room * sizeof *out->stamp;
    MIMO_TRY(mimo_alloc_array(&line->launch, line->most_launches, sizeof *line->launch, "timeline", err));
    MIMO_TRY(mimo_alloc_array(&out->stamp, line->room, sizeof *out->stamp, "timeline", err));
    MIMO_TRY(mimo_cuda_alloc(&rank->cuda->device, &rank->stamps, bytes, "timeline", err));
    line->stamps = rank->stamps;
    return MIMO_OK;
}

/* Records operations [first, end) with stamps, and runs them for cuda->step[0]. */
static mimo_status run_stamped(mimo_rank *rank, mimo_cuda_tape *tape, uint32_t first, uint32_t end, mimo_timeline *line,
                               mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    void *graph = NULL;
    cuda->timeline = line;
    mimo_cuda_record(&cuda->device);
    mimo_cuda_run(cuda, tape, first, end, cuda->step[0].rows);
    cuda->timeline = NULL;
    MIMO_TRY(mimo_cuda_recorded(&cuda->device, &graph, err));
    mimo_cuda_queue_in(&cuda->device, tape->model.spots.step, &cuda->step[0], sizeof cuda->step[0]);
    mimo_cuda_queue_graph(&cuda->device, graph);
    mimo_cuda_wait(&cuda->device);
    mimo_cuda_forget(&cuda->device, graph);
    return mimo_cuda_device_check(&cuda->device, err);
}

static mimo_status trace_plain(mimo_rank *rank, uint32_t rows, bool draft, mimo_rank_trace *out, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    mimo_cuda_tape *tape = draft ? &cuda->drafter : &cuda->target;
    mimo_timeline *line = &out->line;
    line->most_launches = KERNELS_OF_OP * (size_t)tape->plan.count;
    line->room = line->most_launches * CTAS_OF_PROCESSOR * cuda->device.processors;
    MIMO_TRY(open_trace(rank, out, err));
    if (draft) {
        write_context(rank, rows, 0);
        MIMO_TRY(run_stamped(rank, tape, 0, tape->context_ops, line, err));
        write_block(rank, 0);
    } else {
        write_step(rank, rows, 0);
    }
    MIMO_TRY(run_stamped(rank, tape, tape->context_ops, tape->plan.count, line, err));
    mimo_cuda_queue_out(&cuda->device, out->stamp, line->stamps, line->used * sizeof *out->stamp);
    mimo_cuda_wait(&cuda->device);
    return mimo_cuda_device_check(&cuda->device, err);
}

/* Stages in their order as launches, and the stamps of their tasks, which the queues have SM by SM, and of their joins,
 * which come after these. */
static mimo_status sort_stamps(mimo_rank_trace *out, const mimo_queues *q, const mimo_stamp *raw, mimo_error *err)
{
    mimo_timeline *line = &out->line;
    mimo_timeline_launch *stage = line->launch + line->launches;
    size_t *next;
    MIMO_TRY(mimo_alloc_array(&next, q->counters, sizeof *next, "timeline", err));
    for (uint32_t i = q->tasks + q->joins; i-- > 0;) { /* tasks last: a stage is named by them */
        const mimo_tile_task *task = i < q->tasks ? &q->task[i] : &q->join[i - q->tasks];
        const uint32_t ctas = stage[task->signal].ctas + 1;
        stage[task->signal] = (mimo_timeline_launch){task->kind, task->op_code, task->layer, ctas, 0};
    }
    for (uint32_t i = 0; i < q->counters; i++) {
        next[i] = stage[i].first = line->used;
        line->used += stage[i].ctas;
    }
    for (uint32_t i = 0; i < q->tasks + q->joins; i++)
        out->stamp[next[i < q->tasks ? q->task[i].signal : q->join[i - q->tasks].signal]++] = raw[i];
    line->launches += q->counters;
    mimo_free(next);
    return MIMO_OK;
}

/* Runs a program once with stamps of all its tasks. */
static mimo_status run_program(mimo_rank *rank, mimo_resident_program program, mimo_cuda_tape *tape, int part,
                               mimo_rank_trace *out, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    const mimo_queues *q = &cuda->resident->queues[program];
    mimo_stamp *raw;
    const size_t stamps = q->tasks + (size_t)q->joins;
    MIMO_TRY(mimo_alloc_array(&raw, stamps, sizeof *raw, "timeline", err));
    cuda->resident->machine[program].stamps = (mimo_stamp *)(uintptr_t)out->line.stamps;
    mimo_cuda_run_piece(cuda, tape, part, 0);
    cuda->resident->machine[program].stamps = NULL;
    mimo_cuda_queue_out(&cuda->device, raw, out->line.stamps, stamps * sizeof *raw);
    mimo_cuda_settle(cuda);
    mimo_status status = mimo_cuda_device_check(&cuda->device, err);
    if (status == MIMO_OK)
        status = sort_stamps(out, q, raw, err);
    mimo_free(raw);
    return status;
}

static mimo_status trace_resident(mimo_rank *rank, uint32_t rows, bool draft, mimo_rank_trace *out, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    const mimo_queues *queues = cuda->resident->queues, *first = &queues[MIMO_RESIDENT_CONTEXT],
                      *last = &queues[draft ? MIMO_RESIDENT_BLOCK : MIMO_RESIDENT_STEP];
    out->line.most_launches = last->counters + (draft ? first->counters : 0);
    out->line.room = last->tasks + last->joins + (draft ? first->tasks + first->joins : 0);
    MIMO_TRY(open_trace(rank, out, err));
    if (!draft) {
        write_step(rank, rows, 0);
        return run_program(rank, MIMO_RESIDENT_STEP, &cuda->target, 0, out, err);
    }
    write_context(rank, rows, 0);
    MIMO_TRY(run_program(rank, MIMO_RESIDENT_CONTEXT, &cuda->drafter, 1, out, err));
    write_block(rank, 0);
    return run_program(rank, MIMO_RESIDENT_BLOCK, &cuda->drafter, 0, out, err);
}

mimo_status mimo_rank_trace_step(mimo_rank *rank, uint32_t rows, bool draft, mimo_rank_trace *out, mimo_error *err)
{
    *out = (mimo_rank_trace){0};
    if (draft)
        MIMO_TRY(check_draft(rank, err));
    MIMO_TRY(begin(rank, rows, 1, err));
    const mimo_status status = rank->cuda->resident != NULL ? trace_resident(rank, rows, draft, out, err)
                                                            : trace_plain(rank, rows, draft, out, err);
    mimo_cuda_release(&rank->cuda->device, &rank->stamps);
    if (status == MIMO_OK)
        return MIMO_OK;
    mimo_free(out->line.launch);
    mimo_free(out->stamp);
    return status;
}

mimo_status mimo_rank_read(mimo_rank *rank, uint32_t rows, uint16_t *experts, float *logits, mimo_error *err)
{
    mimo_cuda *cuda = rank->cuda;
    const mimo_cuda_model *model = &cuda->target.model;
    const mimo_config *c = &rank->config;
    MIMO_TRY(begin(rank, rows, 1, err));
    const mimo_moe *moe =
        cuda->resident != NULL ? cuda->resident->machine[MIMO_RESIDENT_STEP].moe : model->state.work.moe;
    if (experts != NULL && c->experts > 0)
        mimo_cuda_queue_out(&cuda->device, experts, (uintptr_t)moe->chosen, (size_t)rows * c->top_k * sizeof *experts);
    for (uint32_t i = 0; logits != NULL && i < rows; i++)
        mimo_cuda_queue_out(&cuda->device, logits + (size_t)i * c->vocab,
                            model->spots.logits + i * model->spots.logits_stride * sizeof(float),
                            c->vocab * sizeof(float));
    mimo_cuda_wait(&cuda->device);
    return mimo_cuda_device_check(&cuda->device, err);
}
