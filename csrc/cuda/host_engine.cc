/* CTAs of the resident engine as threads of the host. */
#include <pthread.h>
#include <sched.h>

#include "base/clock.h"
#include "cuda/engine.h"
#include "cuda/host_ctas.h"
#include "cuda/ring.h"

namespace
{

enum { SPINS = 64, STRETCHES = 16 };

uint32_t load(const uint32_t *from)
{
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

/* Until f() is true; false: something is lost, or this takes so long that it is: then say() says so. A long stretch
 * between two looks, in which nobody may have run, counts as a short one; still longer than a thread waits for its
 * processor beside others, or who had to would seem to have waited less. */
template <class F, class Say> bool spin(const mimo_host_ctas *all, uint32_t role, F f, Say say)
{
    const uint64_t most = all->patience / STRETCHES;
    uint64_t last = mimo_clock_ns(), waited = 0;
    for (uint32_t i = 1; !f(); i++) {
        if (load(&all->lost->lost))
            return false;
        if (i % SPINS != 0)
            continue;
        sched_yield();
        const uint64_t now = mimo_clock_ns(), stretch = now - last;
        waited += stretch < most ? stretch : most;
        last = now;
        if (waited <= (role == MIMO_ROLE_LOADER ? MIMO_LOADER_PATIENCE : 1) * all->patience)
            continue;
        uint32_t none = 0;
        if (__atomic_compare_exchange_n(&all->lost->lost, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            say(all->lost);
        return false;
    }
    return true;
}

/* The ring of one CTA: pages copied, and given back, since it began. */
struct ring_type {
    const mimo_host_ctas *all;
    uint8_t *memory;
    uint32_t cta, copied, given;
    uint32_t copied_end, given_end; /* where the last of each ends */
    uint32_t begin[MIMO_RING_MOST]; /* of pages, by their numbers: the loader's */

    const uint8_t *take(uint32_t bytes)
    {
        spin(
            all, MIMO_ROLE_COMPUTE, [&] { return load(&copied) != given; },
            [&](mimo_mail_lost *lost) { mimo_mail_say(lost, cta, MIMO_ROLE_COMPUTE, MIMO_NO_COUNTER, 0, given, 0); });
        return memory + mimo_ring_place(given_end, bytes, all->ring_bytes);
    }
    void give(uint32_t bytes)
    {
        given_end = mimo_ring_place(given_end, bytes, all->ring_bytes) + bytes;
        __atomic_store_n(&given, given + 1, __ATOMIC_RELEASE);
    }
    bool has_room(uint32_t bytes) const
    {
        const uint32_t back = load(&given), held = copied - back;
        return held == 0 || (held < MIMO_RING_MOST &&
                             mimo_ring_has_room(begin[back % MIMO_RING_MOST], copied_end, bytes, all->ring_bytes));
    }
    bool copy(const uint8_t *from, uint32_t bytes)
    {
        if (!spin(
                all, MIMO_ROLE_LOADER, [&] { return has_room(bytes); },
                [&](mimo_mail_lost *lost) {
                    mimo_mail_say(lost, cta, MIMO_ROLE_LOADER, MIMO_NO_COUNTER, 0, copied, 0);
                }))
            return false;
        const uint32_t at = mimo_ring_place(copied_end, bytes, all->ring_bytes);
        begin[copied % MIMO_RING_MOST] = at;
        copied_end = at + bytes;
        memcpy(memory + at, from, bytes);
        __atomic_store_n(&copied, copied + 1, __ATOMIC_RELEASE);
        return true;
    }
};

/* Both roles of one CTA. */
struct cta_type {
    const mimo_host_ctas *all = nullptr;
    uint32_t index = 0, step = 0, end = 0;
    mimo_host_team own = {};
    ring_type pages = {};
    pthread_t thread[2];
    bool started[2] = {false, false};
};

/* One role of it, as the loop wants it. */
struct role_type {
    cta_type &cta;
    uint32_t role = 0;

    uint32_t number() const
    {
        return cta.index;
    }
    bool wait(uint32_t counter, uint32_t at, uint32_t back, uint32_t count)
    {
        const uint32_t *value = &cta.all->machine->counter[counter];
        return spin(
            cta.all, role, [&] { return mimo_task_is_ready(load(value), at, back, count) != 0; },
            [&](mimo_mail_lost *lost) {
                mimo_mail_say(lost, cta.index, role, counter, at, load(value) - (at - back) * count, count);
            });
    }
    void signal(uint32_t counter, uint32_t count)
    {
        __atomic_fetch_add(&cta.all->machine->counter[counter], count, __ATOMIC_RELEASE);
    }
    uint32_t arrive(uint32_t first, uint32_t count, uint32_t at)
    {
        const mimo_tile_machine &m = *cta.all->machine;
        uint32_t ready = 0;
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t arrivals = m.join[first + i].wait_count;
            const uint32_t before = __atomic_fetch_add(&m.counter[m.counters + first + i], 1, __ATOMIC_ACQ_REL);
            ready |= (uint32_t)(before + 1 == (at + 1) * arrivals) << i;
        }
        return ready;
    }
    bool copy(const uint8_t *from, uint32_t bytes)
    {
        return cta.pages.copy(from, bytes);
    }
    void hint(const uint8_t *, uint32_t)
    {
    }
    const mimo_host_team &team() const
    {
        return cta.own;
    }
    void stamp(mimo_stamp &to, bool ends) const
    {
        (ends ? to.end : to.begin) = mimo_clock_ns();
        to.sm = cta.index;
    }
    ring_type &ring()
    {
        return cta.pages;
    }
};

void *run_loader(void *context)
{
    cta_type *cta = static_cast<cta_type *>(context);
    role_type role = {*cta, MIMO_ROLE_LOADER};
    mimo_engine_load(role, *cta->all->machine, cta->step, cta->end);
    return nullptr;
}

void *run_compute(void *context)
{
    cta_type *cta = static_cast<cta_type *>(context);
    role_type role = {*cta, MIMO_ROLE_COMPUTE};
    mimo_engine_compute(role, *cta->all->machine, cta->step, cta->end);
    return nullptr;
}

} // namespace

mimo_tile_match mimo_host_look_up(const uint32_t *text, uint32_t count, float *scratch)
{
    const mimo_host_team team = {scratch};
    return mimo_tile_look_up(team, text, count);
}

void mimo_host_ctas_run(const mimo_host_ctas *all, uint32_t step, uint32_t end)
{
    static void *(*const roles[2])(void *) = {run_loader, run_compute};
    cta_type cta[MIMO_HOST_MOST_CTAS];
    for (uint32_t i = 0; i < all->ctas; i++) {
        cta[i].all = all;
        cta[i].index = i;
        cta[i].step = step;
        cta[i].end = end;
        cta[i].own = {all->scratch + i * all->scratch_floats};
        cta[i].pages = {all, all->ring + i * (size_t)all->ring_bytes, i, 0, 0, 0, 0, {}};
    }
    for (uint32_t i = 0; i < all->ctas; i++)
        for (uint32_t role = 0; role < 2; role++) {
            cta[i].started[role] = pthread_create(&cta[i].thread[role], nullptr, roles[role], &cta[i]) == 0;
            if (!cta[i].started[role])
                __atomic_store_n(&all->lost->lost, 1, __ATOMIC_RELEASE);
        }
    for (uint32_t i = 0; i < all->ctas; i++)
        for (uint32_t role = 0; role < 2; role++)
            if (cta[i].started[role])
                pthread_join(cta[i].thread[role], nullptr);
}
