/* Attention by tensor cores, of keys and values in BF16: the ATTEND of tile/attend.h for a team that has them.
 *
 * A warp takes 16 positions at a time for one head. Keys are A of the scores' product, 16 positions by the dims of a
 * head, and the step's rows, up to eight queries of the same sequence, are its eight columns, zeros where there is no
 * row. Values, turned, are A of the second product, dims by positions, and the weights, rounded to BF16, its B. Each
 * column goes its own way: a row's sums depend neither on how many others there are, nor on what these see. Blocks of
 * 16 go round the warps that share a head; what these have made is added in shared memory, a warp a row, in the order
 * of the warps. (Online softmax: Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022.) */
#ifndef MIMO_CUDA_SM90_ATTEND_H
#define MIMO_CUDA_SM90_ATTEND_H

#include "cuda/sm90/mma.h"
#include "cuda/tile/attend.h"

enum {
    MIMO_ATTEND_BLOCK = 16, /* positions */
    MIMO_ATTEND_DIMS = 32,  /* of which a lane reads eight */
    MIMO_ATTEND_KEYS = 6,   /* most such parts of a key, */
    MIMO_ATTEND_VALUES = 4  /* and of a value */
};

/* The positions that rows of one sequence see. */
struct mimo_mma_seen {
    uint32_t begin[2], end[2]; /* rows 2 c and 2 c + 1 */
    uint32_t first, last;      /* any row: first <= position < last */
};

/* A block of positions. */
struct mimo_mma_place {
    uint32_t number, position; /* number: of all blocks of the split */
    const uint8_t *keys, *values;
};

/* What a warp attends to: some rows of one sequence, one key head. Lane 4 g + c. */
struct mimo_mma_sight {
    const mimo_cuda_state &s;
    const mimo_cuda_layer &layer;
    const mimo_tile_task &task;
    mimo_mma_seen seen;
    uint32_t t, kv_head;      /* t: one of the rows */
    uint32_t sharer, sharers; /* its blocks are those whose number modulo sharers is sharer */
    uint32_t g, c;

    /* The next block of its own from place.number on that anybody sees; false: there is none. */
    MIMO_BODY bool find(mimo_mma_place &place) const
    {
        const uint32_t each = MIMO_TILE_CHUNK / MIMO_ATTEND_BLOCK;
        for (;; place.number++) {
            const uint32_t chunk = place.number / each * task.splits + task.split;
            place.position = chunk * MIMO_TILE_CHUNK + place.number % each * MIMO_ATTEND_BLOCK;
            if (place.position >= seen.last)
                return false;
            if (place.number % sharers == sharer && place.position + MIMO_ATTEND_BLOCK > seen.first)
                break;
        }
        /* Not known to be the same each time: what leads to them is not kept in registers meanwhile. */
        uint32_t row = t, head = kv_head;
        asm volatile("" : "+r"(row), "+r"(head));
        uint8_t *values;
        place.keys = mimo_cuda_kv_rows(s, layer, row, head, place.position, &values);
        place.values = values;
        return true;
    }

    /* Rows g and g + 8 of a block of keys or values, D wide. In the place of rows that nobody looks at, where anything
     * may lie, and of dims that are not there, are others: their weights, or what they are multiplied with, are 0. */
    template <uint32_t parts>
    MIMO_BODY void read(mimo_words4 (&out)[parts][2], const uint8_t *rows, uint32_t D, uint32_t position) const
    {
        const uint32_t first = position < seen.first ? seen.first - position : 0, left = seen.last - position;
        const uint32_t last = (left < MIMO_ATTEND_BLOCK ? left : MIMO_ATTEND_BLOCK) - 1;
#pragma unroll
        for (uint32_t upper = 0; upper < 2; upper++) {
            const uint32_t wanted = g + 8 * upper, row = wanted < first ? first : wanted < last ? wanted : last;
            const uint8_t *at = rows + 2 * row * D;
#pragma unroll
            for (uint32_t part = 0; part < parts; part++) {
                const uint32_t d = part * MIMO_ATTEND_DIMS + 8 * c;
                out[part][upper] = mimo_cuda_load<mimo_words4>(d < D ? at + 2 * d : at);
            }
        }
    }
};

/* What a warp has of a head: queries of row g, and sums of rows 2 c and 2 c + 1. */
struct mimo_mma_attention {
    uint32_t q[2 * MIMO_ATTEND_KEYS][2]; /* B of each operation, dims in the order in which keys are read */
    float o[2 * MIMO_ATTEND_VALUES][4];  /* weighted values: dims mimo_mma_dim of two words, by two rows */
    float most[2], sum[2];               /* most: times log2 e; sum: of this lane's positions */
};

/* 2^x, to 22 bits. */
MIMO_BODY inline float mimo_mma_exp2(float x)
{
    float out;
    asm("ex2.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

/* 8 by 8 of BF16, turned. */
MIMO_BODY inline uint32_t mimo_mma_turned(uint32_t pair)
{
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

/* Which dim of a part is row g of the matrix that word `word` of eight positions is, turned. */
MIMO_BODY inline uint32_t mimo_mma_dim(uint32_t word, uint32_t g)
{
    return g / 2 * 8 + 2 * word + g % 2;
}

/* Row t and the later ones of its sequence, of those in `rows`. */
MIMO_BODY inline uint32_t mimo_mma_together(const mimo_cuda_step &step, uint32_t rows, uint32_t t)
{
    uint32_t together = 0;
    for (uint32_t i = t; i < MIMO_TILE_TOKENS; i++)
        if (rows >> i & 1 && step.kv[i].ring == step.kv[t].ring && step.kv[i].chunk == step.kv[t].chunk)
            together |= 1u << i;
    return together;
}

MIMO_BODY inline mimo_mma_seen mimo_mma_seen_of(const mimo_cuda_state &s, const mimo_cuda_layer &layer, uint32_t rows,
                                                uint32_t c)
{
    mimo_mma_seen seen = {{0, 0}, {0, 0}, UINT32_MAX, 0};
#pragma unroll
    for (uint32_t t = 0; t < MIMO_TILE_TOKENS; t++) {
        if (!(rows >> t & 1))
            continue;
        const mimo_cuda_keys keys = mimo_cuda_keys_of(s, layer, t);
        seen.first = keys.begin < seen.first ? keys.begin : seen.first;
        seen.last = keys.end > seen.last ? keys.end : seen.last;
        seen.begin[t % 2] = t / 2 == c ? keys.begin : seen.begin[t % 2];
        seen.end[t % 2] = t / 2 == c ? keys.end : seen.end[t % 2];
    }
    return seen;
}

MIMO_BODY inline void mimo_mma_ask(mimo_mma_attention &own, const mimo_mma_sight &sight, uint32_t rows, uint32_t head)
{
    const mimo_attention &a = sight.layer.attention;
    const float *q = sight.s.work.q + ((size_t)sight.g * a.heads + head) * a.head_dim;
#pragma unroll
    for (uint32_t part = 0; part < MIMO_ATTEND_KEYS; part++) {
        const uint32_t d = part * MIMO_ATTEND_DIMS + 8 * sight.c;
        float x[8] = {};
        if (rows >> sight.g & 1 && d < a.head_dim)
            mimo_cuda_floats(x, q + d);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            own.q[2 * part + i / 2][i % 2] = mimo_near_pair(x[2 * i], x[2 * i + 1]);
    }
}

/* Rows g and g + 8 of a block by the queries of rows 2 c and 2 c + 1. */
MIMO_BODY inline void mimo_mma_score(float (&score)[4], const mimo_mma_attention &own,
                                     const mimo_words4 (&k)[MIMO_ATTEND_KEYS][2])
{
    float odd[4] = {}; /* of every second operation: none waits for the one before */
    for (uint32_t i = 0; i < 4; i++)
        score[i] = 0.0f;
#pragma unroll
    for (uint32_t part = 0; part < MIMO_ATTEND_KEYS; part++) {
        const uint32_t first[4] = {k[part][0].v[0], k[part][1].v[0], k[part][0].v[1], k[part][1].v[1]};
        const uint32_t second[4] = {k[part][0].v[2], k[part][1].v[2], k[part][0].v[3], k[part][1].v[3]};
        mimo_mma(score, first, own.q[2 * part][0], own.q[2 * part][1]);
        mimo_mma(odd, second, own.q[2 * part + 1][0], own.q[2 * part + 1][1]);
    }
    for (uint32_t i = 0; i < 4; i++)
        score[i] += odd[i];
}

/* Scores become weights relative to the largest so far, as B of the values' product; what was before is scaled. */
MIMO_BODY inline void mimo_mma_weigh(mimo_mma_attention &own, uint32_t (&weight)[2], const float (&score)[4],
                                     const mimo_mma_sight &sight, uint32_t position)
{
    const float scale = MIMO_EXP_LOG2E / sqrtf((float)sight.layer.attention.head_dim);
    float p[4], before[2];
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
        float most = own.most[j];
#pragma unroll
        for (uint32_t upper = 0; upper < 2; upper++) {
            const uint32_t at = position + sight.g + 8 * upper, i = 2 * upper + j;
            p[i] = at >= sight.seen.begin[j] && at < sight.seen.end[j] ? score[i] * scale : -INFINITY;
            most = fmaxf(most, p[i]);
        }
#pragma unroll
        for (uint32_t lanes = 4; lanes < MIMO_LANES; lanes *= 2)
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
        /* Of a row that has seen nothing yet all are -infinity, and so would be what they are taken from. */
        const float from = most == -INFINITY ? 0.0f : most;
        before[j] = mimo_mma_exp2(own.most[j] - from);
        own.most[j] = most;
        p[j] = mimo_mma_exp2(p[j] - from);
        p[2 + j] = mimo_mma_exp2(p[2 + j] - from);
    }
#pragma unroll
    for (uint32_t upper = 0; upper < 2; upper++) {
        const uint32_t pair = mimo_near_pair(p[2 * upper], p[2 * upper + 1]);
        p[2 * upper] = mimo_cuda_float(pair << 16); /* so that weights add up to what values are divided by */
        p[2 * upper + 1] = mimo_cuda_float(pair & 0xffff0000u);
        weight[upper] = mimo_mma_turned(pair);
    }
#pragma unroll
    for (uint32_t j = 0; j < 2; j++)
        own.sum[j] = own.sum[j] * before[j] + (p[j] + p[2 + j]);
#pragma unroll
    for (uint32_t i = 0; i < 2 * MIMO_ATTEND_VALUES; i++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            own.o[i][j] *= before[j % 2];
}

MIMO_BODY inline void mimo_mma_gather(mimo_mma_attention &own, const mimo_words4 (&v)[MIMO_ATTEND_VALUES][2],
                                      const uint32_t (&weight)[2])
{
#pragma unroll
    for (uint32_t i = 0; i < 2 * MIMO_ATTEND_VALUES; i++) {
        const mimo_words4(&part)[2] = v[i / 2];
        const uint32_t word = i % 2 * 2;
        const uint32_t dims[4] = {mimo_mma_turned(part[0].v[word]), mimo_mma_turned(part[0].v[word + 1]),
                                  mimo_mma_turned(part[1].v[word]), mimo_mma_turned(part[1].v[word + 1])};
        mimo_mma(own.o[i], dims, weight[0], weight[1]);
    }
}

/* All blocks of a warp. The next one's keys are asked for as soon as scores are made, its values after this one's. */
MIMO_BODY inline void mimo_mma_attend(mimo_mma_attention &own, const mimo_mma_sight &sight)
{
    const mimo_attention &a = sight.layer.attention;
    mimo_words4 k[MIMO_ATTEND_KEYS][2], v[MIMO_ATTEND_VALUES][2];
    mimo_mma_place place;
    place.number = sight.seen.first / MIMO_TILE_CHUNK / sight.task.splits * (MIMO_TILE_CHUNK / MIMO_ATTEND_BLOCK);
    bool more = sight.find(place);
    if (!more)
        return;
    sight.read(k, place.keys, a.head_dim, place.position);
    sight.read(v, place.values, a.v_head_dim, place.position);
    while (more) {
        const uint32_t position = place.position;
        float score[4];
        uint32_t weight[2];
        mimo_mma_score(score, own, k);
        place.number++;
        more = sight.find(place);
        if (more)
            sight.read(k, place.keys, a.head_dim, place.position);
        mimo_mma_weigh(own, weight, score, sight, position);
        mimo_mma_gather(own, v, weight);
        if (more)
            sight.read(v, place.values, a.v_head_dim, place.position);
    }
}

/* What a warp has of a head, to where all warps see it: [warp, row, Dv + 1], then most and sum of each. */
MIMO_BODY inline void mimo_mma_show(const mimo_mma_team &team, const mimo_mma_attention &own,
                                    const mimo_mma_sight &sight)
{
    const uint32_t Dv = sight.layer.attention.v_head_dim, row = Dv + 1, g = sight.g, c = sight.c;
    float *all = reinterpret_cast<float *>(team.activations), *to = all + team.warp() * MIMO_TILE_TOKENS * row;
    float *ends = all + MIMO_MMA_WARPS * MIMO_TILE_TOKENS * row + team.warp() * 2 * MIMO_TILE_TOKENS;
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
        float sum = own.sum[j];
#pragma unroll
        for (uint32_t lanes = 4; lanes < MIMO_LANES; lanes *= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (g == 0) {
            ends[2 * (2 * c + j)] = own.most[j] * (1.0f / MIMO_EXP_LOG2E);
            ends[2 * (2 * c + j) + 1] = sum;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 2 * MIMO_ATTEND_VALUES; i++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t e = i / 2 * MIMO_ATTEND_DIMS + mimo_mma_dim(i % 2 * 2 + j / 2, g);
            if (e < Dv)
                to[(2 * c + j % 2) * row + e] = own.o[i][j];
        }
}

/* Row t of a head: what the warps from `warp` on, `sharers` of them, have made of it; by one warp. */
MIMO_BODY inline void mimo_mma_add(const mimo_mma_team &team, const mimo_tile_machine &m, const mimo_mma_sight &sight,
                                   uint32_t t, uint32_t head, uint32_t warp)
{
    const uint32_t Dv = sight.layer.attention.v_head_dim, row = Dv + 1, lane = team.thread() % MIMO_LANES;
    const float *all = reinterpret_cast<const float *>(team.activations);
    const float *ends =
        all + MIMO_MMA_WARPS * MIMO_TILE_TOKENS * row + 2 * ((warp + lane % sight.sharers) * MIMO_TILE_TOKENS + t);
    const bool is_one = lane < sight.sharers;
    const float most = is_one ? ends[0] : -INFINITY;
    const float largest = team.max(mimo_mma_team::lane_value<float>{most});
    const float factor = largest == -INFINITY ? 0.0f : mimo_expf(most - largest);
    const float sum = team.sum(mimo_mma_team::lane_value<float>{is_one ? factor * ends[1] : 0.0f});
    float acc[MIMO_ATTEND_VALUES] = {};
    for (uint32_t i = 0; i < sight.sharers; i++) {
        const float own = __shfl_sync(0xffffffffu, factor, i);
        const float *from = all + ((warp + i) * MIMO_TILE_TOKENS + t) * row;
#pragma unroll
        for (uint32_t e = 0; e < MIMO_ATTEND_VALUES; e++)
            if (e * MIMO_LANES + lane < Dv)
                acc[e] = fmaf(own, from[e * MIMO_LANES + lane], acc[e]);
    }
    const bool is_whole = sight.task.splits == 1;
    const float inverse = is_whole ? mimo_tile_inverse(sight.layer, head, largest, sum) : 1.0f;
    float *to = mimo_tile_split(m, sight.layer.attention, sight.task.split, t, head);
#pragma unroll
    for (uint32_t e = 0; e < MIMO_ATTEND_VALUES; e++) {
        const uint32_t d = e * MIMO_LANES + lane;
        if (d < Dv && is_whole)
            mimo_tile_put(m.a, m.parts, t, head * Dv + d, acc[e] * inverse);
        else if (d < Dv)
            to[d] = acc[e];
    }
    if (!is_whole && lane < 2)
        to[Dv + lane] = lane == 0 ? largest : sum;
}

/* All heads of a task for some rows of one sequence: as many at a time as there are warps, or all of them, and then
 * several warps share one. */
MIMO_BODY inline void mimo_mma_attend_rows(const mimo_mma_team &team, const mimo_tile_machine &m,
                                           const mimo_cuda_state &s, const mimo_tile_task &task, uint32_t rows,
                                           uint32_t t)
{
    const mimo_cuda_layer &layer = s.layer[task.layer];
    const mimo_attention &a = layer.attention;
    const uint32_t g = team.thread() % MIMO_LANES / 4, c = team.thread() % 4, end = task.first + task.count;
    uint32_t heads = 1; /* at a time */
    while (heads < MIMO_MMA_WARPS && heads < task.count)
        heads *= 2;
    const uint32_t sharers = MIMO_MMA_WARPS / heads;
    const mimo_mma_sight sight = {s,
                                  layer,
                                  task,
                                  mimo_mma_seen_of(s, layer, rows, c),
                                  t,
                                  task.first / (a.heads / a.kv_heads),
                                  team.warp() % sharers,
                                  sharers,
                                  g,
                                  c};
    for (uint32_t first = task.first; first < end; first += heads) {
        const uint32_t head = first + team.warp() / sharers;
        mimo_mma_attention own = {{}, {}, {-INFINITY, -INFINITY}, {0.0f, 0.0f}};
        if (head < end) {
            mimo_mma_ask(own, sight, rows, head);
            mimo_mma_attend(own, sight);
        }
        team.sync(); /* nobody reads what was there */
        mimo_mma_show(team, own, sight);
        team.sync();
        for (uint32_t i = 0; i < heads; i++)
            if (rows >> team.warp() & 1 && first + i < end)
                mimo_mma_add(team, m, sight, team.warp(), first + i, i * sharers);
    }
}

MIMO_BODY_HERE void mimo_tile_attend(const mimo_mma_team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    static_assert((uint32_t)MIMO_MMA_WARPS == MIMO_TILE_TOKENS, "a warp a row");
    const mimo_cuda_state &s = mimo_tile_state(m, task);
    const mimo_attention &a = s.layer[task.layer].attention;
    if (s.kv.is_float || a.head_dim > MIMO_ATTEND_KEYS * MIMO_ATTEND_DIMS ||
        a.v_head_dim > MIMO_ATTEND_VALUES * MIMO_ATTEND_DIMS)
        return mimo_tile_attend<mimo_mma_team>(team, m, task);
    uint32_t left = (1u << s.step->rows) - 1;
    for (uint32_t t = 0; left != 0; t++) {
        const uint32_t rows = left >> t & 1 ? mimo_mma_together(*s.step, left, t) : 0;
        left &= ~rows;
        if (rows != 0)
            mimo_mma_attend_rows(team, m, s, task, rows, t);
    }
}

#endif
