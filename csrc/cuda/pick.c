#include "cuda/pick.h"

#include "base/size.h"
#include "cuda/page.h"

enum {
    T = MIMO_TILE_TOKENS,
    MOST_ROWS = 128,      /* of a tile */
    K_UNIT = 128,         /* K is split at multiples of it: the scales of FP8 */
    PAGE_UNIT = 128,      /* bytes that page addresses are multiples of */
    TILE_OVERHEAD = 2048, /* a tile's end costs as much as reading so many bytes: sums across warps, writing */
    ATOMIC = 256,         /* an arrival at a join, likewise */
    ATTEND_HEADS = 8      /* most of a task of split attention, if they can be halved */
};

static uint32_t ceil_div(uint64_t a, uint64_t b)
{
    return (uint32_t)((a + b - 1) / b);
}

static uint32_t round_up(uint32_t a, uint32_t unit)
{
    return ceil_div(a, unit) * unit;
}

uint32_t mimo_pick_page_bytes(uint32_t format, uint32_t rows, uint32_t k)
{
    uint32_t bytes = 0;
    switch (format) {
    case MIMO_FORMAT_F32:
        bytes = 4 * rows * k;
        break;
    case MIMO_FORMAT_BF16:
        bytes = 2 * rows * k;
        break;
    case MIMO_FORMAT_FP8:
        bytes = rows * k + 8 * ceil_div(rows, MIMO_TILE_UNIT) * ceil_div(k, 128);
        break;
    case MIMO_FORMAT_MXFP4:
        bytes = rows * k / 2 + rows * k / 32;
        break;
    case MIMO_PAGE_E4M3:
        bytes = rows * k / 2 + rows * k / 32 + rows;
        break;
    default:
        break;
    }
    return round_up(bytes, PAGE_UNIT);
}

mimo_status mimo_pick_shared(mimo_shared *out, const mimo_gpu *gpu, uint32_t widest, uint32_t value, uint32_t fixed,
                             mimo_error *err)
{
    /* In the exact precision a row is three, which need not be all there at once. */
    const uint32_t all = mimo_pick_activations(T, widest), exact = mimo_pick_activations(3 * T, MIMO_TILE_UNIT);
    const uint64_t one = mimo_max(all, gpu->e4m3 ? mimo_pick_e4m3(widest) : 0);
    const uint64_t most = mimo_max(mimo_max(one, exact), mimo_pick_attended(value));
    const uint64_t activations = round_up((uint32_t)most, PAGE_UNIT);
    const uint64_t least = fixed + activations + MIMO_RING_LEAST * MIMO_RING_PAGE;
    if (gpu->shared_bytes < least)
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "CUDA: rows of %u elements need %llu bytes of shared memory, a CTA may have %u", widest,
                         (unsigned long long)least, gpu->shared_bytes);
    const uint32_t room = (gpu->shared_bytes - fixed - (uint32_t)activations) / PAGE_UNIT * PAGE_UNIT;
    *out = (mimo_shared){.fixed_bytes = fixed, .activation_bytes = (uint32_t)activations, .ring_bytes = room};
    return MIMO_OK;
}

/* Fills in pages for tiles of tile_rows (pairs: of each) and splits of k_split; false if not even K_UNIT fits. */
static bool cut(mimo_tile_shape *shape, const mimo_tile_matrix *m, uint32_t tile_rows, uint32_t k_split)
{
    const uint32_t unit = m->format == MIMO_FORMAT_FP8 ? K_UNIT : 32, rows = m->paired ? 2 * tile_rows : tile_rows;
    uint32_t most = round_up(k_split, unit);
    if (mimo_pick_page_bytes(m->format, rows, most) > MIMO_RING_PAGE) {
        const uint32_t line = mimo_pick_page_bytes(m->format, rows, K_UNIT);
        most = MIMO_RING_PAGE / line * K_UNIT;
        if (most == 0)
            return false;
    }
    const uint32_t pages = ceil_div(k_split, most);
    const uint32_t k_page = round_up(ceil_div(k_split, pages), unit);
    *shape = (mimo_tile_shape){
        .tile_rows = tile_rows,
        .tiles = ceil_div(m->rows, tile_rows),
        .splits = ceil_div(m->K, k_split),
        .k_split = k_split,
        .k_page = k_page,
        .tile_pages = ceil_div(k_split, k_page),
        .page_bytes = mimo_pick_page_bytes(m->format, rows, k_page),
        .format = m->format,
    };
    shape->expert_pages = shape->tiles * shape->splits * shape->tile_pages;
    return true;
}

static uint64_t tile_bytes(const mimo_tile_shape *shape)
{
    return (uint64_t)shape->tile_pages * shape->page_bytes + TILE_OVERHEAD;
}

/* Bytes that the busiest SM moves: weights, activations, partial sums, and its part of adding these. */
static uint64_t matrix_cost(const mimo_tile_shape *shape, const mimo_tile_matrix *m, const mimo_gpu *gpu)
{
    const uint32_t tiles = ceil_div((uint64_t)shape->tiles * shape->splits, gpu->sms);
    const uint64_t slices = mimo_min(tiles, ceil_div(tiles, shape->tiles) + (tiles > 1 && shape->splits > 1));
    const uint64_t activations = slices * T * shape->k_split * MIMO_ACTIVATION_BYTES;
    const uint64_t sums = (uint64_t)tiles * shape->tile_rows * T * sizeof(float);
    const uint64_t partial = (uint64_t)shape->splits * m->rows * T * sizeof(float);
    const uint64_t adding = m->reducers > 0 ? partial / mimo_min(m->reducers, gpu->sms) : 0;
    return tiles * (tile_bytes(shape) + ATOMIC) + activations + sums + adding;
}

void mimo_pick_matrix(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu,
                      const mimo_shared *shared)
{
    uint64_t best = UINT64_MAX;
    const uint32_t step = matrix->paired ? MIMO_TILE_UNIT / 2 : MIMO_TILE_UNIT;
    for (uint32_t rows = step; rows <= MOST_ROWS; rows += step) {
        if (rows > step && rows >= matrix->rows + step)
            break;
        const uint32_t most = matrix->whole ? 1 : ceil_div(matrix->K, K_UNIT);
        for (uint32_t splits = 1; splits <= most; splits++) {
            const uint32_t k_split = splits == 1 ? matrix->K : round_up(ceil_div(matrix->K, splits), K_UNIT);
            mimo_tile_shape shape;
            if (mimo_pick_activations(T, k_split) > shared->activation_bytes || !cut(&shape, matrix, rows, k_split))
                continue;
            const uint64_t cost = matrix_cost(&shape, matrix, gpu);
            if (cost < best) {
                best = cost;
                *out = shape;
            }
        }
    }
}

double mimo_pick_union(uint32_t experts, uint32_t top_k, uint32_t rows)
{
    double none = 1.0;
    for (uint32_t t = 0; t < rows; t++)
        none *= 1.0 - (double)top_k / experts;
    return experts * (1.0 - none);
}

/* Time of expert tiles in a step of `rows`, as a multiple of what evenly spread weights would take. */
static double unevenness(const mimo_tile_shape *shape, const mimo_tile_matrix *m, const mimo_gpu *gpu, uint32_t rows,
                         bool is_up)
{
    const double experts = mimo_pick_union(m->experts, m->top_k, rows);
    const double even = experts * shape->tiles * shape->tile_pages * shape->page_bytes / gpu->sms;
    if (is_up) {
        const uint64_t units = (uint64_t)(experts * shape->tiles + 0.5);
        return ceil_div(units, gpu->sms) * (double)tile_bytes(shape) / even;
    }
    const uint32_t tasks = ceil_div((uint64_t)shape->tiles * shape->splits, gpu->sms);
    const double mean = experts / shape->splits;
    /* Splits of the experts differ: by about a standard deviation of what falls to one. */
    double spread = shape->splits > 1 ? mean / 2 + 0.5 : 0;
    for (int i = 0; i < 20 && spread > 0; i++)
        spread = (spread + mean / spread) / 2;
    const double sums = (double)tasks * shape->tile_rows * T * sizeof(float);
    return (tasks * ((mean + spread) * shape->tile_pages * shape->page_bytes + TILE_OVERHEAD) + sums) / even;
}

void mimo_pick_expert_up(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu)
{
    double best = 1e30;
    const uint32_t most = matrix->format == MIMO_PAGE_E4M3 ? MIMO_PAGE_E4M3_UNITS * MIMO_TILE_UNIT : MOST_ROWS;
    for (uint32_t rows = MIMO_TILE_UNIT / 2; rows <= most / 2; rows += MIMO_TILE_UNIT / 2) {
        mimo_tile_shape shape;
        if (rows >= matrix->rows + MIMO_TILE_UNIT / 2 || !cut(&shape, matrix, rows, matrix->K))
            continue;
        const double cost = unevenness(&shape, matrix, gpu, 1, true) + unevenness(&shape, matrix, gpu, T, true);
        const double padding = (double)shape.tiles * rows / matrix->rows;
        if (cost * padding < best) {
            best = cost * padding;
            *out = shape;
        }
    }
}

void mimo_pick_expert_down(mimo_tile_shape *out, const mimo_tile_matrix *matrix, const mimo_gpu *gpu)
{
    double best = 1e30;
    for (uint32_t rows = MIMO_TILE_UNIT; rows <= MOST_ROWS; rows += MIMO_TILE_UNIT) {
        mimo_tile_shape shape;
        if (rows >= matrix->rows + MIMO_TILE_UNIT || !cut(&shape, matrix, rows, matrix->K))
            continue;
        const double padding = (double)shape.tiles * rows / matrix->rows;
        for (uint32_t splits = 1; splits <= mimo_min(matrix->experts, T); splits++) {
            shape.splits = splits;
            const double cost = unevenness(&shape, matrix, gpu, 1, false) + unevenness(&shape, matrix, gpu, T, false);
            if (cost * padding < best) {
                best = cost * padding;
                *out = shape;
            }
        }
    }
}

void mimo_pick_attend(uint32_t *heads, uint32_t *splits, uint32_t N, uint32_t G, uint32_t W, const mimo_gpu *gpu)
{
    const uint32_t group = N / G;
    const uint32_t chunks = W > 0 ? ceil_div(W + T - 1, MIMO_TILE_CHUNK) + 1 : UINT32_MAX;
    if (chunks <= MIMO_ATTEND_FEW_CHUNKS) {
        uint32_t each = (uint32_t)mimo_min(ceil_div(N, gpu->sms), group);
        while (group % each != 0)
            each++;
        *heads = each;
        *splits = 1;
        return;
    }
    /* What a split has made of a head is written and merged, so rather fewer heads than more splits; two heads share
     * what is read of keys and values. */
    *heads = group;
    while (*heads % 2 == 0 && *heads > 2 && (*heads > ATTEND_HEADS || (uint64_t)2 * (N / *heads) * chunks <= gpu->sms))
        *heads /= 2;
    *splits = (uint32_t)mimo_max(1, mimo_min(mimo_min(gpu->sms / (N / *heads), chunks), MIMO_TILE_MOST_SPLITS));
}

uint32_t mimo_pick_span(uint32_t count, const mimo_gpu *gpu)
{
    return round_up(ceil_div(count, gpu->sms), MIMO_TILE_IDS);
}
