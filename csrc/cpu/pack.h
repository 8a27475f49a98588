/* The inner loops of packing: one stored row into one lane of an octet. Used by panel.c. */
#ifndef MIMO_CPU_PACK_H
#define MIMO_CPU_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why a row was refused; NULL: it was packed. Text without the row, static. */
typedef const char *mimo_pack_fault;

/* One row as stored, in memory. */
typedef struct mimo_pack_row {
    const uint8_t *data;   /* aligned to its elements */
    const uint8_t *scales; /* FP8: float [ceil(cols/128)]; MXFP4: E8M0 [cols/32]; else NULL */
    size_t cols;
} mimo_pack_row;

/* Writes lane `r` of an octet laid out as cpu/panel.h says. data and scales point at the octet. */
typedef mimo_pack_fault mimo_pack_lane(uint8_t *data, uint8_t *scales, const mimo_pack_row *row, size_t r);

mimo_pack_lane mimo_pack_f32, mimo_pack_bf16, mimo_pack_fp8, mimo_pack_mxfp4;
mimo_pack_lane mimo_pack_q8_of_f32, mimo_pack_q8_of_bf16, mimo_pack_q8_of_fp8;
/* Refuses what mimo_pack_has_levels does. */
mimo_pack_lane mimo_pack_q4_of_bf16;

/* Whether each block of 32 of x [n] lies near 16 even levels; n % 32 == 0. */
bool mimo_pack_has_levels(const uint16_t *x, size_t n);

#endif
