/* A model whose operation bodies run on the host, as tests hold it. */
#ifndef MIMO_PYTHON_PROBE_MODEL_H
#define MIMO_PYTHON_PROBE_MODEL_H

#include "cuda/host_machine.h"
#include "engine/state.h"
#include "python/probe.h"

typedef struct mimo_probe_model {
    PyObject *owner; /* the Engine */
    const mimo_engine *engine;
    mimo_cuda_host *target, *draft;
    mimo_host_machine *machine; /* NULL until it is asked for */
} mimo_probe_model;

/* NULL with an exception. */
mimo_probe_model *mimo_probe_model_of(PyObject *capsule);

#endif
