#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/moe.h"
#include "engine/state.h"
#include "python/module.h"
#include "python/probe.h"
#include "python/probe_queue.h"

static const char capsule_name[] = "mimo_ultraspeed._probe.queues";

/* A new array with a copy of count elements, or NULL with an exception. */
static PyObject *array_of(const void *from, size_t count, int type)
{
    npy_intp size = (npy_intp)count;
    PyObject *array = PyArray_SimpleNew(1, &size, type);
    if (array != NULL)
        memcpy(PyArray_DATA((PyArrayObject *)array), from, (size_t)PyArray_NBYTES((PyArrayObject *)array));
    return array;
}

/* moe_sort(chosen, weight, order): chosen [T, K] uint16 and weight [T, K] float32, their entries placed in the given
 * order [T*K] -> (expert [n], begin [n + 1], row [T*K], weight [T*K]). */
static PyObject *moe_sort(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *chosen_obj, *weight_obj, *order_obj, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:moe_sort", &chosen_obj, &weight_obj, &order_obj))
        return NULL;
    PyArrayObject *chosen = mimo_python_array(chosen_obj, NPY_UINT16, 2, "chosen");
    PyArrayObject *weight = chosen != NULL ? mimo_python_array(weight_obj, NPY_FLOAT, 2, "weight") : NULL;
    PyArrayObject *order = weight != NULL ? mimo_python_array(order_obj, NPY_UINT32, 1, "order") : NULL;
    mimo_moe *moe = NULL;
    if (order == NULL)
        goto done;
    const uint32_t entries = (uint32_t)PyArray_SIZE(chosen), K = (uint32_t)PyArray_DIM(chosen, 1);
    if (entries > MIMO_MOE_ENTRIES || PyArray_SIZE(weight) != entries || PyArray_SIZE(order) != entries) {
        PyErr_SetString(PyExc_ValueError, "expected chosen and weight [T, K], order [T*K]");
        goto done;
    }
    mimo_error err = {0};
    if (mimo_alloc_array(&moe, 1, sizeof *moe, "a router's choice", &err) != MIMO_OK) {
        mimo_python_raise(&err);
        goto done;
    }
    const uint32_t *at = PyArray_DATA(order);
    memcpy(moe->chosen, PyArray_DATA(chosen), entries * sizeof *moe->chosen);
    memcpy(moe->share, PyArray_DATA(weight), entries * sizeof *moe->share);
    for (uint32_t i = 0; i < entries; i++)
        mimo_moe_mark(moe, at[i] % entries);
    for (uint32_t i = 0; i < entries; i++)
        mimo_moe_place(moe, entries, K, at[i] % entries);
    result = Py_BuildValue("(NNNN)", array_of(moe->expert, moe->experts, NPY_UINT16),
                           array_of(moe->begin, moe->experts + 1, NPY_UINT16), array_of(moe->row, entries, NPY_UINT8),
                           array_of(moe->weight, entries, NPY_FLOAT));
done:
    mimo_free(moe);
    Py_XDECREF((PyObject *)order);
    Py_XDECREF((PyObject *)weight);
    Py_XDECREF((PyObject *)chosen);
    return result;
}

/* ring_places(sizes, ring_bytes): pages of sizes [n] uint32 one after the other into a ring, from which the oldest are
 * taken only where there is no room -> (where each begins [n], how many are there then [n]). */
static PyObject *ring_places(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *sizes_obj, *result = NULL;
    uint32_t ring_bytes, end = 0, oldest = 0, *begin = NULL;
    if (!PyArg_ParseTuple(args, "OI:ring_places", &sizes_obj, &ring_bytes))
        return NULL;
    PyArrayObject *sizes = mimo_python_array(sizes_obj, NPY_UINT32, 1, "sizes");
    if (sizes == NULL)
        return NULL;
    const uint32_t count = (uint32_t)PyArray_SIZE(sizes), *size = PyArray_DATA(sizes);
    mimo_error err = {0};
    if (mimo_alloc_array(&begin, 2 * (size_t)count + 1, sizeof *begin, "pages of a ring", &err) != MIMO_OK) {
        mimo_python_raise(&err);
        goto done;
    }
    for (uint32_t i = 0; i < count; i++) {
        while (oldest < i && !mimo_ring_has_room(begin[oldest], end, size[i], ring_bytes))
            oldest++;
        begin[i] = mimo_ring_place(end, size[i], ring_bytes);
        end = begin[i] + size[i];
        begin[count + i] = i + 1 - oldest;
    }
    result = Py_BuildValue("(NN)", array_of(begin, count, NPY_UINT32), array_of(begin + count, count, NPY_UINT32));
done:
    mimo_free(begin);
    Py_DECREF((PyObject *)sizes);
    return result;
}

/* ---- queues ---- */

typedef struct lowered {
    PyObject *owner; /* the Engine whose drafter's taps are used */
    mimo_config config[2];
    mimo_plan plan[2];
    mimo_probe_model model;
} lowered;

static void destroy(PyObject *capsule)
{
    lowered *l = PyCapsule_GetPointer(capsule, capsule_name);
    mimo_queues_release(&l->model.q);
    Py_DECREF(l->owner);
    mimo_free(l);
}

static mimo_status lower_tape(lowered *l, uint32_t which, const mimo_config *config, const mimo_weights *weights,
                              uint32_t world, mimo_error *err)
{
    MIMO_TRY(mimo_shard_config(&l->config[which], config, world, err));
    mimo_plan_build(&l->plan[which], &l->config[which], MIMO_TILE_TOKENS);
    mimo_tape *tape = &l->model.tape[which];
    tape->plan = &l->plan[which];
    tape->config = &l->config[which];
    return mimo_tape_formats(tape, weights, err);
}

static mimo_status lower_engine(lowered *l, const mimo_engine *engine, uint32_t world, mimo_error *err)
{
    MIMO_TRY(lower_tape(l, MIMO_TAPE_TARGET, &engine->config, &engine->weights, world, err));
    l->model.has_draft = engine->draft != NULL;
    if (l->model.has_draft) {
        MIMO_TRY(lower_tape(l, MIMO_TAPE_DRAFT, &engine->draft->config.model, &engine->draft->weights, world, err));
        l->model.tap = engine->draft->config.tap;
    }
    return mimo_lower(&l->model.q, &l->model.tape[0], l->model.has_draft ? &l->model.tape[1] : NULL, &l->model.gpu,
                      err);
}

/* lower(engine, sms, shared_bytes, l2_bytes, world, e4m3) -> queues of an idle engine's model and drafter. */
static PyObject *lower(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *owner;
    unsigned int sms, shared, l2, world;
    int e4m3;
    if (!PyArg_ParseTuple(args, "OIIIIp:lower", &owner, &sms, &shared, &l2, &world, &e4m3))
        return NULL;
    const mimo_engine *engine = mimo_python_engine(owner);
    if (engine == NULL)
        return NULL;
    if (world == 0)
        return PyErr_Format(PyExc_ValueError, "world: expected 1 or more ranks, found 0");
    mimo_error err = {0};
    lowered *l;
    if (mimo_alloc_array(&l, 1, sizeof *l, "queues", &err) != MIMO_OK)
        return mimo_python_raise(&err);
    l->model.gpu = (mimo_gpu){.sms = sms, .shared_bytes = shared, .l2_bytes = l2, .ranks = world, .e4m3 = e4m3 != 0};
    if (lower_engine(l, engine, world, &err) != MIMO_OK) {
        mimo_free(l);
        return mimo_python_raise(&err);
    }
    l->owner = owner;
    Py_INCREF(owner);
    return PyCapsule_New(l, capsule_name, destroy);
}

/* (name, layer, dimensions, tile_rows, tiles, splits, k_split, k_page, tile_pages, page_bytes) of each operation. */
static PyObject *shapes_of(const lowered *l, uint32_t which)
{
    const uint32_t count = l->plan[which].count;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        const mimo_tile_shape *s = &l->model.q.shape[which][i];
        const mimo_op *op = &l->plan[which].op[i];
        PyObject *item = Py_BuildValue("(sI(IIIIII)IIIIIII)", mimo_op_infos[op->code].name, op->layer, op->dim[0],
                                       op->dim[1], op->dim[2], op->dim[3], op->dim[4], op->dim[5], s->tile_rows,
                                       s->tiles, s->splits, s->k_split, s->k_page, s->tile_pages, s->page_bytes);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *kinds(void)
{
    static const char *const name[MIMO_TILE_KINDS] = {
#define MIMO_TILE(kind, text, ...) text,
#include "cuda/tiles.def"
#undef MIMO_TILE
    };
    PyObject *list = PyList_New(MIMO_TILE_KINDS);
    for (Py_ssize_t i = 0; list != NULL && i < MIMO_TILE_KINDS; i++)
        PyList_SetItem(list, i, PyUnicode_FromString(name[i]));
    return list;
}

/* queue_tables(queues) -> dict: tasks and joins uint8 [n * 72], begin uint32 [sms + 1], shapes of both tapes, kinds,
 * sizes. */
static PyObject *queue_tables(PyObject *module, PyObject *capsule)
{
    (void)module;
    const lowered *l = PyCapsule_GetPointer(capsule, capsule_name);
    if (l == NULL)
        return NULL;
    const mimo_queues *q = &l->model.q;
    PyObject *draft = l->model.has_draft ? shapes_of(l, MIMO_TAPE_DRAFT) : PyList_New(0);
    return Py_BuildValue("{sNsNsNsNsNsNsIsIsIsIsKsKsKsKsK}", "kinds", kinds(), "tasks",
                         array_of(q->task, (size_t)q->tasks * sizeof *q->task, NPY_UINT8), "joins",
                         array_of(q->join, (size_t)q->joins * sizeof *q->join, NPY_UINT8), "begin",
                         array_of(q->begin, (size_t)q->sms + 1, NPY_UINT32), "shapes", shapes_of(l, MIMO_TAPE_TARGET),
                         "draft_shapes", draft, "counters", q->counters, "columns", q->columns, "ring_bytes",
                         q->shared.ring_bytes, "activation_bytes", q->shared.activation_bytes, "partial_floats",
                         (unsigned long long)q->partial_floats, "attend_floats", (unsigned long long)q->attend_floats,
                         "u_elements", (unsigned long long)q->u_elements, "a_elements",
                         (unsigned long long)q->a_elements, "q_elements", (unsigned long long)q->q_elements);
}

/* shared_use(queues) -> (kernel, role, what, bytes) of the shared memory that CTAs are launched with. */
static PyObject *shared_use(PyObject *module, PyObject *capsule)
{
    (void)module;
    const lowered *l = PyCapsule_GetPointer(capsule, capsule_name);
    if (l == NULL)
        return NULL;
    const mimo_shared *s = &l->model.q.shared;
    const mimo_resident_layout layout = mimo_resident_layout_of(s->fixed_bytes, s->activation_bytes, s->ring_bytes, 0);
    size_t plain = mimo_cuda_scratch_floats(&l->config[MIMO_TAPE_TARGET], MIMO_CUDA_WARPS);
    if (l->model.has_draft)
        plain = mimo_max(plain, mimo_cuda_scratch_floats(&l->config[MIMO_TAPE_DRAFT], MIMO_CUDA_WARPS));
    return Py_BuildValue("[(sssI)(sssI)(sssI)(sssI)(sssn)]", "mimo_resident", "both", "barriers, the launch",
                         (unsigned)MIMO_RESIDENT_SCRATCH, "mimo_resident", "compute", "scratch",
                         layout.activations - MIMO_RESIDENT_SCRATCH, "mimo_resident", "compute", "activations",
                         layout.ring - layout.activations, "mimo_resident", "load", "ring",
                         mimo_resident_layout_end(&layout) - layout.ring, "mimo_plain", "compute", "scratch",
                         (Py_ssize_t)(plain * sizeof(float)));
}

/* shared_limits() -> bytes that a CTA of each kernel may have on sm_90, static and dynamic. */
static PyObject *shared_limits(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return Py_BuildValue("{sisi}", "mimo_resident", MIMO_SM90_SHARED, "mimo_plain", MIMO_CUDA_PLAIN_SHARED);
}

/* Tasks and joins uint8 [n * 72] and begin, of as many SMs as the model's queues have. */
static bool list_of(mimo_probe_list *out, const lowered *l, PyArrayObject *tasks, PyArrayObject *begin,
                    PyArrayObject *joins)
{
    const uint32_t sms = l->model.q.sms;
    const size_t size = sizeof(mimo_tile_task);
    *out = (mimo_probe_list){.task = PyArray_DATA(tasks),
                             .join = PyArray_DATA(joins),
                             .begin = PyArray_DATA(begin),
                             .joins = (uint32_t)((size_t)PyArray_SIZE(joins) / size)};
    bool fits = PyArray_SIZE(begin) == (npy_intp)sms + 1 && (size_t)PyArray_SIZE(joins) % size == 0 &&
                (size_t)PyArray_SIZE(tasks) == out->begin[sms] * size;
    for (uint32_t i = 0; fits && i < sms; i++)
        fits = out->begin[i] <= out->begin[i + 1];
    return fits;
}

/* queue_run(queues, tasks, begin, joins, seed, orders, steps, first_step, bug) -> (what went wrong or None, events,
 * pages, pages asked for before what their task waits for was ready). bug: "", "ring", "compare" or "signal". */
static PyObject *queue_run(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *capsule, *tasks_obj, *begin_obj, *joins_obj, *result = NULL;
    unsigned long long seed;
    mimo_probe_run run = {0};
    const char *bug;
    if (!PyArg_ParseTuple(args, "OOOOKIIIs:queue_run", &capsule, &tasks_obj, &begin_obj, &joins_obj, &seed, &run.orders,
                          &run.steps, &run.first_step, &bug))
        return NULL;
    const lowered *l = PyCapsule_GetPointer(capsule, capsule_name);
    if (l == NULL)
        return NULL;
    run.seed = seed;
    run.ring_overrun = strcmp(bug, "ring") == 0;
    run.plain_compare = strcmp(bug, "compare") == 0;
    run.early_signal = strcmp(bug, "signal") == 0;
    PyArrayObject *tasks = mimo_python_array(tasks_obj, NPY_UINT8, 1, "tasks");
    PyArrayObject *begin = tasks != NULL ? mimo_python_array(begin_obj, NPY_UINT32, 1, "begin") : NULL;
    PyArrayObject *joins = begin != NULL ? mimo_python_array(joins_obj, NPY_UINT8, 1, "joins") : NULL;
    mimo_probe_list list;
    if (joins == NULL)
        goto done;
    if (!list_of(&list, l, tasks, begin, joins) || run.steps < 1 || run.steps > MIMO_PROBE_STEPS) {
        PyErr_SetString(PyExc_ValueError,
                        "queue_run: expected tasks and joins [72 * n], begin ascending to n, few steps");
        goto done;
    }
    char text[320];
    mimo_probe_stats stats;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = mimo_probe_queue_run(text, sizeof text, &stats, &l->model, &list, &run);
    Py_END_ALLOW_THREADS
    if (failed < 0)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("(zKKK)", failed > 0 ? text : NULL, (unsigned long long)stats.events,
                               (unsigned long long)stats.pages, (unsigned long long)stats.early_pages);
done:
    Py_XDECREF((PyObject *)joins);
    Py_XDECREF((PyObject *)begin);
    Py_XDECREF((PyObject *)tasks);
    return result;
}

/* pick(what, rows, K, format, experts, top_k, sms, shared_bytes) -> (tile_rows, tiles, splits, k_split, k_page,
 * tile_pages, page_bytes, expert_pages, activation_bytes) of "split", "whole", "paired", "up" or "down"; format: of
 * pages (cuda/page.h). */
static PyObject *pick(PyObject *module, PyObject *args)
{
    (void)module;
    const char *what;
    unsigned int format;
    mimo_tile_matrix m = {0};
    mimo_gpu gpu = {.ranks = 1};
    if (!PyArg_ParseTuple(args, "sIIIIIII:pick", &what, &m.rows, &m.K, &format, &m.experts, &m.top_k, &gpu.sms,
                          &gpu.shared_bytes))
        return NULL;
    m.format = format;
    m.paired = strcmp(what, "paired") == 0 || strcmp(what, "up") == 0;
    m.whole = strcmp(what, "split") != 0;
    m.reducers = m.whole ? 0 : gpu.sms;
    mimo_shared shared;
    mimo_tile_shape s = {0};
    mimo_error err = {0};
    if (mimo_pick_shared(&shared, &gpu, m.whole ? m.K : 1024, 128, 8192, &err) != MIMO_OK)
        return mimo_python_raise(&err);
    if (strcmp(what, "up") == 0)
        mimo_pick_expert_up(&s, &m, &gpu);
    else if (strcmp(what, "down") == 0)
        mimo_pick_expert_down(&s, &m, &gpu);
    else
        mimo_pick_matrix(&s, &m, &gpu, &shared);
    return Py_BuildValue("(IIIIIIIII)", s.tile_rows, s.tiles, s.splits, s.k_split, s.k_page, s.tile_pages, s.page_bytes,
                         s.expert_pages, shared.activation_bytes);
}

PyMethodDef mimo_probe_lower_methods[] = {
    {"pick", pick, METH_VARARGS, "what, rows, K, format, experts, top_k, sms, shared_bytes -> shape"},
    {"moe_sort", moe_sort, METH_VARARGS, "chosen, weight, order -> (expert, begin, row, weight)"},
    {"ring_places", ring_places, METH_VARARGS, "sizes, ring_bytes -> (begin, held)"},
    {"lower", lower, METH_VARARGS, "engine, sms, shared_bytes, l2_bytes, world, e4m3 -> queues"},
    {"queue_tables", queue_tables, METH_O, "queues -> dict"},
    {"shared_use", shared_use, METH_O, "queues -> [(kernel, role, what, bytes)] at a launch"},
    {"shared_limits", shared_limits, METH_NOARGS, "() -> {kernel: bytes of shared memory of a CTA on sm_90}"},
    {"queue_run", queue_run, METH_VARARGS,
     "queues, tasks, begin, joins, seed, orders, steps, first_step, bug -> (text or None, events, pages, early pages)"},
    {NULL, NULL, 0, NULL},
};
