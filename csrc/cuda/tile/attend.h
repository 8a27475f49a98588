/* Tile tasks of attention: the chunks of a split for some heads, and the merging of splits. */
#ifndef MIMO_CUDA_TILE_ATTEND_H
#define MIMO_CUDA_TILE_ATTEND_H

#include "cuda/op/attention.h"
#include "cuda/tile/multiply.h"

/* acc [Dv], m, l at `from` join those at `into`; by one warp. */
template <class Team>
MIMO_BODY inline void mimo_tile_add_chunk(const Team &team, float *into, const float *from, uint32_t Dv)
{
    float m = into[Dv], a, b;
    const float l = into[Dv + 1];
    mimo_cuda_rescale(&a, &b, &m, from[Dv]);
    team.meet();
    team.lanes([&](uint32_t lane) {
        for (uint32_t e = lane; e < Dv; e += MIMO_LANES)
            into[e] = into[e] * a + from[e] * b;
        if (lane == 0) {
            into[Dv] = m;
            into[Dv + 1] = l * a + from[Dv + 1] * b;
        }
    });
    team.meet();
}

/* What weighted values of a head are to be multiplied with: the sink joins. most: of all scores; sum: of their weights,
 * relative to it. */
MIMO_BODY inline float mimo_tile_inverse(const mimo_cuda_layer &layer, uint32_t head, float most, float sum)
{
    float a = 1.0f, b = 0.0f;
    if (layer.attention.sinks)
        mimo_cuda_rescale(&a, &b, &most, layer.sinks[head]);
    return a / (sum * a + b);
}

/* A head's part of row t of A is written: a lane's elements are value(e). By one warp. */
template <class Team, class Value>
MIMO_BODY inline void mimo_tile_attended(const Team &team, const mimo_tile_machine &m, const mimo_cuda_layer &layer,
                                         uint32_t t, uint32_t head, float most, float sum, Value value)
{
    const uint32_t Dv = layer.attention.v_head_dim;
    const float inverse = mimo_tile_inverse(layer, head, most, sum);
    team.lanes([&](uint32_t lane) {
        for (uint32_t e = lane; e < Dv; e += MIMO_LANES)
            mimo_tile_put(m.a, m.parts, t, head * Dv + e, value(e) * inverse);
    });
}

/* Of a head and row of S: acc [Dv], then m, -infinity if its split has nothing that the row sees, and l. */
MIMO_BODY inline float *mimo_tile_split(const mimo_tile_machine &m, const mimo_attention &a, uint32_t split, uint32_t t,
                                        uint32_t head)
{
    return m.s + (((size_t)split * MIMO_TILE_TOKENS + t) * a.heads + head) * (a.v_head_dim + 4);
}

/* The chunks of a split that a row sees, in order, for one head: into total [Dv + 4]. No chunk: m is -infinity. */
template <class Team>
MIMO_BODY inline void mimo_tile_attend_head(const Team &team, const mimo_cuda_state &s, const mimo_cuda_layer &layer,
                                            const mimo_tile_task &task, uint32_t t, uint32_t head, float *p,
                                            float *total, float *part)
{
    const mimo_attention &a = layer.attention;
    const uint32_t chunk = MIMO_TILE_CHUNK, g = head / (a.heads / a.kv_heads), Dv = a.v_head_dim;
    const mimo_cuda_keys seen = mimo_cuda_keys_of(s, layer, t);
    const float *q = s.work.q + ((size_t)t * a.heads + head) * a.head_dim;
    bool any = false;
    for (uint32_t c = seen.begin / chunk; c * chunk < seen.end; c++) {
        if (c % task.splits != task.split)
            continue;
        const uint32_t first = c * chunk;
        const uint32_t begin = seen.begin > first ? seen.begin : first;
        const uint32_t end = seen.end < first + chunk ? seen.end : first + chunk;
        uint8_t *values, *keys = mimo_cuda_kv_rows(s, layer, t, g, first, &values);
        float *to = any ? part : total;
        if (s.kv.is_float)
            mimo_cuda_attend_head<true>(team, to, q, keys, values, begin - first, end - first, a, p);
        else
            mimo_cuda_attend_head<false>(team, to, q, keys, values, begin - first, end - first, a, p);
        if (any)
            mimo_tile_add_chunk(team, total, part, Dv);
        any = true;
    }
    if (!any)
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                total[Dv] = -INFINITY;
        });
}

template <class Team>
MIMO_BODY inline void mimo_tile_attend(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_cuda_layer &layer = s.layer[task.layer];
    const uint32_t Dv = layer.attention.v_head_dim, row = Dv + 4;
    float *own = mimo_cuda_own_scratch(team) + team.warp() * (MIMO_TILE_CHUNK + 2 * (size_t)row);
    float *total = own + MIMO_TILE_CHUNK, *part = total + row;
    for (uint32_t item = team.warp(); item < s.step->rows * task.count; item += team.warps()) {
        const uint32_t t = item / task.count, head = task.first + item % task.count;
        team.meet();
        mimo_tile_attend_head(team, s, layer, task, t, head, own, total, part);
        team.meet();
        if (task.splits == 1) {
            mimo_tile_attended(team, m, layer, t, head, total[Dv], total[Dv + 1], [&](uint32_t e) { return total[e]; });
            continue;
        }
        float *to = mimo_tile_split(m, layer.attention, task.split, t, head);
        team.lanes([&](uint32_t lane) {
            for (uint32_t e = lane; e < Dv + 2; e += MIMO_LANES)
                to[e] = total[e];
        });
    }
}

/* What each split of a head and row weighs, [splits], and behind them what the sum of all is multiplied with; by one
 * warp. */
template <class Team>
MIMO_BODY inline void mimo_tile_weigh_splits(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task,
                                             const mimo_cuda_layer &layer, uint32_t t, uint32_t head, float *factor)
{
    const uint32_t Dv = layer.attention.v_head_dim;
    const auto ends = [&](uint32_t split) { return mimo_tile_split(m, layer.attention, split, t, head) + Dv; };
    typename Team::template lane_value<float> most, sum;
    team.lanes([&](uint32_t lane) {
        most[lane] = -INFINITY;
        for (uint32_t split = lane; split < task.splits; split += MIMO_LANES)
            most[lane] = fmaxf(most[lane], ends(split)[0]);
    });
    const float all = team.max(most);
    team.lanes([&](uint32_t lane) {
        sum[lane] = 0.0f;
        for (uint32_t split = lane; split < task.splits; split += MIMO_LANES) {
            const float own = mimo_expf(ends(split)[0] - all);
            factor[split] = own;
            sum[lane] += own > 0.0f ? own * ends(split)[1] : 0.0f;
        }
    });
    const float whole = team.sum(sum);
    team.lanes([&](uint32_t lane) {
        if (lane == 0)
            factor[task.splits] = mimo_tile_inverse(layer, head, all, whole);
    });
}

/* Element e of a head and row: all splits in their order, some of which are asked for together. */
MIMO_BODY inline float mimo_tile_merged(const mimo_tile_machine &m, const mimo_tile_task &task, const mimo_attention &a,
                                        uint32_t t, uint32_t head, uint32_t e, const float *factor)
{
    enum { TOGETHER = 8 };
    float acc = 0.0f;
    for (uint32_t first = 0; first < task.splits; first += TOGETHER) {
        float value[TOGETHER];
        for (uint32_t i = 0; i < TOGETHER; i++)
            value[i] = first + i < task.splits ? mimo_tile_split(m, a, first + i, t, head)[e] : 0.0f;
        for (uint32_t i = 0; i < TOGETHER; i++) {
            const float own = first + i < task.splits ? factor[first + i] : 0.0f;
            acc = own > 0.0f ? fmaf(own, value[i], acc) : acc; /* a split that has nothing has no numbers either */
        }
    }
    return acc * factor[task.splits];
}

/* As many heads at a time as there are warps: a warp weighs the splits of one, then all threads have elements. */
template <class Team>
MIMO_BODY inline void mimo_tile_merge(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    enum { FACTORS = MIMO_TILE_MOST_SPLITS + 1 };
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_cuda_layer &layer = s.layer[task.layer];
    const uint32_t Dv = layer.attention.v_head_dim, t = task.split, end = task.first + task.count;
    if (t >= s.step->rows)
        return;
    float *factor = mimo_cuda_own_scratch(team);
    for (uint32_t first = task.first; first < end; first += team.warps()) {
        const uint32_t left = end - first, heads = left < team.warps() ? left : team.warps();
        team.sync(); /* nobody reads the factors of before */
        if (team.warp() < heads)
            mimo_tile_weigh_splits(team, m, task, layer, t, first + team.warp(), factor + team.warp() * FACTORS);
        team.sync();
        team.threads(heads * Dv, [&](uint32_t i) {
            const uint32_t head = first + i / Dv, e = i % Dv;
            const float value =
                mimo_tile_merged(m, task, layer.attention, t, head, e, factor + (head - first) * FACTORS);
            mimo_tile_put(m.a, m.parts, t, head * Dv + e, value);
        });
    }
}

#endif
