/* The clock that spans are measured with. */
#ifndef MIMO_BASE_CLOCK_H
#define MIMO_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds since some fixed moment; never goes back. */
static inline uint64_t mimo_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline double mimo_clock_seconds(void)
{
    return 1e-9 * (double)mimo_clock_ns();
}

#endif
