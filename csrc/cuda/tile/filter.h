/* Which tokens of a row may be drawn: top-k, top-p and min-p as sample/sample.c defines them, whose float operations
 * are repeated in their order where a bit could matter. A team finds the cut of a whole row by itself; those that share
 * its vocabulary all find the same. */
#ifndef MIMO_CUDA_TILE_FILTER_H
#define MIMO_CUDA_TILE_FILTER_H

#include "base/exp.h"
#include "cuda/op/route.h"
#include "cuda/tile/machine.h"

/* A row of logits [count]; ids: those of the logits, NULL: the same. */
typedef struct mimo_tile_logits {
    const float *x;
    const uint32_t *ids;
    uint32_t count;
} mimo_tile_logits;

typedef struct mimo_tile_filter {
    bool on;
    uint64_t cut;  /* the least key of a token that is kept */
    float largest; /* of the row */
} mimo_tile_filter;

/* The least key of any finite logit. */
#define MIMO_TILE_CUT_NONE ((uint64_t)0x00800000u << 32)

MIMO_BODY inline uint64_t mimo_tile_key(const mimo_tile_logits &row, uint32_t i)
{
    return mimo_cuda_score_key(row.x[i], row.ids != nullptr ? row.ids[i] : i);
}

/* The sum of f(i) over i < n, or the largest, by the whole team; every thread gets it. The order depends on the team.
 */
template <class Team, class F> MIMO_BODY inline double mimo_tile_total(const Team &team, uint32_t n, bool most, F f)
{
    double *part = reinterpret_cast<double *>(mimo_cuda_own_scratch(team)); /* [warps] */
    typename Team::template lane_value<double> own;
    team.lanes([&](uint32_t lane) {
        double acc = most ? -INFINITY : 0.0;
        for (uint32_t i = team.warp() * MIMO_LANES + lane; i < n; i += team.warps() * MIMO_LANES) {
            const double value = f(i);
            acc = !most ? acc + value : value > acc ? value : acc;
        }
        own[lane] = acc;
    });
    const double warp = most ? team.max(own) : team.sum(own);
    team.sync(); /* nobody reads those of before */
    team.lanes([&](uint32_t lane) {
        if (lane == 0)
            part[team.warp()] = warp;
    });
    team.sync();
    double total = part[0];
    for (uint32_t w = 1; w < team.warps(); w++)
        total = !most ? total + part[w] : part[w] > total ? part[w] : total;
    return total;
}

/* The largest cut that keeps keys >= least of at least `target` in weight(i), or `least` if all of them weigh less. */
template <class Team, class Weight>
MIMO_BODY inline uint64_t mimo_tile_cut(const Team &team, const mimo_tile_logits &row, uint64_t least, double target,
                                        Weight weight)
{
    const auto reaches = [&](uint64_t cut) {
        return mimo_tile_total(team, row.count, false, [&](uint32_t i) {
                   const uint64_t key = mimo_tile_key(row, i);
                   return key >= cut && key >= least ? weight(i) : 0.0;
               }) >= target;
    };
    uint64_t cut = 0;
    for (uint32_t bit = 64; bit-- > 0;) {
        const uint64_t more = cut | (uint64_t)1 << bit;
        if (bit == 31) { /* the logit is known: its id only matters where several have it */
            const double alike = mimo_tile_total(team, row.count, false, [&](uint32_t i) {
                return mimo_tile_key(row, i) >> 32 == cut >> 32 ? 1.0 : 0.0;
            });
            if (alike <= 1.0)
                break;
        }
        if (reaches(more))
            cut = more;
    }
    return cut > least ? cut : least;
}

/* Sum of exp((x - largest) * scale): blocks of 256 are added as trees, in float, and these in double, in order. */
template <class Team>
MIMO_BODY inline double mimo_tile_exp_sum(const Team &team, const mimo_tile_logits &row, float largest, float scale)
{
    enum { BLOCK = 256, EACH = BLOCK / MIMO_LANES };
    float *block = mimo_cuda_own_scratch(team); /* [blocks] */
    const uint32_t blocks = (row.count + BLOCK - 1) / BLOCK;
    team.sync();
    for (uint32_t b = team.warp(); b < blocks; b += team.warps()) {
        typename Team::template lane_value<float> sum;
        team.lanes([&](uint32_t lane) {
            float term[EACH];
            for (uint32_t k = 0; k < EACH; k++) {
                const uint32_t i = b * BLOCK + k * MIMO_LANES + lane;
                term[k] = i < row.count ? mimo_expf_negative((row.x[i] - largest) * scale) : 0.0f;
            }
            sum[lane] = ((term[0] + term[4]) + (term[2] + term[6])) + ((term[1] + term[5]) + (term[3] + term[7]));
        });
        const float total = team.sum(sum);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                block[b] = total;
        });
    }
    team.sync();
    double sum = 0.0;
    for (uint32_t b = 0; b < blocks; b++)
        sum += (double)block[b];
    return sum;
}

/* Of a row that is drawn from at the round's temperature. */
template <class Team>
MIMO_BODY inline mimo_tile_filter mimo_tile_filter_of(const Team &team, const mimo_tile_round &r,
                                                      const mimo_tile_logits &row)
{
    mimo_tile_filter f = {r.temperature > 0.0f && (r.top_k > 0 || r.top_p < 1.0f || r.min_p > 0.0f), MIMO_TILE_CUT_NONE,
                          0.0f};
    if (!f.on)
        return f;
    f.largest = (float)mimo_tile_total(team, row.count, true, [&](uint32_t i) { return (double)row.x[i]; });
    if (r.top_k > 0 && r.top_k < row.count)
        f.cut = mimo_tile_cut(team, row, f.cut, (double)r.top_k, [](uint32_t) { return 1.0; });
    if (!(r.top_p < 1.0f))
        return f;
    const float inverse = 1.0f / r.temperature, scale = inverse < 3.402823466e+38f ? inverse : 3.402823466e+38f;
    const auto weight = [&](uint32_t i) { return (double)mimo_expf_negative((row.x[i] - f.largest) * scale); };
    const uint64_t least = f.cut;
    const double total = least == MIMO_TILE_CUT_NONE ? mimo_tile_exp_sum(team, row, f.largest, scale)
                                                     : mimo_tile_total(team, row.count, false, [&](uint32_t i) {
                                                           return mimo_tile_key(row, i) >= least ? weight(i) : 0.0;
                                                       });
    f.cut = mimo_tile_cut(team, row, least, (double)r.top_p * total, weight);
    return f;
}

#endif
