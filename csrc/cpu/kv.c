#include "cpu/kv.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "format/bf16.h"

void mimo_kv_layout_init(mimo_kv_layout *layout, const mimo_config *config, bool exact, size_t max_rows)
{
    *layout = (mimo_kv_layout){.config = config, .element_bytes = exact ? sizeof(float) : sizeof(uint16_t)};
    for (int kind = MIMO_FULL; kind <= MIMO_SLIDING; kind++) {
        const mimo_attention *a = &config->attention[kind];
        layout->value_offset[kind] = (size_t)MIMO_KV_CHUNK * a->head_dim * layout->element_bytes;
        layout->head_bytes[kind] =
            (size_t)MIMO_KV_CHUNK * ((size_t)a->head_dim + a->v_head_dim) * layout->element_bytes;
    }
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        const int kind = config->sliding[layer];
        layout->layer_offset[layer] = layout->chunk_bytes[kind];
        layout->chunk_bytes[kind] += config->attention[kind].kv_heads * layout->head_bytes[kind];
    }
    /* A step writes its rows before it reads: its first row must still find the window behind it. */
    if (layout->chunk_bytes[MIMO_SLIDING] > 0)
        layout->ring = mimo_round_up(config->attention[MIMO_SLIDING].window + max_rows - 1, MIMO_KV_CHUNK);
}

mimo_status mimo_kv_open(mimo_kv **out, const mimo_kv_layout *layout, const mimo_kv_layout *draft, mimo_error *err)
{
    mimo_kv *kv;
    MIMO_TRY(mimo_alloc_array(&kv, 1, sizeof *kv, "KV cache", err));
    kv->layout = layout;
    mimo_status status = MIMO_OK;
    if (layout->ring > 0)
        status = mimo_alloc_array(&kv->ring, layout->ring / MIMO_KV_CHUNK, layout->chunk_bytes[MIMO_SLIDING],
                                  "KV ring of sliding layers", err);
    if (status == MIMO_OK && draft != NULL)
        status = mimo_kv_open(&kv->draft, draft, NULL, err);
    if (status != MIMO_OK) {
        mimo_kv_close(kv);
        return status;
    }
    *out = kv;
    return MIMO_OK;
}

static mimo_status reserve_slots(mimo_kv *kv, size_t slots, mimo_error *err)
{
    if (slots <= kv->chunk_slots)
        return MIMO_OK;
    uint8_t **chunk;
    slots = mimo_max(slots, 2 * kv->chunk_slots);
    MIMO_TRY(mimo_alloc_array(&chunk, slots, sizeof *chunk, "KV chunk table", err));
    if (kv->chunks > 0)
        memcpy(chunk, kv->chunk, kv->chunks * sizeof *chunk);
    mimo_free(kv->chunk);
    kv->chunk = chunk;
    kv->chunk_slots = slots;
    return MIMO_OK;
}

mimo_status mimo_kv_reserve(mimo_kv *kv, size_t positions, mimo_error *err)
{
    if (kv->draft != NULL) /* a block may begin at the last position */
        MIMO_TRY(mimo_kv_reserve(kv->draft, positions + MIMO_MAX_BLOCK - 1, err));
    if (kv->layout->chunk_bytes[MIMO_FULL] == 0)
        return MIMO_OK;
    const size_t chunks = mimo_ceil_div(positions, MIMO_KV_CHUNK);
    MIMO_TRY(reserve_slots(kv, chunks, err));
    const size_t had = kv->chunks;
    for (; kv->chunks < chunks; kv->chunks++) {
        const mimo_status status = mimo_alloc_array(&kv->chunk[kv->chunks], 1, kv->layout->chunk_bytes[MIMO_FULL],
                                                    "KV cache chunk of 256 positions", err);
        if (status != MIMO_OK) {
            while (kv->chunks > had)
                mimo_free(kv->chunk[--kv->chunks]);
            return status;
        }
    }
    return MIMO_OK;
}

void mimo_kv_trim(mimo_kv *kv, size_t positions)
{
    if (kv->draft != NULL)
        mimo_kv_trim(kv->draft, positions);
    while (kv->chunks > mimo_ceil_div(positions, MIMO_KV_CHUNK))
        mimo_free(kv->chunk[--kv->chunks]);
}

/* The first `count` positions of a chunk, and no more: the rest of its pages takes no memory yet. */
static void copy_chunk(const mimo_kv_layout *layout, uint8_t *to, const uint8_t *from, size_t kind, size_t count)
{
    const mimo_attention *a = &layout->config->attention[kind];
    const size_t keys = mimo_round_up(count, 8) * a->head_dim * layout->element_bytes;
    const size_t values = count * a->v_head_dim * layout->element_bytes, value_offset = layout->value_offset[kind];
    for (size_t at = 0; at < layout->chunk_bytes[kind]; at += layout->head_bytes[kind]) {
        memcpy(to + at, from + at, keys);
        memcpy(to + at + value_offset, from + at + value_offset, values);
    }
}

void mimo_kv_copy(mimo_kv *to, const mimo_kv *from, size_t positions)
{
    const mimo_kv_layout *layout = from->layout;
    for (size_t i = 0, at = 0; i < from->chunks && at < positions; i++, at += MIMO_KV_CHUNK)
        copy_chunk(layout, to->chunk[i], from->chunk[i], MIMO_FULL, mimo_min(positions - at, MIMO_KV_CHUNK));
    const size_t in_ring = mimo_min(positions, layout->ring), bytes = layout->chunk_bytes[MIMO_SLIDING];
    for (size_t at = 0; at < in_ring; at += MIMO_KV_CHUNK) {
        const size_t offset = at / MIMO_KV_CHUNK * bytes;
        copy_chunk(layout, to->ring + offset, from->ring + offset, MIMO_SLIDING, mimo_min(in_ring - at, MIMO_KV_CHUNK));
    }
    to->written = from->written;
    if (from->draft != NULL) {
        mimo_kv_copy(to->draft, from->draft, positions);
        to->draft->span = from->draft->span;
        mimo_span_cut(&to->draft->span, to->draft->layout->ring, positions);
    }
}

void mimo_kv_close(mimo_kv *kv)
{
    if (kv == NULL)
        return;
    mimo_kv_close(kv->draft);
    for (size_t i = 0; i < kv->chunks; i++)
        mimo_free(kv->chunk[i]);
    mimo_free(kv->chunk);
    mimo_free(kv->ring);
    mimo_free(kv);
}

uint8_t *mimo_kv_head(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, uint8_t **values)
{
    const mimo_kv_layout *layout = kv->layout;
    const int kind = layout->config->sliding[layer];
    uint8_t *chunk = kind == MIMO_SLIDING
                         ? kv->ring + position % layout->ring / MIMO_KV_CHUNK * layout->chunk_bytes[MIMO_SLIDING]
                         : kv->chunk[position / MIMO_KV_CHUNK];
    uint8_t *head = chunk + layout->layer_offset[layer] + g * layout->head_bytes[kind];
    *values = head + layout->value_offset[kind];
    return head;
}

void mimo_kv_write_key(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, const float *key, size_t first,
                       size_t count)
{
    uint8_t *values;
    uint8_t *keys = mimo_kv_head(kv, layer, g, position, &values);
    const size_t D = mimo_layer_attention(kv->layout->config, layer)->head_dim;
    const size_t slot = position % MIMO_KV_CHUNK;
    const size_t at = (slot / 8 * D + first) * 8 + slot % 8;
    if (kv->layout->element_bytes == sizeof(float)) {
        float *to = (float *)(void *)keys + at;
        for (size_t d = 0; d < count; d++)
            to[8 * d] = key[d];
    } else {
        uint16_t *to = (uint16_t *)(void *)keys + at;
        for (size_t d = 0; d < count; d++)
            to[8 * d] = mimo_bf16_encode(key[d]);
    }
}

void mimo_kv_write_value(const mimo_kv *kv, uint32_t layer, uint32_t g, size_t position, const float *value,
                         size_t first, size_t count)
{
    uint8_t *values;
    mimo_kv_head(kv, layer, g, position, &values);
    const size_t Dv = mimo_layer_attention(kv->layout->config, layer)->v_head_dim;
    const size_t at = position % MIMO_KV_CHUNK * Dv + first;
    if (kv->layout->element_bytes == sizeof(float)) {
        memcpy((float *)(void *)values + at, value, count * sizeof(float));
    } else {
        uint16_t *to = (uint16_t *)(void *)values + at;
        for (size_t d = 0; d < count; d++)
            to[d] = mimo_bf16_encode(value[d]);
    }
}
