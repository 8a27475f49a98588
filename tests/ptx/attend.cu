/* The resident path's attention (csrc/cuda/sm90/attend.h, tile/attend.h) alone, on keys and values that a test made. */
#include "cuda/sm90/attend.h"
#include "team.h"

enum { WARPS = 8, SCRATCH = 16384 };

/* What tests/cuda/test_ptx_attend.py says, by the same names. */
struct attend_case {
    uint32_t rows, heads, kv_heads, head_dim, v_head_dim, window, sliding, splits, task_heads, is_float, ring;
    uint32_t drafts, causal, window_from_anchor, anchor, context_begin;
    uint32_t position[MIMO_CUDA_ROWS];
    uint64_t rings[MIMO_CUDA_ROWS], chunks[MIMO_CUDA_ROWS], sinks, q, a, s; /* addresses; of sinks 0: none */
};

struct attend_memory {
    mimo_tile_machine m;
    mimo_cuda_step step;
    mimo_cuda_layer layer;
    mimo_cuda_drafter draft;
};

__device__ void fill_state(mimo_cuda_state &state, attend_memory &memory, const attend_case &c)
{
    const size_t element = c.is_float ? sizeof(float) : sizeof(uint16_t);
    state.layer = &memory.layer;
    state.draft = c.drafts ? &memory.draft : nullptr;
    state.step = &memory.step;
    state.work.q = reinterpret_cast<float *>(c.q);
    state.kv.is_float = c.is_float;
    state.kv.ring = c.ring;
    for (uint32_t kind = 0; kind < 2; kind++) {
        state.kv.value_offset[kind] = MIMO_CUDA_CHUNK * c.head_dim * element;
        state.kv.head_bytes[kind] = MIMO_CUDA_CHUNK * (c.head_dim + c.v_head_dim) * element;
        state.kv.chunk_bytes[kind] = c.kv_heads * state.kv.head_bytes[kind];
    }
}

__device__ void fill(attend_memory &memory, const attend_case &c)
{
    mimo_tile_machine &m = memory.m;
    m.s = reinterpret_cast<float *>(c.s);
    m.parts = MIMO_TILE_EXACT_PARTS;
    m.a.at = reinterpret_cast<uint16_t *>(c.a);
    m.a.stride = c.heads * c.v_head_dim;
    m.a.part = m.a.stride * MIMO_TILE_TOKENS;
    fill_state(c.drafts ? m.block : m.target, memory, c);
    memory.draft.causal[0] = memory.draft.causal[1] = c.causal;
    memory.draft.window_from_anchor = c.window_from_anchor;
    memory.layer.sliding = c.sliding;
    memory.layer.sinks = reinterpret_cast<const float *>(c.sinks);
    mimo_attention &a = memory.layer.attention;
    a.heads = c.heads;
    a.kv_heads = c.kv_heads;
    a.head_dim = c.head_dim;
    a.v_head_dim = c.v_head_dim;
    a.window = c.window;
    a.sinks = c.sinks != 0;
    mimo_cuda_step &step = memory.step;
    step.rows = c.rows;
    step.anchor = c.anchor;
    step.context_begin = c.context_begin;
    for (uint32_t t = 0; t < MIMO_CUDA_ROWS; t++) {
        step.position[t] = c.position[t];
        step.kv[t].ring = reinterpret_cast<uint8_t *>(c.rings[t]);
        step.kv[t].chunk = reinterpret_cast<uint8_t *const *>(c.chunks[t]);
    }
}

template <class Run> __device__ void with_machine(const attend_case *c, Run run)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ attend_memory memory;
    test_fill(memory, c);
    mimo_mma_team team = test_team<mimo_mma_team>(shared);
    team.activations = shared + SCRATCH;
    team.activation_bytes = 4 * 8 * WARPS * (c->v_head_dim + 3);
    team.sums = mimo_cuda_own_scratch(team);
    mimo_tile_task task = {};
    task.tape = c->drafts ? MIMO_TAPE_DRAFT : MIMO_TAPE_TARGET;
    task.op_code = MIMO_OP_ATTENTION;
    task.splits = (uint16_t)c->splits;
    run(team, memory.m, task);
}

/* A CTA each `task_heads` heads of each split. */
extern "C" __global__ void __launch_bounds__(32 * WARPS) attend(const attend_case *c)
{
    with_machine(c, [&](const mimo_mma_team &team, const mimo_tile_machine &m, mimo_tile_task &task) {
        const uint32_t groups = c->heads / c->task_heads;
        task.split = (uint16_t)(blockIdx.x / groups);
        task.first = blockIdx.x % groups * c->task_heads;
        task.count = c->task_heads;
        mimo_tile_attend(team, m, task);
    });
}

/* A CTA a row. */
extern "C" __global__ void __launch_bounds__(32 * WARPS) merge(const attend_case *c)
{
    with_machine(c, [&](const mimo_mma_team &team, const mimo_tile_machine &m, mimo_tile_task &task) {
        task.split = (uint16_t)blockIdx.x;
        task.count = c->heads;
        mimo_tile_merge(team, m, task);
    });
}
