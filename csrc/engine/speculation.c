/* What a job needs to draft: checked and allocated when it is submitted. */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"

uint32_t mimo_engine_block(const mimo_engine *engine)
{
    return engine->draft != NULL ? engine->draft->config.model.block : MIMO_LOOKUP_BLOCK;
}

mimo_status mimo_speculation_check(const mimo_engine *engine, const mimo_speculative *o, mimo_error *err)
{
    const uint32_t B = mimo_engine_block(engine);
    if (o->width > B)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "width: expected 1 to %u (0: by cost), found %u", B, o->width);
    for (size_t i = 0; i < o->script_count; i++)
        if (o->script[i] >= engine->config.vocab)
            return MIMO_FAIL(err, MIMO_ERR_VALUE, "script: token %zu: expected an id below %u, found %u", i,
                             engine->config.vocab, o->script[i]);
    const bool fits = o->script_right == 0.0f || (o->script_right >= 1.0f && o->script_right <= (float)B);
    if (!fits)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "script_right: expected 1 to %u (0: as it stands), found %g", B,
                         (double)o->script_right);
    return MIMO_OK;
}

/* Whatever rejection sampling at a temperature takes. */
static mimo_status open_rejection(mimo_job *job, mimo_error *err)
{
    mimo_speculation *spec = &job->spec;
    const size_t V = job->engine->config.vocab, B = mimo_engine_block(job->engine);
    size_t floats;
    if (!mimo_size_mul(V, B - 1, &floats))
        return MIMO_FAIL(err, MIMO_ERR_NOMEM, "out of memory: laws of drafts");
    MIMO_TRY(mimo_alloc_array(&spec->laws, 2 * V, sizeof(double), "laws of tokens", err));
    if (spec->drafter && !spec->argmax)
        MIMO_TRY(mimo_alloc_array(&spec->drawn_from, floats, sizeof(float), "laws of drafts", err));
    return MIMO_OK;
}

mimo_status mimo_speculation_open(mimo_job *job, const mimo_job_options *options, mimo_error *err)
{
    const mimo_speculative *o = &options->speculative;
    mimo_speculation *spec = &job->spec;
    const bool has_script = o->script_count > 0;
    spec->drafter = o->on && !has_script && job->engine->draft != NULL;
    spec->on = has_script || spec->drafter || (o->on && o->lookup);
    if (!spec->on)
        return MIMO_OK;
    spec->argmax = o->argmax_drafts;
    spec->rule = o->rule;
    spec->width = o->width;
    spec->script_right = o->script_right;
    spec->looked_up.origin = MIMO_FROM_LOOKUP;
    spec->drafted.origin = MIMO_FROM_DRAFTER;
    MIMO_TRY(mimo_alloc_array(&spec->rounds, options->max_new_tokens, sizeof *spec->rounds, "rounds of a job", err));
    if (has_script) {
        MIMO_TRY(mimo_alloc_array(&spec->script, o->script_count, sizeof(uint32_t), "script of a job", err));
        memcpy(spec->script, o->script, o->script_count * sizeof(uint32_t));
        spec->script_count = o->script_count;
    } else if (o->lookup) {
        MIMO_TRY(mimo_lookup_open(&spec->lookup, job->limit, err));
        (void)mimo_lookup_find(&spec->lookup, job->tokens, job->known); /* the prompt, on the caller's thread */
    }
    if (spec->rule == MIMO_VERIFY_REJECTION && job->sampling.temperature > 0.0f)
        MIMO_TRY(open_rejection(job, err));
    return MIMO_OK;
}

void mimo_speculation_close(mimo_speculation *spec)
{
    mimo_free(spec->script);
    mimo_free(spec->drawn_from);
    mimo_free(spec->laws);
    mimo_lookup_close(&spec->lookup);
    spec->script = NULL;
    spec->drawn_from = NULL;
    spec->laws = NULL;
}
