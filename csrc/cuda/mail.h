/* What the resident kernel and the host tell each other while it runs: tokens through a ring in the host's memory, a
 * stop word, and a record of the first wait that took too long. Plain C and C++: the device, the host and a device that
 * a test makes up read the same.
 *
 * A place of the ring is one word of 64 bits, written at once. Its highest bit is the parity of the lap in which it was
 * written, 1 in the first one over zeros: a reader that knows how many it has read sees by it whether the next is
 * there, and nothing is ever cleared. The kernel does not wait for room: the host lets it write no more tokens in a
 * launch than the ring has places, and reads all of them before the next. */
#ifndef MIMO_CUDA_MAIL_H
#define MIMO_CUDA_MAIL_H

#include <stddef.h>
#include <stdint.h>

#include "base/target.h"

enum { MIMO_MAIL_TOKENS = 1 << 8 }; /* places of the ring */

/* In the host's memory, seen by both. */
typedef struct mimo_mail {
    uint32_t stop;                    /* the host's: not 0: the round that runs is the last */
    uint32_t unused[31];              /* the ring has lines of its own */
    uint64_t token[MIMO_MAIL_TOKENS]; /* the ring */
} mimo_mail;

/* One token on its way: of a round that had `rows` rows and in which `accepted` drafts stood; `last` of that round; its
 * drafts were `looked_up` in the text. */
typedef struct mimo_mail_token {
    uint32_t token;
    uint32_t accepted, rows, last, looked_up;
} mimo_mail_token;

/* The number-th token since the ring was zeros, as a word. */
static inline MIMO_HD uint64_t mimo_mail_word(const mimo_mail_token *t, uint32_t number)
{
    const uint64_t parity = (number / MIMO_MAIL_TOKENS & 1) ^ 1;
    return parity << 63 | (uint64_t)(t->looked_up & 1) << 49 | (uint64_t)(t->last & 1) << 48 |
           (uint64_t)(t->rows & 255) << 40 | (uint64_t)(t->accepted & 255) << 32 | t->token;
}

/* Whether a word at its place is the number-th token's. */
static inline MIMO_HD int mimo_mail_is(uint64_t word, uint32_t number)
{
    return (uint32_t)(word >> 63) == ((number / MIMO_MAIL_TOKENS & 1) ^ 1);
}

static inline MIMO_HD mimo_mail_token mimo_mail_read(uint64_t word)
{
    const mimo_mail_token t = {(uint32_t)word, (uint32_t)(word >> 32) & 255, (uint32_t)(word >> 40) & 255,
                               (uint32_t)(word >> 48) & 1, (uint32_t)(word >> 49) & 1};
    return t;
}

enum { MIMO_ROLE_LOADER = 0, MIMO_ROLE_COMPUTE = 1 };

/* Loaders wait ahead of what is to be computed, and so many times as long before they give up: who computes knows
 * better what is missing. */
enum { MIMO_LOADER_PATIENCE = 8 };

/* Of the first wait that took too long; all roles of all CTAs end when they see it. In the device's memory. */
typedef struct mimo_mail_lost {
    uint32_t lost; /* 1: it is, and the rest says why */
    uint32_t cta, role, step;
    uint32_t counter;      /* or MIMO_NO_COUNTER: its ring */
    uint32_t seen, wanted; /* signals of the counter in the step that was waited for; without one: pages passed, - */
} mimo_mail_lost;

static inline MIMO_HD void mimo_mail_say(mimo_mail_lost *lost, uint32_t cta, uint32_t role, uint32_t counter,
                                         uint32_t step, uint32_t seen, uint32_t wanted)
{
    lost->cta = cta;
    lost->role = role;
    lost->counter = counter;
    lost->step = step;
    lost->seen = seen;
    lost->wanted = wanted;
}

#endif
