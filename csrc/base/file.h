/* Read-only files, read with pread: a file that shrinks under us is an error and not a signal. */
#ifndef MIMO_BASE_FILE_H
#define MIMO_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mimo_file {
    int fd;           /* -1 when closed */
    uint64_t size;    /* bytes, when opened */
    const char *path; /* borrowed; for messages */
} mimo_file;

/* Opens a regular file. `path` must outlive the file. */
MIMO_MUST_CHECK mimo_status mimo_file_open(mimo_file *file, const char *path, mimo_error *err);
void mimo_file_close(mimo_file *file);

/* Reads exactly `bytes` bytes at `offset`. Fewer in the file is MIMO_ERR_FORMAT ("truncated"). Any thread. */
MIMO_MUST_CHECK mimo_status mimo_file_read(const mimo_file *file, void *out, uint64_t offset, size_t bytes,
                                           mimo_error *err);

#endif
