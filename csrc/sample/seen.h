/* The distinct tokens that the repetition penalty applies to, in the order of their first appearance. */
#ifndef MIMO_SAMPLE_SEEN_H
#define MIMO_SAMPLE_SEEN_H

#include <stddef.h>
#include <stdint.h>

typedef struct mimo_seen {
    uint32_t *ids;  /* [count], room for all the tokens that may come; NULL: nothing is kept */
    uint64_t *bits; /* [V / 64 + 1] */
    size_t count;
} mimo_seen;

static inline void mimo_seen_add(mimo_seen *seen, uint32_t token)
{
    const uint64_t bit = (uint64_t)1 << (token % 64);
    if (seen->ids == NULL || (seen->bits[token / 64] & bit) != 0)
        return;
    seen->bits[token / 64] |= bit;
    seen->ids[seen->count++] = token;
}

/* Forgets what was added when there were `count` or more. */
static inline void mimo_seen_cut(mimo_seen *seen, size_t count)
{
    while (seen->count > count) {
        const uint32_t token = seen->ids[--seen->count];
        seen->bits[token / 64] &= ~((uint64_t)1 << (token % 64));
    }
}

#endif
