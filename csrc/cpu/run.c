/* The interpreter of the tape: every worker walks the same operations and meets the others after each. */
#include "base/alloc.h"
#include "base/clock.h"
#include "base/size.h"
#include "cpu/cpu.h"
#include "cpu/profile.h"

typedef struct op_end {
    mimo_cpu *cpu;
    const mimo_op *op;
} op_end;

static bool is_route_known(const mimo_cpu *cpu, const mimo_op *op)
{
    return op->code == MIMO_OP_ROUTE && cpu->layer[op->layer].routes_alike;
}

/* Run by the last worker that is done with an operation, before any goes on. */
static void end_op(void *context)
{
    const op_end *end = context;
    const mimo_op *next = end->op + 1;
    if (end->op->code == MIMO_OP_ROUTE)
        mimo_cpu_route_end(end->cpu, end->op);
    else if (end->op->code == MIMO_OP_OUT_PROJ && is_route_known(end->cpu, next))
        mimo_cpu_route_end(end->cpu, next);
    if (end->cpu->profiling)
        mimo_profile_count(end->cpu, end->op);
}

static void run_op(const mimo_task *task)
{
    switch ((mimo_op_code)task->op->code) {
    case MIMO_OP_EMBED:
        mimo_cpu_embed(task);
        break;
    case MIMO_OP_DRAFT_FUSE:
        mimo_cpu_draft_fuse(task);
        break;
    case MIMO_OP_DRAFT_CONTEXT:
        mimo_cpu_draft_context(task);
        break;
    case MIMO_OP_DRAFT_EMBED:
        mimo_cpu_draft_embed(task);
        break;
    case MIMO_OP_QKV:
        mimo_cpu_qkv(task);
        break;
    case MIMO_OP_ATTENTION:
        mimo_cpu_attention(task);
        break;
    case MIMO_OP_OUT_PROJ:
        mimo_cpu_out_proj(task);
        break;
    case MIMO_OP_ROUTE:
        mimo_cpu_route(task);
        break;
    case MIMO_OP_EXPERT_UP:
        mimo_cpu_expert_up(task);
        break;
    case MIMO_OP_EXPERT_DOWN:
        mimo_cpu_expert_down(task);
        break;
    case MIMO_OP_DENSE_UP:
        mimo_cpu_dense_up(task);
        break;
    case MIMO_OP_DENSE_DOWN:
        mimo_cpu_dense_down(task);
        break;
    case MIMO_OP_HEAD:
        mimo_cpu_head(task);
        break;
    case MIMO_OP_COUNT:
        break;
    }
}

typedef struct tape {
    mimo_cpu *cpu;
    uint32_t first, end;
} tape;

static void run_tape(void *context, mimo_worker *worker)
{
    const tape *t = context;
    mimo_cpu *cpu = t->cpu;
    mimo_alloc_freeze(true);
    for (uint32_t i = t->first; i < t->end; i++) {
        const mimo_op *op = &cpu->plan.op[i];
        const mimo_task task = {.cpu = cpu, .op = op, .worker = worker, .scratch = &cpu->scratch[worker->index]};
        op_end end = {cpu, op};
        const bool meet = !is_route_known(cpu, op);
        if (!cpu->profiling) {
            run_op(&task);
            if (meet)
                mimo_pool_barrier(worker, end_op, &end);
            continue;
        }
        const uint64_t begin = mimo_clock_ns();
        run_op(&task);
        const uint64_t done = mimo_clock_ns();
        if (meet)
            mimo_pool_barrier(worker, end_op, &end);
        mimo_profile_op(cpu, op, worker->index, begin, done, mimo_clock_ns());
    }
    mimo_alloc_freeze(false);
}

void mimo_cpu_run(mimo_cpu *cpu, const mimo_step *step, uint32_t first, uint32_t end)
{
    tape t = {cpu, first, end};
    cpu->step = step;
    mimo_pool_run(cpu->pool, run_tape, &t);
    cpu->step = NULL;
}

void mimo_cpu_step(mimo_backend *self, const mimo_step *step)
{
    mimo_cpu *cpu = (mimo_cpu *)self;
    for (size_t t = 0; t < step->rows; t++) {
        step->kv[t]->written = mimo_max(step->kv[t]->written, step->position[t] + (size_t)1);
        if (cpu->draft != NULL) /* what was drafted from here on was another text's */
            mimo_span_cut(&step->kv[t]->draft->span, step->kv[t]->draft->layout->ring, step->position[t]);
    }
    mimo_cpu_run(cpu, step, 0, cpu->plan.count);
    if (cpu->profiling) {
        cpu->profile[0].steps++;
        cpu->profile[0].rows += step->rows;
    }
}
