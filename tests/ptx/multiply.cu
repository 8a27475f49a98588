/* Tiles of experts alone (csrc/cuda/sm90/mma.h): what they are, and how much a warp executes. */
#include "cuda/sm90/mma.h"
#include "team.h"

enum { WARPS = 8, SCRATCH = 16384, ACTIVATIONS = 98816 };

/* What tests/cuda/test_ptx_multiply.py and benchmarks/instructions.py say, by the same names. */
struct multiply_case {
    uint32_t rows, hidden, width, format, up, sms;
    uint32_t tile_rows, tile_pages, k_page, page_bytes, tiles, held, parts, spare; /* held: pages there are */
    uint64_t moe, n, u, p, squares, pages;                                         /* addresses */
};

struct multiply_memory {
    mimo_tile_machine m;
    mimo_cuda_step step;
    mimo_cuda_layer layer;
    mimo_cuda_matrix matrix;
    mimo_config config;
};

/* All pages are there from the beginning; after the last comes the first. */
struct ring_type {
    uint8_t *pages;
    uint32_t page_bytes, held, taken;

    __device__ const uint8_t *take(uint32_t) const
    {
        return pages + taken % held * page_bytes;
    }
    __device__ void give(uint32_t)
    {
        __syncwarp();
        taken++;
    }
};

__device__ mimo_tile_operand operand(uint64_t at, uint32_t stride, uint32_t rows)
{
    return {reinterpret_cast<uint16_t *>(at), stride, (size_t)rows * stride};
}

__device__ void fill(multiply_memory &memory, const multiply_case &c)
{
    mimo_tile_machine &m = memory.m;
    m.moe = reinterpret_cast<mimo_moe *>(c.moe);
    m.parts = c.parts;
    m.n = operand(c.n, c.hidden, MIMO_TILE_TOKENS);
    m.u = operand(c.u, c.width, MIMO_MOE_ENTRIES);
    m.p = reinterpret_cast<float *>(c.p);
    m.squares = reinterpret_cast<float *>(c.squares);
    m.pieces = 1;
    m.target.step = &memory.step;
    m.target.layer = &memory.layer;
    m.target.config = &memory.config;
    memory.config.hidden = c.hidden;
    memory.step.rows = c.rows;
    memory.layer.gate = memory.layer.up = memory.layer.down = &memory.matrix;
    memory.matrix.format = m.up_format[0] = c.format;
    memory.matrix.rows = c.up ? c.width : c.hidden;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) multiply(const multiply_case *c)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ multiply_memory memory;
    test_fill(memory, c);
    mimo_mma_team team = test_team<mimo_mma_team>(shared);
    team.activations = shared + SCRATCH;
    team.activation_bytes = ACTIVATIONS;
    team.sums = mimo_cuda_own_scratch(team);
    mimo_tile_task task = {};
    task.kind = c->up ? MIMO_TILE_EXPERT_UP : MIMO_TILE_EXPERT_DOWN;
    task.op_code = c->up ? MIMO_OP_EXPERT_UP : MIMO_OP_EXPERT_DOWN;
    task.splits = 1;
    task.tile_rows = (uint16_t)c->tile_rows;
    task.tile_pages = (uint16_t)c->tile_pages;
    task.pages = c->tile_pages;
    task.page_bytes = c->page_bytes;
    task.k_page = (uint16_t)c->k_page;
    task.expert_pages = c->tiles * c->tile_pages;
    task.count = c->up ? c->sms : c->tile_rows;
    task.k_count = c->up ? c->hidden : c->width;
    ring_type ring = {shared + SCRATCH + ACTIVATIONS, c->page_bytes, c->held, 0};
    for (uint32_t i = threadIdx.x; i < c->held * c->page_bytes / 4; i += blockDim.x)
        reinterpret_cast<uint32_t *>(ring.pages)[i] = reinterpret_cast<const uint32_t *>(c->pages)[i];
    __syncthreads();
    mimo_tile_multiply(team, memory.m, task, ring);
}
