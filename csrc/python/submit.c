/* Arguments of Engine.submit. */
#include <string.h>

#include "base/alloc.h"
#include "python/module.h"

uint32_t *mimo_python_token_ids(PyObject *sequence, const char *name, size_t *count)
{
    PyArrayObject *array = mimo_python_array(sequence, NPY_INT64, 1, name);
    if (array == NULL)
        return NULL;
    *count = (size_t)PyArray_DIM(array, 0);
    mimo_error err = {0};
    uint32_t *ids;
    if (mimo_alloc_array(&ids, *count, sizeof *ids, name, &err) != MIMO_OK) {
        Py_DECREF((PyObject *)array);
        mimo_python_raise(&err);
        return NULL;
    }
    const int64_t *data = PyArray_DATA(array);
    for (size_t i = 0; i < *count; i++) {
        if (data[i] < 0 || data[i] > UINT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s: item %zu: expected an id of 0 or more, found %lld", name, i,
                         (long long)data[i]);
            mimo_free(ids);
            ids = NULL;
            break;
        }
        ids[i] = (uint32_t)data[i];
    }
    Py_DECREF((PyObject *)array);
    return ids;
}

/* NULL and None give nothing. Returns -1 with an exception. */
static int optional_ids(PyObject *sequence, const char *name, uint32_t **ids, size_t *count)
{
    if (sequence == NULL || sequence == Py_None)
        return 0;
    *ids = mimo_python_token_ids(sequence, name, count);
    return *ids == NULL ? -1 : 0;
}

static int parse_rule(const char *name, mimo_rule *rule)
{
    *rule = strcmp(name, "rejection") == 0 ? MIMO_VERIFY_REJECTION : MIMO_VERIFY_COUPLED;
    if (*rule == MIMO_VERIFY_REJECTION || strcmp(name, "coupled") == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "verify: expected 'coupled' or 'rejection', found '%s'", name);
    return -1;
}

static PyObject *submit(PyObject *self, mimo_engine *engine, const mimo_job_options *options)
{
    mimo_error err = {0};
    mimo_job *job = NULL;
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_engine_submit(engine, options, &job, &err);
    Py_END_ALLOW_THREADS
    const mimo_module_state *state = PyType_GetModuleState(Py_TYPE(self));
    return status == MIMO_OK ? mimo_python_job(state->job_type, self, job) : mimo_python_raise(&err);
}

PyObject *mimo_python_submit(PyObject *self, mimo_engine *engine, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"prompt", "max_new_tokens",     "temperature", "top_k",        "top_p",
                            "min_p",  "repetition_penalty", "seed",        "stream",       "logprobs",
                            "eos",    "queue_bytes",        "speculative", "width",        "verify",
                            "lookup", "argmax_drafts",      "script",      "script_right", NULL};
    PyObject *prompt, *eos = NULL, *script = NULL, *result = NULL;
    Py_ssize_t max_new_tokens = -1, queue_bytes = 65536; /* required: parsing knows no required keyword */
    mimo_sampling s = {.top_p = 1.0f, .repetition_penalty = 1.0f};
    mimo_speculative d = {0};
    unsigned long long seed = 0;
    int logprobs = -1, on = 0, lookup = 0, argmax_drafts = 0;
    const char *rule = "coupled";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$nfIfffKIiOnpIsppOf:submit", names, &prompt, &max_new_tokens,
                                     &s.temperature, &s.top_k, &s.top_p, &s.min_p, &s.repetition_penalty, &seed,
                                     &s.stream, &logprobs, &eos, &queue_bytes, &on, &d.width, &rule, &lookup,
                                     &argmax_drafts, &script, &d.script_right) ||
        parse_rule(rule, &d.rule) < 0)
        return NULL;
    if (max_new_tokens < 1 || queue_bytes < 0)
        return PyErr_Format(PyExc_ValueError, "%s: expected at least %d, found %zd",
                            max_new_tokens < 1 ? "max_new_tokens" : "queue_bytes", max_new_tokens < 1,
                            max_new_tokens < 1 ? max_new_tokens : queue_bytes);
    s.seed = seed;
    s.logprobs = logprobs < 0 ? UINT32_MAX : (uint32_t)logprobs;
    d.on = on != 0;
    d.lookup = lookup != 0;
    d.argmax_drafts = argmax_drafts != 0;
    mimo_job_options o = {.max_new_tokens = (size_t)max_new_tokens, .sampling = s, .queue_bytes = (size_t)queue_bytes};
    uint32_t *eos_ids = NULL, *script_ids = NULL, *ids = mimo_python_token_ids(prompt, "prompt", &o.prompt_count);
    if (ids != NULL && optional_ids(eos, "eos", &eos_ids, &o.eos_count) == 0 &&
        optional_ids(script, "script", &script_ids, &d.script_count) == 0) {
        d.script = script_ids;
        o.prompt = ids;
        o.eos = eos_ids;
        o.speculative = d;
        result = submit(self, engine, &o);
    }
    mimo_free(ids);
    mimo_free(eos_ids);
    mimo_free(script_ids);
    return result;
}
