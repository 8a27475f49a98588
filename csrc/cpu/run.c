/* The interpreter of the tape: every worker walks the same operations and meets the others after each. */
#include "base/alloc.h"
#include "cpu/cpu.h"

typedef struct run_tail {
    mimo_cpu *cpu;
    const mimo_op *op;
} run_tail;

static void end_route(void *context)
{
    const run_tail *tail = context;
    mimo_cpu_route_end(tail->cpu, tail->op);
}

static void run_op(const mimo_task *task)
{
    switch ((mimo_op_code)task->op->code) {
    case MIMO_OP_EMBED:
        mimo_cpu_embed(task);
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

static void run_tape(void *context, mimo_worker *worker)
{
    mimo_cpu *cpu = context;
    mimo_alloc_freeze(true);
    for (uint32_t i = 0; i < cpu->plan.count; i++) {
        const mimo_op *op = &cpu->plan.op[i];
        const mimo_task task = {.cpu = cpu, .op = op, .worker = worker, .scratch = &cpu->scratch[worker->index]};
        run_op(&task);
        if (op->code == MIMO_OP_ROUTE) {
            run_tail tail = {cpu, op};
            mimo_pool_barrier(worker, end_route, &tail);
        } else {
            mimo_pool_barrier(worker, NULL, NULL);
        }
    }
    mimo_alloc_freeze(false);
}

void mimo_cpu_step(mimo_backend *self, const mimo_step *step)
{
    mimo_cpu *cpu = (mimo_cpu *)self;
    cpu->step = step;
    mimo_pool_run(cpu->pool, run_tape, cpu);
    cpu->step = NULL;
}
