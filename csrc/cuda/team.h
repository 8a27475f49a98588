/* The threads that run an operation body together.
 *
 * A body is written for warps of 32 lanes: work items go round the warps of a team, and within an item every lane does
 * its share. Code that lanes run is a lambda over the lane number, and what a lane keeps between two of them is a
 * `lane_value`: one register on the device, 32 on the host, where one thread plays all the lanes in turn. Sums over
 * lanes are made in the order of a butterfly by either, so a body has the same bits whatever team runs it.
 *
 * A team has
 *   - warp(), warps(): this thread's warp, and how many there are
 *   - lanes(f): f(lane) by every lane of this warp
 *   - threads(n, f): f(i) for i < n, dealt to all threads of the team
 *   - sum(v), max(v): of a lane_value over the warp; every lane gets it
 *   - sum_quads(v): v becomes the sum over the lanes that differ in their two lowest bits
 *   - rank(yes, below): of how many lanes a lane_value is true; below becomes how many of them come before each
 *   - reserve(counter, n): what the counter stood at before this warp added n to it, in no order with others'
 *   - meet(): all lanes of this warp have come here, and see what the others wrote
 *   - sync(): all threads of the team have come here, and see what the others wrote
 *   - scratch(): floats that the team shares, mimo_cuda_scratch_floats of them
 * Every thread of a team calls sync() equally often; the warps of one item are one warp, so a body may return early
 * only where all do. */
#ifndef MIMO_CUDA_TEAM_H
#define MIMO_CUDA_TEAM_H

#include <stddef.h>
#include <stdint.h>

#include "base/target.h"

enum { MIMO_LANES = 32 };

#ifndef __CUDACC__
/* One host thread. */
struct mimo_host_team {
    template <class T> struct lane_value {
        T v[MIMO_LANES];
        T &operator[](uint32_t lane)
        {
            return v[lane];
        }
    };

    float *shared;

    uint32_t warp() const
    {
        return 0;
    }
    uint32_t warps() const
    {
        return 1;
    }
    template <class F> void lanes(F f) const
    {
        for (uint32_t lane = 0; lane < MIMO_LANES; lane++)
            f(lane);
    }
    template <class F> void threads(uint32_t n, F f) const
    {
        for (uint32_t i = 0; i < n; i++)
            f(i);
    }
    template <class T> T sum(lane_value<T> x) const
    {
        for (uint32_t half = MIMO_LANES / 2; half > 0; half /= 2)
            for (uint32_t lane = 0; lane < half; lane++)
                x.v[lane] += x.v[lane + half];
        return x.v[0];
    }
    template <class T> void sum_quads(lane_value<T> &x) const
    {
        for (uint32_t quad = 0; quad < MIMO_LANES; quad += 4) {
            const T sum = (x.v[quad] + x.v[quad + 1]) + (x.v[quad + 2] + x.v[quad + 3]);
            for (uint32_t i = 0; i < 4; i++)
                x.v[quad + i] = sum;
        }
    }
    template <class T> T max(const lane_value<T> &x) const
    {
        T most = x.v[0];
        for (uint32_t lane = 1; lane < MIMO_LANES; lane++)
            most = x.v[lane] > most ? x.v[lane] : most;
        return most;
    }
    uint32_t rank(const lane_value<bool> &yes, lane_value<uint32_t> &below) const
    {
        uint32_t all = 0;
        for (uint32_t lane = 0; lane < MIMO_LANES; lane++) {
            below.v[lane] = all;
            all += yes.v[lane];
        }
        return all;
    }
    uint32_t reserve(uint32_t *counter, uint32_t n) const
    {
        return __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
    }
    void meet() const
    {
    }
    void sync() const
    {
    }
    float *scratch() const
    {
        return shared;
    }
};

#else
/* `size` threads of a CTA, from thread `first` on: whole warps that meet at the named barrier `barrier`. */
struct mimo_cta_team {
    template <class T> struct lane_value {
        T v;
        __device__ T &operator[](uint32_t)
        {
            return v;
        }
    };

    float *shared;
    uint32_t first, size, barrier;

    __device__ uint32_t thread() const
    {
        return threadIdx.x - first;
    }
    __device__ uint32_t warp() const
    {
        return thread() / MIMO_LANES;
    }
    __device__ uint32_t warps() const
    {
        return size / MIMO_LANES;
    }
    template <class F> __device__ void lanes(F f) const
    {
        f(thread() % MIMO_LANES);
    }
    template <class F> __device__ void threads(uint32_t n, F f) const
    {
        for (uint32_t i = thread(); i < n; i += size)
            f(i);
    }
    template <class T> __device__ T sum(const lane_value<T> &x) const
    {
        T total = x.v;
#pragma unroll
        for (int half = MIMO_LANES / 2; half > 0; half /= 2)
            total += __shfl_xor_sync(0xffffffffu, total, half);
        return total;
    }
    __device__ uint32_t sum(const lane_value<uint32_t> &x) const
    {
        return __reduce_add_sync(0xffffffffu, x.v);
    }
    __device__ uint32_t max(const lane_value<uint32_t> &x) const
    {
        return __reduce_max_sync(0xffffffffu, x.v);
    }
    template <class T> __device__ void sum_quads(lane_value<T> &x) const
    {
        x.v += __shfl_xor_sync(0xffffffffu, x.v, 1);
        x.v += __shfl_xor_sync(0xffffffffu, x.v, 2);
    }
    template <class T> __device__ T max(const lane_value<T> &x) const
    {
        T most = x.v;
#pragma unroll
        for (int half = MIMO_LANES / 2; half > 0; half /= 2) {
            const T other = __shfl_xor_sync(0xffffffffu, most, half);
            most = other > most ? other : most;
        }
        return most;
    }
    __device__ uint32_t rank(const lane_value<bool> &yes, lane_value<uint32_t> &below) const
    {
        const uint32_t all = __ballot_sync(0xffffffffu, yes.v);
        below.v = (uint32_t)__popc(all & ((1u << thread() % MIMO_LANES) - 1));
        return (uint32_t)__popc(all);
    }
    __device__ uint32_t reserve(uint32_t *counter, uint32_t n) const
    {
        uint32_t at = 0;
        if (thread() % MIMO_LANES == 0)
            at = atomicAdd(counter, n);
        return __shfl_sync(0xffffffffu, at, 0);
    }
    __device__ void meet() const
    {
        __syncwarp();
    }
    __device__ void sync() const
    {
        asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(size) : "memory");
    }
    /* sync(), and whether all threads said yes. */
    __device__ bool all(bool yes) const
    {
        uint32_t every;
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %1, 0; barrier.cta.red.and.pred p, %2, %3, p; selp.u32 %0, 1, 0, p; }"
            : "=r"(every)
            : "r"((uint32_t)yes), "r"(barrier), "r"(size)
            : "memory");
        return every != 0;
    }
    __device__ float *scratch() const
    {
        return shared;
    }
};
#endif

#endif
