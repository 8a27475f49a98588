"""Shared memory at launch, as .ci/kernels.py prints and holds it: the launcher's layout, within what a CTA of sm_90 may have."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
RING_PAGE = 17408  # at most
STATIC = {"mimo_resident": 0, "mimo_plain": 0}
PTXAS = """ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers{shared}
"""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """.ci/kernels.py"""
    monkeypatch.syspath_prepend(str(CI))
    return importlib.import_module("kernels")


def test_every_shape_fits_and_its_ring_has_what_is_left(kernels: ModuleType, tmp_path: Path) -> None:
    most = kernels.limits()
    assert most == {"mimo_resident": 227 << 10, "mimo_plain": 48 << 10}
    for number, (shape, world) in enumerate(kernels.SHARED_OF):
        parts = kernels.launched(tmp_path / str(number), shape, world, most["mimo_resident"])
        assert [(kernel, role, what) for kernel, role, what, _ in parts] == [
            ("mimo_resident", "both", "barriers, the launch"),
            ("mimo_resident", "compute", "scratch"),
            ("mimo_resident", "compute", "activations"),
            ("mimo_resident", "load", "ring"),
            ("mimo_plain", "compute", "scratch"),
        ]
        *resident, ring, plain = [size for *_, size in parts]
        total = sum(resident) + ring
        assert ring >= 4 * RING_PAGE and ring % 128 == 0
        assert total <= most["mimo_resident"] < total + 128
        assert all(size % 128 == 0 and size > 0 for size in resident)
        assert 0 < plain <= most["mimo_plain"]
    rows = list(kernels.shared_rows(STATIC, most))
    assert len(rows) == 2 * len(kernels.SHARED_OF)
    assert not any(wrong for *_, wrong in rows)


def test_what_does_not_fit_is_wrong(kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = kernels.limits()
    with pytest.raises(NotImplementedError, match=r"rows of 20480 elements need .* bytes of shared memory, a CTA may have 232448"):
        kernels.launched(tmp_path / "wide", "nano", 1, most["mimo_resident"], hidden_size=20480)
    wrong = [(kernel, model) for kernel, model, *_, bad in kernels.shared_rows(STATIC, most | {"mimo_resident": 140000}) if bad]
    assert wrong == [(kernel, model) for kernel, model in wrong if kernel == "mimo_resident"]
    assert {model for _, model in wrong} == {"flash", "v2.5", "pro", "pro, 1 of 8"}
    monkeypatch.setattr(kernels, "SHARED_OF", (("tiny", 1),))
    for static, limits, bad in [
        (STATIC | {"mimo_resident": 16}, most, "mimo_resident"),
        (STATIC | {"mimo_plain": 48000}, most, "mimo_plain"),
        (STATIC, most | {"mimo_plain": 8000}, "mimo_plain"),
    ]:
        assert [kernel for kernel, *_, wrong in kernels.shared_rows(static, limits) if wrong] == [bad]


@pytest.mark.parametrize(("shared", "result"), [("", 0), (", 17408 bytes smem", 1)])
def test_static_memory_counts(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, shared: str, result: int
) -> None:
    monkeypatch.setattr(kernels, "SHARED_OF", (("tiny", 1),))
    (tmp_path / "resident.ptxas").write_text(PTXAS.format(name="mimo_resident", shared=shared))
    (tmp_path / "plain.ptxas").write_text(PTXAS.format(name="mimo_plain_qkv", shared=", 64 bytes smem"))
    assert kernels.main(tmp_path) == result
    said = capsys.readouterr().out
    assert re.search(r"load: ring \d{6}\b", said)
    assert f"2 kernels, {result} faults" in said
