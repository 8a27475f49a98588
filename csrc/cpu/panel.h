/* Weights as the CPU kernels read them: rows interleaved by eight.
 *
 * A panel holds a matrix [rows, cols]; octet o is rows 8o .. 8o+7 (missing rows are zeros, with scale 0, or 1 in
 * MXFP4). Lane r of a vector is row 8o+r, so a kernel never adds across lanes and a row's sum has one order, whatever
 * the number of activation rows.
 *
 * - F32: data[octet][k][r] float.
 * - BF16: data[octet][k][r] uint16.
 * - FP8: data[octet][k][r] E4M3 byte; scales[octet][ceil(cols/128)][r] float, which multiplies.
 * - MXFP4: data[octet][block][i][r][b] byte, i, b = 0..3: low nibble = E2M1 code of k = 32*block + 8i + b, high nibble
 *   = k = 32*block + 8i + 4 + b; scales[octet][block][r] E8M0 byte.
 * - Q8: data[octet][block][g][r][b] int8 in -127..127, g = 0..7, b = 0..3: k = 32*block + 4g + b;
 *   scales[octet][block][r] BF16 (uint16).
 * - Q4: data as MXFP4's, nibbles q = 0..15; scales[octet][block][2][r] F16 (uint16), the step d and the least value m:
 *   w = d * q + m.
 *
 * MXFP4, Q8 and Q4 need cols % 32 == 0. data and scales are 64-byte aligned.
 *
 * Q8 of a block: d = amax/127 rounded up to BF16 (0 for a block of zeros), q = round-to-nearest-even(x / d).
 * Q4 of a block: q by its least and largest value, then d and m by least squares, rounded to F16. Only matrices whose
 * values come from 16 even levels a block are packed so (mimo_panel_survey), for which Q4 is nearer than Q8. */
#ifndef MIMO_CPU_PANEL_H
#define MIMO_CPU_PANEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "model/weights.h"

typedef enum mimo_packing {
    MIMO_PACK_F32,
    MIMO_PACK_BF16,
    MIMO_PACK_FP8,
    MIMO_PACK_MXFP4,
    MIMO_PACK_Q8,
    MIMO_PACK_Q4,
    MIMO_PACK_COUNT
} mimo_packing;

typedef struct mimo_panel {
    mimo_packing packing;
    uint32_t rows, cols;
    uint8_t *data, *scales; /* scales NULL for F32 and BF16 */
} mimo_panel;

/* Weights were rounded once more than the checkpoint has them. */
static inline bool mimo_packing_is_rounded(mimo_packing packing)
{
    return packing == MIMO_PACK_Q8 || packing == MIMO_PACK_Q4;
}

const char *mimo_packing_name(mimo_packing packing); /* "f32" "bf16" "fp8" "mxfp4" "q8" "q4" */

static inline size_t mimo_panel_octets(const mimo_panel *p)
{
    return ((size_t)p->rows + 7) / 8;
}

/* Bytes of one octet. */
size_t mimo_panel_octet_bytes(mimo_packing packing, uint32_t cols);
size_t mimo_panel_octet_scale_bytes(mimo_packing packing, uint32_t cols);

/* The packing of a stored format: exact keeps the stored values; fast turns BF16 and FP8 into Q8 where cols % 32 == 0.
 * F32 stays F32 in both. What is Q8 may become Q4 by its values. */
mimo_packing mimo_packing_choose(mimo_format format, uint32_t cols, int fast);

/* Bytes of scratch one caller of mimo_panel_pack or mimo_panel_survey needs for `octets` octets of a matrix with `cols`
 * columns. */
size_t mimo_pack_scratch_bytes(const mimo_matrix *from, size_t octets);

/* Reads octets [octet, octet + octets) of `from` and writes them to the same octets of `to`. files are indexed as the
 * segments' file numbers. A NaN or infinite scale, or weight, is MIMO_ERR_FORMAT naming the tensor and the row. MXFP4
 * scale codes 253 and 254 count as infinite, and so do FP8 scales above FLT_MAX/448. A format that the packing of `to`
 * does not take is MIMO_ERR_UNSUPPORTED. Any thread, with its own scratch (64-byte aligned); allocates nothing. */
MIMO_MUST_CHECK mimo_status mimo_panel_pack(const mimo_panel *to, const mimo_matrix *from, size_t octet, size_t octets,
                                            const mimo_file *files, void *scratch, mimo_error *err);

/* *levels: the values of all blocks of these octets of a BF16 matrix lie near 16 even levels, as those of a model that
 * was quantised to four bits before do: the error of Q4 is no larger than what Q8 would make of random values of the
 * same size. Scratch and files as for mimo_panel_pack. */
MIMO_MUST_CHECK mimo_status mimo_panel_survey(bool *levels, const mimo_matrix *from, size_t octet, size_t octets,
                                              const mimo_file *files, void *scratch, mimo_error *err);

/* out[cols] = a row of an F32 or BF16 panel. */
void mimo_panel_read_row(float *out, const mimo_panel *panel, size_t row);

/* out[length] = the vector as float; non-finite values are MIMO_ERR_FORMAT. scratch holds 4 * length bytes. */
MIMO_MUST_CHECK mimo_status mimo_vector_read(float *out, const mimo_vector *from, const mimo_file *files, void *scratch,
                                             mimo_error *err);

#endif
