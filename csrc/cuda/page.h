/* What lies on a page of weights (task.h: rows by elements of K, with their scales), in the order in which the lanes of
 * a warp read it.
 *
 * A unit is 16 rows, a block 32 elements of K. In a unit and block, lane 4 g + c has the eight elements 8 c .. 8 c + 7
 * of row g, and of row g + 8 (its upper half): a group. That is the A fragment of two m16n8k16 tensor core operations
 * with K in the order 0 4 1 5 2 6 3 7 of each group (mimo_page_place): a register of it holds elements n and n + 4.
 * BF16 elements lie as these registers do; codes of FP8 and MXFP4 so that few operations make them (op/decode.h), of
 * MXFP4 those of a lane's two rows among each other. A
 * unit of gate and up is 8 rows of gate, then the same 8 rows of up: a lane has both.
 *
 * Scales come after all groups. MXFP4: 16 bytes a unit and block, of rows g and g + 8 side by side; a byte is the
 * exponent of a BF16 that makes a code (times 2^-126) its weight times 2^-40. So weights below 2^-92 lose bits, those
 * below 2^-93 count as nothing, and scales go up to 2^41. FP8: two floats (rows 0 .. 7, rows 8 .. 15) a unit and 128
 * elements. */
#ifndef MIMO_CUDA_PAGE_H
#define MIMO_CUDA_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/target.h"
#include "model/weights.h"

enum { MIMO_PAGE_UNIT = 16, MIMO_PAGE_BLOCK = 32, MIMO_PAGE_GROUP = 8, MIMO_PAGE_TILE = 128 };

enum {
    MIMO_PAGE_MXFP4_BIAS = 86,  /* what is added to an E8M0 code: 126 for the code's own factor, less 40 */
    MIMO_PAGE_MXFP4_MOST = 168, /* the largest E8M0 code */
};
#define MIMO_PAGE_MXFP4_UNDO 0x1p40f

enum {
    MIMO_PAGE_E4M3 = MIMO_FORMAT_COUNT, /* where formats of pages are, after mimo_format */
    MIMO_PAGE_E4M3_SCALES = 12,         /* scales of a row are so many powers of two */
    MIMO_PAGE_E4M3_BIAS = 6,            /* from an E8M0 code to the exponent of a row */
    MIMO_PAGE_E4M3_K = 6144,            /* most columns of such a matrix: rows of N in registers (sm90/wgmma.h) */
    MIMO_PAGE_E4M3_UNITS = 2            /* and most units of its tiles */
};

/* Where element i of a group of eight lies: 0 4 1 5 2 6 3 7. */
static inline MIMO_HD uint32_t mimo_page_place(uint32_t i)
{
    return i % 4 * 2 + i / 4;
}

/* E2M1 codes of a lane's rows g and g + 8 are two words. Elements n and n + 4 of a row are a register whose halves have
 * a code's bits (mantissa, exponent, sign) where BF16 has them. Turning a word to the right gives the registers of n =
 * 0, 1, 2 of its row; those of n = 3 are in what is left of both words, of which the second's bits move up to where the
 * first has none. */
#define MIMO_PAGE_REST 0x06030603u /* the first word's bits that are left */
enum { MIMO_PAGE_REST_UP = 2 };

static inline MIMO_HD uint32_t mimo_page_turn(uint32_t upper, uint32_t n)
{
    return n == 0 ? 0 : n == 1 ? 6 : n == 2 ? 28 : upper == 0 ? 4 : 26;
}

/* Puts eight codes of row g or g + 8 (`upper`), the first in the low nibble, into words where they are zero. */
static inline void mimo_page_put_codes(uint32_t words[2], uint32_t upper, uint32_t codes)
{
    static const uint8_t place[4] = {6, 7, 8, 15};
    for (uint32_t i = 0; i < MIMO_PAGE_GROUP; i++)
        for (uint32_t bit = 0; bit < 4; bit++) {
            uint32_t at = (place[bit] + i / 4 * 16 + mimo_page_turn(upper, i % 4)) % 32, word = upper;
            if (i % 4 == 3) {
                word = !(MIMO_PAGE_REST >> at & 1);
                at -= word * MIMO_PAGE_REST_UP;
            }
            words[word] |= (codes >> (4 * i + bit) & 1) << at;
        }
}

/* Eight codes of a row, the first in the low nibble, as a word of MIMO_PAGE_E4M3: signs of elements 0 .. 3 in bits 7,
 * 15, 23, 31, of 4 .. 7 in bits 3, 11, 19, 27. */
static inline uint32_t mimo_page_e4m3_codes(uint32_t codes)
{
    uint32_t word = codes & 0x77777777u;
    for (uint32_t i = 0; i < MIMO_PAGE_GROUP; i++)
        word |= (codes >> (4 * i + 3) & 1) << (i < 4 ? 8 * i + 7 : 8 * (i - 4) + 3);
    return word;
}

/* Bytes of one unit and block without scales. */
static inline MIMO_HD uint32_t mimo_page_block_bytes(uint32_t format)
{
    return format < MIMO_FORMAT_MXFP4 ? 2048u >> format : 256;
}

/* Where a lane's group begins in a unit and block. Of F32 a `part`, 0 or 1, of four elements; of BF16 a part, 0 .. 3,
 * of elements `part` and `part` + 4; 0 of the others, which are in one piece, of MXFP4 for both rows (MIMO_PAGE_E4M3: a
 * word each). */
static inline MIMO_HD uint32_t mimo_page_group(uint32_t format, uint32_t lane, uint32_t upper, uint32_t part)
{
    switch (format) {
    case MIMO_FORMAT_F32:
        return ((2 * upper + part) * 32 + lane) * 16;
    case MIMO_FORMAT_BF16:
        return (part / 2 * 32 + lane) * 16 + (part % 2 * 2 + upper) * 4;
    case MIMO_FORMAT_FP8:
        return lane * 16 + upper * 8;
    default:
        return lane * 8;
    }
}

/* Where the scales of a page of `units` units and `k` elements begin, */
static inline MIMO_HD uint32_t mimo_page_scales(uint32_t format, uint32_t units, uint32_t k)
{
    return units * (k / MIMO_PAGE_BLOCK) * mimo_page_block_bytes(format);
}

/* and how many of them go before those of a unit and block; MXFP4: of row g and, next to it, g + 8 of 2 g more. */
static inline MIMO_HD uint32_t mimo_page_scale(uint32_t format, uint32_t unit, uint32_t block, uint32_t k)
{
    if (format == MIMO_FORMAT_MXFP4 || format == MIMO_PAGE_E4M3)
        return (unit * (k / MIMO_PAGE_BLOCK) + block) * MIMO_PAGE_UNIT;
    return (unit * ((k + MIMO_PAGE_TILE - 1) / MIMO_PAGE_TILE) + block / 4) * 2;
}

/* Where the rows' exponents of MIMO_PAGE_E4M3 begin; of a unit, and there of row g + 8 * upper, as scales lie. */
static inline MIMO_HD uint32_t mimo_page_rows(uint32_t units, uint32_t k)
{
    return units * (k / MIMO_PAGE_BLOCK) * (256 + MIMO_PAGE_UNIT);
}

#endif
