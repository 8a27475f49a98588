/* Threads that meet: at barriers of a CTA, and as the lanes of a warp. */
#include "inside.h"

static void meet(waiter **who, uint32_t count)
{
    ptx_m.quiet = 0;
    if (!ptx_m.races)
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
            ptx_make_ready(b->who[i]);
    }
    b->arrived = b->yes = 0;
    meet(b->who, b->wanted);
}

uint32_t ptx_bar(ptx_thread *t, char what, uint32_t number, uint32_t threads, uint8_t yes)
{
    waiter *w = t->waiter;
    const uint32_t wanted = threads > 0 ? threads : t->ntid;
    if (number >= BARRIERS || wanted % LANES != 0 || wanted > t->ntid)
        ptx_fail(w, "barrier %u of %u threads: expected one of %d, of whole warps of the CTA's %u threads", number,
                 wanted, BARRIERS, t->ntid);
    barrier_type *b = &w->cta->barrier[number];
    if (b->arrived == 0)
        b->wanted = wanted, b->what = what;
    if (b->wanted != wanted)
        ptx_fail(w, "comes to barrier %u as one of %u threads, others as of %u", number, wanted, b->wanted);
    if (b->what != what)
        ptx_fail(w, "comes to barrier %u for another reason than others", number);
    b->who[b->arrived++] = w;
    b->yes += yes != 0;
    if (b->arrived < wanted)
        ptx_wait_for(w, "barrier", number);
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
            ptx_fail(w, "shuffles with lane %u, which is not there", source);
        w->result = warp->lane[source]->operand[0];
    }
}

/* 16 by 8 by 16 of BF16. Of lane 4 g + c: A has rows g, g + 8 and columns 2 c, 2 c + 1, then 8 further; B those columns
 * as rows and column g; D and C rows g, g + 8 and columns 2 c, 2 c + 1. */
static void multiply(warp_type *warp)
{
    double a[16][16], b[16][8];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const uint32_t *operand = warp->lane[lane]->operand, g = lane / 4, c = lane % 4;
        for (uint32_t i = 0; i < 6; i++)
            for (uint32_t j = 0; j < 2; j++) {
                const double value = ptx_bf16((uint16_t)(operand[i] >> 16 * j));
                if (i < 4)
                    a[g + 8 * (i % 2)][2 * c + 8 * (i / 2) + j] = value;
                else
                    b[2 * c + 8 * (i - 4) + j][g] = value;
            }
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        waiter *w = warp->lane[lane];
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            double sum = ptx_f32(w->operand[6 + i]);
            for (uint32_t k = 0; k < 16; k++)
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
        ptx_fail(w, "is not among the lanes %#x that it meets", mask);
    if (warp->arrived == 0) {
        warp->mask = mask;
        warp->what = what;
        warp->kind = kind;
    }
    if (warp->mask != mask || warp->what != what || warp->kind != kind)
        ptx_fail(w, "meets lanes %#x for '%c', others of its warp meet %#x for '%c'", mask, what, warp->mask,
                 warp->what);
    warp->arrived |= 1u << lane;
    if (warp->arrived != mask) {
        ptx_wait_for(w, "lanes of its warp", mask);
        return;
    }
    waiter *who[LANES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < LANES; i++)
        if (mask >> i & 1)
            who[count++] = warp->lane[i];
    if (what == 'm')
        multiply(warp);
    else if (what == 'g')
        ptx_finish_products(warp, w->operand[0]);
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
            ptx_make_ready(who[i]);
    if (what == 's')
        meet(who, count); /* of all that lanes do together only this orders what they read and write */
    else
        ptx_m.quiet = 0;
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

void ptx_mma(ptx_thread *t, uint32_t *d[4], const uint32_t a[4], const uint32_t b[2], const uint32_t c[4])
{
    waiter *w = t->waiter;
    memcpy(w->operand, a, 4 * sizeof *a);
    memcpy(w->operand + 4, b, 2 * sizeof *b);
    memcpy(w->operand + 6, c, 4 * sizeof *c);
    memcpy(w->target, d, sizeof w->target);
    gather(w, UINT32_MAX, 'm', 0);
}

void ptx_gather_products(waiter *w, uint32_t end)
{
    w->operand[0] = end;
    gather(w, UINT32_MAX, 'g', 0);
}

void ptx_setmaxnreg(ptx_thread *t, bool more, uint32_t registers)
{
    (void)more;
    if (registers < 24 || registers > 256 || registers % 8 != 0)
        ptx_fail(t->waiter, "setmaxnreg %u: expected a multiple of 8 from 24 to 256", registers);
    gather(t->waiter, UINT32_MAX, 'r', 0);
}
