/* CTAs of the resident engine as threads of the host. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>

#include "cuda/engine.h"
#include "cuda/host_machine.h"

namespace
{

enum { SPINS = 64 };

uint64_t milliseconds()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint32_t load(const uint32_t *from)
{
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

/* Until f() is true; false: the machine is lost, or it takes so long that it is. */
template <class F, class Why> bool spin(mimo_host_machine *host, F f, Why why)
{
    const uint64_t begin = milliseconds();
    for (uint32_t i = 1; !f(); i++) {
        if (load(&host->lost))
            return false;
        if (i % SPINS != 0)
            continue;
        sched_yield();
        if (milliseconds() - begin <= host->patience)
            continue;
        uint32_t none = 0;
        if (__atomic_compare_exchange_n(&host->lost, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            why(host->reason, sizeof host->reason);
        return false;
    }
    return true;
}

/* The ring of one CTA: pages copied and given back since it began. */
struct ring_type {
    mimo_host_machine *host;
    uint8_t *memory;
    uint32_t pages, copied, given, taken;

    const uint8_t *take()
    {
        spin(
            host, [&] { return load(&copied) != taken; },
            [&](char *text, size_t size) { snprintf(text, size, "compute role: no page %u in the ring", taken); });
        return memory + taken % pages * (size_t)MIMO_RING_PAGE;
    }
    void give()
    {
        taken++;
        __atomic_store_n(&given, taken, __ATOMIC_RELEASE);
    }
    bool copy(const uint8_t *from, uint32_t bytes)
    {
        if (!spin(
                host, [&] { return copied - load(&given) < pages; },
                [&](char *text, size_t size) { snprintf(text, size, "loader: no room for page %u", copied); }))
            return false;
        memcpy(memory + copied % pages * (size_t)MIMO_RING_PAGE, from, bytes);
        __atomic_store_n(&copied, copied + 1, __ATOMIC_RELEASE);
        return true;
    }
};

struct cta_type {
    mimo_host_machine *host = nullptr;
    uint32_t index = 0, step = 0, end = 0;
    mimo_host_team own = {};
    ring_type pages = {};
    pthread_t thread[2];
    uint32_t threads = 0;

    uint32_t number() const
    {
        return index;
    }
    bool wait(uint32_t counter, uint32_t at, uint32_t back, uint32_t count)
    {
        const uint32_t *value = &host->machine.counter[counter];
        return spin(
            host, [&] { return mimo_task_is_ready(load(value), at, back, count) != 0; },
            [&](char *text, size_t size) {
                snprintf(text, size, "CTA %u, round %u: counter %u is at %u, expected %u more of %u", index, at,
                         counter, load(value), (at + 1 - back) * count - load(value), count);
            });
    }
    void signal(uint32_t counter)
    {
        __atomic_fetch_add(&host->machine.counter[counter], 1, __ATOMIC_RELEASE);
    }
    bool copy(const uint8_t *from, uint32_t bytes)
    {
        return pages.copy(from, bytes);
    }
    void hint(const uint8_t *, uint32_t)
    {
    }
    const mimo_host_team &team() const
    {
        return own;
    }
    ring_type &ring()
    {
        return pages;
    }
};

void *run_loader(void *context)
{
    cta_type *cta = static_cast<cta_type *>(context);
    mimo_engine_load(*cta, cta->host->machine, cta->step, cta->end);
    return nullptr;
}

void *run_compute(void *context)
{
    cta_type *cta = static_cast<cta_type *>(context);
    mimo_engine_compute(*cta, cta->host->machine, cta->step, cta->end);
    return nullptr;
}

enum { MOST_CTAS = 64 };

} // namespace

void mimo_host_machine_run(mimo_host_machine *host, uint32_t rounds)
{
    static void *(*const roles[2])(void *) = {run_loader, run_compute};
    cta_type cta[MOST_CTAS];
    const uint32_t ctas = host->queues.sms < MOST_CTAS ? host->queues.sms : (uint32_t)MOST_CTAS;
    for (uint32_t i = 0; i < ctas; i++) {
        uint8_t *ring = host->ring + i * (size_t)host->queues.shared.ring_pages * MIMO_RING_PAGE;
        cta[i] = {host, i, host->step, host->step + rounds, {host->scratch + i * host->scratch_floats}, {}, {}, 0};
        cta[i].pages = {host, ring, host->queues.shared.ring_pages, 0, 0, 0};
    }
    for (uint32_t i = 0; i < ctas; i++)
        for (uint32_t role = 0; role < 2; role++)
            if (pthread_create(&cta[i].thread[role], nullptr, roles[role], &cta[i]) == 0)
                cta[i].threads++;
            else
                __atomic_store_n(&host->lost, 1, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < ctas; i++)
        for (uint32_t role = 0; role < cta[i].threads; role++)
            pthread_join(cta[i].thread[role], nullptr);
    host->step = host->machine.counter[host->machine.last] / host->machine.last_tasks;
}
