#include "cuda/resident.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/launch.h"
#include "cuda/page.h"

static const uint32_t parts_of[MIMO_RESIDENT_PROGRAMS] = {
    [MIMO_RESIDENT_ROUND] = MIMO_PARTS_ROUND,
    [MIMO_RESIDENT_TOKEN] = MIMO_PART_READ | MIMO_PART_HEAD | MIMO_PART_CHOOSE,
    [MIMO_RESIDENT_STEP] = MIMO_PART_READ | MIMO_PART_HEAD,
    [MIMO_RESIDENT_READ] = MIMO_PART_READ,
    [MIMO_RESIDENT_CONTEXT] = MIMO_PART_CONTEXT,
    [MIMO_RESIDENT_BLOCK] = MIMO_PART_BLOCK,
};

/* Nanoseconds: far more than any wait of a GPU that is well, little enough for who looks at it. */
static const uint64_t usual_patience = (uint64_t)20 * 1000000000u;

static bool decodes(uint32_t program)
{
    return program == MIMO_RESIDENT_ROUND || program == MIMO_RESIDENT_TOKEN;
}

static bool needs_draft(uint32_t program)
{
    return program == MIMO_RESIDENT_ROUND || program == MIMO_RESIDENT_CONTEXT || program == MIMO_RESIDENT_BLOCK;
}

/* The program that has every area at its largest, and every matrix. */
static const mimo_queues *whole(const mimo_resident *r)
{
    return &r->queues[r->has_draft ? MIMO_RESIDENT_ROUND : MIMO_RESIDENT_TOKEN];
}

mimo_gpu mimo_resident_gpu(const mimo_cuda_device *device)
{
    return (mimo_gpu){
        .sms = device->processors, .shared_bytes = device->shared_bytes, .l2_bytes = device->l2_bytes, .ranks = 1};
}

/* ---- pages ---- */

static uint64_t experts_of(const mimo_config *config, const mimo_op *op)
{
    return op->code == MIMO_OP_EXPERT_UP || op->code == MIMO_OP_EXPERT_DOWN ? config->experts : 1;
}

/* A drafter of all ids has the target's head. */
static bool is_shared(const mimo_resident *r, uint32_t tape, const mimo_op *op)
{
    return tape == MIMO_TAPE_DRAFT && op->code == MIMO_OP_HEAD && r->model[tape].model->draft->target_id == NULL;
}

static uint32_t head_of(const mimo_plan *plan)
{
    uint32_t i = 0;
    while (plan->op[i].code != MIMO_OP_HEAD)
        i++;
    return i;
}

/* Hands out places, of the target's pages first. */
static mimo_status place_pages(mimo_resident *r, uint64_t base, mimo_error *err)
{
    mimo_carver carver = {.base = base};
    for (uint32_t tape = 0; tape < 2; tape++) {
        const uint64_t before = carver.used;
        const mimo_plan *plan = r->model[tape].plan;
        for (uint32_t i = 0; plan != NULL && i < plan->count; i++) {
            const mimo_op *op = &plan->op[i];
            const mimo_tile_shape *shape = &whole(r)->shape[tape][i];
            if (is_shared(r, tape, op))
                r->page[tape][i] = r->page[MIMO_TAPE_TARGET][head_of(r->model[MIMO_TAPE_TARGET].plan)];
            else
                r->page[tape][i] =
                    mimo_carve(&carver, shape->expert_pages * experts_of(r->tape[tape].config, op), shape->page_bytes);
        }
        r->page_bytes[tape] = carver.used - before;
    }
    if (carver.overflow)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the model exceeds the address space");
    return MIMO_OK;
}

mimo_cuda_ptr mimo_resident_pages(const mimo_resident *r, uint32_t tape, uint32_t op, uint32_t expert,
                                  const mimo_tile_shape **shape)
{
    *shape = &whole(r)->shape[tape][op];
    if ((*shape)->tiles == 0 || is_shared(r, tape, &r->model[tape].plan->op[op]))
        return 0;
    return r->page[tape][op] + expert * (uint64_t)(*shape)->expert_pages * (*shape)->page_bytes;
}

/* ---- work ---- */

static bool has_markov(const mimo_resident *r)
{
    return r->has_draft && r->tape[MIMO_TAPE_DRAFT].config->markov_rank > 0;
}

/* Where things are on the device. */
typedef struct work_places {
    uint64_t zeros, zero_bytes; /* counters of all programs, rounds, steps, the record of who was lost, operands */
    uint64_t counter[MIMO_RESIDENT_PROGRAMS], round, no_round, lost, steps;
    uint64_t begin[MIMO_RESIDENT_PROGRAMS], task[MIMO_RESIDENT_PROGRAMS], join[MIMO_RESIDENT_PROGRAMS];
    uint64_t pages[2], drafted;
    uint64_t token, n, a, u, squares, p, s, moe, biased;
    uint64_t maxima, sums, kept, kept_count, filter, best, picked;
} work_places;

static uint32_t pieces_of(const mimo_resident *r)
{
    return (uint32_t)mimo_ceil_div(r->tape[MIMO_TAPE_TARGET].config->hidden, whole(r)->columns);
}

/* Rows of up to `width` elements, [rows, stride] of each part. */
static mimo_tile_operand operand_of(uint64_t at, size_t rows, size_t width)
{
    const size_t stride = mimo_round_up(width, MIMO_PAGE_BLOCK);
    return (mimo_tile_operand){(uint16_t *)(uintptr_t)at, stride, rows * stride};
}

static uint64_t place_operand(const mimo_resident *r, mimo_carver *carver, size_t rows, size_t width)
{
    return mimo_carve(carver, r->parts, operand_of(0, rows, width).part * sizeof(uint16_t));
}

static size_t blocks_of(const mimo_queues *queues)
{
    return mimo_ceil_div(queues->ids, MIMO_TILE_IDS);
}

/* Rows of U. */
static size_t entries_of(const mimo_resident *r)
{
    return MIMO_TILE_TOKENS * (size_t)mimo_max(1, r->tape[MIMO_TAPE_TARGET].config->top_k);
}

static void place_work(const mimo_resident *r, mimo_carver *carver, work_places *w)
{
    const mimo_queues *q = whole(r);
    const size_t T = MIMO_TILE_TOKENS, H = r->tape[MIMO_TAPE_TARGET].config->hidden;
    const size_t blocks = blocks_of(q);
    w->zeros = carver->base + carver->used;
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++)
        w->counter[i] = mimo_carve(carver, r->queues[i].counters + (uint64_t)r->queues[i].joins, sizeof(uint32_t));
    w->round = mimo_carve(carver, 1, sizeof(mimo_tile_round));
    w->no_round = mimo_carve(carver, 1, sizeof(mimo_tile_round));
    w->lost = mimo_carve(carver, 1, sizeof(mimo_mail_lost));
    w->steps = mimo_carve(carver, 3, sizeof(mimo_cuda_step));
    w->n = place_operand(r, carver, T, H);
    w->a = place_operand(r, carver, T, q->a_width);
    w->u = place_operand(r, carver, entries_of(r), q->u_width);
    w->kept_count = mimo_carve(carver, T, sizeof(uint32_t));
    w->zero_bytes = carver->base + carver->used - w->zeros;
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++) {
        w->begin[i] = mimo_carve(carver, r->queues[i].sms + (uint64_t)1, sizeof(uint32_t));
        w->task[i] = mimo_carve(carver, r->queues[i].tasks, sizeof(mimo_tile_task));
        w->join[i] = mimo_carve(carver, r->queues[i].joins, sizeof(mimo_tile_task));
    }
    for (uint32_t tape = 0; tape < 2; tape++)
        w->pages[tape] = mimo_carve(carver, r->model[tape].plan != NULL ? r->model[tape].plan->count : 0, 8);
    w->drafted = mimo_carve(carver, r->has_draft ? r->tape[MIMO_TAPE_DRAFT].config->vocab : 0, sizeof(uint32_t));
    w->token = mimo_carve(carver, r->positions, sizeof(uint32_t));
    w->squares = mimo_carve(carver, T * pieces_of(r), sizeof(float));
    w->p = mimo_carve(carver, q->partial_floats, sizeof(float));
    w->s = mimo_carve(carver, q->attend_floats, 2 * sizeof(float)); /* rows of Dv + 4, where the queues count Dv + 2 */
    w->moe = mimo_carve(carver, 1, sizeof(mimo_moe));
    w->maxima = mimo_carve(carver, T * blocks, sizeof(float));
    w->sums = mimo_carve(carver, T * blocks, sizeof(float));
    w->kept = mimo_carve(carver, T * q->ids, sizeof(mimo_tile_kept));
    w->filter = mimo_carve(carver, T, sizeof(mimo_tile_filter));
    w->best = mimo_carve(carver, T * blocks, sizeof(mimo_tile_best));
    w->picked = mimo_carve(carver, T, sizeof(uint32_t));
    w->biased = mimo_carve(carver, T * (has_markov(r) ? r->tape[MIMO_TAPE_DRAFT].config->vocab : 0), sizeof(float));
}

static void *address(uint64_t at)
{
    return (void *)(uintptr_t)at;
}

/* ---- plan ---- */

static mimo_status plan_tape(mimo_resident *r, uint32_t tape, const mimo_resident_model *from, mimo_error *err)
{
    r->model[tape] = *from;
    r->tape[tape] = (mimo_tape){.plan = from->plan, .config = from->model->config};
    MIMO_TRY(mimo_alloc_array(&r->page[tape], from->plan->count, sizeof *r->page[tape], "pages of weights", err));
    return mimo_tape_formats(&r->tape[tape], from->model->weights, err);
}

static mimo_status lower_programs(mimo_resident *r, mimo_error *err)
{
    const mimo_tape *draft = r->has_draft ? &r->tape[MIMO_TAPE_DRAFT] : NULL;
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++)
        if (r->has_draft || !needs_draft(i))
            MIMO_TRY(mimo_lower_parts(&r->queues[i], &r->tape[MIMO_TAPE_TARGET], draft, &r->gpu, parts_of[i], err));
    return MIMO_OK;
}

mimo_status mimo_resident_plan(mimo_resident *r, const mimo_resident_model *target, const mimo_resident_model *draft,
                               const mimo_gpu *gpu, uint32_t positions, bool exact, mimo_error *err)
{
    *r = (mimo_resident){.gpu = *gpu, .positions = positions, .has_draft = draft != NULL, .patience = usual_patience};
    r->parts = exact ? MIMO_TILE_EXACT_PARTS : 1;
    MIMO_TRY(plan_tape(r, MIMO_TAPE_TARGET, target, err));
    if (draft != NULL)
        MIMO_TRY(plan_tape(r, MIMO_TAPE_DRAFT, draft, err));
    MIMO_TRY(lower_programs(r, err));
    MIMO_TRY(place_pages(r, 0, err));
    mimo_carver carver = {0};
    work_places places;
    place_work(r, &carver, &places);
    r->work_bytes = carver.used;
    if (carver.overflow)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the model exceeds the address space");
    return MIMO_OK;
}

/* ---- machines ---- */

static void fill_machine(const mimo_resident *r, uint32_t program, const work_places *w, mimo_tile_machine *m)
{
    const mimo_queues *q = &r->queues[program], *all = whole(r);
    const mimo_cuda_model *target = r->model[MIMO_TAPE_TARGET].model, *draft = r->model[MIMO_TAPE_DRAFT].model;
    mimo_cuda_step *steps = address(w->steps);
    *m = (mimo_tile_machine){.target = target->state,
                             .pages = {address(w->pages[0]), address(w->pages[1])},
                             .task = address(w->task[program]),
                             .join = address(w->join[program]),
                             .tasks = q->tasks,
                             .counters = q->counters,
                             .begin = address(w->begin[program]),
                             .last = q->counters - 1,
                             .last_count = q->last_count,
                             .columns = all->columns,
                             .pieces = pieces_of(r),
                             .counter = address(w->counter[program]),
                             .parts = r->parts,
                             .up_format = {all->up_format[0], all->up_format[1]},
                             .n = operand_of(w->n, MIMO_TILE_TOKENS, target->config->hidden),
                             .a = operand_of(w->a, MIMO_TILE_TOKENS, all->a_width),
                             .u = operand_of(w->u, entries_of(r), all->u_width),
                             .squares = address(w->squares),
                             .p = address(w->p),
                             .s = address(w->s),
                             .moe = address(w->moe),
                             .ids = all->ids,
                             .blocks = (uint32_t)blocks_of(all),
                             .maxima = address(w->maxima),
                             .sums = address(w->sums),
                             .kept = address(w->kept),
                             .kept_count = address(w->kept_count),
                             .filter = address(w->filter),
                             .best = address(w->best),
                             .picked = address(w->picked),
                             .steps = steps,
                             .round = address(decodes(program) ? w->round : w->no_round),
                             .vocab = target->config->vocab,
                             .mail = decodes(program) ? r->mail : NULL};
    if (decodes(program))
        m->target.step = &steps[0];
    if (!needs_draft(program))
        return;
    m->context = m->block = draft->state;
    if (decodes(program)) {
        m->context.step = &steps[1];
        m->block.step = &steps[2];
    }
    m->draft_vocab = draft->config->vocab;
    m->draft_block = draft->config->block;
    m->drafted = draft->draft->target_id != NULL ? address(w->drafted) : NULL;
    m->biased = has_markov(r) ? address(w->biased) : NULL;
}

/* ---- opening ---- */

static mimo_status clear(mimo_resident *r, uint64_t at, uint64_t bytes, mimo_error *err)
{
    const mimo_cuda_driver *driver = &r->device->driver;
    MIMO_TRY(mimo_cuda_check(driver, driver->fill(at, 0, bytes, r->device->stream), MIMO_ERR_ENGINE,
                             "cannot clear counters of the GPU", err));
    return mimo_cuda_check(driver, driver->stream_wait(r->device->stream), MIMO_ERR_ENGINE,
                           "cannot clear counters of the GPU", err);
}

static mimo_status upload(mimo_resident *r, const work_places *w, mimo_error *err)
{
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++) {
        const mimo_queues *q = &r->queues[i];
        if (q->tasks == 0)
            continue;
        MIMO_TRY(mimo_cuda_write(r->device, w->begin[i], q->begin, (q->sms + (size_t)1) * sizeof *q->begin, err));
        MIMO_TRY(mimo_cuda_write(r->device, w->task[i], q->task, q->tasks * sizeof *q->task, err));
        if (q->joins > 0)
            MIMO_TRY(mimo_cuda_write(r->device, w->join[i], q->join, q->joins * sizeof *q->join, err));
    }
    for (uint32_t tape = 0; tape < 2; tape++)
        if (r->model[tape].plan != NULL)
            MIMO_TRY(mimo_cuda_write(r->device, w->pages[tape], r->page[tape],
                                     r->model[tape].plan->count * sizeof *r->page[tape], err));
    const mimo_draft_config *draft = r->has_draft ? r->model[MIMO_TAPE_DRAFT].model->draft : NULL;
    if (draft != NULL && draft->target_id != NULL)
        MIMO_TRY(mimo_cuda_write(r->device, w->drafted, draft->target_id, draft->model.vocab * sizeof *draft->target_id,
                                 err));
    return MIMO_OK;
}

static mimo_status open_mail(mimo_resident *r, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_alloc_host(r->device, &r->mail, sizeof *r->mail, "mail of the kernel", err));
    MIMO_TRY(mimo_cuda_alloc_host(r->device, &r->told, sizeof *r->told, "mail of the kernel", err));
    memset(r->mail, 0, sizeof *r->mail);
    memset(r->told, 0, sizeof *r->told);
    return MIMO_OK;
}

mimo_status mimo_resident_open(mimo_resident *r, mimo_cuda_device *device, mimo_error *err)
{
    r->device = device;
    MIMO_TRY(mimo_cuda_alloc(device, &r->pages, r->page_bytes[0] + r->page_bytes[1], "pages of weights", err));
    MIMO_TRY(mimo_cuda_alloc(device, &r->work, r->work_bytes, "queues and rows of the resident kernel", err));
    MIMO_TRY(open_mail(r, err));
    MIMO_TRY(place_pages(r, r->pages, err));
    mimo_carver carver = {.base = r->work};
    work_places places;
    place_work(r, &carver, &places);
    r->lost = places.lost;
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++)
        if (r->queues[i].tasks > 0)
            fill_machine(r, i, &places, &r->machine[i]);
    r->token = places.token;
    memset(r->step, 0, sizeof r->step);
    r->read = 0;
    MIMO_TRY(upload(r, &places, err));
    return clear(r, places.zeros, places.zero_bytes, err);
}

void mimo_resident_shut(mimo_resident *r)
{
    if (r->device == NULL)
        return;
    mimo_cuda_release(r->device, &r->pages);
    mimo_cuda_release(r->device, &r->work);
    mimo_cuda_release_host(r->device, r->mail);
    mimo_cuda_release_host(r->device, r->told);
    r->mail = NULL;
    r->told = NULL;
}

void mimo_resident_close(mimo_resident *r)
{
    mimo_resident_shut(r);
    for (uint32_t i = 0; i < MIMO_RESIDENT_PROGRAMS; i++)
        mimo_queues_release(&r->queues[i]);
    mimo_free(r->page[0]);
    mimo_free(r->page[1]);
    *r = (mimo_resident){0};
}

/* ---- running ---- */

void mimo_resident_begin(mimo_resident *r, const mimo_resident_sequence *s)
{
    const mimo_resident_program program = r->has_draft ? MIMO_RESIDENT_ROUND : MIMO_RESIDENT_TOKEN;
    const mimo_tile_machine *m = &r->machine[program];
    const mimo_cuda_model *target = r->model[MIMO_TAPE_TARGET].model, *draft = r->model[MIMO_TAPE_DRAFT].model;
    const size_t H = target->config->hidden;
    mimo_tile_round *round = &r->told->round;
    *round = s->round;
    round->token = address(r->token);
    round->known = s->known;
    round->start = s->known - 1;
    round->done = round->over = round->failed = round->accepted = round->rounds = round->stopped = 0;
    round->looked_up = 0;
    round->sent = r->read;
    round->context_begin = s->context_begin;
    mimo_cuda_step *step = r->told->step;
    memset(step, 0, sizeof r->told->step);
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++) {
        step[0].kv[t] = s->kv[0];
        step[1].kv[t] = step[2].kv[t] = s->kv[1];
    }
    step[0].rows = 1;
    step[0].token[0] = s->token[s->known - 1];
    step[0].position[0] = s->known - 1;
    step[0].logits = address(target->spots.logits);
    step[0].logits_stride = target->spots.logits_stride;
    if (r->has_draft) {
        step[0].taps = draft->config->taps;
        memcpy(step[0].tap, draft->draft->tap, draft->config->taps * sizeof *step[0].tap);
        step[0].hidden = address(target->spots.hidden);
        step[1].features = address(target->spots.hidden);
        step[0].hidden_stride = step[1].features_stride = MIMO_TILE_TOKENS * H;
        step[2].logits = address(draft->spots.logits);
        step[2].logits_stride = draft->spots.logits_stride;
    }
    r->mail->stop = 0;
    mimo_cuda_queue_in(r->device, (mimo_cuda_ptr)(uintptr_t)m->round, round, sizeof *round);
    mimo_cuda_queue_in(r->device, (mimo_cuda_ptr)(uintptr_t)m->steps, step, sizeof r->told->step);
    mimo_cuda_queue_in(r->device, r->token, s->token, s->known * sizeof *s->token);
    mimo_cuda_wait(r->device); /* what was copied is written over by what comes back */
}

/* Rounds [step, end) of queues, and what the kernel says of who was lost. */
static void queue_rounds(mimo_resident *r, const mimo_queues *q, mimo_tile_machine *m, uint32_t step, uint32_t end)
{
    const mimo_shared *s = &q->shared;
    mimo_resident_layout layout =
        mimo_resident_layout_of(s->fixed_bytes, s->activation_bytes, s->ring_bytes, r->patience);
    uint64_t lost = r->lost;
    void *parameters[] = {m, &layout, &lost, &step, &end};
    mimo_cuda_queue_resident(r->device, q->sms, MIMO_RESIDENT_LOADERS + MIMO_RESIDENT_TEAM, parameters);
    mimo_cuda_queue_out(r->device, &r->told->lost, r->lost, sizeof r->told->lost);
}

void mimo_resident_launch(mimo_resident *r, mimo_resident_program program, uint32_t rounds)
{
    mimo_tile_machine *m = &r->machine[program];
    const uint32_t step = r->step[program], end = step + rounds;
    queue_rounds(r, &r->queues[program], m, step, end);
    mimo_cuda_queue_out(r->device, &r->told->counter, (mimo_cuda_ptr)(uintptr_t)(m->counter + m->last),
                        sizeof r->told->counter);
    if (decodes(program))
        mimo_cuda_queue_out(r->device, &r->told->round, (mimo_cuda_ptr)(uintptr_t)m->round, sizeof r->told->round);
    r->step[program] = end;
    r->running = program;
}

void mimo_resident_wait(mimo_resident *r)
{
    const mimo_resident_program program = r->running;
    mimo_cuda_wait(r->device);
    if (r->device->lost.code != MIMO_OK)
        return;
    if (decodes(program)) /* a text may end before its launch does */
        r->step[program] = r->told->counter / r->machine[program].last_count;
    if (r->told->lost.lost == 0)
        return;
    char text[256];
    mimo_queues_say(text, sizeof text, &r->queues[program], &r->told->lost);
    (void)MIMO_FAIL(&r->device->lost, MIMO_ERR_ENGINE, "the resident kernel: %s", text);
}

bool mimo_resident_read(mimo_resident *r, mimo_mail_token *out)
{
    const uint64_t word = __atomic_load_n(&r->mail->token[r->read % MIMO_MAIL_TOKENS], __ATOMIC_ACQUIRE);
    if (!mimo_mail_is(word, r->read))
        return false;
    *out = mimo_mail_read(word);
    r->read++;
    return true;
}

/* ---- a step that ends early ---- */

/* Queues of their own on the device, with counters that are zero. */
typedef struct short_queues {
    uint32_t *begin;      /* [sms + 1] */
    mimo_tile_task *task; /* as many as in the whole step */
    mimo_cuda_ptr memory;
} short_queues;

/* The tasks of operations [0, stop), which come first in every queue. Loaders hint at nothing that was left out. */
static void cut_queues(short_queues *cut, const mimo_queues *q, uint32_t stop)
{
    uint32_t kept = 0;
    for (uint32_t sm = 0; sm < q->sms; sm++) {
        cut->begin[sm] = kept;
        for (uint32_t i = q->begin[sm]; i < q->begin[sm + 1] && q->task[i].op < stop; i++)
            cut->task[kept++] = q->task[i];
        for (uint32_t i = cut->begin[sm]; i < kept; i++)
            cut->task[i].ahead = (uint16_t)mimo_min(cut->task[i].ahead, kept - 1 - i);
    }
    cut->begin[q->sms] = kept;
}

static mimo_status run_short(mimo_resident *r, uint32_t stop, short_queues *cut, mimo_error *err)
{
    const mimo_queues *q = &r->queues[MIMO_RESIDENT_STEP];
    const uint64_t counters = (q->counters + (uint64_t)q->joins) * sizeof(uint32_t),
                   begins = (q->sms + 1) * sizeof *cut->begin;
    MIMO_TRY(mimo_alloc_array(&cut->begin, (size_t)q->sms + 1, sizeof *cut->begin, "queues of SMs", err));
    MIMO_TRY(mimo_alloc_array(&cut->task, q->tasks, sizeof *cut->task, "tile tasks", err));
    cut_queues(cut, q, stop);
    mimo_carver carver = {0};
    const uint64_t counter = mimo_carve(&carver, 1, counters), begin = mimo_carve(&carver, 1, begins);
    const uint64_t task = mimo_carve(&carver, q->tasks, sizeof *cut->task);
    MIMO_TRY(mimo_cuda_alloc(r->device, &cut->memory, carver.used, "queues that end early", err));
    MIMO_TRY(clear(r, cut->memory + counter, counters, err));
    MIMO_TRY(mimo_cuda_write(r->device, cut->memory + begin, cut->begin, begins, err));
    MIMO_TRY(mimo_cuda_write(r->device, cut->memory + task, cut->task, cut->begin[q->sms] * sizeof *cut->task, err));
    mimo_tile_machine m = r->machine[MIMO_RESIDENT_STEP];
    m.counter = address(cut->memory + counter);
    m.begin = address(cut->memory + begin);
    m.task = address(cut->memory + task);
    queue_rounds(r, q, &m, 0, 1);
    r->running = MIMO_RESIDENT_STEP;
    mimo_resident_wait(r);
    return mimo_cuda_device_check(r->device, err);
}

mimo_status mimo_resident_run_until(mimo_resident *r, uint32_t stop, mimo_error *err)
{
    short_queues cut = {0};
    const mimo_status status = run_short(r, stop, &cut, err);
    mimo_cuda_release(r->device, &cut.memory);
    mimo_free(cut.task);
    mimo_free(cut.begin);
    return status;
}
