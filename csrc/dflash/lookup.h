/* Drafts from the sequence itself: what followed the last time it ended as it does now (Saxena 2023).
 *
 * A table for each length of suffix maps its hash to the place after its latest earlier appearance. A place that a
 * later hash has taken is forgotten: it can only cost a draft, as every match is compared token for token. */
#ifndef MIMO_DFLASH_LOOKUP_H
#define MIMO_DFLASH_LOOKUP_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { MIMO_LOOKUP_LEAST = 2, MIMO_LOOKUP_MOST = 4, MIMO_LOOKUP_TABLES = MIMO_LOOKUP_MOST - MIMO_LOOKUP_LEAST + 1 };

typedef struct mimo_lookup {
    uint32_t *place; /* [MIMO_LOOKUP_TABLES, mask + 1], 0: empty; NULL: off */
    size_t mask;
    size_t indexed; /* tokens whose n-grams are in the tables */
} mimo_lookup;

typedef struct mimo_match {
    size_t length; /* tokens that agree, at least MIMO_LOOKUP_LEAST; 0: no match */
    size_t at;     /* place of the token after them */
} mimo_match;

/* Room for a sequence of `limit` tokens. */
MIMO_MUST_CHECK mimo_status mimo_lookup_open(mimo_lookup *lookup, size_t limit, mimo_error *err);
void mimo_lookup_close(mimo_lookup *lookup);
/* The longest known suffix of tokens [count]; takes in what was appended since the last call. */
mimo_match mimo_lookup_find(mimo_lookup *lookup, const uint32_t *tokens, size_t count);
/* The `n` tokens that followed; a continuation that reaches the end of the sequence goes on as it went since. */
void mimo_match_continue(const mimo_match *match, const uint32_t *tokens, size_t count, uint32_t *out, size_t n);

#endif
