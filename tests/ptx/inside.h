/* What the files of the machine share: its parts, and where they stand. */
#ifndef PTX_INSIDE_H
#define PTX_INSIDE_H

#include <setjmp.h>
#include <ucontext.h>

#include "machine.h"
#include "races.h"

enum {
    LANES = 32,
    STACK = 512 << 10,   /* of a thread */
    BARRIERS = 16,       /* named ones of a CTA */
    MBARRIERS = 64,      /* of a CTA */
    COPIERS = 64,        /* actors that stand for a CTA's copies in bulk, in turn */
    WAVE = 3,            /* CTAs at once of a launch whose CTAs may be anywhere */
    MOST_COPIES = 4096,  /* under way */
    GROUP_PRODUCTS = 64, /* that a warp may be ahead of others of its warp group */
    LAUNCH_FAILED = 719, /* results of the driver */
    INVALID_VALUE = 1,
    POLL_NS = 20,     /* that somebody's look takes, */
    QUIET_NS = 100000 /* and a look when nobody has done anything for a while */
};

typedef enum state_type { READY, WAITING, DONE } state_type;

typedef struct warp_type {
    uint32_t mask, arrived; /* of the lanes that meet; arrived 0: nobody has come */
    char what; /* for what: a shuffle's mode, 's' sync, 'v' vote, 'x' sum or max, 't' turn, 'm' product, 'g' the end of
                  products of warp groups, 'r' setmaxnreg */
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

/* Products that warps of a warp group have begun: their B. */
typedef struct group_type {
    uint32_t begun, least; /* by the first of its threads, and by the last */
    uint64_t b[GROUP_PRODUCTS];
} group_type;

/* Who wrote a word of shared memory last, but for copies in bulk: its number + 1, and how many proxy fences it had
 * made. */
typedef struct proxy_word {
    uint32_t writer, fences;
} proxy_word;

typedef struct cta_type {
    uint32_t index, first; /* number in the grid; its first thread's number */
    uint8_t *shared;
    race_word *words;
    proxy_word *proxy;
    group_type group[8];
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
    void *product; /* [products] of warp groups that it has not waited for */
    uint32_t products, product_room;
    uint32_t begun, groups, proxy_fences; /* products begun, groups of them committed, fences between proxies */
    bool in_group;                        /* a fence was made since the last was */
} waiter;

typedef struct copy_type {
    cta_type *cta;
    uint8_t *to;
    const uint8_t *from;
    uint64_t shared_at, global_at, mbarrier;
    uint32_t bytes, line;
    race_actor *actor;
} copy_type;

typedef struct place_of {
    uint64_t at;
    race_place place;
} place_of;

typedef struct machine_type {
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
} machine_type;

extern machine_type ptx_m;

/* A number below `below`. */
uint32_t ptx_draw(uint32_t below);
/* Ends the launch; w: whose mistake it was, or NULL. */
_Noreturn void ptx_fail(waiter *w, const char *format, ...);
/* A thread waits until somebody makes it ready. */
void ptx_wait_for(waiter *w, const char *what, uint32_t number);
void ptx_make_ready(waiter *w);
/* Memory that a thread, or a copy of its, reads, writes or updates (PTX_READ ..). */
uint8_t *ptx_touch_shared(waiter *w, race_actor *actor, uint64_t offset, uint32_t bytes, int how, bool strong,
                          bool is_barrier);
uint8_t *ptx_touch_global(waiter *w, race_actor *actor, uint64_t at, uint32_t bytes, int how, bool strong);
bool ptx_is_memory(uint64_t at, uint32_t bytes);
/* What wgmma reads of shared memory was written by a copy in bulk, or before its writer's fence between proxies. */
void ptx_check_proxy(waiter *w, uint64_t offset, uint32_t bytes);
/* A warp's lanes come together; the last one finishes products of groups before `end`. */
void ptx_gather_products(waiter *w, uint32_t end);
void ptx_finish_products(warp_type *warp, uint32_t end);
/* One of the copies under way arrives. */
void ptx_finish_copy(void);

#endif
