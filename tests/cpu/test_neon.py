"""The NEON kernels on another processor: cross-compiled and run by an emulator beside the plain C ones."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("base", "format", "model", "cpu/ref", "cpu/neon")
FLAGS = ["-std=c11", "-O2", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-static", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def run(*command: str | Path) -> str:
    """Runs the command; its output, or a failed test with it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_neon_agrees_with_ref(tmp_path: Path) -> None:
    if platform.machine().lower() in ("aarch64", "arm64"):
        pytest.skip("not run: this is an ARM processor, test_kernels.py tests the variant itself")
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("not run: needs aarch64-linux-gnu-gcc and qemu-aarch64")
    sources = [path for room in ROOMS for path in sorted((ROOT / "csrc" / room).glob("*.c"))]
    sources += [ROOT / "csrc" / "cpu" / name for name in ("dispatch.c", "panel.c", "pack.c")]
    program = tmp_path / "compare_variants"
    flags = [*FLAGS, *WARNINGS, "-march=armv8.2-a+dotprod", "-DMIMO_HAVE_NEON=1", f"-I{ROOT / 'csrc'}"]
    run(compiler, *flags, *sources, Path(__file__).with_name("compare_variants.c"), "-o", program, "-lm")
    assert run(emulator, "-cpu", "max", program, "neon") == "neon agrees with ref\n"
