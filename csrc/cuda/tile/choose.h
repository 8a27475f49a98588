/* From scores to tokens: SAMPLE, PICK, ACCEPT, DRAFT_BIAS, PROPOSE.
 *
 * The token at a position is argmax of logit / temperature + noise(seed, stream, position, token), the lowest id on a
 * tie; drafts are drawn with the same noise, and are right while they equal it. */
#ifndef MIMO_CUDA_TILE_CHOOSE_H
#define MIMO_CUDA_TILE_CHOOSE_H

#include "cuda/op/noise.h"
#include "cuda/tile/filter.h"
#include "cuda/tile/lookup.h"
#include "cuda/tile/multiply.h"

/* Some logit is no number, or none is finite. */
#define MIMO_TILE_NO_TOKEN UINT32_MAX

MIMO_BODY inline bool mimo_tile_is_better(double score, uint32_t token, const mimo_tile_best &than)
{
    return score > than.score || (score == than.score && token < than.token);
}

/* The score of a row's token, where it may be drawn. filter: read where the round has one. */
MIMO_BODY inline double mimo_tile_score(const mimo_tile_round &r, const mimo_tile_filter &filter, float logit,
                                        uint32_t id, uint64_t position)
{
    const double x = (double)logit;
    if (!(r.temperature > 0.0f))
        return x;
    if (!mimo_tile_filters(r))
        return x / (double)r.temperature + mimo_cuda_gumbel(r.seed, r.stream, position, id);
    const double z = (x - (double)filter.largest) / (double)r.temperature;
    if (mimo_cuda_score_key(logit, id) < filter.cut || (r.min_p > 0.0f && z < r.z_least))
        return -INFINITY;
    return z + mimo_cuda_gumbel(r.seed, r.stream, position, id);
}

/* The best of what the lanes have; every lane gets it. */
template <class Team>
MIMO_BODY inline mimo_tile_best mimo_tile_best_of(const Team &team, typename Team::template lane_value<double> &score,
                                                  typename Team::template lane_value<uint32_t> &token)
{
    const double most = team.max(score);
    team.lanes([&](uint32_t lane) { token[lane] = score[lane] == most ? UINT32_MAX - token[lane] : 0; });
    return {most, UINT32_MAX - team.max(token)};
}

template <class Team>
MIMO_BODY inline void mimo_tile_sample(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_tile_round &r = *m.round;
    mimo_tile_each_block(team, m, task, [&](const mimo_tile_row &row, uint32_t t, uint32_t first) {
        typename Team::template lane_value<double> score;
        typename Team::template lane_value<uint32_t> token;
        team.lanes([&](uint32_t lane) {
            mimo_tile_best own = {-INFINITY, MIMO_TILE_NO_TOKEN};
            for (uint32_t i = first + lane; i < first + MIMO_TILE_IDS && i < row.count; i += MIMO_LANES) {
                const uint32_t id = row.ids != nullptr ? row.ids[i] : i;
                if (!(row.x[i] < INFINITY)) { /* one that is no number, and none is chosen */
                    own = {INFINITY, MIMO_TILE_NO_TOKEN};
                    continue;
                }
                const double x = mimo_tile_score(r, m.filter[t], row.x[i], id, row.position);
                if (mimo_tile_is_better(x, id, own))
                    own = {x, id};
            }
            score[lane] = own.score;
            token[lane] = own.token;
        });
        const mimo_tile_best best = mimo_tile_best_of(team, score, token);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                m.best[t * m.blocks + first / MIMO_TILE_IDS] = best;
        });
    });
}

/* The tokens of a join's rows, a warp a row; then all of the team see them. */
template <class Team>
MIMO_BODY inline void mimo_tile_pick(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &join)
{
    for (uint32_t t = join.split + team.warp(); t < join.split + join.splits; t += team.warps()) {
        const uint32_t blocks = mimo_tile_blocks(mimo_tile_row_of(m, join.tape, t).count);
        if (blocks == 0)
            continue;
        typename Team::template lane_value<double> score;
        typename Team::template lane_value<uint32_t> token;
        team.lanes([&](uint32_t lane) {
            mimo_tile_best own = {-INFINITY, MIMO_TILE_NO_TOKEN};
            for (uint32_t b = lane; b < blocks; b += MIMO_LANES) {
                const mimo_tile_best &other = m.best[t * m.blocks + b];
                if (mimo_tile_is_better(other.score, other.token, own))
                    own = other;
            }
            score[lane] = own.score;
            token[lane] = own.token;
        });
        const mimo_tile_best best = mimo_tile_best_of(team, score, token);
        team.lanes([&](uint32_t lane) {
            if (lane == 0)
                m.picked[t] = best.score > -INFINITY ? best.token : MIMO_TILE_NO_TOKEN;
        });
    }
    team.sync();
}

/* Commits what the rows say, up to what ends the text; false: some row had no number before that. Drafts are counted
 * as far as they are right, whether the text ends among them or not. */
MIMO_BODY inline bool mimo_tile_commit(const mimo_tile_machine &m, mimo_tile_round &r, const mimo_cuda_step &step)
{
    const uint32_t before = r.known;
    bool numbers = true;
    for (uint32_t t = 0; t < step.rows; t++) {
        if (step.position[t] + 1 < before)
            continue;
        const uint32_t token = m.picked[t];
        if (token == MIMO_TILE_NO_TOKEN) {
            numbers = r.done != 0;
            break;
        }
        if (!r.done) {
            r.token[r.known++] = token;
            for (uint32_t i = 0; i < r.stops; i++)
                r.done |= r.stop[i] == token;
            r.done |= r.known >= r.limit;
        }
        if (t + 1 >= step.rows || step.token[t + 1] != token)
            break;
        r.accepted++;
    }
    r.rounds += r.known > before;
    return numbers;
}

/* One place of the mail's ring. */
MIMO_BODY inline void mimo_tile_put(uint64_t *to, uint64_t word)
{
#ifdef __CUDA_ARCH__
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
#else
    __atomic_store_n(to, word, __ATOMIC_RELEASE);
#endif
}

MIMO_BODY inline bool mimo_tile_is_stopped(const mimo_mail *mail)
{
#ifdef __CUDA_ARCH__
    uint32_t stop;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(stop) : "l"(&mail->stop) : "memory");
    return stop != 0;
#else
    return __atomic_load_n(&mail->stop, __ATOMIC_ACQUIRE) != 0;
#endif
}

/* Sends the tokens from `first` on, of a round of `rows` rows of which `accepted` drafts stood. */
MIMO_BODY inline void mimo_tile_send(const mimo_tile_machine &m, mimo_tile_round &r, uint32_t first, uint32_t rows,
                                     uint32_t accepted)
{
    for (uint32_t i = first; i < r.known; i++, r.sent++) {
        const mimo_mail_token token = {r.token[i], accepted, rows, i + 1 == r.known, r.looked_up};
        mimo_tile_put(&m.mail->token[r.sent % MIMO_MAIL_TOKENS], mimo_mail_word(&token, r.sent));
    }
}

/* The target's next rows are the known tokens whose keys are not cached, from position `start` on. */
MIMO_BODY inline void mimo_tile_next_rows(const mimo_tile_round &r, mimo_cuda_step &step)
{
    const uint32_t left = r.known - r.start;
    step.rows = r.done ? 0 : (left < MIMO_TILE_TOKENS ? left : (uint32_t)MIMO_TILE_TOKENS);
    for (uint32_t t = 0; t < step.rows; t++) {
        step.position[t] = r.start + t;
        step.token[t] = r.token[r.start + t];
    }
}

/* One thread's work. */
MIMO_BODY inline void mimo_tile_accept_rows(const mimo_tile_machine &m)
{
    mimo_tile_round &r = *m.round;
    mimo_cuda_step &step = m.steps[0], &context = m.steps[1], &block = m.steps[2];
    const uint32_t before = r.known, accepted = r.accepted, first = r.start, end = r.start + step.rows;
    if (!mimo_tile_commit(m, r, step))
        r.done = r.failed = 1;
    if (m.mail != nullptr) {
        mimo_tile_send(m, r, before, step.rows, r.accepted - accepted);
        r.stopped = mimo_tile_is_stopped(m.mail);
        r.done |= r.stopped;
    }
    /* Rows of tokens that stand, but the last, whose keys the next step makes. */
    const uint32_t kept = end < r.known - 1 ? end : r.known - 1;
    context.rows = kept - first;
    for (uint32_t t = 0; t < context.rows; t++) {
        context.context_row[t] = t;
        context.position[t] = first + t;
    }
    r.start = kept;
    mimo_tile_next_rows(r, step);
    block.rows = r.known > before && !r.done ? m.draft_block : 0;
    block.anchor = r.known - 1;
    block.token[0] = r.token[r.known - 1];
    for (uint32_t t = 0; t < block.rows; t++)
        block.position[t] = block.anchor + t;
    /* What its own rows overwrite in the ring is gone. */
    const uint32_t top = block.anchor + block.rows, ring = m.block.kv.ring, begin = r.context_begin;
    block.context_begin = ring > 0 && top > begin + ring ? top - ring : begin;
}

template <class Team>
MIMO_BODY inline void mimo_tile_accept(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &join)
{
    mimo_tile_pick(team, m, join);
    team.threads(1, [&](uint32_t) {
        mimo_tile_accept_rows(m);
        if (m.draft_block == 0) /* no PROPOSE follows */
            m.round->over = m.round->done;
    });
}

/* The row of a token in a drafter's tables; draft_vocab: none. */
template <class Team>
MIMO_BODY inline uint32_t mimo_tile_drafted_at(const Team &team, const mimo_tile_machine &m, uint32_t token)
{
    if (m.drafted == nullptr)
        return token < m.draft_vocab ? token : m.draft_vocab;
    const uint32_t behind =
        mimo_tile_most<uint32_t>(team, m.draft_vocab, [&](uint32_t i) { return m.drafted[i] == token ? i + 1 : 0; });
    return behind > 0 ? behind - 1 : m.draft_vocab;
}

/* sum over j of in[j] * out[j], in this order, as the host adds. Rows of rank elements; behind them are zeros. */
template <uint32_t format>
MIMO_BODY inline float mimo_tile_bias(const mimo_cuda_row &in, const mimo_cuda_row &out, uint32_t rank)
{
    float sum = 0.0f;
    for (uint32_t unit = 0; unit * 8 < rank; unit++) {
        float a[8], b[8];
        mimo_cuda_weights<format>(a, in, unit);
        mimo_cuda_weights<format>(b, out, unit);
        for (uint32_t j = 0; j < 8; j++)
            sum += a[j] * b[j];
    }
    return sum;
}

template <class Team>
MIMO_BODY inline void mimo_tile_draft_bias(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &task)
{
    const mimo_cuda_step &step = *m.block.step;
    const uint32_t slot = task.split;
    if (slot >= step.rows)
        return;
    const uint32_t at = mimo_tile_drafted_at(team, m, slot == 1 ? step.token[0] : m.picked[slot - 1]);
    const mimo_cuda_matrix &in = m.block.draft->markov_in, &out = m.block.draft->markov_out;
    const float *from = step.logits + slot * step.logits_stride;
    float *to = m.biased + (size_t)slot * m.draft_vocab;
    team.threads(task.count, [&](uint32_t i) {
        const uint32_t id = task.first + i;
        float bias = 0.0f;
        if (at < m.draft_vocab) {
            const mimo_cuda_row a = mimo_cuda_row_of(in, at), b = mimo_cuda_row_of(out, id);
            bias = in.format == MIMO_FORMAT_F32 ? mimo_tile_bias<MIMO_FORMAT_F32>(a, b, in.cols)
                                                : mimo_tile_bias<MIMO_FORMAT_BF16>(a, b, in.cols);
        }
        to[id] = from[id] + bias;
    });
}

/* Whether a match is to be believed rather than the drafter, which says `first` first. Alone with two tokens it needs
 * the drafter's word: over answers of the built-in model that gives the most tokens a round of such rules. */
MIMO_BODY inline bool mimo_tile_is_believed(const mimo_tile_round &r, const mimo_tile_match &match, uint32_t first)
{
    if (match.length != MIMO_TILE_GRAM_LEAST)
        return match.length > 0;
    return mimo_tile_followed(match, r.token, r.known, 0) == first;
}

/* Drafts behind the anchor, as many as may be verified and have room: the drafter's, or what was looked up. */
template <class Team>
MIMO_BODY inline void mimo_tile_propose(const Team &team, const mimo_tile_machine &m, const mimo_tile_task &join)
{
    mimo_tile_pick(team, m, join);
    mimo_tile_round &r = *m.round;
    const mimo_cuda_step &block = m.steps[2];
    const bool looks = r.lookup && block.rows > 1;
    const mimo_tile_match match = looks ? mimo_tile_look_up(team, r.token, r.known) : mimo_tile_match{0, 0};
    team.threads(1, [&](uint32_t) {
        r.over = r.done;
        mimo_cuda_step &step = m.steps[0];
        r.looked_up = looks && mimo_tile_is_believed(r, match, m.picked[1]);
        for (uint32_t slot = 1; slot < block.rows && step.rows < r.width && r.known + slot < r.limit; slot++) {
            const uint32_t token = r.looked_up ? mimo_tile_followed(match, r.token, r.known, slot - 1) : m.picked[slot];
            if (token == MIMO_TILE_NO_TOKEN)
                return;
            step.position[step.rows] = block.anchor + slot;
            step.token[step.rows++] = token;
        }
    });
}

#endif
