/* The plain path: an operation of the tape is a kernel or two, a step of up to eight rows is a graph of them. */
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "cuda/cuda.h"

/* CTAs of a grid for each multiprocessor: two are resident together with their registers. */
enum { CTAS_OF_PROCESSOR = 2 };

/* ---- the tape ---- */

typedef struct launch {
    mimo_cuda *cuda;
    const mimo_cuda_state *state;
    uint32_t layer, code;
    size_t scratch_bytes;
} launch;

/* A kernel with work for `tiles` CTAs. */
static void queue(const launch *l, mimo_cuda_kernel kernel, size_t tiles)
{
    const size_t most = CTAS_OF_PROCESSOR * (size_t)l->cuda->device.processors;
    const size_t ctas = mimo_max(1, mimo_min(tiles, most));
    mimo_cuda_state state = *l->state;
    if (l->cuda->timeline != NULL)
        state.stamps =
            mimo_timeline_add(l->cuda->timeline,
                              (mimo_timeline_launch){kernel, (uint16_t)l->code, (uint16_t)l->layer, (uint32_t)ctas, 0});
    mimo_cuda_queue_kernel(&l->cuda->device, kernel, (uint32_t)ctas, l->scratch_bytes, &state, l->layer);
}

static size_t tiles_of(size_t columns)
{
    return mimo_ceil_div(columns, MIMO_CUDA_WARPS);
}

/* Sliding layers see two chunks at most: one CTA takes them in order. Others share their chunks out. */
static void queue_attention(const launch *l, const mimo_op *op, uint32_t rows)
{
    const size_t queries = (size_t)rows * op->dim[1];
    if (op->dim[4] > 0 && op->dim[4] <= MIMO_CUDA_CHUNK) {
        queue(l, MIMO_CUDA_attend, queries);
        return;
    }
    queue(l, MIMO_CUDA_attend_chunks, queries * l->state->work.part_chunks);
    queue(l, MIMO_CUDA_attend_merge, queries);
}

static void queue_op(launch *l, const mimo_op *op, uint32_t rows)
{
    const uint32_t *dim = op->dim; /* plan/ops.def says which letter each is */
    l->layer = op->layer;
    l->code = op->code;
    switch ((mimo_op_code)op->code) {
    case MIMO_OP_EMBED:
        queue(l, MIMO_CUDA_embed, rows);
        break;
    case MIMO_OP_DRAFT_FUSE:
        queue(l, MIMO_CUDA_draft_fuse, tiles_of(dim[1]));
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        queue(l, MIMO_CUDA_draft_context, tiles_of(dim[1]));
        break;
    case MIMO_OP_DRAFT_EMBED:
        queue(l, MIMO_CUDA_draft_embed, rows);
        break;
    case MIMO_OP_QKV:
        queue(l, MIMO_CUDA_qkv, tiles_of(dim[1] * dim[3] + dim[2] * (dim[3] + dim[4])));
        break;
    case MIMO_OP_ATTENTION:
        queue_attention(l, op, rows);
        break;
    case MIMO_OP_OUT_PROJ:
        queue(l, MIMO_CUDA_out_proj, tiles_of(dim[2]));
        break;
    case MIMO_OP_ROUTE:
        queue(l, MIMO_CUDA_route, tiles_of(dim[1]));
        queue(l, MIMO_CUDA_route_choose, 1);
        break;
    case MIMO_OP_EXPERT_UP:
        queue(l, MIMO_CUDA_expert_up, tiles_of(dim[1]) * mimo_min(dim[2], (size_t)rows * dim[3]));
        break;
    case MIMO_OP_EXPERT_DOWN:
        queue(l, MIMO_CUDA_expert_down, tiles_of(dim[1]));
        break;
    case MIMO_OP_DENSE_UP:
        queue(l, MIMO_CUDA_dense_up, tiles_of(dim[1]));
        break;
    case MIMO_OP_DENSE_DOWN:
        queue(l, MIMO_CUDA_dense_down, tiles_of(dim[1]));
        break;
    case MIMO_OP_HEAD:
        queue(l, MIMO_CUDA_head, tiles_of(dim[1]));
        break;
    case MIMO_OP_COUNT:
        break;
    }
}

/* While profiling, every operation is waited for: its time holds the start of a kernel and the host's turn. */
static void count_op(mimo_cuda *cuda, mimo_profile *profile, uint32_t code, uint64_t begin)
{
    mimo_cuda_wait(&cuda->device);
    const uint64_t took = mimo_clock_ns() - begin;
    profile->op[code].calls++;
    profile->op[code].busy_ns += took;
    profile->op[code].wall_ns += took;
    profile->total_ns += took;
}

void mimo_cuda_run(mimo_cuda *cuda, mimo_cuda_tape *tape, uint32_t first, uint32_t end, uint32_t rows)
{
    launch l = {.cuda = cuda,
                .state = &tape->model.state,
                .scratch_bytes = mimo_cuda_scratch_floats(tape->model.config, MIMO_CUDA_WARPS) * sizeof(float)};
    for (uint32_t i = first; i < end; i++) {
        const uint64_t begin = cuda->profiling ? mimo_clock_ns() : 0;
        queue_op(&l, &tape->plan.op[i], rows);
        if (cuda->profiling)
            count_op(cuda, tape == &cuda->drafter ? &cuda->draft_profile : &cuda->profile, tape->plan.op[i].code,
                     begin);
    }
}

/* ---- graphs ---- */

static uint32_t part_begin(const mimo_cuda_tape *tape, int part)
{
    return part == 0 ? tape->context_ops : 0;
}

static uint32_t part_end(const mimo_cuda_tape *tape, int part)
{
    return part == 0 ? tape->plan.count : tape->context_ops;
}

static mimo_status record(mimo_cuda *cuda, mimo_cuda_tape *tape, mimo_error *err)
{
    for (int part = 0; part < 2 && cuda->resident == NULL; part++)
        for (uint32_t rows = 1; rows <= MIMO_CUDA_ROWS && part_end(tape, part) > 0; rows++) {
            mimo_cuda_record(&cuda->device);
            mimo_cuda_run(cuda, tape, part_begin(tape, part), part_end(tape, part), rows);
            MIMO_TRY(mimo_cuda_recorded(&cuda->device, &tape->graph[part][rows], err));
        }
    return MIMO_OK;
}

/* One row through all of a tape: a driver may load a kernel when it first runs, which it must not while one is
 * recorded; and a kernel that does not run here is found while loading. */
static void rehearse_tape(mimo_cuda *cuda, mimo_cuda_tape *tape, const mimo_cuda_sequence *sequence)
{
    const mimo_cuda_spots *spots = &tape->model.spots;
    mimo_cuda_step *step = &cuda->step[0];
    *step = (mimo_cuda_step){.rows = 1,
                             .outputs = 1,
                             .kv = {mimo_cuda_sequence_kv(&cuda->kv, sequence, tape == &cuda->drafter)},
                             .logits = (float *)(uintptr_t)spots->logits,
                             .logits_stride = spots->logits_stride,
                             .features = (const float *)(uintptr_t)spots->features,
                             .features_stride = MIMO_CUDA_ROWS * (size_t)tape->model.config->hidden};
    if (cuda->resident != NULL) {
        if (tape == &cuda->drafter)
            mimo_cuda_run_piece(cuda, tape, 1, 0);
        mimo_cuda_run_piece(cuda, tape, 0, 0);
    } else {
        mimo_cuda_queue_in(&cuda->device, spots->step, step, sizeof *step);
        mimo_cuda_run(cuda, tape, 0, tape->plan.count, 1);
    }
    mimo_cuda_settle(cuda);
}

static mimo_status rehearse(mimo_cuda *cuda, mimo_error *err)
{
    mimo_cuda_sequence *sequence;
    MIMO_TRY(mimo_cuda_sequence_open(&cuda->kv, &sequence, err));
    const mimo_status status = mimo_cuda_sequence_reserve(&cuda->kv, sequence, 1, err);
    if (status == MIMO_OK) {
        rehearse_tape(cuda, &cuda->target, sequence);
        if (cuda->drafter.model.config != NULL)
            rehearse_tape(cuda, &cuda->drafter, sequence);
    }
    mimo_cuda_sequence_close(&cuda->kv, sequence);
    return status == MIMO_OK ? mimo_cuda_device_check(&cuda->device, err) : status;
}

mimo_status mimo_cuda_record_tapes(mimo_cuda *cuda, mimo_error *err)
{
    MIMO_TRY(rehearse(cuda, err));
    MIMO_TRY(record(cuda, &cuda->target, err));
    return cuda->drafter.model.config != NULL ? record(cuda, &cuda->drafter, err) : MIMO_OK;
}

void mimo_cuda_forget_tapes(mimo_cuda *cuda)
{
    for (int part = 0; part < 2; part++)
        for (uint32_t rows = 0; rows <= MIMO_CUDA_ROWS; rows++) {
            mimo_cuda_forget(&cuda->device, cuda->target.graph[part][rows]);
            mimo_cuda_forget(&cuda->device, cuda->drafter.graph[part][rows]);
            cuda->target.graph[part][rows] = cuda->drafter.graph[part][rows] = NULL;
        }
}

/* The resident kernel's program of a part. */
static mimo_resident_program program_of(const mimo_cuda *cuda, const mimo_cuda_tape *tape, int part, size_t outputs)
{
    if (tape == &cuda->drafter)
        return part == 1 ? MIMO_RESIDENT_CONTEXT : MIMO_RESIDENT_BLOCK;
    return outputs > 0 ? MIMO_RESIDENT_STEP : MIMO_RESIDENT_READ;
}

void mimo_cuda_settle(mimo_cuda *cuda)
{
    if (cuda->resident != NULL)
        mimo_resident_wait(cuda->resident);
    else
        mimo_cuda_wait(&cuda->device);
}

void mimo_cuda_run_piece(mimo_cuda *cuda, mimo_cuda_tape *tape, int part, size_t piece)
{
    const mimo_cuda_step *step = &cuda->step[piece];
    mimo_cuda_queue_in(&cuda->device, tape->model.spots.step, step, sizeof *step);
    if (cuda->resident != NULL)
        mimo_resident_launch(cuda->resident, program_of(cuda, tape, part, step->outputs), 1);
    else if (cuda->profiling)
        mimo_cuda_run(cuda, tape, part_begin(tape, part), part_end(tape, part), step->rows);
    else
        mimo_cuda_queue_graph(&cuda->device, tape->graph[part][step->rows]);
}

/* ---- a step ---- */

/* Rows [first, first + rows) of a step, and taps [tap, tap + taps) of its own. */
typedef struct piece {
    const mimo_step *step;
    size_t number, first, rows, output, tap, taps;
} piece;

/* Tells the device of the piece; returns how many of its rows' logits are wanted. */
static size_t write_piece(mimo_cuda *cuda, const piece *p)
{
    const mimo_step *step = p->step;
    const mimo_cuda_spots *spots = &cuda->target.model.spots;
    mimo_cuda_step *to = &cuda->step[p->number];
    *to = (mimo_cuda_step){.rows = (uint32_t)p->rows,
                           .taps = (uint32_t)p->taps,
                           .logits = (float *)(uintptr_t)spots->logits,
                           .hidden = (float *)(uintptr_t)spots->hidden,
                           .logits_stride = spots->logits_stride,
                           .hidden_stride = MIMO_CUDA_ROWS * (size_t)cuda->target.model.config->hidden};
    for (size_t i = 0; i < p->rows; i++) {
        to->token[i] = step->token[p->first + i];
        to->position[i] = step->position[p->first + i];
        to->kv[i] = mimo_cuda_sequence_kv(&cuda->kv, (mimo_cuda_sequence *)step->kv[p->first + i], 0);
    }
    for (size_t i = 0; i < p->taps; i++)
        to->tap[i] = step->tap[p->tap + i];
    const bool wanted = p->tap == 0; /* with the first taps only */
    for (size_t i = p->output; wanted && i < step->outputs && step->output[i] < p->first + p->rows; i++)
        to->output[to->outputs++] = (uint32_t)(step->output[i] - p->first);
    return to->outputs;
}

static void take_results(mimo_cuda *cuda, const piece *p, size_t outputs)
{
    const mimo_step *step = p->step;
    const mimo_cuda_spots *spots = &cuda->target.model.spots;
    const size_t H = cuda->target.model.config->hidden;
    for (size_t i = 0; i < outputs; i++)
        mimo_cuda_queue_out(&cuda->device, step->logits + (p->output + i) * step->logits_stride,
                            spots->logits + mimo_cuda_logits_row(cuda, &cuda->step[p->number], i) *
                                                spots->logits_stride * sizeof(float),
                            spots->logits_stride * sizeof(float));
    for (size_t i = 0; i < p->taps; i++)
        mimo_cuda_queue_out(&cuda->device, step->hidden + (p->tap + i) * step->hidden_stride + p->first * H,
                            spots->hidden + i * MIMO_CUDA_ROWS * H * sizeof(float), p->rows * H * sizeof(float));
}

/* All taps of a piece, sixteen at a time: what is computed again has the same bits. */
static size_t run_rows(mimo_cuda *cuda, piece *p)
{
    size_t outputs = 0;
    p->tap = 0;
    do {
        p->taps = mimo_min(p->step->taps - p->tap, MIMO_MAX_TAPS);
        const size_t wanted = write_piece(cuda, p);
        mimo_cuda_run_piece(cuda, &cuda->target, 0, p->number);
        take_results(cuda, p, wanted);
        outputs += wanted;
        p->tap += p->taps;
        if (p->tap < p->step->taps)
            mimo_cuda_settle(cuda); /* its entry of cuda->step is written again */
    } while (p->tap < p->step->taps);
    return outputs;
}

/* The first reason why a device is lost stays in it; mimo_backend.check tells. */
void mimo_cuda_backend_step(mimo_backend *self, const mimo_step *step)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    if (mimo_cuda_enter(&cuda->device, &cuda->device.lost) != MIMO_OK)
        return;
    for (size_t t = 0; t < step->rows; t++) {
        mimo_cuda_sequence *sequence = (mimo_cuda_sequence *)step->kv[t];
        sequence->written = mimo_max(sequence->written, step->position[t] + (size_t)1);
        mimo_span_cut(&sequence->span, cuda->kv.ring[1], step->position[t]);
    }
    const uint64_t begin = mimo_clock_ns();
    piece p = {.step = step};
    for (; p.first < step->rows; p.first += p.rows, p.number++) {
        p.rows = mimo_min(MIMO_CUDA_ROWS, step->rows - p.first);
        p.output += run_rows(cuda, &p);
    }
    mimo_cuda_settle(cuda);
    if (cuda->profiling) {
        cuda->profile.total_ns += cuda->resident != NULL ? mimo_clock_ns() - begin : 0; /* of one kernel, as a whole */
        cuda->profile.steps++;
        cuda->profile.rows += step->rows;
    }
}
