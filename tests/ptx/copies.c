/* Copies to shared memory, and the barriers that count what has arrived. */
#include <stdlib.h>

#include "inside.h"

static mbarrier_type *mbarrier_at(waiter *w, uint64_t at)
{
    for (uint32_t i = 0; i < w->cta->mbarriers; i++)
        if (w->cta->mbarrier[i].at == at)
            return &w->cta->mbarrier[i];
    ptx_fail(w, "no barrier was made at %#llx", (unsigned long long)at);
}

void ptx_mbarrier_init(ptx_thread *t, uint64_t at, uint32_t count)
{
    waiter *w = t->waiter;
    (void)ptx_touch_shared(w, &w->actor, at, 8, PTX_WRITE, false, true);
    if (at % 8 != 0 || count == 0 || count >= 1u << 20 || w->cta->mbarriers == MBARRIERS)
        ptx_fail(w, "a barrier at %#llx for %u: expected an address of 8, a count from 1 on, %d barriers at most",
                 (unsigned long long)at, count, MBARRIERS);
    if (w->cta->barriers_end < at + 8)
        w->cta->barriers_end = at + 8;
    w->cta->mbarrier[w->cta->mbarriers++] = (mbarrier_type){.at = at, .count = count, .pending = count};
}

static void settle(mbarrier_type *b)
{
    if (b->pending > 0 || b->bytes != 0)
        return;
    b->phase++;
    b->pending = b->count;
    if (ptx_m.races)
        race_pass(&b->before, &b->now);
    ptx_m.quiet = 0;
}

void ptx_mbarrier_arrive(ptx_thread *t, uint64_t at, uint32_t expected_bytes)
{
    waiter *w = t->waiter;
    mbarrier_type *b = mbarrier_at(w, at);
    if (b->pending == 0)
        ptx_fail(w, "arrives at the barrier at %#llx, which %u have arrived at already", (unsigned long long)at,
                 b->count);
    if (ptx_m.races)
        race_release(&b->now, &w->actor);
    b->bytes += expected_bytes;
    b->pending--;
    settle(b);
}

uint32_t ptx_mbarrier_try_wait(ptx_thread *t, uint64_t at, uint32_t parity)
{
    waiter *w = t->waiter;
    if (parity > 1)
        ptx_fail(w, "waits for parity %u", parity);
    if ((mbarrier_at(w, at)->phase & 1) == parity)
        ptx_pause(t);
    mbarrier_type *b = mbarrier_at(w, at);
    const bool passed = (b->phase & 1) != parity;
    if (passed && ptx_m.races)
        race_acquire(&w->actor, &b->before);
    return passed;
}

void ptx_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes)
{
    waiter *w = t->waiter;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || to % bytes != 0 || from % bytes != 0)
        ptx_fail(w, "copies %u bytes from %#llx to %#llx: expected 4, 8 or 16, at multiples", bytes,
                 (unsigned long long)from, (unsigned long long)to);
    const uint8_t *source = ptx_touch_global(w, &w->actor, from, bytes, PTX_READ, false);
    uint8_t *target = ptx_touch_shared(w, &w->actor, to, bytes, PTX_WRITE, false, false);
    memset(target, 0xff, bytes);
    if (w->copies == w->copy_room) {
        w->copy_room = 2 * w->copy_room + 16;
        w->copy = realloc(w->copy, w->copy_room * sizeof *w->copy);
        if (w->copy == NULL)
            abort();
    }
    w->copy[w->copies++] = (small_copy){target, source, bytes};
}

void ptx_copy_wait(ptx_thread *t)
{
    waiter *w = t->waiter;
    for (uint32_t i = 0; i < w->copies; i++)
        memcpy(w->copy[i].to, w->copy[i].from, w->copy[i].bytes);
    w->copies = 0;
}

void ptx_bulk_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes, uint64_t barrier)
{
    waiter *w = t->waiter;
    if (to % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 || bytes == 0)
        ptx_fail(w, "copies %u bytes from %#llx to %#llx: expected multiples of 16", bytes, (unsigned long long)from,
                 (unsigned long long)to);
    (void)mbarrier_at(w, barrier);
    if (ptx_m.copies == MOST_COPIES)
        ptx_fail(w, "more than %d copies are under way", MOST_COPIES);
    race_actor *actor = &ptx_m.copier[(size_t)(w->cta - ptx_m.cta) * COPIERS + w->cta->copies++ % COPIERS];
    if (ptx_m.races)
        race_actor_follow(actor, &w->actor);
    const uint8_t *source = ptx_touch_global(w, actor, from, bytes, PTX_READ, false);
    uint8_t *target = ptx_touch_shared(w, actor, to, bytes, PTX_WRITE, false, false);
    memset(target, 0xff, bytes);
    ptx_m.copy[ptx_m.copies++] = (copy_type){w->cta, target, source, to, from, barrier, bytes, t->line, actor};
    ptx_m.counts[1]++;
}

void ptx_bulk_prefetch(ptx_thread *t, uint64_t from, uint32_t bytes)
{
    waiter *w = t->waiter;
    if (from % 16 != 0 || bytes % 16 != 0)
        ptx_fail(w, "asks for %u bytes at %#llx: expected multiples of 16", bytes, (unsigned long long)from);
    if (bytes > 0 && !ptx_is_memory(from, bytes))
        ptx_fail(w, "asks for %u bytes at %#llx, where no memory is", bytes, (unsigned long long)from);
}

/* One of the copies under way arrives. */
void ptx_finish_copy(void)
{
    const uint32_t i = ptx_draw(ptx_m.copies);
    const copy_type copy = ptx_m.copy[i];
    ptx_m.copy[i] = ptx_m.copy[--ptx_m.copies];
    memcpy(copy.to, copy.from, copy.bytes);
    ptx_m.quiet = 0;
    for (uint32_t j = 0; j < copy.cta->mbarriers; j++)
        if (copy.cta->mbarrier[j].at == copy.mbarrier) {
            mbarrier_type *b = &copy.cta->mbarrier[j];
            if (ptx_m.races)
                race_release(&b->now, copy.actor);
            b->bytes -= copy.bytes;
            settle(b);
        }
}
