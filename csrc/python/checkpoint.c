#include "python/checkpoint.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

enum { MAX_RANK = 4 };

/* dict[key], a new reference; `where` is "config" or "config.full". */
static PyObject *item(PyObject *dict, const char *where, const char *key)
{
    PyObject *value = PyMapping_GetItemString(dict, key);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s.%s: expected a value, found none", where, key);
    }
    return value;
}

/* A Python integer (or bool) as a number of at most `limit`; `name` is for the message. */
static int read_uint(unsigned long long *out, PyObject *value, unsigned long long limit, const char *name)
{
    PyObject *index = PyNumber_Index(value);
    if (index == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "%s: expected an integer, found %R", name, value);
        }
        return -1;
    }
    *out = PyLong_AsUnsignedLongLong(index);
    const int failed = PyErr_Occurred() != NULL;
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        Py_DECREF(index);
        return -1;
    }
    if (failed || *out > limit) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: expected 0 to %llu, found %S", name, limit, index);
        Py_DECREF(index);
        return -1;
    }
    Py_DECREF(index);
    return 0;
}

static int read_u32(uint32_t *out, PyObject *dict, const char *where, const char *key)
{
    PyObject *value = item(dict, where, key);
    if (value == NULL)
        return -1;
    char name[64];
    PyOS_snprintf(name, sizeof name, "%s.%s", where, key);
    unsigned long long number;
    const int failed = read_uint(&number, value, UINT32_MAX, name);
    Py_DECREF(value);
    if (failed == 0)
        *out = (uint32_t)number;
    return failed;
}

static int read_float(float *out, PyObject *dict, const char *where, const char *key)
{
    PyObject *value = item(dict, where, key);
    if (value == NULL)
        return -1;
    const double number = PyFloat_AsDouble(value);
    const int failed = PyErr_Occurred() != NULL;
    if (failed) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s.%s: expected a number, found %R", where, key, value);
    }
    Py_DECREF(value);
    *out = (float)number; /* one too large becomes infinite, which mimo_config_check refuses */
    return failed ? -1 : 0;
}

/* A list of `layers` zeros and ones. */
static int read_flags(uint8_t *out, uint32_t layers, PyObject *dict, const char *key)
{
    PyObject *value = item(dict, "config", key);
    PyObject *flags = value != NULL ? PySequence_Tuple(value) : NULL;
    Py_XDECREF(value);
    if (flags == NULL)
        return -1;
    int failed = 0;
    if ((size_t)PyTuple_Size(flags) != layers) {
        PyErr_Format(PyExc_ValueError, "config.%s: expected %u entries, one per layer, found %zd", key, layers,
                     PyTuple_Size(flags));
        failed = -1;
    }
    for (uint32_t i = 0; failed == 0 && i < layers; i++) {
        char name[64];
        PyOS_snprintf(name, sizeof name, "config.%s[%u]", key, i);
        unsigned long long number;
        failed = read_uint(&number, PyTuple_GetItem(flags, i), 1, name);
        out[i] = failed == 0 ? (uint8_t)number : 0;
    }
    Py_DECREF(flags);
    return failed;
}

static int read_attention(mimo_attention *out, PyObject *config, const char *kind)
{
    PyObject *dict = item(config, "config", kind);
    if (dict == NULL)
        return -1;
    char where[32];
    PyOS_snprintf(where, sizeof where, "config.%s", kind);
    const struct {
        const char *key;
        uint32_t *to;
    } numbers[] = {
        {"heads", &out->heads},           {"kv_heads", &out->kv_heads},     {"head_dim", &out->head_dim},
        {"v_head_dim", &out->v_head_dim}, {"rotary_dim", &out->rotary_dim}, {"window", &out->window},
        {"sinks", &out->sinks},
    };
    int failed = read_float(&out->rope_theta, dict, where, "rope_theta");
    for (size_t i = 0; failed == 0 && i < sizeof numbers / sizeof *numbers; i++)
        failed = read_u32(numbers[i].to, dict, where, numbers[i].key);
    Py_DECREF(dict);
    return failed;
}

static int read_numbers(mimo_config *out, PyObject *dict)
{
    const struct {
        const char *key;
        uint32_t *to;
    } integers[] = {
        {"hidden", &out->hidden},
        {"layers", &out->layers},
        {"vocab", &out->vocab},
        {"max_positions", &out->max_positions},
        {"dense_width", &out->dense_width},
        {"expert_width", &out->expert_width},
        {"experts", &out->experts},
        {"top_k", &out->top_k},
        {"norm_topk", &out->norm_topk},
        {"tied_head", &out->tied_head},
        {"qkv_chunks", &out->qkv_chunks},
    };
    const struct {
        const char *key;
        float *to;
    } reals[] = {
        {"norm_eps", &out->norm_eps}, {"value_scale", &out->value_scale}, {"routed_scale", &out->routed_scale}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        if (read_u32(integers[i].to, dict, "config", integers[i].key) < 0)
            return -1;
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (read_float(reals[i].to, dict, "config", reals[i].key) < 0)
            return -1;
    return 0;
}

int mimo_python_config(mimo_config *out, PyObject *dict)
{
    *out = (mimo_config){0};
    if (!PyMapping_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "config: expected a dict, found %R", dict);
        return -1;
    }
    if (read_numbers(out, dict) < 0 || read_attention(&out->attention[MIMO_FULL], dict, "full") < 0 ||
        read_attention(&out->attention[MIMO_SLIDING], dict, "sliding") < 0)
        return -1;
    if (out->layers > MIMO_MAX_LAYERS) {
        PyErr_Format(PyExc_ValueError, "config.layers: expected 1 to %d, found %u", MIMO_MAX_LAYERS, out->layers);
        return -1;
    }
    if (read_flags(out->sliding, out->layers, dict, "layer_sliding") < 0 ||
        read_flags(out->sparse, out->layers, dict, "layer_sparse") < 0)
        return -1;
    mimo_error err = {0};
    if (mimo_config_check(out, &err) != MIMO_OK) {
        mimo_python_raise(&err);
        return -1;
    }
    return 0;
}

static mimo_dtype dtype_of(const char *name)
{
    static const char *const names[MIMO_DTYPE_OTHER] = {"F32", "BF16", "F8_E4M3", "U8"};
    for (int i = 0; i < MIMO_DTYPE_OTHER; i++)
        if (strcmp(name, names[i]) == 0)
            return (mimo_dtype)i;
    return MIMO_DTYPE_OTHER;
}

/* The text of entry `at` of a tensor tuple, owned by that tuple; NULL with an exception. */
static const char *entry_text(PyObject *tuple, Py_ssize_t at, size_t number, size_t *bytes)
{
    PyObject *text = PyTuple_GetItem(tuple, at);
    Py_ssize_t size;
    const char *utf8 = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
    if (utf8 == NULL && PyErr_Occurred())
        return NULL;
    if (utf8 == NULL || strlen(utf8) != (size_t)size) {
        PyErr_Format(PyExc_ValueError, "tensors[%zu]: expected %s as text without NUL, found %R", number,
                     at == 0 ? "a name" : "a dtype", text);
        return NULL;
    }
    *bytes = (size_t)size + 1;
    return utf8;
}

/* Bytes of all names and dtypes; checks that every entry is a tuple of six. */
static int text_bytes(size_t *out, PyObject *list, size_t count)
{
    *out = 0;
    for (size_t i = 0; i < count; i++) {
        PyObject *tuple = PyTuple_GetItem(list, (Py_ssize_t)i);
        if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 6) {
            PyErr_Format(PyExc_TypeError,
                         "tensors[%zu]: expected a tuple (name, dtype, shape, file, begin, end), found %R", i, tuple);
            return -1;
        }
        for (Py_ssize_t at = 0; at < 2; at++) {
            size_t bytes;
            if (entry_text(tuple, at, i, &bytes) == NULL)
                return -1;
            *out += bytes; /* cannot overflow: the strings are in memory */
        }
    }
    return 0;
}

static int read_shape(mimo_tensor *out, PyObject *shape)
{
    PyObject *dims = PySequence_Tuple(shape);
    if (dims == NULL)
        return -1;
    const Py_ssize_t rank = PyTuple_Size(dims);
    out->rank = (uint32_t)mimo_min((size_t)rank, UINT32_MAX);
    int failed = 0;
    for (Py_ssize_t i = 0; failed == 0 && i < rank && i < MAX_RANK; i++) {
        unsigned long long dim;
        failed = read_uint(&dim, PyTuple_GetItem(dims, i), UINT64_MAX, out->name);
        out->shape[i] = dim;
    }
    Py_DECREF(dims);
    return failed;
}

/* Fills one tensor and appends its name and dtype to *text. */
static int read_tensor(mimo_tensor *out, PyObject *tuple, size_t number, char **text)
{
    const char *copies[2];
    for (Py_ssize_t at = 0; at < 2; at++) {
        size_t bytes;
        const char *utf8 = entry_text(tuple, at, number, &bytes);
        if (utf8 == NULL)
            return -1;
        copies[at] = memcpy(*text, utf8, bytes);
        *text += bytes;
    }
    out->name = copies[0];
    out->dtype_name = copies[1];
    out->dtype = dtype_of(copies[1]);
    unsigned long long file, begin, end;
    if (read_shape(out, PyTuple_GetItem(tuple, 2)) < 0 ||
        read_uint(&file, PyTuple_GetItem(tuple, 3), UINT32_MAX, out->name) < 0 ||
        read_uint(&begin, PyTuple_GetItem(tuple, 4), INT64_MAX, out->name) < 0 ||
        read_uint(&end, PyTuple_GetItem(tuple, 5), INT64_MAX, out->name) < 0)
        return -1;
    out->file = (uint32_t)file;
    out->begin = begin;
    out->end = end;
    return 0;
}

int mimo_python_tensors_read(mimo_python_tensors *out, PyObject *sequence)
{
    *out = (mimo_python_tensors){0};
    PyObject *list = PySequence_Tuple(sequence);
    if (list == NULL)
        return -1;
    const size_t count = (size_t)PyTuple_Size(list);
    size_t bytes;
    int failed = text_bytes(&bytes, list, count);
    mimo_error err = {0};
    if (failed == 0 &&
        (mimo_alloc_array(&out->tensor, count, sizeof *out->tensor, "the tensor list", &err) != MIMO_OK ||
         mimo_alloc_array(&out->text, bytes, 1, "the tensor names", &err) != MIMO_OK)) {
        mimo_python_raise(&err);
        failed = -1;
    }
    char *text = out->text;
    for (size_t i = 0; failed == 0 && i < count; i++)
        failed = read_tensor(&out->tensor[i], PyTuple_GetItem(list, (Py_ssize_t)i), i, &text);
    Py_DECREF(list);
    out->count = count;
    if (failed < 0)
        mimo_python_tensors_free(out);
    return failed;
}

void mimo_python_tensors_free(mimo_python_tensors *tensors)
{
    mimo_free(tensors->tensor);
    mimo_free(tensors->text);
    *tensors = (mimo_python_tensors){0};
}

/* dict[key], a list of integers, as uint32 in memory of mimo_alloc; a None or no such key where `optional`: NULL and
 * 0. -1 with an exception. */
static int read_numbers_of(uint32_t **out, size_t *count, PyObject *dict, const char *key, bool optional)
{
    *out = NULL;
    *count = 0;
    PyObject *value = item(dict, "draft", key);
    if (value == NULL)
        return -1;
    if (optional && value == Py_None) {
        Py_DECREF(value);
        return 0;
    }
    PyObject *list = PySequence_Tuple(value);
    Py_DECREF(value);
    if (list == NULL)
        return -1;
    *count = (size_t)PyTuple_Size(list);
    mimo_error err = {0};
    int failed = mimo_alloc_array(out, *count, sizeof **out, key, &err) == MIMO_OK ? 0 : -1;
    if (failed < 0)
        mimo_python_raise(&err);
    for (size_t i = 0; failed == 0 && i < *count; i++) {
        char name[64];
        PyOS_snprintf(name, sizeof name, "draft.%s[%zu]", key, i);
        unsigned long long number;
        failed = read_uint(&number, PyTuple_GetItem(list, (Py_ssize_t)i), UINT32_MAX, name);
        (*out)[i] = failed == 0 ? (uint32_t)number : 0;
    }
    Py_DECREF(list);
    return failed;
}

static int read_draft_config(mimo_python_draft *out, PyObject *dict)
{
    mimo_draft_config *config = &out->source.config;
    PyObject *model = item(dict, "draft", "config");
    if (model == NULL)
        return -1;
    int failed = mimo_python_config(&config->model, model);
    Py_DECREF(model);
    const struct {
        const char *key;
        uint32_t *to;
    } numbers[] = {
        {"block", &config->model.block},
        {"short_block", &config->short_block},
        {"qk_norm", &config->model.qk_norm},
        {"markov_rank", &config->model.markov_rank},
        {"causal_full", &config->causal[MIMO_FULL]},
        {"causal_sliding", &config->causal[MIMO_SLIDING]},
        {"window_from_anchor", &config->window_from_anchor},
    };
    for (size_t i = 0; failed == 0 && i < sizeof numbers / sizeof *numbers; i++)
        failed = read_u32(numbers[i].to, dict, "draft", numbers[i].key);
    uint32_t *taps = NULL;
    size_t count = 0, ids = 0;
    if (failed == 0)
        failed = read_numbers_of(&taps, &count, dict, "taps", false);
    if (failed == 0 && (count < 1 || count > MIMO_MAX_TAPS)) {
        PyErr_Format(PyExc_ValueError, "draft.taps: expected 1 to %d layers, found %zu", MIMO_MAX_TAPS, count);
        failed = -1;
    }
    for (size_t i = 0; failed == 0 && i < count; i++)
        config->tap[i] = taps[i];
    mimo_free(taps);
    config->model.taps = (uint32_t)count;
    if (failed == 0)
        failed = read_numbers_of(&out->target_id, &ids, dict, "target_ids", true);
    if (failed == 0 && out->target_id != NULL && ids != config->model.vocab) {
        PyErr_Format(PyExc_ValueError, "draft.target_ids: expected %u ids, the drafter's vocabulary, found %zu",
                     config->model.vocab, ids);
        failed = -1;
    }
    config->target_id = out->target_id;
    return failed;
}

int mimo_python_draft_read(mimo_python_draft *out, PyObject *dict)
{
    *out = (mimo_python_draft){0};
    if (!PyMapping_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "draft: expected a dict or None, found %R", dict);
        return -1;
    }
    int failed = read_draft_config(out, dict);
    PyObject *tensors = failed == 0 ? item(dict, "draft", "tensors") : NULL;
    if (failed == 0)
        failed = tensors != NULL ? mimo_python_tensors_read(&out->tensors, tensors) : -1;
    Py_XDECREF(tensors);
    out->source.tensors = out->tensors.tensor;
    out->source.count = out->tensors.count;
    if (failed < 0)
        mimo_python_draft_free(out);
    return failed;
}

void mimo_python_draft_free(mimo_python_draft *draft)
{
    mimo_python_tensors_free(&draft->tensors);
    mimo_free(draft->target_id);
    *draft = (mimo_python_draft){0};
}
