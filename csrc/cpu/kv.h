/* The keys and values of one sequence.
 *
 * Positions are kept in chunks of 256 by absolute position, the unit in which attention sums. Full layers get a new
 * chunk for every 256 positions; sliding layers keep a ring of `ring` positions, enough for the window and a whole
 * step. In a chunk, for one layer and key/value head: keys [256/8][D][8] (eight positions side by side, so that
 * attention's lanes are keys), then values [256][Dv]. Elements are float (exact) or BF16. */
#ifndef MIMO_CPU_KV_H
#define MIMO_CPU_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"
#include "plan/backend.h"
#include "plan/span.h"

enum { MIMO_KV_CHUNK = 256 };

/* Where things lie in every cache of a model. */
typedef struct mimo_kv_layout {
    const mimo_config *config;
    size_t element_bytes;
    size_t ring;           /* positions kept by sliding layers, a multiple of MIMO_KV_CHUNK; 0: no such layer */
    size_t chunk_bytes[2]; /* bytes of 256 positions of all full, all sliding layers */
    size_t layer_offset[MIMO_MAX_LAYERS]; /* of a layer within the chunk of its kind */
    size_t head_bytes[2];                 /* one key/value head of one layer, 256 positions */
    size_t value_offset[2];               /* of the values within a head */
} mimo_kv_layout;

struct mimo_kv {
    const mimo_kv_layout *layout;
    mimo_kv *draft;    /* the drafter's keys and values of the same sequence, or NULL */
    mimo_kv_span span; /* in a drafter's cache */
    uint8_t *ring;     /* [ring / 256] chunks of the sliding layers */
    uint8_t **chunk;   /* [chunks] of the full layers */
    size_t chunks, chunk_slots;
    size_t written; /* one past the last position that any step wrote, drafts that were refused included */
};

void mimo_kv_layout_init(mimo_kv_layout *layout, const mimo_config *config, bool exact, size_t max_rows);

/* draft: the layout of the drafter's cache, or NULL; that of a cache is of its sequence and lives and dies with it. */
MIMO_MUST_CHECK mimo_status mimo_kv_open(mimo_kv **out, const mimo_kv_layout *layout, const mimo_kv_layout *draft,
                                         mimo_error *err);
/* Room for `positions` positions; what is cached stays. On failure the cache is as it was. */
MIMO_MUST_CHECK mimo_status mimo_kv_reserve(mimo_kv *kv, size_t positions, mimo_error *err);
/* Gives back what lies beyond `positions` positions. */
void mimo_kv_trim(mimo_kv *kv, size_t positions);
/* The first `positions` positions of a sequence, as far as the cache still has them. */
void mimo_kv_copy(mimo_kv *to, const mimo_kv *from, size_t positions);
void mimo_kv_close(mimo_kv *kv);

/* The 256 positions of `layer` and key/value head `g` that hold `position`; *values is set to its values. */
uint8_t *mimo_kv_head(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, uint8_t **values);

/* Writes the key [D] (after the rotary embedding) or value [Dv] (after the value scale) of one position. */
void mimo_kv_write_key(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, const float *key, size_t first,
                       size_t count);
void mimo_kv_write_value(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, const float *value,
                         size_t first, size_t count);

#endif
