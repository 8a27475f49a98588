/* A sequence decoded by the resident kernel: the host starts rounds, and hands out the tokens that come by mail. */
#include <math.h>

#include "base/clock.h"
#include "base/size.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

enum { SPINS = 64, PAUSE_NS = 20000, SILENCES = 8 };

static const mimo_cuda_sequence *sequence_of(const mimo_decode *d)
{
    return (const mimo_cuda_sequence *)d->kv;
}

bool mimo_cuda_backend_can_decode(const mimo_backend *self, const mimo_decode *d)
{
    (void)self;
    const mimo_tile_round round;
    return d->stops <= sizeof round.stop / sizeof *round.stop;
}

static void begin(mimo_cuda *cuda, const mimo_decode *d)
{
    const mimo_cuda_sequence *sequence = sequence_of(d);
    mimo_resident_sequence s = {
        .kv = {mimo_cuda_sequence_kv(&cuda->kv, sequence, 0), mimo_cuda_sequence_kv(&cuda->kv, sequence, 1)},
        .token = d->tokens,
        .known = (uint32_t)d->known,
        .round = {.limit = (uint32_t)d->limit,
                  .stops = (uint32_t)d->stops,
                  .width = 1,
                  .temperature = d->temperature,
                  .top_k = d->top_k,
                  .top_p = d->top_p,
                  .min_p = d->min_p,
                  .z_least = log((double)d->min_p),
                  .stream = d->stream,
                  .seed = d->seed}};
    for (size_t i = 0; i < d->stops; i++)
        s.round.stop[i] = d->stop[i];
    if (d->draft) {
        const uint32_t block = cuda->drafter.model.config->block;
        size_t first, end;
        mimo_span_read(&sequence->span, cuda->kv.ring[1], d->known - 1, &first, &end);
        s.context_begin = (uint32_t)(end + 1 == d->known ? first : d->known - 1);
        s.round.lookup = d->lookup;
        s.round.width = d->width > 0 ? (uint32_t)mimo_min(d->width, block) : block;
    }
    mimo_resident_begin(cuda->resident, &s);
}

/* Hands out what has come. Returns whether anything had. */
static bool deliver(mimo_resident *r, mimo_decode *d, bool *wanted)
{
    mimo_mail_token t;
    bool any = false;
    for (; mimo_resident_read(r, &t); any = true) {
        const mimo_decoded token = {.token = t.token,
                                    .accepted = (uint8_t)t.accepted,
                                    .rows = (uint8_t)t.rows,
                                    .last = t.last != 0,
                                    .looked_up = t.looked_up != 0};
        if (!d->take(d->context, &token))
            *wanted = false;
    }
    if (!*wanted)
        __atomic_store_n(&r->mail->stop, 1, __ATOMIC_RELEASE);
    return any;
}

/* Until a launch is over. The kernel's own waits end after its patience; a device that says nothing for much longer
 * is lost without being waited for. As in the kernel, a long stretch between two looks counts as a short one. */
static void attend(mimo_cuda *cuda, mimo_decode *d, bool *wanted)
{
    mimo_resident *r = cuda->resident;
    uint64_t last = mimo_clock_ns(), silence = 0;
    for (uint32_t i = 1; !mimo_cuda_is_idle(&cuda->device); i++) {
        if (deliver(r, d, wanted)) {
            silence = 0;
            i = 0;
        } else if (i > SPINS) {
            nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
            const uint64_t now = mimo_clock_ns();
            silence += mimo_min(now - last, r->patience / MIMO_RESIDENT_STRETCHES);
            last = now;
            if (silence > SILENCES * r->patience)
                (void)MIMO_FAIL(&cuda->device.lost, MIMO_ERR_ENGINE,
                                "the resident kernel: no sign of it for %u times its patience of %u s", SILENCES,
                                (uint32_t)(r->patience / 1000000000u));
        }
    }
    mimo_resident_wait(r);
    (void)deliver(r, d, wanted);
}

/* The sequence's cache as the rounds left it: `known` tokens now. */
static void note_positions(mimo_cuda *cuda, const mimo_decode *d, size_t known)
{
    mimo_cuda_sequence *sequence = (mimo_cuda_sequence *)d->kv;
    const size_t ring = cuda->kv.ring[1];
    sequence->written = mimo_max(sequence->written, mimo_min(known - 1 + MIMO_CUDA_ROWS, d->limit));
    mimo_span_cut(&sequence->span, ring, d->known - 1);
    if (!d->draft)
        return;
    for (size_t position = d->known - 1; position < known - 1; position++)
        mimo_span_add(&sequence->span, ring, position);
    mimo_span_block(&sequence->span, known - 1, cuda->drafter.model.config->block);
}

void mimo_cuda_backend_decode(mimo_backend *self, mimo_decode *d)
{
    mimo_cuda *cuda = (mimo_cuda *)self;
    mimo_resident *r = cuda->resident;
    const mimo_tile_round *round = &r->told->round;
    d->failed = false;
    if (mimo_cuda_enter(&cuda->device, &cuda->device.lost) != MIMO_OK)
        return;
    begin(cuda, d);
    for (bool wanted = true; wanted && cuda->device.lost.code == MIMO_OK && !round->done;) {
        const uint64_t start = mimo_clock_ns();
        mimo_resident_launch(r, d->draft ? MIMO_RESIDENT_ROUND : MIMO_RESIDENT_TOKEN, MIMO_RESIDENT_MOST_ROUNDS);
        attend(cuda, d, &wanted);
        if (cuda->profiling)
            cuda->profile.total_ns += mimo_clock_ns() - start;
    }
    if (cuda->device.lost.code != MIMO_OK)
        return;
    d->failed = round->failed != 0;
    note_positions(cuda, d, round->known);
    if (cuda->profiling) {
        cuda->profile.steps += round->rounds;
        cuda->profile.rows += round->rounds + round->accepted;
    }
}
