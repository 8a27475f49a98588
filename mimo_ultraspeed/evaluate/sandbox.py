"""Runs programs that a model wrote, in a process of their own with next to nothing in reach.

No network, the file system read-only but for an empty folder in memory, no environment, limits on time, memory, files and (for
users other than root) processes. It is made of Linux namespaces, by `sandbox_child`; where there are none, nothing is run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .sandbox_child import REFUSED

__all__ = ["Outcome", "SandboxError", "run_program"]

_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); import sandbox_child; sandbox_child.main()"
_MOST_OUTPUT = 4000


class SandboxError(RuntimeError):
    """The system does not isolate programs, so none was run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It ran to its last line."""
    why: str
    """The end of what it said, or what stopped it; "" when it passed."""


def run_program(program: str, *, seconds: float = 10.0, memory_mib: int = 512) -> Outcome:
    """Runs Python source text. seconds: of the clock, and of processor time. Raises SandboxError."""
    end = secrets.token_hex(8)  # an early sys.exit(0) is no success
    with tempfile.TemporaryDirectory(prefix="mimo-ultraspeed-") as folder, tempfile.TemporaryFile() as said:
        command = [sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).resolve().parent)]
        process = subprocess.Popen(
            [*command, str(int(seconds) + 1), str(memory_mib)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(f"{program}\nprint('', {end!r}, sep='\\n')\n".encode("utf-8", "surrogatepass"))
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(max(0, said.seek(0, os.SEEK_END) - _MOST_OUTPUT))
        text = said.read().decode(errors="replace").strip()
    if code == REFUSED:
        raise SandboxError(f"programs cannot be isolated here: {text}")
    if code is None:
        return Outcome(False, f"stopped after {seconds:g} s")
    passed = code == 0 and text.endswith(end)
    return Outcome(passed, "" if passed else text or f"ended early, with exit status {code}")
