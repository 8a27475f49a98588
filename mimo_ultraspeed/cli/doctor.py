"""`doctor`: what is installed, what runs here, and what does not and why."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

__all__ = ["add", "run"]

_DEPENDENCIES = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "tqdm", "gguf", "pip")
_FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 amx_int8 asimd asimddp i8mm sve"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    return commands.add_parser(
        "doctor",
        help="say what is installed and what runs here",
        description="Says what is installed, which backends run here and why others do not. Status 1 if the core does not load.",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from .. import __version__

    print(f"mimo-ultraspeed  {__version__}, in {Path(__file__).resolve().parents[1]}")
    print(f"python           {platform.python_version()} ({platform.python_implementation()}), {sys.executable}")
    print(f"system           {platform.platform()}")
    print(f"processor        {_processor()}")
    print(f"cores            {_cores()} available of {os.cpu_count()}")
    healthy = _print_backends()
    print("\ndefault model")
    print(f"  {_default_model()}")
    print("\ndependencies")
    for name in _DEPENDENCIES:
        print(f"  {name:<17}{_version(name)}")
    return 0 if healthy else 1


def _print_backends() -> bool:
    from ..hardware import backends

    print("\nbackends")
    try:
        table = backends()
    except ImportError as error:
        print(f"  the C core does not load: {error}")
        return False
    for backend in table.values():
        print(f"  {backend.name:<17}{'on ' if backend.on else 'off'}  {backend.reason}")
    wanted = os.environ.get("MIMO_CPU")
    if wanted and not any(backend.chosen for backend in table.values()):
        print(f"  MIMO_CPU={wanted} asks for kernels that do not run here: opening a model will fail")
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The CPU's name and those of its features that kernels could use, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    present = set(fields.get("flags", fields.get("features", "")).split())
    name = fields.get("model name") or platform.machine()
    return f"{name}: {' '.join(word for word in _FEATURES.split() if word in present) or 'no known features'}"


def _default_model() -> str:
    from ..default_model import model_folder, verify_default
    from .arguments import DEFAULT_MODEL

    folder = model_folder(DEFAULT_MODEL)
    if not folder.is_dir():
        return f"{DEFAULT_MODEL}: not made yet; the first use fetches and converts it into {folder}"
    problems = verify_default(DEFAULT_MODEL)
    if problems:
        return f"{DEFAULT_MODEL}: damaged, the next use makes it anew: {'; '.join(problems)}"
    return f"{DEFAULT_MODEL}: whole, in {folder}"


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
