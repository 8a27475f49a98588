#include "cuda/deal.h"

#include "base/size.h"

mimo_tile_task mimo_deal_begin_join(const mimo_deal *d, mimo_tile_kind kind, uint32_t splits)
{
    mimo_tile_task join = d->common;
    join.kind = (uint8_t)kind;
    join.splits = (uint16_t)splits;
    join.wait = join.load_wait = MIMO_NO_COUNTER;
    join.signal = (uint16_t)d->stage;
    return join;
}

void mimo_deal_join(mimo_deal *d, const mimo_tile_task *join)
{
    if (d->writes)
        d->q->join[d->joins] = *join;
    d->joins++;
}

/* Whether a task of the stage is a part of a join: of its rows of P, or of all from which tokens are chosen. */
static bool is_part(const mimo_tile_task *task, const mimo_tile_task *join)
{
    const bool heads = join->kind == MIMO_TILE_HEADS;
    const uint32_t first = heads ? join->k_first : join->first, count = heads ? join->k_count : join->count;
    if (!heads && join->kind != MIMO_TILE_REDUCE && join->kind != MIMO_TILE_CHOOSE)
        return true;
    return task->first < first + count && first < task->first + task->count;
}

/* The joins that a task is a part of, which are neighbours; they learn of it. */
static void set_joins(mimo_deal *d, mimo_tile_task *task)
{
    task->joins = 0;
    for (uint32_t j = d->join; j < d->joins; j++) {
        if (!is_part(task, &d->q->join[j]))
            continue;
        if (task->joins++ == 0)
            task->join = j;
        d->q->join[j].wait_count++;
    }
}

void mimo_deal_task(mimo_deal *d, uint32_t sm, const mimo_tile_task *task)
{
    const uint32_t at = d->filled[sm]++;
    d->stage_tasks++;
    if (!d->writes)
        return;
    mimo_tile_task *to = &d->q->task[d->q->begin[sm] + at];
    *to = *task;
    set_joins(d, to);
}

mimo_tile_task mimo_deal_begin(mimo_deal *d, mimo_tile_kind kind)
{
    mimo_tile_task task = d->common;
    const bool first = d->stage == 0;
    task.kind = (uint8_t)kind;
    task.signal = (uint16_t)d->stage;
    task.wait = (uint16_t)(first ? d->last : d->before);
    task.wait_count = first ? d->last_count : d->before_count;
    task.wait_back = first;
    task.load_wait = MIMO_NO_COUNTER;
    task.splits = 1;
    d->stage_tasks = 0;
    return task;
}

void mimo_deal_end(mimo_deal *d)
{
    d->before = d->stage++;
    d->before_count = d->joins > d->join ? d->joins - d->join : d->stage_tasks;
    d->join = d->joins;
}

uint32_t mimo_deal_next_sm(mimo_deal *d)
{
    const uint32_t sm = d->turn;
    d->turn = (d->turn + 1) % d->q->sms;
    return sm;
}

uint32_t mimo_deal_run(const mimo_deal *d, uint32_t sm, uint32_t count, uint32_t *first)
{
    const uint32_t sms = d->q->sms, place = (sm + sms - d->turn) % sms, odd = count % sms;
    *first = place * (count / sms) + (uint32_t)mimo_min(place, odd);
    return *first + count / sms + (place < odd);
}
