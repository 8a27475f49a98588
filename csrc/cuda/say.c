/* What a queue is about, in words. */
#include <stdio.h>

#include "cuda/lower.h"

static const char *const kind_name[MIMO_TILE_KINDS + 1] = {
#define MIMO_TILE(kind, text, ...) text,
#include "cuda/tiles.def"
#undef MIMO_TILE
    "nothing", /* a task that a test has taken out (trace.h) */
};

/* A task that adds to the counter. */
static const mimo_tile_task *task_of(const mimo_queues *q, uint32_t counter)
{
    for (uint32_t i = 0; i < q->tasks; i++)
        if (q->task[i].signal == counter)
            return &q->task[i];
    return NULL;
}

static int say_stage(char *text, size_t size, const mimo_queues *q, uint32_t counter)
{
    const mimo_tile_task *task = task_of(q, counter);
    if (task == NULL)
        return snprintf(text, size, "stage %u", counter);
    const int length =
        snprintf(text, size, "stage %u (%s of %s%s", counter, kind_name[task->kind],
                 task->tape == MIMO_TAPE_DRAFT ? "the drafter's " : "", mimo_op_infos[task->op_code].name);
    if (length < 0 || (size_t)length >= size)
        return length;
    return length + (task->layer == MIMO_NO_LAYER
                         ? snprintf(text + length, size - (size_t)length, ")")
                         : snprintf(text + length, size - (size_t)length, ", layer %u)", task->layer));
}

void mimo_queues_say(char *text, size_t size, const mimo_queues *queues, const mimo_mail_lost *lost)
{
    const char *role = lost->role == MIMO_ROLE_LOADER ? "loader" : "compute role";
    if (lost->counter == MIMO_NO_COUNTER) {
        snprintf(text, size, "%s of CTA %u waited too long: %s page %u since its launch", role, lost->cta,
                 lost->role == MIMO_ROLE_LOADER ? "the ring has no room for" : "nothing was copied of", lost->seen);
        return;
    }
    char stage[96];
    (void)say_stage(stage, sizeof stage, queues, lost->counter);
    snprintf(text, size, "%s of CTA %u waited too long in round %u: %s has %u of %u signals", role, lost->cta,
             lost->step, stage, lost->seen, lost->wanted);
}
