#include "model/index.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

enum { MAX_RANK = 4 };

/* tensor 0: empty, else one more than its number. */
typedef struct mimo_index_slot {
    uint32_t tensor, hash;
} slot;

typedef struct span {
    uint64_t begin, end;
    uint32_t file, tensor;
} span;

/* Seeded with an address, so that a file cannot hold a list of names made to collide. */
static uint32_t hash_name(const mimo_index *index, const char *name)
{
    uint64_t hash = (uint64_t)(uintptr_t)index->slot * 0x9e3779b97f4a7c15u;
    for (; *name != '\0'; name++) {
        hash = (hash ^ (unsigned char)*name) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

/* The slot that holds `name`, or the empty one where it would go. */
static slot *find_slot(const mimo_index *index, const char *name, uint32_t hash)
{
    for (size_t i = hash & (index->slots - 1);; i = (i + 1) & (index->slots - 1)) {
        slot *at = &index->slot[i];
        if (at->tensor == 0 || (at->hash == hash && strcmp(index->tensors[at->tensor - 1].name, name) == 0))
            return at;
    }
}

/* 0 for a dtype that no weight has. */
static size_t element_bytes(mimo_dtype dtype)
{
    switch (dtype) {
    case MIMO_DTYPE_F32:
        return 4;
    case MIMO_DTYPE_BF16:
        return 2;
    case MIMO_DTYPE_F8_E4M3:
    case MIMO_DTYPE_U8:
        return 1;
    default:
        return 0;
    }
}

static mimo_status check_span(const mimo_tensor *t, const uint64_t *file_bytes, size_t files, mimo_error *err)
{
    const unsigned long long begin = t->begin, end = t->end;
    if (t->rank > MAX_RANK)
        return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: expected at most %d dimensions, found %u", t->name, MAX_RANK,
                         t->rank);
    if (t->file >= files)
        return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: expected a file number below %zu, found %u", t->name, files,
                         t->file);
    if (t->begin > t->end || t->end > file_bytes[t->file])
        return MIMO_FAIL(err, MIMO_ERR_FORMAT,
                         "%s: expected a span within the %llu bytes of its file, found [%llu, %llu)", t->name,
                         (unsigned long long)file_bytes[t->file], begin, end);
    size_t bytes = element_bytes(t->dtype);
    if (bytes == 0)
        return MIMO_OK; /* an error of its own if the model wants it, superfluous otherwise */
    for (uint32_t i = 0; i < t->rank; i++)
        if (!mimo_size_mul(bytes, t->shape[i], &bytes))
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: its shape has more bytes than 64 bits can count", t->name);
    if (t->end - t->begin != bytes)
        return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: expected a span of %zu bytes by its dtype %s and shape, found %llu",
                         t->name, bytes, t->dtype_name, end - begin);
    return MIMO_OK;
}

static bool span_before(const span *a, const span *b)
{
    return a->file != b->file ? a->file < b->file : a->begin < b->begin;
}

static void sift_down(span *spans, size_t at, size_t count)
{
    const span moved = spans[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && span_before(&spans[child], &spans[child + 1]))
            child++;
        if (!span_before(&moved, &spans[child]))
            break;
        spans[at] = spans[child];
    }
    spans[at] = moved;
}

/* A heap sort: qsort may allocate, and may be quadratic on spans chosen to make it so. */
static void sort_spans(span *spans, size_t count)
{
    for (size_t i = count / 2; i-- > 0;)
        sift_down(spans, i, count);
    for (size_t i = count; i-- > 1;) {
        const span last = spans[i];
        spans[i] = spans[0];
        spans[0] = last;
        sift_down(spans, 0, i);
    }
}

static mimo_status check_overlap(const mimo_index *index, mimo_error *err)
{
    span *spans;
    MIMO_TRY(mimo_alloc_array(&spans, index->count, sizeof *spans, "the spans of the tensors", err));
    size_t count = 0;
    for (size_t i = 0; i < index->count; i++) {
        const mimo_tensor *t = &index->tensors[i];
        if (t->end > t->begin)
            spans[count++] = (span){.begin = t->begin, .end = t->end, .file = t->file, .tensor = (uint32_t)i};
    }
    sort_spans(spans, count);
    mimo_status status = MIMO_OK;
    for (size_t i = 1; i < count && status == MIMO_OK; i++) {
        const span *a = &spans[i - 1], *b = &spans[i];
        if (a->file == b->file && b->begin < a->end)
            status =
                MIMO_FAIL(err, MIMO_ERR_FORMAT,
                          "%s: expected bytes of its own, found [%llu, %llu) overlapping %s at [%llu, %llu)",
                          index->tensors[b->tensor].name, (unsigned long long)b->begin, (unsigned long long)b->end,
                          index->tensors[a->tensor].name, (unsigned long long)a->begin, (unsigned long long)a->end);
    }
    mimo_free(spans);
    return status;
}

static mimo_status fill(mimo_index *index, const uint64_t *file_bytes, size_t files, mimo_error *err)
{
    if (index->count >= UINT32_MAX / 2)
        return MIMO_FAIL(err, MIMO_ERR_FORMAT, "expected fewer than %u tensors, found %zu", UINT32_MAX / 2,
                         index->count);
    index->slots = 16;
    while (index->slots < 2 * index->count)
        index->slots *= 2;
    MIMO_TRY(mimo_alloc_array(&index->slot, index->slots, sizeof *index->slot, "the index of the tensors", err));
    MIMO_TRY(mimo_alloc_array(&index->taken, index->count, 1, "the index of the tensors", err));
    for (size_t i = 0; i < index->count; i++) {
        const mimo_tensor *t = &index->tensors[i];
        const uint32_t hash = hash_name(index, t->name);
        slot *at = find_slot(index, t->name, hash);
        if (at->tensor != 0)
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: expected once, found twice", t->name);
        *at = (slot){.tensor = (uint32_t)i + 1, .hash = hash};
        MIMO_TRY(check_span(t, file_bytes, files, err));
    }
    return check_overlap(index, err);
}

mimo_status mimo_index_open(mimo_index *index, const mimo_tensor *tensors, size_t count, const uint64_t *file_bytes,
                            size_t files, mimo_error *err)
{
    *index = (mimo_index){.tensors = tensors, .count = count};
    const mimo_status status = fill(index, file_bytes, files, err);
    if (status != MIMO_OK)
        mimo_index_close(index);
    return status;
}

void mimo_index_close(mimo_index *index)
{
    mimo_free(index->slot);
    mimo_free(index->taken);
    *index = (mimo_index){0};
}

const mimo_tensor *mimo_index_find(const mimo_index *index, const char *name)
{
    const slot *at = find_slot(index, name, hash_name(index, name));
    return at->tensor == 0 ? NULL : &index->tensors[at->tensor - 1];
}

const mimo_tensor *mimo_index_take(mimo_index *index, const char *name)
{
    const mimo_tensor *tensor = mimo_index_find(index, name);
    if (tensor != NULL)
        index->taken[tensor - index->tensors] = 1;
    return tensor;
}

const mimo_tensor *mimo_index_untaken(const mimo_index *index)
{
    for (size_t i = 0; i < index->count; i++)
        if (!index->taken[i])
            return &index->tensors[i];
    return NULL;
}
