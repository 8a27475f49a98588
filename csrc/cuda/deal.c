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

/* The rows of P that a join adds up: of all splits. */
static void join_rows(const mimo_tile_task *join, uint32_t *first, uint32_t *end)
{
    const bool heads = join->kind == MIMO_TILE_HEADS;
    *first = heads ? join->k_first : join->first;
    *end = *first + (heads ? join->k_count : join->count);
}

/* The joins that a task's rows are in, which are neighbours; they learn of it. */
static void set_joins(mimo_deal *d, mimo_tile_task *task)
{
    task->joins = 0;
    for (uint32_t j = d->join; j < d->joins; j++) {
        mimo_tile_task *join = &d->q->join[j];
        uint32_t first, end;
        join_rows(join, &first, &end);
        if (task->first >= end || first >= task->first + task->count)
            continue;
        if (task->joins++ == 0)
            task->join = j;
        join->wait_count++;
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

void mimo_deal_rows(mimo_deal *d, mimo_tile_kind kind, uint32_t row, uint32_t rows, uint32_t length, uint32_t span,
                    uint32_t splits)
{
    mimo_tile_task task = mimo_deal_begin(d, kind);
    task.splits = (uint16_t)splits;
    for (uint32_t t = row; t < row + rows; t++)
        for (uint32_t first = 0; first < length; first += span) {
            task.split = (uint16_t)t;
            task.first = first;
            task.count = (uint32_t)mimo_min(span, length - first);
            mimo_deal_task(d, mimo_deal_next_sm(d), &task);
        }
    mimo_deal_end(d);
}

void mimo_deal_one(mimo_deal *d, mimo_tile_kind kind, uint32_t splits)
{
    mimo_tile_task task = mimo_deal_begin(d, kind);
    task.splits = (uint16_t)splits;
    mimo_deal_task(d, mimo_deal_next_sm(d), &task);
    mimo_deal_end(d);
}
