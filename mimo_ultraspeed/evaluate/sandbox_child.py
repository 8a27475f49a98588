"""Runs in the sandbox's process: shuts the doors, then runs the program that stands on standard input. Linux only."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

__all__ = ["REFUSED", "main"]

REFUSED = 117
"""Exit status when the doors cannot be shut."""
_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x08000000 | 0x20000000  # user, mount, network, IPC, process ids
_PRIVATE, _NO_SUID_NO_DEV = 0x4000 | 0x40000, 2 | 4
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT = 38, 1
_FILE_BYTES = 16 << 20


def main() -> None:
    """sys.argv: seconds of processor time, MiB of memory. Works in the current folder, which becomes a file system in memory."""
    seconds, mebibytes = int(sys.argv[1]), int(sys.argv[2])
    program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    try:
        _shut_doors(Path.cwd())
        for what, limit in (
            (resource.RLIMIT_AS, mebibytes << 20),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, _FILE_BYTES),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_NPROC, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (limit, limit))
    except OSError as error:
        print(error)
        sys.exit(REFUSED)
    # The process ids of a new namespace begin with the first child, and end with it.
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(min(abs(os.waitstatus_to_exitcode(status)), 100))
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, 9)
    sys.argv = ["program.py"]
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})


def _shut_doors(folder: Path) -> None:
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    call("unshare", libc.unshare(_NAMESPACES))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    call("mount", libc.mount(None, b"/", None, _PRIVATE, None))
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY)
    call("mount_setattr", libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _RECURSIVE, attributes, ctypes.sizeof(attributes)))
    call("mount", libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", _NO_SUID_NO_DEV, b"size=64m"))
    os.chdir(folder)
    call("prctl", libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
