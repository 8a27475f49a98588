"""`doctor`: what is installed, what runs here, and what does not and why."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

__all__ = ["add", "run"]

_DEPENDENCIES = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "tqdm", "gguf", "pip")


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
    from ..hardware import cores, memory_nodes, processor

    print(f"mimo-ultraspeed  {__version__}, in {Path(__file__).resolve().parents[1]}")
    print(f"python           {platform.python_version()} ({platform.python_implementation()}), {sys.executable}")
    print(f"system           {platform.platform()}")
    print(f"processor        {processor()}")
    print(f"cores            {cores()} available of {os.cpu_count()}")
    print(f"memory nodes     {len(memory_nodes())}")
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
