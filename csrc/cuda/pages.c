#include "cuda/pages.h"

#include <string.h>

#include "base/size.h"
#include "cuda/page.h"

typedef struct packer {
    const mimo_tile_shape *shape;
    const mimo_page_part *parts, *up;
    uint32_t count, cols, units;
    uint32_t stored, format; /* of the matrices, and of their pages */
} packer;

/* One row of the whole: its matrix, NULL beyond the last row, and its number there. */
static const mimo_cuda_matrix *row_at(const mimo_page_part *part, uint32_t count, uint32_t row, uint32_t *number)
{
    for (uint32_t i = 0; i < count; i++) {
        if (row < part[i].rows) {
            *number = part[i].first + row;
            return part[i].matrix;
        }
        row -= part[i].rows;
    }
    return NULL;
}

/* Row `at` of 16 in a unit of a tile. */
static const mimo_cuda_matrix *unit_row(const packer *p, uint32_t tile, uint32_t unit, uint32_t at, uint32_t *number)
{
    const uint32_t first = tile * p->shape->tile_rows;
    if (p->up == NULL)
        return row_at(p->parts, p->count, first + MIMO_PAGE_UNIT * unit + at, number);
    const uint32_t row = first + MIMO_PAGE_UNIT / 2 * unit + at % (MIMO_PAGE_UNIT / 2);
    return row_at(at < MIMO_PAGE_UNIT / 2 ? p->parts : p->up, p->count, row, number);
}

/* The group of eight elements from column k on; what is beyond the row is zero, and of other splits not copied. */
static void pack_group(uint8_t *block, const packer *p, uint32_t lane, uint32_t upper, const uint8_t *row, uint32_t k,
                       uint32_t end)
{
    const uint32_t format = p->format;
    const mimo_format stored = (mimo_format)p->stored;
    uint8_t group[32] = {0};
    const uint32_t columns = (uint32_t)mimo_min(MIMO_PAGE_GROUP, end > k ? end - k : 0);
    if (columns == 0)
        return;
    memcpy(group, row + mimo_format_row_bytes(stored, k), mimo_format_row_bytes(stored, columns));
    uint8_t *to = block + mimo_page_group(format, lane, upper, 0);
    if (format == MIMO_FORMAT_BF16) {
        for (uint32_t i = 0; i < MIMO_PAGE_GROUP; i++)
            memcpy(block + mimo_page_group(format, lane, upper, i % 4) + i / 4 * 2, group + 2 * i, 2);
    } else if (format == MIMO_FORMAT_F32) {
        memcpy(to, group, 16);
        memcpy(block + mimo_page_group(format, lane, upper, 1), group + 16, 16);
    } else if (format == MIMO_FORMAT_FP8) {
        static const uint8_t order[MIMO_PAGE_GROUP] = {1, 0, 5, 4, 3, 2, 7, 6};
        for (uint32_t i = 0; i < MIMO_PAGE_GROUP; i++)
            to[i] = group[order[i]];
    } else if (format == MIMO_PAGE_E4M3) {
        uint32_t codes;
        memcpy(&codes, group, sizeof codes);
        codes = mimo_page_e4m3_codes(codes);
        memcpy(to + 4 * upper, &codes, sizeof codes);
    } else {
        uint32_t codes, words[2];
        memcpy(&codes, group, sizeof codes);
        memcpy(words, to, sizeof words);
        mimo_page_put_codes(words, upper, codes);
        memcpy(to, words, sizeof words);
    }
}

static mimo_status pack_fp8_scale(const packer *p, uint8_t *scales, uint32_t unit, uint32_t at, uint32_t row,
                                  const mimo_cuda_matrix *w, uint32_t k, mimo_error *err)
{
    const size_t width = mimo_ceil_div(p->cols, MIMO_PAGE_TILE);
    for (uint32_t i = 0; i < p->shape->k_page && k + i < p->cols; i += MIMO_PAGE_TILE) {
        const float scale = ((const float *)w->scales)[w->scale_row[row] * width + (k + i) / MIMO_PAGE_TILE];
        uint8_t *to = scales + (mimo_page_scale(p->format, unit, i / MIMO_PAGE_BLOCK, p->shape->k_page) +
                                at / (MIMO_PAGE_UNIT / 2)) *
                                   sizeof scale;
        float before;
        memcpy(&before, to, sizeof before);
        if (at % (MIMO_PAGE_UNIT / 2) != 0 && before != scale)
            return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                             "CUDA: row %u of a matrix of %u rows: expected the FP8 scale of the rows it is read with, "
                             "%g, found %g",
                             row, w->rows, (double)before, (double)scale);
        memcpy(to, &scale, sizeof scale);
    }
    return MIMO_OK;
}

/* E8M0 codes of a row of MXFP4, one for each block. */
static const uint8_t *codes_of(const packer *p, const mimo_cuda_matrix *w, uint32_t row)
{
    return (const uint8_t *)w->scales + row * (size_t)(p->cols / MIMO_PAGE_BLOCK);
}

static uint8_t largest_code(const packer *p, const uint8_t *codes)
{
    uint8_t largest = 0;
    for (uint32_t i = 0; i < p->cols / MIMO_PAGE_BLOCK; i++)
        largest = (uint8_t)mimo_max(largest, codes[i]);
    return largest;
}

/* The scale of MIMO_PAGE_E4M3 that a block has; 0: its weights count as nothing. */
static uint8_t e4m3_scale(uint8_t code, uint8_t largest)
{
    return (uint8_t)(largest - code < MIMO_PAGE_E4M3_SCALES ? MIMO_PAGE_E4M3_SCALES - (largest - code) : 0);
}

/* One row of a page that begins at column k; `end` is the end of its split. */
static mimo_status pack_row(const packer *p, uint8_t *page, uint32_t unit, uint32_t at, const mimo_cuda_matrix *w,
                            uint32_t row, uint32_t k, uint32_t end, mimo_error *err)
{
    const uint32_t blocks = p->shape->k_page / MIMO_PAGE_BLOCK, bytes = mimo_page_block_bytes(p->format),
                   place = 2 * (at % 8) + at / 8;
    const uint8_t *data = w->data + row * w->row_bytes;
    const uint8_t *codes = p->stored == MIMO_FORMAT_MXFP4 ? codes_of(p, w, row) : NULL;
    const uint8_t largest = p->format == MIMO_PAGE_E4M3 ? largest_code(p, codes) : 0;
    uint8_t *scales = page + mimo_page_scales(p->format, p->units, p->shape->k_page);
    for (uint32_t b = 0; b < blocks; b++) {
        const uint32_t first = k + b * MIMO_PAGE_BLOCK;
        uint8_t *scale = scales + mimo_page_scale(p->format, unit, b, p->shape->k_page) + place;
        if (p->format == MIMO_PAGE_E4M3 && (first >= end || (*scale = e4m3_scale(codes[first / 32], largest)) == 0))
            continue;
        for (uint32_t c = 0; c < MIMO_PAGE_BLOCK / MIMO_PAGE_GROUP; c++)
            pack_group(page + (unit * blocks + b) * (size_t)bytes, p, 4 * (at % 8) + c, at / 8, data,
                       first + c * MIMO_PAGE_GROUP, end);
        if (p->format == MIMO_FORMAT_MXFP4 && first < end) {
            const uint8_t code = codes[first / MIMO_PAGE_BLOCK];
            if (code > MIMO_PAGE_MXFP4_MOST)
                return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                                 "CUDA: row %u of a matrix of %u rows: expected E8M0 scales up to %d (2^41), found %u",
                                 row, w->rows, MIMO_PAGE_MXFP4_MOST, code);
            *scale = (uint8_t)(code + MIMO_PAGE_MXFP4_BIAS);
        }
    }
    if (p->format == MIMO_PAGE_E4M3)
        page[mimo_page_rows(p->units, p->shape->k_page) + MIMO_PAGE_UNIT * unit + place] =
            (uint8_t)(largest > MIMO_PAGE_E4M3_BIAS ? largest - MIMO_PAGE_E4M3_BIAS : 0);
    return p->format == MIMO_FORMAT_FP8 ? pack_fp8_scale(p, scales, unit, at, row, w, k, err) : MIMO_OK;
}

static mimo_status check_parts(const packer *p, const mimo_page_part *parts, mimo_error *err)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (parts[i].matrix->format != p->stored || parts[i].matrix->cols != p->cols)
            return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                             "CUDA: matrices that are read together: expected %u columns of %s, found %u of %s",
                             p->cols, mimo_format_name((mimo_format)p->stored), parts[i].matrix->cols,
                             mimo_format_name((mimo_format)parts[i].matrix->format));
    return MIMO_OK;
}

mimo_status mimo_pages_pack(uint8_t *out, const mimo_tile_shape *shape, uint32_t splits, const mimo_page_part *parts,
                            const mimo_page_part *up, uint32_t count, mimo_error *err)
{
    const uint32_t half = up != NULL ? 2 : 1;
    const packer p = {.shape = shape,
                      .parts = parts,
                      .up = up,
                      .count = count,
                      .cols = parts->matrix->cols,
                      .units = half * shape->tile_rows / MIMO_PAGE_UNIT,
                      .stored = parts->matrix->format,
                      .format = shape->format};
    MIMO_TRY(check_parts(&p, parts, err));
    if (up != NULL)
        MIMO_TRY(check_parts(&p, up, err));
    memset(out, 0, (size_t)splits * shape->tiles * shape->tile_pages * shape->page_bytes);
    for (uint32_t split = 0; split < splits; split++)
        for (uint32_t tile = 0; tile < shape->tiles; tile++)
            for (uint32_t i = 0; i < shape->tile_pages; i++, out += shape->page_bytes) {
                const uint32_t first = split * shape->k_split, k = first + i * shape->k_page;
                const uint32_t end =
                    (uint32_t)mimo_min(p.cols, mimo_min(first + (size_t)shape->k_split, k + (size_t)shape->k_page));
                for (uint32_t row = 0; row < p.units * MIMO_PAGE_UNIT; row++) {
                    const uint32_t unit = row / MIMO_PAGE_UNIT, at = row % MIMO_PAGE_UNIT;
                    uint32_t number;
                    const mimo_cuda_matrix *w = unit_row(&p, tile, unit, at, &number);
                    if (w != NULL)
                        MIMO_TRY(pack_row(&p, out, unit, at, w, number, k, end, err));
                }
            }
    return MIMO_OK;
}
