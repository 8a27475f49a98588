/* The router's choice: K experts of every row by sigmoid score plus bias, and the entries of all rows in the order in
 * which experts are read (moe.h, whose mimo_moe_mark and mimo_moe_place say the same one entry at a time).
 *
 * Everybody waits for it, so it is made in registers and scratch: a warp has a row's scores, and takes the largest K
 * times; then a quad of lanes has an entry, and counts who comes before it. */
#ifndef MIMO_CUDA_OP_CHOOSE_H
#define MIMO_CUDA_OP_CHOOSE_H

#include "base/exp.h"
#include "cuda/op/norm.h"

enum { MIMO_CHOOSE_EACH = MIMO_MOE_EXPERTS / MIMO_LANES }; /* experts of a lane: lane, lane + 32, ... */

MIMO_BODY inline float mimo_cuda_sigmoid(float x)
{
    return 1.0f / (1.0f + mimo_expf(-x));
}

/* Larger for the larger score, and for the lower id where scores are equal; never 0. */
MIMO_HD inline uint64_t mimo_cuda_score_key(float score, uint32_t id)
{
    const uint32_t bits = mimo_cuda_bits(score + 0.0f); /* -0 and 0 are equal */
    return (uint64_t)(bits ^ (bits >> 31 ? UINT32_MAX : (uint32_t)1 << 31)) << 32 | (UINT32_MAX - id);
}

/* In a team's own scratch, mimo_cuda_choose_floats of it. */
struct mimo_cuda_choosing {
    float *share;     /* [entries] sigmoids of the chosen experts, then their weights */
    uint16_t *chosen; /* [entries] experts of each row, ascending */
    uint8_t *first;   /* [entries] whether no row before has the expert */
    uint32_t *picked; /* [K] of a warp: experts in the order in which they are picked, */
    float *gate;      /* [K] and their sigmoids */
};

template <class Team> MIMO_BODY inline mimo_cuda_choosing mimo_cuda_choosing_of(const Team &team)
{
    float *share = mimo_cuda_own_scratch(team), *chosen = share + MIMO_MOE_ENTRIES;
    float *first = chosen + MIMO_MOE_ENTRIES / 2, *own = first + MIMO_MOE_ENTRIES / 4;
    own += team.warp() * (size_t)(2 * MIMO_MOE_TOP_K);
    return {share, reinterpret_cast<uint16_t *>(chosen), reinterpret_cast<uint8_t *>(first),
            reinterpret_cast<uint32_t *>(own), own + MIMO_MOE_TOP_K};
}

/* The K experts of a row, one after the other; by one warp. logits(out, lane): those of a lane's experts. */
template <class Team, class Logits>
MIMO_BODY inline void mimo_cuda_pick_experts(const Team &team, const mimo_config &config, const float *bias,
                                             const mimo_cuda_choosing &c, const Logits &logits)
{
    typename Team::template lane_value<uint32_t> key[MIMO_CHOOSE_EACH], best;
    typename Team::template lane_value<float> gate[MIMO_CHOOSE_EACH];
    team.lanes([&](uint32_t lane) {
        float logit[MIMO_CHOOSE_EACH];
        logits(logit, lane);
        for (uint32_t j = 0; j < MIMO_CHOOSE_EACH; j++) {
            const uint32_t e = j * MIMO_LANES + lane;
            gate[j][lane] = mimo_cuda_sigmoid(logit[j]);
            key[j][lane] = 0; /* no expert, or one that was picked */
            if (e < config.experts) {
                const uint32_t own = (uint32_t)(mimo_cuda_score_key(gate[j][lane] + bias[e], 0) >> 32);
                key[j][lane] = own > 0 ? own : 1;
            }
        }
    });
    for (uint32_t k = 0; k < config.top_k; k++) {
        team.lanes([&](uint32_t lane) {
            best[lane] = 0;
            for (uint32_t j = 0; j < MIMO_CHOOSE_EACH; j++)
                best[lane] = key[j][lane] > best[lane] ? key[j][lane] : best[lane];
        });
        const uint32_t most = team.max(best);
        team.lanes([&](uint32_t lane) {
            best[lane] = 0;
            for (uint32_t j = MIMO_CHOOSE_EACH; j-- > 0;)
                best[lane] = key[j][lane] == most ? UINT32_MAX - (j * MIMO_LANES + lane) : best[lane];
        });
        const uint32_t e = UINT32_MAX - team.max(best); /* the lowest that has it */
        team.lanes([&](uint32_t lane) {
            for (uint32_t j = 0; j < MIMO_CHOOSE_EACH; j++)
                if (e == j * MIMO_LANES + lane) {
                    key[j][lane] = 0;
                    c.picked[k] = e;
                    c.gate[k] = gate[j][lane];
                }
        });
    }
    team.meet();
}

/* Row t's experts by ascending id, the order in which they are summed, with their weights; by one warp. */
template <class Team>
MIMO_BODY inline void mimo_cuda_weigh_experts(const Team &team, const mimo_config &config, const mimo_cuda_choosing &c,
                                              uint32_t t, mimo_moe &moe)
{
    const uint32_t K = config.top_k;
    uint16_t *chosen = c.chosen + t * K;
    float *share = c.share + t * K;
    team.lanes([&](uint32_t lane) {
        for (uint32_t k = lane; k < K; k += MIMO_LANES) {
            uint32_t at = 0;
            for (uint32_t i = 0; i < K; i++)
                at += c.picked[i] < c.picked[k];
            chosen[at] = (uint16_t)c.picked[k];
            share[at] = c.gate[k];
        }
    });
    team.meet();
    float sum = 0.0f;
    for (uint32_t k = 0; k < K; k++)
        sum += share[k];
    const float scale = config.norm_topk ? config.routed_scale / (sum + 1e-20f) : config.routed_scale;
    team.meet(); /* all have added */
    team.lanes([&](uint32_t lane) {
        for (uint32_t k = lane; k < K; k += MIMO_LANES) {
            share[k] *= scale;
            moe.chosen[t * K + k] = chosen[k];
            moe.share[t * K + k] = share[k];
        }
    });
}

/* f(i, j) for j = 0, 4, ... below end(i), of lane 4 i + 0, for 1, 5, ... of the next lane and so on; the quad's sums to
 * done(i, sum). */
template <class Team, class End, class Count, class Done>
MIMO_BODY inline void mimo_cuda_by_quads(const Team &team, uint32_t entries, End end, Count count, Done done)
{
    for (uint32_t item = team.warp(); item < (entries + 7) / 8; item += team.warps()) {
        typename Team::template lane_value<uint32_t> sum;
        team.lanes([&](uint32_t lane) {
            const uint32_t i = item * 8 + lane / 4;
            sum[lane] = 0;
            for (uint32_t j = lane % 4; i < entries && j < end(i); j += 4)
                sum[lane] += count(i, j);
        });
        team.sum_quads(sum);
        team.lanes([&](uint32_t lane) {
            if (lane % 4 == 0 && item * 8 + lane / 4 < entries)
                done(item * 8 + lane / 4, sum[lane]);
        });
    }
}

/* Entries of all rows in order; by the whole team. */
template <class Team>
MIMO_BODY inline void mimo_cuda_sort_entries(const Team &team, const mimo_cuda_choosing &c, uint32_t entries,
                                             uint32_t K, mimo_moe &moe)
{
    mimo_cuda_by_quads(
        team, entries, [](uint32_t i) { return i; },
        [&](uint32_t i, uint32_t j) { return (uint32_t)(c.chosen[j] == c.chosen[i]); },
        [&](uint32_t i, uint32_t before) { c.first[i] = before == 0; });
    team.sync();
    /* Entries before this one; distinct experts before its own; rows that have its own, which differ: three sums. */
    enum { DISTINCT = 10, ROWS = 20 };
    static_assert(MIMO_MOE_ENTRIES < 1 << DISTINCT && ROWS == 2 * DISTINCT, "sums do not meet");
    mimo_cuda_by_quads(
        team, entries, [&](uint32_t) { return entries; },
        [&](uint32_t i, uint32_t j) {
            const uint32_t own = c.chosen[i], other = c.chosen[j];
            const bool smaller = other < own, same = other == own;
            return (uint32_t)(smaller || (same && j < i)) + ((uint32_t)(smaller && c.first[j]) << DISTINCT) +
                   (same ? 1u << (ROWS + j / K) : 0);
        },
        [&](uint32_t i, uint32_t sum) {
            const uint32_t at = sum % (1 << DISTINCT), index = (sum >> DISTINCT) % (1 << DISTINCT), rows = sum >> ROWS;
            moe.row[at] = (uint8_t)(i / K);
            moe.weight[at] = c.share[i];
            if (!c.first[i])
                return;
            moe.expert[index] = c.chosen[i];
            moe.begin[index] = (uint16_t)at;
            moe.mask[index] = (uint8_t)rows;
            if (at + mimo_cuda_ones(rows) == entries) { /* the last expert */
                moe.experts = index + 1;
                moe.begin[index + 1] = (uint16_t)entries;
            }
        });
}

/* The experts of all rows with their weights, sorted; by one team. row_of(t): the logits of row t, as a function of
 * mimo_cuda_pick_experts. */
template <class Team, class Rows>
MIMO_BODY inline void mimo_cuda_choose(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                       mimo_moe &moe, Rows row_of)
{
    const mimo_cuda_choosing c = mimo_cuda_choosing_of(team);
    for (uint32_t t = team.warp(); t < s.step->rows; t += team.warps()) {
        mimo_cuda_pick_experts(team, *s.config, layer.router_bias, c, row_of(t));
        mimo_cuda_weigh_experts(team, *s.config, c, t, moe);
        team.meet();
    }
    team.sync();
    mimo_cuda_sort_entries(team, c, s.step->rows * s.config->top_k, s.config->top_k, moe);
}

#endif
