"""Renders chat templates; also the whole of the helper program in which templates of unknown origin are rendered.

As a helper it reads requests from stdin and writes answers to stdout, each a 4-byte big-endian length and that much JSON:
`{"template": text, "variables": object}` is answered by `{"text": rendered}` or `{"error": why}`, with `"last": true` if the
process ends thereafter. Before the first request it gives up memory, new files, new processes and file growth; each request has a
budget of processor time, and exceeding it ends the process by signal. It ends when stdin closes or its parent is gone. It imports
the standard library and jinja2 only, never this package.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import select
import signal
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

__all__ = ["MAX_FRAME_BYTES", "MAX_OUTPUT_CHARS", "SECONDS", "main", "render"]

SECONDS = 1.0
MEMORY_BYTES = 384 << 20
MAX_OUTPUT_CHARS = 4 << 20
MAX_FRAME_BYTES = 64 << 20

_NOT_ASCII = re.compile("[\x80-\U000effff]")  # planes 15 and 16 stay as they are: chat.py puts placeholders there


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's words for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (the name and type that jinja2 expects)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(_escape, text) if ensure_ascii else text


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=1)
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(template: str, variables: dict[str, Any]) -> str:
    """The template's text for plain JSON `variables`. ValueError says what failed. Nothing here bounds time or memory."""
    pieces, size = [], 0
    try:
        for piece in _compiled(template).generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise ValueError(f"the text grew beyond {MAX_OUTPUT_CHARS} characters")
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise ValueError(error.message or type(error).__name__) from error
    except RecursionError as error:
        raise ValueError("the template recurses too deeply") from error
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return "".join(pieces)


def _answer(request: bytes) -> tuple[bytes, bool]:
    """The answer to a request, and whether this process is still fit for another one."""
    fit = True
    try:
        asked = json.loads(request)
        answer = {"text": render(asked["template"], asked["variables"])}
    except MemoryError:
        answer, fit = {"error": f"the template needed more than {MEMORY_BYTES >> 20} MiB of memory"}, False
    except ValueError as error:
        answer = {"error": str(error)[:1000]}
    except Exception as error:  # whatever a template provokes is an answer, not the end of the helper
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    return json.dumps({**answer, "last": not fit}).encode(), fit


def _limit_process() -> None:
    limits = {"AS": MEMORY_BYTES, "CORE": 0, "NOFILE": 16, "NPROC": 0, "FSIZE": 0}
    for name, value in limits.items():
        # A system that lacks a limit, or has set a lower one, keeps its own; time is bounded in any case.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _start_clock() -> None:
    """From here `SECONDS` of processor time remain. SIGPROF and SIGXCPU keep their default action: death, even inside a C loop."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + SECONDS) + 1
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read(size: int, parent: int) -> bytes | None:
    """`size` bytes of stdin; None when it closed or the parent is gone (a sibling may still hold the pipe open)."""
    data = bytearray()
    while len(data) < size:
        if not select.select([0], [], [], 5.0)[0]:
            if os.getppid() != parent:
                return None
            continue
        piece = os.read(0, min(1 << 20, size - len(data)))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write(data: bytes) -> None:
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    """Serves requests until there is nobody left to serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for deadly in (signal.SIGPROF, signal.SIGXCPU):  # a parent may have ignored or blocked them
        signal.signal(deadly, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGXCPU})
    parent = os.getppid()
    _environment()
    _limit_process()
    while (header := _read(4, parent)) is not None:
        size = int.from_bytes(header, "big")
        if size > MAX_FRAME_BYTES or (request := _read(size, parent)) is None:
            return
        _start_clock()
        answer, fit = _answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answer)
        if not fit:
            return
