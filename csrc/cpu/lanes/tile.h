/* The outer loops of every gemm: an area of octets x rows is cut into tiles small enough for registers, and a tile body
 * is called with constant sizes so that it unrolls. An octet's weights are read from memory by its first tile and from
 * cache by the others. */
#ifndef MIMO_CPU_LANES_TILE_H
#define MIMO_CPU_LANES_TILE_H

#include "cpu/kernels.h"

enum { TILE_ROWS = 4, TILE_OCTETS = 4 };

typedef struct tile {
    const mimo_act *x;
    size_t row[TILE_ROWS]; /* of x */
    float *y[TILE_ROWS];   /* where those rows' results begin */
    const uint8_t *data;   /* of the first octet */
    const uint8_t *scales;
    size_t data_bytes, scale_bytes; /* of one octet */
} tile;

/* T rows (1..4) times O octets; both are constants once inlined. */
typedef void tile_body(const tile *c, size_t T, size_t O);

static ALWAYS_INLINE void tile_run_rows(tile_body *body, tile *c, float *y, size_t ldy, const uint16_t *rows, size_t T,
                                        size_t O)
{
    for (size_t t = 0; t < T; t += TILE_ROWS) {
        const size_t n = T - t < TILE_ROWS ? T - t : TILE_ROWS;
        for (size_t i = 0; i < n; i++) {
            c->row[i] = rows != NULL ? rows[t + i] : t + i;
            c->y[i] = y + (t + i) * ldy;
        }
        if (n == 4)
            body(c, 4, O);
        else if (n == 3)
            body(c, 3, O);
        else if (n == 2)
            body(c, 2, O);
        else
            body(c, 1, O);
    }
}

/* `wide` octets at a time for a single row, `narrow` for more; single octets at the end. */
static ALWAYS_INLINE void tile_run(tile_body *body, size_t wide, size_t narrow, float *y, size_t ldy,
                                   const mimo_panel *w, size_t octet, size_t octets, const mimo_act *x,
                                   const uint16_t *rows, size_t T)
{
    tile c = {.x = x};
    c.data_bytes = mimo_panel_octet_bytes(w->packing, w->cols);
    c.scale_bytes = mimo_panel_octet_scale_bytes(w->packing, w->cols);
    c.data = w->data + octet * c.data_bytes;
    c.scales = w->scales + octet * c.scale_bytes;
    size_t done = 0;
    while (done < octets) {
        size_t n = 1;
        if (T == 1 && octets - done >= wide) {
            n = wide;
            c.row[0] = rows != NULL ? rows[0] : 0;
            c.y[0] = y;
            body(&c, 1, wide);
        } else if (octets - done >= narrow) {
            n = narrow;
            tile_run_rows(body, &c, y, ldy, rows, T, narrow);
        } else {
            tile_run_rows(body, &c, y, ldy, rows, T, 1);
        }
        done += n;
        y += 8 * n;
        c.data += n * c.data_bytes;
        c.scales += n * c.scale_bytes;
    }
}

#endif
