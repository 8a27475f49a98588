/* The resident path's choice of experts (csrc/cuda/tile/rows.h, op/choose.h) alone, from partial sums that a test made. */
#include "cuda/tile/rows.h"
#include "team.h"

enum { WARPS = 8 };

/* What tests/cuda/test_ptx_choose.py says, by the same names. */
struct choose_case {
    uint32_t rows, experts, top_k, splits, hidden, norm_topk;
    float routed_scale, norm_eps;
    uint64_t p, squares, bias, logits, moe; /* addresses */
};

struct choose_memory {
    mimo_tile_machine m;
    mimo_cuda_step step;
    mimo_cuda_layer layer;
    mimo_config config;
};

__device__ void fill(choose_memory &memory, const choose_case &c)
{
    mimo_tile_machine &m = memory.m;
    m.p = reinterpret_cast<float *>(c.p);
    m.squares = reinterpret_cast<float *>(c.squares);
    m.pieces = 1;
    m.moe = reinterpret_cast<mimo_moe *>(c.moe);
    m.target.config = &memory.config;
    m.target.layer = &memory.layer;
    m.target.step = &memory.step;
    m.target.work.router_logits = reinterpret_cast<float *>(c.logits);
    memory.layer.router_bias = reinterpret_cast<const float *>(c.bias);
    memory.config.hidden = c.hidden;
    memory.config.experts = c.experts;
    memory.config.top_k = c.top_k;
    memory.config.norm_topk = c.norm_topk;
    memory.config.routed_scale = c.routed_scale;
    memory.config.norm_eps = c.norm_eps;
    memory.step.rows = c.rows;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) choose(const choose_case *c)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ choose_memory memory;
    test_fill(memory, c);
    const mimo_cta_team team = test_team<mimo_cta_team>(shared);
    mimo_tile_task join = {};
    join.splits = (uint16_t)c->splits;
    mimo_tile_choose(team, memory.m, join);
}
