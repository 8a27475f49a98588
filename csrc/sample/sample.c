/* Choosing a token.
 *
 *   s(v) = penalised logit               z(v) = (s(v) - max s) / temperature, in double; z <= 0
 *   kept = the prefix of the tokens, most likely first, that top-k, top-p and min-p leave
 *   token = argmax over kept of z(v) + gumbel(seed, stream, position, purpose, v)
 *
 * Noise of 32-bit words is bounded, so whole spans of unlikely tokens are passed over without making theirs, and of the
 * other words most are too small to win whatever their token: the choice is exactly that of the definition. Only logits
 * of penalised tokens are changed. */
#include "sample/sample.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "base/size.h"
#include "sample/philox.h"
#include "sample/prefix.h"

typedef struct workspace {
    uint64_t *keys; /* [V] */
    float *weights; /* [V] */
    float *raw;     /* [V], logits of `seen` before the penalty */
    float *maxima;  /* [ceil(V / MIMO_SPAN)] */
} workspace;

/* What may be chosen. */
typedef struct filter {
    uint64_t cut;   /* the least key */
    double z_least; /* of min-p */
} filter;

typedef struct contest {
    const mimo_spans *spans;
    filter kept;
    double temperature;
    mimo_noise noise;
    const uint32_t *ids; /* of mimo_sampling */
    uint32_t token;      /* the best so far */
    double score;
} contest;

mimo_status mimo_sampling_check(const mimo_sampling *sampling, mimo_error *err)
{
    if (!(sampling->temperature >= 0.0f && sampling->temperature <= FLT_MAX))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "temperature: expected a finite number >= 0, found %g",
                         (double)sampling->temperature);
    if (!(sampling->top_p > 0.0f && sampling->top_p <= 1.0f))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "top_p: expected 0 < top_p <= 1, found %g", (double)sampling->top_p);
    if (!(sampling->min_p >= 0.0f && sampling->min_p <= 1.0f))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "min_p: expected 0 <= min_p <= 1, found %g", (double)sampling->min_p);
    if (!(sampling->repetition_penalty > 0.0f && sampling->repetition_penalty <= FLT_MAX))
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "repetition_penalty: expected a finite number > 0, found %g",
                         (double)sampling->repetition_penalty);
    if (sampling->logprobs > MIMO_MAX_LOGPROBS && sampling->logprobs != UINT32_MAX)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "logprobs: expected -1 (none) or 0 to %d, found %lld", MIMO_MAX_LOGPROBS,
                         (long long)(int32_t)sampling->logprobs);
    return MIMO_OK;
}

size_t mimo_sample_scratch_bytes(size_t V)
{
    size_t bytes;
    if (!mimo_size_mul(V, sizeof(uint64_t) + 2 * sizeof(float), &bytes) ||
        !mimo_size_add(bytes, mimo_spans_count(V) * sizeof(float), &bytes))
        return SIZE_MAX; /* no allocation succeeds */
    return bytes;
}

static workspace lay_out(void *scratch, size_t V)
{
    workspace w;
    w.keys = scratch;
    w.weights = (float *)(void *)(w.keys + V);
    w.raw = w.weights + V;
    w.maxima = w.raw + V;
    return w;
}

/* Finite logits stay finite. */
static void penalise(float *logits, float *raw, const uint32_t *seen, size_t n_seen, float penalty)
{
    for (size_t i = 0; i < n_seen; i++) {
        const float x = logits[seen[i]];
        raw[i] = x;
        if (!isfinite(x))
            continue;
        const float y = x > 0.0f ? x / penalty : x * penalty;
        logits[seen[i]] = fminf(fmaxf(y, -FLT_MAX), FLT_MAX);
    }
}

static mimo_status scan(mimo_spans *out, const float *logits, size_t V, float *maxima, uint64_t position,
                        mimo_error *err)
{
    int nan;
    *out = mimo_spans_scan(logits, V, maxima, &nan);
    if (nan)
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "logits of position %llu: expected numbers, found NaN",
                         (unsigned long long)position);
    if (!isfinite(out->largest))
        return MIMO_FAIL(err, MIMO_ERR_ENGINE, "logits of position %llu: expected the largest to be finite, found %g",
                         (unsigned long long)position, (double)out->largest);
    return MIMO_OK;
}

/* log of the softmax's denominator over exp(largest). The largest logit's own term is left out of the sum: when it is
 * nearly all, the rest would drown in it. */
static double log_denominator(const mimo_spans *spans)
{
    const size_t after = spans->argmax + (size_t)1;
    return log1p(mimo_exp_sum(spans->logits, spans->argmax, spans->largest, 1.0f) +
                 mimo_exp_sum(spans->logits + after, spans->V - after, spans->largest, 1.0f));
}

static float logprob_of(float logit, const mimo_spans *spans, double denominator)
{
    return (float)((double)logit - (double)spans->largest - denominator);
}

/* The `count` most likely tokens whose logits are finite, in order. */
static void report_tops(mimo_choice *out, uint64_t *keys, const mimo_spans *spans, double denominator, uint32_t count)
{
    const uint64_t cut = mimo_prefix_top(keys, spans, count);
    const size_t n = mimo_prefix_collect(keys, spans, cut);
    for (size_t i = 1; i < n; i++) {
        const uint64_t key = keys[i];
        size_t at = i;
        for (; at > 0 && keys[at - 1] < key; at--)
            keys[at] = keys[at - 1];
        keys[at] = key;
    }
    for (size_t i = 0; i < n; i++) {
        out->top_token[i] = mimo_key_token(keys[i]);
        out->top_logprob[i] = logprob_of(spans->logits[out->top_token[i]], spans, denominator);
    }
    out->tops = (uint32_t)n;
}

/* The cut of top-p among the keys >= cut. */
static uint64_t nucleus(const mimo_spans *spans, const mimo_sampling *sampling, uint64_t cut, const workspace *w)
{
    const float scale = fminf(1.0f / sampling->temperature, FLT_MAX);
    double total = 0.0;
    if (cut == MIMO_CUT_NONE) {
        total = mimo_exp_sum(spans->logits, spans->V, spans->largest, scale);
        /* V tokens less likely than (1 - p) / 2V have less than (1 - p) together: none of them is needed to reach p. */
        const double z = log((1.0 - (double)sampling->top_p) * total / (2.0 * (double)spans->V));
        const float least = nextafterf((float)((double)spans->largest + z * (double)sampling->temperature), -INFINITY);
        const uint64_t floor = mimo_key_floor(least);
        const size_t n = mimo_prefix_collect(w->keys, spans, floor > cut ? floor : cut);
        mimo_key_weights(w->weights, w->keys, n, spans->largest, scale);
        return mimo_prefix_cut(w->keys, w->weights, n, (double)sampling->top_p * total);
    }
    const size_t n = mimo_prefix_collect(w->keys, spans, cut);
    mimo_key_weights(w->weights, w->keys, n, spans->largest, scale);
    for (size_t i = 0; i < n; i++)
        total += (double)w->weights[i];
    return mimo_prefix_cut(w->keys, w->weights, n, (double)sampling->top_p * total);
}

static filter make_filter(const mimo_spans *spans, const mimo_sampling *sampling, const workspace *w)
{
    filter kept = {MIMO_CUT_NONE, -INFINITY};
    if (sampling->top_k > 0 && sampling->top_k < spans->V)
        kept.cut = mimo_prefix_top(w->keys, spans, sampling->top_k);
    if (sampling->top_p < 1.0f)
        kept.cut = nucleus(spans, sampling, kept.cut, w);
    if (sampling->min_p > 0.0f)
        kept.z_least = log((double)sampling->min_p);
    return kept;
}

static double z_of(const contest *c, float logit)
{
    return ((double)logit - (double)c->spans->largest) / c->temperature;
}

/* No smaller word has noise of `lead` or more, which a token needs to come from behind. Follows from 1 - x <= exp(-x):
 * -log(-log(u)) >= lead implies u >= 1 - exp(-lead). The 1e-5 and the 2 are far more than what rounding can do here. */
static uint32_t least_word(double lead)
{
    if (lead <= 0.0)
        return 0;
    const double tail = (double)mimo_exp_negative(-(float)lead) * 1.00001;
    const double word = (1.0 - tail) * 0x1p32 - 2.0;
    return word > 0.0 ? (uint32_t)word : 0;
}

static bool keeps(const filter *kept, float logit, uint32_t token, double z)
{
    return mimo_key(logit, token) >= kept->cut && z >= kept->z_least;
}

static void offer(contest *c, uint32_t token, uint32_t word)
{
    const float logit = c->spans->logits[token];
    const double z = z_of(c, logit);
    if (!keeps(&c->kept, logit, token, z) || z + MIMO_GUMBEL_MAX < c->score)
        return;
    const double score = z + mimo_gumbel_word(word);
    if (score > c->score || (score == c->score && token < c->token)) {
        c->score = score;
        c->token = token;
    }
}

static void visit(contest *c, uint32_t span)
{
    const float largest = c->spans->maxima[span];
    const double z = z_of(c, largest);
    if (largest < mimo_key_logit(c->kept.cut) || z < c->kept.z_least || z + MIMO_GUMBEL_MAX < c->score)
        return;
    const size_t first = (size_t)span * MIMO_SPAN;
    const size_t count = mimo_min(MIMO_SPAN, c->spans->V - first);
    uint32_t words[4][MIMO_SPAN_BLOCKS];
    if (c->ids != NULL)
        mimo_philox_ids(words, &c->noise, c->ids + first, count);
    else
        mimo_philox_span(words, &c->noise, span);
    const uint32_t least = least_word(c->score - z);
    uint32_t able = 0;
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < MIMO_SPAN_BLOCKS; i++)
            able |= words[j][i] >= least;
    if (!able)
        return;
    for (size_t i = 0; i < count; i++)
        if (words[i % 4][i / 4] >= least)
            offer(c, (uint32_t)(first + i), words[i % 4][i / 4]);
}

static uint32_t draw(const mimo_spans *spans, const mimo_sampling *sampling, uint64_t position, const workspace *w)
{
    contest c = {
        .spans = spans,
        .kept = make_filter(spans, sampling, w),
        .temperature = (double)sampling->temperature,
        .noise = {sampling->seed, position, sampling->stream, sampling->purpose},
        .ids = sampling->ids,
        .token = spans->argmax,
    };
    /* The most likely token opens, because a good score soon is what spares work. */
    c.score = mimo_gumbel(&c.noise, c.ids != NULL ? c.ids[spans->argmax] : spans->argmax);
    const size_t count = mimo_spans_count(spans->V);
    for (size_t s = 0; s < count; s++)
        visit(&c, (uint32_t)s);
    return c.token;
}

/* law [V] of draw, or of greedy. */
static void fill_law(double *law, const mimo_spans *spans, const mimo_sampling *sampling, const workspace *w)
{
    const bool greedy = sampling->temperature == 0.0f;
    const contest c = {.spans = spans, .temperature = (double)sampling->temperature};
    const filter kept = greedy ? (filter){0} : make_filter(spans, sampling, w);
    double total = 0.0;
    for (size_t v = 0; v < spans->V; v++) {
        const uint32_t token = (uint32_t)v;
        const double z = greedy ? 0.0 : z_of(&c, spans->logits[v]);
        const bool able = greedy ? token == spans->argmax : keeps(&kept, spans->logits[v], token, z);
        law[v] = able ? exp(z) : 0.0;
        total += law[v];
    }
    for (size_t v = 0; v < spans->V; v++)
        law[v] /= total;
}

/* The chosen token's logit before the penalty. */
static float raw_logit(const float *logits, const float *raw, uint32_t token, const uint32_t *seen, size_t n_seen)
{
    for (size_t i = 0; i < n_seen; i++)
        if (seen[i] == token)
            return raw[i];
    return logits[token];
}

mimo_status mimo_sample(mimo_choice *out, float *logits, size_t V, const mimo_sampling *sampling, uint64_t position,
                        const uint32_t *seen, size_t n_seen, void *scratch, mimo_error *err)
{
    assert(V > 0 && V <= UINT32_MAX && n_seen <= V);
    assert(mimo_sampling_check(sampling, NULL) == MIMO_OK);
    const workspace w = lay_out(scratch, V);
    const bool reporting = sampling->logprobs != UINT32_MAX;
    if (sampling->repetition_penalty == 1.0f)
        n_seen = 0;

    *out = (mimo_choice){.logprob = NAN};
    mimo_spans raw = {0};
    double denominator = 0.0;
    if (reporting || n_seen == 0)
        MIMO_TRY(scan(&raw, logits, V, w.maxima, position, err));
    if (reporting) {
        denominator = log_denominator(&raw);
        if (sampling->logprobs > 0)
            report_tops(out, w.keys, &raw, denominator, sampling->logprobs);
    }
    mimo_spans spans = raw;
    if (n_seen > 0) {
        penalise(logits, w.raw, seen, n_seen, sampling->repetition_penalty);
        MIMO_TRY(scan(&spans, logits, V, w.maxima, position, err));
    }
    out->token = sampling->temperature == 0.0f ? spans.argmax : draw(&spans, sampling, position, &w);
    if (reporting)
        out->logprob = logprob_of(raw_logit(logits, w.raw, out->token, seen, n_seen), &raw, denominator);
    return MIMO_OK;
}

mimo_status mimo_sample_law(double *law, float *logits, size_t V, const mimo_sampling *sampling, uint64_t position,
                            const uint32_t *seen, size_t n_seen, void *scratch, mimo_error *err)
{
    assert(V > 0 && V <= UINT32_MAX && n_seen <= V);
    const workspace w = lay_out(scratch, V);
    if (sampling->repetition_penalty == 1.0f)
        n_seen = 0;
    penalise(logits, w.raw, seen, n_seen, sampling->repetition_penalty);
    mimo_spans spans;
    const mimo_status status = scan(&spans, logits, V, w.maxima, position, err);
    if (status == MIMO_OK)
        fill_law(law, &spans, sampling, &w);
    for (size_t i = 0; i < n_seen; i++)
        logits[seen[i]] = w.raw[i];
    return status;
}

mimo_status mimo_sample_report(mimo_choice *out, const float *logits, size_t V, const mimo_sampling *sampling,
                               uint64_t position, uint32_t token, void *scratch, mimo_error *err)
{
    const workspace w = lay_out(scratch, V);
    *out = (mimo_choice){.token = token, .logprob = NAN};
    if (sampling->logprobs == UINT32_MAX)
        return MIMO_OK;
    mimo_spans spans;
    MIMO_TRY(scan(&spans, logits, V, w.maxima, position, err));
    const double denominator = log_denominator(&spans);
    if (sampling->logprobs > 0)
        report_tops(out, w.keys, &spans, denominator, sampling->logprobs);
    out->logprob = logprob_of(logits[token], &spans, denominator);
    return MIMO_OK;
}
