#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static mimo_status fail_io(mimo_error *err, const char *path, const char *what, int code)
{
    const mimo_status status = MIMO_FAIL(err, MIMO_ERR_IO, "%s: %s%s", path, what, strerror(code));
    if (err != NULL)
        err->system_code = code;
    return status;
}

mimo_status mimo_file_open(mimo_file *file, const char *path, mimo_error *err)
{
    *file = (mimo_file){.fd = -1, .path = path};
    /* O_NONBLOCK: opening a FIFO must not wait for a writer before fstat can refuse it. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_io(err, path, "", errno);
    struct stat info;
    if (fstat(fd, &info) != 0) {
        const int code = errno;
        close(fd);
        return fail_io(err, path, "", code);
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: expected a regular file", path);
    }
    file->fd = fd;
    file->size = (uint64_t)info.st_size;
    return MIMO_OK;
}

void mimo_file_close(mimo_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

mimo_status mimo_file_read(const mimo_file *file, void *out, uint64_t offset, size_t bytes, mimo_error *err)
{
    char *to = out;
    while (bytes > 0) {
        const ssize_t n = pread(file->fd, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_io(err, file->path, "read: ", errno);
        if (n == 0)
            return MIMO_FAIL(err, MIMO_ERR_FORMAT, "%s: truncated: expected %zu more bytes at byte %llu, found the end",
                             file->path, bytes, (unsigned long long)offset);
        to += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return MIMO_OK;
}
