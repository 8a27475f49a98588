/* Operation bodies on the host (cuda/host.h): a model run by them, its slots as arrays, and the arithmetic below. */
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/page.h"
#include "cuda/pages.h"
#include "python/module.h"
#include "python/probe_model.h"

static const char capsule_name[] = "mimo_ultraspeed._probe.cuda_host";

typedef mimo_probe_model model;

mimo_probe_model *mimo_probe_model_of(PyObject *capsule)
{
    return PyCapsule_GetPointer(capsule, capsule_name);
}

static void close_model(model *m)
{
    mimo_host_machine_close(m->machine);
    mimo_cuda_host_close(m->draft);
    mimo_cuda_host_close(m->target);
    Py_DECREF(m->owner);
    PyMem_Free(m);
}

static void destroy(PyObject *capsule)
{
    close_model(PyCapsule_GetPointer(capsule, capsule_name));
}

static PyObject *cuda_open(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *owner;
    int exact;
    unsigned positions;
    if (!PyArg_ParseTuple(args, "OpI:cuda_open", &owner, &exact, &positions))
        return NULL;
    const mimo_engine *e = mimo_python_engine(owner);
    if (e == NULL)
        return PyErr_Format(PyExc_ValueError, "cuda_open: expected an Engine");
    model *m = PyMem_Calloc(1, sizeof *m);
    if (m == NULL)
        return PyErr_NoMemory();
    m->owner = owner;
    Py_INCREF(owner);
    m->engine = e;
    mimo_error err = {0};
    const mimo_cuda_host_options options = {exact != 0, positions};
    mimo_status status = mimo_cuda_host_open(&m->target, &e->config, &e->weights, NULL, NULL, e->files, &options, &err);
    if (status == MIMO_OK && e->draft != NULL)
        status = mimo_cuda_host_open(&m->draft, &e->draft->config.model, &e->draft->weights, &e->draft->config,
                                     m->target, e->files, &options, &err);
    if (status != MIMO_OK) {
        close_model(m);
        return mimo_python_raise(&err);
    }
    return PyCapsule_New(m, capsule_name, destroy);
}

static int put(PyObject *dict, const char *name, int type, const void *data, size_t bytes, int rank,
               const npy_intp *shape)
{
    npy_intp dims[3] = {shape[0], rank > 1 ? shape[1] : 1, rank > 2 ? shape[2] : 1};
    PyObject *array = PyArray_SimpleNew(rank, dims, type);
    if (array == NULL)
        return -1;
    memcpy(PyArray_DATA((PyArrayObject *)array), data, bytes);
    const int failed = PyDict_SetItemString(dict, name, array);
    Py_DECREF(array);
    return failed;
}

static int put_floats(PyObject *dict, const char *name, const float *data, size_t rows, size_t cols)
{
    const npy_intp shape[2] = {(npy_intp)rows, (npy_intp)cols};
    return put(dict, name, NPY_FLOAT32, data, rows * cols * sizeof *data, 2, shape);
}

static int put_routes(PyObject *dict, const mimo_cuda_host *h)
{
    const mimo_moe *moe = h->state.work.moe;
    const size_t n = h->step.rows * (size_t)h->state.config->top_k;
    const npy_intp entries[1] = {(npy_intp)n}, experts[1] = {(npy_intp)moe->experts}, begin[1] = {experts[0] + 1};
    if (put(dict, "chosen", NPY_UINT16, moe->chosen, n * 2, 1, entries) < 0 ||
        put(dict, "share", NPY_FLOAT32, moe->share, n * 4, 1, entries) < 0 ||
        put(dict, "row", NPY_UINT8, moe->row, n, 1, entries) < 0 ||
        put(dict, "weight", NPY_FLOAT32, moe->weight, n * 4, 1, entries) < 0 ||
        put(dict, "expert", NPY_UINT16, moe->expert, moe->experts * (size_t)2, 1, experts) < 0 ||
        put(dict, "begin", NPY_UINT16, moe->begin, (moe->experts + (size_t)1) * 2, 1, begin) < 0)
        return -1;
    return 0;
}

static PyObject *slots_of(const mimo_cuda_host *h, PyObject *logits, PyObject *hidden)
{
    const mimo_cuda_work *w = &h->state.work;
    const size_t T = h->step.rows, K = mimo_max(h->state.config->top_k, 1);
    const mimo_attention *a = h->state.config->attention;
    const size_t q = mimo_max((size_t)a[0].heads * a[0].head_dim, (size_t)a[1].heads * a[1].head_dim);
    PyObject *dict = Py_BuildValue("{s:O,s:O}", "logits", logits, "hidden", hidden);
    if (dict == NULL)
        return NULL;
    if (put_floats(dict, "x", w->x, T, w->x_stride) < 0 || put_floats(dict, "m", w->m, T, w->x_stride) < 0 ||
        put_floats(dict, "q", w->q, 1, T * q) < 0 || put_floats(dict, "a", w->a, T, w->a_stride) < 0 ||
        put_floats(dict, "u", w->u, T * K, w->u_stride) < 0 ||
        put_floats(dict, "router_logits", w->router_logits, T, h->state.config->experts) < 0 || put_routes(dict, h) < 0)
        Py_CLEAR(dict);
    return dict;
}

/* Numbers of a list into `out`; how many, or -1 with an exception. */
static Py_ssize_t read_numbers(uint32_t *out, Py_ssize_t most, PyObject *list, const char *name)
{
    PyArrayObject *array = mimo_python_array(list, NPY_INT64, 1, name);
    if (array == NULL)
        return -1;
    Py_ssize_t n = PyArray_DIM(array, 0);
    const int64_t *data = PyArray_DATA(array);
    for (Py_ssize_t i = 0; i < n && n <= most; i++)
        out[i] = (uint32_t)data[i];
    Py_DECREF((PyObject *)array);
    if (n > most) {
        PyErr_Format(PyExc_ValueError, "%s: expected up to %zd", name, most);
        return -1;
    }
    return n;
}

static void fill_cache(mimo_cuda_host *h)
{
    for (size_t t = 0; t < MIMO_CUDA_ROWS; t++)
        h->step.kv[t] = h->cache;
}

static void run_ops(mimo_cuda_host *h, uint32_t first, uint32_t end, unsigned tile, int split)
{
    for (uint32_t i = first; i < end && i < h->plan.count; i++)
        mimo_cuda_host_run(h, &h->plan.op[i], tile, split != 0);
}

static PyObject *cuda_step(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *tokens, *outputs, *taps;
    unsigned position, stop, tile;
    int split;
    if (!PyArg_ParseTuple(args, "OOIOOIIp:cuda_step", &capsule, &tokens, &position, &outputs, &taps, &stop, &tile,
                          &split))
        return NULL;
    const model *m = mimo_probe_model_of(capsule);
    if (m == NULL)
        return NULL;
    mimo_cuda_host *h = m->target;
    mimo_cuda_step *s = &h->step;
    const Py_ssize_t rows = read_numbers(s->token, MIMO_CUDA_ROWS, tokens, "tokens"),
                     out = read_numbers(s->output, MIMO_CUDA_ROWS, outputs, "outputs"),
                     tap = read_numbers(s->tap, MIMO_MAX_TAPS, taps, "taps");
    if (rows < 0 || out < 0 || tap < 0)
        return NULL;
    if (rows < 1 || tile < 1 || position + (size_t)rows > h->positions)
        return PyErr_Format(PyExc_ValueError, "cuda_step: expected rows within %u positions, tiles of 1 or more",
                            h->positions);
    const size_t H = h->state.config->hidden;
    npy_intp logits_shape[2] = {out, h->state.config->vocab}, hidden_shape[3] = {tap, rows, (npy_intp)H};
    PyObject *logits = PyArray_ZEROS(2, logits_shape, NPY_FLOAT32, 0);
    PyObject *hidden = PyArray_ZEROS(3, hidden_shape, NPY_FLOAT32, 0), *slots = NULL;
    if (logits != NULL && hidden != NULL) {
        s->rows = (uint32_t)rows;
        s->outputs = (uint32_t)out;
        s->taps = (uint32_t)tap;
        s->logits = PyArray_DATA((PyArrayObject *)logits);
        s->logits_stride = h->state.config->vocab;
        s->hidden = PyArray_DATA((PyArrayObject *)hidden);
        s->hidden_stride = (size_t)rows * H;
        for (uint32_t t = 0; t < s->rows; t++)
            s->position[t] = position + t;
        fill_cache(h);
        run_ops(h, 0, stop, tile, split);
        slots = slots_of(h, logits, hidden);
    }
    Py_XDECREF(logits);
    Py_XDECREF(hidden);
    return slots;
}

/* Context of positions [first, first + T) from hidden [M, T, H]. */
static PyObject *cuda_context(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *features;
    unsigned first, tile;
    if (!PyArg_ParseTuple(args, "OOII:cuda_context", &capsule, &features, &first, &tile))
        return NULL;
    const model *m = PyCapsule_GetPointer(capsule, capsule_name);
    PyArrayObject *hidden = m != NULL ? mimo_python_array(features, NPY_FLOAT32, 3, "features") : NULL;
    if (hidden == NULL)
        return NULL;
    mimo_cuda_step *s = &m->draft->step;
    const size_t T = (size_t)PyArray_DIM(hidden, 1);
    s->features = PyArray_DATA(hidden);
    s->features_stride = T * m->draft->state.config->hidden;
    fill_cache(m->draft);
    for (size_t at = 0; at < T; at += MIMO_CUDA_ROWS) {
        s->rows = (uint32_t)mimo_min(T - at, MIMO_CUDA_ROWS);
        for (uint32_t t = 0; t < s->rows; t++) {
            s->context_row[t] = (uint32_t)at + t;
            s->position[t] = first + (uint32_t)at + t;
        }
        run_ops(m->draft, 0, 2, tile, 0);
    }
    Py_DECREF((PyObject *)hidden);
    Py_RETURN_NONE;
}

static PyObject *cuda_block(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    unsigned anchor, position, begin, width, tile;
    int split;
    if (!PyArg_ParseTuple(args, "OIIIIIp:cuda_block", &capsule, &anchor, &position, &begin, &width, &tile, &split))
        return NULL;
    const model *m = PyCapsule_GetPointer(capsule, capsule_name);
    if (m == NULL)
        return NULL;
    if (width < 2 || width > MIMO_CUDA_ROWS)
        return PyErr_Format(PyExc_ValueError, "cuda_block: expected a width of 2 to %d, found %u", MIMO_CUDA_ROWS,
                            width);
    mimo_cuda_host *h = m->draft;
    mimo_cuda_step *s = &h->step;
    npy_intp shape[2] = {width - 1, h->state.config->vocab};
    PyObject *logits = PyArray_ZEROS(2, shape, NPY_FLOAT32, 0);
    if (logits == NULL)
        return NULL;
    s->rows = width;
    s->outputs = width - 1;
    s->taps = 0;
    s->token[0] = anchor;
    s->anchor = position;
    s->context_begin = begin;
    s->logits = PyArray_DATA((PyArrayObject *)logits);
    s->logits_stride = h->state.config->vocab;
    for (uint32_t k = 0; k < width; k++) {
        s->position[k] = position + k;
        s->output[k] = k + 1;
    }
    fill_cache(h);
    run_ops(h, 2, h->plan.count, tile, split);
    return logits;
}

/* ---- arithmetic ---- */

static PyObject *cuda_gemv(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *data, *scales, *scale_row, *input;
    unsigned format, cols;
    if (!PyArg_ParseTuple(args, "IIOOOO:cuda_gemv", &format, &cols, &data, &scales, &scale_row, &input))
        return NULL;
    PyArrayObject *d = mimo_python_array(data, NPY_UINT8, 2, "data"), *y = NULL;
    PyArrayObject *s = mimo_python_array(scales, format == MIMO_FORMAT_FP8 ? NPY_FLOAT32 : NPY_UINT8, 1, "scales");
    PyArrayObject *r = mimo_python_array(scale_row, NPY_UINT32, 1, "scale_row");
    PyArrayObject *x = mimo_python_array(input, NPY_FLOAT32, 2, "x");
    if (d != NULL && s != NULL && r != NULL && x != NULL) {
        const mimo_cuda_matrix w = {.data = PyArray_DATA(d),
                                    .scales = PyArray_DATA(s),
                                    .scale_row = PyArray_DATA(r),
                                    .row_bytes = (size_t)PyArray_DIM(d, 1),
                                    .rows = (uint32_t)PyArray_DIM(d, 0),
                                    .cols = cols,
                                    .format = format};
        npy_intp shape[2] = {PyArray_DIM(x, 0), PyArray_DIM(d, 0)};
        y = (PyArrayObject *)PyArray_ZEROS(2, shape, NPY_FLOAT32, 0);
        if (y != NULL)
            mimo_cuda_host_gemv(PyArray_DATA(y), &w, PyArray_DATA(x), (size_t)PyArray_DIM(x, 1), (uint32_t)shape[0]);
    }
    Py_XDECREF((PyObject *)d);
    Py_XDECREF((PyObject *)s);
    Py_XDECREF((PyObject *)r);
    Py_XDECREF((PyObject *)x);
    return (PyObject *)y;
}

/* Pages of 16 rows each, all columns on one, of a format of pages (page.h). */
static PyObject *through_pages(const mimo_cuda_matrix *w, uint32_t format)
{
    const uint32_t unit = w->format == MIMO_FORMAT_FP8 ? MIMO_PAGE_TILE : MIMO_PAGE_BLOCK;
    const uint32_t k = (w->cols + unit - 1) / unit * unit, tiles = (w->rows + MIMO_PAGE_UNIT - 1) / MIMO_PAGE_UNIT;
    const mimo_tile_shape shape = {.tile_rows = MIMO_PAGE_UNIT,
                                   .tiles = tiles,
                                   .splits = 1,
                                   .k_split = w->cols,
                                   .k_page = k,
                                   .tile_pages = 1,
                                   .page_bytes = mimo_pick_page_bytes(format, MIMO_PAGE_UNIT, k),
                                   .expert_pages = tiles,
                                   .format = format};
    const mimo_page_part part = {w, 0, w->rows};
    mimo_error err = {0};
    uint8_t *pages = NULL;
    npy_intp size[2] = {(npy_intp)tiles * MIMO_PAGE_UNIT, k};
    PyObject *values = PyArray_ZEROS(2, size, NPY_FLOAT32, 0);
    if (values == NULL)
        return NULL;
    mimo_status status = mimo_alloc_array(&pages, tiles, shape.page_bytes, "pages", &err);
    if (status == MIMO_OK)
        status = mimo_pages_pack(pages, &shape, 1, &part, NULL, 1, &err);
    for (uint32_t tile = 0; status == MIMO_OK && tile < tiles; tile++)
        mimo_cuda_host_unit((float *)PyArray_DATA((PyArrayObject *)values) + tile * MIMO_PAGE_UNIT * (size_t)k, format,
                            pages + tile * (size_t)shape.page_bytes, 1, 0, k);
    mimo_free(pages);
    if (status == MIMO_OK)
        return values;
    Py_DECREF(values);
    return mimo_python_raise(&err);
}

static PyObject *cuda_paged(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *data, *scales, *scale_row, *result = NULL;
    unsigned format, cols;
    if (!PyArg_ParseTuple(args, "IIOOO:cuda_paged", &format, &cols, &data, &scales, &scale_row))
        return NULL;
    PyArrayObject *d = mimo_python_array(data, NPY_UINT8, 2, "data");
    PyArrayObject *s = mimo_python_array(scales, format == MIMO_FORMAT_FP8 ? NPY_FLOAT32 : NPY_UINT8, 1, "scales");
    PyArrayObject *r = mimo_python_array(scale_row, NPY_UINT32, 1, "scale_row");
    if (d != NULL && s != NULL && r != NULL)
        result = through_pages(&(mimo_cuda_matrix){.data = PyArray_DATA(d),
                                                   .scales = PyArray_DATA(s),
                                                   .scale_row = PyArray_DATA(r),
                                                   .row_bytes = (size_t)PyArray_DIM(d, 1),
                                                   .rows = (uint32_t)PyArray_DIM(d, 0),
                                                   .cols = cols,
                                                   .format = mimo_min(format, MIMO_FORMAT_MXFP4)},
                               format);
    Py_XDECREF((PyObject *)d);
    Py_XDECREF((PyObject *)s);
    Py_XDECREF((PyObject *)r);
    return result;
}

static PyObject *cuda_round_e4m3(PyObject *self, PyObject *values)
{
    (void)self;
    PyArrayObject *x =
        (PyArrayObject *)PyArray_FROMANY(values, NPY_FLOAT32, 1, 1, NPY_ARRAY_ENSURECOPY | NPY_ARRAY_CARRAY);
    if (x != NULL)
        mimo_cuda_host_round(PyArray_DATA(x), (size_t)PyArray_DIM(x, 0));
    return (PyObject *)x;
}

PyMethodDef mimo_probe_bodies_methods[] = {
    {"cuda_open", cuda_open, METH_VARARGS,
     "(engine, exact, positions): its weights and one cache, for operation bodies"},
    {"cuda_step", cuda_step, METH_VARARGS,
     "(model, tokens, position, outputs, taps, operations, tile, split): the slots after so many operations"},
    {"cuda_context", cuda_context, METH_VARARGS, "(model, features [M, T, H], first position, tile): draft context"},
    {"cuda_block", cuda_block, METH_VARARGS,
     "(model, anchor, position, context begin, width, tile, split): draft logits [width - 1, V']"},
    {"cuda_gemv", cuda_gemv, METH_VARARGS,
     "(format, cols, data [rows, row_bytes], scales, scale_row, x [T, stride]): y [T, rows]"},
    {"cuda_paged", cuda_paged, METH_VARARGS,
     "(format, cols, data [rows, row_bytes], scales, scale_row): W [rows, cols] as read from pages, rows rounded up to "
     "16, columns to 32 (FP8: 128)"},
    {"cuda_round_e4m3", cuda_round_e4m3, METH_O, "float32 [n] -> the nearest values of E4M3, as float32"},
    {NULL, NULL, 0, NULL},
};
