/* Which tokens of a row may be drawn: top-k, top-p and min-p as sample/sample.c defines them.
 *
 * A key orders tokens: the larger key is the larger logit, and the lower id where logits are equal. Every filter keeps
 * the tokens whose key is at least some cut. The cut is found among few: of COLLECT's tokens, all that weigh so much
 * that it may lie among them. Weights, and the sum of all of them, are sample/prefix.c's floats, bit for bit. */
#ifndef MIMO_CUDA_TILE_FILTER_H
#define MIMO_CUDA_TILE_FILTER_H

#include "base/exp.h"
#include "cuda/op/route.h"
#include "cuda/tile/machine.h"

/* The least key of any finite logit. */
#define MIMO_TILE_CUT_NONE ((uint64_t)0x00800000u << 32)
/* What a token weighs that has the largest logit, in units of mimo_tile_kept. */
#define MIMO_TILE_WEIGHT_ONE ((double)(1ull << 44))

/* A row of logits from which a token is drawn for `position`. ids: those of the logits, NULL: the same. */
typedef struct mimo_tile_row {
    const float *x;
    const uint32_t *ids;
    uint32_t count; /* 0: nothing is drawn */
    uint64_t position;
} mimo_tile_row;

MIMO_BODY inline mimo_tile_row mimo_tile_row_of(const mimo_tile_machine &m, uint32_t tape, uint32_t t)
{
    if (tape == MIMO_TAPE_TARGET) {
        const mimo_cuda_step &step = *m.target.step;
        if (t >= step.rows || step.position[t] + 1 < m.round->known) /* what follows is known */
            return {nullptr, nullptr, 0, 0};
        return {step.logits + t * step.logits_stride, nullptr, m.vocab, step.position[t] + (uint64_t)1};
    }
    const mimo_cuda_step &step = *m.block.step;
    if (t >= step.rows)
        return {nullptr, nullptr, 0, 0};
    const float *x = m.biased != nullptr ? m.biased + (size_t)t * m.draft_vocab : step.logits + t * step.logits_stride;
    return {x, m.drafted, m.draft_vocab, step.anchor + (uint64_t)t};
}

MIMO_BODY inline bool mimo_tile_filters(const mimo_tile_round &r)
{
    return r.temperature > 0.0f && (r.top_k > 0 || r.top_p < 1.0f || r.min_p > 0.0f);
}

/* Whether a row of `ids` is cut by weights or numbers, and not by min-p alone. */
MIMO_BODY inline bool mimo_tile_cuts(const mimo_tile_round &r, uint32_t ids)
{
    return mimo_tile_filters(r) && ((r.top_k > 0 && r.top_k < ids) || r.top_p < 1.0f);
}

MIMO_BODY inline uint32_t mimo_tile_blocks(uint32_t ids)
{
    return (ids + MIMO_TILE_IDS - 1) / MIMO_TILE_IDS;
}

MIMO_BODY inline uint64_t mimo_tile_key(const mimo_tile_row &row, uint32_t i)
{
    return mimo_cuda_score_key(row.x[i], row.ids != nullptr ? row.ids[i] : i);
}

/* ---- sums of a team ---- */

/* What the warps have, by `join`; every thread gets it. */
template <class T, class Team, class F> MIMO_BODY inline T mimo_tile_gather(const Team &team, T own, F join)
{
    T *part = reinterpret_cast<T *>(mimo_cuda_own_scratch(team)); /* [warps] */
    team.sync();                                                  /* nobody reads those of before */
    team.lanes([&](uint32_t lane) {
        if (lane == 0)
            part[team.warp()] = own;
    });
    team.sync();
    T all = part[0];
    for (uint32_t w = 1; w < team.warps(); w++)
        all = join(all, part[w]);
    return all;
}

/* The sum of f(i) over i < n by the whole team, in an order that depends on the team. */
template <class T, class Team, class F> MIMO_BODY inline T mimo_tile_sum(const Team &team, uint32_t n, F f)
{
    typename Team::template lane_value<T> own;
    team.lanes([&](uint32_t lane) {
        T acc = 0;
        for (uint32_t i = team.warp() * MIMO_LANES + lane; i < n; i += team.warps() * MIMO_LANES)
            acc += f(i);
        own[lane] = acc;
    });
    return mimo_tile_gather<T>(team, team.sum(own), [](T a, T b) { return a + b; });
}

/* The largest f(i) over i < n, or 0. */
template <class T, class Team, class F> MIMO_BODY inline T mimo_tile_most(const Team &team, uint32_t n, F f)
{
    typename Team::template lane_value<T> own;
    team.lanes([&](uint32_t lane) {
        T acc = 0;
        for (uint32_t i = team.warp() * MIMO_LANES + lane; i < n; i += team.warps() * MIMO_LANES) {
            const T value = f(i);
            acc = value > acc ? value : acc;
        }
        own[lane] = acc;
    });
    return mimo_tile_gather<T>(team, team.max(own), [](T a, T b) { return a > b ? a : b; });
}

/* f(row, t, first) for the rows t of a task that something is asked of, and each block of its ids; these go round the
 * warps. */
template <class Team, class F>
MIMO_BODY inline void mimo_tile_each_block(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                           F f)
{
    const uint32_t blocks = mimo_tile_blocks(task.count);
    for (uint32_t item = team.warp(); item < task.splits * blocks; item += team.warps()) {
        const uint32_t t = task.split + item / blocks;
        const mimo_tile_row row = mimo_tile_row_of(m, task.tape, t);
        if (row.count > 0)
            f(row, t, task.first + item % blocks * MIMO_TILE_IDS);
    }
}

/* ---- SCAN ---- */

template <class Team>
MIMO_BODY inline void mimo_tile_scan(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    if (!mimo_tile_filters(*m.round))
        return;
    mimo_tile_each_block(team, m, task, [&](const mimo_tile_row &row, uint32_t t, uint32_t first) {
        typename Team::template lane_value<float> own;
        team.lanes([&](uint32_t lane) {
            float most = -INFINITY;
            for (uint32_t i = first + lane; i < first + MIMO_TILE_IDS && i < row.count; i += MIMO_LANES)
                most = row.x[i] > most ? row.x[i] : most;
            own[lane] = most;
        });
        const float most = team.max(own);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                m.maxima[t * m.blocks + first / MIMO_TILE_IDS] = most;
        });
    });
}

/* The largest of `count` maxima, by one warp. */
template <class Team> MIMO_BODY inline float mimo_tile_largest(const Team &team, const float *maxima, uint32_t count)
{
    typename Team::template lane_value<float> own;
    team.lanes([&](uint32_t lane) {
        float most = -INFINITY;
        for (uint32_t b = lane; b < count; b += MIMO_LANES)
            most = maxima[b] > most ? maxima[b] : most;
        own[lane] = most;
    });
    return team.max(own);
}

/* ---- COLLECT ---- */

/* A key that at least k of a row's tokens have or exceed, as large as its maxima say; by one warp. */
template <class Team>
MIMO_BODY inline uint64_t mimo_tile_top(const Team &team, const float *maxima, uint32_t count, uint32_t k)
{
    uint32_t cut = 0, above = count;
    for (uint32_t bit = 32; bit-- > 0 && above > k;) {
        const uint32_t more = cut | 1u << bit;
        typename Team::template lane_value<uint32_t> own;
        team.lanes([&](uint32_t lane) {
            own[lane] = 0;
            for (uint32_t b = lane; b < count; b += MIMO_LANES)
                own[lane] += (uint32_t)(mimo_cuda_score_key(maxima[b], 0) >> 32) >= more;
        });
        const uint32_t found = team.sum(own);
        if (found >= k) {
            cut = more;
            above = found;
        }
    }
    const uint64_t least = (uint64_t)cut << 32;
    return count >= k && least > MIMO_TILE_CUT_NONE ? least : MIMO_TILE_CUT_NONE;
}

/* Which tokens of a row COLLECT takes: those of a key and a weight, relative to the largest logit, so large. */
typedef struct mimo_tile_net {
    uint64_t key;
    float weight, largest, scale;
} mimo_tile_net;

MIMO_BODY inline float mimo_tile_weight(const mimo_tile_net &net, float logit)
{
    return mimo_expf_negative((logit - net.largest) * net.scale);
}

template <class Team>
MIMO_BODY inline mimo_tile_net mimo_tile_net_of(const Team &team, const mimo_tile_round &r, const float *maxima,
                                                uint32_t ids)
{
    const float inverse = 1.0f / r.temperature, scale = inverse < 3.402823466e+38f ? inverse : 3.402823466e+38f;
    mimo_tile_net net = {MIMO_TILE_CUT_NONE, 0.0f, mimo_tile_largest(team, maxima, mimo_tile_blocks(ids)), scale};
    const uint32_t blocks = mimo_tile_blocks(ids);
    if (r.top_k > 0 && r.top_k < ids) {
        net.key = mimo_tile_top(team, maxima, blocks, r.top_k);
        return net;
    }
    typename Team::template lane_value<float> own; /* of the largest of each block alone, which all tokens outweigh */
    team.lanes([&](uint32_t lane) {
        own[lane] = 0.0f;
        for (uint32_t b = lane; b < blocks; b += MIMO_LANES)
            own[lane] += mimo_tile_weight(net, maxima[b]);
    });
    /* All that weigh less are together less than half of what top-p leaves out. */
    net.weight = (1.0f - r.top_p) * team.sum(own) / (2.0f * (float)ids);
    return net;
}

/* Ids [first, first + MIMO_TILE_IDS) of row t: the sum of their weights, added as a tree, and those that are taken. */
template <class Team>
MIMO_BODY inline void mimo_tile_collect_block(const Team &team, const mimo_tile_machine &m, const mimo_tile_net &net,
                                              const mimo_tile_row &row, uint32_t t, uint32_t first)
{
    enum { EACH = MIMO_TILE_IDS / MIMO_LANES };
    typename Team::template lane_value<float> weight[EACH], sum;
    typename Team::template lane_value<uint32_t> place[EACH];
    typename Team::template lane_value<bool> taken[EACH];
    team.lanes([&](uint32_t lane) {
        float w[EACH];
        for (uint32_t k = 0; k < EACH; k++) {
            const uint32_t i = first + k * MIMO_LANES + lane;
            w[k] = i < row.count ? mimo_tile_weight(net, row.x[i]) : 0.0f;
            weight[k][lane] = w[k];
            taken[k][lane] = i < row.count && w[k] >= net.weight && mimo_tile_key(row, i) >= net.key;
        }
        sum[lane] = ((w[0] + w[4]) + (w[2] + w[6])) + ((w[1] + w[5]) + (w[3] + w[7]));
    });
    const float all = team.sum(sum);
    uint32_t count = 0;
    for (uint32_t k = 0; k < EACH; k++) {
        const uint32_t before = count;
        count += team.rank(taken[k], place[k]);
        team.lanes([&](uint32_t lane) { place[k][lane] += before; });
    }
    mimo_tile_kept *to = m.kept + (size_t)t * m.ids + (count > 0 ? team.reserve(&m.kept_count[t], count) : 0);
    team.lanes([&](uint32_t lane) {
        for (uint32_t k = 0; k < EACH; k++)
            if (taken[k][lane])
                to[place[k][lane]] = {mimo_tile_key(row, first + k * MIMO_LANES + lane),
                                      (uint64_t)((double)weight[k][lane] * MIMO_TILE_WEIGHT_ONE)};
        if (lane == 0)
            m.sums[t * m.blocks + first / MIMO_TILE_IDS] = all;
    });
}

template <class Team>
MIMO_BODY inline void mimo_tile_collect(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_tile_round &r = *m.round;
    for (uint32_t t = task.split + team.warp(); t < task.split + task.splits; t += team.warps()) {
        const mimo_tile_row row = mimo_tile_row_of(m, task.tape, t);
        if (row.count == 0 || !mimo_tile_cuts(r, row.count))
            continue;
        const mimo_tile_net net = mimo_tile_net_of(team, r, m.maxima + t * m.blocks, row.count);
        for (uint32_t first = task.first; first < task.first + task.count; first += MIMO_TILE_IDS)
            mimo_tile_collect_block(team, m, net, row, t, first);
    }
}

/* ---- CUT ---- */

/* The largest cut that keeps keys >= least of at least `goal` in weight(kept[i]), or `least` if all of them weigh less.
 * largest: at least that of any key. */
template <class Team, class Weight>
MIMO_BODY inline uint64_t mimo_tile_cut(const Team &team, const mimo_tile_kept *kept, uint32_t count, uint64_t largest,
                                        uint64_t least, uint64_t goal, Weight weight)
{
    const uint32_t top = (uint32_t)(largest >> 32);
    const uint32_t depth = mimo_tile_most<uint32_t>(team, count, [&](uint32_t i) {
        const uint32_t key = (uint32_t)(kept[i].key >> 32);
        return key < top ? top - key : 0;
    });
    /* Bits that differ between the smallest logit and the largest, or are below such. */
    uint32_t bit = 32, differ = top ^ (top - depth);
    for (; differ != 0; differ /= 2)
        bit++;
    uint64_t cut = bit < 64 ? largest >> bit << bit : 0;
    while (bit-- > 0) {
        const uint64_t more = cut | (uint64_t)1 << bit;
        if (bit == 31) { /* the logit is known: its id only matters where several have it */
            const uint32_t alike = mimo_tile_sum<uint32_t>(
                team, count, [&](uint32_t i) { return (uint32_t)(kept[i].key >> 32 == cut >> 32); });
            if (alike <= 1)
                break;
        }
        const uint64_t kept_weight = mimo_tile_sum<uint64_t>(team, count, [&](uint32_t i) {
            const mimo_tile_kept &k = kept[i];
            return k.key >= more && k.key >= least ? weight(k) : 0;
        });
        if (kept_weight >= goal)
            cut = more;
    }
    return cut > least ? cut : least;
}

/* What all tokens that may be kept weigh, in units of mimo_tile_kept. */
template <class Team>
MIMO_BODY inline double mimo_tile_all_weigh(const Team &team, const mimo_tile_machine &m, const mimo_tile_row &row,
                                            uint32_t t, uint64_t least)
{
    const mimo_tile_kept *kept = m.kept + (size_t)t * m.ids;
    if (least == MIMO_TILE_CUT_NONE)
        return MIMO_TILE_WEIGHT_ONE * mimo_tile_sum<double>(team, mimo_tile_blocks(row.count), [&](uint32_t b) {
                   return (double)m.sums[t * m.blocks + b];
               });
    return (double)mimo_tile_sum<uint64_t>(
        team, m.kept_count[t], [&](uint32_t i) { return kept[i].key >= least ? kept[i].weight : (uint64_t)0; });
}

template <class Team>
MIMO_BODY inline void mimo_tile_cut_row(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_tile_round &r = *m.round;
    const uint32_t t = task.split;
    const mimo_tile_row row = mimo_tile_row_of(m, task.tape, t);
    if (row.count == 0 || !mimo_tile_filters(r))
        return;
    const mimo_tile_kept *kept = m.kept + (size_t)t * m.ids;
    const uint32_t count = m.kept_count[t];
    const float largest = mimo_tile_largest(team, m.maxima + t * m.blocks, mimo_tile_blocks(row.count));
    const uint64_t top = mimo_cuda_score_key(largest, 0);
    uint64_t cut = MIMO_TILE_CUT_NONE;
    if (r.top_k > 0 && r.top_k < row.count)
        cut = mimo_tile_cut(team, kept, count, top, cut, r.top_k, [](const mimo_tile_kept &) { return (uint64_t)1; });
    if (r.top_p < 1.0f) {
        const double goal = (double)r.top_p * mimo_tile_all_weigh(team, m, row, t, cut);
        cut = mimo_tile_cut(team, kept, count, top, cut, (uint64_t)ceil(goal),
                            [](const mimo_tile_kept &k) { return k.weight; });
    }
    team.sync(); /* all have read how many there are */
    team.threads(1, [&](uint32_t) {
        m.filter[t] = {cut, largest};
        m.kept_count[t] = 0;
    });
}

#endif
