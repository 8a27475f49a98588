/* The resident path's choice of tokens (csrc/cuda/tile/filter.h, choose.h) alone, from logits that a test made. */
#include "cuda/tile/choose.h"
#include "team.h"

enum { WARPS = 8 };

/* What tests/cuda/test_ptx_filter.py says, by the same names. */
struct filter_case {
    uint32_t rows, vocab, span, top_k, stream, position;
    float temperature, top_p, min_p;
    uint32_t drafts; /* rows are a drafter's slots, of which 0 is none, and `ids` are the tokens of its logits */
    double z_least;
    uint64_t seed, logits, ids, maxima, sums, kept, kept_count, filter, best, picked; /* from logits on addresses */
};

struct filter_memory {
    mimo_tile_machine m;
    mimo_tile_round round;
    mimo_cuda_step step;
};

__device__ void fill(filter_memory &memory, const filter_case &c)
{
    mimo_tile_machine &m = memory.m;
    m.target.step = m.block.step = &memory.step;
    m.round = &memory.round;
    m.vocab = m.draft_vocab = m.ids = c.vocab;
    m.blocks = mimo_tile_blocks(c.vocab);
    m.drafted = reinterpret_cast<const uint32_t *>(c.ids);
    m.maxima = reinterpret_cast<float *>(c.maxima);
    m.sums = reinterpret_cast<float *>(c.sums);
    m.kept = reinterpret_cast<mimo_tile_kept *>(c.kept);
    m.kept_count = reinterpret_cast<uint32_t *>(c.kept_count);
    m.filter = reinterpret_cast<mimo_tile_filter *>(c.filter);
    m.best = reinterpret_cast<mimo_tile_best *>(c.best);
    m.picked = reinterpret_cast<uint32_t *>(c.picked);
    mimo_tile_round &r = memory.round;
    r.known = c.position;
    r.temperature = c.temperature;
    r.top_k = c.top_k;
    r.top_p = c.top_p;
    r.min_p = c.min_p;
    r.z_least = c.z_least;
    r.seed = c.seed;
    r.stream = c.stream;
    mimo_cuda_step &step = memory.step;
    step.rows = c.rows;
    step.anchor = c.position;
    step.logits = reinterpret_cast<float *>(c.logits);
    step.logits_stride = c.vocab;
    for (uint32_t t = 0; t < c.rows; t++)
        step.position[t] = c.position - 1 + t;
}

/* A task of all rows, or a join of some. */
template <class Run> __device__ void with_machine(const filter_case *c, Run run)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ filter_memory memory;
    test_fill(memory, c);
    const mimo_cta_team team = test_team<mimo_cta_team>(shared);
    mimo_tile_task task = {};
    task.tape = c->drafts ? MIMO_TAPE_DRAFT : MIMO_TAPE_TARGET;
    task.split = c->drafts ? 1 : 0;
    task.splits = (uint16_t)(c->rows - task.split);
    task.first = blockIdx.x * c->span;
    task.count = task.first + c->span < c->vocab ? c->span : c->vocab - task.first;
    run(team, memory.m, task);
}

#define KERNEL(name, body)                                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) name(const filter_case *c)                                \
    {                                                                                                                  \
        with_machine(c, [](const mimo_cta_team &team, const mimo_tile_machine &m, mimo_tile_task &task) { body; });    \
    }

/* A CTA a span of the vocabulary; of `cut` a CTA a row; of `pick` one. */
KERNEL(scan, mimo_tile_scan(team, m, task))
KERNEL(collect, mimo_tile_collect(team, m, task))
KERNEL(cut, task.split = (uint16_t)(task.split + blockIdx.x); mimo_tile_cut_row(team, m, task))
KERNEL(sample, mimo_tile_sample(team, m, task))
KERNEL(pick, mimo_tile_pick(team, m, task))
