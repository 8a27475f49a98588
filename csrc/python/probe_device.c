/* The CUDA backend's host side: a driver made up for tests, and steps that stop in the middle. */
#include <string.h>

#include "base/alloc.h"
#include "cuda/fake_library.h"
#include "cuda/trace.h"
#include "engine/state.h"
#include "python/module.h"
#include "python/probe.h"

/* The libraries of kernels that tests have brought: the one in use. */
static mimo_cuda_fake_library library;

static PyObject *cuda_fake(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"memory",      "processors",    "devices", "init_result", "module_result", "fail_at",
                            "fail_result", "fail_for_good", "kernels", "seed",        "races",         "capability",
                            NULL};
    mimo_cuda_fake_options o = {0};
    unsigned long long memory = 0, fail_at = 0, seed = 0;
    unsigned int processors = 3, devices = 1, capability = 90;
    int for_good = 0, races = 0;
    const char *path = NULL;
    o.fail_result = 700;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KIIiiKipzKpI:cuda_fake", names, &memory, &processors, &devices,
                                     &o.init_result, &o.module_result, &fail_at, &o.fail_result, &for_good, &path,
                                     &seed, &races, &capability))
        return NULL;
    o.memory = memory;
    o.processors = processors;
    o.devices = devices;
    o.capability = capability;
    o.fail_at = fail_at;
    o.fail_for_good = for_good != 0;
    if (path != NULL) {
        mimo_error err = {0};
        mimo_cuda_fake_use(NULL); /* who still runs kernels of the one before ends */
        if (mimo_cuda_fake_library_open(&library, path, &err) != MIMO_OK)
            return mimo_python_raise(&err);
        library.set(seed, races);
        o.kernels = &library.kernels;
    }
    mimo_cuda_fake_use(memory > 0 ? &o : NULL);
    Py_RETURN_NONE;
}

static PyObject *cuda_fake_stats(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    const mimo_cuda_fake_stats s = mimo_cuda_fake_read_stats();
    uint64_t counts[3] = {0};
    if (library.counts != NULL)
        library.counts(counts);
    return Py_BuildValue("{sK sK sK sK sK sK sK sK sK sK sK}", "calls", s.calls, "launches", s.launches, "graphs",
                         s.graphs, "copied_in", s.copied_in, "copied_out", s.copied_out, "live_bytes", s.live_bytes,
                         "live_blocks", s.live_blocks, "live_handles", s.live_handles, "switches", counts[0], "copies",
                         counts[1], "held", counts[2]);
}

static mimo_backend *loaded_backend(PyObject *object)
{
    mimo_engine *engine = mimo_python_engine(object);
    if (!mimo_engine_is_loaded(engine) || strcmp(mimo_engine_backend(engine), "cuda") != 0) {
        PyErr_SetString(PyExc_ValueError, "engine: expected one on a GPU that is loaded");
        return NULL;
    }
    return engine->backend;
}

static PyObject *cuda_trace(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *engine, *tokens;
    unsigned int stop;
    int slot;
    if (!PyArg_ParseTuple(args, "OOIi:cuda_trace", &engine, &tokens, &stop, &slot))
        return NULL;
    size_t rows = 0;
    mimo_backend *backend = loaded_backend(engine);
    uint32_t *ids = backend != NULL ? mimo_python_token_ids(tokens, "tokens", &rows) : NULL;
    if (ids == NULL)
        return NULL;
    mimo_error err = {0};
    mimo_trace trace = {0};
    const mimo_status status = mimo_cuda_trace(backend, ids, (uint32_t)rows, stop, (mimo_slot)slot, &trace, &err);
    mimo_free(ids);
    if (status != MIMO_OK)
        return mimo_python_raise(&err);
    npy_intp shape[2] = {(npy_intp)trace.rows, (npy_intp)trace.columns};
    PyObject *array = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (array != NULL)
        memcpy(PyArray_DATA((PyArrayObject *)array), trace.values, trace.rows * trace.columns * sizeof *trace.values);
    mimo_free(trace.values);
    return array;
}

static PyObject *cuda_skip(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *engine;
    unsigned stage, op = 0;
    if (!PyArg_ParseTuple(args, "OI:cuda_skip", &engine, &stage))
        return NULL;
    mimo_error err = {0};
    mimo_backend *backend = loaded_backend(engine);
    if (backend == NULL)
        return NULL;
    if (mimo_cuda_skip(backend, stage, &op, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    return PyLong_FromUnsignedLong(op);
}

static PyObject *cuda_spoil(PyObject *self, PyObject *engine)
{
    (void)self;
    mimo_error err = {0};
    mimo_backend *backend = loaded_backend(engine);
    if (backend == NULL)
        return NULL;
    if (mimo_cuda_spoil(backend, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *cuda_break(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *engine;
    unsigned program, task, milliseconds;
    if (!PyArg_ParseTuple(args, "OIII:cuda_break", &engine, &program, &task, &milliseconds))
        return NULL;
    mimo_error err = {0};
    mimo_backend *backend = loaded_backend(engine);
    if (backend == NULL)
        return NULL;
    if (mimo_cuda_break(backend, program, task, milliseconds, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    Py_RETURN_NONE;
}

PyMethodDef mimo_probe_device_methods[] = {
    {"cuda_fake", (PyCFunction)(void (*)(void))cuda_fake, METH_VARARGS | METH_KEYWORDS,
     "cuda_fake(*, memory=0, processors=3, devices=1, init_result=0, module_result=0, fail_at=0, fail_result=700, "
     "fail_for_good=False, kernels=None, seed=0, races=False, capability=90)\n--\n\nA driver of the host in the place "
     "of CUDA's; "
     "memory=0: the system's again. kernels: a library (tests/ptx) that runs the kernels in the place of the host's "
     "templates, in an order drawn from the seed, and looks for races if it is told to."},
    {"cuda_fake_stats", (PyCFunction)cuda_fake_stats, METH_NOARGS,
     "cuda_fake_stats()\n--\n\nWhat it counted; of a library's kernels switches between threads, copies in bulk and "
     "accesses held against races."},
    {"cuda_trace", (PyCFunction)cuda_trace, METH_VARARGS,
     "cuda_trace(engine, tokens, stop, slot)\n--\n\nThe rows of a slot after `stop` operations of a step."},
    {"cuda_skip", cuda_skip, METH_VARARGS,
     "cuda_skip(engine, stage)\n--\n\nA task of a stage of the resident kernel's steps does nothing from now on. "
     "Returns "
     "the number of its operation."},
    {"cuda_break", cuda_break, METH_VARARGS,
     "cuda_break(engine, program, task, milliseconds)\n--\n\nLets a task of the resident kernel (program 0: rounds "
     "with "
     "drafts, 1: without, 2: steps) wait for a signal that never comes."},
    {"cuda_spoil", (PyCFunction)cuda_spoil, METH_O,
     "cuda_spoil(engine)\n--\n\nMakes the GPU fail in the next step. Not for a made-up driver."},
    {NULL, NULL, 0, NULL},
};
