/* Products of warp groups: D += A B of 64 by 32 by 32 of E4M3, A in registers, B in shared memory by a descriptor.
 *
 * They are done as late as they may be, when a thread waits for them: until then D is NaN, and A and B are read only
 * then, so that who looks too early, or writes too early, finds another result. */
#include <stdlib.h>

#include "inside.h"

enum { WARPS = 4, COLUMNS = 32, K = 32, ROW = 16 /* bytes of a core matrix's row */ };

typedef struct product_type {
    uint32_t *d[16];
    const uint32_t *a[4];
    uint32_t c[16]; /* what D was, but after another product that is not done: */
    bool follows;
    uint64_t b;
    uint32_t group;
} product_type;

static double e4m3(uint8_t code)
{
    const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = exponent == 0 ? mantissa * 0x1p-9 : ldexp(8 + mantissa, (int)exponent - 10);
    return (code & 0x7f) == 0x7f ? NAN : code & 0x80 ? -magnitude : magnitude;
}

uint16_t ptx_to_e4m3x2(float high, float low)
{
    uint16_t both = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const float x = i ? high : low;
        uint32_t code = 0x7f;
        if (!isnan(x)) {
            double best = INFINITY; /* to the nearest, of two that are as near the even one; beyond the last that */
            for (uint32_t other = 0; other < 0x7f; other++) {
                const double off = fabs(fabs((double)x) - e4m3((uint8_t)other));
                if (off < best || (off == best && other % 2 == 0)) {
                    best = off;
                    code = other;
                }
            }
            code = isinf(x) ? 0x7e : code;
        }
        both |= (uint16_t)((code | (signbit(x) ? 0x80u : 0u)) << 8 * i);
    }
    return both;
}

/* What lane 4 g + c has of A: of rows g and g + 8 bytes 4 c .. 4 c + 3, then 16 further. */
static void read_a(double a[16][K], warp_type *warp, uint32_t n)
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const product_type *p = &((const product_type *)warp->lane[lane]->product)[n];
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t j = 0; j < 4; j++)
                a[lane / 4 + 8 * (i % 2)][4 * (lane % 4) + 16 * (i / 2) + j] = e4m3((uint8_t)(*p->a[i] >> 8 * j));
    }
}

/* Core matrices of 8 columns by 16 bytes of K without swizzle: the descriptor has the address, what is between two of
 * them along K, and along the columns, all in 16 bytes. */
static void read_b(double b[K][COLUMNS], warp_type *warp, uint64_t descriptor)
{
    waiter *first = warp->lane[0];
    const uint64_t known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32;
    if (descriptor & ~known)
        ptx_fail(first, "the descriptor %#llx: expected an address and two offsets, without swizzle",
                 (unsigned long long)descriptor);
    const uint64_t at = (descriptor & 0x3fff) * ROW, along_k = (descriptor >> 16 & 0x3fff) * ROW,
                   along_n = (descriptor >> 32 & 0x3fff) * ROW;
    for (uint32_t n = 0; n < COLUMNS; n++)
        for (uint32_t half = 0; half < K / ROW; half++) {
            const uint64_t from = at + n / 8 * along_n + half * along_k + n % 8 * ROW;
            waiter *w = warp->lane[n];
            const uint8_t *row = ptx_touch_shared(w, &w->actor, from, ROW, PTX_READ, false, false);
            ptx_check_proxy(w, from, ROW);
            for (uint32_t k = 0; k < ROW; k++)
                b[half * ROW + k][n] = e4m3(row[k]);
        }
}

static void multiply(warp_type *warp, uint32_t n)
{
    double a[16][K], b[K][COLUMNS];
    read_a(a, warp, n);
    read_b(b, warp, ((const product_type *)warp->lane[0]->product)[n].b);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const product_type *p = &((const product_type *)warp->lane[lane]->product)[n];
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + lane % 4 * 2 + i % 2;
            double sum = ptx_f32(p->follows ? *p->d[i] : p->c[i]);
            for (uint32_t k = 0; k < K; k++)
                sum += a[row][k] * b[k][column];
            *p->d[i] = ptx_b32((float)sum);
        }
    }
}

/* A warp's products that are in a group before `end`. */
void ptx_finish_products(warp_type *warp, uint32_t end)
{
    const waiter *first = warp->lane[0];
    uint32_t done = 0;
    for (; done < first->products && ((const product_type *)first->product)[done].group < end; done++)
        multiply(warp, done);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        waiter *w = warp->lane[lane];
        w->products -= done;
        memmove(w->product, (product_type *)w->product + done, w->products * sizeof(product_type));
    }
}

/* All warps of a group begin the same products. */
static void hold_together(waiter *w, uint64_t b)
{
    group_type *group = &w->cta->group[w->thread.tid / LANES / WARPS];
    const uint32_t number = w->begun++;
    if (number == group->begun) {
        if (number - group->least >= GROUP_PRODUCTS)
            ptx_fail(w, "wgmma: %d products ahead of another warp of its group", GROUP_PRODUCTS);
        group->b[group->begun++ % GROUP_PRODUCTS] = b;
    } else if (group->b[number % GROUP_PRODUCTS] != b) {
        ptx_fail(w, "wgmma: product %u of its warp group has columns %#llx, here %#llx", number,
                 (unsigned long long)group->b[number % GROUP_PRODUCTS], (unsigned long long)b);
    }
    uint32_t least = w->begun;
    for (uint32_t i = 0; i < WARPS * LANES; i++) {
        const waiter *other = &ptx_m.all[w->cta->first + w->thread.tid / (WARPS * LANES) * WARPS * LANES + i];
        least = other->begun < least ? other->begun : least;
    }
    group->least = least;
}

void ptx_wgmma(ptx_thread *t, uint32_t *d[16], const uint32_t *a[4], uint64_t b)
{
    waiter *w = t->waiter;
    if (!w->in_group)
        ptx_fail(w, "wgmma: expected wgmma.fence before the first product of a group");
    hold_together(w, b);
    if (w->products == w->product_room) {
        w->product_room = 2 * w->product_room + 8;
        w->product = realloc(w->product, w->product_room * sizeof(product_type));
        if (w->product == NULL)
            abort();
    }
    product_type *all = w->product, *p = &all[w->products];
    *p = (product_type){.b = b, .group = w->groups};
    memcpy(p->d, d, sizeof p->d);
    memcpy(p->a, a, sizeof p->a);
    for (uint32_t i = 0; i < w->products; i++)
        p->follows |= all[i].d[0] == d[0];
    for (uint32_t i = 0; i < 16; i++) {
        p->c[i] = *d[i];
        *d[i] = 0x7fffffff;
    }
    w->products++;
}

void ptx_wgmma_fence(ptx_thread *t)
{
    t->waiter->in_group = true;
}

void ptx_wgmma_commit(ptx_thread *t)
{
    t->waiter->in_group = false;
    t->waiter->groups++;
}

void ptx_wgmma_wait(ptx_thread *t, uint32_t pending)
{
    waiter *w = t->waiter;
    ptx_gather_products(w, w->groups > pending ? w->groups - pending : 0);
}
