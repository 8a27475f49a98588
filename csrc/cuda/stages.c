#include "cuda/stages.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

static bool is_chosen(const mimo_tile_task *task)
{
    return task->kind == MIMO_TILE_EXPERT_UP || task->kind == MIMO_TILE_EXPERT_DOWN;
}

static void add_task(mimo_stage *stage, uint64_t *own, const mimo_queues *queues, const mimo_tile_task *task)
{
    stage->kind = task->kind;
    stage->join = task->joins > 0 ? queues->join[task->join].kind : MIMO_TILE_KINDS;
    stage->tape = task->tape;
    stage->op = task->op;
    stage->tasks++;
    if (is_chosen(task)) {
        stage->bytes = (uint64_t)queues->shape[task->tape][task->op].expert_pages * task->page_bytes;
        return;
    }
    const uint64_t bytes = (uint64_t)task->pages * task->page_bytes;
    stage->bytes += bytes;
    *own += bytes;
    stage->busiest = mimo_max(stage->busiest, *own);
}

mimo_status mimo_stages_of(mimo_stage *out, const mimo_queues *queues, mimo_error *err)
{
    uint64_t *own; /* of one SM */
    MIMO_TRY(mimo_alloc_array(&own, queues->counters, sizeof *own, "stages", err));
    memset(out, 0, queues->counters * sizeof *out);
    for (uint32_t sm = 0; sm < queues->sms; sm++) {
        memset(own, 0, queues->counters * sizeof *own);
        for (uint32_t i = queues->begin[sm]; i < queues->begin[sm + 1]; i++) {
            const uint16_t stage = queues->task[i].signal;
            add_task(&out[stage], &own[stage], queues, &queues->task[i]);
        }
    }
    mimo_free(own);
    return MIMO_OK;
}
