/* What tile tasks multiply weights with: rows of activations.
 *
 * N, A and U lie in memory as tensor cores take them: BF16, rows in groups of eight elements in the order of page.h.
 * One BF16 keeps eight bits of a value; with `parts` 3, a second and a third add what rounding left, and their sum is
 * the float itself: the exact precision. Routers, which are float, and what a drafter fuses read floats. */
#ifndef MIMO_CUDA_TILE_OPERAND_H
#define MIMO_CUDA_TILE_OPERAND_H

#include "cuda/op/draft.h"
#include "cuda/page.h"
#include "cuda/tile/machine.h"

/* Element `column` of row `row` becomes `value`. */
MIMO_BODY inline void mimo_tile_put(const mimo_tile_operand &to, uint32_t parts, uint32_t row, uint32_t column,
                                    float value)
{
    uint16_t *at = to.at + row * to.stride + column / MIMO_PAGE_GROUP * MIMO_PAGE_GROUP +
                   mimo_page_place(column % MIMO_PAGE_GROUP);
    for (uint32_t p = 0; p < parts; p++, at += to.part) {
        *at = mimo_bf16_encode(value);
        value -= mimo_bf16_decode(*at);
    }
}

/* Eight floats of a group, parts added from the smallest on. */
MIMO_BODY inline void mimo_tile_get(float x[8], const mimo_tile_operand &from, uint32_t parts, uint32_t row,
                                    uint32_t unit)
{
    for (uint32_t i = 0; i < 8; i++)
        x[i] = 0.0f;
    for (uint32_t p = parts; p-- > 0;) {
        const mimo_words4 words =
            mimo_cuda_load<mimo_words4>(from.at + p * from.part + row * from.stride + MIMO_PAGE_GROUP * (size_t)unit);
        for (uint32_t i = 0; i < 4; i++) {
            x[i] += mimo_bf16_decode((uint16_t)words.v[i]);
            x[i + 4] += mimo_bf16_decode((uint16_t)(words.v[i] >> 16));
        }
    }
}

/* The weight of the norm before an operation that reads N. */
MIMO_BODY inline const float *mimo_tile_norm_before(const mimo_cuda_state &s, const mimo_tile_task &task)
{
    switch (task.op_code) {
    case MIMO_OP_QKV:
        return s.layer[task.layer].attention_norm;
    case MIMO_OP_ROUTE:
    case MIMO_OP_EXPERT_UP:
    case MIMO_OP_DENSE_UP:
        return s.layer[task.layer].mlp_norm;
    case MIMO_OP_DRAFT_CONTEXT:
        return s.draft->fuse_norm;
    default:
        return s.norm;
    }
}

typedef enum mimo_tile_reading {
    MIMO_TILE_PARTS,  /* rows of `operand` */
    MIMO_TILE_NORMED, /* x times a norm's weight, in float */
    MIMO_TILE_TAPS    /* what a drafter fuses; in BF16 as the others if its matrix is not float */
} mimo_tile_reading;

/* Rows to be multiplied with. */
struct mimo_tile_source {
    mimo_tile_reading reading;
    uint32_t parts;
    mimo_tile_operand operand;
    const float *x, *weight; /* weight: zero beyond the row */
    size_t x_stride;
    mimo_cuda_taps taps;

    /* Eight floats of a row. */
    MIMO_BODY void load(float out[8], uint32_t row, uint32_t unit) const
    {
        if (reading == MIMO_TILE_PARTS) {
            mimo_tile_get(out, operand, parts, row, unit);
        } else if (reading == MIMO_TILE_TAPS) {
            taps.load(out, row, unit);
        } else {
            float w[8];
            mimo_cuda_floats(out, x + row * x_stride + 8 * (size_t)unit);
            mimo_cuda_floats(w, weight + 8 * (size_t)unit);
            for (uint32_t i = 0; i < 8; i++)
                out[i] *= w[i];
        }
    }
};

/* Which rows the columns of a product are: column g is there if bit g of `mask` is set. */
struct mimo_tile_columns {
    uint32_t mask;
    uint32_t first; /* of entries: the first one */
    bool entries;   /* rows are those of `first` and on, one for each column that is there; else row g */

    MIMO_BODY bool has(uint32_t g) const
    {
        return mask >> g & 1;
    }
    /* The number of columns before g. */
    MIMO_BODY uint32_t before(uint32_t g) const
    {
        return mimo_cuda_ones(mask & ((1u << g) - 1));
    }
    MIMO_BODY uint32_t row(uint32_t g) const
    {
        return entries ? first + before(g) : g;
    }
};

#endif
