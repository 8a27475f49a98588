#include "cuda/fake.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "cuda/fake_work.h"
#include "cuda/host_ctas.h"

enum { HEADER = 256, MOST_QUEUED = 1 << 16 };

typedef struct work_list {
    mimo_fake_work *item;
    size_t count, room;
} work_list;

static struct {
    pthread_mutex_t mutex;
    mimo_cuda_fake_options options;
    mimo_cuda_fake_stats stats;
    bool lost, recording;
    work_list queue, record;
    pthread_t runner; /* runs the queue beside its caller, */
    bool runs;        /* who has asked whether it is done, */
    atomic_bool ran;  /* which it is, */
    int result;       /* with this */
} fake = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- failing ---- */

static int enter(void)
{
    pthread_mutex_lock(&fake.mutex);
    fake.stats.calls++;
    if (fake.lost)
        return fake.options.fail_result;
    if (fake.options.fail_at == 0 || fake.stats.calls != fake.options.fail_at)
        return 0;
    fake.lost = fake.options.fail_for_good;
    return fake.options.fail_result;
}

static int leave(int result)
{
    pthread_mutex_unlock(&fake.mutex);
    return result;
}

#define ENTER()                                                                                                        \
    do {                                                                                                               \
        const int result_ = enter();                                                                                   \
        if (result_ != 0)                                                                                              \
            return leave(result_);                                                                                     \
    } while (0)

static int fake_error_name(int result, const char **text)
{
    *text = result == 0 ? "CUDA_SUCCESS" : "CUDA_ERROR_FAKED";
    return 0;
}

static int fake_error_text(int result, const char **text)
{
    const char *fault = fake.options.kernels != NULL ? fake.options.kernels->fault() : "";
    *text = result == 0 ? "no error" : fault[0] != '\0' ? fault : "a test made this call fail";
    return 0;
}

/* ---- devices ---- */

static int fake_init(unsigned flags)
{
    (void)flags;
    ENTER();
    return leave(fake.options.init_result);
}

static int fake_version(int *version)
{
    ENTER();
    *version = 13000;
    return leave(0);
}

static int fake_device_count(int *count)
{
    ENTER();
    *count = (int)fake.options.devices;
    return leave(*count > 0 ? 0 : MIMO_CUDA_NO_DEVICE);
}

static int fake_device_get(int *device, int ordinal)
{
    ENTER();
    *device = ordinal;
    return leave(0);
}

static int fake_device_name(char *name, int size, int device)
{
    (void)device;
    ENTER();
    strncpy(name, "a GPU made up by a test", (size_t)size - 1);
    name[size - 1] = '\0';
    return leave(0);
}

static int fake_device_attribute(int *value, int attribute, int device)
{
    (void)device;
    ENTER();
    *value = attribute == MIMO_CUDA_ATTRIBUTE_PROCESSORS     ? (int)fake.options.processors
             : attribute == MIMO_CUDA_ATTRIBUTE_MAJOR        ? (int)fake.options.capability / 10
             : attribute == MIMO_CUDA_ATTRIBUTE_MINOR        ? (int)fake.options.capability % 10
             : attribute == MIMO_CUDA_ATTRIBUTE_SHARED_BYTES ? MIMO_SM90_SHARED
                                                             : 0;
    return leave(0);
}

/* Contexts, modules and streams are only counted. */
static int open_handle(void **handle)
{
    ENTER();
    fake.stats.live_handles++;
    *handle = &fake;
    return leave(0);
}

static int close_handle(void)
{
    pthread_mutex_lock(&fake.mutex);
    fake.stats.live_handles--;
    return leave(0);
}

static int fake_context_retain(void **context, int device)
{
    (void)device;
    return open_handle(context);
}

static int fake_context_release(int device)
{
    (void)device;
    return close_handle();
}

static int fake_context_set(void *context)
{
    (void)context;
    ENTER();
    return leave(0);
}

static int fake_module_load(void **module, const void *image)
{
    (void)image;
    if (fake.options.module_result != 0)
        return fake.options.module_result;
    return open_handle(module);
}

static int fake_module_unload(void *module)
{
    (void)module;
    return close_handle();
}

static int fake_module_function(void **function, void *module, const char *name)
{
    (void)module;
    ENTER();
    const void *known = name; /* a constant of device.c */
    memcpy(function, &known, sizeof known);
    return leave(0);
}

static int fake_stream_open(void **stream, unsigned flags)
{
    (void)flags;
    return open_handle(stream);
}

static int fake_stream_close(void *stream)
{
    (void)stream;
    return close_handle();
}

/* ---- memory ---- */

static int fake_memory_info(size_t *available, size_t *total)
{
    ENTER();
    *total = fake.options.memory;
    *available = fake.options.memory - mimo_min(fake.stats.live_bytes, fake.options.memory);
    return leave(0);
}

static int join(void)
{
    pthread_join(fake.runner, NULL);
    fake.runs = false;
    fake.queue.count = 0;
    return fake.result;
}

/* A block remembers its size before its first byte, and is full of NaN: nobody may count on zeros. */
static void *take(size_t bytes)
{
    uint8_t *block = mimo_alloc(bytes + HEADER);
    if (block == NULL)
        return NULL;
    memcpy(block, &bytes, sizeof bytes);
    memset(block + HEADER, 0xff, bytes);
    fake.stats.live_bytes += bytes;
    fake.stats.live_blocks++;
    if (fake.options.kernels != NULL)
        fake.options.kernels->memory(block + HEADER, bytes, 1);
    return block + HEADER;
}

/* As a GPU's, memory is freed when nothing runs. */
static int give_back(void *memory)
{
    pthread_mutex_lock(&fake.mutex);
    if (fake.runs)
        (void)join();
    uint8_t *block = (uint8_t *)memory - HEADER;
    size_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    fake.stats.live_bytes -= bytes;
    fake.stats.live_blocks--;
    if (fake.options.kernels != NULL)
        fake.options.kernels->memory(memory, bytes, 0);
    mimo_free(block);
    return leave(0);
}

static int fake_alloc(mimo_cuda_ptr *memory, size_t bytes)
{
    ENTER();
    void *block = fake.stats.live_bytes + bytes <= fake.options.memory ? take(bytes) : NULL;
    *memory = (mimo_cuda_ptr)(uintptr_t)block;
    return leave(block != NULL ? 0 : FAKE_OUT_OF_MEMORY);
}

static int fake_release(mimo_cuda_ptr memory)
{
    return give_back((void *)(uintptr_t)memory);
}

static int fake_host_alloc(void **memory, size_t bytes)
{
    ENTER();
    *memory = take(bytes);
    return leave(*memory != NULL ? 0 : FAKE_OUT_OF_MEMORY);
}

/* ---- streams ---- */

static int queue(const mimo_fake_work *item)
{
    work_list *list = fake.recording ? &fake.record : &fake.queue;
    if (list->count == list->room) {
        const size_t room = mimo_max(64, 2 * list->room);
        mimo_fake_work *more = room <= MOST_QUEUED ? mimo_alloc(room * sizeof *more) : NULL;
        if (more == NULL)
            return FAKE_OUT_OF_MEMORY;
        if (list->count > 0)
            memcpy(more, list->item, list->count * sizeof *more);
        mimo_free(list->item);
        list->item = more;
        list->room = room;
    }
    list->item[list->count++] = *item;
    return 0;
}

static int fake_copy_in(mimo_cuda_ptr to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    ENTER();
    fake.stats.copied_in += bytes;
    return leave(
        queue(&(mimo_fake_work){.kind = WORK_COPY, .to = (void *)(uintptr_t)to, .from = from, .bytes = bytes}));
}

static int fake_copy_out(void *to, mimo_cuda_ptr from, size_t bytes, void *stream)
{
    (void)stream;
    ENTER();
    fake.stats.copied_out += bytes;
    return leave(
        queue(&(mimo_fake_work){.kind = WORK_COPY, .to = to, .from = (void *)(uintptr_t)from, .bytes = bytes}));
}

static int fake_copy_over(mimo_cuda_ptr to, mimo_cuda_ptr from, size_t bytes, void *stream)
{
    (void)stream;
    ENTER();
    const void *source = (void *)(uintptr_t)from;
    return leave(
        queue(&(mimo_fake_work){.kind = WORK_COPY, .to = (void *)(uintptr_t)to, .from = source, .bytes = bytes}));
}

static int fake_fill(mimo_cuda_ptr to, unsigned char value, size_t bytes, void *stream)
{
    (void)stream;
    ENTER();
    return leave(queue(
        &(mimo_fake_work){.kind = WORK_FILL, .to = (void *)(uintptr_t)to, .bytes = bytes, .layer = (uint32_t)value}));
}

static int fake_launch(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **parameters,
                       void **extra)
{
    (void)stream;
    (void)extra;
    ENTER();
    if (grid_y * grid_z * block_y * block_z != 1 || grid_x == 0 || block_x % 32 != 0)
        return leave(FAKE_INVALID_VALUE);
    mimo_fake_work item = {
        .kind = WORK_LAUNCH, .kernel = function, .ctas = grid_x, .threads = block_x, .bytes = shared_bytes};
    if (strcmp(item.kernel, "mimo_fill_values") == 0) {
        item.kind = WORK_VALUES;
        memcpy(&item.fill, parameters[0], sizeof item.fill);
        return leave(queue(&item));
    }
    memcpy(&item.state, parameters[0], sizeof item.state);
    memcpy(&item.layer, parameters[1], sizeof item.layer);
    return leave(queue(&item));
}

static int fake_function_attribute(void *function, int attribute, int value)
{
    (void)function;
    ENTER();
    return leave(attribute == MIMO_CUDA_FUNCTION_SHARED_BYTES && value <= MIMO_SM90_SHARED ? 0 : FAKE_INVALID_VALUE);
}

static int fake_launch_together(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream,
                                void **parameters)
{
    (void)stream;
    ENTER();
    mimo_fake_work item = {
        .kind = WORK_RESIDENT, .kernel = function, .ctas = grid_x, .threads = block_x, .bytes = shared_bytes};
    const bool fits =
        grid_x <= fake.options.processors && grid_x <= MIMO_HOST_MOST_CTAS && shared_bytes <= MIMO_SM90_SHARED;
    if (grid_y * grid_z * block_y * block_z != 1 || !fits || block_x != MIMO_RESIDENT_LOADERS + MIMO_RESIDENT_TEAM ||
        strcmp(function, "mimo_resident") != 0)
        return leave(FAKE_INVALID_VALUE);
    mimo_fake_resident *r = &item.resident;
    memcpy(&r->machine, parameters[0], sizeof r->machine);
    memcpy(&r->layout, parameters[1], sizeof r->layout);
    memcpy(&r->lost, parameters[2], sizeof r->lost);
    memcpy(&r->step, parameters[3], sizeof r->step);
    memcpy(&r->end, parameters[4], sizeof r->end);
    return leave(queue(&item));
}

/* All that is queued, on the thread that calls or on the runner; nothing is queued meanwhile. */
static int run_queue(void)
{
    int result = 0;
    for (size_t i = 0; i < fake.queue.count && result == 0; i++) {
        fake.stats.launches += fake.queue.item[i].kind == WORK_LAUNCH || fake.queue.item[i].kind == WORK_RESIDENT;
        result = mimo_fake_run(&fake.queue.item[i], fake.options.kernels);
    }
    return result;
}

static void *run_beside(void *unused)
{
    (void)unused;
    fake.result = run_queue();
    atomic_store(&fake.ran, true);
    return NULL;
}

static int fake_stream_wait(void *stream)
{
    (void)stream;
    ENTER();
    if (fake.runs)
        return leave(join());
    const int result = run_queue();
    fake.queue.count = 0;
    return leave(result);
}

/* Who asks lets the queue run beside him from then on. */
static int fake_stream_query(void *stream)
{
    (void)stream;
    ENTER();
    if (fake.runs)
        return leave(atomic_load(&fake.ran) ? join() : MIMO_CUDA_NOT_READY);
    if (fake.queue.count == 0)
        return leave(0);
    atomic_store(&fake.ran, false);
    fake.runs = pthread_create(&fake.runner, NULL, run_beside, NULL) == 0;
    return leave(fake.runs ? MIMO_CUDA_NOT_READY : FAKE_OUT_OF_MEMORY);
}

/* ---- events: the time at which the stream passed them ---- */

static int fake_event_open(void **event, unsigned flags)
{
    (void)flags;
    ENTER();
    *event = mimo_alloc(sizeof(double));
    fake.stats.live_handles++;
    return leave(*event != NULL ? 0 : FAKE_OUT_OF_MEMORY);
}

static int fake_event_close(void *event)
{
    mimo_free(event);
    return close_handle();
}

static int fake_event_record(void *event, void *stream)
{
    (void)stream;
    ENTER();
    return leave(queue(&(mimo_fake_work){.kind = WORK_EVENT, .to = event}));
}

static int fake_event_time(float *milliseconds, void *begin, void *end)
{
    ENTER();
    *milliseconds = (float)(*(double *)end - *(double *)begin);
    return leave(0);
}

/* ---- graphs ---- */

static int fake_capture_begin(void *stream, int mode)
{
    (void)stream;
    ENTER();
    if (fake.recording || mode != MIMO_CUDA_CAPTURE_THREAD)
        return leave(FAKE_INVALID_VALUE);
    fake.recording = true;
    return leave(0);
}

static int fake_capture_end(void *stream, void **graph)
{
    (void)stream;
    ENTER();
    work_list *list = fake.recording ? mimo_alloc(sizeof *list) : NULL;
    if (list == NULL)
        return leave(FAKE_OUT_OF_MEMORY);
    *list = fake.record;
    fake.record = (work_list){0};
    fake.recording = false;
    fake.stats.live_handles++;
    *graph = list;
    return leave(0);
}

static int fake_graph_build(void **exec, void *graph, unsigned long long flags)
{
    (void)flags;
    ENTER();
    work_list *from = graph, *list = mimo_alloc(sizeof *list);
    if (list == NULL)
        return leave(FAKE_OUT_OF_MEMORY);
    *list = *from;
    *from = (work_list){0};
    fake.stats.live_handles++;
    *exec = list;
    return leave(0);
}

static int fake_graph_run(void *exec, void *stream)
{
    (void)stream;
    ENTER();
    const work_list *list = exec;
    int result = 0;
    for (size_t i = 0; i < list->count && result == 0; i++)
        result = queue(&list->item[i]);
    fake.stats.graphs++;
    return leave(result);
}

static int fake_graph_close(void *graph)
{
    work_list *list = graph;
    mimo_free(list->item);
    mimo_free(list);
    return close_handle();
}

static const mimo_cuda_driver table = {
    .init = fake_init,
    .version = fake_version,
    .error_name = fake_error_name,
    .error_text = fake_error_text,
    .device_count = fake_device_count,
    .device_get = fake_device_get,
    .device_name = fake_device_name,
    .device_attribute = fake_device_attribute,
    .context_retain = fake_context_retain,
    .context_release = fake_context_release,
    .context_set = fake_context_set,
    .module_load = fake_module_load,
    .module_unload = fake_module_unload,
    .module_function = fake_module_function,
    .function_attribute = fake_function_attribute,
    .memory_info = fake_memory_info,
    .alloc = fake_alloc,
    .release = fake_release,
    .host_alloc = fake_host_alloc,
    .host_release = give_back,
    .copy_in = fake_copy_in,
    .copy_out = fake_copy_out,
    .copy_over = fake_copy_over,
    .fill = fake_fill,
    .stream_open = fake_stream_open,
    .stream_close = fake_stream_close,
    .stream_wait = fake_stream_wait,
    .stream_query = fake_stream_query,
    .event_open = fake_event_open,
    .event_close = fake_event_close,
    .event_record = fake_event_record,
    .event_time = fake_event_time,
    .capture_begin = fake_capture_begin,
    .capture_end = fake_capture_end,
    .graph_close = fake_graph_close,
    .graph_build = fake_graph_build,
    .graph_run = fake_graph_run,
    .graph_free = fake_graph_close,
    .launch = fake_launch,
    .launch_together = fake_launch_together,
};

void mimo_cuda_fake_use(const mimo_cuda_fake_options *options)
{
    pthread_mutex_lock(&fake.mutex);
    if (fake.runs) /* what it runs is about to be freed */
        (void)join();
    if (options != NULL)
        fake.options = *options;
    fake.stats.calls = fake.stats.launches = fake.stats.graphs = fake.stats.copied_in = fake.stats.copied_out = 0;
    fake.lost = fake.recording = false;
    mimo_free(fake.queue.item);
    mimo_free(fake.record.item);
    fake.queue = fake.record = (work_list){0};
    pthread_mutex_unlock(&fake.mutex);
    mimo_cuda_driver_replace(options != NULL ? &table : NULL);
}

mimo_cuda_fake_stats mimo_cuda_fake_read_stats(void)
{
    pthread_mutex_lock(&fake.mutex);
    const mimo_cuda_fake_stats stats = fake.stats;
    pthread_mutex_unlock(&fake.mutex);
    return stats;
}
