#include "dflash/lookup.h"

#include "base/alloc.h"

enum { LONGEST = 32 }; /* a match is not measured beyond this */

/* The place of the n-gram that ends before tokens[end], in the table of its length. */
static uint32_t *place_of(const mimo_lookup *lookup, const uint32_t *tokens, size_t end, size_t n)
{
    uint64_t hash = 0x9E3779B97F4A7C15u;
    for (size_t i = end - n; i < end; i++) {
        hash = (hash ^ tokens[i]) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
    }
    return lookup->place + (n - MIMO_LOOKUP_LEAST) * (lookup->mask + 1) + (hash & lookup->mask);
}

mimo_status mimo_lookup_open(mimo_lookup *lookup, size_t limit, mimo_error *err)
{
    size_t slots = 64;
    while (slots < limit && slots < (size_t)1 << 31)
        slots *= 2;
    *lookup = (mimo_lookup){.mask = slots - 1};
    return mimo_alloc_array(&lookup->place, MIMO_LOOKUP_TABLES * slots, sizeof(uint32_t), "prompt lookup", err);
}

void mimo_lookup_close(mimo_lookup *lookup)
{
    mimo_free(lookup->place);
    lookup->place = NULL;
}

mimo_match mimo_lookup_find(mimo_lookup *lookup, const uint32_t *tokens, size_t count)
{
    /* The suffix itself is taken in with the token after it, so that it never finds itself. */
    for (; lookup->indexed + 1 < count; lookup->indexed++)
        for (size_t n = MIMO_LOOKUP_LEAST, end = lookup->indexed + 1; n <= MIMO_LOOKUP_MOST && n <= end; n++)
            *place_of(lookup, tokens, end, n) = (uint32_t)end;
    for (size_t n = MIMO_LOOKUP_MOST; n >= MIMO_LOOKUP_LEAST; n--) {
        if (n > count)
            continue;
        const size_t at = *place_of(lookup, tokens, count, n);
        size_t length = 0;
        while (length < at && length < LONGEST && tokens[at - 1 - length] == tokens[count - 1 - length])
            length++;
        if (length >= n)
            return (mimo_match){length, at};
    }
    return (mimo_match){0};
}

void mimo_match_continue(const mimo_match *match, const uint32_t *tokens, size_t count, uint32_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = match->at + i < count ? tokens[match->at + i] : out[match->at + i - count];
}
