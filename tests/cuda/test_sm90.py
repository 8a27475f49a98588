"""The resident kernel for sm_90a and sm_100a: no warning, within the registers of its roles, nothing in local memory."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import mimo_ultraspeed

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
ARCHS = ("90a", "100a")
MOST_REGISTERS = 168  # of 65536 for 384 threads; setmaxnreg shares them out between the roles


def nvcc() -> str | None:
    """The one the package was built with, or the system's."""
    told = Path(mimo_ultraspeed.__file__).parent / "_cuda/build.json"
    built = json.loads(told.read_text()).get("nvcc") if told.exists() else None
    return built or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """.ci/kernels.py"""
    monkeypatch.syspath_prepend(str(CSRC.parent / ".ci"))
    return importlib.import_module("kernels")


def compiled(source: Path, target: Path, arch: str) -> str:
    """What nvcc and ptxas say of a source, whose machine code they write to the target."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("not run: no nvcc")
    command = [compiler, "-std=c++17", "-O3", "-gencode", f"arch=compute_{arch},code=sm_{arch}", "--fmad=false", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", f"-I{CSRC}", "-DNDEBUG", "-cubin", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


KERNELS = """
template <int N> __device__ void sums(float *to)
{
    float x[N];
    for (int i = 0; i < N; i++)
        x[i] = to[threadIdx.x + 32 * i];
    for (int round = 0; round < 4; round++)
        for (int i = 0; i < N; i++)
            x[i] = x[i] * x[(i + 7) % N] + (float)sqrt((double)x[(i + 1) % N]);
    for (int i = 0; i < N; i++)
        to[threadIdx.x + 32 * i] = x[i];
}
__device__ __noinline__ float4 apart(const float4 *from) { float4 v = from[threadIdx.x]; v.x += v.y * v.z; return v; }
extern "C" __global__ void few(float *to) { sums<4>(to); }
extern "C" __global__ void some(float *to) { sums<24>(to); }
extern "C" __global__ void many(float *to) { sums<90>(to); }
extern "C" __global__ void wide(float4 *to) { to[threadIdx.x + 1] = to[threadIdx.x]; }
extern "C" __global__ void calls(float4 *to) { to[threadIdx.x + 1] = apart(to); }
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_are_those_that_ptxas_counts(tmp_path: Path, kernels: ModuleType, arch: str) -> None:
    (tmp_path / "some.cu").write_text(KERNELS)
    told = compiled(tmp_path / "some.cu", tmp_path / "some.cubin", arch)
    entry = re.compile(r"entry function '(\w+)'.*?Used (\d+) registers", re.S)
    wanted = {name: int(registers) for name, registers in entry.findall(told)}
    assert set(wanted) == {"few", "some", "many", "wide", "calls"}
    found: dict[str, int] = {}
    functions = list(kernels.functions((tmp_path / "some.cubin").read_bytes()))
    for of, kernel, _, registers in functions:
        assert of == f"sm_{arch[:-1]}"
        found[kernel] = max(found.get(kernel, 0), registers)
    for kernel, registers in wanted.items():
        assert registers - 2 <= found[kernel] <= registers + 1, (kernel, found, wanted)
    assert any(kernel == "calls" and "apart" in name for _, kernel, name, _ in functions)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_resident_kernel_compiles_and_spills_nothing(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    told = compiled(CSRC / "cuda/sm90/resident.cu", tmp_path / "resident.cubin", arch)
    print(told)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert spilled and all(int(count) == 0 for count in spilled), told
    frames = re.findall(r"(\d+) bytes stack frame", told)
    assert frames and all(int(count) == 0 for count in frames), f"memory of threads in the place of registers: {told}"
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", told)) <= MOST_REGISTERS, told
    assert "setmaxnreg ignored" not in told
    image = (tmp_path / "resident.cubin").read_bytes()
    given = dict(re.findall(r"(LOAD|COMPUTE)_REGISTERS = (\d+)", (CSRC / "cuda/sm90/resident.cu").read_text()))
    assert {role: most for role, (most, _) in kernels.ROLES.items()} == {role.lower(): int(n) for role, n in given.items()}
    found = kernels.roles(image)
    assert {(of, role) for of, role, *_ in found} == {(f"sm_{arch[:-1]}", role) for role in kernels.ROLES}
    for _, role, function, registers, most in found:
        assert 16 <= registers <= most, (role, function)
    monkeypatch.setitem(kernels.ROLES, "load", (40, "mimo_other"))
    with pytest.raises(LookupError, match="mimo_other"):
        kernels.roles(image)
