#include "plan/span.h"

#include "base/size.h"

/* The first position of a drafter's context that its ring still holds. */
static size_t first_held(const mimo_kv_span *span, size_t ring)
{
    return ring > 0 && span->top > span->begin + ring ? span->top - ring : span->begin;
}

void mimo_span_cut(mimo_kv_span *span, size_t ring, size_t position)
{
    if (span->end <= position)
        return;
    const size_t begin = first_held(span, ring);
    *span = begin < position ? (mimo_kv_span){.begin = begin, .end = position, .top = position} : (mimo_kv_span){0};
}

void mimo_span_add(mimo_kv_span *span, size_t ring, size_t position)
{
    mimo_span_cut(span, ring, position);
    if (span->end != position)
        *span = (mimo_kv_span){.begin = position};
    span->end = position + 1;
    span->top = mimo_max(span->top, span->end);
}

void mimo_span_block(mimo_kv_span *span, size_t position, size_t width)
{
    span->top = mimo_max(span->top, position + width);
}

void mimo_span_read(const mimo_kv_span *span, size_t ring, size_t position, size_t *begin, size_t *end)
{
    *begin = first_held(span, ring);
    *end = mimo_min(span->end, position);
    if (*begin >= *end)
        *begin = *end = 0;
}

bool mimo_span_can_cut(size_t window, size_t ring, size_t written, size_t kept)
{
    return ring == 0 || written <= ring || written + window <= kept + ring + 1;
}
