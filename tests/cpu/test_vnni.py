"""The kernels with VNNI and registers of 512 bits where a processor has neither: those instructions are done in C and AVX2."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from mimo_ultraspeed import _probe

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FLAGS = ["-std=c11", "-O1", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
FLAGS += ["-mavx2", "-mfma", "-mf16c", "-Wall", "-Wextra", "-Werror"]


def run(*command: str | Path) -> str:
    """Runs the command; its output, or a failed test with it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_vnni_agrees_with_ref(tmp_path: Path) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("not run: this is not an x86-64 processor")
    if _probe.kernel_variants()["avx2"] is not None:
        pytest.skip("not run: needs a processor with AVX2")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("not run: needs a C compiler")
    folders = ("ref", "avx2", "avxvnni", "avx512")
    rooms = ("base", "format", "model", *(f"cpu/{folder}" for folder in folders))
    sources = [path for room in rooms for path in sorted((ROOT / "csrc" / room).glob("*.c"))]
    sources += [ROOT / "csrc" / "cpu" / name for name in ("dispatch.c", "panel.c", "pack.c")]
    program = tmp_path / "compare_variants"
    flags = [*FLAGS, *(f"-DMIMO_HAVE_{folder.upper()}=1" for folder in folders[1:]), f"-I{ROOT / 'csrc'}"]
    run(compiler, *flags, "-include", HERE / "emulated.h", *sources, HERE / "compare_variants.c", "-o", program, "-lm")
    for variant in ("avxvnni", "avx512"):
        assert run(program, variant) == f"{variant} agrees with ref\n"
