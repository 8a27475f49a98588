/* The tape: a config turned into a flat list of operations, for a step of up to `rows` rows.
 *
 * A plan is plain data without pointers: it can be printed, checked and run by any backend. What changes from step to
 * step (tokens, positions, KV caches) is a mimo_step (backend.h) beside it. Dimension letters: model/config.h. */
#ifndef MIMO_PLAN_PLAN_H
#define MIMO_PLAN_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"

/* What operations read and write. X, Q, A, M, U and LOGITS are rows of the step. */
typedef enum mimo_slot {
    MIMO_SLOT_TOKENS = 1 << 0,   /* ids and positions, from the step */
    MIMO_SLOT_ANGLES = 1 << 1,   /* cos and sin of the rows' positions */
    MIMO_SLOT_X = 1 << 2,        /* [T, H] residual stream */
    MIMO_SLOT_Q = 1 << 3,        /* [T, N*D] */
    MIMO_SLOT_KV = 1 << 4,       /* the KV caches of the rows' sequences */
    MIMO_SLOT_A = 1 << 5,        /* [T, N*Dv] attention output */
    MIMO_SLOT_M = 1 << 6,        /* [T, H] input of the MLP, normed */
    MIMO_SLOT_ROUTES = 1 << 7,   /* [T, K] experts and weights, and the rows of each expert */
    MIMO_SLOT_U = 1 << 8,        /* [T*K, F] SwiGLU output of experts, or [T, F] of a dense layer */
    MIMO_SLOT_LOGITS = 1 << 9,   /* [outputs, V] */
    MIMO_SLOT_CONTEXT = 1 << 10, /* a drafter's keys and values of committed positions */
    MIMO_SLOTS = 11
} mimo_slot;

typedef enum mimo_op_code {
#define MIMO_OP(code, ...) MIMO_OP_##code,
#include "plan/ops.def"
#undef MIMO_OP
    MIMO_OP_COUNT
} mimo_op_code;

enum { MIMO_OP_DIMS = 6, MIMO_NO_LAYER = 0xffff };

typedef struct mimo_op {
    uint16_t code;  /* mimo_op_code */
    uint16_t layer; /* or MIMO_NO_LAYER */
    uint32_t dim[MIMO_OP_DIMS];
} mimo_op;

typedef struct mimo_op_info {
    const char *name, *dims, *weights;
    uint32_t reads, writes; /* mimo_slot bits */
} mimo_op_info;

extern const mimo_op_info mimo_op_infos[MIMO_OP_COUNT];

enum { MIMO_MAX_OPS = 4 + 6 * MIMO_MAX_LAYERS };

typedef struct mimo_plan {
    uint32_t rows; /* most rows of a step */
    uint32_t count;
    mimo_op op[MIMO_MAX_OPS];
} mimo_plan;

/* config has passed mimo_config_check; rows >= 1. A drafter's plan is its context, then its block. */
void mimo_plan_build(mimo_plan *plan, const mimo_config *config, uint32_t rows);

/* Proves that a plan fits its config: known codes, each slot written before it is read, layers in order and complete,
 * every dimension as the config has it. MIMO_ERR_ENGINE names the operation. */
MIMO_MUST_CHECK mimo_status mimo_plan_check(const mimo_plan *plan, const mimo_config *config, mimo_error *err);

/* The plan as text, one operation a line; layers that are alike are shown once. Returns the length without the final 0,
 * as snprintf does. */
size_t mimo_plan_dump(char *text, size_t size, const mimo_plan *plan);

#endif
