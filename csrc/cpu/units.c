/* Which worker has which octets of a matrix. */
#include "base/size.h"
#include "cpu/cpu.h"

size_t mimo_cpu_home(const mimo_cpu *cpu, size_t octets, size_t node)
{
    if (node >= mimo_pool_nodes(cpu->pool))
        return octets;
    return octets * mimo_pool_first(cpu->pool, node) / cpu->threads / MIMO_HOME_OCTETS * MIMO_HOME_OCTETS;
}

mimo_units mimo_units_share(const mimo_cpu *cpu, size_t octets, size_t size, size_t matrices)
{
    mimo_units units = {.nodes = mimo_pool_nodes(cpu->pool), .size = size, .matrices = matrices};
    for (size_t n = 0; n < units.nodes; n++) {
        units.home[n + 1] = mimo_cpu_home(cpu, octets, n + 1);
        units.count += matrices * mimo_ceil_div(units.home[n + 1] - units.home[n], size);
        units.first[n + 1] = units.count;
    }
    return units;
}

mimo_units mimo_units_of(const mimo_cpu *cpu, const mimo_panel *panel, size_t multiple)
{
    const size_t octets = mimo_panel_octets(panel);
    return mimo_units_share(cpu, octets, mimo_cpu_unit_octets(cpu, octets, multiple), 1);
}

mimo_piece mimo_units_at(const mimo_units *units, size_t unit)
{
    size_t n = 0;
    while (unit >= units->first[n + 1])
        n++;
    const size_t share = units->home[n + 1] - units->home[n], at = unit - units->first[n];
    /* One matrix needs no division, which would cost something some thousand times in a step. */
    const size_t blocks = units->matrices > 1 ? mimo_ceil_div(share, units->size) : 0;
    const size_t matrix = units->matrices > 1 ? at / blocks : 0, first = (at - matrix * blocks) * units->size;
    return (mimo_piece){matrix, units->home[n] + first, mimo_min(units->size, share - first)};
}

static size_t workers_of(const mimo_pool *pool, size_t node)
{
    return mimo_pool_first(pool, node + 1) - mimo_pool_first(pool, node);
}

size_t mimo_units_begin(const mimo_units *units, const mimo_worker *worker)
{
    const size_t node = worker->node;
    const size_t unit = units->first[node] + worker->index - mimo_pool_first(worker->pool, node);
    return unit < units->first[node + 1] ? unit : units->count;
}

/* The next unit that nobody has and that is no worker's first. */
static size_t take(mimo_claim *claim)
{
    const mimo_units *units = claim->units;
    for (; claim->passed < units->nodes; claim->passed++) {
        const size_t n = (claim->worker->node + claim->passed) % units->nodes;
        const size_t begin = units->first[n] + workers_of(claim->worker->pool, n);
        const size_t unit = begin + mimo_pool_take_of(claim->worker, n);
        if (unit < units->first[n + 1])
            return unit;
    }
    return units->count;
}

mimo_claim mimo_cpu_claim(const mimo_task *task, const mimo_units *units)
{
    mimo_claim claim = {.units = units, .worker = task->worker, .unit = mimo_units_begin(units, task->worker)};
    if (claim.unit == units->count)
        claim.unit = take(&claim);
    claim.next = take(&claim);
    return claim;
}

void mimo_cpu_claim_next(mimo_claim *claim)
{
    claim->unit = claim->next;
    claim->next = take(claim);
}
