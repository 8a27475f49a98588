"""How the package finds nvcc and builds its kernels, with an nvcc made up for the test."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
Build = Callable[..., dict[str, Any]]

# Writes what it is asked for and a line into the file of its calls; --version answers as nvcc does.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.88" && exit 0
echo "$@" >> "{calls}"
[ -n "{fails}" ] && echo "error: made up" && exit 1
while [ $# -gt 0 ]; do
  case "$1" in
    -o) echo code > "$2" ;;
    -MF) echo "x.fatbin: {header}" > "$2" ;;
  esac
  shift
done
"""


@pytest.fixture
def setup_module(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """setup.py's functions, without running it."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("MIMO_CUDA", "MIMO_CUDA_ARCH", "MIMO_WERROR", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def build(setup_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds with an nvcc under tmp_path, or with none, and returns build.json."""
    header = tmp_path / "header.h"
    header.write_text("")

    def run(nvcc: bool = True, fails: bool = False, **environment: str) -> dict[str, Any]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "home/bin/nvcc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if nvcc:
            path.write_text(NVCC.format(calls=tmp_path / "calls", fails="1" if fails else "", header=header))
            path.chmod(0o755)
        function = setup_module["build_cuda"]
        monkeypatch.setitem(function.__globals__, "nvcc_candidates", lambda: [path])
        function(tmp_path / "temp", tmp_path / "out")
        told: dict[str, Any] = json.loads((tmp_path / "out/build.json").read_text())
        return told

    return run


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_kernels_are_built_once_and_again_when_something_changed(build: Build, tmp_path: Path) -> None:
    told = build()
    assert told == {"built": True, "nvcc": str(tmp_path / "home/bin/nvcc"), "version": "13.0.88", "archs": ["sm_90a"]}
    assert (tmp_path / "out/plain.fatbin").read_text() == "code\n"
    first = len(calls(tmp_path))
    assert first == len(list((ROOT / "csrc/cuda").rglob("*.cu")))
    assert "code=sm_90a" in calls(tmp_path)[0]
    build()
    assert len(calls(tmp_path)) == first
    later = (tmp_path / "temp/plain.fatbin").stat().st_mtime + 10
    os.utime(tmp_path / "header.h", (later, later))
    build()
    assert len(calls(tmp_path)) == 2 * first
    os.utime(tmp_path / "header.h", (0, 0))
    assert build(MIMO_CUDA_ARCH="sm_90a,sm_100a")["archs"] == ["sm_90a", "sm_100a"]
    assert "code=sm_100a" in calls(tmp_path)[-1]
    assert {path.name for path in (tmp_path / "out").glob("*.fatbin")} == {"plain.fatbin", "resident.fatbin"}
    build(MIMO_CUDA_ARCH="sm_80")  # whose instructions the folder sm90 does not make do with
    assert [path.name for path in (tmp_path / "out").glob("*.fatbin")] == ["plain.fatbin"]


def test_cuda_can_be_left_out(build: Build, tmp_path: Path) -> None:
    assert build(MIMO_CUDA="0") == {"built": False, "reason": "left out by MIMO_CUDA=0 when the package was built"}
    assert not calls(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["build.json"]


def test_without_nvcc(build: Build, tmp_path: Path) -> None:
    told = build(nvcc=False)
    assert not told["built"]
    assert f"no nvcc when the package was built (tried {tmp_path / 'home/bin/nvcc'})" in told["reason"]
    assert "pip install nvidia-cuda-nvcc" in told["reason"]
    with pytest.raises(SystemExit, match="MIMO_CUDA=1: no nvcc"):
        build(nvcc=False, MIMO_CUDA="1")


def test_kernels_that_do_not_compile(build: Build) -> None:
    with pytest.warns(UserWarning, match="CUDA kernels were not built"):
        told = build(fails=True)
    assert not told["built"]
    assert "did not compile" in told["reason"]
    with pytest.raises(RuntimeError, match="error: made up"):
        build(fails=True, MIMO_CUDA="1")


@pytest.mark.parametrize(("name", "value"), [("MIMO_CUDA", "yes"), ("MIMO_CUDA_ARCH", "90a"), ("MIMO_CUDA_ARCH", "sm_90a;")])
def test_bad_settings_are_refused(build: Build, name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=f"{name}: expected"):
        build(**{name: value})


def test_where_nvcc_is_looked_for(setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    wheel = tmp_path / "site/nvidia/cu13/bin/nvcc"
    for path in (tmp_path / "path/nvcc", wheel):
        path.parent.mkdir(parents=True)
        path.touch(0o755)
    function = setup_module["nvcc_candidates"]
    monkeypatch.setattr(function.__globals__["sysconfig"], "get_path", lambda _: str(tmp_path / "site"))
    assert function() == [tmp_path / "home/bin/nvcc", tmp_path / "path/nvcc", Path("/usr/local/cuda/bin/nvcc"), wheel]
