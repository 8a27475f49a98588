/* How many rows a round verifies: as many as make the most tokens a second.
 *
 * E(n) = 1 + sum over k < n of the chance that drafts 1 .. k are all right; the n that is largest in E(n) / T(n) is
 * chosen, where T(n) is the time of a step of n rows as it was measured here, and the chances are how often drafts of
 * the same origin, slot and confidence were right lately. Nothing here touches what is said, only how soon. */
#ifndef MIMO_DFLASH_WIDTH_H
#define MIMO_DFLASH_WIDTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dflash/verify.h"

/* ---- times ---- */

enum { MIMO_TIMED_ROWS = 128 };

/* Seconds of a step by its rows: measured once, then followed as the machine and the contexts change. */
typedef struct mimo_times {
    double base[MIMO_TIMED_ROWS + 1];  /* as measured, never falling */
    double drift[MIMO_TIMED_ROWS + 1]; /* of one width, forgotten in time, */
    double level;                      /* and of all */
} mimo_times;

/* measured [MIMO_TIMED_ROWS + 1] seconds by rows, 0 where nothing was; what lies between is filled in. */
void mimo_times_init(mimo_times *times, const double *measured);
double mimo_times_of(const mimo_times *times, size_t rows);
void mimo_times_observe(mimo_times *times, size_t rows, double seconds);

/* Takes in one more time of something and returns what it usually takes, near the median of late ones. 0: none yet. */
double mimo_usual_time(double *usual, double seconds);

/* ---- trust ---- */

typedef enum mimo_origin {
    MIMO_FROM_DRAFTER,
    MIMO_FROM_LOOKUP, /* alone */
    MIMO_FROM_BESIDE, /* lookup, with the drafter's word on it */
    MIMO_ORIGINS
} mimo_origin;

enum { MIMO_GRADES = 8 }; /* of confidence, the least first */

typedef struct mimo_trust {
    float tried[MIMO_ORIGINS][2][MIMO_BLOCK_ROWS - 1][MIMO_GRADES];
    float right[MIMO_ORIGINS][2][MIMO_BLOCK_ROWS - 1][MIMO_GRADES];
    float rate[MIMO_ORIGINS][2][MIMO_BLOCK_ROWS - 1][MIMO_GRADES]; /* never falling in the grade */
} mimo_trust;

/* The grade of a draft by the probability its drafter gave it; */
uint8_t mimo_grade_of_chance(double chance);
/* of a lookup by the length of its match, and whether the last lookup of the sequence began right; */
uint8_t mimo_grade_of_match(size_t length, bool was_right);
/* of a lookup whose first `agreed` tokens are the drafter's too. */
uint8_t mimo_grade_beside(size_t length, size_t agreed);

void mimo_trust_init(mimo_trust *trust);
/* The chance that a draft is right when all before it are. slot from 0. */
float mimo_trust_rate(const mimo_trust *trust, mimo_origin origin, bool sampled, size_t slot, uint8_t grade);
/* What came of drafts [count] of one round, given the tokens that came instead [came]. */
void mimo_trust_observe(mimo_trust *trust, mimo_origin origin, bool sampled, const uint8_t *grade,
                        const uint32_t *draft, size_t count, const uint32_t *token, size_t came);

/* ---- choice ---- */

/* What a job of the step could verify. */
typedef struct mimo_bid {
    size_t least, most;                /* rows, 1 <= least <= most <= MIMO_BLOCK_ROWS */
    float chance[MIMO_BLOCK_ROWS - 1]; /* [most - 1] of each draft, when all before it are right */
    size_t rows;                       /* the choice */
} mimo_bid;

/* Chooses the rows of all bids, at most `room` in total (at least `count`) beside `others` that are in the step anyway,
 * when drafting took draft_seconds. Returns the tokens per second expected, over those of one row each undrafted. */
double mimo_width_choose(mimo_bid *bids, size_t count, size_t others, size_t room, const mimo_times *times,
                         double draft_seconds);
/* The tokens that the first `rows` rows of a bid give. */
double mimo_bid_tokens(const mimo_bid *bid, size_t rows);

/* Whether drafting is worth trying in this round: the less it gained, the rarer. */
typedef struct mimo_patience {
    double gain; /* lately; 0: not tried yet */
    uint32_t pause, left;
} mimo_patience;

bool mimo_patience_allows(mimo_patience *patience);
void mimo_patience_learn(mimo_patience *patience, double gain);

#endif
