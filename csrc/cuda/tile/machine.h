/* What tile tasks work on: the areas of task.h as memory, and where a round stands.
 *
 * Rows beyond a step's are left as they are. P is [splits, MIMO_TILE_TOKENS, rows], S is [splits, MIMO_TILE_TOKENS, N,
 * Dv + 4] (acc, m, l), N is x times a norm's weight: who reads it multiplies by mimo_tile_scales of the row. U of
 * experts has the routing weight in it. */
#ifndef MIMO_CUDA_TILE_MACHINE_H
#define MIMO_CUDA_TILE_MACHINE_H

#include "cuda/mail.h"
#include "cuda/moe.h"
#include "cuda/op/state.h"
#include "cuda/task.h"

/* The best of some ids: the largest score, and the lowest id that has it. */
typedef struct mimo_tile_best {
    double score;
    uint32_t token;
} mimo_tile_best;

/* A token that a filter may keep: its key (filter.h), and its weight exp((logit - largest) / temperature) in units of
 * 2^-44: sums of whole numbers are the same in any order. */
typedef struct mimo_tile_kept {
    uint64_t key, weight;
} mimo_tile_kept;

/* Which tokens of a row may be drawn: those of a key >= cut. largest: of the row's logits. */
typedef struct mimo_tile_filter {
    uint64_t cut;
    float largest;
} mimo_tile_filter;

/* Where a text had its last `length` tokens before: those before place `at` (lookup.h). length 0: nowhere. */
typedef struct mimo_tile_match {
    uint32_t length, at;
} mimo_tile_match;

/* One sequence on its way. Tokens [0, known) stand; the target's step has rows from position `start` on: known tokens,
 * then drafts. */
typedef struct mimo_tile_round {
    uint32_t *token; /* [limit] */
    uint32_t known, start;
    uint32_t limit;     /* known never passes it */
    uint32_t stop[8];   /* ids that end the text, */
    uint32_t stops;     /* so many */
    uint32_t done;      /* nothing is left to do; */
    uint32_t over;      /* done, written by a round's last task: whoever begins a round later sees the same */
    uint32_t failed;    /* because logits were no numbers */
    uint32_t width;     /* most rows of a decoding step: the anchor and width - 1 drafts */
    uint32_t lookup;    /* drafts may be looked up in the text, too (lookup.h); */
    uint32_t looked_up; /* those that are verified next were */
    uint32_t accepted;  /* drafts that stood, over all rounds; */
    uint32_t rounds;    /* rounds that chose a token */
    float temperature;  /* 0: greedy */
    uint32_t top_k;     /* 0: all; as are the next two's 1 and 0 */
    float top_p, min_p;
    double z_least; /* log(min_p) */
    uint32_t stream;
    uint64_t seed;
    uint32_t context_begin; /* the first position whose context the drafter's cache has */
    uint32_t sent;          /* tokens sent by mail since its ring was zeros */
    uint32_t stopped;       /* the host's stop word ended it */
} mimo_tile_round;

/* Rows of activations to be multiplied with (tile/operand.h): BF16, in parts; zeros beyond a row. Strides in elements:
 * from row to row, a multiple of MIMO_PAGE_BLOCK, and from part to part. */
typedef struct mimo_tile_operand {
    uint16_t *at;
    size_t stride, part;
} mimo_tile_operand;

enum { MIMO_TILE_EXACT_PARTS = 3 };

typedef struct mimo_tile_machine {
    mimo_cuda_state target, context, block; /* a drafter's context and its block have rows of their own */
    const uint8_t *const *pages[2];         /* [operations of a tape] */
    const mimo_tile_task *task, *join;
    const uint32_t *begin;       /* [CTAs + 1] */
    uint32_t last, last_count;   /* the last stage of a round: its counter, what it grows by */
    uint32_t counters;           /* of stages; those of joins are behind them */
    uint32_t columns, pieces;    /* of H in a piece of a row, and pieces of a row */
    uint32_t vocab, draft_vocab; /* ids, */
    uint32_t draft_block;        /* and rows of a block; 0: no drafter */
    uint32_t *counter;
    uint32_t parts;            /* of the operands: 1, or MIMO_TILE_EXACT_PARTS */
    uint32_t up_format[2];     /* of the pages of a tape's EXPERT_UP (page.h) */
    mimo_tile_operand n, a, u; /* N and A [T], U [T * K, or T] */
    float *squares;            /* [T, pieces] sums of squares of x */
    float *p, *s;
    mimo_moe *moe;
    uint32_t ids, blocks;     /* most of a row, and of MIMO_TILE_IDS of them: rows of the next ones are so long */
    float *maxima, *sums;     /* [T, blocks] largest logits, sums of weights */
    mimo_tile_kept *kept;     /* [T, ids], */
    uint32_t *kept_count;     /* [T]: so many are there; 0 until COLLECT begins */
    mimo_tile_filter *filter; /* [T] */
    mimo_tile_best *best;     /* [T, blocks] */
    uint32_t *picked;         /* [T] tokens, or MIMO_TILE_NO_TOKEN */
    float *biased;            /* [T, V'] with a Markov head */
    mimo_cuda_step *steps;    /* [3] of target, context, block: what their `step` points to */
    mimo_tile_round *round;
    const uint32_t *drafted; /* [V'] ids that a drafter drafts; NULL: all */
    mimo_mail *mail;         /* NULL: tokens are not sent */
    mimo_stamp *stamps;      /* [tasks, then joins] when each ran last; NULL: nobody asks */
    uint32_t tasks;          /* of all CTAs */
} mimo_tile_machine;

enum { MIMO_TILE_SUMS = 2 * (MIMO_TILE_UNIT + 4) * MIMO_TILE_TOKENS }; /* floats a warp, see below */

/* Floats of scratch of a team of `warps` warps; heads are up to `head` wide, their values up to `value`. What bodies
 * keep of their own also holds the sums of two units of a tile across warps (sm90/mma.h), which no body needs at the
 * same time. */
static inline size_t mimo_tile_scratch_floats(uint32_t warps, uint32_t head, uint32_t value)
{
    const size_t chunk = MIMO_TILE_CHUNK + 2 * ((size_t)value + 4), splits = MIMO_TILE_MOST_SPLITS + 1;
    const size_t attend = warps * (chunk > splits ? chunk : splits), rows = MIMO_TILE_TOKENS * (size_t)head;
    const size_t sums = warps * (size_t)MIMO_TILE_SUMS, choose = mimo_cuda_choose_floats(warps);
    const size_t most = attend > rows ? attend : rows, least = sums > choose ? sums : choose;
    return MIMO_CUDA_ROWS * 9 + (most > least ? most : least);
}

#endif
