#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "plan/plan.h"
#include "python/checkpoint.h"
#include "python/module.h"

static const double progress_seconds = 0.1; /* between progress calls, and looks for Ctrl-C */

typedef struct engine_object {
    PyObject_HEAD
    mimo_engine *engine;
    mimo_python_tensors tensors; /* names, which the engine borrows */
    mimo_python_draft draft;     /* the same of the drafter, if has_draft */
    bool has_draft;
    PyObject *paths; /* a tuple of bytes, whose text the engine borrows */
} engine_object;

mimo_engine *mimo_python_engine(PyObject *engine)
{
    return ((engine_object *)engine)->engine;
}

/* ---- arguments ---- */

static PyObject *encode_paths(PyObject *files)
{
    PyObject *sequence = PySequence_Tuple(files);
    const Py_ssize_t count = sequence != NULL ? PyTuple_Size(sequence) : 0;
    PyObject *out = sequence != NULL ? PyTuple_New(count) : NULL;
    for (Py_ssize_t i = 0; out != NULL && i < count; i++) {
        PyObject *path = NULL;
        if (!PyUnicode_FSConverter(PyTuple_GetItem(sequence, i), &path) || PyTuple_SetItem(out, i, path) < 0)
            Py_CLEAR(out);
    }
    Py_XDECREF(sequence);
    return out;
}

/* Ends with an exception if the call failed; waits for it without the GIL and calls progress(done, total) meanwhile. */
static int finish_call(engine_object *self, mimo_call *call, PyObject *progress, uint64_t total)
{
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_engine_post(self->engine, call, &err);
    Py_END_ALLOW_THREADS
    if (status != MIMO_OK) {
        mimo_python_raise(&err);
        return -1;
    }
    int failed = 0;
    for (bool done = false; !done;) {
        Py_BEGIN_ALLOW_THREADS
        done = mimo_call_wait(self->engine, call, progress_seconds);
        Py_END_ALLOW_THREADS
        if (failed)
            continue; /* cancelled: the exception is set, the driver must still let go of the call */
        failed = PyErr_CheckSignals() < 0;
        if (!failed && progress != NULL && progress != Py_None) {
            PyObject *result = PyObject_CallFunction(progress, "KK", (unsigned long long)atomic_load(&call->progress),
                                                     (unsigned long long)total);
            failed = result == NULL;
            Py_XDECREF(result);
        }
        if (failed)
            atomic_store(&call->cancel, true);
    }
    if (!failed && call->error.code != MIMO_OK)
        mimo_python_raise(&call->error);
    return failed || call->error.code != MIMO_OK ? -1 : 0;
}

/* ---- making and freeing ---- */

static int engine_open(engine_object *self, PyObject *config_object, PyObject *tensors, PyObject *files,
                       PyObject *draft, const mimo_engine_options *options)
{
    mimo_config config;
    if (mimo_python_config(&config, config_object) < 0 || mimo_python_tensors_read(&self->tensors, tensors) < 0)
        return -1;
    if (draft != Py_None) {
        if (mimo_python_draft_read(&self->draft, draft) < 0)
            return -1;
        self->has_draft = true;
    }
    self->paths = encode_paths(files);
    if (self->paths == NULL)
        return -1;
    const size_t count = (size_t)PyTuple_Size(self->paths);
    mimo_error err = {0};
    const char **paths;
    mimo_status status = mimo_alloc_array(&paths, count, sizeof *paths, "file names", &err);
    if (status == MIMO_OK) {
        for (size_t i = 0; i < count; i++)
            paths[i] = PyBytes_AsString(PyTuple_GetItem(self->paths, (Py_ssize_t)i));
        Py_BEGIN_ALLOW_THREADS
        status = mimo_engine_open(&self->engine, options, &config, self->tensors.tensor, self->tensors.count,
                                  self->has_draft ? &self->draft.source : NULL, paths, count, &err);
        Py_END_ALLOW_THREADS
        mimo_free(paths);
    }
    if (status != MIMO_OK)
        mimo_python_raise(&err);
    return status == MIMO_OK ? 0 : -1;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"config",       "tensors", "files", "precision", "threads", "max_context", "variant",
                            "memory_limit", "draft",   "pin",   "device",    "image",   "nodes",       NULL};
    PyObject *config, *tensors, *files, *draft = Py_None, *nodes = NULL;
    const char *precision = "fast", *variant = NULL, *image = NULL;
    unsigned int threads = 0, max_context = 0;
    unsigned long long memory_limit = 0;
    int pin = 0, device = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$sIIzKOpizO:Engine", names, &config, &tensors, &files,
                                     &precision, &threads, &max_context, &variant, &memory_limit, &draft, &pin, &device,
                                     &image, &nodes))
        return NULL;
    mimo_nodes by_node = {0};
    if (nodes != NULL && mimo_python_nodes(&by_node, nodes) < 0)
        return NULL;
    if (device >= 0 && image == NULL)
        return PyErr_Format(PyExc_ValueError, "image: expected the file of the GPU's kernels, found None");
    if (strcmp(precision, "fast") != 0 && strcmp(precision, "exact") != 0)
        return PyErr_Format(PyExc_ValueError, "precision: expected 'fast' or 'exact', found '%s'", precision);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    engine_object *self = (engine_object *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    const mimo_engine_options options = {.exact = strcmp(precision, "exact") == 0,
                                         .pin = pin != 0,
                                         .threads = threads,
                                         .nodes = &by_node,
                                         .max_context = max_context,
                                         .memory_limit = memory_limit,
                                         .variant = variant,
                                         .cuda = device >= 0,
                                         .device = device >= 0 ? (uint32_t)device : 0,
                                         .image = image};
    if (engine_open(self, config, tensors, files, draft, &options) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void engine_dealloc(engine_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_BEGIN_ALLOW_THREADS
    mimo_engine_free(self->engine);
    Py_END_ALLOW_THREADS
    mimo_python_tensors_free(&self->tensors);
    mimo_python_draft_free(&self->draft);
    Py_XDECREF(self->paths);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *engine_close(engine_object *self, PyObject *unused)
{
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    mimo_engine_close(self->engine);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- work ---- */

static PyObject *engine_load(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"progress", NULL};
    PyObject *progress = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:load", names, &progress))
        return NULL;
    mimo_call call = {.kind = MIMO_CALL_LOAD};
    if (finish_call(self, &call, progress, mimo_engine_load_bytes(self->engine)) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *engine_submit(engine_object *self, PyObject *args, PyObject *kwargs)
{
    return mimo_python_submit((PyObject *)self, self->engine, args, kwargs);
}

static size_t step_rows(Py_ssize_t step)
{
    return step > 0 ? mimo_min((size_t)step, MIMO_STEP_ROWS) : MIMO_STEP_ROWS;
}

/* array[:, :columns] */
static PyObject *first_columns(PyObject *array, npy_intp columns)
{
    if (array == NULL || PyArray_DIM((PyArrayObject *)array, 1) == columns)
        return array;
    PyObject *all = PySlice_New(NULL, NULL, NULL), *stop = PyLong_FromSsize_t(columns);
    PyObject *some = stop != NULL ? PySlice_New(NULL, stop, NULL) : NULL;
    PyObject *key = all != NULL && some != NULL ? PyTuple_Pack(2, all, some) : NULL;
    PyObject *view = key != NULL ? PyObject_GetItem(array, key) : NULL;
    Py_XDECREF(all);
    Py_XDECREF(stop);
    Py_XDECREF(some);
    Py_XDECREF(key);
    Py_DECREF(array);
    return view;
}

static PyObject *engine_logits(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "step", NULL};
    PyObject *tokens;
    Py_ssize_t step = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|n:logits", names, &tokens, &step))
        return NULL;
    mimo_call call = {.kind = MIMO_CALL_FORWARD, .rows = step_rows(step)};
    uint32_t *ids = mimo_python_token_ids(tokens, "tokens", &call.count);
    if (ids == NULL)
        return NULL;
    const npy_intp V = mimo_engine_config(self->engine)->vocab;
    npy_intp shape[2] = {(npy_intp)call.count, (npy_intp)mimo_round_up((size_t)V, 8)};
    PyObject *array = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (array != NULL) {
        call.tokens = ids;
        call.logits = PyArray_DATA((PyArrayObject *)array);
        call.logits_stride = (size_t)shape[1];
        if (finish_call(self, &call, NULL, 0) < 0)
            Py_CLEAR(array);
    }
    mimo_free(ids);
    return first_columns(array, V);
}

static PyObject *engine_hidden_states(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "layers", "step", NULL};
    PyObject *tokens, *layers;
    Py_ssize_t step = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|n:hidden_states", names, &tokens, &layers, &step))
        return NULL;
    mimo_call call = {.kind = MIMO_CALL_FORWARD, .rows = step_rows(step)};
    uint32_t *ids = mimo_python_token_ids(tokens, "tokens", &call.count);
    uint32_t *taps = ids != NULL ? mimo_python_token_ids(layers, "layers", &call.tap_count) : NULL;
    PyObject *array = NULL;
    if (taps != NULL) {
        npy_intp shape[3] = {(npy_intp)call.tap_count, (npy_intp)call.count, mimo_engine_config(self->engine)->hidden};
        array = PyArray_SimpleNew(3, shape, NPY_FLOAT32);
    }
    if (array != NULL) {
        call.tokens = ids;
        call.taps = taps;
        call.hidden = PyArray_DATA((PyArrayObject *)array);
        if (finish_call(self, &call, NULL, 0) < 0)
            Py_CLEAR(array);
    }
    mimo_free(ids);
    mimo_free(taps);
    return array;
}

static PyObject *engine_draft_logits(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "anchors", "step", NULL};
    PyObject *tokens, *anchors;
    Py_ssize_t step = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|n:draft_logits", names, &tokens, &anchors, &step))
        return NULL;
    const mimo_draft_config *draft = mimo_engine_draft(self->engine);
    const npy_intp V = draft != NULL ? draft->model.vocab : 0, B = draft != NULL ? draft->model.block : 1;
    mimo_call call = {.kind = MIMO_CALL_DRAFT, .rows = step_rows(step)};
    uint32_t *ids = mimo_python_token_ids(tokens, "tokens", &call.count);
    uint32_t *positions = ids != NULL ? mimo_python_token_ids(anchors, "anchors", &call.anchor_count) : NULL;
    PyObject *array = NULL;
    if (positions != NULL) {
        npy_intp shape[2] = {(npy_intp)call.anchor_count * (B - 1), (npy_intp)mimo_round_up((size_t)V, 8)};
        array = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
        call.logits_stride = (size_t)shape[1];
    }
    if (array != NULL) {
        call.tokens = ids;
        call.anchors = positions;
        call.logits = PyArray_DATA((PyArrayObject *)array);
        if (finish_call(self, &call, NULL, 0) < 0)
            Py_CLEAR(array);
    }
    mimo_free(ids);
    mimo_free(positions);
    return first_columns(array, V);
}

static PyObject *engine_plan(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "draft", NULL};
    unsigned int rows = 1;
    int of_draft = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Ip:plan", names, &rows, &of_draft))
        return NULL;
    const mimo_draft_config *draft = mimo_engine_draft(self->engine);
    if (of_draft && draft == NULL)
        return PyErr_Format(PyExc_ValueError, "draft: this engine was opened without a drafter");
    if (rows < 1 || rows > MIMO_STEP_ROWS)
        return PyErr_Format(PyExc_ValueError, "rows: expected 1 to %d, found %u", MIMO_STEP_ROWS, rows);
    mimo_error err = {0};
    mimo_plan *plan;
    if (mimo_alloc_array(&plan, 1, sizeof *plan, "plan", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    mimo_plan_build(plan, of_draft ? &draft->model : mimo_engine_config(self->engine), rows);
    const size_t length = mimo_plan_dump(NULL, 0, plan);
    char *text;
    PyObject *result = NULL;
    if (mimo_alloc_array(&text, length + 1, 1, "plan text", &err) == MIMO_OK) {
        mimo_plan_dump(text, length + 1, plan);
        result = PyUnicode_FromStringAndSize(text, (Py_ssize_t)length);
        mimo_free(text);
    } else {
        mimo_python_raise(&err);
    }
    mimo_free(plan);
    return result;
}

static PyObject *engine_memory(engine_object *self, PyObject *unused)
{
    (void)unused;
    const mimo_memory m = mimo_engine_memory(self->engine);
    return Py_BuildValue("{sK sK sK sK sK sK sK sK sK}", "weights", m.weights, "draft_weights", m.draft_weights,
                         "embedding", m.embedding, "workspace", m.workspace, "kv_per_position", m.kv_per_position,
                         "kv_fixed", m.kv_fixed, "total", m.weights + m.embedding + m.workspace, "read_per_token",
                         m.read_per_token, "limit", mimo_engine_memory_limit(self->engine));
}

static PyObject *profile_dict(const mimo_profile *p)
{
    PyObject *ops = PyDict_New();
    for (size_t i = 0; ops != NULL && i < MIMO_OP_COUNT; i++) {
        if (p->op[i].calls == 0)
            continue;
        PyObject *entry = Py_BuildValue("{sK sK sK sK sK sK}", "calls", p->op[i].calls, "busy_ns", p->op[i].busy_ns,
                                        "wait_ns", p->op[i].wait_ns, "wall_ns", p->op[i].wall_ns, "bytes",
                                        p->op[i].bytes, "macs", p->op[i].macs);
        if (entry == NULL || PyDict_SetItemString(ops, mimo_op_infos[i].name, entry) < 0)
            Py_CLEAR(ops);
        Py_XDECREF(entry);
    }
    return ops != NULL
               ? Py_BuildValue("{sK sK sK sN}", "steps", p->steps, "rows", p->rows, "total_ns", p->total_ns, "ops", ops)
               : NULL;
}

static PyObject *engine_profile(engine_object *self, PyObject *args)
{
    int on;
    if (!PyArg_ParseTuple(args, "p:profile", &on))
        return NULL;
    mimo_profile target = {0}, drafter = {0};
    mimo_call call = {.kind = MIMO_CALL_PROFILE, .profile = &target, .draft_profile = &drafter, .profile_on = on != 0};
    PyObject *out = finish_call(self, &call, NULL, 0) == 0 ? profile_dict(&target) : NULL;
    if (out == NULL || mimo_engine_draft(self->engine) == NULL)
        return out;
    PyObject *draft = profile_dict(&drafter);
    if (draft == NULL || PyDict_SetItemString(out, "draft", draft) < 0)
        Py_CLEAR(out);
    Py_XDECREF(draft);
    return out;
}

/* An int64 array [repeats, widths] of ns, or NULL with an exception. */
static PyObject *time_steps(engine_object *self, mimo_call *call, PyObject *widths, Py_ssize_t context,
                            Py_ssize_t repeats)
{
    if (context < 0 || repeats < 1)
        return PyErr_Format(PyExc_ValueError, "%s: expected %d or more, found %zd", context < 0 ? "context" : "repeats",
                            context >= 0, context < 0 ? context : repeats);
    uint32_t *rows = mimo_python_token_ids(widths, "widths", &call->width_count);
    npy_intp shape[2] = {repeats, (npy_intp)call->width_count};
    PyObject *array = rows != NULL ? PyArray_SimpleNew(2, shape, NPY_INT64) : NULL;
    if (array != NULL) {
        call->kind = MIMO_CALL_TIME_STEPS;
        call->widths = rows;
        call->repeats = (size_t)repeats;
        call->context = (size_t)context;
        call->step_ns = PyArray_DATA((PyArrayObject *)array);
        if (finish_call(self, call, NULL, 0) < 0)
            Py_CLEAR(array);
    }
    mimo_free(rows);
    return array;
}

static PyObject *engine_step_times(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"widths", "context", "repeats", NULL};
    PyObject *widths;
    Py_ssize_t context = 32, repeats = 3;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$nn:step_times", names, &widths, &context, &repeats))
        return NULL;
    mimo_call call = {0};
    return time_steps(self, &call, widths, context, repeats);
}

static PyObject *engine_step_profile(engine_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"width", "context", "repeats", NULL};
    Py_ssize_t width, context = 32, repeats = 3;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|$nn:step_profile", names, &width, &context, &repeats))
        return NULL;
    mimo_profile profile = {0};
    mimo_call call = {.profile = &profile};
    PyObject *widths = Py_BuildValue("[n]", width);
    PyObject *times = widths != NULL ? time_steps(self, &call, widths, context, repeats) : NULL;
    PyObject *result = times != NULL ? profile_dict(&profile) : NULL;
    Py_XDECREF(widths);
    Py_XDECREF(times);
    return result;
}

/* ---- properties ---- */

static PyObject *get_loaded(engine_object *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(mimo_engine_is_loaded(self->engine));
}

static PyObject *get_threads(engine_object *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mimo_engine_threads(self->engine));
}

static PyObject *get_backend(engine_object *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mimo_engine_backend(self->engine));
}

static PyObject *get_variant(engine_object *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mimo_engine_variant(self->engine));
}

static PyObject *get_precision(engine_object *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mimo_engine_is_exact(self->engine) ? "exact" : "fast");
}

static PyObject *get_max_context(engine_object *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mimo_engine_max_context(self->engine));
}

static PyObject *get_block(engine_object *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mimo_engine_block(self->engine));
}

static PyMethodDef engine_methods[] = {
    {"load", (PyCFunction)(void (*)(void))engine_load, METH_VARARGS | METH_KEYWORDS,
     "load($self, /, progress=None)\n--\n\nReads and packs the weights on all threads."},
    {"close", (PyCFunction)engine_close, METH_NOARGS, "close($self, /)\n--\n\nEnds every job and frees the weights."},
    {"submit", (PyCFunction)(void (*)(void))engine_submit, METH_VARARGS | METH_KEYWORDS,
     "submit($self, /, prompt, *, max_new_tokens, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, "
     "repetition_penalty=1.0, seed=0, stream=0, logprobs=-1, eos=(), queue_bytes=65536, speculative=False, width=0, "
     "verify='coupled', lookup=False, argmax_drafts=False, script=None, script_right=0.0)\n--\n\nStarts decoding after "
     "a prompt."},
    {"logits", (PyCFunction)(void (*)(void))engine_logits, METH_VARARGS | METH_KEYWORDS,
     "logits($self, /, tokens, step=0)\n--\n\nfloat32 [T, V]: logits after each token."},
    {"hidden_states", (PyCFunction)(void (*)(void))engine_hidden_states, METH_VARARGS | METH_KEYWORDS,
     "hidden_states($self, /, tokens, layers, step=0)\n--\n\nfloat32 [len(layers), T, H]: residual stream after "
     "layers."},
    {"draft_logits", (PyCFunction)(void (*)(void))engine_draft_logits, METH_VARARGS | METH_KEYWORDS,
     "draft_logits($self, /, tokens, anchors, step=0)\n--\n\nfloat32 [len(anchors) * (B - 1), V']: the drafter's "
     "logits behind some tokens."},
    {"plan", (PyCFunction)(void (*)(void))engine_plan, METH_VARARGS | METH_KEYWORDS,
     "plan($self, /, rows=1, draft=False)\n--\n\nThe tape of a step, as text."},
    {"profile", (PyCFunction)engine_profile, METH_VARARGS,
     "profile($self, on, /)\n--\n\nWhat was counted since the last call; then counting goes on or stops."},
    {"step_times", (PyCFunction)(void (*)(void))engine_step_times, METH_VARARGS | METH_KEYWORDS,
     "step_times($self, /, widths, *, context=32, repeats=3)\n--\n\nint64 [repeats, len(widths)]: ns of a step of each "
     "width."},
    {"step_profile", (PyCFunction)(void (*)(void))engine_step_profile, METH_VARARGS | METH_KEYWORDS,
     "step_profile($self, /, width, *, context=32, repeats=3)\n--\n\nWhat steps of that width counted, as profile "
     "does."},
    {"memory", (PyCFunction)engine_memory, METH_NOARGS, "memory($self, /)\n--\n\nBytes by use."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef engine_properties[] = {
    {"loaded", (getter)get_loaded, NULL, "Whether the weights are in memory.", NULL},
    {"threads", (getter)get_threads, NULL, "Worker threads.", NULL},
    {"backend", (getter)get_backend, NULL, "What runs the model: 'cpu' or 'cuda'.", NULL},
    {"variant", (getter)get_variant, NULL, "Name of the kernels in use.", NULL},
    {"precision", (getter)get_precision, NULL, "'fast' or 'exact'.", NULL},
    {"max_context", (getter)get_max_context, NULL, "Positions of a sequence.", NULL},
    {"block", (getter)get_block, NULL, "Most rows of a round.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "Engine(config, tensors, files, *, precision='fast', threads=0, max_context=0, variant=None, "
                "memory_limit=0, draft=None, pin=False, device=-1, image=None, nodes=())\n--\n\n"
                "A model and the worker threads that run it."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, engine_methods},
    {Py_tp_getset, engine_properties},
    {0, NULL},
};

PyType_Spec mimo_engine_spec = {
    .name = "mimo_ultraspeed._core.Engine",
    .basicsize = sizeof(engine_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};
