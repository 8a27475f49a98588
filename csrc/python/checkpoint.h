/* The config and the tensor list of a checkpoint, from Python objects to plain values. Shared by _core and _probe. */
#ifndef MIMO_PYTHON_CHECKPOINT_H
#define MIMO_PYTHON_CHECKPOINT_H

#include <stddef.h>

#include "engine/engine.h"
#include "model/config.h"
#include "model/weights.h"
#include "python/convert.h"

/* *out = the dict whose keys _core.pyi lists under Engine, checked by mimo_config_check; -1 with an exception that
 * names the key. */
int mimo_python_config(mimo_config *out, PyObject *dict);

/* A tensor list with the text its names point to. */
typedef struct mimo_python_tensors {
    mimo_tensor *tensor; /* [count] */
    size_t count;
    char *text;
} mimo_python_tensors;

/* From a sequence of (name, dtype, shape, file, begin, end); -1 with an exception, and then nothing is left to free. */
int mimo_python_tensors_read(mimo_python_tensors *out, PyObject *sequence);
void mimo_python_tensors_free(mimo_python_tensors *tensors);

/* A drafter with the memory its source points to. */
typedef struct mimo_python_draft {
    mimo_draft_source source;
    mimo_python_tensors tensors;
    uint32_t *target_id;
} mimo_python_draft;

/* From the dict that _core.pyi describes under Engine; -1 with an exception, and then nothing is left to free. */
int mimo_python_draft_read(mimo_python_draft *out, PyObject *dict);
void mimo_python_draft_free(mimo_python_draft *draft);

#endif
