#include "cpu/panel.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "cpu/pack.h"
#include "format/bf16.h"

enum { LANES = 8, TILE = 128, BLOCK = 32, ALIGNMENT = 64, ONE_MX_SCALE = 127 };

/* Consecutive logical rows in memory, as stored, and where the parts lie in the caller's scratch. */
typedef struct batch {
    const mimo_matrix *from;
    const mimo_file *files;
    size_t first, rows;
    size_t row_bytes, scale_bytes; /* of one row of elements, of one row of scales */
    uint8_t *data;                 /* [rows][row_bytes] */
    uint8_t *scales;               /* [scale rows][scale_bytes] */
    uint32_t *scale_of;            /* [rows]: the row's row of `scales` */
    size_t scale_rows;             /* filled so far */
} batch;

const char *mimo_packing_name(mimo_packing packing)
{
    static const char *const names[MIMO_PACK_COUNT] = {"f32", "bf16", "fp8", "mxfp4", "q8", "q4"};
    return names[packing];
}

size_t mimo_panel_octet_bytes(mimo_packing packing, uint32_t cols)
{
    static const size_t half_bytes[MIMO_PACK_COUNT] = {8, 4, 2, 1, 2, 1};
    return (size_t)cols * LANES * half_bytes[packing] / 2;
}

size_t mimo_panel_octet_scale_bytes(mimo_packing packing, uint32_t cols)
{
    switch (packing) {
    case MIMO_PACK_FP8:
        return mimo_ceil_div(cols, TILE) * LANES * sizeof(float);
    case MIMO_PACK_MXFP4:
        return cols / BLOCK * (size_t)LANES;
    case MIMO_PACK_Q8:
        return cols / BLOCK * (size_t)LANES * sizeof(uint16_t);
    case MIMO_PACK_Q4:
        return cols / BLOCK * (size_t)LANES * 2 * sizeof(uint16_t);
    default:
        return 0;
    }
}

mimo_packing mimo_packing_choose(mimo_format format, uint32_t cols, int fast)
{
    if (format == MIMO_FORMAT_F32)
        return MIMO_PACK_F32;
    if (format == MIMO_FORMAT_MXFP4)
        return MIMO_PACK_MXFP4;
    if (fast && cols % BLOCK == 0)
        return MIMO_PACK_Q8;
    return format == MIMO_FORMAT_BF16 ? MIMO_PACK_BF16 : MIMO_PACK_FP8;
}

/* Bytes of scales that go with one stored row. */
static size_t scale_row_bytes(const mimo_matrix *from)
{
    switch (from->format) {
    case MIMO_FORMAT_FP8:
        return mimo_ceil_div(from->cols, TILE) * sizeof(float);
    case MIMO_FORMAT_MXFP4:
        return from->cols / BLOCK;
    default:
        return 0;
    }
}

/* At worst every row has a row of scales of its own. */
size_t mimo_pack_scratch_bytes(const mimo_matrix *from, size_t octets)
{
    const size_t rows = octets * LANES;
    const size_t data = mimo_round_up(rows * mimo_format_row_bytes(from->format, from->cols), ALIGNMENT);
    const size_t scales = mimo_round_up(rows * scale_row_bytes(from), ALIGNMENT);
    return data + scales + rows * sizeof(uint32_t);
}

static batch batch_of(const mimo_matrix *from, const mimo_file *files, size_t first, size_t rows, uint8_t *scratch)
{
    batch b = {.from = from, .files = files, .first = first, .rows = rows};
    b.row_bytes = mimo_format_row_bytes(from->format, from->cols);
    b.scale_bytes = scale_row_bytes(from);
    b.data = scratch;
    b.scales = b.data + mimo_round_up(rows * b.row_bytes, ALIGNMENT);
    b.scale_of = (uint32_t *)(void *)(b.scales + mimo_round_up(rows * b.scale_bytes, ALIGNMENT));
    return b;
}

/* Rows [begin, end) of a segment become rows `at`... of the batch: one read of elements, one of scales. */
static mimo_status read_piece(batch *b, const mimo_segment *segment, size_t begin, size_t end, size_t at,
                              mimo_error *err)
{
    const size_t rows = end - begin;
    MIMO_TRY(mimo_file_read(&b->files[segment->file], b->data + at * b->row_bytes, segment->data + begin * b->row_bytes,
                            rows * b->row_bytes, err));
    if (b->scale_bytes == 0)
        return MIMO_OK;
    const size_t rows_per_scale = b->from->format == MIMO_FORMAT_FP8 ? TILE : 1;
    const size_t first_scale = (segment->scale_row + begin) / rows_per_scale;
    const size_t end_scale = (segment->scale_row + end - 1) / rows_per_scale + 1;
    for (size_t i = 0; i < rows; i++)
        b->scale_of[at + i] =
            (uint32_t)(b->scale_rows + (segment->scale_row + begin + i) / rows_per_scale - first_scale);
    uint8_t *to = b->scales + b->scale_rows * b->scale_bytes;
    b->scale_rows += end_scale - first_scale;
    return mimo_file_read(&b->files[segment->scale_file], to, segment->scale + first_scale * b->scale_bytes,
                          (end_scale - first_scale) * b->scale_bytes, err);
}

static mimo_status read_batch(batch *b, mimo_error *err)
{
    size_t segment_first = 0;
    for (uint32_t i = 0; i < b->from->segments; i++) {
        const mimo_segment *segment = &b->from->segment[i];
        const size_t begin = mimo_max(b->first, segment_first);
        const size_t end = mimo_min(b->first + b->rows, segment_first + segment->rows);
        if (begin < end)
            MIMO_TRY(read_piece(b, segment, begin - segment_first, end - segment_first, begin - b->first, err));
        segment_first += segment->rows;
    }
    return MIMO_OK;
}

/* NULL where the packing does not take the format. */
static mimo_pack_lane *lane_packer(mimo_format format, mimo_packing packing)
{
    static mimo_pack_lane *const exact[MIMO_FORMAT_COUNT] = {
        [MIMO_FORMAT_F32] = mimo_pack_f32,
        [MIMO_FORMAT_BF16] = mimo_pack_bf16,
        [MIMO_FORMAT_FP8] = mimo_pack_fp8,
        [MIMO_FORMAT_MXFP4] = mimo_pack_mxfp4,
    };
    static mimo_pack_lane *const q8[MIMO_FORMAT_COUNT] = {
        [MIMO_FORMAT_F32] = mimo_pack_q8_of_f32,
        [MIMO_FORMAT_BF16] = mimo_pack_q8_of_bf16,
        [MIMO_FORMAT_FP8] = mimo_pack_q8_of_fp8,
    };
    if (packing == MIMO_PACK_Q8)
        return q8[format];
    if (packing == MIMO_PACK_Q4)
        return format == MIMO_FORMAT_BF16 ? mimo_pack_q4_of_bf16 : NULL;
    return packing == mimo_packing_choose(format, 0, 0) ? exact[format] : NULL;
}

/* The octet's missing rows: zeros. MXFP4 scales are 1, so that no kernel meets a subnormal on their account. */
static void clear_octet(const mimo_panel *to, uint8_t *data, uint8_t *scales)
{
    memset(data, 0, mimo_panel_octet_bytes(to->packing, to->cols));
    if (scales != NULL)
        memset(scales, to->packing == MIMO_PACK_MXFP4 ? ONE_MX_SCALE : 0,
               mimo_panel_octet_scale_bytes(to->packing, to->cols));
}

mimo_status mimo_panel_pack(const mimo_panel *to, const mimo_matrix *from, size_t octet, size_t octets,
                            const mimo_file *files, void *scratch, mimo_error *err)
{
    assert(to->rows == from->rows && to->cols == from->cols && octet + octets <= mimo_panel_octets(to));
    mimo_pack_lane *pack = lane_packer(from->format, to->packing);
    if (pack == NULL || (mimo_packing_is_rounded(to->packing) && to->cols % BLOCK != 0))
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED, "%s: %s with %u columns cannot be packed as %s", from->name,
                         mimo_format_name(from->format), from->cols, mimo_packing_name(to->packing));
    const size_t first = octet * LANES;
    batch b = batch_of(from, files, first, mimo_min(octets * LANES, from->rows - first), scratch);
    MIMO_TRY(read_batch(&b, err));
    const size_t octet_bytes = mimo_panel_octet_bytes(to->packing, to->cols);
    const size_t octet_scale_bytes = mimo_panel_octet_scale_bytes(to->packing, to->cols);
    for (size_t i = 0; i < b.rows; i++) {
        const size_t at = (first + i) / LANES, lane = i % LANES;
        uint8_t *data = to->data + at * octet_bytes;
        uint8_t *scales = to->scales != NULL ? to->scales + at * octet_scale_bytes : NULL;
        if (lane == 0 && b.rows - i < LANES)
            clear_octet(to, data, scales);
        const mimo_pack_row row = {.data = b.data + i * b.row_bytes,
                                   .scales = b.scale_bytes > 0 ? b.scales + b.scale_of[i] * b.scale_bytes : NULL,
                                   .cols = from->cols};
        const mimo_pack_fault fault = pack(data, scales, &row, lane);
        if (fault != NULL)
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: row %zu: %s", from->name, first + i, fault);
    }
    return MIMO_OK;
}

mimo_status mimo_panel_survey(bool *levels, const mimo_matrix *from, size_t octet, size_t octets,
                              const mimo_file *files, void *scratch, mimo_error *err)
{
    assert(from->format == MIMO_FORMAT_BF16 && from->cols % BLOCK == 0);
    const size_t first = octet * LANES;
    batch b = batch_of(from, files, first, mimo_min(octets * LANES, from->rows - first), scratch);
    MIMO_TRY(read_batch(&b, err));
    *levels = mimo_pack_has_levels((const uint16_t *)(const void *)b.data, b.rows * from->cols);
    return MIMO_OK;
}

void mimo_panel_read_row(float *out, const mimo_panel *panel, size_t row)
{
    const size_t at = row / LANES * panel->cols * LANES + row % LANES;
    for (size_t k = 0; k < panel->cols; k++)
        out[k] = panel->packing == MIMO_PACK_F32
                     ? ((const float *)(const void *)panel->data)[at + k * LANES]
                     : mimo_bf16_decode(((const uint16_t *)(const void *)panel->data)[at + k * LANES]);
}

mimo_status mimo_vector_read(float *out, const mimo_vector *from, const mimo_file *files, void *scratch,
                             mimo_error *err)
{
    const bool wide = from->dtype == MIMO_DTYPE_F32;
    const size_t bytes = from->length * (wide ? sizeof(float) : sizeof(uint16_t));
    MIMO_TRY(mimo_file_read(&files[from->file], wide ? (void *)out : scratch, from->data, bytes, err));
    if (!wide)
        for (uint32_t i = 0; i < from->length; i++)
            out[i] = mimo_bf16_decode(((const uint16_t *)scratch)[i]);
    for (uint32_t i = 0; i < from->length; i++)
        if (!isfinite(out[i]))
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: element %u: expected a finite value, found %g", from->name, i,
                             (double)out[i]);
    return MIMO_OK;
}
