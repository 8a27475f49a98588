#include <math.h>

#include "python/module.h"

/* Between looks for Ctrl-C. */
static const double signal_seconds = 0.05;

typedef struct job_object {
    PyObject_HEAD
    PyObject *engine; /* kept alive */
    mimo_job *job;
    int raised; /* the job's error has been raised once */
} job_object;

PyObject *mimo_python_job(PyTypeObject *type, PyObject *engine, mimo_job *job)
{
    job_object *self = PyObject_New(job_object, type);
    if (self == NULL) {
        mimo_job_release(job);
        return NULL;
    }
    self->engine = Py_NewRef(engine);
    self->job = job;
    self->raised = 0;
    return (PyObject *)self;
}

static void job_dealloc(job_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    mimo_job_release(self->job);
    Py_DECREF(self->engine);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* (logprob, [(token, logprob), ...]) */
static PyObject *logprob_tuple(const mimo_choice *choice)
{
    PyObject *tops = PyList_New(choice->tops);
    for (uint32_t i = 0; tops != NULL && i < choice->tops; i++) {
        PyObject *pair = Py_BuildValue("(If)", choice->top_token[i], choice->top_logprob[i]);
        if (pair == NULL || PyList_SetItem(tops, i, pair) < 0)
            Py_CLEAR(tops);
    }
    return tops != NULL ? Py_BuildValue("(fN)", choice->logprob, tops) : NULL;
}

enum { STEP_TOKENS = 32 }; /* most tokens of one step of a job */

static PyObject *event_tuple(const mimo_token *token, size_t count)
{
    PyObject *ids = PyList_New((Py_ssize_t)count);
    PyObject *logprobs = isnan(token[0].choice.logprob) ? Py_NewRef(Py_None) : PyList_New((Py_ssize_t)count);
    int failed = ids == NULL || logprobs == NULL;
    for (size_t i = 0; !failed && i < count; i++) {
        PyObject *id = PyLong_FromUnsignedLong(token[i].choice.token);
        failed = id == NULL || PyList_SetItem(ids, (Py_ssize_t)i, id) < 0;
        if (!failed && logprobs != Py_None) {
            PyObject *item = logprob_tuple(&token[i].choice);
            failed = item == NULL || PyList_SetItem(logprobs, (Py_ssize_t)i, item) < 0;
        }
    }
    PyObject *event =
        failed ? NULL
               : Py_BuildValue("(OdOii)", ids, token[count - 1].seconds, logprobs, token[0].accepted, token[0].drafted);
    Py_XDECREF(ids);
    Py_XDECREF(logprobs);
    return event;
}

static PyObject *job_next(job_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:next", names, &timeout))
        return NULL;
    double left = timeout == Py_None ? INFINITY : PyFloat_AsDouble(timeout);
    if (PyErr_Occurred())
        return NULL;
    for (;;) {
        const double wait = left < signal_seconds ? left : signal_seconds;
        bool readable;
        Py_BEGIN_ALLOW_THREADS
        readable = mimo_job_wait(self->job, wait);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            return NULL;
        left -= wait;
        if (readable || left <= 0)
            break;
    }
    mimo_token token[STEP_TOKENS];
    const size_t count = mimo_job_take(self->job, token, STEP_TOKENS);
    if (count > 0)
        return event_tuple(token, count);
    size_t waiting;
    mimo_error error = {0};
    if (mimo_job_state(self->job, &waiting, &error) == MIMO_FINISH_ERROR && !self->raised) {
        self->raised = 1;
        return mimo_python_raise(&error);
    }
    Py_RETURN_NONE;
}

static PyObject *job_cancel(job_object *self, PyObject *unused)
{
    (void)unused;
    mimo_job_cancel(self->job);
    Py_RETURN_NONE;
}

/* Adds to a list; 0, or -1 with an exception. Takes the item. */
static int append(PyObject *list, PyObject *item)
{
    const int failed = item == NULL || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

enum { ROUND_FIELDS = 7, ROUNDS_AT_ONCE = 256 };

static int append_round(PyObject *const *list, const mimo_round *r)
{
    const long counts[] = {r->width, r->width - 1, r->accepted, r->emitted, r->lookup};
    int failed = 0;
    for (size_t i = 0; i < 5 && !failed; i++)
        failed = append(list[i], PyLong_FromLong(counts[i])) < 0;
    return failed || append(list[5], PyFloat_FromDouble((double)r->draft_seconds)) < 0 ||
                   append(list[6], PyFloat_FromDouble((double)r->verify_seconds)) < 0
               ? -1
               : 0;
}

/* {"width": [...], ...}; None where nothing was drafted. */
static PyObject *rounds_dict(const mimo_job *job)
{
    if (!mimo_job_drafts(job))
        Py_RETURN_NONE;
    static const char *const names[ROUND_FIELDS] = {"width",  "drafted",       "accepted",      "emitted",
                                                    "lookup", "draft_seconds", "verify_seconds"};
    PyObject *list[ROUND_FIELDS], *rounds = PyDict_New();
    int failed = rounds == NULL;
    for (size_t i = 0; i < ROUND_FIELDS && !failed; i++) {
        list[i] = PyList_New(0);
        failed = list[i] == NULL || PyDict_SetItemString(rounds, names[i], list[i]) < 0;
        Py_XDECREF(list[i]); /* the dict keeps it */
    }
    mimo_round some[ROUNDS_AT_ONCE];
    for (size_t first = 0, left = 1; left > 0 && !failed;) {
        left = mimo_job_read_rounds(job, first, some, ROUNDS_AT_ONCE);
        const size_t n = left < ROUNDS_AT_ONCE ? left : ROUNDS_AT_ONCE;
        for (size_t i = 0; i < n && !failed; i++)
            failed = append_round(list, &some[i]) < 0;
        first += n;
        left -= n;
    }
    if (failed)
        Py_CLEAR(rounds);
    return rounds;
}

static PyObject *job_stats(job_object *self, PyObject *unused)
{
    (void)unused;
    const mimo_job_stats s = mimo_job_read_stats(self->job);
    return Py_BuildValue("{sK sK sK sK sd sd sd sd sI sN}", "prompt_tokens", s.prompt_tokens, "cached_tokens",
                         s.cached_tokens, "completion_tokens", s.completion_tokens, "steps", s.steps, "queue_seconds",
                         s.queue_seconds, "prefill_seconds", s.prefill_seconds, "decode_seconds", s.decode_seconds,
                         "first_token_seconds", s.first_token_seconds, "block", mimo_job_block(self->job), "rounds",
                         rounds_dict(self->job));
}

static PyObject *job_done(job_object *self, void *unused)
{
    (void)unused;
    size_t waiting;
    mimo_error error;
    const mimo_finish finish = mimo_job_state(self->job, &waiting, &error);
    return PyBool_FromLong(finish != MIMO_RUNNING && waiting == 0);
}

static PyObject *job_finish_reason(job_object *self, void *unused)
{
    (void)unused;
    static const char *const names[] = {[MIMO_RUNNING] = NULL,
                                        [MIMO_FINISH_EOS] = "eos",
                                        [MIMO_FINISH_LENGTH] = "length",
                                        [MIMO_FINISH_CANCELLED] = "cancelled",
                                        [MIMO_FINISH_ERROR] = "error"};
    size_t waiting;
    mimo_error error;
    return Py_BuildValue("z", names[mimo_job_state(self->job, &waiting, &error)]);
}

static PyMethodDef job_methods[] = {
    {"next", (PyCFunction)(void (*)(void))job_next, METH_VARARGS | METH_KEYWORDS,
     "next($self, /, timeout=None)\n--\n\nThe next step's tokens, or None."},
    {"cancel", (PyCFunction)job_cancel, METH_NOARGS, "cancel($self, /)\n--\n\nEnds the answer within one step."},
    {"stats", (PyCFunction)job_stats, METH_NOARGS, "stats($self, /)\n--\n\nCounts and times of this answer."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef job_properties[] = {
    {"done", (getter)job_done, NULL, "No event will come any more.", NULL},
    {"finish_reason", (getter)job_finish_reason, NULL, "Why the answer ended; None while it runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot job_slots[] = {
    {Py_tp_doc, "One answer being decoded. Made by Engine.submit."},
    {Py_tp_dealloc, job_dealloc},
    {Py_tp_methods, job_methods},
    {Py_tp_getset, job_properties},
    {0, NULL},
};

PyType_Spec mimo_job_spec = {
    .name = "mimo_ultraspeed._core.Job",
    .basicsize = sizeof(job_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = job_slots,
};
