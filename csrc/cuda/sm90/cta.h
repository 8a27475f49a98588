/* A resident CTA on the device: counters in global memory, a ring of pages in shared memory that bulk copies fill
 * (sm_90 and later). What its members promise: engine.h. */
#ifndef MIMO_CUDA_SM90_CTA_H
#define MIMO_CUDA_SM90_CTA_H

#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/sm90/attend.h"

enum { MIMO_RESIDENT_BARRIER = 1 }; /* the named one at which the team meets */

MIMO_BODY inline uint32_t mimo_shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

/* Ticks of 1024 ns; they wrap. */
MIMO_BODY inline uint32_t mimo_resident_clock()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return (uint32_t)(now / MIMO_RESIDENT_TICK_NS);
}

MIMO_BODY inline uint32_t mimo_resident_read(const uint32_t *from)
{
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* One role of one CTA; each thread of the role has its own copy. */
struct mimo_resident_cta {
    const mimo_tile_machine &machine;
    const mimo_resident_layout &layout;
    mimo_mail_lost *lost;
    uint8_t *shared;
    mimo_mma_team threads;
    bool computes;
    uint32_t page, end;     /* of the ring: pages so far, and where the last of them ends */
    uint32_t freed, oldest; /* the loader's: pages known to be given back, and where the next of these begins */

    __device__ uint32_t number() const
    {
        return blockIdx.x;
    }
    /* Not known to be the same each time: what a task works out of its threads' numbers is not kept through others. */
    __device__ mimo_mma_team team() const
    {
        mimo_mma_team own = threads;
        asm volatile("" : "+r"(own.first));
        return own;
    }
    __device__ mimo_resident_cta &ring()
    {
        return *this;
    }

    /* f() until it is true; false: something is lost, or this takes so long that it is: then say() says so. By single
     * threads. A long stretch between two looks, in which the GPU may have been another's, counts as a short one. */
    template <class F, class Say> __device__ bool spin(F f, Say say) const
    {
        uint32_t last = mimo_resident_clock(), waited = 0;
        for (uint32_t i = 1; !f(); i++) {
            if (i % 256 != 0)
                continue;
            if (mimo_resident_read(&lost->lost) != 0)
                return false;
            const uint32_t now = mimo_resident_clock(), stretch = now - last;
            waited += stretch < layout.stretch ? stretch : layout.stretch;
            last = now;
            if (waited <= (computes ? 1 : MIMO_LOADER_PATIENCE) * layout.patience)
                continue;
            if (atomicCAS(&lost->lost, 0u, 1u) == 0u)
                say();
            return false;
        }
        return true;
    }

    __device__ bool wait(uint32_t counter, uint32_t step, uint32_t back, uint32_t count)
    {
        const uint32_t *value = &machine.counter[counter];
        const auto ready = [&] { return mimo_task_is_ready(mimo_resident_read(value), step, back, count) != 0; };
        const auto say = [&] {
            mimo_mail_say(lost, blockIdx.x, computes, counter, step, mimo_resident_read(value) - (step - back) * count,
                          count);
        };
        if (!computes)
            return spin(ready, say);
        return threads.all(threads.thread() != 0 || spin(ready, say));
    }

    __device__ void signal(uint32_t counter, uint32_t count)
    {
        threads.sync();
        if (threads.thread() == 0)
            asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(&machine.counter[counter]), "r"(count)
                         : "memory");
    }

    /* One arrival more at a join; whether it was the last of the step. A join of one arrival counts none. */
    __device__ bool arrive_at(uint32_t join, uint32_t step) const
    {
        const uint32_t arrivals = machine.join[join].wait_count;
        if (arrivals == 1)
            return true;
        uint32_t before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                     : "=r"(before)
                     : "l"(&machine.counter[machine.counters + join])
                     : "memory");
        return before + 1 == (step + 1) * arrivals;
    }

    __device__ uint32_t arrive(uint32_t first, uint32_t count, uint32_t step)
    {
        uint32_t *flag = reinterpret_cast<uint32_t *>(shared + MIMO_RESIDENT_FLAG);
        threads.sync();
        if (threads.warp() == 0) {
            const uint32_t i = threads.thread();
            const uint32_t ready = __ballot_sync(0xffffffffu, i < count && arrive_at(first + i, step));
            if (i == 0)
                *flag = ready;
        }
        threads.sync();
        return *flag;
    }

    __device__ void stamp(mimo_stamp &to, bool ends) const
    {
        if (ends)
            threads.sync();
        if (threads.thread() != 0)
            return;
        (ends ? to.end : to.begin) = mimo_resident_clock();
        asm volatile("mov.u32 %0, %%smid;" : "=r"(to.sm));
    }

    /* ---- the ring ---- */

    /* Its barriers, by all threads of the CTA, before any role begins. */
    __device__ void open() const
    {
        if (threadIdx.x >= MIMO_RING_MOST)
            return;
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(threadIdx.x, false)) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier(threadIdx.x, true)),
                     "r"(MIMO_RESIDENT_TEAM / MIMO_LANES)
                     : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __device__ uint32_t barrier(uint32_t number, bool empty) const
    {
        return mimo_shared_address(shared) + (number % MIMO_RING_MOST + empty * MIMO_RING_MOST) * 8;
    }
    __device__ uint32_t place(uint32_t bytes) const
    {
        return mimo_ring_place(end, bytes, layout.ring_bytes);
    }
    __device__ void advance(uint32_t bytes)
    {
        end = place(bytes) + bytes;
        page++;
    }
    /* Whether page `number` has been copied, or given back (`empty`). */
    __device__ bool passed(uint32_t number, bool empty) const
    {
        const uint32_t barrier = this->barrier(number, empty), parity = number / MIMO_RING_MOST & 1;
        uint32_t done;
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
        return done != 0;
    }

    __device__ void say_page() const
    {
        mimo_mail_say(lost, blockIdx.x, computes, MIMO_NO_COUNTER, 0, page, 0);
    }

    /* Waits for pages to be given back until there is room for another one. */
    __device__ bool clear(uint32_t bytes)
    {
        const uint32_t *begins = reinterpret_cast<const uint32_t *>(shared + MIMO_RESIDENT_BEGINS);
        while (freed != page &&
               (page - freed == MIMO_RING_MOST || !mimo_ring_has_room(oldest, end, bytes, layout.ring_bytes))) {
            if (!spin([&] { return passed(freed, true); }, [&] { say_page(); }))
                return false;
            freed++;
            oldest = begins[freed % MIMO_RING_MOST]; /* of no meaning after the last */
        }
        return true;
    }

    __device__ bool copy(const uint8_t *from, uint32_t bytes)
    {
        if (!clear(bytes))
            return false;
        const uint32_t full = barrier(page, false), at = place(bytes);
        reinterpret_cast<uint32_t *>(shared + MIMO_RESIDENT_BEGINS)[page % MIMO_RING_MOST] = at;
        if (freed == page)
            oldest = at;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         mimo_shared_address(shared + layout.ring + at)),
                     "l"(from), "r"(bytes), "r"(full)
                     : "memory");
        advance(bytes);
        return true;
    }
    __device__ void hint(const uint8_t *from, uint32_t bytes) const
    {
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
    }

    __device__ const uint8_t *take(uint32_t bytes) const
    {
        spin([&] { return passed(page, false); }, [&] { say_page(); });
        return shared + layout.ring + place(bytes);
    }
    __device__ void give(uint32_t bytes)
    {
        __syncwarp();
        if (threads.thread() % MIMO_LANES == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier(page, true)) : "memory");
        advance(bytes);
    }
};

#endif
