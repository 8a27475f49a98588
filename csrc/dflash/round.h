/* What is kept of every round of a job that drafts: raw counts and times, from which all statistics follow. */
#ifndef MIMO_DFLASH_ROUND_H
#define MIMO_DFLASH_ROUND_H

#include <stdint.h>

typedef struct mimo_round {
    uint8_t width;                       /* rows verified: the anchor and width - 1 drafts */
    uint8_t accepted;                    /* leading drafts that stand, before any cut by an end token */
    uint8_t emitted;                     /* tokens handed out, <= accepted + 1 */
    uint8_t lookup;                      /* drafts that came from prompt lookup */
    float draft_seconds, verify_seconds; /* of the whole step, which jobs may share */
} mimo_round;

#endif
