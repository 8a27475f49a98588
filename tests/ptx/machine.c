#include "machine.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "races.h"

enum {
    LANES = 32,
    STACK = 512 << 10,   /* of a thread */
    BARRIERS = 16,       /* named ones of a CTA */
    MBARRIERS = 64,      /* of a CTA */
    COPIERS = 64,        /* actors that stand for a CTA's copies in bulk, in turn */
    WAVE = 3,            /* CTAs at once of a launch whose CTAs may be anywhere */
    MOST_COPIES = 4096,  /* under way */
    LAUNCH_FAILED = 719, /* results of the driver */
    INVALID_VALUE = 1,
    POLL_NS = 20,     /* that somebody's look takes, */
    QUIET_NS = 100000 /* and a look when nobody has done anything for a while */
};
static const uint64_t quiet_most_ns = 120000000000u; /* after which nobody ever will */

typedef enum state_type { READY, WAITING, DONE } state_type;

typedef struct warp_type {
    uint32_t mask, arrived; /* of the lanes that meet; arrived 0: nobody has come */
    char what; /* for what: a shuffle's mode, 's' sync, 'v' vote, 'x' sum or max, 't' turn, 'm' and the kind of a
                  product, 'r' setmaxnreg */
    char kind;
    struct ptx_waiter *lane[LANES];
} warp_type;

typedef struct barrier_type {
    uint32_t arrived, wanted, yes; /* yes: of those, who said so */
    char what;                     /* they come for */
    struct ptx_waiter *who[1024];  /* [arrived] */
} barrier_type;

typedef struct mbarrier_type {
    uint64_t at;
    uint32_t count, pending, phase;
    int64_t bytes;
    race_place before, now; /* what was told in phases that are over, and in this one */
} mbarrier_type;

typedef struct cta_type {
    uint32_t index, first; /* number in the grid; its first thread's number */
    uint8_t *shared;
    race_word *words;
    barrier_type barrier[BARRIERS];
    mbarrier_type mbarrier[MBARRIERS];
    uint32_t mbarriers, copies; /* since it began */
    uint64_t barriers_end;      /* where the last one ends in shared memory */
} cta_type;

typedef struct small_copy {
    uint8_t *to;
    const uint8_t *from;
    uint32_t bytes;
} small_copy;

/* A thread and where it stands. */
typedef struct ptx_waiter {
    ptx_thread thread;
    race_actor actor;
    cta_type *cta;
    warp_type *warp;
    ucontext_t start;
    jmp_buf here;
    bool started;
    state_type state;
    const char *waits; /* for what, and its number */
    uint32_t number;
    uint32_t operand[10], result;
    uint32_t *target[4];
    uint8_t valid;
    small_copy *copy; /* [copies] that it has not waited for */
    uint32_t copies, copy_room;
} waiter;

typedef struct copy_type {
    cta_type *cta;
    uint8_t *to;
    const uint8_t *from;
    uint64_t shared_at, global_at, mbarrier;
    uint32_t bytes, line;
    race_actor *actor;
} copy_type;

typedef struct region_type {
    uintptr_t begin;
    size_t bytes;
    race_word *words;
    uint64_t written; /* the last wave that wrote to it */
} region_type;

typedef struct place_of {
    uint64_t at;
    race_place place;
} place_of;

static pthread_mutex_t memory_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    region_type *region;
    size_t regions, room, last;
} memory;

static struct {
    uint64_t state, now, quiet; /* state: of what is drawn */
    bool races;
    uint64_t wave, counts[3];
    char fault[1024];
    bool failed;
    const ptx_kernel *kernel;
    uint32_t ctas, threads, shared_bytes, grid; /* of a wave; bytes of a CTA; of the launch */
    uint8_t *const *parameter;
    cta_type *cta;
    warp_type *warp;
    waiter *all, *current;
    race_actor *copier;
    waiter **ready;
    uint32_t first, waiting, live; /* ready ones are a ring from `first` on */
    copy_type copy[MOST_COPIES];
    uint32_t copies;
    place_of *place;
    size_t places, places_room;
    uint8_t *stacks;
    size_t stacks_bytes;
    jmp_buf scheduler;
} m;

/* ---- drawing ---- */

static uint32_t draw(uint32_t below)
{
    m.state = m.state * 6364136223846793005ull + 1442695040888963407ull; /* Knuth */
    return (uint32_t)((m.state >> 32) * below >> 32);
}

/* ---- threads that take turns ---- */

static void leave(waiter *w)
{
    if (_setjmp(w->here) == 0)
        _longjmp(m.scheduler, 1);
}

static void make_ready(waiter *w)
{
    w->state = READY;
    const uint32_t size = m.ctas * m.threads, at = m.first + m.waiting++;
    m.ready[at < size ? at : at - size] = w;
}

static void wait_for(waiter *w, const char *what, uint32_t number)
{
    w->state = WAITING;
    w->waits = what;
    w->number = number;
    leave(w);
}

/* Ends the launch. */
static _Noreturn void fault(waiter *w, const char *format, ...)
{
    size_t used = 0;
    if (w != NULL)
        used = (size_t)snprintf(m.fault, sizeof m.fault, "%s, line %u, CTA %u, thread %u: ", m.kernel->name,
                                w->thread.line, w->thread.ctaid, w->thread.tid);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(m.fault + used, sizeof m.fault - used, format, arguments);
    va_end(arguments);
    m.failed = true;
    _longjmp(m.scheduler, 2);
}

void ptx_pause(ptx_thread *t)
{
    const uint64_t usual = 64ull * m.ctas * m.threads;
    m.now += ++m.quiet > usual ? QUIET_NS : POLL_NS;
    if (m.quiet > usual + quiet_most_ns / QUIET_NS)
        fault(t->waiter, "looks again and again, and for two minutes nobody has done anything else");
    make_ready(t->waiter);
    leave(t->waiter);
}

uint64_t ptx_clock(ptx_thread *t)
{
    (void)t;
    return m.now += POLL_NS;
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
    const uint32_t threads = m.ctas * m.threads, other = found->other;
    char who[96];
    if (other < threads)
        snprintf(who, sizeof who, "thread %u of CTA %u", m.all[other].thread.tid, m.all[other].thread.ctaid);
    else
        snprintf(who, sizeof who, "a copy of CTA %u", m.cta[(other - threads) / COPIERS].index);
    fault(w, "race: %s %s %s memory at %#llx that %s %s at line %u, and neither happened before the other",
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
        m.counts[2]++;
        if (!race_touch(&words[(offset + done) / 4], actor, w->thread.line, mask, how != PTX_READ, strong, &found))
            say_race(w, actor, at + done, where, how, &found);
        done += count;
    }
}

/* A CTA's shared memory from `offset` on. */
static uint8_t *touch_shared(waiter *w, race_actor *actor, uint64_t offset, uint32_t bytes, int how, bool strong,
                             bool is_barrier)
{
    cta_type *cta = w->cta;
    if (offset + bytes > m.shared_bytes || offset + bytes < offset)
        fault(w, "%s %u bytes of shared memory at %#llx, of which there are %u", how_words[how], bytes,
              (unsigned long long)offset, m.shared_bytes);
    if (!is_barrier && offset < cta->barriers_end)
        for (uint32_t i = 0; i < cta->mbarriers; i++)
            if (cta->mbarrier[i].at < offset + bytes && offset < cta->mbarrier[i].at + 8)
                fault(w, "%s shared memory at %#llx, where a barrier is", how_words[how], (unsigned long long)offset);
    if (m.races && !is_barrier)
        hold_against_races(w, actor, cta->words, offset, bytes, how, strong, offset, "shared");
    return cta->shared + offset;
}

static uint8_t *touch_global(waiter *w, race_actor *actor, uint64_t at, uint32_t bytes, int how, bool strong)
{
    region_type *region = region_of((uintptr_t)at, bytes);
    if (region == NULL)
        fault(w, "%s %u bytes at %#llx, where no memory is", how_words[how], bytes, (unsigned long long)at);
    if (how != PTX_READ)
        region->written = m.wave;
    if (m.races && (region->written == m.wave || bytes <= 16)) { /* nobody races with a copy from what nobody writes */
        if (region->words == NULL)
            region->words = words_for(region->bytes);
        hold_against_races(w, actor, region->words, at - region->begin, bytes, how, strong, at, "global");
    }
    return (uint8_t *)(uintptr_t)at;
}

static bool is_own_stack(const waiter *w, uint64_t at)
{
    const uintptr_t stack = (uintptr_t)m.stacks + (size_t)(w - m.all) * STACK;
    return at - stack < STACK;
}

static uint8_t *touch(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how, bool strong)
{
    waiter *w = t->waiter;
    if (how != PTX_READ)
        m.quiet = 0;
    if (at % bytes != 0)
        fault(w, "%s %u bytes at %#llx, which is no multiple of %u", how_words[how], bytes, (unsigned long long)at,
              bytes);
    if (space == PTX_SHARED)
        return touch_shared(w, &w->actor, at, bytes, how, strong, false);
    if (space != PTX_GLOBAL) {
        const uint64_t shared = at - (uint64_t)(uintptr_t)t->shared;
        if (space == PTX_GENERIC && shared < m.shared_bytes)
            return touch_shared(w, &w->actor, shared, bytes, how, strong, false);
        if (is_own_stack(w, at))
            return (uint8_t *)(uintptr_t)at;
    }
    return touch_global(w, &w->actor, at, bytes, how, strong);
}

uint8_t *ptx_touch(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how)
{
    return touch(t, space, at, bytes, how, false);
}

static race_place *place_at(uint64_t at)
{
    static size_t last;
    if (last < m.places && m.place[last].at == at)
        return &m.place[last].place;
    for (size_t i = 0; i < m.places; i++)
        if (m.place[i].at == at)
            return &m.place[last = i].place;
    if (m.places == m.places_room) {
        m.places_room = 2 * m.places_room + 64;
        m.place = realloc(m.place, m.places_room * sizeof *m.place);
        if (m.place == NULL)
            abort();
        for (uint32_t i = 0; i < m.ctas * m.threads; i++)
            m.all[i].actor.place = NULL; /* they have moved */
    }
    m.place[m.places] = (place_of){.at = at};
    return &m.place[m.places++].place;
}

uint8_t *ptx_touch_strong(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how, bool acquire, bool release)
{
    if (how == PTX_READ)
        ptx_pause(t);
    uint8_t *memory_at = touch(t, space, at, bytes, how, true);
    if (m.races && release)
        race_release(place_at(at), &t->waiter->actor);
    if (m.races && acquire)
        race_acquire(&t->waiter->actor, place_at(at));
    return memory_at;
}

void ptx_fence(ptx_thread *t)
{
    (void)t;
}

/* ---- meetings ---- */

static void meet(waiter **who, uint32_t count)
{
    m.quiet = 0;
    if (!m.races)
        return;
    race_actor *actors[1024];
    for (uint32_t i = 0; i < count; i++)
        actors[i] = &who[i]->actor;
    race_meet(actors, count);
}

/* The last who comes to a barrier lets all go, each with what they have found out together. */
static void open_barrier(barrier_type *b)
{
    const uint32_t found = b->what == 'a' ? b->yes == b->wanted : b->what == 'o' ? b->yes > 0 : b->yes;
    for (uint32_t i = 0; i < b->wanted; i++) {
        b->who[i]->result = found;
        if (i + 1 < b->wanted)
            make_ready(b->who[i]);
    }
    b->arrived = b->yes = 0;
    meet(b->who, b->wanted);
}

uint32_t ptx_bar(ptx_thread *t, char what, uint32_t number, uint32_t threads, uint8_t yes)
{
    waiter *w = t->waiter;
    const uint32_t wanted = threads > 0 ? threads : t->ntid;
    if (number >= BARRIERS || wanted % LANES != 0 || wanted > t->ntid)
        fault(w, "barrier %u of %u threads: expected one of %d, of whole warps of the CTA's %u threads", number, wanted,
              BARRIERS, t->ntid);
    barrier_type *b = &w->cta->barrier[number];
    if (b->arrived == 0)
        b->wanted = wanted, b->what = what;
    if (b->wanted != wanted)
        fault(w, "comes to barrier %u as one of %u threads, others as of %u", number, wanted, b->wanted);
    if (b->what != what)
        fault(w, "comes to barrier %u for another reason than others", number);
    b->who[b->arrived++] = w;
    b->yes += yes != 0;
    if (b->arrived < wanted)
        wait_for(w, "barrier", number);
    else
        open_barrier(b);
    return w->result;
}

static void shuffle(warp_type *warp)
{
    for (uint32_t i = 0; i < LANES; i++) {
        if (!(warp->mask >> i & 1))
            continue;
        waiter *w = warp->lane[i];
        const uint32_t b = w->operand[1] & 31, clamp = w->operand[2] & 31, segment = w->operand[2] >> 8 & 31;
        const uint32_t most = (i & segment) | (clamp & ~segment), least = i & segment;
        int64_t from;
        switch (warp->what) {
        case 'u':
            from = (int64_t)i - b;
            w->valid = from >= (int64_t)most;
            break;
        case 'd':
            from = i + b;
            w->valid = from <= (int64_t)most;
            break;
        case 'b':
            from = i ^ b;
            w->valid = from <= (int64_t)most;
            break;
        default:
            from = least | (b & ~segment);
            w->valid = from <= (int64_t)most;
            break;
        }
        const uint32_t source = w->valid ? (uint32_t)from : i;
        if (!(warp->mask >> source & 1))
            fault(w, "shuffles with lane %u, which is not there", source);
        w->result = warp->lane[source]->operand[0];
    }
}

/* Of lane 4 g + c: A has rows g, g + 8 and columns p c .. p c + p - 1, then `half` further; B those columns as rows and
 * column g; D and C rows g, g + 8 and columns 2 c, 2 c + 1. p: values of a register. */
static void multiply(warp_type *warp)
{
    const bool bytes = warp->kind == '8';
    const uint32_t p = bytes ? 4 : 2, K = bytes ? 32 : 16, half = K / 2;
    double a[16][32], b[32][8];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const uint32_t *operand = warp->lane[lane]->operand, g = lane / 4, c = lane % 4;
        for (uint32_t i = 0; i < 6; i++)
            for (uint32_t j = 0; j < p; j++) {
                const uint32_t bits = bytes ? operand[i] >> 8 * j & 255 : operand[i] >> 16 * j & 0xffff;
                const double value = bytes               ? ptx_e4m3((uint8_t)bits)
                                     : warp->kind == 'b' ? ptx_bf16((uint16_t)bits)
                                                         : ptx_f16((uint16_t)bits);
                if (i < 4)
                    a[g + 8 * (i % 2)][p * c + half * (i / 2) + j] = value;
                else
                    b[p * c + half * (i - 4) + j][g] = value;
            }
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        waiter *w = warp->lane[lane];
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            double sum = ptx_f32(w->operand[6 + i]);
            for (uint32_t k = 0; k < K; k++)
                sum += a[row][k] * b[k][column];
            *w->target[i] = ptx_b32((float)sum);
        }
    }
}

/* 8 by 8 of 16 bits: lane 4 g + c has columns 2 c and 2 c + 1 of row g. */
static void turn(warp_type *warp)
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t pair = 0;
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t row = lane % 4 * 2 + j, column = lane / 4;
            pair |= (warp->lane[4 * row + column / 2]->operand[0] >> 16 * (column % 2) & 0xffff) << 16 * j;
        }
        warp->lane[lane]->result = pair;
    }
}

static void vote(warp_type *warp)
{
    uint32_t ballot = 0;
    for (uint32_t i = 0; i < LANES; i++)
        if (warp->mask >> i & 1)
            ballot |= (warp->lane[i]->operand[0] != 0) << i;
    for (uint32_t i = 0; i < LANES; i++)
        if (warp->mask >> i & 1)
            warp->lane[i]->result = ballot;
}

static void reduce(warp_type *warp)
{
    uint32_t sum = 0, most = 0;
    for (uint32_t i = 0; i < LANES; i++)
        if (warp->mask >> i & 1) {
            sum += warp->lane[i]->operand[0];
            most = warp->lane[i]->operand[0] > most ? warp->lane[i]->operand[0] : most;
        }
    for (uint32_t i = 0; i < LANES; i++)
        if (warp->mask >> i & 1)
            warp->lane[i]->result = warp->kind ? most : sum;
}

/* Lanes of a warp come together; the last one does what they came for. */
static void gather(waiter *w, uint32_t mask, char what, char kind)
{
    warp_type *warp = w->warp;
    const uint32_t lane = w->thread.lane;
    if (!(mask >> lane & 1))
        fault(w, "is not among the lanes %#x that it meets", mask);
    if (warp->arrived == 0) {
        warp->mask = mask;
        warp->what = what;
        warp->kind = kind;
    }
    if (warp->mask != mask || warp->what != what || warp->kind != kind)
        fault(w, "meets lanes %#x for '%c', others of its warp meet %#x for '%c'", mask, what, warp->mask, warp->what);
    warp->arrived |= 1u << lane;
    if (warp->arrived != mask) {
        wait_for(w, "lanes of its warp", mask);
        return;
    }
    waiter *who[LANES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < LANES; i++)
        if (mask >> i & 1)
            who[count++] = warp->lane[i];
    if (what == 'm')
        multiply(warp);
    else if (what == 'v')
        vote(warp);
    else if (what == 't')
        turn(warp);
    else if (what == 'x')
        reduce(warp);
    else if (what != 's' && what != 'r')
        shuffle(warp);
    warp->arrived = 0;
    for (uint32_t i = 0; i < count; i++)
        if (who[i] != w)
            make_ready(who[i]);
    if (what == 's')
        meet(who, count); /* of all that lanes do together only this orders what they read and write */
    else
        m.quiet = 0;
}

void ptx_warp_sync(ptx_thread *t, uint32_t mask)
{
    gather(t->waiter, mask, 's', 0);
}

uint32_t ptx_shfl(ptx_thread *t, char mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, uint8_t *valid)
{
    waiter *w = t->waiter;
    w->operand[0] = value;
    w->operand[1] = b;
    w->operand[2] = c;
    gather(w, mask, mode, 0);
    *valid = w->valid;
    return w->result;
}

uint32_t ptx_redux(ptx_thread *t, uint32_t mask, uint32_t value, bool max)
{
    t->waiter->operand[0] = value;
    gather(t->waiter, mask, 'x', (char)max);
    return t->waiter->result;
}

uint32_t ptx_vote(ptx_thread *t, uint32_t mask, uint32_t predicate)
{
    t->waiter->operand[0] = predicate;
    gather(t->waiter, mask, 'v', 0);
    return t->waiter->result;
}

uint32_t ptx_movmatrix(ptx_thread *t, uint32_t value)
{
    t->waiter->operand[0] = value;
    gather(t->waiter, UINT32_MAX, 't', 0);
    return t->waiter->result;
}

void ptx_mma(ptx_thread *t, char kind, uint32_t *d[4], const uint32_t a[4], const uint32_t b[2], const uint32_t c[4])
{
    waiter *w = t->waiter;
    memcpy(w->operand, a, 4 * sizeof *a);
    memcpy(w->operand + 4, b, 2 * sizeof *b);
    memcpy(w->operand + 6, c, 4 * sizeof *c);
    memcpy(w->target, d, sizeof w->target);
    gather(w, UINT32_MAX, 'm', kind);
}

void ptx_setmaxnreg(ptx_thread *t, bool more, uint32_t registers)
{
    (void)more;
    if (registers < 24 || registers > 256 || registers % 8 != 0)
        fault(t->waiter, "setmaxnreg %u: expected a multiple of 8 from 24 to 256", registers);
    gather(t->waiter, UINT32_MAX, 'r', 0);
}

/* ---- barriers of copies ---- */

static mbarrier_type *mbarrier_at(waiter *w, uint64_t at)
{
    for (uint32_t i = 0; i < w->cta->mbarriers; i++)
        if (w->cta->mbarrier[i].at == at)
            return &w->cta->mbarrier[i];
    fault(w, "no barrier was made at %#llx", (unsigned long long)at);
}

void ptx_mbarrier_init(ptx_thread *t, uint64_t at, uint32_t count)
{
    waiter *w = t->waiter;
    (void)touch_shared(w, &w->actor, at, 8, PTX_WRITE, false, true);
    if (at % 8 != 0 || count == 0 || count >= 1u << 20 || w->cta->mbarriers == MBARRIERS)
        fault(w, "a barrier at %#llx for %u: expected an address of 8, a count from 1 on, %d barriers at most",
              (unsigned long long)at, count, MBARRIERS);
    if (w->cta->barriers_end < at + 8)
        w->cta->barriers_end = at + 8;
    w->cta->mbarrier[w->cta->mbarriers++] = (mbarrier_type){.at = at, .count = count, .pending = count};
}

static void settle(mbarrier_type *b)
{
    if (b->pending > 0 || b->bytes != 0)
        return;
    b->phase++;
    b->pending = b->count;
    if (m.races)
        race_pass(&b->before, &b->now);
    m.quiet = 0;
}

void ptx_mbarrier_arrive(ptx_thread *t, uint64_t at, uint32_t expected_bytes)
{
    waiter *w = t->waiter;
    mbarrier_type *b = mbarrier_at(w, at);
    if (b->pending == 0)
        fault(w, "arrives at the barrier at %#llx, which %u have arrived at already", (unsigned long long)at, b->count);
    if (m.races)
        race_release(&b->now, &w->actor);
    b->bytes += expected_bytes;
    b->pending--;
    settle(b);
}

uint32_t ptx_mbarrier_try_wait(ptx_thread *t, uint64_t at, uint32_t parity)
{
    waiter *w = t->waiter;
    if (parity > 1)
        fault(w, "waits for parity %u", parity);
    if ((mbarrier_at(w, at)->phase & 1) == parity)
        ptx_pause(t);
    mbarrier_type *b = mbarrier_at(w, at);
    const bool passed = (b->phase & 1) != parity;
    if (passed && m.races)
        race_acquire(&w->actor, &b->before);
    return passed;
}

void ptx_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes)
{
    waiter *w = t->waiter;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || to % bytes != 0 || from % bytes != 0)
        fault(w, "copies %u bytes from %#llx to %#llx: expected 4, 8 or 16, at multiples", bytes,
              (unsigned long long)from, (unsigned long long)to);
    const uint8_t *source = touch_global(w, &w->actor, from, bytes, PTX_READ, false);
    uint8_t *target = touch_shared(w, &w->actor, to, bytes, PTX_WRITE, false, false);
    memset(target, 0xff, bytes);
    if (w->copies == w->copy_room) {
        w->copy_room = 2 * w->copy_room + 16;
        w->copy = realloc(w->copy, w->copy_room * sizeof *w->copy);
        if (w->copy == NULL)
            abort();
    }
    w->copy[w->copies++] = (small_copy){target, source, bytes};
}

void ptx_copy_wait(ptx_thread *t)
{
    waiter *w = t->waiter;
    for (uint32_t i = 0; i < w->copies; i++)
        memcpy(w->copy[i].to, w->copy[i].from, w->copy[i].bytes);
    w->copies = 0;
}

void ptx_bulk_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes, uint64_t barrier)
{
    waiter *w = t->waiter;
    if (to % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 || bytes == 0)
        fault(w, "copies %u bytes from %#llx to %#llx: expected multiples of 16", bytes, (unsigned long long)from,
              (unsigned long long)to);
    (void)mbarrier_at(w, barrier);
    if (m.copies == MOST_COPIES)
        fault(w, "more than %d copies are under way", MOST_COPIES);
    race_actor *actor = &m.copier[(size_t)(w->cta - m.cta) * COPIERS + w->cta->copies++ % COPIERS];
    if (m.races)
        race_actor_follow(actor, &w->actor);
    const uint8_t *source = touch_global(w, actor, from, bytes, PTX_READ, false);
    uint8_t *target = touch_shared(w, actor, to, bytes, PTX_WRITE, false, false);
    memset(target, 0xff, bytes);
    m.copy[m.copies++] = (copy_type){w->cta, target, source, to, from, barrier, bytes, t->line, actor};
    m.counts[1]++;
}

void ptx_bulk_prefetch(ptx_thread *t, uint64_t from, uint32_t bytes)
{
    waiter *w = t->waiter;
    if (from % 16 != 0 || bytes % 16 != 0)
        fault(w, "asks for %u bytes at %#llx: expected multiples of 16", bytes, (unsigned long long)from);
    if (bytes > 0 && region_of((uintptr_t)from, bytes) == NULL)
        fault(w, "asks for %u bytes at %#llx, where no memory is", bytes, (unsigned long long)from);
}

/* One of the copies under way arrives. */
static void finish_copy(void)
{
    const uint32_t i = draw(m.copies);
    const copy_type copy = m.copy[i];
    m.copy[i] = m.copy[--m.copies];
    memcpy(copy.to, copy.from, copy.bytes);
    m.quiet = 0;
    for (uint32_t j = 0; j < copy.cta->mbarriers; j++)
        if (copy.cta->mbarrier[j].at == copy.mbarrier) {
            mbarrier_type *b = &copy.cta->mbarrier[j];
            if (m.races)
                race_release(&b->now, copy.actor);
            b->bytes -= copy.bytes;
            settle(b);
        }
}

/* ---- launching ---- */

static void enter(void)
{
    waiter *w = m.current;
    m.kernel->run(&w->thread);
    if (w->copies > 0)
        fault(w, "it ended without waiting for %u copies", w->copies);
    w->state = DONE;
    m.live--;
    _longjmp(m.scheduler, 1);
}

static void resume(waiter *w)
{
    m.current = w;
    m.counts[0]++;
    if (w->started)
        _longjmp(w->here, 1);
    w->started = true;
    getcontext(&w->start);
    w->start.uc_stack.ss_sp = m.stacks + (size_t)(w - m.all) * STACK;
    w->start.uc_stack.ss_size = STACK;
    w->start.uc_link = NULL;
    makecontext(&w->start, enter, 0);
    setcontext(&w->start);
}

static void say_stuck(void)
{
    size_t used = (size_t)snprintf(m.fault, sizeof m.fault, "%s: nobody can go on: ", m.kernel->name);
    uint32_t said = 0, all = 0;
    for (uint32_t i = 0; i < m.ctas * m.threads; i++) {
        const waiter *w = &m.all[i], *before = i > 0 ? &m.all[i - 1] : NULL;
        if (w->state != WAITING)
            continue;
        all++;
        const bool same = before != NULL && before->state == WAITING && before->thread.line == w->thread.line &&
                          before->cta == w->cta;
        if (same || said == 6 || used >= sizeof m.fault)
            continue;
        said++;
        used +=
            (size_t)snprintf(m.fault + used, sizeof m.fault - used, "CTA %u, thread %u at line %u waits for %s %#x; ",
                             w->thread.ctaid, w->thread.tid, w->thread.line, w->waits, w->number);
    }
    if (used < sizeof m.fault)
        snprintf(m.fault + used, sizeof m.fault - used, "%u threads wait", all);
    m.failed = true;
}

static void take_turns(void)
{
    while (m.live > 0) {
        if (m.copies > 0 && (m.waiting == 0 || draw(8) == 0))
            finish_copy();
        if (m.waiting == 0) {
            if (m.copies > 0)
                continue;
            say_stuck();
            return;
        }
        const uint32_t size = m.ctas * m.threads;
        if (draw(8) == 0) { /* somebody, in the place of the first */
            const uint32_t i = (m.first + draw(m.waiting)) % size;
            waiter *first = m.ready[m.first];
            m.ready[m.first] = m.ready[i];
            m.ready[i] = first;
        }
        waiter *w = m.ready[m.first];
        m.first = m.first + 1 < size ? m.first + 1 : 0;
        m.waiting--;
        const int back = _setjmp(m.scheduler);
        if (back == 0)
            resume(w);
        if (back == 2)
            return;
    }
    if (m.copies > 0) {
        snprintf(m.fault, sizeof m.fault, "%s: it ended while %u copies were under way", m.kernel->name, m.copies);
        m.failed = true;
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
    m.ctas = ctas;
    m.threads = threads;
    m.cta = must(calloc(ctas, sizeof *m.cta));
    m.warp = must(calloc(count / LANES, sizeof *m.warp));
    m.all = must(calloc(count, sizeof *m.all));
    m.ready = must(calloc(count, sizeof *m.ready));
    m.copier = must(calloc((size_t)ctas * COPIERS, sizeof *m.copier));
    if (m.stacks_bytes < (size_t)count * STACK) {
        if (m.stacks != NULL)
            munmap(m.stacks, m.stacks_bytes);
        m.stacks_bytes = (size_t)count * STACK;
        m.stacks =
            mmap(NULL, m.stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m.stacks == MAP_FAILED)
            abort();
    }
    for (uint32_t i = 0; i < ctas; i++) {
        m.cta[i].shared = must(aligned_alloc(1024, (m.shared_bytes + 1024) / 1024 * 1024));
        m.cta[i].words = m.races ? words_for(m.shared_bytes) : NULL;
    }
}

static void close_wave(void)
{
    for (uint32_t i = 0; i < m.ctas * m.threads; i++)
        free(m.all[i].copy);
    for (uint32_t i = 0; i < m.ctas; i++) {
        free(m.cta[i].shared);
        words_end(m.cta[i].words, m.shared_bytes);
    }
    free(m.cta);
    free(m.warp);
    free(m.all);
    free(m.ready);
    free(m.copier);
    free(m.place);
    m.place = NULL;
    m.places = m.places_room = 0;
}

/* CTAs first .. of the grid, in a drawn order of their threads. */
static void run_wave(uint32_t first, uint32_t ctas)
{
    m.copies = m.first = m.waiting = 0;
    m.places = 0;
    m.wave++;
    m.live = ctas * m.threads;
    if (m.races)
        race_begin(m.ctas * (m.threads + COPIERS));
    for (uint32_t c = 0; c < ctas; c++) {
        cta_type *cta = &m.cta[c];
        uint8_t *shared = cta->shared;
        race_word *words = cta->words;
        memset(cta, 0, sizeof *cta);
        cta->index = first + c;
        cta->first = c * m.threads;
        cta->shared = shared;
        cta->words = words;
        memset(shared, 0xff, m.shared_bytes);
        for (uint32_t i = 0; i < m.threads; i++) {
            waiter *w = &m.all[cta->first + i];
            free(w->copy);
            *w = (waiter){.cta = cta, .warp = &m.warp[(cta->first + i) / LANES]};
            w->thread = (ptx_thread){0, i, m.threads, first + c, m.grid, i % LANES, m.parameter, shared, w};
            w->warp->arrived = 0;
            w->warp->lane[i % LANES] = w;
            if (m.races)
                race_actor_begin(&w->actor, cta->first + i);
            make_ready(w);
        }
        for (uint32_t i = 0; i < COPIERS; i++)
            if (m.races)
                race_actor_begin(&m.copier[c * COPIERS + i], m.ctas * m.threads + c * COPIERS + i);
    }
    take_turns();
}

static void run_grid(uint32_t ctas, uint32_t threads, bool together)
{
    const uint32_t wave = together || ctas < WAVE ? ctas : WAVE;
    open_wave(wave, threads);
    for (uint32_t first = 0; first < ctas && !m.failed; first += wave)
        run_wave(first, ctas - first < wave ? ctas - first : wave);
    close_wave();
}

int ptx_launch(const char *kernel, uint32_t ctas, uint32_t threads, uint32_t shared_bytes, void *const *parameters,
               int together)
{
    m.kernel = NULL;
    for (uint32_t i = 0; i < ptx_kernel_count; i++)
        if (strcmp(ptx_kernels[i].name, kernel) == 0)
            m.kernel = &ptx_kernels[i];
    if (m.kernel == NULL || ctas == 0 || threads == 0 || threads % LANES != 0 || threads > m.kernel->most_threads)
        return INVALID_VALUE;
    m.shared_bytes = m.kernel->shared_bytes + shared_bytes;
    m.grid = ctas;
    m.quiet = 0;
    m.failed = false;
    m.parameter = (uint8_t *const *)parameters;
    for (uint32_t i = 0; i < m.kernel->parameters; i++)
        ptx_memory(parameters[i], m.kernel->parameter_bytes[i], 1);
    pthread_mutex_lock(&memory_mutex);
    run_grid(ctas, threads, together != 0);
    pthread_mutex_unlock(&memory_mutex);
    for (uint32_t i = 0; i < m.kernel->parameters; i++)
        ptx_memory(parameters[i], m.kernel->parameter_bytes[i], 0);
    return m.failed ? LAUNCH_FAILED : 0;
}

void ptx_set(uint64_t seed, int races)
{
    m.state = seed * 0x9e3779b97f4a7c15ull + 1;
    m.races = races != 0;
    m.fault[0] = '\0';
    memset(m.counts, 0, sizeof m.counts);
}

const char *ptx_fault(void)
{
    return m.fault;
}

void ptx_counts(uint64_t counts[3])
{
    memcpy(counts, m.counts, sizeof m.counts);
}
