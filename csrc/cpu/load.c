/* From the checkpoint's files into packed panels: sizes first, then one slab, then units of rows read and packed by all
 * workers. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cpu/cpu.h"
#include "cpu/draft.h"
#include "format/mxfp4.h"

/* Of source that a worker reads at a time. Whoever packs a unit is the first to write its pages, which are then of its
 * memory node: so every node's workers pack the node's shares, and nobody helps them. */
enum { UNIT_BYTES = 1 << 20 };
/* Rows looked at together, in eights, for levels: most matrices have none in their first block. */
enum { SURVEY_OCTETS = 8 };

/* One matrix to pack. */
typedef struct item {
    mimo_panel *panel;
    const mimo_matrix *matrix;
} item;

/* FLOAT: read with float rows, so it stays as stored: a router, which decides what experts run, and tables. */
typedef enum role { ROLE_QKV, ROLE_OUT, ROLE_FLOAT, ROLE_EXPERT, ROLE_DENSE, ROLE_HEAD } role;

typedef void visit(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context);

/* What a drafter has beside its layers. Its head is the target's, unless it drafts some ids only. */
static void visit_draft(mimo_cpu *cpu, visit *fn, void *context)
{
    mimo_cpu_draft *draft = cpu->draft;
    const mimo_weights *w = cpu->weights;
    fn(cpu, &draft->fuse, &w->fuse, ROLE_DENSE, context);
    if (cpu->config->markov_rank > 0) {
        fn(cpu, &draft->markov_in, &w->markov_in, ROLE_FLOAT, context);
        fn(cpu, &draft->markov_out, &w->markov_out, ROLE_FLOAT, context);
    }
    if (draft->config->target_id != NULL)
        fn(cpu, &cpu->head, &w->head, ROLE_HEAD, context);
}

/* Every packed matrix in the order in which a step reads them. */
static void visit_panels(mimo_cpu *cpu, visit *fn, void *context)
{
    for (uint32_t i = 0; i < cpu->config->layers; i++) {
        const mimo_layer_weights *w = &cpu->weights->layer[i];
        mimo_cpu_layer *layer = &cpu->layer[i];
        const role mlp = cpu->config->sparse[i] ? ROLE_EXPERT : ROLE_DENSE;
        fn(cpu, &layer->qkv, &w->qkv, ROLE_QKV, context);
        /* Attention output is quantised head by head: its matrix takes int8 rows only if heads are whole blocks. */
        const bool whole = mimo_layer_attention(cpu->config, i)->v_head_dim % MIMO_MX_BLOCK == 0;
        fn(cpu, &layer->out, &w->out, whole ? ROLE_OUT : ROLE_FLOAT, context);
        if (mlp == ROLE_EXPERT)
            fn(cpu, &layer->router, &w->router, ROLE_FLOAT, context);
        for (uint32_t e = 0; e < w->mlps; e++) {
            fn(cpu, &layer->gate[e], &w->gate[e], mlp, context);
            fn(cpu, &layer->up[e], &w->up[e], mlp, context);
            fn(cpu, &layer->down[e], &w->down[e], mlp, context);
        }
    }
    if (cpu->config->taps > 0)
        visit_draft(cpu, fn, context);
    else
        fn(cpu, &cpu->head, &cpu->weights->head, ROLE_HEAD, context);
}

typedef struct totals {
    size_t slab;
    uint64_t per_token, experts;
    bool overflow;
} totals;

/* Octets of one unit of work. */
static size_t unit_octets(const mimo_matrix *matrix)
{
    const size_t octet_bytes = 8 * mimo_format_row_bytes(matrix->format, matrix->cols);
    return mimo_max(1, UNIT_BYTES / mimo_max(1, octet_bytes));
}

static void add_bytes(totals *t, size_t *sum, size_t count, size_t size)
{
    size_t bytes;
    t->overflow |= !mimo_size_mul(count, size, &bytes) || !mimo_size_add(*sum, bytes, sum);
}

static void plan_panel(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context)
{
    uint64_t *source = context;
    const bool fast = !cpu->exact && use != ROLE_FLOAT;
    *panel = (mimo_panel){
        .packing = mimo_packing_choose(matrix->format, matrix->cols, fast), .rows = matrix->rows, .cols = matrix->cols};
    *source += (uint64_t)matrix->rows * mimo_format_row_bytes(matrix->format, matrix->cols);
}

static void add_panel(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context)
{
    (void)cpu;
    (void)matrix;
    totals *t = context;
    const size_t octets = mimo_panel_octets(panel);
    const size_t before = t->slab;
    add_bytes(t, &t->slab, octets, mimo_panel_octet_bytes(panel->packing, panel->cols));
    t->slab = mimo_round_up(t->slab, 64);
    add_bytes(t, &t->slab, octets, mimo_panel_octet_scale_bytes(panel->packing, panel->cols));
    t->slab = mimo_round_up(t->slab, 64);
    *(use == ROLE_EXPERT ? &t->experts : &t->per_token) += t->slab - before;
}

/* What the panels take, by their packings. */
static mimo_status count_panels(mimo_cpu *cpu, mimo_error *err)
{
    const mimo_config *c = cpu->config;
    totals t = {0};
    visit_panels(cpu, add_panel, &t);
    if (t.overflow)
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: the packed weights exceed the address space");
    cpu->slab_bytes = t.slab;
    cpu->base.memory.read_per_token = t.per_token + (c->experts > 0 ? t.experts * c->top_k / c->experts : 0);
    return MIMO_OK;
}

static void place_panel(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context)
{
    (void)matrix;
    (void)use;
    size_t *at = context;
    const size_t octets = mimo_panel_octets(panel);
    panel->data = cpu->slab + *at;
    *at = mimo_round_up(*at + octets * mimo_panel_octet_bytes(panel->packing, panel->cols), 64);
    const size_t scale_bytes = octets * mimo_panel_octet_scale_bytes(panel->packing, panel->cols);
    panel->scales = scale_bytes > 0 ? cpu->slab + *at : NULL;
    *at = mimo_round_up(*at + scale_bytes, 64);
}

static size_t embed_bytes(const mimo_cpu *cpu)
{
    const mimo_matrix *table = &cpu->weights->embed; /* without rows in a drafter */
    return (size_t)table->rows * mimo_format_row_bytes(table->format, table->cols);
}

mimo_status mimo_cpu_plan_weights(mimo_cpu *cpu, mimo_error *err)
{
    const mimo_config *c = cpu->config;
    size_t mlps = 0;
    for (uint32_t i = 0; i < c->layers; i++)
        mlps += cpu->weights->layer[i].mlps;
    MIMO_TRY(mimo_alloc_array(&cpu->panels, 3 * mlps, sizeof *cpu->panels, "table of MLP matrices", err));
    mimo_panel *next = cpu->panels;
    for (uint32_t i = 0; i < c->layers; i++) {
        const uint32_t n = cpu->weights->layer[i].mlps;
        cpu->layer[i].gate = next;
        cpu->layer[i].up = next + n;
        cpu->layer[i].down = next + 2 * (size_t)n;
        next += 3 * (size_t)n;
    }
    cpu->base.load_bytes = cpu->base.memory.embedding = embed_bytes(cpu);
    visit_panels(cpu, plan_panel, &cpu->base.load_bytes);
    return count_panels(cpu, err);
}

/* ---- loading ---- */

typedef struct loader {
    mimo_cpu *cpu;
    const mimo_file *files;
    atomic_uint_fast64_t *done;
    const atomic_bool *cancel;
    item *item;    /* [items] */
    size_t *first; /* [nodes * (items + 1) + 1] units before each item's share of each node, and the embedding's */
    size_t items, shares, units, embed_rows;
    uint8_t *scratch; /* [threads, scratch_bytes] */
    size_t scratch_bytes;
    pthread_mutex_t mutex;
    atomic_bool failed;
    mimo_error error;
} loader;

static void collect_panel(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context)
{
    (void)cpu;
    (void)use;
    loader *l = context;
    l->item[l->items++] = (item){panel, matrix};
}

static size_t share_octets(const loader *l, const item *it, size_t node)
{
    const size_t octets = mimo_panel_octets(it->panel);
    return mimo_cpu_home(l->cpu, octets, node + 1) - mimo_cpu_home(l->cpu, octets, node);
}

/* Cuts all that is to read into units, those of a node side by side. */
static void cut_units(loader *l)
{
    const mimo_pool *pool = l->cpu->pool;
    const size_t pieces = mimo_ceil_div(l->cpu->weights->embed.rows, l->embed_rows), threads = l->cpu->threads;
    for (size_t n = 0; n < mimo_pool_nodes(pool); n++) {
        for (size_t i = 0; i < l->items; i++) {
            l->first[l->shares++] = l->units;
            l->units += mimo_ceil_div(share_octets(l, &l->item[i], n), unit_octets(l->item[i].matrix));
        }
        l->first[l->shares++] = l->units;
        l->units += pieces * mimo_pool_first(pool, n + 1) / threads - pieces * mimo_pool_first(pool, n) / threads;
    }
    l->first[l->shares] = l->units;
}

static void count_panel(mimo_cpu *cpu, mimo_panel *panel, const mimo_matrix *matrix, role use, void *context)
{
    (void)cpu;
    (void)panel;
    (void)use;
    loader *l = context;
    l->items++;
    const size_t most = mimo_max(unit_octets(matrix), SURVEY_OCTETS);
    l->scratch_bytes = mimo_max(l->scratch_bytes, mimo_pack_scratch_bytes(matrix, most));
}

static mimo_status load_embedding(loader *l, size_t unit, mimo_error *err)
{
    const mimo_matrix *m = &l->cpu->weights->embed;
    const size_t row_bytes = mimo_format_row_bytes(m->format, m->cols);
    const size_t first = unit * l->embed_rows;
    const size_t rows = mimo_min(l->embed_rows, m->rows - first);
    uint8_t *to = l->cpu->embed + first * row_bytes;
    const mimo_segment *s = &m->segment[0]; /* a table is never cut in segments: weights.c */
    MIMO_TRY(mimo_file_read(&l->files[s->file], to, s->data + first * row_bytes, rows * row_bytes, err));
    const size_t elements = rows * m->cols;
    for (size_t i = 0; i < elements; i++) {
        const bool finite = m->format == MIMO_FORMAT_BF16
                                ? (((const uint16_t *)(void *)to)[i] & 0x7f80u) != 0x7f80u
                                : (((const uint32_t *)(void *)to)[i] & 0x7f800000u) != 0x7f800000u;
        if (!finite)
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: row %zu: expected finite values, found NaN or infinity",
                             m->name, first + i / m->cols);
    }
    atomic_fetch_add(l->done, rows * row_bytes);
    return MIMO_OK;
}

static mimo_status load_unit(loader *l, size_t unit, size_t worker, mimo_error *err)
{
    size_t low = 0, high = l->shares; /* the last share with first <= unit */
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        *(l->first[middle] <= unit ? &low : &high) = middle;
    }
    const size_t node = low / (l->items + 1), i = low % (l->items + 1), at = unit - l->first[low];
    if (i == l->items) {
        const size_t pieces = mimo_ceil_div(l->cpu->weights->embed.rows, l->embed_rows);
        return load_embedding(l, pieces * mimo_pool_first(l->cpu->pool, node) / l->cpu->threads + at, err);
    }
    const item *it = &l->item[i];
    const size_t step = unit_octets(it->matrix), share = share_octets(l, it, node);
    const size_t octet = mimo_cpu_home(l->cpu, mimo_panel_octets(it->panel), node) + at * step;
    const size_t octets = mimo_min(step, share - at * step);
    MIMO_TRY(
        mimo_panel_pack(it->panel, it->matrix, octet, octets, l->files, l->scratch + worker * l->scratch_bytes, err));
    const size_t rows = mimo_min(8 * octets, it->panel->rows - 8 * octet);
    atomic_fetch_add(l->done, rows * mimo_format_row_bytes(it->matrix->format, it->matrix->cols));
    return MIMO_OK;
}

/* The first error stays, and ends the work of all. */
static void keep_error(loader *l, const mimo_error *error)
{
    pthread_mutex_lock(&l->mutex);
    if (!atomic_exchange(&l->failed, true))
        l->error = *error;
    pthread_mutex_unlock(&l->mutex);
}

static mimo_status loader_status(const loader *l, mimo_error *err)
{
    if (l->error.code != MIMO_OK)
        *err = l->error;
    return l->error.code;
}

/* A matrix whose values come from four bits goes back to them. */
static void survey_item(void *context, size_t i, size_t worker)
{
    loader *l = context;
    const item *it = &l->item[i];
    if (it->panel->packing != MIMO_PACK_Q8 || it->matrix->format != MIMO_FORMAT_BF16)
        return;
    const size_t octets = mimo_panel_octets(it->panel);
    bool levels = true;
    for (size_t octet = 0; levels && octet < octets; octet += SURVEY_OCTETS) {
        mimo_error error = {0};
        if (mimo_panel_survey(&levels, it->matrix, octet, mimo_min(SURVEY_OCTETS, octets - octet), l->files,
                              l->scratch + worker * l->scratch_bytes, &error) != MIMO_OK)
            keep_error(l, &error);
        levels &= !atomic_load(&l->failed) && !atomic_load(l->cancel);
    }
    if (levels)
        it->panel->packing = MIMO_PACK_Q4;
}

static void load_worker(void *context, mimo_worker *worker)
{
    loader *l = context;
    const size_t first = l->first[worker->node * (l->items + 1)], end = l->first[(worker->node + 1) * (l->items + 1)];
    for (size_t unit; (unit = first + mimo_pool_take_of(worker, worker->node)) < end && !atomic_load(&l->failed);) {
        mimo_error error = {0};
        if (atomic_load(l->cancel))
            (void)MIMO_FAIL(&error, MIMO_ERR_ENGINE, "loading was cancelled");
        else if (load_unit(l, unit, worker->index, &error) == MIMO_OK)
            continue;
        keep_error(l, &error);
    }
}

/* One vector to read, and where its address goes. */
typedef struct vector {
    const float **to;
    const mimo_vector *from;
} vector;

/* Most of a layer, or of what lies beside the layers. */
enum { VECTORS = 6 };

static size_t vectors_of_layer(vector out[VECTORS], mimo_cpu *cpu, uint32_t i)
{
    const mimo_layer_weights *w = &cpu->weights->layer[i];
    mimo_cpu_layer *layer = &cpu->layer[i];
    const vector all[VECTORS] = {{&layer->attention_norm, &w->attention_norm},
                                 {&layer->mlp_norm, &w->mlp_norm},
                                 {&layer->sinks, &w->sinks},
                                 {&layer->q_norm, &w->q_norm},
                                 {&layer->k_norm, &w->k_norm},
                                 {&layer->router_bias, &w->router_bias}};
    memcpy(out, all, sizeof all);
    return VECTORS;
}

static size_t vectors_of_model(vector out[VECTORS], mimo_cpu *cpu)
{
    const mimo_weights *w = cpu->weights;
    out[0] = (vector){&cpu->norm, &w->norm};
    if (cpu->config->taps == 0)
        return 1;
    out[1] = (vector){&cpu->draft->fuse_norm, &w->fuse_norm};
    out[2] = (vector){&cpu->draft->mask, &w->mask};
    return 3;
}

/* Vectors of layer i; i = layers: of the model. */
static size_t vectors_at(vector out[VECTORS], mimo_cpu *cpu, uint32_t i)
{
    return i < cpu->config->layers ? vectors_of_layer(out, cpu, i) : vectors_of_model(out, cpu);
}

/* Norms, sinks and router biases: small, read by one thread. */
static mimo_status load_vectors(mimo_cpu *cpu, const mimo_file *files, mimo_error *err)
{
    const uint32_t L = cpu->config->layers;
    size_t longest = 0, total = 0;
    vector v[VECTORS];
    for (uint32_t i = 0; i <= L; i++)
        for (size_t n = vectors_at(v, cpu, i); n-- > 0;) {
            longest = mimo_max(longest, v[n].from->length);
            total += mimo_round_up(v[n].from->length, 16);
        }
    float *scratch;
    MIMO_TRY(mimo_alloc_array(&cpu->vectors, total, sizeof(float), "norm weights", err));
    MIMO_TRY(mimo_alloc_array(&scratch, longest, sizeof(float), "norm weights", err));
    float *next = cpu->vectors;
    mimo_status status = MIMO_OK;
    for (uint32_t i = 0; i <= L; i++)
        for (size_t n = vectors_at(v, cpu, i); status == MIMO_OK && n-- > 0;) {
            const bool any = v[n].from->length > 0;
            if (any)
                status = mimo_vector_read(next, v[n].from, files, scratch, err);
            *v[n].to = any ? next : NULL;
            next += mimo_round_up(v[n].from->length, 16);
        }
    mimo_free(scratch);
    return status;
}

static mimo_status open_loader(loader *l, mimo_error *err)
{
    mimo_cpu *cpu = l->cpu;
    visit_panels(cpu, count_panel, l);
    const size_t items = l->items;
    l->items = 0;
    l->scratch_bytes = mimo_round_up(l->scratch_bytes, 64);
    MIMO_TRY(mimo_alloc_array(&l->item, items, sizeof *l->item, "loader", err));
    MIMO_TRY(
        mimo_alloc_array(&l->first, mimo_pool_nodes(cpu->pool) * (items + 1) + 1, sizeof *l->first, "loader", err));
    MIMO_TRY(mimo_alloc_array(&l->scratch, cpu->threads, l->scratch_bytes, "loader buffers", err));
    visit_panels(cpu, collect_panel, l);
    l->embed_rows = mimo_max(1, UNIT_BYTES / mimo_format_row_bytes(cpu->weights->embed.format, cpu->config->hidden));
    cut_units(l);
    return MIMO_OK;
}

static mimo_status load_all(mimo_cpu *cpu, loader *l, mimo_error *err)
{
    MIMO_TRY(open_loader(l, err));
    mimo_pool_parallel(cpu->pool, survey_item, l, l->items);
    MIMO_TRY(loader_status(l, err));
    MIMO_TRY(count_panels(cpu, err));
    MIMO_TRY(mimo_alloc_array(&cpu->slab, 1, cpu->slab_bytes, "packed weights", err));
    MIMO_TRY(mimo_alloc_array(&cpu->embed, 1, embed_bytes(cpu), "embedding table", err));
    if (mimo_pool_nodes(cpu->pool) == 1) /* else pages are small, so that one is of the node that reads it */
        mimo_alloc_will_fill(cpu->slab);
    mimo_alloc_will_fill(cpu->embed);
    size_t at = 0;
    visit_panels(cpu, place_panel, &at);
    MIMO_TRY(load_vectors(cpu, l->files, err));
    mimo_pool_run(cpu->pool, load_worker, l);
    MIMO_TRY(loader_status(l, err));
    mimo_cpu_mark_routes(cpu);
    return MIMO_OK;
}

mimo_status mimo_cpu_load(mimo_cpu *cpu, const mimo_file *files, atomic_uint_fast64_t *done, const atomic_bool *cancel,
                          mimo_error *err)
{
    loader l = {.cpu = cpu, .files = files, .done = done, .cancel = cancel};
    mimo_alloc_trim();
    pthread_mutex_init(&l.mutex, NULL);
    const mimo_status status = load_all(cpu, &l, err);
    pthread_mutex_destroy(&l.mutex);
    mimo_free(l.item);
    mimo_free(l.first);
    mimo_free(l.scratch);
    if (status != MIMO_OK)
        mimo_cpu_release_weights(cpu);
    return status;
}

void mimo_cpu_release_weights(mimo_cpu *cpu)
{
    mimo_free(cpu->slab);
    mimo_free(cpu->embed);
    mimo_free(cpu->vectors);
    cpu->slab = cpu->embed = NULL;
    cpu->vectors = NULL;
}
