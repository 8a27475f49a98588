#include "cuda/device.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/size.h"

static const char *const kernel_names[] = {
#define MIMO_CUDA_KERNEL(name) "mimo_plain_" #name,
#include "cuda/kernels.def"
#undef MIMO_CUDA_KERNEL
    "mimo_fill_values",
};

/* ---- opening ---- */

static mimo_status count_devices(const mimo_cuda_driver *driver, int *count, mimo_error *err)
{
    *count = 0;
    const int result = driver->device_count(count);
    if (result == MIMO_CUDA_NO_DEVICE || (result == 0 && *count <= 0))
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "CUDA: the driver is here, and no GPU that this process may use (CUDA_VISIBLE_DEVICES?)");
    return mimo_cuda_check(driver, result, MIMO_ERR_UNSUPPORTED, "cannot count the GPUs", err);
}

static mimo_status list_names(const mimo_cuda_driver *driver, char (*names)[128], size_t room, size_t *count,
                              mimo_error *err)
{
    int found, device;
    MIMO_TRY(count_devices(driver, &found, err));
    *count = (size_t)found;
    for (int i = 0; i < found && (size_t)i < room; i++) {
        memset(names[i], 0, sizeof names[i]);
        MIMO_TRY(
            mimo_cuda_check(driver, driver->device_get(&device, i), MIMO_ERR_UNSUPPORTED, "cannot open a GPU", err));
        MIMO_TRY(mimo_cuda_check(driver, driver->device_name(names[i], sizeof names[i] - 1, device),
                                 MIMO_ERR_UNSUPPORTED, "cannot name a GPU", err));
    }
    return MIMO_OK;
}

mimo_status mimo_cuda_list(char (*names)[128], size_t room, size_t *count, mimo_error *err)
{
    mimo_cuda_driver driver;
    MIMO_TRY(mimo_cuda_driver_open(&driver, err));
    const mimo_status status = list_names(&driver, names, room, count, err);
    mimo_cuda_driver_close(&driver);
    return status;
}

static mimo_status ask(mimo_cuda_device *d, uint32_t *out, int attribute, uint32_t least, mimo_error *err)
{
    int value = 0;
    MIMO_TRY(mimo_cuda_check(&d->driver, d->driver.device_attribute(&value, attribute, d->number), MIMO_ERR_UNSUPPORTED,
                             "cannot ask what the GPU has", err));
    *out = value > (int)least ? (uint32_t)value : least;
    return MIMO_OK;
}

static mimo_status choose_device(mimo_cuda_device *d, uint32_t ordinal, mimo_error *err)
{
    int count;
    MIMO_TRY(count_devices(&d->driver, &count, err));
    if (ordinal >= (uint32_t)count)
        return MIMO_FAIL(err, MIMO_ERR_VALUE, "device: expected a GPU from 0 to %d, found %u", count - 1, ordinal);
    MIMO_TRY(mimo_cuda_check(&d->driver, d->driver.device_get(&d->number, (int)ordinal), MIMO_ERR_UNSUPPORTED,
                             "cannot open the GPU", err));
    MIMO_TRY(mimo_cuda_check(&d->driver, d->driver.device_name(d->name, sizeof d->name - 1, d->number),
                             MIMO_ERR_UNSUPPORTED, "cannot name the GPU", err));
    MIMO_TRY(ask(d, &d->processors, MIMO_CUDA_ATTRIBUTE_PROCESSORS, 1, err));
    MIMO_TRY(ask(d, &d->shared_bytes, MIMO_CUDA_ATTRIBUTE_SHARED_BYTES, 1, err));
    MIMO_TRY(ask(d, &d->l2_bytes, MIMO_CUDA_ATTRIBUTE_L2_BYTES, 1, err));
    uint32_t minor;
    MIMO_TRY(ask(d, &d->capability, MIMO_CUDA_ATTRIBUTE_MAJOR, 0, err));
    MIMO_TRY(ask(d, &minor, MIMO_CUDA_ATTRIBUTE_MINOR, 0, err));
    d->capability = 10 * d->capability + minor;
    return MIMO_OK;
}

static mimo_status find_kernel(mimo_cuda_device *d, void **function, const char *name, mimo_error *err)
{
    return mimo_cuda_check(&d->driver, d->driver.module_function(function, d->module, name), MIMO_ERR_UNSUPPORTED, name,
                           err);
}

static mimo_status find_resident(mimo_cuda_device *d, mimo_error *err)
{
    MIMO_TRY(find_kernel(d, &d->function[MIMO_CUDA_fill], kernel_names[MIMO_CUDA_fill], err));
    MIMO_TRY(find_kernel(d, &d->resident, "mimo_resident", err));
    return mimo_cuda_check(
        &d->driver, d->driver.function_attribute(d->resident, MIMO_CUDA_FUNCTION_SHARED_BYTES, (int)d->shared_bytes),
        MIMO_ERR_UNSUPPORTED, "the GPU's shared memory for mimo_resident", err);
}

static mimo_status find_kernels(mimo_cuda_device *d, mimo_error *err)
{
    for (int i = 0; i < MIMO_CUDA_KERNELS; i++)
        MIMO_TRY(find_kernel(d, &d->function[i], kernel_names[i], err));
    return MIMO_OK;
}

static mimo_status load_image(mimo_cuda_device *d, const void *image, const char *path, bool resident, mimo_error *err)
{
    const int result = d->driver.module_load(&d->module, image);
    if (result == MIMO_CUDA_NO_BINARY) {
        const char *suffix = d->capability >= 90 ? "a" : ""; /* setmaxnreg is of one architecture only */
        return MIMO_FAIL(err, MIMO_ERR_UNSUPPORTED,
                         "CUDA: %s has no kernels for %s (sm_%u); build with MIMO_CUDA_ARCH=sm_%u%s", path, d->name,
                         d->capability, d->capability, suffix);
    }
    MIMO_TRY(mimo_cuda_check(&d->driver, result, MIMO_ERR_UNSUPPORTED, "cannot load the kernels", err));
    return resident ? find_resident(d, err) : find_kernels(d, err);
}

static mimo_status read_image(mimo_cuda_device *d, const char *path, bool resident, mimo_error *err)
{
    mimo_file file;
    MIMO_TRY(mimo_file_open(&file, path, err));
    void *image = NULL;
    mimo_status status = mimo_alloc_array(&image, file.size + 1, 1, "GPU kernels", err);
    if (status == MIMO_OK)
        status = mimo_file_read(&file, image, 0, file.size, err);
    if (status == MIMO_OK)
        status = load_image(d, image, path, resident, err);
    mimo_free(image);
    mimo_file_close(&file);
    return status;
}

static mimo_status open_parts(mimo_cuda_device *d, uint32_t ordinal, const char *image, bool resident, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_driver_open(&d->driver, err));
    const mimo_cuda_driver *driver = &d->driver;
    MIMO_TRY(choose_device(d, ordinal, err));
    MIMO_TRY(mimo_cuda_check(driver, driver->context_retain(&d->context, d->number), MIMO_ERR_UNSUPPORTED,
                             "cannot make a context", err));
    d->retained = true;
    MIMO_TRY(mimo_cuda_enter(d, err));
    MIMO_TRY(read_image(d, image, resident, err));
    MIMO_TRY(mimo_cuda_check(driver, driver->stream_open(&d->stream, MIMO_CUDA_STREAM_ALONE), MIMO_ERR_UNSUPPORTED,
                             "cannot make a stream", err));
    size_t available = 0, total = 0;
    MIMO_TRY(mimo_cuda_check(driver, driver->memory_info(&available, &total), MIMO_ERR_UNSUPPORTED,
                             "cannot ask for free memory", err));
    d->available = available;
    return MIMO_OK;
}

mimo_status mimo_cuda_device_open(mimo_cuda_device *device, uint32_t ordinal, const char *image, bool resident,
                                  mimo_error *err)
{
    *device = (mimo_cuda_device){0};
    const mimo_status status = open_parts(device, ordinal, image, resident, err);
    if (status != MIMO_OK)
        mimo_cuda_device_close(device);
    return status;
}

/* A lost device refuses these, and what it held is freed with its context. */
void mimo_cuda_device_close(mimo_cuda_device *device)
{
    const mimo_cuda_driver *driver = &device->driver;
    if (device->retained) {
        (void)driver->context_set(device->context);
        if (device->stream != NULL)
            (void)driver->stream_close(device->stream);
        if (device->module != NULL)
            (void)driver->module_unload(device->module);
        (void)driver->context_release(device->number);
    }
    mimo_cuda_driver_close(&device->driver);
    device->retained = false;
    device->context = device->stream = device->module = NULL;
}

mimo_status mimo_cuda_enter(mimo_cuda_device *device, mimo_error *err)
{
    return mimo_cuda_check(&device->driver, device->driver.context_set(device->context), MIMO_ERR_ENGINE,
                           "cannot use the GPU's context", err);
}

/* ---- memory ---- */

mimo_status mimo_cuda_alloc(mimo_cuda_device *device, mimo_cuda_ptr *out, size_t bytes, const char *what,
                            mimo_error *err)
{
    *out = 0;
    if (bytes == 0)
        return MIMO_OK;
    return mimo_cuda_check(&device->driver, device->driver.alloc(out, bytes), MIMO_ERR_ENGINE, what, err);
}

mimo_status mimo_cuda_alloc_host(mimo_cuda_device *device, void *out, size_t bytes, const char *what, mimo_error *err)
{
    void *memory = NULL;
    const mimo_status status = mimo_cuda_check(
        &device->driver, device->driver.host_alloc(&memory, bytes > 0 ? bytes : 1), MIMO_ERR_ENGINE, what, err);
    memcpy(out, &memory, sizeof memory);
    return status;
}

void mimo_cuda_release(mimo_cuda_device *device, mimo_cuda_ptr *memory)
{
    if (*memory != 0)
        (void)device->driver.release(*memory);
    *memory = 0;
}

void mimo_cuda_release_host(mimo_cuda_device *device, void *memory)
{
    if (memory != NULL)
        (void)device->driver.host_release(memory);
}

mimo_status mimo_cuda_write(mimo_cuda_device *device, mimo_cuda_ptr to, const void *from, size_t bytes, mimo_error *err)
{
    if (bytes == 0)
        return MIMO_OK;
    const mimo_cuda_driver *driver = &device->driver;
    MIMO_TRY(mimo_cuda_check(driver, driver->copy_in(to, from, bytes, device->stream), MIMO_ERR_ENGINE,
                             "cannot copy to the GPU", err));
    return mimo_cuda_check(driver, driver->stream_wait(device->stream), MIMO_ERR_ENGINE, "cannot copy to the GPU", err);
}

/* ---- queue ---- */

static void note(mimo_cuda_device *device, int result, const char *what)
{
    (void)mimo_cuda_check(&device->driver, result, MIMO_ERR_ENGINE, what, &device->lost);
}

static bool is_usable(const mimo_cuda_device *device)
{
    return device->lost.code == MIMO_OK;
}

void mimo_cuda_queue_in(mimo_cuda_device *device, mimo_cuda_ptr to, const void *from, size_t bytes)
{
    if (is_usable(device) && bytes > 0)
        note(device, device->driver.copy_in(to, from, bytes, device->stream), "copy to the GPU");
}

void mimo_cuda_queue_out(mimo_cuda_device *device, void *to, mimo_cuda_ptr from, size_t bytes)
{
    if (is_usable(device) && bytes > 0)
        note(device, device->driver.copy_out(to, from, bytes, device->stream), "copy from the GPU");
}

void mimo_cuda_queue_over(mimo_cuda_device *device, mimo_cuda_ptr to, mimo_cuda_ptr from, size_t bytes)
{
    if (is_usable(device) && bytes > 0)
        note(device, device->driver.copy_over(to, from, bytes, device->stream), "copy on the GPU");
}

void mimo_cuda_queue_kernel(mimo_cuda_device *device, mimo_cuda_kernel kernel, uint32_t ctas, size_t scratch_bytes,
                            const mimo_cuda_state *state, uint32_t layer)
{
    if (!is_usable(device))
        return;
    mimo_cuda_state s = *state;
    void *parameters[] = {&s, &layer};
    note(device,
         device->driver.launch(device->function[kernel], ctas, 1, 1, 32 * MIMO_CUDA_WARPS, 1, 1,
                               (unsigned)scratch_bytes, device->stream, parameters, NULL),
         kernel_names[kernel]);
}

void mimo_cuda_queue_fill(mimo_cuda_device *device, const mimo_fill *fill)
{
    enum { CTAS_OF_PROCESSOR = 8 };
    if (!is_usable(device) || mimo_fill_grains(fill) == 0)
        return;
    mimo_fill f = *fill;
    void *parameters[] = {&f};
    const uint64_t tiles = (mimo_fill_grains(fill) + MIMO_FILL_TILE_GRAINS - 1) / MIMO_FILL_TILE_GRAINS;
    const size_t ctas = mimo_min(tiles, CTAS_OF_PROCESSOR * (size_t)device->processors);
    note(device,
         device->driver.launch(device->function[MIMO_CUDA_fill], (unsigned)ctas, 1, 1, 32 * MIMO_CUDA_WARPS, 1, 1, 0,
                               device->stream, parameters, NULL),
         kernel_names[MIMO_CUDA_fill]);
}

void mimo_cuda_queue_event(mimo_cuda_device *device, void *event)
{
    if (is_usable(device))
        note(device, device->driver.event_record(event, device->stream), "a mark in the queue");
}

mimo_status mimo_cuda_event_open(mimo_cuda_device *device, void **event, mimo_error *err)
{
    *event = NULL;
    return mimo_cuda_check(&device->driver, device->driver.event_open(event, 0), MIMO_ERR_ENGINE,
                           "cannot make an event", err);
}

void mimo_cuda_event_close(mimo_cuda_device *device, void *event)
{
    if (event != NULL)
        (void)device->driver.event_close(event);
}

double mimo_cuda_event_seconds(mimo_cuda_device *device, void *begin, void *end)
{
    float milliseconds = 0.0f;
    if (is_usable(device))
        note(device, device->driver.event_time(&milliseconds, begin, end), "time between two marks");
    return (double)milliseconds * 1e-3;
}

void mimo_cuda_queue_graph(mimo_cuda_device *device, void *graph)
{
    if (is_usable(device))
        note(device, device->driver.graph_run(graph, device->stream), "start of a step");
}

void mimo_cuda_queue_resident(mimo_cuda_device *device, uint32_t ctas, uint32_t threads, void **parameters)
{
    if (is_usable(device))
        note(device,
             device->driver.launch_together(device->resident, ctas, 1, 1, threads, 1, 1, device->shared_bytes,
                                            device->stream, parameters),
             "start of the resident kernel");
}

bool mimo_cuda_is_idle(mimo_cuda_device *device)
{
    if (!is_usable(device))
        return true;
    const int result = device->driver.stream_query(device->stream);
    if (result == MIMO_CUDA_NOT_READY)
        return false;
    note(device, result, "the resident kernel");
    return true;
}

void mimo_cuda_wait(mimo_cuda_device *device)
{
    if (is_usable(device))
        note(device, device->driver.stream_wait(device->stream), "a step");
}

void mimo_cuda_record(mimo_cuda_device *device)
{
    if (is_usable(device))
        note(device, device->driver.capture_begin(device->stream, MIMO_CUDA_CAPTURE_THREAD), "record of a step");
}

mimo_status mimo_cuda_recorded(mimo_cuda_device *device, void **graph, mimo_error *err)
{
    MIMO_TRY(mimo_cuda_device_check(device, err));
    const mimo_cuda_driver *driver = &device->driver;
    void *recorded = NULL;
    MIMO_TRY(mimo_cuda_check(driver, driver->capture_end(device->stream, &recorded), MIMO_ERR_ENGINE,
                             "record of a step", err));
    const mimo_status status =
        mimo_cuda_check(driver, driver->graph_build(graph, recorded, 0), MIMO_ERR_ENGINE, "graph of a step", err);
    (void)driver->graph_close(recorded);
    return status;
}

void mimo_cuda_forget(mimo_cuda_device *device, void *graph)
{
    if (graph != NULL)
        (void)device->driver.graph_free(graph);
}

mimo_status mimo_cuda_device_check(const mimo_cuda_device *device, mimo_error *err)
{
    if (device->lost.code == MIMO_OK)
        return MIMO_OK;
    return MIMO_FAIL(err, MIMO_ERR_ENGINE, "the GPU (%s) is lost: %s", device->name, device->lost.text);
}
