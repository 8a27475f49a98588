#include "cuda/lower.h"

typedef struct format_seen {
    const mimo_matrix *of[MIMO_OP_COUNT];
    mimo_error *err;
} format_seen;

static mimo_status see(format_seen *seen, mimo_op_code code, const mimo_matrix *matrix)
{
    const mimo_matrix *first = seen->of[code];
    if (first != NULL && first->format != matrix->format)
        return MIMO_FAIL(seen->err, MIMO_ERR_UNSUPPORTED, "CUDA: %s: expected the format of %s, %s, found %s",
                         matrix->name, first->name, mimo_format_name(first->format), mimo_format_name(matrix->format));
    seen->of[code] = matrix;
    return MIMO_OK;
}

static mimo_status see_layer(format_seen *seen, const mimo_layer_weights *layer, bool sparse, bool draft)
{
    MIMO_TRY(see(seen, MIMO_OP_QKV, &layer->qkv));
    if (draft)
        MIMO_TRY(see(seen, MIMO_OP_DRAFT_CONTEXT, &layer->qkv));
    MIMO_TRY(see(seen, MIMO_OP_OUT_PROJ, &layer->out));
    if (sparse)
        MIMO_TRY(see(seen, MIMO_OP_ROUTE, &layer->router));
    const mimo_op_code up = sparse ? MIMO_OP_EXPERT_UP : MIMO_OP_DENSE_UP;
    for (uint32_t e = 0; e < layer->mlps; e++) {
        MIMO_TRY(see(seen, up, &layer->gate[e]));
        MIMO_TRY(see(seen, up, &layer->up[e]));
        MIMO_TRY(see(seen, sparse ? MIMO_OP_EXPERT_DOWN : MIMO_OP_DENSE_DOWN, &layer->down[e]));
    }
    return MIMO_OK;
}

mimo_status mimo_tape_formats(mimo_tape *tape, const mimo_weights *weights, mimo_error *err)
{
    const mimo_config *config = tape->config;
    const bool draft = config->taps > 0;
    format_seen seen = {.err = err};
    for (uint32_t i = 0; i < config->layers; i++)
        MIMO_TRY(see_layer(&seen, &weights->layer[i], config->sparse[i] != 0, draft));
    MIMO_TRY(see(&seen, MIMO_OP_HEAD, &weights->head));
    if (draft)
        MIMO_TRY(see(&seen, MIMO_OP_DRAFT_FUSE, &weights->fuse));
    for (uint32_t code = 0; code < MIMO_OP_COUNT; code++)
        tape->format[code] = seen.of[code] != NULL ? seen.of[code]->format : MIMO_FORMAT_F32;
    return MIMO_OK;
}
