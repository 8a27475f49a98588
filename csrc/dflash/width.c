#include "dflash/width.h"

#include <assert.h>
#include <string.h>

/* ---- times ---- */

static void fill_between(double *base, size_t low, size_t high)
{
    for (size_t r = low + 1; r < high; r++)
        base[r] = base[low] + (base[high] - base[low]) * (double)(r - low) / (double)(high - low);
}

void mimo_times_init(mimo_times *times, const double *measured)
{
    double *base = times->base;
    size_t low = 0, before = 0;
    base[0] = 0.0;
    for (size_t r = 1; r <= MIMO_TIMED_ROWS; r++) {
        if (measured[r] <= 0.0)
            continue;
        base[r] = measured[r] > base[low] ? measured[r] : base[low];
        fill_between(base, low, r);
        if (low == 0)
            for (size_t i = 1; i < r; i++)
                base[i] = base[r];
        before = low;
        low = r;
    }
    if (low == 0)
        base[low = 1] = 1.0; /* nothing is known: rows cost as much together as alone */
    const double slope = before > 0 ? (base[low] - base[before]) / (double)(low - before) : base[low] / (double)low;
    for (size_t r = low + 1; r <= MIMO_TIMED_ROWS; r++)
        base[r] = base[low] + slope * (double)(r - low);
    for (size_t r = 0; r <= MIMO_TIMED_ROWS; r++)
        times->drift[r] = 1.0;
    times->level = 1.0;
}

double mimo_times_of(const mimo_times *times, size_t rows)
{
    const size_t r = rows < MIMO_TIMED_ROWS ? rows : MIMO_TIMED_ROWS;
    return times->base[r] * times->drift[r] * times->level;
}

void mimo_times_observe(mimo_times *times, size_t rows, double seconds)
{
    assert(rows >= 1 && rows <= MIMO_TIMED_ROWS);
    double ratio = seconds / mimo_times_of(times, rows);
    ratio = ratio < 0.5 ? 0.5 : ratio > 2.0 ? 2.0 : ratio; /* one step that was held up says little */
    const double gain = 1.0 + (ratio - 1.0) / 16;
    times->level *= gain;
    for (size_t r = 1; r <= MIMO_TIMED_ROWS; r++)
        times->drift[r] += (1.0 - times->drift[r]) / 512;
    times->drift[rows] *= gain;
}

double mimo_usual_time(double *usual, double seconds)
{
    if (*usual == 0.0)
        *usual = seconds;
    else if (seconds > *usual)
        *usual = seconds < *usual * 17 / 16 ? seconds : *usual * 17 / 16;
    else
        *usual = seconds > *usual * 16 / 17 ? seconds : *usual * 16 / 17;
    return *usual;
}

/* ---- trust ---- */

static const float prior_weight = 4.0f;
static const float forget_at = 400.0f;

/* What is believed before anything was seen. */
static const float priors[MIMO_ORIGINS][MIMO_GRADES] = {
    [MIMO_FROM_DRAFTER] = {0.05f, 0.15f, 0.3f, 0.45f, 0.6f, 0.75f, 0.87f, 0.95f},
    [MIMO_FROM_LOOKUP] = {0.2f, 0.3f, 0.4f, 0.5f, 0.55f, 0.6f, 0.7f, 0.85f},
    [MIMO_FROM_BESIDE] = {0.15f, 0.4f, 0.5f, 0.65f, 0.65f, 0.75f, 0.75f, 0.9f},
};

uint8_t mimo_grade_of_chance(double chance)
{
    static const double edges[MIMO_GRADES - 1] = {0.1, 0.25, 0.4, 0.6, 0.75, 0.88, 0.96};
    uint8_t grade = 0;
    while (grade < MIMO_GRADES - 1 && chance >= edges[grade])
        grade++;
    return grade;
}

uint8_t mimo_grade_of_match(size_t length, bool was_right)
{
    const uint8_t class = length >= 12 ? 3 : length >= 5 ? 2 : length >= 3 ? 1 : 0;
    return (uint8_t)(class + (was_right ? 4 : 0));
}

uint8_t mimo_grade_beside(size_t length, size_t agreed)
{
    const size_t class = agreed < 3 ? agreed : 3;
    return (uint8_t)(2 * class + (length >= 5));
}

/* Pools neighbours until no rate falls with the grade (Ayer et al. 1955). */
static void fit(const mimo_trust *trust, size_t origin, size_t sampled, size_t slot, float *rate)
{
    float value[MIMO_GRADES], weight[MIMO_GRADES];
    size_t size[MIMO_GRADES], pools = 0;
    for (size_t g = 0; g < MIMO_GRADES; g++) {
        const float tried = trust->tried[origin][sampled][slot][g];
        weight[pools] = tried + prior_weight;
        value[pools] = (trust->right[origin][sampled][slot][g] + prior_weight * priors[origin][g]) / weight[pools];
        size[pools++] = 1;
        for (; pools > 1 && value[pools - 1] < value[pools - 2]; pools--) {
            const float both = weight[pools - 2] + weight[pools - 1];
            value[pools - 2] = (value[pools - 2] * weight[pools - 2] + value[pools - 1] * weight[pools - 1]) / both;
            weight[pools - 2] = both;
            size[pools - 2] += size[pools - 1];
        }
    }
    for (size_t p = 0; p < pools; p++)
        for (size_t i = 0; i < size[p]; i++)
            *rate++ = value[p];
}

void mimo_trust_init(mimo_trust *trust)
{
    memset(trust, 0, sizeof *trust);
    for (size_t origin = 0; origin < MIMO_ORIGINS; origin++)
        for (size_t sampled = 0; sampled < 2; sampled++)
            for (size_t slot = 0; slot < MIMO_BLOCK_ROWS - 1; slot++)
                fit(trust, origin, sampled, slot, trust->rate[origin][sampled][slot]);
}

float mimo_trust_rate(const mimo_trust *trust, mimo_origin origin, bool sampled, size_t slot, uint8_t grade)
{
    return trust->rate[origin][sampled][slot][grade];
}

void mimo_trust_observe(mimo_trust *trust, mimo_origin origin, bool sampled, const uint8_t *grade,
                        const uint32_t *draft, size_t count, const uint32_t *token, size_t came)
{
    bool right = true;
    for (size_t slot = 0; right && slot < count && slot < came; slot++) {
        right = draft[slot] == token[slot];
        float *tried = &trust->tried[origin][sampled][slot][grade[slot]];
        float *hits = &trust->right[origin][sampled][slot][grade[slot]];
        *tried += 1.0f;
        *hits += right ? 1.0f : 0.0f;
        if (*tried > forget_at) {
            *tried *= 0.5f;
            *hits *= 0.5f;
        }
        fit(trust, origin, sampled, slot, trust->rate[origin][sampled][slot]);
    }
}

/* ---- choice ---- */

double mimo_bid_tokens(const mimo_bid *bid, size_t rows)
{
    double tokens = 1.0, chance = 1.0;
    for (size_t k = 0; k + 1 < rows; k++)
        tokens += chance *= (double)bid->chance[k];
    return tokens;
}

enum { MOST_BIDS = 64 };

double mimo_width_choose(mimo_bid *bids, size_t count, size_t others, size_t room, const mimo_times *times,
                         double draft_seconds)
{
    assert(count >= 1 && count <= MOST_BIDS);
    double next[MOST_BIDS]; /* what one more row of each is worth */
    uint8_t added[MIMO_TIMED_ROWS];
    size_t rows = 0, steps = 0, best_steps = 0;
    double tokens = 0.0;
    for (size_t i = 0; i < count; i++) {
        mimo_bid *bid = &bids[i];
        bid->rows = bid->least;
        rows += bid->rows;
        tokens += mimo_bid_tokens(bid, bid->rows);
        next[i] = bid->rows < bid->most ? mimo_bid_tokens(bid, bid->rows + 1) - mimo_bid_tokens(bid, bid->rows) : 0.0;
    }
    double best = tokens / (mimo_times_of(times, others + rows) + draft_seconds);
    while (rows < room && rows < MIMO_TIMED_ROWS) {
        size_t top = 0;
        for (size_t i = 1; i < count; i++)
            top = next[i] > next[top] ? i : top;
        if (next[top] <= 0.0)
            break;
        mimo_bid *bid = &bids[top];
        tokens += next[top];
        rows++;
        bid->rows++;
        added[steps++] = (uint8_t)top;
        next[top] = bid->rows < bid->most ? next[top] * (double)bid->chance[bid->rows - 1] : 0.0;
        const double rate = tokens / (mimo_times_of(times, others + rows) + draft_seconds);
        if (rate > best) {
            best = rate;
            best_steps = steps;
        }
    }
    while (steps > best_steps)
        bids[added[--steps]].rows--;
    return best * mimo_times_of(times, others + count) / (double)count;
}

/* ---- patience ---- */

enum { LONGEST_PAUSE = 32 };

bool mimo_patience_allows(mimo_patience *patience)
{
    if (patience->left == 0)
        return true;
    patience->left--;
    return false;
}

void mimo_patience_learn(mimo_patience *patience, double gain)
{
    patience->gain = patience->gain == 0.0 ? gain : patience->gain + (gain - patience->gain) / 8;
    if (patience->gain >= 1.0 || gain > 1.1) {
        patience->pause = 0;
        return;
    }
    patience->pause = patience->pause < LONGEST_PAUSE / 2 ? 2 * patience->pause + 1 : LONGEST_PAUSE;
    patience->left = patience->pause;
}
