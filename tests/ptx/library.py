"""Kernels of this tree as a library of the host's: nvcc -> PTX -> C (translate.py) -> machine code of the host, with machine.c."""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import setuptools
from filelock import FileLock

import mimo_ultraspeed

from .translate import translate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc/cuda"
SOURCES = {"plain": CUDA / "plain.cu", "resident": CUDA / "sm90/resident.cu"}
# No contraction: a fused multiply-add is one where the PTX says so.
FLAGS = ("-std=gnu11", "-w", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-pthread")
MACHINE = ("machine.c", "lanes.c", "copies.c", "races.c", "wgmma.c")


def nvcc() -> str | None:
    """The compiler that the package was built with, if there was one."""
    told = Path(mimo_ultraspeed.__file__).parent / "_cuda/build.json"
    return json.loads(told.read_text()).get("nvcc") if told.exists() else None


def _setup() -> dict[str, Any]:
    with mock.patch.object(setuptools, "setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def ptx(source: Path, compiler: str, arch: str = "sm_90a", defines: tuple[str, ...] = ()) -> str:
    """What nvcc makes of a source with the flags of the package's own build."""
    setup = _setup()
    flags = setup["CudaBuild"](Path(), Path(compiler)).flags([])
    command = [compiler, "-ptx", f"-arch={arch}", *flags, *defines, str(source), "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def compile_c(text: str, target: Path) -> None:
    """Translated C, with the machine, as a shared library."""
    source = target.with_suffix(".c")
    source.write_text(text)
    compiler = [*_setup()["compiler"](), *FLAGS, f"-I{HERE}"]
    if "fma" in Path("/proc/cpuinfo").read_text():
        compiler.append("-mfma")
    objects = []
    for file, level in ((source, "-O1"), *((HERE / name, "-O2") for name in MACHINE)):  # -O2 takes minutes for what is translated
        objects.append(str(target.with_name(f"{target.stem}-{file.stem}.o")))
        subprocess.run([*compiler, level, "-c", str(file), "-o", objects[-1]], check=True, timeout=600)
    subprocess.run([*compiler, "-shared", *objects, "-o", str(target), "-lm"], check=True, timeout=600)


def build(name: str, folder: Path, compiler: str) -> Path:
    """The library of SOURCES[name], made once for a folder, whoever asks."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        made = folder / f"{name}.path"
        if made.exists():
            return Path(made.read_text())
        text = translate(ptx(SOURCES[name], compiler))
        target = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
        compile_c(text, target)
        made.write_text(str(target))
        return target
