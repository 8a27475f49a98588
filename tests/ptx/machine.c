/* The machine: threads that take turns, the memory that they may touch, launches. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "inside.h"

static const uint64_t quiet_most_ns = 120000000000u; /* after which nobody ever will */

typedef struct region_type {
    uintptr_t begin;
    size_t bytes;
    race_word *words;
    uint64_t written; /* the last wave that wrote to it */
} region_type;

static pthread_mutex_t memory_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    region_type *region;
    size_t regions, room, last;
} memory;

machine_type ptx_m;
uint64_t ptx_executed;

/* ---- drawing ---- */

uint32_t ptx_draw(uint32_t below)
{
    ptx_m.state = ptx_m.state * 6364136223846793005ull + 1442695040888963407ull; /* Knuth */
    return (uint32_t)((ptx_m.state >> 32) * below >> 32);
}

/* ---- threads that take turns ---- */

static void leave(waiter *w)
{
    if (_setjmp(w->here) == 0)
        _longjmp(ptx_m.scheduler, 1);
}

void ptx_make_ready(waiter *w)
{
    w->state = READY;
    const uint32_t size = ptx_m.ctas * ptx_m.threads, at = ptx_m.first + ptx_m.waiting++;
    ptx_m.ready[at < size ? at : at - size] = w;
}

void ptx_wait_for(waiter *w, const char *what, uint32_t number)
{
    w->state = WAITING;
    w->waits = what;
    w->number = number;
    leave(w);
}

/* Ends the launch. */
_Noreturn void ptx_fail(waiter *w, const char *format, ...)
{
    size_t used = 0;
    if (w != NULL)
        used = (size_t)snprintf(ptx_m.fault, sizeof ptx_m.fault, "%s, line %u, CTA %u, thread %u: ", ptx_m.kernel->name,
                                w->thread.line, w->thread.ctaid, w->thread.tid);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(ptx_m.fault + used, sizeof ptx_m.fault - used, format, arguments);
    va_end(arguments);
    ptx_m.failed = true;
    _longjmp(ptx_m.scheduler, 2);
}

void ptx_pause(ptx_thread *t)
{
    const uint64_t usual = 64ull * ptx_m.ctas * ptx_m.threads;
    ptx_m.now += ++ptx_m.quiet > usual ? QUIET_NS : POLL_NS;
    if (ptx_m.quiet > usual + quiet_most_ns / QUIET_NS)
        ptx_fail(t->waiter, "looks again and again, and for two minutes nobody has done anything else");
    ptx_make_ready(t->waiter);
    leave(t->waiter);
}

uint64_t ptx_clock(ptx_thread *t)
{
    (void)t;
    return ptx_m.now += POLL_NS;
}

uint32_t ptx_sm(ptx_thread *t)
{
    return t->ctaid;
}

/* ---- memory ---- */

static const char *const how_words[] = {"reads", "writes", "updates"};

static size_t region_after(uintptr_t at)
{
    size_t low = 0, high = memory.regions;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (memory.region[middle].begin <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static region_type *region_of(uintptr_t at, size_t bytes)
{
    region_type *last = memory.last < memory.regions ? &memory.region[memory.last] : NULL;
    if (last == NULL || at < last->begin || at - last->begin >= last->bytes) {
        const size_t after = region_after(at);
        if (after == 0)
            return NULL;
        memory.last = after - 1;
        last = &memory.region[memory.last];
    }
    return at - last->begin + bytes <= last->bytes ? last : NULL;
}

static race_word *words_for(size_t bytes)
{
    void *words = mmap(NULL, (bytes / 4 + 1) * sizeof(race_word), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED)
        abort();
    return words;
}

static void words_end(race_word *words, size_t bytes)
{
    if (words != NULL)
        munmap(words, (bytes / 4 + 1) * sizeof(race_word));
}

bool ptx_is_memory(uint64_t at, uint32_t bytes)
{
    return region_of((uintptr_t)at, bytes) != NULL;
}

void ptx_memory(const void *at, size_t bytes, int live)
{
    pthread_mutex_lock(&memory_mutex);
    const uintptr_t begin = (uintptr_t)at;
    const size_t after = region_after(begin);
    if (live) {
        if (memory.regions == memory.room) {
            memory.room = 2 * memory.room + 16;
            memory.region = realloc(memory.region, memory.room * sizeof *memory.region);
            if (memory.region == NULL)
                abort();
        }
        memmove(memory.region + after + 1, memory.region + after, (memory.regions - after) * sizeof *memory.region);
        memory.region[after] = (region_type){begin, bytes, NULL, 0};
        memory.regions++;
    } else if (after > 0 && memory.region[after - 1].begin == begin) {
        words_end(memory.region[after - 1].words, memory.region[after - 1].bytes);
        memmove(memory.region + after - 1, memory.region + after, (memory.regions - after) * sizeof *memory.region);
        memory.regions--;
    }
    pthread_mutex_unlock(&memory_mutex);
}

static void say_race(waiter *w, const race_actor *actor, uint64_t at, const char *where, int how,
                     const race_found *found)
{
    const uint32_t threads = ptx_m.ctas * ptx_m.threads, other = found->other;
    char who[96];
    if (other < threads)
        snprintf(who, sizeof who, "thread %u of CTA %u", ptx_m.all[other].thread.tid, ptx_m.all[other].thread.ctaid);
    else
        snprintf(who, sizeof who, "a copy of CTA %u", ptx_m.cta[(other - threads) / COPIERS].index);
    ptx_fail(w, "race: %s %s %s memory at %#llx that %s %s at line %u, and neither happened before the other",
             actor->id < threads ? "it" : "a copy", how_words[how], where, (unsigned long long)at, who,
             found->other_writes ? "wrote" : "read", found->other_line);
}

static void hold_against_races(waiter *w, race_actor *actor, race_word *words, uint64_t offset, uint32_t bytes, int how,
                               bool strong, uint64_t at, const char *where)
{
    for (uint32_t done = 0; done < bytes;) {
        const uint32_t in = (uint32_t)((offset + done) % 4), count = bytes - done < 4 - in ? bytes - done : 4 - in;
        const uint8_t mask = (uint8_t)(((1u << count) - 1) << in);
        race_found found;
        ptx_m.counts[2]++;
        if (!race_touch(&words[(offset + done) / 4], actor, w->thread.line, mask, how != PTX_READ, strong, &found))
            say_race(w, actor, at + done, where, how, &found);
        done += count;
    }
}

/* A CTA's shared memory from `offset` on. */
uint8_t *ptx_touch_shared(waiter *w, race_actor *actor, uint64_t offset, uint32_t bytes, int how, bool strong,
                          bool is_barrier)
{
    cta_type *cta = w->cta;
    if (offset + bytes > ptx_m.shared_bytes || offset + bytes < offset)
        ptx_fail(w, "%s %u bytes of shared memory at %#llx, of which there are %u", how_words[how], bytes,
                 (unsigned long long)offset, ptx_m.shared_bytes);
    if (!is_barrier && offset < cta->barriers_end)
        for (uint32_t i = 0; i < cta->mbarriers; i++)
            if (cta->mbarrier[i].at < offset + bytes && offset < cta->mbarrier[i].at + 8)
                ptx_fail(w, "%s shared memory at %#llx, where a barrier is", how_words[how],
                         (unsigned long long)offset);
    if (ptx_m.races && !is_barrier)
        hold_against_races(w, actor, cta->words, offset, bytes, how, strong, offset, "shared");
    for (uint64_t i = offset / 4; how != PTX_READ && i < (offset + bytes + 3) / 4; i++)
        cta->proxy[i] = (proxy_word){actor == &w->actor ? w->thread.tid + 1 : 0, w->proxy_fences};
    return cta->shared + offset;
}

void ptx_check_proxy(waiter *w, uint64_t offset, uint32_t bytes)
{
    for (uint64_t i = offset / 4; i < (offset + bytes + 3) / 4; i++) {
        const proxy_word *word = &w->cta->proxy[i];
        if (word->writer > 0 && ptx_m.all[w->cta->first + word->writer - 1].proxy_fences == word->fences)
            ptx_fail(w, "wgmma reads shared memory at %#llx, which thread %u wrote without fence.proxy.async after it",
                     (unsigned long long)(4 * i), word->writer - 1);
    }
}

uint8_t *ptx_touch_global(waiter *w, race_actor *actor, uint64_t at, uint32_t bytes, int how, bool strong)
{
    region_type *region = region_of((uintptr_t)at, bytes);
    if (region == NULL)
        ptx_fail(w, "%s %u bytes at %#llx, where no memory is", how_words[how], bytes, (unsigned long long)at);
    if (how != PTX_READ)
        region->written = ptx_m.wave;
    if (ptx_m.races &&
        (region->written == ptx_m.wave || bytes <= 16)) { /* nobody races with a copy from what nobody writes */
        if (region->words == NULL)
            region->words = words_for(region->bytes);
        hold_against_races(w, actor, region->words, at - region->begin, bytes, how, strong, at, "global");
    }
    return (uint8_t *)(uintptr_t)at;
}

static bool is_own_stack(const waiter *w, uint64_t at)
{
    const uintptr_t stack = (uintptr_t)ptx_m.stacks + (size_t)(w - ptx_m.all) * STACK;
    return at - stack < STACK;
}

static uint8_t *touch(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how, bool strong)
{
    waiter *w = t->waiter;
    if (how != PTX_READ)
        ptx_m.quiet = 0;
    if (at % bytes != 0)
        ptx_fail(w, "%s %u bytes at %#llx, which is no multiple of %u", how_words[how], bytes, (unsigned long long)at,
                 bytes);
    if (space == PTX_SHARED)
        return ptx_touch_shared(w, &w->actor, at, bytes, how, strong, false);
    if (space != PTX_GLOBAL) {
        const uint64_t shared = at - (uint64_t)(uintptr_t)t->shared;
        if (space == PTX_GENERIC && shared < ptx_m.shared_bytes)
            return ptx_touch_shared(w, &w->actor, shared, bytes, how, strong, false);
        if (is_own_stack(w, at))
            return (uint8_t *)(uintptr_t)at;
    }
    return ptx_touch_global(w, &w->actor, at, bytes, how, strong);
}

uint8_t *ptx_touch(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how)
{
    return touch(t, space, at, bytes, how, false);
}

static race_place *place_at(uint64_t at)
{
    static size_t last;
    if (last < ptx_m.places && ptx_m.place[last].at == at)
        return &ptx_m.place[last].place;
    for (size_t i = 0; i < ptx_m.places; i++)
        if (ptx_m.place[i].at == at)
            return &ptx_m.place[last = i].place;
    if (ptx_m.places == ptx_m.places_room) {
        ptx_m.places_room = 2 * ptx_m.places_room + 64;
        ptx_m.place = realloc(ptx_m.place, ptx_m.places_room * sizeof *ptx_m.place);
        if (ptx_m.place == NULL)
            abort();
        for (uint32_t i = 0; i < ptx_m.ctas * ptx_m.threads; i++)
            ptx_m.all[i].actor.place = NULL; /* they have moved */
    }
    ptx_m.place[ptx_m.places] = (place_of){.at = at};
    return &ptx_m.place[ptx_m.places++].place;
}

uint8_t *ptx_touch_strong(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how, bool acquire, bool release)
{
    if (how == PTX_READ)
        ptx_pause(t);
    uint8_t *memory_at = touch(t, space, at, bytes, how, true);
    if (ptx_m.races && release)
        race_release(place_at(at), &t->waiter->actor);
    if (ptx_m.races && acquire)
        race_acquire(&t->waiter->actor, place_at(at));
    return memory_at;
}

void ptx_fence(ptx_thread *t)
{
    (void)t;
}

void ptx_proxy_fence(ptx_thread *t)
{
    t->waiter->proxy_fences++;
}

/* ---- launching ---- */

static void enter(void)
{
    waiter *w = ptx_m.current;
    ptx_m.kernel->run(&w->thread);
    if (w->copies > 0)
        ptx_fail(w, "it ended without waiting for %u copies", w->copies);
    if (w->products > 0)
        ptx_fail(w, "it ended without waiting for %u products", w->products);
    w->state = DONE;
    ptx_m.live--;
    _longjmp(ptx_m.scheduler, 1);
}

static void resume(waiter *w)
{
    ptx_m.current = w;
    ptx_m.counts[0]++;
    if (w->started)
        _longjmp(w->here, 1);
    w->started = true;
    getcontext(&w->start);
    w->start.uc_stack.ss_sp = ptx_m.stacks + (size_t)(w - ptx_m.all) * STACK;
    w->start.uc_stack.ss_size = STACK;
    w->start.uc_link = NULL;
    makecontext(&w->start, enter, 0);
    setcontext(&w->start);
}

static void say_stuck(void)
{
    size_t used = (size_t)snprintf(ptx_m.fault, sizeof ptx_m.fault, "%s: nobody can go on: ", ptx_m.kernel->name);
    uint32_t said = 0, all = 0;
    for (uint32_t i = 0; i < ptx_m.ctas * ptx_m.threads; i++) {
        const waiter *w = &ptx_m.all[i], *before = i > 0 ? &ptx_m.all[i - 1] : NULL;
        if (w->state != WAITING)
            continue;
        all++;
        const bool same = before != NULL && before->state == WAITING && before->thread.line == w->thread.line &&
                          before->cta == w->cta;
        if (same || said == 6 || used >= sizeof ptx_m.fault)
            continue;
        said++;
        used += (size_t)snprintf(ptx_m.fault + used, sizeof ptx_m.fault - used,
                                 "CTA %u, thread %u at line %u waits for %s %#x; ", w->thread.ctaid, w->thread.tid,
                                 w->thread.line, w->waits, w->number);
    }
    if (used < sizeof ptx_m.fault)
        snprintf(ptx_m.fault + used, sizeof ptx_m.fault - used, "%u threads wait", all);
    ptx_m.failed = true;
}

static void take_turns(void)
{
    while (ptx_m.live > 0) {
        if (ptx_m.copies > 0 && (ptx_m.waiting == 0 || ptx_draw(8) == 0))
            ptx_finish_copy();
        if (ptx_m.waiting == 0) {
            if (ptx_m.copies > 0)
                continue;
            say_stuck();
            return;
        }
        const uint32_t size = ptx_m.ctas * ptx_m.threads;
        if (ptx_draw(8) == 0) { /* somebody, in the place of the first */
            const uint32_t i = (ptx_m.first + ptx_draw(ptx_m.waiting)) % size;
            waiter *first = ptx_m.ready[ptx_m.first];
            ptx_m.ready[ptx_m.first] = ptx_m.ready[i];
            ptx_m.ready[i] = first;
        }
        waiter *w = ptx_m.ready[ptx_m.first];
        ptx_m.first = ptx_m.first + 1 < size ? ptx_m.first + 1 : 0;
        ptx_m.waiting--;
        const int back = _setjmp(ptx_m.scheduler);
        if (back == 0)
            resume(w);
        if (back == 2)
            return;
    }
    if (ptx_m.copies > 0) {
        snprintf(ptx_m.fault, sizeof ptx_m.fault, "%s: it ended while %u copies were under way", ptx_m.kernel->name,
                 ptx_m.copies);
        ptx_m.failed = true;
    }
}

static void *must(void *block)
{
    if (block == NULL)
        abort();
    return block;
}

static void open_wave(uint32_t ctas, uint32_t threads)
{
    const uint32_t count = ctas * threads;
    ptx_m.ctas = ctas;
    ptx_m.threads = threads;
    ptx_m.cta = must(calloc(ctas, sizeof *ptx_m.cta));
    ptx_m.warp = must(calloc(count / LANES, sizeof *ptx_m.warp));
    ptx_m.all = must(calloc(count, sizeof *ptx_m.all));
    ptx_m.ready = must(calloc(count, sizeof *ptx_m.ready));
    ptx_m.copier = must(calloc((size_t)ctas * COPIERS, sizeof *ptx_m.copier));
    if (ptx_m.stacks_bytes < (size_t)count * STACK) {
        if (ptx_m.stacks != NULL)
            munmap(ptx_m.stacks, ptx_m.stacks_bytes);
        ptx_m.stacks_bytes = (size_t)count * STACK;
        ptx_m.stacks =
            mmap(NULL, ptx_m.stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (ptx_m.stacks == MAP_FAILED)
            abort();
    }
    for (uint32_t i = 0; i < ctas; i++) {
        ptx_m.cta[i].shared = must(aligned_alloc(1024, (ptx_m.shared_bytes + 1024) / 1024 * 1024));
        ptx_m.cta[i].words = ptx_m.races ? words_for(ptx_m.shared_bytes) : NULL;
        ptx_m.cta[i].proxy = must(calloc(ptx_m.shared_bytes / 4 + 1, sizeof(proxy_word)));
    }
}

static void close_wave(void)
{
    for (uint32_t i = 0; i < ptx_m.ctas * ptx_m.threads; i++) {
        free(ptx_m.all[i].copy);
        free(ptx_m.all[i].product);
    }
    for (uint32_t i = 0; i < ptx_m.ctas; i++) {
        free(ptx_m.cta[i].shared);
        free(ptx_m.cta[i].proxy);
        words_end(ptx_m.cta[i].words, ptx_m.shared_bytes);
    }
    free(ptx_m.cta);
    free(ptx_m.warp);
    free(ptx_m.all);
    free(ptx_m.ready);
    free(ptx_m.copier);
    free(ptx_m.place);
    ptx_m.place = NULL;
    ptx_m.places = ptx_m.places_room = 0;
}

/* CTAs first .. of the grid, in a drawn order of their threads. */
static void run_wave(uint32_t first, uint32_t ctas)
{
    ptx_m.copies = ptx_m.first = ptx_m.waiting = 0;
    ptx_m.places = 0;
    ptx_m.wave++;
    ptx_m.live = ctas * ptx_m.threads;
    if (ptx_m.races)
        race_begin(ptx_m.ctas * (ptx_m.threads + COPIERS));
    for (uint32_t c = 0; c < ctas; c++) {
        cta_type *cta = &ptx_m.cta[c];
        uint8_t *shared = cta->shared;
        race_word *words = cta->words;
        proxy_word *proxy = cta->proxy;
        memset(cta, 0, sizeof *cta);
        memset(proxy, 0, (ptx_m.shared_bytes / 4 + 1) * sizeof *proxy);
        cta->proxy = proxy;
        cta->index = first + c;
        cta->first = c * ptx_m.threads;
        cta->shared = shared;
        cta->words = words;
        memset(shared, 0xff, ptx_m.shared_bytes);
        for (uint32_t i = 0; i < ptx_m.threads; i++) {
            waiter *w = &ptx_m.all[cta->first + i];
            free(w->copy);
            free(w->product);
            *w = (waiter){.cta = cta, .warp = &ptx_m.warp[(cta->first + i) / LANES]};
            w->thread = (ptx_thread){0, i, ptx_m.threads, first + c, ptx_m.grid, i % LANES, ptx_m.parameter, shared, w};
            w->warp->arrived = 0;
            w->warp->lane[i % LANES] = w;
            if (ptx_m.races)
                race_actor_begin(&w->actor, cta->first + i);
            ptx_make_ready(w);
        }
        for (uint32_t i = 0; i < COPIERS; i++)
            if (ptx_m.races)
                race_actor_begin(&ptx_m.copier[c * COPIERS + i], ptx_m.ctas * ptx_m.threads + c * COPIERS + i);
    }
    take_turns();
}

static void run_grid(uint32_t ctas, uint32_t threads, bool together)
{
    const uint32_t wave = together || ctas < WAVE ? ctas : WAVE;
    open_wave(wave, threads);
    for (uint32_t first = 0; first < ctas && !ptx_m.failed; first += wave)
        run_wave(first, ctas - first < wave ? ctas - first : wave);
    close_wave();
}

int ptx_launch(const char *kernel, uint32_t ctas, uint32_t threads, uint32_t shared_bytes, void *const *parameters,
               int together)
{
    ptx_m.kernel = NULL;
    for (uint32_t i = 0; i < ptx_kernel_count; i++)
        if (strcmp(ptx_kernels[i].name, kernel) == 0)
            ptx_m.kernel = &ptx_kernels[i];
    if (ptx_m.kernel == NULL || ctas == 0 || threads == 0 || threads % LANES != 0 ||
        threads > ptx_m.kernel->most_threads)
        return INVALID_VALUE;
    ptx_m.shared_bytes = ptx_m.kernel->shared_bytes + shared_bytes;
    ptx_m.grid = ctas;
    ptx_m.quiet = 0;
    ptx_m.failed = false;
    ptx_m.parameter = (uint8_t *const *)parameters;
    for (uint32_t i = 0; i < ptx_m.kernel->parameters; i++)
        ptx_memory(parameters[i], ptx_m.kernel->parameter_bytes[i], 1);
    pthread_mutex_lock(&memory_mutex);
    run_grid(ctas, threads, together != 0);
    pthread_mutex_unlock(&memory_mutex);
    for (uint32_t i = 0; i < ptx_m.kernel->parameters; i++)
        ptx_memory(parameters[i], ptx_m.kernel->parameter_bytes[i], 0);
    return ptx_m.failed ? LAUNCH_FAILED : 0;
}

void ptx_set(uint64_t seed, int races)
{
    ptx_m.state = seed * 0x9e3779b97f4a7c15ull + 1;
    ptx_m.races = races != 0;
    ptx_m.fault[0] = '\0';
    memset(ptx_m.counts, 0, sizeof ptx_m.counts);
}

const char *ptx_fault(void)
{
    return ptx_m.fault;
}

void ptx_counts(uint64_t counts[3])
{
    memcpy(counts, ptx_m.counts, sizeof ptx_m.counts);
}
