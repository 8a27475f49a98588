#include "sample/prefix.h"

#include <math.h>

#include "base/exp.h"
#include "base/size.h"

/* Terms of an exp sum that are added as one tree, in float; the trees are added in double. */
enum { SUM_BLOCK = 256 };

enum { LANES = 16 };
_Static_assert(MIMO_SPAN == 4 * LANES, "full_span_max takes four of each lane");

float mimo_exp_negative(float x)
{
    return mimo_expf_negative(x);
}

double mimo_exp_sum(const float *x, size_t n, float largest, float scale)
{
    double sum = 0.0;
    for (size_t first = 0; first < n; first += SUM_BLOCK) {
        const size_t count = mimo_min(SUM_BLOCK, n - first);
        float terms[SUM_BLOCK];
        for (size_t i = 0; i < count; i++)
            terms[i] = mimo_expf_negative((x[first + i] - largest) * scale);
        for (size_t i = count; i < SUM_BLOCK; i++)
            terms[i] = 0.0f;
        for (size_t half = SUM_BLOCK / 2; half > 0; half /= 2)
            for (size_t i = 0; i < half; i++)
                terms[i] += terms[half + i];
        sum += (double)terms[0];
    }
    return sum;
}

void mimo_key_weights(float *out, const uint64_t *keys, size_t n, float largest, float scale)
{
    for (size_t i = 0; i < n; i++)
        out[i] = mimo_expf_negative((mimo_key_logit(keys[i]) - largest) * scale);
}

size_t mimo_spans_count(size_t V)
{
    return mimo_ceil_div(V, MIMO_SPAN);
}

/* The largest of the MIMO_SPAN logits x, a lane each for 16 of them because the compiler may not reorder one running
 * maximum. nans [LANES]: set where a NaN was met. */
static inline float full_span_max(const float *x, uint32_t *nans)
{
    float lane[LANES];
    for (int i = 0; i < LANES; i++) {
        const float a = x[i], b = x[i + LANES], c = x[i + 2 * LANES], d = x[i + 3 * LANES];
        const float ab = a > b ? a : b, cd = c > d ? c : d;
        lane[i] = ab > cd ? ab : cd;
        nans[i] |= (uint32_t)isunordered(a, b) | (uint32_t)isunordered(c, d);
    }
    for (int i = 0; i < 8; i++)
        lane[i] = lane[i] > lane[8 + i] ? lane[i] : lane[8 + i];
    for (int i = 0; i < 4; i++)
        lane[i] = lane[i] > lane[4 + i] ? lane[i] : lane[4 + i];
    const float a = lane[0] > lane[1] ? lane[0] : lane[1], b = lane[2] > lane[3] ? lane[2] : lane[3];
    return a > b ? a : b;
}

mimo_spans mimo_spans_scan(const float *logits, size_t V, float *maxima, int *nan)
{
    const size_t full = V / MIMO_SPAN, count = mimo_spans_count(V);
    uint32_t nans[LANES] = {0};
    for (size_t s = 0; s < full; s++)
        maxima[s] = full_span_max(logits + s * MIMO_SPAN, nans);
    if (full < count)
        maxima[full] = -INFINITY;
    for (size_t v = full * MIMO_SPAN; v < V; v++) {
        maxima[full] = logits[v] > maxima[full] ? logits[v] : maxima[full];
        nans[0] |= (uint32_t)isnan(logits[v]);
    }
    *nan = 0;
    for (int i = 0; i < LANES; i++)
        *nan |= nans[i] != 0;

    size_t best = 0;
    for (size_t s = 1; s < count; s++)
        if (maxima[s] > maxima[best])
            best = s;
    size_t argmax = best * MIMO_SPAN;
    while (argmax + 1 < V && logits[argmax] != maxima[best])
        argmax++;
    return (mimo_spans){logits, maxima, V, maxima[best], (uint32_t)argmax};
}

size_t mimo_prefix_collect(uint64_t *keys, const mimo_spans *spans, uint64_t cut)
{
    const float least = mimo_key_logit(cut);
    size_t n = 0;
    for (size_t s = 0; s < mimo_spans_count(spans->V); s++) {
        if (spans->maxima[s] < least)
            continue;
        const size_t end = mimo_min(spans->V, (s + 1) * MIMO_SPAN);
        for (size_t v = s * MIMO_SPAN; v < end; v++) {
            const uint64_t key = mimo_key(spans->logits[v], (uint32_t)v);
            keys[n] = key; /* kept or overwritten: n <= v always, and no branch is mispredicted */
            n += key >= cut;
        }
    }
    return n;
}

typedef struct histogram {
    double mass[256];
    uint32_t count[256];
} histogram;

/* Weights by the byte of the key at `shift`. Logits that follow each other fall in the same bucket often, so two
 * histograms are filled in turns: one addition need not wait for the other. */
static void count_bytes(histogram *out, const uint64_t *keys, const float *weights, size_t n, unsigned shift)
{
    histogram both[2] = {0};
    for (size_t i = 0; i < n; i++) {
        const unsigned byte = (unsigned)(keys[i] >> shift) & 255u;
        both[i % 2].mass[byte] += weights != NULL ? (double)weights[i] : 1.0;
        both[i % 2].count[byte]++;
    }
    for (int byte = 0; byte < 256; byte++) {
        out->mass[byte] = both[0].mass[byte] + both[1].mass[byte];
        out->count[byte] = both[0].count[byte] + both[1].count[byte];
    }
}

/* Keeps the keys whose byte at `shift` is `byte`, and returns how many. */
static size_t keep_byte(uint64_t *keys, float *weights, size_t n, unsigned shift, unsigned byte)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        keys[kept] = keys[i];
        if (weights != NULL)
            weights[kept] = weights[i];
        kept += ((keys[i] >> shift) & 255u) == byte;
    }
    return kept;
}

/* Radix selection: a histogram of the weights by one byte of the key finds the byte of the cut, and only keys with that
 * byte go on. At most eight passes whatever the keys are. */
uint64_t mimo_prefix_cut(uint64_t *keys, float *weights, size_t n, double target)
{
    double above = 0.0; /* weight of the keys that are kept whatever the lower bytes of the cut are */
    for (unsigned shift = 56; n > 1; shift -= 8) {
        histogram h;
        count_bytes(&h, keys, weights, n, shift);
        unsigned cut = 0;
        double reached = above;
        for (unsigned byte = 256; byte-- > 0 && !(reached >= target);) {
            if (h.count[byte] == 0)
                continue;
            cut = byte;
            above = reached;
            reached += h.mass[byte];
        }
        n = keep_byte(keys, weights, n, shift, cut);
    }
    return keys[0];
}

uint64_t mimo_prefix_top(uint64_t *keys, const mimo_spans *spans, size_t k)
{
    uint64_t cut = MIMO_CUT_NONE;
    const size_t count = mimo_spans_count(spans->V);
    if (k < count) {
        /* k spans have a logit of at least the k-th largest maximum, so the k largest logits are not below it. */
        for (size_t s = 0; s < count; s++)
            keys[s] = mimo_key(spans->maxima[s], (uint32_t)s);
        const uint64_t floor = mimo_key_floor(mimo_key_logit(mimo_prefix_cut(keys, NULL, count, (double)k)));
        cut = floor > cut ? floor : cut;
    }
    const size_t n = mimo_prefix_collect(keys, spans, cut);
    return n > k ? mimo_prefix_cut(keys, NULL, n, (double)k) : cut;
}
