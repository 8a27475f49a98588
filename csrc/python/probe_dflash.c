/* Verification, prompt lookup and the choice of widths, by name. */
#include <string.h>

#include "base/alloc.h"
#include "dflash/lookup.h"
#include "dflash/width.h"
#include "python/probe.h"

/* noise_counter(purpose, stream, position, token) -> (a, b, c, d), the counter whose block gives the noise. */
static PyObject *noise_counter(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int purpose, stream, token;
    unsigned long long position;
    if (!PyArg_ParseTuple(args, "IIKI:noise_counter", &purpose, &stream, &position, &token))
        return NULL;
    const mimo_noise noise = {.position = position, .stream = stream, .purpose = (mimo_purpose)purpose};
    uint32_t c[4];
    mimo_noise_counter(c, &noise, token);
    return Py_BuildValue("(IIII)", c[0], c[1], c[2], c[3]);
}

/* uniform(purpose, seed, stream, position) -> float. */
static PyObject *uniform(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int purpose, stream;
    unsigned long long seed, position;
    if (!PyArg_ParseTuple(args, "IKIK:uniform", &purpose, &seed, &stream, &position))
        return NULL;
    const mimo_noise noise = {seed, position, stream, (mimo_purpose)purpose};
    return PyFloat_FromDouble(mimo_uniform(&noise));
}

/* reject_one(p, q or None, draft, accept, residual) -> (token, kept). */
static PyObject *reject_one(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *p_object, *q_object, *result = NULL;
    unsigned int draft;
    double accept, residual;
    if (!PyArg_ParseTuple(args, "OOIdd:reject_one", &p_object, &q_object, &draft, &accept, &residual))
        return NULL;
    PyArrayObject *p = mimo_python_array(p_object, NPY_DOUBLE, 1, "p"), *q = NULL;
    if (p != NULL && q_object != Py_None)
        q = mimo_python_array(q_object, NPY_DOUBLE, 1, "q");
    if (p != NULL && (q != NULL || q_object == Py_None)) {
        bool kept;
        const uint32_t token = mimo_reject_one(PyArray_DATA(p), q != NULL ? PyArray_DATA(q) : NULL,
                                               (size_t)PyArray_DIM(p, 0), draft, accept, residual, &kept);
        result = Py_BuildValue("(IN)", token, PyBool_FromLong(kept));
    }
    Py_XDECREF((PyObject *)p);
    Py_XDECREF((PyObject *)q);
    return result;
}

/* The parts of a verification, as arrays and as a mimo_block. */
typedef struct verification {
    PyArrayObject *logits, *draft, *drawn_from, *seen;
    mimo_sampling sampling;
    float *work; /* [rows, V] a copy of logits */
    float *row[MIMO_BLOCK_ROWS];
    double *laws; /* [2, V] */
    void *scratch;
    mimo_seen tokens;
} verification;

static void verification_drop(verification *v)
{
    Py_XDECREF((PyObject *)v->logits);
    Py_XDECREF((PyObject *)v->draft);
    Py_XDECREF((PyObject *)v->drawn_from);
    Py_XDECREF((PyObject *)v->seen);
    mimo_free(v->work);
    mimo_free(v->laws);
    mimo_free(v->scratch);
    mimo_free(v->tokens.ids);
    mimo_free(v->tokens.bits);
}

static int verification_fill(verification *v, size_t rows, size_t V)
{
    v->work = mimo_alloc(rows * V * sizeof(float));
    v->laws = mimo_alloc(2 * V * sizeof(double));
    v->scratch = mimo_alloc(mimo_sample_scratch_bytes(V));
    v->tokens.ids = mimo_alloc((V + MIMO_BLOCK_ROWS) * sizeof(uint32_t));
    v->tokens.bits = mimo_alloc((V / 64 + 1) * sizeof(uint64_t));
    if (v->work == NULL || v->laws == NULL || v->scratch == NULL || v->tokens.ids == NULL || v->tokens.bits == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(v->work, PyArray_DATA(v->logits), rows * V * sizeof(float));
    memset(v->tokens.bits, 0, (V / 64 + 1) * sizeof(uint64_t));
    const uint32_t *seen = PyArray_DATA(v->seen);
    for (npy_intp i = 0; i < PyArray_DIM(v->seen, 0); i++)
        mimo_seen_add(&v->tokens, seen[i]);
    for (size_t k = 0; k + 1 < rows; k++)
        v->row[k] = v->drawn_from != NULL ? (float *)PyArray_DATA(v->drawn_from) + k * V : NULL;
    return 0;
}

static int verification_make(verification *v, PyObject *logits, PyObject *draft, PyObject *drawn_from, PyObject *seen)
{
    v->logits = mimo_python_array(logits, NPY_FLOAT, 2, "logits");
    v->draft = v->logits != NULL ? mimo_python_array(draft, NPY_UINT32, 1, "draft") : NULL;
    v->seen = v->draft != NULL ? mimo_python_array(seen, NPY_UINT32, 1, "seen") : NULL;
    if (v->seen == NULL)
        return -1;
    if (drawn_from != Py_None && (v->drawn_from = mimo_python_array(drawn_from, NPY_FLOAT, 2, "drawn_from")) == NULL)
        return -1;
    const npy_intp rows = PyArray_DIM(v->logits, 0), V = PyArray_DIM(v->logits, 1);
    const int fits = rows >= 1 && rows <= MIMO_BLOCK_ROWS && PyArray_DIM(v->draft, 0) == rows - 1;
    const int drawn_fits =
        v->drawn_from == NULL || (PyArray_DIM(v->drawn_from, 0) == rows - 1 && PyArray_DIM(v->drawn_from, 1) == V);
    if (!fits || !drawn_fits) {
        PyErr_SetString(PyExc_ValueError, "expected logits [rows, V], draft [rows - 1], drawn_from [rows - 1, V]");
        return -1;
    }
    return verification_fill(v, (size_t)rows, (size_t)V);
}

/* verify(rule, logits, draft, drawn_from or None, sampling, position, seen) -> (tokens, accepted, seen afterwards). */
static PyObject *verify(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *logits, *draft, *drawn_from, *sampling, *seen, *result = NULL;
    const char *rule;
    unsigned long long position;
    if (!PyArg_ParseTuple(args, "sOOOO!KO:verify", &rule, &logits, &draft, &drawn_from, &PyDict_Type, &sampling,
                          &position, &seen))
        return NULL;
    verification v = {0};
    mimo_verdict verdict;
    mimo_error err = {0};
    if (mimo_probe_sampling(&v.sampling, sampling) < 0 || verification_make(&v, logits, draft, drawn_from, seen) < 0)
        goto done;
    const size_t V = (size_t)PyArray_DIM(v.logits, 1), before = v.tokens.count;
    const mimo_block block = {
        .sampling = &v.sampling,
        .position = position,
        .rows = (size_t)PyArray_DIM(v.logits, 0),
        .V = V,
        .draft = PyArray_DATA(v.draft),
        .logits = v.work,
        .stride = V,
        .drawn_from = v.row,
        .p = v.laws,
        .q = v.laws + V,
    };
    const mimo_status status = strcmp(rule, "rejection") == 0
                                   ? mimo_verify_rejection(&verdict, &block, &v.tokens, v.scratch, &err)
                                   : mimo_verify_coupled(&verdict, &block, &v.tokens, v.scratch, &err);
    if (status != MIMO_OK) {
        mimo_python_raise(&err);
        goto done;
    }
    PyObject *tokens = PyList_New((Py_ssize_t)verdict.chosen);
    for (size_t k = 0; tokens != NULL && k < verdict.chosen; k++)
        if (PyList_SetItem(tokens, (Py_ssize_t)k, PyLong_FromUnsignedLong(verdict.choice[k].token)) < 0)
            Py_CLEAR(tokens);
    if (tokens != NULL)
        result =
            Py_BuildValue("(NnN)", tokens, (Py_ssize_t)verdict.accepted, PyBool_FromLong(v.tokens.count == before));
done:
    verification_drop(&v);
    return result;
}

/* sample_law(logits, sampling, seen) -> law [V] float64. */
static PyObject *sample_law(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *logits, *sampling, *seen, *law = NULL;
    if (!PyArg_ParseTuple(args, "OO!O:sample_law", &logits, &PyDict_Type, &sampling, &seen))
        return NULL;
    mimo_sampling s;
    mimo_error err = {0};
    float *work = NULL;
    void *scratch = NULL;
    PyArrayObject *row = mimo_python_array(logits, NPY_FLOAT, 1, "logits");
    PyArrayObject *ids = row != NULL ? mimo_python_array(seen, NPY_UINT32, 1, "seen") : NULL;
    if (ids == NULL || mimo_probe_sampling(&s, sampling) < 0)
        goto done;
    const size_t V = (size_t)PyArray_DIM(row, 0);
    work = mimo_alloc(V * sizeof(float));
    scratch = mimo_alloc(mimo_sample_scratch_bytes(V));
    law = work != NULL && scratch != NULL ? PyArray_SimpleNew(1, PyArray_DIMS(row), NPY_DOUBLE) : PyErr_NoMemory();
    if (law == NULL)
        goto done;
    memcpy(work, PyArray_DATA(row), V * sizeof(float));
    if (mimo_sample_law(PyArray_DATA((PyArrayObject *)law), work, V, &s, 0, PyArray_DATA(ids),
                        (size_t)PyArray_DIM(ids, 0), scratch, &err) != MIMO_OK) {
        mimo_python_raise(&err);
        Py_CLEAR(law);
    } else if (memcmp(work, PyArray_DATA(row), V * sizeof(float)) != 0) {
        PyErr_SetString(PyExc_AssertionError, "sample_law changed the logits");
        Py_CLEAR(law);
    }
done:
    Py_XDECREF((PyObject *)row);
    Py_XDECREF((PyObject *)ids);
    mimo_free(work);
    mimo_free(scratch);
    return law;
}

/* look_up(tokens, known, n) -> for each of `known` (ascending lengths of the sequence) (match length, place, n drafts),
 * from one index that grows. */
static PyObject *look_up(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *tokens_object, *known_object, *result = NULL;
    unsigned int n;
    if (!PyArg_ParseTuple(args, "OOI:look_up", &tokens_object, &known_object, &n))
        return NULL;
    PyArrayObject *tokens = mimo_python_array(tokens_object, NPY_UINT32, 1, "tokens");
    PyArrayObject *known = tokens != NULL ? mimo_python_array(known_object, NPY_UINT32, 1, "known") : NULL;
    mimo_lookup lookup = {0};
    mimo_error err = {0};
    uint32_t out[MIMO_BLOCK_ROWS];
    if (known == NULL || n > MIMO_BLOCK_ROWS)
        goto done;
    if (mimo_lookup_open(&lookup, (size_t)PyArray_DIM(tokens, 0), &err) != MIMO_OK) {
        mimo_python_raise(&err);
        goto done;
    }
    result = PyList_New(0);
    const uint32_t *ids = PyArray_DATA(tokens), *lengths = PyArray_DATA(known);
    for (npy_intp i = 0; result != NULL && i < PyArray_DIM(known, 0); i++) {
        const mimo_match match = mimo_lookup_find(&lookup, ids, lengths[i]);
        if (match.length > 0)
            mimo_match_continue(&match, ids, lengths[i], out, n);
        PyObject *drafts = PyList_New(match.length > 0 ? n : 0);
        for (unsigned int k = 0; drafts != NULL && match.length > 0 && k < n; k++)
            PyList_SetItem(drafts, k, PyLong_FromUnsignedLong(out[k]));
        PyObject *item = Py_BuildValue("(nnN)", (Py_ssize_t)match.length, (Py_ssize_t)match.at, drafts);
        if (item == NULL || PyList_Append(result, item) < 0)
            Py_CLEAR(result);
        Py_XDECREF(item);
    }
done:
    mimo_lookup_close(&lookup);
    Py_XDECREF((PyObject *)tokens);
    Py_XDECREF((PyObject *)known);
    return result;
}

/* step_times(measured [129], observed [n, 2] of rows and seconds) -> [129] seconds by rows. */
static PyObject *times(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *measured_object, *observed_object, *out = NULL;
    if (!PyArg_ParseTuple(args, "OO:step_times", &measured_object, &observed_object))
        return NULL;
    PyArrayObject *measured = mimo_python_array(measured_object, NPY_DOUBLE, 1, "measured");
    PyArrayObject *observed = measured != NULL ? mimo_python_array(observed_object, NPY_DOUBLE, 2, "observed") : NULL;
    if (observed != NULL && PyArray_DIM(measured, 0) == MIMO_TIMED_ROWS + 1) {
        mimo_times t;
        mimo_times_init(&t, PyArray_DATA(measured));
        const double *pair = PyArray_DATA(observed);
        for (npy_intp i = 0; i < PyArray_DIM(observed, 0); i++, pair += 2)
            mimo_times_observe(&t, (size_t)pair[0], pair[1]);
        out = PyArray_SimpleNew(1, PyArray_DIMS(measured), NPY_DOUBLE);
        for (size_t r = 0; out != NULL && r <= MIMO_TIMED_ROWS; r++)
            ((double *)PyArray_DATA((PyArrayObject *)out))[r] = mimo_times_of(&t, r);
    } else if (observed != NULL) {
        PyErr_SetString(PyExc_ValueError, "expected measured [129]");
    }
    Py_XDECREF((PyObject *)measured);
    Py_XDECREF((PyObject *)observed);
    return out;
}

/* widths(chance [jobs, n], least [jobs], others, room, seconds [129], draft_seconds) -> (rows [jobs], gain). */
static PyObject *widths(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *chance_object, *least_object, *seconds_object, *rows = NULL;
    Py_ssize_t others, room;
    double draft_seconds, gain = 0.0;
    if (!PyArg_ParseTuple(args, "OOnnOd:widths", &chance_object, &least_object, &others, &room, &seconds_object,
                          &draft_seconds))
        return NULL;
    PyArrayObject *chance = mimo_python_array(chance_object, NPY_DOUBLE, 2, "chance");
    PyArrayObject *least = chance != NULL ? mimo_python_array(least_object, NPY_INT64, 1, "least") : NULL;
    PyArrayObject *seconds = least != NULL ? mimo_python_array(seconds_object, NPY_DOUBLE, 1, "seconds") : NULL;
    if (seconds == NULL || PyArray_DIM(seconds, 0) != MIMO_TIMED_ROWS + 1 || PyArray_DIM(chance, 0) > 32 ||
        PyArray_DIM(chance, 1) >= MIMO_BLOCK_ROWS || PyArray_DIM(least, 0) != PyArray_DIM(chance, 0)) {
        if (seconds != NULL)
            PyErr_SetString(PyExc_ValueError, "expected chance [jobs <= 32, < 16], least [jobs], seconds [129]");
        goto done;
    }
    mimo_bid bid[32];
    const size_t count = (size_t)PyArray_DIM(chance, 0), n = (size_t)PyArray_DIM(chance, 1);
    for (size_t i = 0; i < count; i++) {
        bid[i] = (mimo_bid){.least = (size_t)((const int64_t *)PyArray_DATA(least))[i], .most = n + 1};
        for (size_t k = 0; k < n; k++)
            bid[i].chance[k] = (float)((const double *)PyArray_DATA(chance))[i * n + k];
    }
    mimo_times t;
    mimo_times_init(&t, PyArray_DATA(seconds));
    gain = mimo_width_choose(bid, count, (size_t)others, (size_t)room, &t, draft_seconds);
    rows = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; rows != NULL && i < count; i++)
        PyList_SetItem(rows, (Py_ssize_t)i, PyLong_FromSize_t(bid[i].rows));
done:
    Py_XDECREF((PyObject *)chance);
    Py_XDECREF((PyObject *)least);
    Py_XDECREF((PyObject *)seconds);
    return rows != NULL ? Py_BuildValue("(Nd)", rows, gain) : NULL;
}

/* trust(origin, grades [n, slots] uint8, drafts [n, slots], tokens [n, came]) -> rates [slots, 8] after n rounds. */
static PyObject *trust(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *objects[3], *out = NULL;
    unsigned int origin;
    if (!PyArg_ParseTuple(args, "IOOO:trust", &origin, &objects[0], &objects[1], &objects[2]))
        return NULL;
    PyArrayObject *grade = mimo_python_array(objects[0], NPY_UINT8, 2, "grades");
    PyArrayObject *draft = grade != NULL ? mimo_python_array(objects[1], NPY_UINT32, 2, "drafts") : NULL;
    PyArrayObject *token = draft != NULL ? mimo_python_array(objects[2], NPY_UINT32, 2, "tokens") : NULL;
    mimo_trust *t = token != NULL ? mimo_alloc(sizeof *t) : NULL;
    if (t != NULL && origin < MIMO_ORIGINS && PyArray_DIM(grade, 1) < MIMO_BLOCK_ROWS) {
        const size_t slots = (size_t)PyArray_DIM(grade, 1), came = (size_t)PyArray_DIM(token, 1);
        mimo_trust_init(t);
        for (size_t i = 0; i < (size_t)PyArray_DIM(grade, 0); i++)
            mimo_trust_observe(t, (mimo_origin)origin, false, (const uint8_t *)PyArray_DATA(grade) + i * slots,
                               (const uint32_t *)PyArray_DATA(draft) + i * slots, slots,
                               (const uint32_t *)PyArray_DATA(token) + i * came, came);
        npy_intp shape[2] = {(npy_intp)slots, MIMO_GRADES};
        out = PyArray_SimpleNew(2, shape, NPY_FLOAT);
        for (size_t i = 0; out != NULL && i < slots * MIMO_GRADES; i++)
            ((float *)PyArray_DATA((PyArrayObject *)out))[i] =
                mimo_trust_rate(t, (mimo_origin)origin, false, i / MIMO_GRADES, (uint8_t)(i % MIMO_GRADES));
    } else if (t != NULL) {
        PyErr_SetString(PyExc_ValueError, "expected an origin below 3 and at most 15 slots");
    }
    mimo_free(t);
    Py_XDECREF((PyObject *)grade);
    Py_XDECREF((PyObject *)draft);
    Py_XDECREF((PyObject *)token);
    return out;
}

/* patience(gains [n]) -> [n] whether drafting was tried in each round, which gains as much if it is. */
static PyObject *patience(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *gains_object;
    if (!PyArg_ParseTuple(args, "O:patience", &gains_object))
        return NULL;
    PyArrayObject *gains = mimo_python_array(gains_object, NPY_DOUBLE, 1, "gains");
    PyObject *out = gains != NULL ? PyList_New(PyArray_DIM(gains, 0)) : NULL;
    mimo_patience p = {0};
    for (npy_intp i = 0; out != NULL && i < PyArray_DIM(gains, 0); i++) {
        const bool tried = mimo_patience_allows(&p);
        if (tried)
            mimo_patience_learn(&p, ((const double *)PyArray_DATA(gains))[i]);
        PyList_SetItem(out, i, PyBool_FromLong(tried));
    }
    Py_XDECREF((PyObject *)gains);
    return out;
}

/* usual_time(seconds [n]) -> [n] what is usual after each. */
static PyObject *usual_time(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *seconds_object;
    if (!PyArg_ParseTuple(args, "O:usual_time", &seconds_object))
        return NULL;
    PyArrayObject *seconds = mimo_python_array(seconds_object, NPY_DOUBLE, 1, "seconds");
    PyObject *out = seconds != NULL ? PyList_New(PyArray_DIM(seconds, 0)) : NULL;
    double usual = 0.0;
    for (npy_intp i = 0; out != NULL && i < PyArray_DIM(seconds, 0); i++)
        PyList_SetItem(out, i, PyFloat_FromDouble(mimo_usual_time(&usual, ((const double *)PyArray_DATA(seconds))[i])));
    Py_XDECREF((PyObject *)seconds);
    return out;
}

PyMethodDef mimo_probe_dflash_methods[] = {
    {"noise_counter", noise_counter, METH_VARARGS, "noise_counter(purpose, stream, position, token) -> counter"},
    {"uniform", uniform, METH_VARARGS, "uniform(purpose, seed, stream, position) -> float"},
    {"reject_one", reject_one, METH_VARARGS, "reject_one(p, q, draft, accept, residual) -> (token, kept)"},
    {"verify", verify, METH_VARARGS,
     "verify(rule, logits, draft, drawn_from, sampling, position, seen) -> (tokens, accepted, seen is as it was)"},
    {"sample_law", sample_law, METH_VARARGS, "sample_law(logits, sampling, seen) -> [V] float64"},
    {"look_up", look_up, METH_VARARGS, "look_up(tokens, known, n) -> [(length, place, drafts)]"},
    {"step_times", times, METH_VARARGS, "step_times(measured, observed) -> [129] float64"},
    {"widths", widths, METH_VARARGS, "widths(chance, least, others, room, seconds, draft_seconds) -> (rows, gain)"},
    {"usual_time", usual_time, METH_VARARGS, "usual_time(seconds) -> [what is usual after each]"},
    {"patience", patience, METH_VARARGS, "patience(gains) -> [whether each round drafted]"},
    {"trust", trust, METH_VARARGS, "trust(origin, grades, drafts, tokens) -> rates [slots, 8]"},
    {NULL, NULL, 0, NULL},
};
