/* Every kernel of every variant, by name. Arrays are checked only as far as a wrong test must not crash. */
#include "python/probe.h"

#include "base/alloc.h"
#include "cpu/cpu.h"
#include "cpu/kernels.h"

#include <math.h>
#include <string.h>

static const mimo_kernels *kernels_named(const char *name)
{
    mimo_error err = {0};
    const mimo_kernels *kernels;
    if (mimo_kernels_choose(&kernels, name, &err) == MIMO_OK)
        return kernels;
    mimo_python_raise(&err);
    return NULL;
}

/* kernel_variants() -> {name: None where it runs, else why not}; kernel_choose(name) -> name of the variant chosen */
static PyObject *kernel_variants(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    PyObject *variants = PyDict_New();
    for (size_t i = 0; variants != NULL && mimo_kernel_names[i] != NULL; i++) {
        const char *why;
        mimo_kernels_find(mimo_kernel_names[i], &why);
        PyObject *value = Py_BuildValue("z", why);
        if (value == NULL || PyDict_SetItemString(variants, mimo_kernel_names[i], value) < 0)
            Py_CLEAR(variants);
        Py_XDECREF(value);
    }
    return variants;
}

static PyObject *kernel_choose(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "z", &name))
        return NULL;
    const mimo_kernels *kernels = kernels_named(name);
    return kernels != NULL ? PyUnicode_FromString(kernels->name) : NULL;
}

enum { MAX_ARRAYS = 8 };

/* Arrays held during one call, arguments and results. */
typedef struct held {
    PyArrayObject *array[MAX_ARRAYS];
    size_t count;
} held;

static void *hold(held *arrays, PyObject *obj, int type, int rank, const char *name)
{
    PyArrayObject *array = mimo_python_array(obj, type, rank, name);
    if (array == NULL)
        return NULL;
    arrays->array[arrays->count++] = array;
    return PyArray_DATA(array);
}

/* A new C-contiguous array; floats are NaN so that what a kernel does not write shows. cols < 0: of rank 1. */
static PyArrayObject *new_array(held *arrays, int type, npy_intp rows, npy_intp cols)
{
    npy_intp shape[2] = {rows, cols};
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(cols < 0 ? 1 : 2, shape, type);
    if (array == NULL)
        return NULL;
    for (npy_intp i = 0; type == NPY_FLOAT32 && i < PyArray_SIZE(array); i++)
        ((float *)PyArray_DATA(array))[i] = NAN;
    return arrays->array[arrays->count++] = array;
}

static void release(held *arrays)
{
    while (arrays->count > 0)
        Py_DECREF((PyObject *)arrays->array[--arrays->count]);
}

static npy_intp held_dim(const held *arrays, size_t i, int axis)
{
    return PyArray_DIM(arrays->array[i], axis);
}

static int packing_named(const char *name)
{
    for (int p = 0; p < MIMO_PACK_COUNT; p++)
        if (strcmp(mimo_packing_name((mimo_packing)p), name) == 0)
            return p;
    PyErr_Format(PyExc_ValueError, "packing: \"%s\" is not known", name);
    return -1;
}

/* Fills the panel from held arrays 0 (data) and 1 (scales), both bytes. */
static int panel_fill(mimo_panel *panel, held *arrays, PyObject *data, PyObject *scales, Py_ssize_t rows,
                      Py_ssize_t cols)
{
    panel->rows = (uint32_t)rows;
    panel->cols = (uint32_t)cols;
    panel->data = hold(arrays, data, NPY_UINT8, 1, "data");
    if (panel->data == NULL)
        return -1;
    panel->scales = hold(arrays, scales, NPY_UINT8, 1, "scales");
    if (panel->scales == NULL)
        return -1;
    const size_t octets = mimo_panel_octets(panel);
    if ((size_t)held_dim(arrays, 0, 0) == octets * mimo_panel_octet_bytes(panel->packing, panel->cols) &&
        (size_t)held_dim(arrays, 1, 0) == octets * mimo_panel_octet_scale_bytes(panel->packing, panel->cols))
        return 0;
    PyErr_SetString(PyExc_ValueError, "data, scales: not the bytes of such a panel");
    return -1;
}

/* Fills the activations: x is an array [N, K] (exact) or (q [N, K], d [N, K/32], s [N, K/32]). Returns N or -1. */
static npy_intp act_fill(mimo_act *act, held *arrays, PyObject *x, Py_ssize_t cols)
{
    const size_t first = arrays->count;
    if (PyTuple_Check(x)) {
        PyObject *q, *d, *s;
        if (!PyArg_ParseTuple(x, "OOO", &q, &d, &s))
            return -1;
        act->q = hold(arrays, q, NPY_INT8, 2, "q");
        act->d = act->q != NULL ? hold(arrays, d, NPY_FLOAT32, 2, "d") : NULL;
        act->s = act->d != NULL ? hold(arrays, s, NPY_INT32, 2, "s") : NULL;
        if (act->s == NULL)
            return -1;
    } else {
        act->f = hold(arrays, x, NPY_FLOAT32, 2, "x");
        if (act->f == NULL)
            return -1;
    }
    act->K = (size_t)held_dim(arrays, first, 1);
    if (act->K == (size_t)cols)
        return held_dim(arrays, first, 0);
    PyErr_SetString(PyExc_ValueError, "x: its width is not the panel's");
    return -1;
}

/* gemm(variant, packing, data, scales, rows, cols, x, index, T, octet, octets, ldy, repeat) -> y [T, ldy]
 * index None or uint16 [T]: the rows of x. The kernel is run `repeat` times without the GIL. */
static PyObject *gemm_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant, *packing;
    PyObject *data, *scales, *x, *index;
    Py_ssize_t rows, cols, T, octet, octets, ldy, repeat;
    if (!PyArg_ParseTuple(args, "ssOOnnOOnnnnn", &variant, &packing, &data, &scales, &rows, &cols, &x, &index, &T,
                          &octet, &octets, &ldy, &repeat))
        return NULL;
    const int code = packing_named(packing);
    mimo_panel panel = {.packing = (mimo_packing)code};
    mimo_act act = {0};
    if (code < 0 || panel_fill(&panel, arrays, data, scales, rows, cols) < 0)
        return NULL;
    const npy_intp N = act_fill(&act, arrays, x, cols);
    if (N < 0)
        return NULL;
    const uint16_t *at = NULL;
    if (index != Py_None && (at = hold(arrays, index, NPY_UINT16, 1, "index")) == NULL)
        return NULL;
    mimo_gemm *const run = act.f != NULL ? kernels->gemm_f32[code] : kernels->gemm_q8[code];
    if (run == NULL || ldy < 8 * octets || octet + octets > (Py_ssize_t)mimo_panel_octets(&panel) ||
        T > (at != NULL ? held_dim(arrays, arrays->count - 1, 0) : N)) {
        PyErr_SetString(PyExc_ValueError, run == NULL ? "no such kernel" : "T, octet, octets, ldy: out of range");
        return NULL;
    }
    for (Py_ssize_t t = 0; at != NULL && t < T; t++) {
        if (at[t] >= N) {
            PyErr_SetString(PyExc_ValueError, "index: beyond the rows of x");
            return NULL;
        }
    }
    PyArrayObject *y = new_array(arrays, NPY_FLOAT32, T, ldy);
    if (y == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < repeat; i++)
        run(PyArray_DATA(y), (size_t)ldy, &panel, (size_t)octet, (size_t)octets, &act, at, (size_t)T);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("O", y);
}

/* Calls one of the *_run functions below with the variant that the first argument names. */
typedef PyObject *probe_run(const mimo_kernels *kernels, held *arrays, PyObject *args);

static PyObject *run_probe(probe_run *run, PyObject *args)
{
    PyObject *name = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : NULL;
    const char *variant = name != NULL && PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : "none given";
    const mimo_kernels *kernels = variant != NULL ? kernels_named(variant) : NULL;
    if (kernels == NULL)
        return NULL;
    held arrays = {.count = 0};
    PyObject *result = run(kernels, &arrays, args);
    release(&arrays);
    return result;
}

static PyObject *gemm(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(gemm_run, args);
}

/* rms_norm(variant, x, w, eps, in_place) -> y */
static PyObject *rms_norm_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant;
    PyObject *x, *w;
    float eps;
    int in_place;
    if (!PyArg_ParseTuple(args, "sOOfp", &variant, &x, &w, &eps, &in_place))
        return NULL;
    const float *from = hold(arrays, x, NPY_FLOAT32, 1, "x");
    const float *weight = from != NULL ? hold(arrays, w, NPY_FLOAT32, 1, "w") : NULL;
    if (weight == NULL)
        return NULL;
    const npy_intp H = held_dim(arrays, 0, 0);
    PyArrayObject *y = new_array(arrays, NPY_FLOAT32, H, -1);
    if (y == NULL)
        return NULL;
    if (in_place)
        from = memcpy(PyArray_DATA(y), from, 4 * (size_t)H);
    kernels->rms_norm(PyArray_DATA(y), from, weight, (size_t)H, eps);
    return Py_BuildValue("O", y);
}

static PyObject *rms_norm(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(rms_norm_run, args);
}

/* quantize(variant, x [K]) -> q [K] int8, d [K/32] float32, s [K/32] int32 */
static PyObject *quantize_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant;
    PyObject *x;
    if (!PyArg_ParseTuple(args, "sO", &variant, &x))
        return NULL;
    const float *from = hold(arrays, x, NPY_FLOAT32, 1, "x");
    if (from == NULL)
        return NULL;
    const npy_intp K = held_dim(arrays, 0, 0);
    PyArrayObject *q = new_array(arrays, NPY_INT8, K, -1);
    PyArrayObject *d = new_array(arrays, NPY_FLOAT32, K / 32, -1);
    PyArrayObject *s = new_array(arrays, NPY_INT32, K / 32, -1);
    if (q == NULL || d == NULL || s == NULL)
        return NULL;
    kernels->quantize(PyArray_DATA(q), PyArray_DATA(d), PyArray_DATA(s), from, (size_t)K);
    return Py_BuildValue("OOO", q, d, s);
}

static PyObject *quantize(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(quantize_run, args);
}

/* swiglu(variant, gate, up, in_place) -> h */
static PyObject *swiglu_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant;
    PyObject *gate, *up;
    int in_place;
    if (!PyArg_ParseTuple(args, "sOOp", &variant, &gate, &up, &in_place))
        return NULL;
    const float *g = hold(arrays, gate, NPY_FLOAT32, 1, "gate");
    const float *u = g != NULL ? hold(arrays, up, NPY_FLOAT32, 1, "up") : NULL;
    if (u == NULL)
        return NULL;
    const npy_intp n = held_dim(arrays, 0, 0);
    PyArrayObject *h = new_array(arrays, NPY_FLOAT32, n, -1);
    if (h == NULL)
        return NULL;
    if (in_place)
        g = memcpy(PyArray_DATA(h), g, 4 * (size_t)n);
    kernels->swiglu(PyArray_DATA(h), g, u, (size_t)n);
    return Py_BuildValue("O", h);
}

static PyObject *swiglu(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(swiglu_run, args);
}

/* rope(variant, x [R], cos [R/2], sin [R/2]) -> a new [R] */
static PyObject *rope_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant;
    PyObject *x, *cosines, *sines;
    if (!PyArg_ParseTuple(args, "sOOO", &variant, &x, &cosines, &sines))
        return NULL;
    const float *from = hold(arrays, x, NPY_FLOAT32, 1, "x");
    const float *c = from != NULL ? hold(arrays, cosines, NPY_FLOAT32, 1, "cos") : NULL;
    const float *s = c != NULL ? hold(arrays, sines, NPY_FLOAT32, 1, "sin") : NULL;
    if (s == NULL)
        return NULL;
    const npy_intp R = held_dim(arrays, 0, 0);
    PyArrayObject *y = new_array(arrays, NPY_FLOAT32, R, -1);
    if (y == NULL)
        return NULL;
    memcpy(PyArray_DATA(y), from, 4 * (size_t)R);
    kernels->rope(PyArray_DATA(y), c, s, (size_t)R);
    return Py_BuildValue("O", y);
}

static PyObject *rope(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(rope_run, args);
}

/* attend(variant, q [heads, D], k [groups, D, 8], v [8*groups, Dv], begin, end, scale, repeat) -> m [heads], l [heads],
 * acc [heads, Dv] k and v both float32, or both uint16 (BF16). */
static PyObject *attend_run(const mimo_kernels *kernels, held *arrays, PyObject *args)
{
    const char *variant;
    PyObject *q, *k, *v;
    Py_ssize_t begin, end, repeat;
    float scale;
    if (!PyArg_ParseTuple(args, "sOOOnnfn", &variant, &q, &k, &v, &begin, &end, &scale, &repeat))
        return NULL;
    const int type = PyArray_Check(k) && PyArray_TYPE((PyArrayObject *)k) == NPY_UINT16 ? NPY_UINT16 : NPY_FLOAT32;
    const float *query = hold(arrays, q, NPY_FLOAT32, 2, "q");
    const void *keys = query != NULL ? hold(arrays, k, type, 3, "k") : NULL;
    const void *values = keys != NULL ? hold(arrays, v, type, 2, "v") : NULL;
    if (values == NULL)
        return NULL;
    const npy_intp heads = held_dim(arrays, 0, 0), D = held_dim(arrays, 0, 1), Dv = held_dim(arrays, 2, 1);
    if (held_dim(arrays, 1, 1) != D || held_dim(arrays, 1, 2) != 8 || begin < 0 || begin > end || end > 256 ||
        end > 8 * held_dim(arrays, 1, 0) || end > held_dim(arrays, 2, 0)) {
        PyErr_SetString(PyExc_ValueError, "q, k, v, begin, end: shapes or range do not fit");
        return NULL;
    }
    PyArrayObject *scratch = new_array(arrays, NPY_FLOAT32, MIMO_ATTEND_SCRATCH, -1);
    PyArrayObject *m = new_array(arrays, NPY_FLOAT32, heads, -1), *l = new_array(arrays, NPY_FLOAT32, heads, -1);
    PyArrayObject *acc = new_array(arrays, NPY_FLOAT32, heads, Dv);
    if (scratch == NULL || m == NULL || l == NULL || acc == NULL)
        return NULL;
    const mimo_keys chunk = {.k = keys,
                             .v = values,
                             .begin = (size_t)begin,
                             .end = (size_t)end,
                             .D = (size_t)D,
                             .Dv = (size_t)Dv,
                             .scale = scale};
    for (Py_ssize_t i = 0; i < repeat; i++)
        (type == NPY_UINT16 ? kernels->attend_bf16 : kernels->attend_f32)(
            PyArray_DATA(m), PyArray_DATA(l), PyArray_DATA(acc), query, (size_t)heads, &chunk, PyArray_DATA(scratch));
    return Py_BuildValue("OOO", m, l, acc);
}

static PyObject *attend(PyObject *self, PyObject *args)
{
    (void)self;
    return run_probe(attend_run, args);
}

/* ---- who has which octets ---- */

typedef struct claims {
    mimo_cpu *cpu;
    mimo_units units;
    size_t *taken; /* [threads, count] */
    size_t *count; /* [threads] */
} claims;

static void take_claims(void *context, mimo_worker *worker)
{
    const claims *all = context;
    const mimo_task task = {.cpu = all->cpu, .worker = worker};
    for (mimo_claim c = mimo_cpu_claim(&task, &all->units); c.unit < all->units.count; mimo_cpu_claim_next(&c))
        all->taken[worker->index * all->units.count + all->count[worker->index]++] = c.unit;
}

static PyObject *list_claims(const claims *all)
{
    PyObject *list = PyList_New(0);
    for (size_t w = 0; w < all->cpu->threads; w++) {
        PyObject *own = PyList_New(0);
        for (size_t i = 0; i < all->count[w]; i++) {
            const mimo_piece p = mimo_units_at(&all->units, all->taken[w * all->units.count + i]);
            PyObject *piece = Py_BuildValue("nnn", (Py_ssize_t)p.matrix, (Py_ssize_t)p.octet, (Py_ssize_t)p.octets);
            PyList_Append(own, piece);
            Py_XDECREF(piece);
        }
        PyList_Append(list, own);
        Py_XDECREF(own);
    }
    return list;
}

static PyObject *list_homes(const claims *all, size_t octets)
{
    PyObject *list = PyList_New(0);
    for (size_t n = 0; n <= mimo_pool_nodes(all->cpu->pool); n++) {
        PyObject *home = PyLong_FromSize_t(mimo_cpu_home(all->cpu, octets, n));
        PyList_Append(list, home);
        Py_XDECREF(home);
    }
    return list;
}

static mimo_status run_claims(claims *all, size_t octets, size_t size, size_t matrices, mimo_error *err)
{
    all->units = mimo_units_share(all->cpu, octets, size, matrices);
    MIMO_TRY(mimo_alloc_array(&all->taken, all->cpu->threads * all->units.count, sizeof *all->taken, "claims", err));
    MIMO_TRY(mimo_alloc_array(&all->count, all->cpu->threads, sizeof *all->count, "claims", err));
    mimo_pool_run(all->cpu->pool, take_claims, all);
    return MIMO_OK;
}

static PyObject *probe_claims(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *sequence, *result = NULL;
    Py_ssize_t threads, octets, size, matrices;
    mimo_nodes nodes;
    if (!PyArg_ParseTuple(args, "Onnnn:claims", &sequence, &threads, &octets, &size, &matrices) ||
        mimo_python_nodes(&nodes, sequence) < 0)
        return NULL;
    claims all = {0};
    mimo_error err = {0};
    mimo_status status = mimo_alloc_array(&all.cpu, 1, sizeof *all.cpu, "CPU engine", &err);
    if (status == MIMO_OK) {
        all.cpu->threads = (size_t)threads;
        status = mimo_pool_open(&all.cpu->pool, (size_t)threads, false, &nodes, &err);
    }
    if (status == MIMO_OK)
        status = run_claims(&all, (size_t)octets, (size_t)size, (size_t)matrices, &err);
    if (status == MIMO_OK)
        result = Py_BuildValue("NN", list_homes(&all, (size_t)octets), list_claims(&all));
    else
        mimo_python_raise(&err);
    mimo_pool_close(all.cpu != NULL ? all.cpu->pool : NULL);
    mimo_free(all.taken);
    mimo_free(all.count);
    mimo_free(all.cpu);
    return result;
}

PyMethodDef mimo_probe_kernel_methods[] = {
    {"claims", probe_claims, METH_VARARGS,
     "nodes, threads, octets, size, matrices -> (first octet of each node, pieces (matrix, octet, octets) of each "
     "worker in the order in which it took them)"},
    {"kernel_variants", kernel_variants, METH_NOARGS, NULL},
    {"kernel_choose", kernel_choose, METH_VARARGS, NULL},
    {"gemm", gemm, METH_VARARGS, NULL},
    {"rms_norm", rms_norm, METH_VARARGS, NULL},
    {"quantize", quantize, METH_VARARGS, NULL},
    {"swiglu", swiglu, METH_VARARGS, NULL},
    {"rope", rope, METH_VARARGS, NULL},
    {"attend", attend, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
