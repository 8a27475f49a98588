/* The loop of a resident CTA, in its two roles: the loader copies the pages that the tasks of its queue read into a
 * ring in shared memory, the compute role runs the tasks. Each role is threads of its own and ends when its rounds are
 * over, when the text is, or when something is lost.
 *
 * A Cta has
 * - number(): which queue is its own
 * - wait(counter, step, back, count): until the counter has all signals (task.h); false: the machine is lost
 * - signal(counter, count): adds, after all that the team wrote
 * - arrive(first, count, step): at joins (at most 32), after all that the team wrote: a bit for each whose last arrival
 *   of the step it was; all that those before wrote is seen
 * - copy(from, bytes): the next page into the ring, when there is room; false: lost
 * - hint(from, bytes): will be copied soon
 * - team(): the threads that compute
 * - stamp(to, ends): notes where the team is, and when, in nanoseconds: it begins, or ends
 * - ring(): its take(bytes) is the next page, all of it there; after give(bytes) it may be overwritten */
#ifndef MIMO_CUDA_ENGINE_H
#define MIMO_CUDA_ENGINE_H

#include "cuda/tile/attend.h"
#include "cuda/tile/choose.h"
#include "cuda/tile/rows.h"

/* f(address) for the pages of a task, in order, while it is true; the routes of an expert task must be known. */
template <class F> MIMO_BODY inline bool mimo_engine_pages(const mimo_tile_machine &m, const mimo_tile_task &task, F f)
{
    const uint8_t *base = m.pages[task.tape][task.op];
    const mimo_moe &moe = *m.moe;
    const auto run = [&](uint32_t page) {
        for (uint32_t i = 0; i < task.pages; i++)
            if (!f(base + (size_t)(page + i) * task.page_bytes))
                return false;
        return true;
    };
    if (task.kind == MIMO_TILE_EXPERT_UP) {
        const uint32_t tiles = task.expert_pages / task.tile_pages;
        for (uint32_t n = task.first; n < moe.experts * tiles; n += task.count) {
            const mimo_moe_unit unit = mimo_moe_unit_at(n, tiles);
            if (!run(moe.expert[unit.index] * task.expert_pages + unit.tile * task.tile_pages))
                return false;
        }
        return true;
    }
    if (task.kind != MIMO_TILE_EXPERT_DOWN)
        return run(task.page);
    for (uint32_t i = 0; i < moe.experts; i++)
        if (moe.expert[i] % task.splits == task.split && !run(moe.expert[i] * task.expert_pages + task.page))
            return false;
    return true;
}

/* Whether round `step` begins: the one before is over and has left something to do. */
template <class Cta> MIMO_BODY inline bool mimo_engine_begins(Cta &cta, const mimo_tile_machine &m, uint32_t step)
{
    return cta.wait(m.last, step, 1, m.last_count) && !*(volatile const uint32_t *)&m.round->over;
}

/* Weights of the next tasks that do not depend on the router. */
template <class Cta>
MIMO_BODY inline void mimo_engine_hint(Cta &cta, const mimo_tile_machine &m, const mimo_tile_task *task)
{
    for (uint32_t i = 1; i <= task->ahead; i++)
        if (task[i].load_wait == MIMO_NO_COUNTER && task[i].pages > 0)
            cta.hint(m.pages[task[i].tape][task[i].op] + (size_t)task[i].page * task[i].page_bytes,
                     task[i].pages * task[i].page_bytes);
}

/* Rounds [step, end), counted since the counters were zero. */
template <class Cta>
MIMO_BODY_HERE void mimo_engine_load(Cta &cta, const mimo_tile_machine &m, uint32_t step, uint32_t end)
{
    for (; step < end && mimo_engine_begins(cta, m, step); step++)
        for (uint32_t i = m.begin[cta.number()]; i < m.begin[cta.number() + 1]; i++) {
            const mimo_tile_task &task = m.task[i];
            if (task.tile_pages == 0)
                continue;
            if (task.load_wait != MIMO_NO_COUNTER) {
                mimo_engine_hint(cta, m, &task);
                if (!cta.wait(task.load_wait, step, 0, task.load_wait_count))
                    return;
            }
            if (!mimo_engine_pages(m, task, [&](const uint8_t *page) { return cta.copy(page, task.page_bytes); }))
                return;
        }
}

/* The number of the lowest bit that is set: ones of those below it. */
MIMO_BODY inline uint32_t mimo_engine_lowest(uint32_t bits)
{
    return mimo_cuda_ones(~bits & (bits - 1));
}

template <class Team, class Ring>
MIMO_BODY_HERE void mimo_engine_run(const Team &team, Ring &ring, const mimo_tile_machine &m,
                                    const mimo_tile_task &task)
{
    switch ((mimo_tile_kind)task.kind) {
    case MIMO_TILE_EMBED:
        return mimo_tile_embed(team, m, task);
    case MIMO_TILE_PROJECT:
    case MIMO_TILE_EXPERT_UP:
    case MIMO_TILE_EXPERT_DOWN:
    case MIMO_TILE_DENSE_UP:
        return mimo_tile_multiply(team, m, task, ring);
    case MIMO_TILE_ATTEND:
        return mimo_tile_attend(team, m, task);
    case MIMO_TILE_MERGE:
        return mimo_tile_merge(team, m, task);
    case MIMO_TILE_DRAFT_BIAS:
        return mimo_tile_draft_bias(team, m, task);
    case MIMO_TILE_SCAN:
        return mimo_tile_scan(team, m, task);
    case MIMO_TILE_COLLECT:
        return mimo_tile_collect(team, m, task);
    case MIMO_TILE_CUT:
        return mimo_tile_cut_row(team, m, task);
    case MIMO_TILE_SAMPLE:
        return mimo_tile_sample(team, m, task);
    default:
        return;
    }
}

template <class Team>
MIMO_BODY_HERE void mimo_engine_run_join(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &join)
{
    switch ((mimo_tile_kind)join.kind) {
    case MIMO_TILE_REDUCE:
        return mimo_tile_reduce(team, m, join);
    case MIMO_TILE_HEADS:
        return mimo_tile_heads(team, m, join);
    case MIMO_TILE_CHOOSE:
        return mimo_tile_choose(team, m, join);
    case MIMO_TILE_PICK:
        return mimo_tile_pick(team, m, join);
    case MIMO_TILE_ACCEPT:
        return mimo_tile_accept(team, m, join);
    case MIMO_TILE_PROPOSE:
        return mimo_tile_propose(team, m, join);
    default:
        return;
    }
}

/* Arrives at a task's joins and runs those that it was the last at; how many. */
template <class Cta>
MIMO_BODY_HERE uint32_t mimo_engine_joins(Cta &cta, const mimo_tile_machine &m, const mimo_tile_task &task,
                                          uint32_t step)
{
    uint32_t ran = 0;
    for (uint32_t arrived = 0; arrived < task.joins; arrived += MIMO_LANES) {
        const uint32_t first = task.join + arrived, left = task.joins - arrived, most = MIMO_LANES;
        uint32_t ready = cta.arrive(first, left < most ? left : most, step);
        for (; ready != 0; ready &= ready - 1) {
            const uint32_t j = first + mimo_engine_lowest(ready);
            if (m.stamps != nullptr)
                cta.stamp(m.stamps[m.tasks + j], false);
            mimo_engine_run_join(cta.team(), m, m.join[j]);
            if (m.stamps != nullptr)
                cta.stamp(m.stamps[m.tasks + j], true);
            ran++;
        }
    }
    return ran;
}

template <class Cta>
MIMO_BODY_HERE void mimo_engine_compute(Cta &cta, const mimo_tile_machine &m, uint32_t step, uint32_t end)
{
    for (; step < end && mimo_engine_begins(cta, m, step); step++)
        for (uint32_t i = m.begin[cta.number()]; i < m.begin[cta.number() + 1]; i++) {
            const mimo_tile_task &task = m.task[i];
            if (task.wait != MIMO_NO_COUNTER && !cta.wait(task.wait, step, task.wait_back, task.wait_count))
                return;
            if (m.stamps != nullptr)
                cta.stamp(m.stamps[i], false);
            mimo_engine_run(cta.team(), cta.ring(), m, task);
            if (m.stamps != nullptr)
                cta.stamp(m.stamps[i], true);
            const uint32_t signals = task.joins == 0 ? 1 : mimo_engine_joins(cta, m, task, step);
            if (signals > 0)
                cta.signal(task.signal, signals);
        }
}

#endif
