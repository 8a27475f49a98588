#include "cuda/memory.h"

#include <stdio.h>

#include "base/size.h"

static uint64_t per_sequence(const mimo_cuda_memory *m)
{
    return m->ring[0] + m->ring[1] + m->table[0] + m->table[1];
}

/* All that does not depend on how many chunks there are. */
static uint64_t fixed_bytes(const mimo_cuda_memory *m)
{
    return m->weights + m->embedding + m->draft_weights + m->tables + m->work + MIMO_CUDA_SEQUENCES * per_sequence(m) +
           MIMO_CUDA_RESERVE + m->kept;
}

static uint64_t pair_bytes(const mimo_cuda_memory *m)
{
    return m->chunk[0] + m->chunk[1];
}

bool mimo_cuda_memory_item(const mimo_cuda_memory *m, size_t item, const char **what, uint64_t *bytes)
{
    const struct {
        const char *what;
        uint64_t bytes;
    } items[] = {
        {"weights", m->weights},
        {"embedding", m->embedding},
        {"the drafter's weights", m->draft_weights},
        {"tables", m->tables},
        {"rows of a step", m->work},
        {"rings and tables of sequences", MIMO_CUDA_SEQUENCES * per_sequence(m)},
        {"left to the driver", MIMO_CUDA_RESERVE},
        {"left to the measurement", m->kept},
        {"keys and values", m->chunks * pair_bytes(m)},
        {"in all", fixed_bytes(m) + m->chunks * pair_bytes(m)},
        {"free on the GPU", m->available},
    };
    if (item >= sizeof items / sizeof *items)
        return false;
    *what = items[item].what;
    *bytes = items[item].bytes;
    return true;
}

/* The table, a line an item. */
static void memory_text(char *text, size_t size, const mimo_cuda_memory *m)
{
    size_t length = 0;
    const char *what = "";
    uint64_t bytes = 0;
    for (size_t i = 0; mimo_cuda_memory_item(m, i, &what, &bytes); i++) {
        if (bytes == 0) /* nothing to say */
            continue;
        const size_t at = mimo_min(length, size);
        const int wrote =
            snprintf(text + at, size - at, "%s  %12.1f MB  %s", length > 0 ? "\n" : "", (double)bytes / 1e6, what);
        length += wrote > 0 ? (size_t)wrote : 0;
    }
}

/* Bytes of one sequence's sliding layers, of 256 positions of its full layers, and of the table of those. */
static void count_cache(mimo_cuda_memory *m, int which, const mimo_cuda_model *model)
{
    const mimo_cuda_kv_layout *kv = &model->state.kv;
    m->ring[which] = kv->ring / MIMO_CUDA_CHUNK * (uint64_t)kv->chunk_bytes[MIMO_SLIDING];
    m->chunk[which] = kv->chunk_bytes[MIMO_FULL];
    m->table[which] = m->chunk[which] > 0 ? mimo_round_up(m->chunk_slots * sizeof(void *), 256) : 0;
}

/* Fills in what the rest holds. */
static mimo_status count_chunks(mimo_cuda_memory *m, mimo_error *err)
{
    const uint64_t pair = pair_bytes(m), fixed = fixed_bytes(m);
    m->spare = m->chunk[1] > 0 ? MIMO_CUDA_SEQUENCES : 0;
    const uint64_t least = pair > 0 ? m->spare + 1 : 0, most = pair > 0 ? MIMO_CUDA_SEQUENCES * m->chunk_slots : 0;
    const bool fits = fixed <= m->available && least <= (m->available - fixed) / (pair > 0 ? pair : 1);
    m->chunks = fits && pair > 0 ? (m->available - fixed) / pair : least;
    m->chunks = m->chunks < most ? m->chunks : most;
    if (fits)
        return MIMO_OK;
    char text[400];
    memory_text(text, sizeof text, m);
    return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the model does not fit on the GPU\n%s", text);
}

static mimo_status plan_models(mimo_cuda_memory *m, mimo_cuda_model *target, mimo_cuda_model *drafter, bool exact,
                               uint32_t max_context, mimo_error *err)
{
    mimo_cuda_places places = {0};
    mimo_cuda_place(target, NULL, &places, exact, max_context);
    m->embedding = places.embedding;
    m->weights = places.weights.used - places.embedding;
    count_cache(m, 0, target);
    if (drafter->config != NULL) {
        mimo_cuda_place(drafter, target, &places, exact, max_context);
        m->draft_weights = places.weights.used - m->weights - m->embedding;
        count_cache(m, 1, drafter);
    }
    m->weights += m->pages[0];
    m->draft_weights += m->pages[1];
    m->tables = places.tables.used;
    m->work = places.work.used + m->resident;
    if (places.weights.overflow || places.tables.overflow || places.work.overflow)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the model exceeds the address space");
    return count_chunks(m, err);
}

mimo_status mimo_cuda_plan_memory(mimo_cuda_memory *out, const mimo_config *config, const mimo_weights *weights,
                                  const mimo_draft *draft, const mimo_cuda_paged *paged, bool exact,
                                  uint32_t max_context, uint64_t available, uint64_t kept, mimo_error *err)
{
    *out = (mimo_cuda_memory){.available = available, .kept = kept};
    if (paged != NULL) {
        out->pages[0] = paged->pages[0];
        out->pages[1] = paged->pages[1];
        out->resident = paged->work;
    }
    /* a block may begin at the last position */
    out->chunk_slots = mimo_ceil_div((size_t)max_context + (draft != NULL ? MIMO_MAX_BLOCK - 1 : 0), MIMO_CUDA_CHUNK);
    mimo_cuda_model target = {0}, drafter = {0};
    mimo_status status = mimo_cuda_model_open(&target, config, weights, NULL, err);
    if (status == MIMO_OK && draft != NULL)
        status = mimo_cuda_model_open(&drafter, &draft->config.model, &draft->weights, &draft->config, err);
    target.paged = drafter.paged = paged != NULL;
    if (status == MIMO_OK)
        status = plan_models(out, &target, &drafter, exact, max_context, err);
    mimo_cuda_model_close(&target);
    mimo_cuda_model_close(&drafter);
    return status;
}
