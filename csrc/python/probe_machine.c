/* The resident engine on the host (cuda/host_machine.h). */
#include <string.h>

#include "base/size.h"
#include "python/module.h"
#include "python/probe_model.h"

static PyObject *machine_open(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    unsigned ctas, shared_bytes;
    if (!PyArg_ParseTuple(args, "OII:machine_open", &capsule, &ctas, &shared_bytes))
        return NULL;
    mimo_probe_model *m = mimo_probe_model_of(capsule);
    if (m == NULL)
        return NULL;
    const mimo_engine *e = m->engine;
    const mimo_gpu gpu = {.sms = ctas, .shared_bytes = shared_bytes, .l2_bytes = 1 << 20};
    const mimo_host_model target = {m->target, &e->weights},
                          draft = {m->draft, e->draft != NULL ? &e->draft->weights : NULL};
    mimo_host_machine_close(m->machine);
    mimo_error err = {0};
    if (mimo_host_machine_open(&m->machine, &target, &draft, e->draft != NULL ? &e->draft->config : NULL, &gpu, &err) !=
        MIMO_OK)
        return mimo_python_raise(&err);
    return Py_BuildValue("{s:I,s:I,s:I}", "tasks", m->machine->queues.tasks, "stages", m->machine->queues.counters,
                         "ring_bytes", m->machine->queues.shared.ring_bytes);
}

/* The prompt as an array, and its round begun; -1 with an exception. */
static int begin(mimo_probe_model *m, PyObject *prompt, unsigned limit)
{
    PyArrayObject *array = mimo_python_array(prompt, NPY_UINT32, 1, "prompt");
    if (array == NULL)
        return -1;
    const size_t count = (size_t)PyArray_DIM(array, 0);
    int failed = -1;
    if (m->machine == NULL || count < 1 || count >= limit || limit > m->target->positions)
        PyErr_Format(PyExc_ValueError,
                     "machine_run: expected an open machine and fewer tokens than the limit, at most %u",
                     m->target->positions);
    else
        failed = 0;
    if (failed == 0)
        mimo_host_machine_begin(m->machine, PyArray_DATA(array), (uint32_t)count, limit);
    Py_DECREF((PyObject *)array);
    return failed;
}

/* What was proposed behind `known` tokens, and whether it was looked up. */
typedef struct proposal {
    uint32_t known, looked_up, count, token[MIMO_TILE_TOKENS];
} proposal;

/* Those after each launch: at most one for every token. */
typedef struct proposals {
    uint32_t count;
    proposal *all; /* [limit] */
} proposals;

static void note_proposal(proposals *noted, const mimo_host_machine *machine)
{
    const mimo_tile_round *r = &machine->round;
    const mimo_cuda_step *next = machine->machine.target.step;
    if (r->start + 1 != r->known || next->rows < 2)
        return;
    proposal *p = &noted->all[noted->count++];
    *p = (proposal){.known = r->known, .looked_up = r->looked_up, .count = next->rows - 1};
    memcpy(p->token, next->token + 1, p->count * sizeof *p->token);
}

static PyObject *list_of(const proposals *noted)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < noted->count; i++) {
        const proposal *p = &noted->all[i];
        npy_intp shape[1] = {p->count};
        PyObject *tokens = PyArray_SimpleNew(1, shape, NPY_UINT32);
        if (tokens != NULL)
            memcpy(PyArray_DATA((PyArrayObject *)tokens), p->token, p->count * sizeof *p->token);
        PyObject *one = tokens != NULL ? Py_BuildValue("INN", p->known, tokens, PyBool_FromLong(p->looked_up)) : NULL;
        if (one == NULL || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

static PyObject *result_of(const mimo_host_machine *machine, const proposals *noted)
{
    const mimo_tile_round *r = &machine->round;
    if (machine->lost.lost) {
        char text[256];
        mimo_queues_say(text, sizeof text, &machine->queues, &machine->lost);
        return PyErr_Format(PyExc_RuntimeError, "the machine is lost: %s", text);
    }
    const mimo_cuda_step *step = machine->machine.target.step;
    npy_intp shape[1] = {r->known}, rows[2] = {MIMO_TILE_TOKENS, (npy_intp)step->logits_stride};
    PyObject *tokens = PyArray_SimpleNew(1, shape, NPY_UINT32), *logits = PyArray_SimpleNew(2, rows, NPY_FLOAT32);
    PyObject *drafts = list_of(noted);
    if (tokens == NULL || logits == NULL || drafts == NULL) {
        Py_XDECREF(tokens);
        Py_XDECREF(logits);
        Py_XDECREF(drafts);
        return NULL;
    }
    memcpy(PyArray_DATA((PyArrayObject *)tokens), r->token, r->known * sizeof *r->token);
    memcpy(PyArray_DATA((PyArrayObject *)logits), step->logits, (size_t)(rows[0] * rows[1]) * sizeof *step->logits);
    return Py_BuildValue("{s:N,s:N,s:N,s:I,s:I,s:I}", "tokens", tokens, "logits", logits, "drafts", drafts, "rounds",
                         r->rounds, "accepted", r->accepted, "failed", r->failed);
}

static PyObject *machine_run(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *prompt, *script;
    unsigned limit, width, rounds, stop;
    int lookup;
    float temperature;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "OOIIfKIIOp:machine_run", &capsule, &prompt, &limit, &width, &temperature, &seed,
                          &rounds, &stop, &script, &lookup))
        return NULL;
    mimo_probe_model *m = mimo_probe_model_of(capsule);
    PyArrayObject *drafts = m != NULL ? mimo_python_array(script, NPY_UINT32, 1, "script") : NULL;
    proposals noted = {.all = drafts != NULL ? PyMem_New(proposal, limit) : NULL};
    if (drafts != NULL && noted.all == NULL)
        PyErr_NoMemory();
    if (noted.all == NULL || begin(m, prompt, limit) < 0) {
        PyMem_Free(noted.all);
        Py_XDECREF((PyObject *)drafts);
        return NULL;
    }
    const uint32_t scripted = (uint32_t)PyArray_DIM(drafts, 0), *draft = PyArray_DATA(drafts);
    mimo_tile_round *r = &m->machine->round;
    r->width = width;
    r->lookup = (uint32_t)lookup;
    r->temperature = temperature;
    r->seed = seed;
    r->stop[0] = stop;
    r->stops = 1;
    Py_BEGIN_ALLOW_THREADS
    while (!r->done && !m->machine->lost.lost) {
        mimo_host_machine_run(m->machine, rounds);
        note_proposal(&noted, m->machine);
        if (r->known < scripted)
            mimo_host_machine_propose(m->machine, draft + r->known, scripted - r->known);
    }
    Py_END_ALLOW_THREADS
    Py_DECREF((PyObject *)drafts);
    PyObject *result = result_of(m->machine, &noted);
    PyMem_Free(noted.all);
    return result;
}

static PyObject *machine_look_up(PyObject *self, PyObject *arg)
{
    (void)self;
    PyArrayObject *text = mimo_python_array(arg, NPY_UINT32, 1, "text");
    if (text == NULL)
        return NULL;
    float *scratch = PyMem_New(float, mimo_tile_scratch_floats(1, 0, 0));
    mimo_tile_match match = {0};
    if (scratch != NULL)
        match = mimo_host_look_up(PyArray_DATA(text), (uint32_t)PyArray_DIM(text, 0), scratch);
    Py_DECREF((PyObject *)text);
    if (scratch == NULL)
        return PyErr_NoMemory();
    PyMem_Free(scratch);
    return Py_BuildValue("II", match.length, match.at);
}

static PyObject *machine_break(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    unsigned task, patience;
    if (!PyArg_ParseTuple(args, "OII:machine_break", &capsule, &task, &patience))
        return NULL;
    mimo_probe_model *m = mimo_probe_model_of(capsule);
    if (m == NULL || m->machine == NULL || task >= m->machine->queues.tasks)
        return PyErr_Format(PyExc_ValueError, "machine_break: expected an open machine and one of its tasks");
    m->machine->queues.task[task].wait_count++;
    m->machine->ctas.patience = patience * (uint64_t)1000000;
    Py_RETURN_NONE;
}

PyMethodDef mimo_probe_machine_methods[] = {
    {"machine_break", machine_break, METH_VARARGS,
     "(model, task, milliseconds): lets a task wait for a signal that never comes, and waits be that long"},
    {"machine_open", machine_open, METH_VARARGS, "(model, ctas, shared bytes): queues, pages and CTAs; what they are"},
    {"machine_run", machine_run, METH_VARARGS,
     "(model, prompt, limit, width, temperature, seed, rounds of a launch, stop id, script, lookup): tokens, rounds, "
     "drafts accepted, after each launch how many tokens are known, what is proposed behind them and whether it was "
     "looked up, and the logits [8, V] of the last step's rows; script: what is proposed at each position instead"},
    {"machine_look_up", machine_look_up, METH_O,
     "text: how many of its last tokens it had before, and the place after them"},
    {NULL, NULL, 0, NULL},
};
