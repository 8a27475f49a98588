/* Sizes that come from files or users are added and multiplied here, and nowhere else. */
#ifndef MIMO_BASE_SIZE_H
#define MIMO_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *out = a * b; false on overflow, *out then unspecified. */
static inline bool mimo_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* *out = a + b; false on overflow. */
static inline bool mimo_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline size_t mimo_ceil_div(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}

/* Smallest multiple of `unit` that is >= a; the caller knows that it fits. */
static inline size_t mimo_round_up(size_t a, size_t unit)
{
    return mimo_ceil_div(a, unit) * unit;
}

static inline size_t mimo_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t mimo_max(size_t a, size_t b)
{
    return a > b ? a : b;
}

#endif
