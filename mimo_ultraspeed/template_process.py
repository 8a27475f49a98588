"""The helper process for chat templates of unknown origin.

jinja2's sandbox stops a template from reaching Python's insides but not from using time and memory: `'a'*500000000`, nested loops
or a doubling string end only when the process does. In-process limits cannot interrupt one long C call, so such templates are
rendered in a small Python process of their own (`template_worker`) that has hard limits and can be killed. One helper serves the
whole process; it starts with the first render (about 150 ms), stays, and is started anew after a template has killed it. It runs
in its own session, so Ctrl-C does not reach it; it ends with its parent; a forked child starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .errors import TemplateError

__all__ = ["TemplateProcess", "shared_process"]

WALL_SECONDS = 10.0
MAX_REQUEST_BYTES = 64 << 20
MAX_ANSWER_BYTES = 64 << 20
_START = "import sys; sys.path += sys.argv[1:]; import template_worker; template_worker.main()"


def _command() -> list[str]:
    """The helper's command line: an isolated interpreter that sees only the folders of jinja2 and of this file."""
    folders = [str(Path(__file__).resolve().parent)]
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise TemplateError(f"chat templates need the {name} package, which is not installed")
        folders.append(str(Path(spec.origin).resolve().parent.parent))
    return [sys.executable, "-I", "-S", "-c", _START, *dict.fromkeys(folders)]


class TemplateProcess:
    """A renderer in a process with limits on processor time (1 s), memory (384 MiB) and output (4 Mi characters)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The rendered text. TemplateError if the template is wrong, raises, or exceeds a limit; the next call works again."""
        request = json.dumps({"template": template, "variables": variables}).encode()
        if len(request) > MAX_REQUEST_BYTES:
            raise TemplateError(
                f"chat template: messages and tools take {len(request)} bytes, at most {MAX_REQUEST_BYTES} are accepted"
            )
        with self._lock:
            process = self._running()
            try:
                answer = json.loads(self._exchange(process, request))
            except (OSError, EOFError) as error:
                raise TemplateError(f"chat template: {self._why_dead(error)}") from error
            except BaseException:  # also KeyboardInterrupt: an answer that nobody read must not be taken for the next one
                self._stop()
                raise
            if answer["last"]:
                self._stop()
        if "error" in answer:
            raise TemplateError(f"chat template: {answer['error']}")
        return str(answer["text"])

    def close(self) -> None:
        """Ends the helper. The next render starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        try:
            process = subprocess.Popen(
                _command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise TemplateError(f"chat template: the helper process did not start: {error}") from error
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._process = process
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Sends one frame and receives one, or raises EOFError, OSError (TimeoutError among them)."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + WALL_SECONDS
        unsent = memoryview(len(request).to_bytes(4, "big") + request)
        while unsent:
            _wait(process.stdin.fileno(), select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[os.write(process.stdin.fileno(), unsent) :]
        answer = bytearray()
        size = 4
        while len(answer) < size:
            _wait(process.stdout.fileno(), select.POLLIN, deadline)
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                raise EOFError
            answer += piece
            if len(answer) >= 4:
                size = 4 + int.from_bytes(answer[:4], "big")
                if size > MAX_ANSWER_BYTES:
                    raise OSError(f"an answer of {size} bytes")
        return bytes(answer[4:])

    def _why_dead(self, error: Exception) -> str:
        process = self._process
        if process is not None and isinstance(error, (EOFError, BrokenPipeError)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
        code = None if process is None else process.poll()
        self._stop()
        if code in (-signal.SIGPROF, -signal.SIGXCPU):
            return "stopped after 1 s of processor time"
        if isinstance(error, TimeoutError):
            return f"stopped after {WALL_SECONDS:g} s"
        return f"the helper process ended (exit status {code}): {error or 'no answer'}"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        process.wait()

    def forget(self) -> None:
        """In a forked child: drops the parent's helper without touching it, and the lock another thread may have held."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.returncode = 0  # not this process's child: nothing to wait for


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


_SHARED = TemplateProcess()
atexit.register(_SHARED.close)
os.register_at_fork(after_in_child=_SHARED.forget)


def shared_process() -> TemplateProcess:
    """The helper that all tokenizers of this process share."""
    return _SHARED
