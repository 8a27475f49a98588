/* The outer loops of every gemm: an area of octets x rows is cut into tiles small enough for registers, and a tile body
 * is called with constant sizes so that it unrolls. An octet's weights are read from memory by its first tile and from
 * cache by the others; all of them share the work of asking memory for the octets to come. Include after the lanes. */
#ifndef MIMO_CPU_LANES_TILE_H
#define MIMO_CPU_LANES_TILE_H

#include "base/size.h"
#include "cpu/kernels.h"

/* How far ahead of its use data is asked for: enough for the latency of memory at a core's share of its bandwidth. */
enum { TILE_OCTETS = 4, TILE_AHEAD_BYTES = 4096, TILE_AHEAD_SCALES = 256 };

/* Rows of a tile, and of each of many: five times two octets are the most whose sums all stay in 16 registers; six are
 * still better than twice three. */
#ifndef TILE_ROWS
#define TILE_ROWS 6
#define TILE_USUAL_ROWS 5
#endif
/* Octets of a tile of more rows than one. */
#ifndef TILE_OCTETS_OF_MANY
#define TILE_OCTETS_OF_MANY 2
#endif

typedef struct tile {
    const mimo_act *x;
    size_t row[TILE_ROWS];          /* of x */
    float *y[TILE_ROWS];            /* where those rows' results begin */
    const uint8_t *data, *scales;   /* of the first octet */
    size_t data_bytes, scale_bytes; /* of one octet */
    const uint8_t *fetch;           /* what this tile is to prefetch: */
    size_t fetch_step;              /* bytes per block of 32 columns, a multiple of 64 */
    const uint8_t *end;             /* of the data of this call; beyond lies, as it were, `next` */
    const uint8_t *next, *next_end;
} tile;

/* T rows (1 .. TILE_ROWS) times O octets; both are constants once inlined. */
typedef void tile_body(const tile *c, size_t T, size_t O);

static ALWAYS_INLINE void fetch_lines(const uint8_t *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(from + i, 0, 3);
}

/* A body that wants its weights prefetched calls this once per block. */
static ALWAYS_INLINE void tile_fetch(const tile *c, size_t block)
{
    const uint8_t *from = c->fetch + block * c->fetch_step;
    if (from >= c->end) {
        from = c->next + (from - c->end);
        if (from >= c->next_end)
            return;
    }
    fetch_lines(from, c->fetch_step);
}

static ALWAYS_INLINE void tile_run_body(tile_body *body, const tile *c, size_t n, size_t O)
{
    if (TILE_ROWS >= 8 && n == 8)
        body(c, 8, O);
    else if (TILE_ROWS >= 7 && n == 7)
        body(c, 7, O);
    else if (n == 6)
        body(c, 6, O);
    else if (n == 5)
        body(c, 5, O);
    else if (n == 4)
        body(c, 4, O);
    else if (n == 3)
        body(c, 3, O);
    else if (n == 2)
        body(c, 2, O);
    else
        body(c, 1, O);
}

/* Rows of the next tile when so many are left. */
static ALWAYS_INLINE size_t tile_rows(size_t left)
{
    return left <= TILE_ROWS ? left : left < 2 * TILE_USUAL_ROWS - 1 ? (left + 1) / 2 : TILE_USUAL_ROWS;
}

/* How many tiles that makes of T. */
static ALWAYS_INLINE size_t tile_count(size_t T)
{
    return mimo_max((T + 2 * TILE_USUAL_ROWS - 1 - TILE_ROWS) / TILE_USUAL_ROWS, 1);
}

/* All T rows against O octets. */
static ALWAYS_INLINE void tile_run_rows(tile_body *body, tile *c, float *y, size_t ldy, const uint16_t *rows, size_t T,
                                        size_t O)
{
    const size_t tiles = tile_count(T);
    const size_t now = O * c->data_bytes, blocks = mimo_ceil_div(c->x->K, 32);
    c->fetch = c->data + mimo_max(now, TILE_AHEAD_BYTES);
    c->fetch_step = mimo_round_up(mimo_ceil_div(now, tiles * blocks), 64);
    for (size_t t = 0; t < T;) {
        const size_t n = tile_rows(T - t);
        for (size_t i = 0; i < n; i++, t++) {
            c->row[i] = rows != NULL ? rows[t] : t;
            c->y[i] = y + t * ldy;
        }
        tile_run_body(body, c, n, O);
        c->fetch += blocks * c->fetch_step;
    }
}

/* `wide` octets at a time for a single row, TILE_OCTETS_OF_MANY for more, and then two; single octets at the end. */
static ALWAYS_INLINE void tile_run(tile_body *body, size_t wide, float *y, size_t ldy, const mimo_panel *w,
                                   size_t octet, size_t octets, const mimo_act *x, const uint16_t *rows, size_t T)
{
    tile c = {.x = x};
    c.data_bytes = mimo_panel_octet_bytes(w->packing, w->cols);
    c.scale_bytes = mimo_panel_octet_scale_bytes(w->packing, w->cols);
    c.data = w->data + octet * c.data_bytes;
    c.scales = w->scales + octet * c.scale_bytes;
    c.end = c.data + octets * c.data_bytes;
    c.next = x->ahead.data != NULL ? x->ahead.data : c.end;
    c.next_end = c.next + x->ahead.bytes;
    fetch_lines(c.data, mimo_min(TILE_AHEAD_BYTES, octets * c.data_bytes));
    fetch_lines(x->ahead.scales, mimo_min(TILE_AHEAD_SCALES, x->ahead.bytes));
    const size_t most = T == 1 ? wide : TILE_OCTETS_OF_MANY;
    for (size_t done = 0; done < octets;) {
        const size_t left = octets - done, n = left >= most ? most : T > 1 && left >= 2 ? 2 : 1;
        if (n == 1)
            tile_run_rows(body, &c, y, ldy, rows, T, 1);
        else if (T == 1)
            tile_run_rows(body, &c, y, ldy, rows, 1, wide);
        else if (n == 2)
            tile_run_rows(body, &c, y, ldy, rows, T, 2);
        else
            tile_run_rows(body, &c, y, ldy, rows, T, TILE_OCTETS_OF_MANY);
        done += n;
        y += 8 * n;
        c.data += n * c.data_bytes;
        c.scales += n * c.scale_bytes;
    }
}

#endif
