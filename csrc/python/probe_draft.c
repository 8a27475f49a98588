/* Steps of a target and its drafter on caches of the test's own, through the backend of an engine that is idle. */
#include "base/alloc.h"
#include "base/size.h"
#include "engine/state.h"
#include "python/module.h"
#include "python/probe.h"

enum { MAX_CACHES = 16 };
static const char capsule_name[] = "mimo_ultraspeed._probe.draft_caches";

typedef struct caches {
    PyObject *owner; /* the Engine */
    mimo_backend *backend;
    const mimo_engine *engine;
    mimo_kv *kv[MAX_CACHES];
    size_t count;
} caches;

/* A closed engine took what its caches need to be given back: they must go first. */
static void close_caches(caches *c)
{
    for (size_t i = 0; mimo_python_engine(c->owner) != NULL && i < c->count; i++)
        c->backend->kv_close(c->backend, c->kv[i]);
    Py_DECREF(c->owner);
    mimo_free(c);
}

static void destroy(PyObject *capsule)
{
    close_caches(PyCapsule_GetPointer(capsule, capsule_name));
}

/* NULL with an exception. */
static const caches *caches_of(PyObject *capsule)
{
    const caches *c = PyCapsule_GetPointer(capsule, capsule_name);
    if (c == NULL || mimo_python_engine(c->owner) != NULL)
        return c;
    PyErr_SetString(PyExc_ValueError, "draft caches: their engine is closed");
    return NULL;
}

static PyObject *draft_caches(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *owner;
    Py_ssize_t count, positions;
    if (!PyArg_ParseTuple(args, "Onn:draft_caches", &owner, &count, &positions))
        return NULL;
    const mimo_engine *engine = mimo_python_engine(owner);
    if (engine == NULL || count < 1 || count > MAX_CACHES || positions < 1)
        return PyErr_Format(PyExc_ValueError, "draft_caches: expected an Engine, 1 to %d caches, 1 or more positions",
                            MAX_CACHES);
    mimo_error err = {0};
    caches *c;
    if (mimo_alloc_array(&c, 1, sizeof *c, "caches", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    c->owner = owner;
    Py_INCREF(owner);
    c->engine = engine;
    c->backend = engine->backend;
    mimo_status status = MIMO_OK;
    for (; status == MIMO_OK && c->count < (size_t)count; c->count += status == MIMO_OK) {
        status = c->backend->kv_open(c->backend, &c->kv[c->count], &err);
        if (status != MIMO_OK)
            break;
        status = c->backend->kv_reserve(c->backend, c->kv[c->count], (size_t)positions, &err);
        if (status != MIMO_OK)
            c->backend->kv_close(c->backend, c->kv[c->count]);
    }
    if (status != MIMO_OK) {
        close_caches(c);
        return mimo_python_raise(&err);
    }
    return PyCapsule_New(c, capsule_name, destroy);
}

/* Rows of a step, as tests give them. */
typedef struct rows {
    size_t count;
    uint32_t number[MIMO_STEP_ROWS]; /* tokens or row numbers */
    uint32_t position[MIMO_STEP_ROWS];
    mimo_kv *kv[MIMO_STEP_ROWS];
} rows;

/* From a list of (cache, number, position); -1 with an exception. */
static int read_rows(rows *out, const caches *c, PyObject *list)
{
    PyArrayObject *array = mimo_python_array(list, NPY_INT64, 2, "rows");
    if (array == NULL)
        return -1;
    out->count = (size_t)PyArray_DIM(array, 0);
    const int64_t *data = PyArray_DATA(array);
    int failed = out->count > MIMO_STEP_ROWS || (out->count > 0 && PyArray_DIM(array, 1) != 3) ? -1 : 0;
    for (size_t i = 0; failed == 0 && i < out->count; i++, data += 3) {
        failed = data[0] < 0 || (size_t)data[0] >= c->count ? -1 : 0;
        out->number[i] = (uint32_t)data[1];
        out->position[i] = (uint32_t)data[2];
        out->kv[i] = failed == 0 ? c->kv[data[0]] : NULL;
    }
    Py_DECREF((PyObject *)array);
    if (failed < 0)
        PyErr_SetString(PyExc_ValueError, "rows: expected up to 128 of (cache, number, position)");
    return failed;
}

static PyObject *draft_target(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *list;
    if (!PyArg_ParseTuple(args, "OO:draft_target", &capsule, &list))
        return NULL;
    const caches *c = caches_of(capsule);
    rows r;
    if (c == NULL || read_rows(&r, c, list) < 0)
        return NULL;
    const mimo_draft_config *draft = &c->engine->draft->config;
    npy_intp shape[3] = {draft->model.taps, (npy_intp)r.count, c->engine->config.hidden};
    PyObject *hidden = PyArray_SimpleNew(3, shape, NPY_FLOAT32);
    if (hidden == NULL)
        return NULL;
    const mimo_step step = {.rows = r.count,
                            .token = r.number,
                            .position = r.position,
                            .kv = r.kv,
                            .taps = draft->model.taps,
                            .tap = draft->tap,
                            .hidden = PyArray_DATA((PyArrayObject *)hidden),
                            .hidden_stride = (size_t)(shape[1] * shape[2])};
    c->backend->step(c->backend, &step);
    return hidden;
}

static PyObject *draft_step(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *features, *contexts, *blocks;
    Py_ssize_t width, slots;
    if (!PyArg_ParseTuple(args, "OOOOnn:draft_step", &capsule, &features, &contexts, &blocks, &width, &slots))
        return NULL;
    const caches *c = caches_of(capsule);
    rows context, block;
    if (c == NULL || read_rows(&context, c, contexts) < 0 || read_rows(&block, c, blocks) < 0)
        return NULL;
    PyArrayObject *hidden = mimo_python_array(features, NPY_FLOAT32, 3, "features");
    if (hidden == NULL)
        return NULL;
    uint16_t row[MIMO_STEP_ROWS];
    for (size_t i = 0; i < context.count; i++)
        row[i] = (uint16_t)context.number[i];
    npy_intp shape[2] = {(npy_intp)block.count * slots,
                         (npy_intp)mimo_round_up(c->engine->draft->config.model.vocab, 8)};
    PyObject *logits = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (logits != NULL) {
        const mimo_draft_step step = {.contexts = context.count,
                                      .features = PyArray_DATA(hidden),
                                      .features_stride = (size_t)(PyArray_DIM(hidden, 1) * PyArray_DIM(hidden, 2)),
                                      .context_row = row,
                                      .context_position = context.position,
                                      .context_kv = context.kv,
                                      .blocks = block.count,
                                      .anchor = block.number,
                                      .position = block.position,
                                      .block_kv = block.kv,
                                      .width = (size_t)width,
                                      .slots = (size_t)slots,
                                      .logits = PyArray_DATA((PyArrayObject *)logits),
                                      .logits_stride = (size_t)shape[1]};
        c->backend->draft(c->backend, &step);
    }
    Py_DECREF((PyObject *)hidden);
    return logits;
}

static PyObject *draft_bias(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    unsigned int previous;
    if (!PyArg_ParseTuple(args, "OI:draft_bias", &capsule, &previous))
        return NULL;
    const caches *c = caches_of(capsule);
    if (c == NULL)
        return NULL;
    npy_intp shape[1] = {(npy_intp)mimo_round_up(c->engine->draft->config.model.vocab, 8)};
    PyObject *logits = PyArray_ZEROS(1, shape, NPY_FLOAT32, 0);
    if (logits != NULL)
        c->backend->draft_bias(c->backend, PyArray_DATA((PyArrayObject *)logits), previous);
    return logits;
}

static PyObject *draft_copy(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    Py_ssize_t to, from, positions;
    if (!PyArg_ParseTuple(args, "Onnn:draft_copy", &capsule, &to, &from, &positions))
        return NULL;
    const caches *c = caches_of(capsule);
    if (c == NULL)
        return NULL;
    c->backend->kv_copy(c->backend, c->kv[to], c->kv[from], (size_t)positions);
    Py_RETURN_NONE;
}

static PyObject *draft_span(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    Py_ssize_t at, position;
    if (!PyArg_ParseTuple(args, "Onn:draft_span", &capsule, &at, &position))
        return NULL;
    const caches *c = caches_of(capsule);
    if (c == NULL)
        return NULL;
    size_t begin, end;
    c->backend->kv_draft_span(c->backend, c->kv[at], (size_t)position, &begin, &end);
    return Py_BuildValue("nn", (Py_ssize_t)begin, (Py_ssize_t)end);
}

PyMethodDef mimo_probe_draft_methods[] = {
    {"draft_caches", draft_caches, METH_VARARGS, "(engine, count, positions): caches of so many sequences"},
    {"draft_target", draft_target, METH_VARARGS, "(caches, [(cache, token, position)]): the taps [M, T, H] of a step"},
    {"draft_step", draft_step, METH_VARARGS,
     "(caches, taps, contexts [(cache, row, position)], blocks [(cache, anchor, position)], width, slots): logits "
     "[blocks * slots, round_up(V', 8)]"},
    {"draft_bias", draft_bias, METH_VARARGS, "(caches, previous): what the Markov head adds after a token"},
    {"draft_copy", draft_copy, METH_VARARGS, "(caches, to, from, positions): copies the beginning of a cache"},
    {"draft_span", draft_span, METH_VARARGS, "(caches, cache, position): the context a block there can see"},
    {NULL, NULL, 0, NULL},
};
