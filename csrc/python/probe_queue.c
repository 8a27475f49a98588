/* The machine: SMs with a loader and a compute role each, a ring of pages, copies that land in any order, counters,
 * joins.
 * Which of them moves next is drawn; what they may do is what task.h says. */
#include "python/probe_queue.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cuda/ring.h"

enum { ROLES = 3, NOBODY = -1, TOGETHER = 32 /* joins that a task arrives at before it runs any */ };
enum { LOADER, COPIES, COMPUTE }; /* roles */
typedef enum place_state { EMPTY, FLYING, FULL, HELD } place_state;
typedef enum compute_state { WAITING, READING, HOLDING, ARRIVING, JOINING } compute_state;

/* Where a role stands in its queue, and in the pages of a task. */
typedef struct walk {
    uint32_t task, step; /* task: of the whole list */
    uint32_t unit, page; /* of the task: its units (experts), and pages in one */
} walk;

typedef struct sm {
    walk load, compute;
    bool load_passed; /* the loader has waited for this task's router */
    bool joins;       /* is between a join's first read and its last write */
    compute_state state;
    uint32_t arrived, ready,
        ran; /* of the task's joins: those so far, bits of the last TOGETHER that are to run, ran */
    uint32_t issued, taken, freed;
    uint32_t issued_end, taken_end;    /* where in the ring the last page copied, and taken, ends */
    place_state place[MIMO_RING_MOST]; /* of pages, by their numbers modulo MIMO_RING_MOST, as the next three */
    uint64_t held[MIMO_RING_MOST];     /* which page it is; 0: overwritten */
    uint32_t begin[MIMO_RING_MOST], size[MIMO_RING_MOST];
} sm;

typedef struct machine {
    const mimo_probe_model *model;
    const mimo_probe_run *run;
    const mimo_probe_list *list;
    mimo_probe_cells cells;
    mimo_probe_stats *stats;
    sm *sm;
    uint32_t *counter, *total, *done; /* [counters]; signals of a step; [counters, MIMO_PROBE_STEPS] so far */
    uint32_t *arrivals;               /* [joins] */
    int32_t *waiting, *next;          /* [counters] first role that waits; [roles] the next one */
    bool *listed;                     /* [roles] is among those that wait */
    uint32_t *ready, *at;             /* roles that can move; [roles] where each is in there, or ~0 */
    uint32_t readies, mode, favoured;
    uint64_t random;
} machine;

static bool fail(machine *m, const char *what, uint32_t sm_index, const mimo_tile_task *task)
{
    if (m->cells.text[0] == '\0')
        snprintf(m->cells.text, sizeof m->cells.text, "%s: sm %u, kind %u of op %u, layer %u, first %u", what, sm_index,
                 task->kind, task->op, task->layer, task->first);
    return false;
}

/* ---- who can move ---- */

static void set_ready(machine *m, uint32_t agent, bool is_ready)
{
    if (is_ready == (m->at[agent] != UINT32_MAX))
        return;
    if (is_ready) {
        m->at[agent] = m->readies;
        m->ready[m->readies++] = agent;
        return;
    }
    const uint32_t last = m->ready[--m->readies];
    m->ready[m->at[agent]] = last;
    m->at[last] = m->at[agent];
    m->at[agent] = UINT32_MAX;
}

static bool passes(const machine *m, uint16_t counter, uint32_t step, uint32_t back, uint32_t count)
{
    const uint32_t now = m->run->first_step + step;
    if (m->run->plain_compare)
        return m->counter[counter] >= (now + 1 - back) * count;
    return mimo_task_is_ready(m->counter[counter], now, back, count) != 0;
}

static void await(machine *m, uint32_t agent, uint16_t counter)
{
    set_ready(m, agent, false);
    if (m->listed[agent]) /* another event woke it */
        return;
    m->listed[agent] = true;
    m->next[agent] = m->waiting[counter];
    m->waiting[counter] = (int32_t)agent;
}

/* Whether all signals that a wait means have really been given. */
static bool is_due(const machine *m, uint16_t counter, uint32_t step, uint32_t back)
{
    return step < back || m->done[counter * MIMO_PROBE_STEPS + step - back] == m->total[counter];
}

/* ---- pages ---- */

/* The pages of a task, one after the other: false when there are no more. *page: its number in the operation. */
static bool page_of(const machine *m, walk *w, uint32_t *page)
{
    const mimo_tile_task *k = &m->list->task[w->task];
    const mimo_moe *moe = &m->cells.moe;
    if (k->pages == 0 || k->tile_pages == 0)
        return false;
    if (w->page == k->pages) {
        w->page = 0;
        w->unit++;
    }
    if (k->kind == MIMO_TILE_EXPERT_UP) {
        const uint32_t tiles = k->expert_pages / k->tile_pages, n = k->first + w->unit * k->count;
        if (k->count == 0 || n >= moe->experts * tiles)
            return false;
        const mimo_moe_unit unit = mimo_moe_unit_at(n, tiles);
        *page = moe->expert[unit.index] * k->expert_pages + unit.tile * k->tile_pages + w->page;
        return true;
    }
    if (k->kind == MIMO_TILE_EXPERT_DOWN) {
        while (w->unit < moe->experts && moe->expert[w->unit] % k->splits != k->split)
            w->unit++;
        if (w->unit >= moe->experts)
            return false;
        *page = moe->expert[w->unit] * k->expert_pages + k->page + w->page;
        return true;
    }
    *page = k->page + w->page;
    return w->unit == 0;
}

static uint64_t identity(const machine *m, const walk *w, uint32_t page)
{
    return ((uint64_t)w->step * m->list->begin[m->model->q.sms] + w->task + 1) << 32 | page;
}

/* On to the next task; false at the end of the last step. */
static bool advance(const machine *m, walk *w, uint32_t s)
{
    w->unit = w->page = 0;
    if (++w->task == m->list->begin[s + 1]) {
        w->task = m->list->begin[s];
        w->step++;
    }
    return w->step < m->run->steps;
}

static bool has_ended(const machine *m, const walk *w)
{
    return w->step >= m->run->steps;
}

/* Whether the loader sees room for a page; one with the bug `ring` takes the oldest page for given back. */
static bool has_room(const machine *m, const sm *me, uint32_t bytes)
{
    const uint32_t back = me->freed + (m->run->ring_overrun && me->issued != me->freed);
    return me->issued == back ||
           (me->issued - back < MIMO_RING_MOST &&
            mimo_ring_has_room(me->begin[back % MIMO_RING_MOST], me->issued_end, bytes, m->model->q.shared.ring_bytes));
}

/* A copy begins; pages that still lie where it goes are no longer what they were. */
static void issue(machine *m, sm *me, uint32_t bytes, uint64_t page)
{
    const uint32_t at = mimo_ring_place(me->issued_end, bytes, m->model->q.shared.ring_bytes);
    for (uint32_t i = me->freed; i != me->issued; i++) {
        const uint32_t other = i % MIMO_RING_MOST;
        if (at < me->begin[other] + me->size[other] && me->begin[other] < at + bytes)
            me->held[other] = 0;
    }
    const uint32_t number = me->issued++ % MIMO_RING_MOST;
    me->place[number] = FLYING;
    me->held[number] = page;
    me->begin[number] = at;
    me->size[number] = bytes;
    me->issued_end = at + bytes;
}

/* ---- roles ---- */

static bool move_loader(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    const uint32_t agent = s * ROLES + LOADER;
    const mimo_tile_task *k = &m->list->task[me->load.task];
    if (k->load_wait != MIMO_NO_COUNTER && !me->load_passed) {
        if (!passes(m, k->load_wait, me->load.step, 0, k->load_wait_count)) {
            await(m, agent, k->load_wait);
            return true;
        }
        if (!is_due(m, k->load_wait, me->load.step, 0))
            return fail(m, "counter passed early", s, k);
    }
    me->load_passed = true;
    if ((k->kind == MIMO_TILE_EXPERT_UP || k->kind == MIMO_TILE_EXPERT_DOWN) &&
        !mimo_probe_cells_routed(&m->cells, k, me->load.step))
        return false;
    uint32_t page;
    if (!page_of(m, &me->load, &page)) {
        me->load_passed = false;
        set_ready(m, agent, advance(m, &me->load, s));
        return true;
    }
    if (!has_room(m, me, k->page_bytes)) {
        set_ready(m, agent, false); /* until a page is given back */
        return true;
    }
    issue(m, me, k->page_bytes, identity(m, &me->load, page));
    me->load.page++;
    m->stats->pages++;
    set_ready(m, s * ROLES + COPIES, true);
    return true;
}

/* One of the copies under way lands. */
static void move_copies(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    uint32_t flying = 0;
    for (uint32_t i = 0; i < MIMO_RING_MOST; i++)
        flying += me->place[i] == FLYING;
    uint32_t pick = flying > 0 ? mimo_probe_random(&m->random, flying) : 0;
    for (uint32_t i = 0; i < MIMO_RING_MOST; i++)
        if (me->place[i] == FLYING && pick-- == 0) {
            me->place[i] = FULL;
            break;
        }
    set_ready(m, s * ROLES + COPIES, flying > 1);
    if (me->state == READING)
        set_ready(m, s * ROLES + COMPUTE, true);
}

static void signal(machine *m, const mimo_tile_task *k, uint32_t step, uint32_t count)
{
    m->counter[k->signal] += count;
    m->done[k->signal * MIMO_PROBE_STEPS + step] += count;
    int32_t agent = m->waiting[k->signal];
    m->waiting[k->signal] = NOBODY;
    while (agent != NOBODY) { /* who cannot pass waits again */
        const int32_t after = m->next[agent];
        m->listed[agent] = false;
        set_ready(m, (uint32_t)agent, true);
        agent = after;
    }
}

static bool start(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    const mimo_tile_task *k = &m->list->task[me->compute.task];
    if (k->wait != MIMO_NO_COUNTER) {
        if (!passes(m, k->wait, me->compute.step, k->wait_back, k->wait_count)) {
            await(m, s * ROLES + COMPUTE, k->wait);
            return true;
        }
        if (!is_due(m, k->wait, me->compute.step, k->wait_back))
            return fail(m, "counter passed early", s, k);
    }
    if (!mimo_probe_cells_begin(&m->cells, k, me->compute.step))
        return false;
    if (me->load.task != me->compute.task || me->load.step != me->compute.step)
        m->stats->early_pages += k->pages;
    else
        m->stats->early_pages += me->load.page;
    if (m->run->early_signal && k->joins == 0)
        signal(m, k, me->compute.step, 1);
    me->state = READING;
    return true;
}

/* Arrives at the next of a task's joins; the task is done with the last. */
static bool arrive(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    const mimo_tile_task *k = &m->list->task[me->compute.task];
    if (me->arrived < k->joins) {
        const uint32_t j = k->join + me->arrived;
        const mimo_tile_task *join = &m->list->join[j];
        if (join->signal != k->signal)
            return fail(m, "a join of another stage", s, join);
        const bool last = ++m->arrivals[j] == (m->run->first_step + me->compute.step + 1) * join->wait_count;
        me->ready |= (uint32_t)last << me->arrived++ % TOGETHER;
        if (me->ready != 0 && (me->arrived % TOGETHER == 0 || me->arrived == k->joins))
            me->state = JOINING;
        return true;
    }
    if (me->ran > 0 && !m->run->early_signal)
        signal(m, k, me->compute.step, me->ran);
    me->state = WAITING;
    set_ready(m, s * ROLES + COMPUTE, advance(m, &me->compute, s));
    return true;
}

/* Begins or ends the first of the joins that are to run. */
static bool move_join(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    const mimo_tile_task *k = &m->list->task[me->compute.task];
    const uint32_t bit = (uint32_t)__builtin_ctz(me->ready);
    const mimo_tile_task *join = &m->list->join[k->join + (me->arrived - 1) / TOGETHER * TOGETHER + bit];
    me->joins = !me->joins;
    if (me->joins) {
        if (m->run->early_signal)
            signal(m, k, me->compute.step, 1);
        return mimo_probe_cells_begin(&m->cells, join, me->compute.step);
    }
    me->ready &= me->ready - 1;
    me->ran++;
    if (me->ready == 0)
        me->state = ARRIVING;
    return mimo_probe_cells_end(&m->cells, join, me->compute.step, &m->random);
}

static bool move_compute(machine *m, uint32_t s)
{
    sm *me = &m->sm[s];
    const mimo_tile_task *k = &m->list->task[me->compute.task];
    const uint32_t ring_bytes = m->model->q.shared.ring_bytes, number = me->taken % MIMO_RING_MOST;
    uint32_t page;
    if (me->state == WAITING)
        return start(m, s);
    if (me->state == ARRIVING)
        return arrive(m, s);
    if (me->state == JOINING)
        return move_join(m, s);
    const bool more = page_of(m, &me->compute, &page);
    if (me->state == HOLDING) { /* gives its page back */
        if (me->place[number] != HELD || me->held[number] != identity(m, &me->compute, page))
            return fail(m, "page overwritten while it was read", s, k);
        me->place[number] = EMPTY;
        me->taken_end = me->begin[number] + me->size[number];
        me->taken++;
        me->freed++;
        me->compute.page++;
        me->state = READING;
        if (!has_ended(m, &me->load))
            set_ready(m, s * ROLES + LOADER, true);
        return true;
    }
    if (more) {
        if (me->place[number] != FULL) {
            set_ready(m, s * ROLES + COMPUTE, false); /* until a copy lands */
            return true;
        }
        if (me->held[number] != identity(m, &me->compute, page) ||
            me->begin[number] != mimo_ring_place(me->taken_end, k->page_bytes, ring_bytes))
            return fail(m, "page is not the one that was asked for", s, k);
        me->place[number] = HELD;
        me->state = HOLDING;
        return true;
    }
    if (!mimo_probe_cells_end(&m->cells, k, me->compute.step, &m->random))
        return false;
    me->arrived = me->ready = 0;
    me->ran = k->joins == 0;
    me->state = ARRIVING;
    return true;
}

/* ---- orders ---- */

/* Who moves next. Beside even odds, orders that favour or starve a role or an SM: those find what even odds rarely do.
 */
static uint32_t draw(machine *m)
{
    uint32_t agent = 0;
    for (int tries = 0; tries < 16; tries++) {
        agent = m->ready[mimo_probe_random(&m->random, m->readies)];
        const uint32_t s = agent / ROLES, role = agent % ROLES;
        const bool likely = m->mode == 1   ? s != m->favoured
                            : m->mode == 2 ? role != COMPUTE
                            : m->mode == 3 ? role == COMPUTE
                            : m->mode == 4 ? s == m->favoured
                            : m->mode == 5 ? role != COPIES
                                           : true;
        if (likely)
            break;
    }
    if (m->mode == 4) /* one SM as far as it gets, then another */
        m->favoured = agent / ROLES;
    return agent;
}

static void reset(machine *m, uint64_t order)
{
    const uint32_t sms = m->model->q.sms, counters = m->model->q.counters;
    m->random = (m->run->seed * 0x9e3779b97f4a7c15u + order + 1) * 0xbf58476d1ce4e5b9u | 1;
    for (int i = 0; i < 8; i++)
        mimo_probe_random(&m->random, 2);
    m->mode = mimo_probe_random(&m->random, 6);
    m->favoured = mimo_probe_random(&m->random, sms);
    mimo_probe_cells_reset(&m->cells);
    memset(m->sm, 0, sms * sizeof *m->sm);
    memset(m->done, 0, (size_t)counters * MIMO_PROBE_STEPS * sizeof *m->done);
    memset(m->at, 0xff, (size_t)sms * ROLES * sizeof *m->at);
    memset(m->waiting, 0xff, counters * sizeof *m->waiting);
    memset(m->listed, 0, (size_t)sms * ROLES * sizeof *m->listed);
    m->readies = 0;
    for (uint32_t c = 0; c < counters; c++)
        m->counter[c] = m->run->first_step * m->total[c];
    for (uint32_t j = 0; j < m->list->joins; j++)
        m->arrivals[j] = m->run->first_step * m->list->join[j].wait_count;
    for (uint32_t s = 0; s < sms; s++) {
        m->sm[s].load.task = m->sm[s].compute.task = m->list->begin[s];
        if (m->list->begin[s + 1] > m->list->begin[s]) {
            set_ready(m, s * ROLES + LOADER, true);
            set_ready(m, s * ROLES + COMPUTE, true);
        } else {
            m->sm[s].load.step = m->sm[s].compute.step = m->run->steps;
        }
    }
}

static bool run_order(machine *m)
{
    while (m->readies > 0) {
        const uint32_t agent = draw(m), s = agent / ROLES;
        m->stats->events++;
        if (agent % ROLES == COPIES)
            move_copies(m, s);
        else if (agent % ROLES == LOADER ? !move_loader(m, s) : !move_compute(m, s))
            return false;
    }
    for (uint32_t s = 0; s < m->model->q.sms; s++) {
        const sm *me = &m->sm[s];
        if (!has_ended(m, &me->compute))
            return fail(m, "deadlock", s, &m->list->task[me->compute.task]);
        if (!has_ended(m, &me->load) || me->issued != me->freed)
            return fail(m, "pages left over", s, &m->list->task[m->list->begin[s]]);
    }
    return mimo_probe_cells_complete(&m->cells, m->run->steps);
}

static int open_machine(machine *m)
{
    const size_t sms = m->model->q.sms, counters = m->model->q.counters, agents = sms * ROLES;
    const struct {
        void *out;
        size_t count, size;
    } parts[] = {{&m->sm, sms, sizeof *m->sm},
                 {&m->counter, counters, sizeof(uint32_t)},
                 {&m->total, counters, sizeof(uint32_t)},
                 {&m->done, counters * MIMO_PROBE_STEPS, sizeof(uint32_t)},
                 {&m->arrivals, m->list->joins, sizeof(uint32_t)},
                 {&m->waiting, counters, sizeof(int32_t)},
                 {&m->next, agents, sizeof(int32_t)},
                 {&m->listed, agents, sizeof(bool)},
                 {&m->ready, agents, sizeof(uint32_t)},
                 {&m->at, agents, sizeof(uint32_t)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (mimo_alloc_array(parts[i].out, parts[i].count, parts[i].size, "a simulated GPU", NULL) != MIMO_OK)
            return -1;
    for (uint32_t i = 0; i < m->list->begin[sms]; i++)
        m->total[m->list->task[i].signal] += m->list->task[i].joins == 0;
    for (uint32_t i = 0; i < m->list->joins; i++)
        m->total[m->list->join[i].signal]++;
    return mimo_probe_cells_open(&m->cells, m->model, m->list->task, m->list->begin[sms]);
}

static void close_machine(machine *m)
{
    void *const parts[] = {m->sm,      m->counter, m->total,  m->done,  m->arrivals,
                           m->waiting, m->next,    m->listed, m->ready, m->at};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        mimo_free(parts[i]);
}

/* Whether what a task names can be found at all. */
static bool names_what_is_there(const mimo_probe_list *list, const mimo_tile_task *k, uint32_t counters)
{
    return k->signal < counters && (k->wait < counters || k->wait == MIMO_NO_COUNTER) &&
           (k->load_wait < counters || k->load_wait == MIMO_NO_COUNTER) && k->splits != 0 && k->joins <= list->joins &&
           k->join <= list->joins - k->joins;
}

int mimo_probe_queue_run(char *text, size_t size, mimo_probe_stats *stats, const mimo_probe_model *model,
                         const mimo_probe_list *list, const mimo_probe_run *run)
{
    machine m = {.model = model, .run = run, .list = list, .stats = stats};
    *stats = (mimo_probe_stats){0};
    const uint32_t tasks = list->begin[model->q.sms];
    for (uint32_t i = 0; i < tasks + list->joins; i++)
        if (!names_what_is_there(list, i < tasks ? &list->task[i] : &list->join[i - tasks], model->q.counters)) {
            snprintf(text, size, "%s %u: no such counter or join, or no split", i < tasks ? "task" : "join",
                     i < tasks ? i : i - tasks);
            return 1;
        }
    int result = open_machine(&m);
    for (uint32_t order = 0; result == 0 && order < run->orders; order++) {
        reset(&m, order);
        if (!run_order(&m)) {
            snprintf(text, size, "order %u: %s", order, m.cells.text);
            result = 1;
        }
    }
    mimo_probe_cells_close(&m.cells);
    close_machine(&m);
    return result;
}
