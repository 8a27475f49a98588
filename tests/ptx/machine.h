/* A GPU of one machine thread: what kernels translated from PTX (translate.py) run on.
 *
 * Every thread of a kernel is a coroutine with a stack of its own. It runs until it waits for others (a barrier, a
 * shuffle, a product of matrices) or looks whether something has come (a counter, a barrier of a copy); who goes on
 * then is drawn from a seed. Copies in bulk are done at a drawn time after they were asked for, and what they are about
 * to overwrite is full of NaN until then. What PTX ISA 9.0 says of an instruction is held: addresses are in memory that
 * is there and aligned, barriers are passed by as many threads as they are for, lanes that meet are all there; with
 * `races` also that of two accesses to the same bytes, one of them a write, one happened before the other.
 *
 * A kernel that breaks a rule, or in which nobody can go on, ends: ptx_fault() says who did what, by the line of the
 * PTX. */
#ifndef PTX_MACHINE_H
#define PTX_MACHINE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PTX_EXPORT __attribute__((visibility("default")))

typedef struct ptx_thread ptx_thread;

typedef struct ptx_kernel {
    const char *name;
    void (*run)(ptx_thread *);
    uint32_t parameters;
    const uint32_t *parameter_bytes;
    uint32_t shared_bytes; /* static ones */
    uint32_t most_threads; /* .maxntid */
} ptx_kernel;

/* Of a translated file. */
extern const ptx_kernel ptx_kernels[];
extern const uint32_t ptx_kernel_count;

/* ---- what who launches calls ---- */

/* Memory of the device, or of the host that it sees, that is there from now on (or no longer). */
PTX_EXPORT void ptx_memory(const void *at, size_t bytes, int live);
/* How the next launches are run. */
PTX_EXPORT void ptx_set(uint64_t seed, int races);
/* Runs a kernel to its end; 0, or 719, as a driver says when a kernel failed. together: all CTAs are there at once. */
PTX_EXPORT int ptx_launch(const char *kernel, uint32_t ctas, uint32_t threads, uint32_t shared_bytes,
                          void *const *parameters, int together);
/* Of the last launch that failed; empty: none has since ptx_set. */
PTX_EXPORT const char *ptx_fault(void);
/* Since ptx_set: switches between threads, copies in bulk, accesses held against races. */
PTX_EXPORT void ptx_counts(uint64_t counts[3]);
/* Instructions that threads have executed, of kernels that count them (translate.py): moves between registers, which
 * machine code mostly has not, are none. */
extern PTX_EXPORT uint64_t ptx_executed;

/* ---- what translated code calls; t->line is the line of the PTX ---- */

enum { PTX_GENERIC, PTX_GLOBAL, PTX_SHARED, PTX_LOCAL };
enum { PTX_READ, PTX_WRITE, PTX_UPDATE };

struct ptx_thread {
    uint32_t line;
    uint32_t tid, ntid, ctaid, nctaid, lane;
    uint8_t *const *parameter;
    uint8_t *shared; /* of its CTA */
    struct ptx_waiter *waiter;
};

/* The memory of an access: at is an address, of PTX_SHARED an offset. */
uint8_t *ptx_touch(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how);
/* The same of an access that may meet others (volatile, relaxed and stronger): acquire joins what was released there,
 * release tells it. */
uint8_t *ptx_touch_strong(ptx_thread *t, int space, uint64_t at, uint32_t bytes, int how, bool acquire, bool release);
void ptx_fence(ptx_thread *t);
void ptx_proxy_fence(ptx_thread *t);
/* Lets others run: whoever asks for the time or for what may have come asks again. */
void ptx_pause(ptx_thread *t);
uint64_t ptx_clock(ptx_thread *t);
uint32_t ptx_sm(ptx_thread *t);

/* what: 's' sync, or what is made of their yes: 'a' and, 'o' or, 'p' count. threads 0: the whole CTA. */
uint32_t ptx_bar(ptx_thread *t, char what, uint32_t barrier, uint32_t threads, uint8_t yes);
void ptx_warp_sync(ptx_thread *t, uint32_t mask);
/* mode: 'b' bfly, 'd' down, 'u' up, 'i' idx */
uint32_t ptx_shfl(ptx_thread *t, char mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, uint8_t *valid);
uint32_t ptx_redux(ptx_thread *t, uint32_t mask, uint32_t value, bool max); /* sum or max, without sign */
uint32_t ptx_vote(ptx_thread *t, uint32_t mask, uint32_t predicate);        /* ballot */
/* d = a b + c of a warp: m16n8k16 of BF16. */
uint32_t ptx_movmatrix(ptx_thread *t, uint32_t value);
void ptx_mma(ptx_thread *t, uint32_t *d[4], const uint32_t a[4], const uint32_t b[2], const uint32_t c[4]);
/* d += a b of a warp group: m64n32k32 of E4M3; b: its descriptor. */
void ptx_wgmma(ptx_thread *t, uint32_t *d[16], const uint32_t *a[4], uint64_t b);
void ptx_wgmma_fence(ptx_thread *t);
void ptx_wgmma_commit(ptx_thread *t);
/* Until all groups but the last `pending` are done. */
void ptx_wgmma_wait(ptx_thread *t, uint32_t pending);
uint16_t ptx_to_e4m3x2(float high, float low); /* beyond 448: that */
void ptx_setmaxnreg(ptx_thread *t, bool more, uint32_t registers);

void ptx_mbarrier_init(ptx_thread *t, uint64_t at, uint32_t count);
void ptx_mbarrier_arrive(ptx_thread *t, uint64_t at, uint32_t expected_bytes);
uint32_t ptx_mbarrier_try_wait(ptx_thread *t, uint64_t at, uint32_t parity);
/* A copy that is done when its thread waits for all of its copies, and not before. */
void ptx_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes);
void ptx_copy_wait(ptx_thread *t);
void ptx_bulk_copy(ptx_thread *t, uint64_t to, uint64_t from, uint32_t bytes, uint64_t barrier);
void ptx_bulk_prefetch(ptx_thread *t, uint64_t from, uint32_t bytes);

/* ---- values ---- */

static inline float ptx_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t ptx_b32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline double ptx_f64(uint64_t bits)
{
    double f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint64_t ptx_b64(double f)
{
    uint64_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* A NaN loses. */
static inline float ptx_min_f32(float a, float b)
{
    return isnan(a) ? b : isnan(b) ? a : a < b || (a == b && signbit(a)) ? a : b;
}
static inline float ptx_max_f32(float a, float b)
{
    return isnan(a) ? b : isnan(b) ? a : a > b || (a == b && signbit(b)) ? a : b;
}

/* Float to integer clamps; NaN is 0. The value is integral already. */
static inline int64_t ptx_clamp(double f, double least, double most)
{
    return isnan(f)     ? 0
           : f <= least ? (int64_t)least
           : f >= most  ? (most >= 0x1p63 ? INT64_MAX : (int64_t)most)
                        : (int64_t)f;
}

static inline uint64_t ptx_to_u64(double f)
{
    return f >= 0x1p64 ? UINT64_MAX : f > 0.0 ? (uint64_t)f : 0;
}

static inline uint32_t ptx_shl32(uint32_t a, uint32_t n)
{
    return n > 31 ? 0 : a << n;
}
static inline uint64_t ptx_shl64(uint64_t a, uint32_t n)
{
    return n > 63 ? 0 : a << n;
}
static inline uint64_t ptx_shr_u(uint64_t a, uint32_t n)
{
    return n > 63 ? 0 : a >> n;
}
static inline int64_t ptx_shr_s(int64_t a, uint32_t n)
{
    return a >> (n > 63 ? 63 : n);
}

static inline uint32_t ptx_prmt(uint32_t a, uint32_t b, uint32_t select)
{
    const uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t nibble = select >> 4 * i & 15, byte = (uint32_t)(bytes >> 8 * (nibble & 7)) & 255;
        out |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return out;
}

static inline uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table)
{
    uint32_t out = 0;
    for (uint32_t i = 0; i < 8; i++)
        if (table >> i & 1)
            out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return out;
}

/* d = b with `length` bits from `at` on replaced by a's lowest. */
static inline uint64_t ptx_bfi(uint64_t a, uint64_t b, uint32_t at, uint32_t length, uint32_t width)
{
    at &= 255;
    length &= 255;
    if (at >= width || length == 0)
        return b;
    const uint64_t ones = length >= 64 ? ~0ull : (1ull << length) - 1, mask = ones << at;
    return (b & ~mask) | (a << at & mask);
}

static inline float ptx_bf16(uint16_t bits)
{
    return ptx_f32((uint32_t)bits << 16);
}
/* To nearest even; NaN is 0x7fff. */
static inline uint16_t ptx_to_bf16(float f)
{
    const uint32_t bits = ptx_b32(f);
    return isnan(f) ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
/* Both halves of a and b multiplied, rounded once. */
static inline uint32_t ptx_pair_product(uint32_t a, uint32_t b)
{
    const float low = (float)((double)ptx_bf16((uint16_t)a) * ptx_bf16((uint16_t)b));
    const float high = (float)((double)ptx_bf16((uint16_t)(a >> 16)) * ptx_bf16((uint16_t)(b >> 16)));
    return (uint32_t)ptx_to_bf16(high) << 16 | ptx_to_bf16(low);
}

#endif
