"""The resident kernel for sm_90a: compiled with warnings as errors, within the registers of its roles, nothing in local memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import mimo_ultraspeed

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
MOST_REGISTERS = 168  # of 65536 for 384 threads; setmaxnreg shares them out between the roles


def nvcc() -> str | None:
    """The one the package was built with, or the system's."""
    told = Path(mimo_ultraspeed.__file__).parent / "_cuda/build.json"
    built = json.loads(told.read_text()).get("nvcc") if told.exists() else None
    return built or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def test_the_resident_kernel_compiles_and_spills_nothing(tmp_path: Path) -> None:
    compiler = nvcc()
    if compiler is None:
        pytest.skip("not run: no nvcc")
    command = [compiler, "-std=c++17", "-O3", "-gencode", "arch=compute_90a,code=sm_90a", "--fmad=false", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", f"-I{CSRC}", "-DNDEBUG", "-cubin", str(CSRC / "cuda/sm90/resident.cu")]
    done = subprocess.run([*command, "-o", str(tmp_path / "resident.cubin")], capture_output=True, text=True, timeout=600)
    told = done.stdout + done.stderr
    print(told)
    assert done.returncode == 0, told
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert spilled and all(int(count) == 0 for count in spilled), told
    frames = re.findall(r"(\d+) bytes stack frame", told)
    assert frames and all(int(count) == 0 for count in frames), f"memory of threads in the place of registers: {told}"
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", told)) <= MOST_REGISTERS, told
    assert "setmaxnreg ignored" not in told
