#include "python/probe.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "sample/sample.h"

/* philox(key, counters): key [2] and counters [n, 4] uint32 -> blocks [n, 4] uint32. */
static PyObject *philox(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *key_obj, *counters_obj, *blocks = NULL;
    if (!PyArg_ParseTuple(args, "OO:philox", &key_obj, &counters_obj))
        return NULL;
    PyArrayObject *key = mimo_python_array(key_obj, NPY_UINT32, 1, "key");
    PyArrayObject *counters = key != NULL ? mimo_python_array(counters_obj, NPY_UINT32, 2, "counters") : NULL;
    if (counters == NULL)
        goto done;
    if (PyArray_DIM(key, 0) != 2 || PyArray_DIM(counters, 1) != 4) {
        PyErr_SetString(PyExc_ValueError, "expected key [2] and counters [n, 4]");
        goto done;
    }
    blocks = PyArray_SimpleNew(2, PyArray_DIMS(counters), NPY_UINT32);
    if (blocks == NULL)
        goto done;
    const uint32_t *counter = PyArray_DATA(counters);
    uint32_t *block = PyArray_DATA((PyArrayObject *)blocks);
    for (npy_intp i = 0; i < PyArray_DIM(counters, 0); i++)
        mimo_philox(block + 4 * i, PyArray_DATA(key), counter + 4 * i);
done:
    Py_XDECREF((PyObject *)counters);
    Py_XDECREF((PyObject *)key);
    return blocks;
}

/* gumbel(coordinates): [n, 4] uint64, columns seed, stream, position, token -> noise [n] float64. */
static PyObject *gumbel(PyObject *module, PyObject *coordinates_obj)
{
    (void)module;
    PyArrayObject *coordinates = mimo_python_array(coordinates_obj, NPY_UINT64, 2, "coordinates");
    if (coordinates == NULL)
        return NULL;
    PyObject *noise = NULL;
    if (PyArray_DIM(coordinates, 1) != 4) {
        PyErr_SetString(PyExc_ValueError, "expected coordinates [n, 4]");
        goto done;
    }
    noise = PyArray_SimpleNew(1, PyArray_DIMS(coordinates), NPY_DOUBLE);
    if (noise == NULL)
        goto done;
    const uint64_t *at = PyArray_DATA(coordinates);
    double *out = PyArray_DATA((PyArrayObject *)noise);
    for (npy_intp i = 0; i < PyArray_DIM(coordinates, 0); i++, at += 4) {
        const mimo_noise noise_of = {.seed = at[0], .stream = (uint32_t)at[1], .position = at[2]};
        out[i] = mimo_gumbel(&noise_of, (uint32_t)at[3]);
    }
done:
    Py_DECREF(coordinates);
    return noise;
}

/* What is out of range is found by mimo_sampling_check. */
int mimo_probe_sampling(mimo_sampling *out, PyObject *dict)
{
    static char *names[] = {"temperature", "top_p",   "min_p", "repetition_penalty", "top_k", "logprobs", "seed",
                            "stream",      "purpose", NULL};
    *out = (mimo_sampling){.top_p = 1.0f, .repetition_penalty = 1.0f};
    int logprobs = -1;
    unsigned long long seed = 0;
    unsigned int purpose = MIMO_NOISE_TOKEN;
    PyObject *nothing = PyTuple_New(0);
    const int parsed =
        nothing != NULL && PyArg_ParseTupleAndKeywords(nothing, dict, "|$ffffIiKII:sampling", names, &out->temperature,
                                                       &out->top_p, &out->min_p, &out->repetition_penalty, &out->top_k,
                                                       &logprobs, &seed, &out->stream, &purpose);
    Py_XDECREF(nothing);
    out->logprobs = (uint32_t)logprobs;
    out->seed = seed;
    out->purpose = (mimo_purpose)purpose;
    if (!parsed)
        return -1;
    mimo_error err = {0};
    if (mimo_sampling_check(out, &err) != MIMO_OK) {
        mimo_python_raise(&err);
        return -1;
    }
    return 0;
}

typedef struct request {
    mimo_sampling sampling;
    PyArrayObject *logits; /* [V] float32 */
    PyArrayObject *seen;   /* [n] uint32 */
    float *work;           /* [V], a copy of logits that may be overwritten */
    void *scratch;
} request;

static void request_drop(request *r)
{
    mimo_free(r->work);
    mimo_free(r->scratch);
    Py_XDECREF((PyObject *)r->logits);
    Py_XDECREF((PyObject *)r->seen);
}

static int request_make(request *r, PyObject *logits, PyObject *sampling, PyObject *seen)
{
    *r = (request){0};
    if (mimo_probe_sampling(&r->sampling, sampling) < 0)
        return -1;
    r->logits = mimo_python_array(logits, NPY_FLOAT, 1, "logits");
    r->seen = r->logits != NULL ? mimo_python_array(seen, NPY_UINT32, 1, "seen") : NULL;
    if (r->seen == NULL)
        return -1;
    const npy_intp V = PyArray_DIM(r->logits, 0);
    const uint32_t *ids = PyArray_DATA(r->seen);
    npy_intp wrong = PyArray_DIM(r->seen, 0) > V || V == 0;
    for (npy_intp i = 0; i < PyArray_DIM(r->seen, 0); i++)
        wrong |= (npy_intp)ids[i] >= V;
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, "expected at least one logit, and seen to hold distinct ids below V");
        return -1;
    }
    r->work = mimo_alloc((size_t)V * sizeof(float));
    r->scratch = mimo_alloc(mimo_sample_scratch_bytes((size_t)V));
    if (r->work == NULL || r->scratch == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(r->work, PyArray_DATA(r->logits), (size_t)V * sizeof(float));
    return 0;
}

static int request_run(request *r, mimo_choice *out, uint64_t position)
{
    mimo_error err = {0};
    if (mimo_sample(out, r->work, (size_t)PyArray_DIM(r->logits, 0), &r->sampling, position, PyArray_DATA(r->seen),
                    (size_t)PyArray_DIM(r->seen, 0), r->scratch, &err) != MIMO_OK) {
        mimo_python_raise(&err);
        return -1;
    }
    const float *logits = PyArray_DATA(r->logits);
    const uint32_t *seen = PyArray_DATA(r->seen);
    for (npy_intp i = 0; i < PyArray_DIM(r->seen, 0); i++)
        r->work[seen[i]] = logits[seen[i]];
    return 0;
}

/* sample(logits, sampling, position, seen) -> (token, logprob or None, [(token, logprob), ...]). */
static PyObject *sample(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *logits, *sampling, *seen, *result = NULL, *tops = NULL;
    unsigned long long position;
    if (!PyArg_ParseTuple(args, "OO!KO:sample", &logits, &PyDict_Type, &sampling, &position, &seen))
        return NULL;
    request r;
    mimo_choice choice;
    if (request_make(&r, logits, sampling, seen) < 0 || request_run(&r, &choice, position) < 0)
        goto done;
    tops = PyList_New((Py_ssize_t)choice.tops);
    if (tops == NULL)
        goto done;
    for (uint32_t i = 0; i < choice.tops; i++) {
        PyObject *top = Py_BuildValue("Id", choice.top_token[i], (double)choice.top_logprob[i]);
        if (top == NULL || PyList_SetItem(tops, (Py_ssize_t)i, top) < 0)
            goto done;
    }
    result = isnan(choice.logprob) ? Py_BuildValue("IOO", choice.token, Py_None, tops)
                                   : Py_BuildValue("IdO", choice.token, (double)choice.logprob, tops);
done:
    Py_XDECREF(tops);
    request_drop(&r);
    return result;
}

/* sample_many(logits, sampling, first, count, seen, ids) -> tokens [count] uint32 of positions first, first + 1, ... */
static PyObject *sample_many(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *logits, *sampling, *seen, *ids = Py_None, *tokens = NULL;
    PyArrayObject *of = NULL;
    unsigned long long first;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "OO!KnO|O:sample_many", &logits, &PyDict_Type, &sampling, &first, &count, &seen, &ids))
        return NULL;
    request r;
    if (request_make(&r, logits, sampling, seen) < 0)
        goto done;
    if (ids != Py_None) {
        of = mimo_python_array(ids, NPY_UINT32, 1, "ids");
        if (of == NULL)
            goto done;
        if (PyArray_DIM(of, 0) != PyArray_DIM(r.logits, 0)) {
            PyErr_SetString(PyExc_ValueError, "ids: expected one for each logit");
            goto done;
        }
        r.sampling.ids = PyArray_DATA(of);
    }
    npy_intp shape[1] = {count};
    tokens = PyArray_SimpleNew(1, shape, NPY_UINT32);
    for (Py_ssize_t i = 0; tokens != NULL && i < count; i++) {
        mimo_choice choice;
        if (request_run(&r, &choice, first + (uint64_t)i) < 0)
            Py_CLEAR(tokens);
        else
            ((uint32_t *)PyArray_DATA((PyArrayObject *)tokens))[i] = choice.token;
    }
done:
    Py_XDECREF((PyObject *)of);
    request_drop(&r);
    return tokens;
}

PyMethodDef mimo_probe_sample_methods[] = {
    {"philox", philox, METH_VARARGS, "philox(key [2], counters [n, 4]) -> blocks [n, 4] uint32"},
    {"gumbel", gumbel, METH_O, "gumbel([n, 4] uint64 of seed, stream, position, token) -> [n] float64"},
    {"sample", sample, METH_VARARGS,
     "sample(logits, sampling, position, seen) -> (token, logprob or None, [(token, logprob), ...])"},
    {"sample_many", sample_many, METH_VARARGS,
     "sample_many(logits, sampling, first, count, seen, ids=None) -> [count] uint32, the tokens of the positions from\n"
     "first on; places in ids [V], the tokens that the logits are of"},
    {NULL, NULL, 0, NULL},
};
