/* Attention of a layer, and the matrix after it: which worker computes what. */
#include "base/size.h"
#include "cpu/attend.h"

/* ---- tiles, each by one worker ---- */

/* How the queries of a step (a row's heads of one key/value head) are cut into tiles. */
typedef struct tiles {
    const mimo_task *task;
    const mimo_attention *a;
    size_t rows, heads;      /* of a tile */
    size_t count, per_group; /* tiles in all; those of one key/value head for the same rows */
    size_t along;            /* tiles of the same heads for all rows */
} tiles;

static tiles cut(const mimo_task *task, const mimo_attention *a, size_t rows, size_t heads)
{
    const size_t per_group = mimo_ceil_div(a->heads / a->kv_heads, heads);
    const size_t along = mimo_ceil_div(task->cpu->step->rows, rows);
    return (tiles){task, a, rows, heads, along * a->kv_heads * per_group, per_group, along};
}

/* Neighbouring tiles are of one key/value head: rows of one sequence find its keys in the caches. */
static mimo_tile tile_at(const tiles *all, size_t i)
{
    if (i >= all->count)
        return (mimo_tile){0};
    const size_t group = all->a->heads / all->a->kv_heads, part = i / all->along;
    const size_t first = part % all->per_group * all->heads;
    return mimo_tile_of(all->task, all->a, i % all->along * all->rows, all->rows, part / all->per_group * group + first,
                        mimo_min(all->heads, group - first));
}

/* `next` is computed after it. */
static void attend(const mimo_tile *x, const mimo_tile *next)
{
    const size_t heads = x->rows * x->heads, width = heads * ((size_t)x->a->v_head_dim + 2);
    float *memory = x->task->scratch->attention + MIMO_ATTEND_SCRATCH;
    const mimo_partial total = mimo_partial_at(memory, heads), part = mimo_partial_at(memory + width, heads);
    const float *queries = mimo_tile_queries(x, memory + 2 * width);
    for (size_t chunk = x->first; chunk < x->last; chunk++) {
        const bool last = chunk + 1 == x->last;
        mimo_tile_attend(x, chunk, queries, &total, &part, last ? next : x, last ? next->first : chunk + 1);
        mimo_tile_merge(x, chunk, &total, &part);
    }
}

static void attend_tiles(const tiles *all)
{
    mimo_worker *worker = all->task->worker;
    size_t i = mimo_pool_take(worker);
    for (mimo_tile x = tile_at(all, i), next; i < all->count; x = next) {
        i = mimo_pool_take(worker);
        next = tile_at(all, i);
        attend(&x, &next);
    }
}

/* ---- long contexts: a tile's chunks by several workers ---- */

/* The chunks of all tiles are computed in waves. While one wave is computed the one before is merged, in the order of
 * the chunks, so that the sum is the one that a single worker makes. */
typedef struct waves {
    tiles tiles;          /* of all heads of a key/value head */
    size_t count, chunks; /* waves, and chunks of a tile in each */
} waves;

/* Room for the results of all rows of a tile: of the first chunk that a row sees in the tile's total, of others in the
 * slot of their wave. Queries are numbered by key/value head, then row. */
static mimo_partial total_of(const waves *w, const mimo_tile *x)
{
    const mimo_cpu *cpu = w->tiles.task->cpu;
    const size_t query = x->head / x->heads * cpu->step->rows + x->t;
    return mimo_partial_at(cpu->split_total + query * cpu->split_width, x->rows * x->heads);
}

static mimo_partial slot_of(const waves *w, const mimo_tile *x, size_t chunk)
{
    const mimo_cpu *cpu = w->tiles.task->cpu;
    const size_t query = x->head / x->heads * cpu->step->rows + x->t, i = chunk - x->first;
    const size_t half = i / w->chunks % 2 * MIMO_SPLIT_PARTS * cpu->threads;
    return mimo_partial_at(cpu->split_part + (half + query * w->chunks + i % w->chunks * x->rows) * cpu->split_width,
                           x->rows * x->heads);
}

/* A chunk of a tile: in a wave units are those of one tile after those of another. */
typedef struct part {
    mimo_tile tile;
    size_t chunk;
} part;

static part part_at(const waves *w, size_t wave, size_t unit)
{
    part p = {.tile = tile_at(&w->tiles, unit / w->chunks)};
    p.chunk = p.tile.first + wave * w->chunks + unit % w->chunks;
    return p;
}

static void compute_part(const waves *w, const part *p, const part *next)
{
    const mimo_tile *x = &p->tile;
    const mimo_partial total = total_of(w, x), slot = slot_of(w, x, p->chunk);
    const float *queries = mimo_tile_queries(x, x->task->scratch->attention + MIMO_ATTEND_SCRATCH);
    mimo_tile_attend(x, p->chunk, queries, &total, &slot, &next->tile, next->chunk);
}

static void merge_wave(const waves *w, size_t wave, size_t number)
{
    const mimo_tile x = tile_at(&w->tiles, number);
    const size_t begin = x.first + wave * w->chunks;
    const mimo_partial total = total_of(w, &x);
    for (size_t chunk = begin; chunk < mimo_min(begin + w->chunks, x.last); chunk++) {
        const mimo_partial slot = slot_of(w, &x, chunk);
        mimo_tile_merge(&x, chunk, &total, &slot);
    }
}

static void attend_waves(const waves *w)
{
    mimo_worker *worker = w->tiles.task->worker;
    for (size_t wave = 0; wave <= w->count; wave++) {
        const size_t merges = wave > 0 ? w->tiles.count : 0, parts = wave < w->count ? w->tiles.count * w->chunks : 0;
        size_t unit = mimo_pool_take(worker);
        for (; unit < merges; unit = mimo_pool_take(worker))
            merge_wave(w, wave - 1, unit);
        part p = part_at(w, wave, unit - merges);
        while (unit < merges + parts) {
            unit = mimo_pool_take(worker);
            const part next = part_at(w, wave, unit - merges);
            compute_part(w, &p, &next);
            p = next;
        }
        if (wave < w->count)
            mimo_pool_barrier(worker, NULL, NULL);
    }
}

/* ---- which of both ---- */

/* Most chunks that a row of the step sees, or 0 if none sees more keys than one chunk holds: sharing pays from there
 * on. */
static size_t chunks_to_share(const mimo_task *task, const mimo_attention *a)
{
    size_t keys = 0, chunks = 0;
    for (size_t t = 0; t < task->cpu->step->rows; t++) {
        const mimo_sight s = mimo_sight_of(task->cpu, a, t);
        keys = mimo_max(keys, s.after - s.lowest);
        chunks = mimo_max(chunks, s.last - s.first);
    }
    return keys > MIMO_KV_CHUNK ? chunks : 0;
}

/* Rows of a tile: as many as leave each worker some of the units. */
static size_t tile_rows(const mimo_cpu *cpu, size_t units)
{
    size_t rows = 1;
    while (2 * rows <= MIMO_TILE_ROWS && 2 * rows * MIMO_TILES * cpu->threads <= units)
        rows *= 2;
    return rows;
}

/* Most chunks of a tile. */
static size_t longest(const tiles *all)
{
    size_t chunks = 0;
    for (size_t i = 0; i < all->along; i++) {
        const mimo_tile x = tile_at(all, i);
        chunks = mimo_max(chunks, x.last - x.first);
    }
    return chunks;
}

void mimo_cpu_attention(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_attention *a = mimo_layer_attention(cpu->config, task->op->layer);
    const size_t group = a->heads / a->kv_heads, queries = cpu->step->rows * a->kv_heads;
    const size_t chunks = chunks_to_share(task, a);
    if (chunks > 1 && cpu->threads > 1 && queries < MIMO_SPLIT_QUERIES * cpu->threads) {
        const size_t most = MIMO_SPLIT_PARTS * cpu->threads / queries;
        waves w = {.tiles = cut(task, a, tile_rows(cpu, queries * mimo_min(chunks, most)), group)};
        const size_t span = longest(&w.tiles);
        w.count = mimo_ceil_div(span, most);
        w.chunks = mimo_ceil_div(span, w.count);
        attend_waves(&w);
        return;
    }
    size_t heads = group;
    while (cpu->threads > 1 && heads > 1 && queries * mimo_ceil_div(group, heads) < MIMO_TILES * cpu->threads)
        heads = mimo_ceil_div(heads, 2);
    const tiles all = cut(task, a, chunks > 1 ? tile_rows(cpu, queries) : 1, heads);
    attend_tiles(&all);
}

void mimo_cpu_out_proj(const mimo_task *task)
{
    const mimo_cpu *cpu = task->cpu;
    const mimo_panel *panel = &cpu->layer[task->op->layer].out;
    mimo_act act = mimo_cpu_act(&cpu->a, panel->cols);
    mimo_gemm *gemm = mimo_cpu_gemm(cpu, panel);
    const mimo_units units = mimo_units_of(cpu, panel, 1);
    for (mimo_claim c = mimo_cpu_claim(task, &units); c.unit < units.count; mimo_cpu_claim_next(&c)) {
        const mimo_piece p = mimo_units_at(&units, c.unit);
        act.ahead = c.next < units.count ? mimo_cpu_ahead_unit(panel, &units, c.next) : mimo_cpu_ahead_next_op(task);
        gemm(task->scratch->gemm, 8 * p.octets, panel, p.octet, p.octets, &act, NULL, cpu->step->rows);
        mimo_cpu_add_residual(task, task->scratch->gemm, 8 * p.octets, p.octet, p.octets, false);
    }
}
