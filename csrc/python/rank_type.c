/* Rank: one of several GPUs that share a model, planned without a GPU and timed on one (cuda/rank.h). */
#include <string.h>

#include "base/alloc.h"
#include "cuda/cuda.h"
#include "cuda/lower.h"
#include "cuda/rank.h"
#include "cuda/stages.h"
#include "engine/state.h"
#include "python/module.h"

typedef struct rank_object {
    PyObject_HEAD
    PyObject *engine; /* whose weights' descriptions are shared out */
    mimo_rank rank;
} rank_object;

static PyObject *rank_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"engine", "world", "context", "copied", NULL};
    PyObject *engine;
    mimo_rank_options options = {.world = 1, .context = 1};
    unsigned long long copied = 256 << 20;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$IIK:Rank", names, &engine, &options.world, &options.context,
                                     &copied))
        return NULL;
    options.copied = copied;
    PyTypeObject *wanted = ((mimo_module_state *)PyType_GetModuleState(type))->engine_type;
    if (!PyObject_TypeCheck(engine, wanted))
        return PyErr_Format(PyExc_TypeError, "engine: expected an Engine, found %R", (PyObject *)Py_TYPE(engine));
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    rank_object *self = (rank_object *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(engine);
    self->engine = engine;
    const mimo_engine *e = mimo_python_engine(engine);
    mimo_error err = {0};
    if (mimo_rank_shard(&self->rank, &e->config, &e->weights, e->draft, &options, &err) != MIMO_OK) {
        Py_DECREF(self);
        return mimo_python_raise(&err);
    }
    return (PyObject *)self;
}

static void rank_dealloc(rank_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_BEGIN_ALLOW_THREADS
    mimo_rank_close(&self->rank);
    Py_END_ALLOW_THREADS
    Py_XDECREF(self->engine);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- plans ---- */

/* Appends what Py_BuildValue made; -1 with an exception. */
static int append(PyObject *list, PyObject *item)
{
    const int failed = item == NULL || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *rank_memory(rank_object *self, PyObject *args)
{
    unsigned long long available;
    mimo_cuda_memory memory;
    mimo_error err = {0};
    if (!PyArg_ParseTuple(args, "K:memory", &available))
        return NULL;
    if (self->rank.cuda != NULL)
        memory = self->rank.cuda->memory;
    else if (mimo_rank_memory(&memory, &self->rank, available, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    PyObject *list = PyList_New(0);
    const char *what;
    uint64_t bytes;
    for (size_t i = 0; list != NULL && mimo_cuda_memory_item(&memory, i, &what, &bytes); i++)
        if (append(list, Py_BuildValue("(sK)", what, (unsigned long long)bytes)) < 0)
            Py_CLEAR(list);
    return list;
}

static PyObject *rank_operations(rank_object *self, PyObject *unused)
{
    (void)unused;
    const mimo_rank *r = &self->rank;
    mimo_error err = {0};
    mimo_plan *plan;
    if (mimo_alloc_array(&plan, 1, sizeof *plan, "plan", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    PyObject *list = PyList_New(0);
    for (int draft = 0; list != NULL && draft <= (r->has_draft ? 1 : 0); draft++) {
        mimo_plan_build(plan, draft ? &r->draft.config.model : &r->config, MIMO_CUDA_ROWS);
        for (uint32_t i = 0; list != NULL && i < plan->count; i++) {
            const mimo_op *op = &plan->op[i];
            const mimo_rank_bytes b = mimo_rank_op_bytes(r, draft != 0, op);
            const int layer = op->layer == MIMO_NO_LAYER ? -1 : (int)op->layer;
            if (append(list, Py_BuildValue("(isiKKKI)", draft, mimo_op_infos[op->code].name, layer,
                                           (unsigned long long)b.fixed, (unsigned long long)b.expert,
                                           (unsigned long long)b.position, b.window)) < 0)
                Py_CLEAR(list);
        }
    }
    mimo_free(plan);
    return list;
}

/* The rank's tapes with the plans that they are of. */
typedef struct tapes {
    mimo_plan plan[2];
    mimo_tape tape[2];
} tapes;

static mimo_status lower_rank(mimo_queues *queues, tapes *t, const mimo_rank *r, const mimo_gpu *gpu, mimo_error *err)
{
    for (int draft = 0; draft <= (r->has_draft ? 1 : 0); draft++) {
        const mimo_config *config = draft ? &r->draft.config.model : &r->config;
        mimo_plan_build(&t->plan[draft], config, MIMO_TILE_TOKENS);
        t->tape[draft] = (mimo_tape){.plan = &t->plan[draft], .config = config};
        MIMO_TRY(mimo_tape_formats(&t->tape[draft], draft ? &r->draft.weights : &r->weights, err));
    }
    return mimo_lower(queues, &t->tape[0], r->has_draft ? &t->tape[1] : NULL, gpu, err);
}

static const char *const tile_kinds[MIMO_TILE_KINDS] = {
#define MIMO_TILE(kind, text, ...) text,
#include "cuda/tiles.def"
#undef MIMO_TILE
};

static PyObject *stage_list(const mimo_queues *queues, const tapes *t, const mimo_stage *stage)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < queues->counters; i++) {
        const mimo_stage *s = &stage[i];
        const mimo_op *op = &t->plan[s->tape].op[s->op];
        const mimo_tile_shape *shape = &queues->shape[s->tape][s->op];
        PyObject *item = Py_BuildValue(
            "(sssiiKKII(IIIIII))", tile_kinds[s->kind], s->join < MIMO_TILE_KINDS ? tile_kinds[s->join] : "",
            mimo_op_infos[op->code].name, op->layer == MIMO_NO_LAYER ? -1 : (int)op->layer, (int)s->tape,
            (unsigned long long)s->bytes, (unsigned long long)s->busiest, s->tasks, shape->tiles, op->dim[0],
            op->dim[1], op->dim[2], op->dim[3], op->dim[4], op->dim[5]);
        if (append(list, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *rank_stages(rank_object *self, PyObject *args)
{
    mimo_gpu gpu = {.ranks = self->rank.options.world};
    if (!PyArg_ParseTuple(args, "III:stages", &gpu.sms, &gpu.shared_bytes, &gpu.l2_bytes))
        return NULL;
    mimo_error err = {0};
    mimo_queues queues = {0};
    mimo_stage *stage = NULL;
    tapes *t;
    if (mimo_alloc_array(&t, 1, sizeof *t, "tapes", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    PyObject *list = NULL;
    mimo_status status = lower_rank(&queues, t, &self->rank, &gpu, &err);
    if (status == MIMO_OK)
        status = mimo_alloc_array(&stage, queues.counters, sizeof *stage, "stages", &err);
    if (status == MIMO_OK)
        status = mimo_stages_of(stage, &queues, &err);
    if (status == MIMO_OK)
        list = stage_list(&queues, t, stage);
    else
        mimo_python_raise(&err);
    const mimo_shared shared = queues.shared;
    if (queues.begin != NULL)
        mimo_queues_release(&queues);
    mimo_free(stage);
    mimo_free(t);
    return list != NULL ? Py_BuildValue("(NII)", list, shared.ring_bytes, shared.activation_bytes) : NULL;
}

/* ---- on a GPU ---- */

static bool is_open(const rank_object *self)
{
    if (self->rank.cuda == NULL)
        PyErr_SetString(PyExc_ValueError, "rank: expected one that is open on a GPU");
    return self->rank.cuda != NULL;
}

static PyObject *rank_open(rank_object *self, PyObject *args)
{
    unsigned int device;
    const char *path, *image;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "IssK:open", &device, &path, &image, &seed))
        return NULL;
    if (self->rank.cuda != NULL)
        return PyErr_Format(PyExc_ValueError, "rank: it is open already");
    char name[128] = {0};
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_rank_open(&self->rank, device, path, image, seed, name, &err);
    Py_END_ALLOW_THREADS
    if (status != MIMO_OK)
        return mimo_python_raise(&err);
    return PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
}

static PyObject *rank_close(rank_object *self, PyObject *unused)
{
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    mimo_rank_shut(&self->rank);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *rank_draw(rank_object *self, PyObject *object)
{
    const mimo_config *c = &self->rank.config;
    PyArrayObject *experts = is_open(self) ? mimo_python_array(object, NPY_UINT16, 4, "experts") : NULL;
    if (experts == NULL)
        return NULL;
    const npy_intp *dims = PyArray_DIMS(experts);
    if (dims[1] != (npy_intp)c->layers || dims[2] != MIMO_CUDA_ROWS || dims[3] != (npy_intp)c->top_k) {
        Py_DECREF((PyObject *)experts);
        return PyErr_Format(PyExc_ValueError, "experts: expected [sets, %u, %d, %u]", c->layers, MIMO_CUDA_ROWS,
                            c->top_k);
    }
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_rank_draw(&self->rank, PyArray_DATA(experts), (uint32_t)dims[0], &err);
    Py_END_ALLOW_THREADS
    Py_DECREF((PyObject *)experts);
    if (status != MIMO_OK)
        return mimo_python_raise(&err);
    Py_RETURN_NONE;
}

/* What a method times. */
typedef enum timed { COPIES, STEPS, DRAFTS } timed;

static PyObject *time_runs(rank_object *self, timed what, unsigned int rows, unsigned int count)
{
    npy_intp size = count;
    if (!is_open(self))
        return NULL;
    PyObject *array = PyArray_SimpleNew(1, &size, NPY_DOUBLE);
    if (array == NULL)
        return NULL;
    double *seconds = PyArray_DATA((PyArrayObject *)array);
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = what == COPIES  ? mimo_rank_time_copies(&self->rank, seconds, count, &err)
             : what == STEPS ? mimo_rank_time_steps(&self->rank, rows, seconds, count, &err)
                             : mimo_rank_time_drafts(&self->rank, rows, seconds, count, &err);
    Py_END_ALLOW_THREADS
    if (status == MIMO_OK)
        return array;
    Py_DECREF(array);
    return mimo_python_raise(&err);
}

static PyObject *rank_time_copies(rank_object *self, PyObject *args)
{
    unsigned int count;
    return PyArg_ParseTuple(args, "I:time_copies", &count) ? time_runs(self, COPIES, 1, count) : NULL;
}

static PyObject *rank_time_steps(rank_object *self, PyObject *args)
{
    unsigned int rows, count;
    return PyArg_ParseTuple(args, "II:time_steps", &rows, &count) ? time_runs(self, STEPS, rows, count) : NULL;
}

static PyObject *rank_time_drafts(rank_object *self, PyObject *args)
{
    unsigned int rows, count;
    return PyArg_ParseTuple(args, "II:time_drafts", &rows, &count) ? time_runs(self, DRAFTS, rows, count) : NULL;
}

/* A new uint64 array [count, 3] of begin, end and multiprocessor. */
static PyObject *stamp_array(const mimo_stamp *stamp, size_t count)
{
    npy_intp shape[2] = {(npy_intp)count, 3};
    PyObject *array = PyArray_SimpleNew(2, shape, NPY_UINT64);
    uint64_t *to = array != NULL ? PyArray_DATA((PyArrayObject *)array) : NULL;
    for (size_t i = 0; to != NULL && i < count; i++) {
        to[3 * i] = stamp[i].begin;
        to[3 * i + 1] = stamp[i].end;
        to[3 * i + 2] = stamp[i].sm;
    }
    return array;
}

static PyObject *rank_trace(rank_object *self, PyObject *args)
{
    static const char *const kernels[] = {
#define MIMO_CUDA_KERNEL(name) #name,
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL
    };
    unsigned int rows;
    int draft;
    if (!PyArg_ParseTuple(args, "Ip:trace", &rows, &draft) || !is_open(self))
        return NULL;
    mimo_rank_trace trace;
    mimo_error err = {0};
    mimo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mimo_rank_trace_step(&self->rank, rows, draft != 0, &trace, &err);
    Py_END_ALLOW_THREADS
    if (status != MIMO_OK)
        return mimo_python_raise(&err);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < trace.line.launches; i++) {
        const mimo_timeline_launch *l = &trace.line.launch[i];
        const char *name = self->rank.cuda->resident != NULL ? tile_kinds[l->kernel] : kernels[l->kernel];
        if (append(list, Py_BuildValue("(ssiIn)", name, mimo_op_infos[l->code].name,
                                       l->layer == MIMO_NO_LAYER ? -1 : (int)l->layer, l->ctas, (Py_ssize_t)l->first)) <
            0)
            Py_CLEAR(list);
    }
    PyObject *stamps = list != NULL ? stamp_array(trace.stamp, trace.line.used) : NULL;
    mimo_free(trace.line.launch);
    mimo_free(trace.stamp);
    if (stamps == NULL) {
        Py_XDECREF(list);
        return NULL;
    }
    return Py_BuildValue("(NN)", list, stamps);
}

static PyObject *rank_read(rank_object *self, PyObject *args)
{
    unsigned int rows;
    if (!PyArg_ParseTuple(args, "I:read", &rows) || !is_open(self))
        return NULL;
    const mimo_config *c = &self->rank.config;
    npy_intp chosen[2] = {(npy_intp)rows, (npy_intp)c->top_k}, wide[2] = {(npy_intp)rows, (npy_intp)c->vocab};
    PyObject *experts = PyArray_SimpleNew(2, chosen, NPY_UINT16), *logits = PyArray_SimpleNew(2, wide, NPY_FLOAT32);
    mimo_error err = {0};
    mimo_status status = MIMO_ERR_NOMEM;
    if (experts != NULL && logits != NULL) {
        Py_BEGIN_ALLOW_THREADS
        status = mimo_rank_read(&self->rank, rows, PyArray_DATA((PyArrayObject *)experts),
                                PyArray_DATA((PyArrayObject *)logits), &err);
        Py_END_ALLOW_THREADS
        if (status == MIMO_OK)
            return Py_BuildValue("(NN)", experts, logits);
        mimo_python_raise(&err);
    }
    Py_XDECREF(experts);
    Py_XDECREF(logits);
    return NULL;
}

static PyMethodDef rank_methods[] = {
    {"memory", (PyCFunction)(void (*)(void))rank_memory, METH_VARARGS,
     "memory($self, available, /)\n--\n\nWhat would lie where in so many bytes of a GPU."},
    {"operations", (PyCFunction)(void (*)(void))rank_operations, METH_NOARGS,
     "operations($self, /)\n--\n\nThe operations of a step, and of the drafter, with the bytes that they read."},
    {"stages", (PyCFunction)(void (*)(void))rank_stages, METH_VARARGS,
     "stages($self, sms, shared_bytes, l2_bytes, /)\n--\n\nThe stages of a round as queues of tasks, and shared "
     "memory."},
    {"open", (PyCFunction)(void (*)(void))rank_open, METH_VARARGS,
     "open($self, device, path, image, seed, /)\n--\n\nMakes the weights on a GPU, whose name it returns."},
    {"close", (PyCFunction)(void (*)(void))rank_close, METH_NOARGS, "close($self, /)\n--\n\nGives the GPU back."},
    {"draw", (PyCFunction)(void (*)(void))rank_draw, METH_O,
     "draw($self, experts, /)\n--\n\nThe experts that steps choose from now on."},
    {"time_copies", (PyCFunction)(void (*)(void))rank_time_copies, METH_VARARGS,
     "time_copies($self, count, /)\n--\n\nSeconds of copies on the GPU."},
    {"time_steps", (PyCFunction)(void (*)(void))rank_time_steps, METH_VARARGS,
     "time_steps($self, rows, count, /)\n--\n\nSeconds of steps."},
    {"time_drafts", (PyCFunction)(void (*)(void))rank_time_drafts, METH_VARARGS,
     "time_drafts($self, rows, count, /)\n--\n\nSeconds of the drafter's context of so many rows and its block."},
    {"trace", (PyCFunction)(void (*)(void))rank_trace, METH_VARARGS,
     "trace($self, rows, draft, /)\n--\n\nOne step with the time stamps of all CTAs or tasks."},
    {"read", (PyCFunction)(void (*)(void))rank_read, METH_VARARGS,
     "read($self, rows, /)\n--\n\nExperts that the last sparse layer of the last step chose, and its logits."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot rank_slots[] = {
    {Py_tp_new, (void *)rank_new},
    {Py_tp_dealloc, (void *)rank_dealloc},
    {Py_tp_methods, rank_methods},
    {Py_tp_doc,
     "Rank(engine, *, world=1, context=1, copied=268435456)\n--\n\nOne of several GPUs that share an engine's model."},
    {0, NULL},
};

PyType_Spec mimo_rank_spec = {
    .name = "mimo_ultraspeed._core.Rank",
    .basicsize = sizeof(rank_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = rank_slots,
};
