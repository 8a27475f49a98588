/* Which positions of a sequence a cache still serves: rules that all backends share. `ring` is how many positions the
 * sliding layers keep, 0 without such layers. */
#ifndef MIMO_PLAN_SPAN_H
#define MIMO_PLAN_SPAN_H

#include <stdbool.h>
#include <stddef.h>

/* Which positions of a drafter's cache hold context: [begin, end), less what its ring has overwritten since. */
typedef struct mimo_kv_span {
    size_t begin, end;
    size_t top; /* one more than the last position written, blocks included */
} mimo_kv_span;

/* The context does not reach beyond `position`; */
void mimo_span_cut(mimo_kv_span *span, size_t ring, size_t position);
/* the context at `position` and no later one is about to be written; */
void mimo_span_add(mimo_kv_span *span, size_t ring, size_t position);
/* a block of `width` rows is about to be written at `position`; */
void mimo_span_block(mimo_kv_span *span, size_t position, size_t width);
/* the context that a block at `position` can see: [begin, end), end <= position. */
void mimo_span_read(const mimo_kv_span *span, size_t ring, size_t position, size_t *begin, size_t *end);

/* Whether a cache of which positions below `written` have been written still serves its sequence cut back to `kept`:
 * sliding layers have overwritten what lies a ring behind, and the window behind the next position must be there. */
bool mimo_span_can_cut(size_t window, size_t ring, size_t written, size_t kept);

#endif
