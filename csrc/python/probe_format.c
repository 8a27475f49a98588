#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cpu/panel.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/fp8.h"
#include "format/mxfp4.h"
#include "python/checkpoint.h"
#include "python/probe.h"

enum { MAX_FILES = 8, UNWRITTEN = 0xaa };

/* out[i] = codec(in[i]) for one-dimensional arrays. */
#define CODEC(name, in_type, in_npy, out_type, out_npy)                                                                \
    static PyObject *probe_##name(PyObject *module, PyObject *obj)                                                     \
    {                                                                                                                  \
        (void)module;                                                                                                  \
        PyArrayObject *in = mimo_python_array(obj, in_npy, 1, #name);                                                  \
        PyObject *out = in != NULL ? PyArray_SimpleNew(1, PyArray_DIMS(in), out_npy) : NULL;                           \
        if (out != NULL) {                                                                                             \
            const in_type *from = PyArray_DATA(in);                                                                    \
            out_type *to = PyArray_DATA((PyArrayObject *)out);                                                         \
            for (npy_intp i = 0; i < PyArray_DIM(in, 0); i++)                                                          \
                to[i] = (out_type)mimo_##name(from[i]);                                                                \
        }                                                                                                              \
        Py_XDECREF((PyObject *)in);                                                                                    \
        return out;                                                                                                    \
    }

CODEC(bf16_decode, uint16_t, NPY_UINT16, float, NPY_FLOAT32)
CODEC(bf16_encode, float, NPY_FLOAT32, uint16_t, NPY_UINT16)
CODEC(f16_decode, uint16_t, NPY_UINT16, float, NPY_FLOAT32)
CODEC(f16_encode, float, NPY_FLOAT32, uint16_t, NPY_UINT16)
CODEC(fp8_decode, uint8_t, NPY_UINT8, float, NPY_FLOAT32)
CODEC(fp8_encode, float, NPY_FLOAT32, uint8_t, NPY_UINT8)
CODEC(e2m1_decode, uint8_t, NPY_UINT8, float, NPY_FLOAT32)
CODEC(e2m1_doubled, uint8_t, NPY_UINT8, int8_t, NPY_INT8)
CODEC(e2m1_encode, float, NPY_FLOAT32, uint8_t, NPY_UINT8)
CODEC(e8m0_decode, uint8_t, NPY_UINT8, float, NPY_FLOAT32)

static PyObject *probe_mxfp4_encode(PyObject *module, PyObject *obj)
{
    (void)module;
    PyArrayObject *values = mimo_python_array(obj, NPY_FLOAT32, 2, "values");
    if (values == NULL)
        return NULL;
    const npy_intp rows = PyArray_DIM(values, 0), cols = PyArray_DIM(values, 1);
    npy_intp code_dims[2] = {rows, cols / 2}, scale_dims[2] = {rows, cols / MIMO_MX_BLOCK};
    PyObject *codes = PyArray_SimpleNew(2, code_dims, NPY_UINT8), *scales = PyArray_SimpleNew(2, scale_dims, NPY_UINT8);
    PyObject *result = NULL;
    if (cols % MIMO_MX_BLOCK != 0) {
        PyErr_SetString(PyExc_ValueError, "values: expected columns in multiples of 32");
    } else if (codes != NULL && scales != NULL) {
        mimo_mxfp4_encode(PyArray_DATA((PyArrayObject *)codes), PyArray_DATA((PyArrayObject *)scales),
                          PyArray_DATA(values), (size_t)rows, (size_t)cols);
        result = PyTuple_Pack(2, codes, scales);
    }
    Py_XDECREF(codes);
    Py_XDECREF(scales);
    Py_DECREF((PyObject *)values);
    return result;
}

static PyObject *probe_mxfp4_decode(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *codes_obj, *scales_obj;
    if (!PyArg_ParseTuple(args, "OO", &codes_obj, &scales_obj))
        return NULL;
    PyArrayObject *codes = mimo_python_array(codes_obj, NPY_UINT8, 2, "codes");
    PyArrayObject *scales = mimo_python_array(scales_obj, NPY_UINT8, 2, "scales");
    PyObject *values = NULL;
    if (codes != NULL && scales != NULL) {
        const npy_intp rows = PyArray_DIM(codes, 0), cols = PyArray_DIM(codes, 1) * 2;
        npy_intp dims[2] = {rows, cols};
        if (cols % MIMO_MX_BLOCK != 0 || PyArray_DIM(scales, 0) != rows ||
            PyArray_DIM(scales, 1) != cols / MIMO_MX_BLOCK)
            PyErr_SetString(PyExc_ValueError, "scales: expected one per 32 elements of codes");
        else
            values = PyArray_SimpleNew(2, dims, NPY_FLOAT32);
        if (values != NULL)
            mimo_mxfp4_decode(PyArray_DATA((PyArrayObject *)values), PyArray_DATA(codes), PyArray_DATA(scales),
                              (size_t)rows, (size_t)cols);
    }
    Py_XDECREF((PyObject *)codes);
    Py_XDECREF((PyObject *)scales);
    return values;
}

/* Files opened from a list of paths; the list keeps the text of the paths alive. */
typedef struct open_files {
    PyObject *paths; /* tuple of str */
    mimo_file file[MAX_FILES];
    size_t count;
} open_files;

static void close_files(open_files *files)
{
    for (size_t i = 0; i < files->count; i++)
        mimo_file_close(&files->file[i]);
    Py_CLEAR(files->paths);
}

static int open_all(open_files *files, PyObject *paths)
{
    *files = (open_files){.paths = PySequence_Tuple(paths)};
    if (files->paths == NULL)
        return -1;
    const Py_ssize_t count = PyTuple_Size(files->paths);
    for (Py_ssize_t i = 0; i < count && i < MAX_FILES; i++) {
        const char *path = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(files->paths, i), NULL);
        mimo_error err = {0};
        if (path == NULL || mimo_file_open(&files->file[i], path, &err) != MIMO_OK) {
            if (path != NULL)
                mimo_python_raise(&err);
            close_files(files);
            return -1;
        }
        files->count++;
    }
    return 0;
}

static PyObject *segment_tuple(const mimo_segment *s)
{
    return Py_BuildValue("(IIKIKI)", s->rows, s->file, (unsigned long long)s->data, s->scale_file,
                         (unsigned long long)s->scale, s->scale_row);
}

/* The inverse of segment_tuple, for a list of them. */
static mimo_segment *read_segments(PyObject *list, uint32_t *count)
{
    PyObject *tuples = PySequence_Tuple(list);
    if (tuples == NULL)
        return NULL;
    *count = (uint32_t)PyTuple_Size(tuples);
    mimo_segment *segments = NULL;
    mimo_error err = {0};
    if (mimo_alloc_array(&segments, *count, sizeof *segments, "segments", &err) != MIMO_OK)
        mimo_python_raise(&err);
    for (uint32_t i = 0; segments != NULL && i < *count; i++) {
        mimo_segment *s = &segments[i];
        unsigned long long data, scale;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tuples, i), "IIKIKI", &s->rows, &s->file, &data, &s->scale_file, &scale,
                              &s->scale_row)) {
            mimo_free(segments);
            segments = NULL;
            break;
        }
        s->data = data;
        s->scale = scale;
    }
    Py_DECREF(tuples);
    return segments;
}

static PyObject *bytes_array(const uint8_t *from, size_t bytes)
{
    npy_intp dims[1] = {(npy_intp)bytes};
    PyObject *array = PyArray_SimpleNew(1, dims, NPY_UINT8);
    if (array != NULL && bytes > 0)
        memcpy(PyArray_DATA((PyArrayObject *)array), from, bytes);
    return array;
}

/* Packs some octets into a panel whose every byte was UNWRITTEN: (data, scales) as flat uint8. */
static PyObject *pack(const mimo_matrix *from, mimo_packing packing, const open_files *files, size_t octet,
                      size_t octets)
{
    mimo_panel panel = {.packing = packing, .rows = from->rows, .cols = from->cols};
    const size_t all = mimo_panel_octets(&panel);
    const size_t bytes = all * mimo_panel_octet_bytes(packing, from->cols);
    const size_t scale_bytes = all * mimo_panel_octet_scale_bytes(packing, from->cols);
    mimo_error err = {0};
    void *scratch = mimo_alloc(mimo_pack_scratch_bytes(from, octets));
    panel.data = mimo_alloc(bytes);
    panel.scales = scale_bytes > 0 ? mimo_alloc(scale_bytes) : NULL;
    PyObject *result = NULL;
    if (scratch == NULL || panel.data == NULL || (scale_bytes > 0 && panel.scales == NULL)) {
        PyErr_NoMemory();
    } else {
        memset(panel.data, UNWRITTEN, bytes);
        if (panel.scales != NULL)
            memset(panel.scales, UNWRITTEN, scale_bytes);
        if (mimo_panel_pack(&panel, from, octet, octets, files->file, scratch, &err) != MIMO_OK)
            mimo_python_raise(&err);
        else
            result = Py_BuildValue("(NN)", bytes_array(panel.data, bytes), bytes_array(panel.scales, scale_bytes));
    }
    mimo_free(panel.scales);
    mimo_free(panel.data);
    mimo_free(scratch);
    return result;
}

static int number_named(const char *wanted, int count, const char *(*name)(int), const char *what)
{
    for (int i = 0; i < count; i++)
        if (strcmp(wanted, name(i)) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "%s: unknown: %s", what, wanted);
    return -1;
}

static const char *format_name(int format)
{
    return mimo_format_name((mimo_format)format);
}

static const char *packing_name(int packing)
{
    return mimo_packing_name((mimo_packing)packing);
}

static PyObject *probe_pack(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"name", "format", "packing", "rows", "cols", "segments", "paths", "octet", "octets", NULL};
    const char *name, *format_text, *packing_text;
    unsigned rows, cols;
    PyObject *segments, *paths;
    Py_ssize_t octet = 0, octets = -1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sssIIOO|nn", names, &name, &format_text, &packing_text, &rows,
                                     &cols, &segments, &paths, &octet, &octets))
        return NULL;
    const int format = number_named(format_text, MIMO_FORMAT_COUNT, format_name, "format");
    const int packing = format < 0 ? -1 : number_named(packing_text, MIMO_PACK_COUNT, packing_name, "packing");
    if (packing < 0)
        return NULL;
    mimo_matrix from = {.name = name, .format = (mimo_format)format, .rows = rows, .cols = cols};
    mimo_segment *segment = read_segments(segments, &from.segments);
    from.segment = segment;
    PyObject *result = NULL;
    open_files files;
    if (segment != NULL && open_all(&files, paths) == 0) {
        result = pack(&from, (mimo_packing)packing, &files, (size_t)octet,
                      octets < 0 ? mimo_ceil_div(rows, 8) : (size_t)octets);
        close_files(&files);
    }
    mimo_free(segment);
    return result;
}

static PyObject *probe_survey(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"name", "rows", "cols", "segments", "paths", "octet", "octets", NULL};
    mimo_matrix from = {.format = MIMO_FORMAT_BF16};
    PyObject *segments, *paths;
    Py_ssize_t octet = 0, octets = -1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sIIOO|nn", names, &from.name, &from.rows, &from.cols, &segments,
                                     &paths, &octet, &octets))
        return NULL;
    const size_t count = octets < 0 ? mimo_ceil_div(from.rows, 8) : (size_t)octets;
    mimo_segment *segment = read_segments(segments, &from.segments);
    from.segment = segment;
    void *scratch = mimo_alloc(mimo_pack_scratch_bytes(&from, count));
    PyObject *result = NULL;
    open_files files;
    if (scratch == NULL) {
        PyErr_NoMemory();
    } else if (segment != NULL && open_all(&files, paths) == 0) {
        mimo_error err = {0};
        bool levels;
        if (mimo_panel_survey(&levels, &from, (size_t)octet, count, files.file, scratch, &err) != MIMO_OK)
            mimo_python_raise(&err);
        else
            result = PyBool_FromLong(levels);
        close_files(&files);
    }
    mimo_free(scratch);
    mimo_free(segment);
    return result;
}

static PyObject *probe_packing_choose(PyObject *module, PyObject *args)
{
    (void)module;
    const char *format_text;
    unsigned cols;
    int fast;
    if (!PyArg_ParseTuple(args, "sIp", &format_text, &cols, &fast))
        return NULL;
    const int format = number_named(format_text, MIMO_FORMAT_COUNT, format_name, "format");
    if (format < 0)
        return NULL;
    return PyUnicode_FromString(mimo_packing_name(mimo_packing_choose((mimo_format)format, cols, fast)));
}

static PyObject *probe_vector_read(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    int wide;
    unsigned length;
    unsigned long long data;
    PyObject *paths;
    if (!PyArg_ParseTuple(args, "spIKO", &name, &wide, &length, &data, &paths))
        return NULL;
    const mimo_vector vector = {
        .name = name, .dtype = wide ? MIMO_DTYPE_F32 : MIMO_DTYPE_BF16, .length = length, .data = data};
    npy_intp dims[1] = {(npy_intp)length};
    open_files files;
    if (open_all(&files, paths) < 0)
        return NULL;
    PyObject *array = PyArray_SimpleNew(1, dims, NPY_FLOAT32);
    void *scratch = mimo_alloc(4 * (size_t)length);
    mimo_error err = {0};
    if (array != NULL && scratch == NULL) {
        Py_CLEAR(array);
        PyErr_NoMemory();
    } else if (array != NULL &&
               mimo_vector_read(PyArray_DATA((PyArrayObject *)array), &vector, files.file, scratch, &err) != MIMO_OK) {
        Py_CLEAR(array);
        mimo_python_raise(&err);
    }
    mimo_free(scratch);
    close_files(&files);
    return array;
}

/* Appends `entry` (stolen, may be NULL) to list. */
static int append(PyObject *list, PyObject *entry)
{
    const int failed = entry == NULL ? -1 : PyList_Append(list, entry);
    Py_XDECREF(entry);
    return failed;
}

/* (field, layer, expert, name, format, rows, cols, [segments]) */
static int describe_matrix(PyObject *list, const char *field, int layer, uint32_t expert, const mimo_matrix *m)
{
    if (m->rows == 0)
        return 0;
    PyObject *segments = PyList_New(0);
    for (uint32_t i = 0; segments != NULL && i < m->segments; i++)
        if (append(segments, segment_tuple(&m->segment[i])) < 0)
            Py_CLEAR(segments);
    if (segments == NULL)
        return -1;
    return append(list, Py_BuildValue("(siIssIIN)", field, layer, expert, m->name, mimo_format_name(m->format), m->rows,
                                      m->cols, segments));
}

/* (field, layer, 0, name, dtype, length, 0, [(length, file, data)]) */
static int describe_vector(PyObject *list, const char *field, int layer, const mimo_vector *v)
{
    if (v->length == 0)
        return 0;
    return append(list, Py_BuildValue("(siIssII[(IIK)])", field, layer, 0, v->name,
                                      v->dtype == MIMO_DTYPE_F32 ? "f32" : "bf16", v->length, 0, v->length, v->file,
                                      (unsigned long long)v->data));
}

static int describe_layer(PyObject *list, int number, const mimo_layer_weights *layer)
{
    int failed = describe_vector(list, "attention_norm", number, &layer->attention_norm) |
                 describe_vector(list, "mlp_norm", number, &layer->mlp_norm) |
                 describe_vector(list, "sinks", number, &layer->sinks) |
                 describe_matrix(list, "qkv", number, 0, &layer->qkv) |
                 describe_matrix(list, "out", number, 0, &layer->out) |
                 describe_matrix(list, "router", number, 0, &layer->router) |
                 describe_vector(list, "router_bias", number, &layer->router_bias);
    for (uint32_t e = 0; failed == 0 && e < layer->mlps; e++)
        failed = describe_matrix(list, "gate", number, e, &layer->gate[e]) |
                 describe_matrix(list, "up", number, e, &layer->up[e]) |
                 describe_matrix(list, "down", number, e, &layer->down[e]);
    return failed;
}

static PyObject *describe(const mimo_weights *weights, uint32_t layers)
{
    PyObject *list = PyList_New(0);
    if (list == NULL)
        return NULL;
    int failed = describe_matrix(list, "embed", -1, 0, &weights->embed) |
                 describe_matrix(list, "head", -1, 0, &weights->head) |
                 describe_vector(list, "norm", -1, &weights->norm);
    for (uint32_t i = 0; failed == 0 && i < layers; i++)
        failed = describe_layer(list, (int)i, &weights->layer[i]);
    if (failed)
        Py_CLEAR(list);
    return list;
}

static PyObject *bind(const mimo_config *config, const mimo_python_tensors *tensors, PyObject *sizes)
{
    PyArrayObject *array = mimo_python_array(sizes, NPY_UINT64, 1, "file_sizes");
    if (array == NULL)
        return NULL;
    mimo_error err = {0};
    mimo_weights weights;
    PyObject *result = NULL;
    if (mimo_weights_bind(&weights, config, tensors->tensor, tensors->count, PyArray_DATA(array),
                          (size_t)PyArray_DIM(array, 0), &err) != MIMO_OK) {
        mimo_python_raise(&err);
    } else {
        result = describe(&weights, config->layers);
        mimo_weights_release(&weights);
    }
    Py_DECREF((PyObject *)array);
    return result;
}

static PyObject *probe_bind(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *dict, *list, *sizes;
    if (!PyArg_ParseTuple(args, "OOO", &dict, &list, &sizes))
        return NULL;
    mimo_config config;
    mimo_python_tensors tensors;
    if (mimo_python_config(&config, dict) < 0 || mimo_python_tensors_read(&tensors, list) < 0)
        return NULL;
    PyObject *result = bind(&config, &tensors, sizes);
    mimo_python_tensors_free(&tensors);
    return result;
}

static PyObject *probe_config_check(PyObject *module, PyObject *dict)
{
    (void)module;
    mimo_config config;
    if (mimo_python_config(&config, dict) < 0)
        return NULL;
    Py_RETURN_NONE;
}

#define ENTRY(name, flags, text) {#name, (PyCFunction)(void (*)(void))probe_##name, flags, text}

PyMethodDef mimo_probe_format_methods[] = {
    ENTRY(bf16_decode, METH_O, "uint16 [n] -> float32 [n]"),
    ENTRY(bf16_encode, METH_O, "float32 [n] -> uint16 [n]"),
    ENTRY(f16_decode, METH_O, "uint16 [n] -> float32 [n]"),
    ENTRY(f16_encode, METH_O, "float32 [n] -> uint16 [n]"),
    ENTRY(fp8_decode, METH_O, "uint8 [n] -> float32 [n]"),
    ENTRY(fp8_encode, METH_O, "float32 [n] -> uint8 [n]"),
    ENTRY(e2m1_decode, METH_O, "uint8 [n] -> float32 [n]"),
    ENTRY(e2m1_doubled, METH_O, "uint8 [n] -> int8 [n]"),
    ENTRY(e2m1_encode, METH_O, "float32 [n] -> uint8 [n]"),
    ENTRY(e8m0_decode, METH_O, "uint8 [n] -> float32 [n]"),
    ENTRY(mxfp4_encode, METH_O, "float32 [rows, cols] -> codes [rows, cols/2], scales [rows, cols/32]"),
    ENTRY(mxfp4_decode, METH_VARARGS, "codes [rows, cols/2], scales [rows, cols/32] -> float32 [rows, cols]"),
    ENTRY(
        pack, METH_VARARGS | METH_KEYWORDS,
        "name, format, packing, rows, cols, segments, paths, octet, octets -> data, scales; bytes not packed are 0xaa"),
    ENTRY(survey, METH_VARARGS | METH_KEYWORDS,
          "name, rows, cols, segments, paths, octet, octets -> whether blocks of a BF16 matrix lie on 16 levels"),
    ENTRY(packing_choose, METH_VARARGS, "format, cols, fast -> packing"),
    ENTRY(vector_read, METH_VARARGS, "name, wide, length, offset, paths -> float32 [length]"),
    ENTRY(bind, METH_VARARGS, "config, tensors, file_sizes -> description"),
    ENTRY(config_check, METH_O, "config -> None, or ValueError"),
    {NULL, NULL, 0, NULL},
};
