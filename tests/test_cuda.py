"""What Python says of CUDA: built or not, a GPU or none, and who may use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed import _core, cuda

Setting = Callable[..., None]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    """A build and a machine of the test's choice."""
    monkeypatch.delenv("MIMO_CUDA_UNTESTED", raising=False)
    monkeypatch.setattr(cuda, "_FOLDER", tmp_path)

    def choose(built: dict[str, Any] | None = None, gpus: list[str] | str = "no driver") -> None:
        (tmp_path / "build.json").write_text(json.dumps(built or {"built": True, "archs": ["sm_90a"]}))

        def devices() -> list[str]:
            if isinstance(gpus, str):
                raise NotImplementedError(f"CUDA: {gpus}")
            return gpus

        monkeypatch.setattr(_core, "cuda_devices", devices)

    return choose


def test_not_built(setting: Setting, tmp_path: Path) -> None:
    setting({"built": False, "reason": "no nvcc when the package was built"})
    assert cuda.why_cuda_is_off() == "not built: no nvcc when the package was built"
    (tmp_path / "build.json").write_text("[")
    assert cuda.why_cuda_is_off() == "not built: the package was built without it"
    (tmp_path / "build.json").unlink()
    assert not mu.backends()["cuda"].on


def test_no_gpu(setting: Setting) -> None:
    setting(gpus="no driver of an NVIDIA GPU here")
    assert cuda.why_cuda_is_off() == "built for sm_90a; no driver of an NVIDIA GPU here"
    with pytest.raises(NotImplementedError, match=r"device .cuda:2.: CUDA is off: built for sm_90a; no driver .* device='cpu'"):
        cuda.cuda_device("cuda:2")
    assert cuda.cuda_device("auto") is None


def test_a_gpu_that_nobody_has_tried(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(gpus=["GPU A", "GPU B"])
    assert "GPU A is here; but this backend has never run on a GPU: MIMO_CUDA_UNTESTED=1" in (cuda.why_cuda_is_off() or "")
    assert not mu.backends()["cuda"].on
    monkeypatch.setenv("MIMO_CUDA_UNTESTED", "1")
    assert cuda.why_cuda_is_off() is None
    assert [cuda.cuda_device(device) for device in ("cuda", "cuda:1", "cpu", "auto")] == [0, 1, None, None]
    table = mu.backends()
    assert table["cuda"].on
    assert not table["cuda"].chosen


def test_the_path_is_chosen_by_name(setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting(gpus=["GPU A"])
    monkeypatch.delenv("MIMO_CUDA_PATH", raising=False)
    with pytest.raises(NotImplementedError, match=r"MIMO_CUDA_PATH=plain: plain.fatbin was not built \(built for sm_90a"):
        cuda.cuda_path("fast")
    for path in ("plain", "resident"):
        (tmp_path / f"{path}.fatbin").touch()
    assert cuda.cuda_path("exact") == "plain"
    for path in ("resident", "resident-e4m3"):
        monkeypatch.setenv("MIMO_CUDA_PATH", path)
        assert cuda.cuda_path("fast") == path
        assert cuda.cuda_image(path) == tmp_path / "resident.fatbin"
        with pytest.raises(NotImplementedError, match=f"{path} multiply rows in BF16; MIMO_CUDA_PATH=plain"):
            cuda.cuda_path("exact")
    monkeypatch.setenv("MIMO_CUDA_PATH", "persistent")
    with pytest.raises(ValueError, match="expected 'plain', 'resident' or 'resident-e4m3', found 'persistent'"):
        cuda.cuda_path("fast")


def test_a_model_says_why(setting: Setting, tiny_path: Path) -> None:
    setting(gpus="no GPU that this process may use")
    with pytest.raises(NotImplementedError, match="no GPU that this process may use"):
        mu.Model.from_pretrained(tiny_path, device="cuda", progress=False)
    with mu.Model.from_pretrained(tiny_path, device="auto", threads=1, progress=False) as model:
        assert model.backend.startswith("cpu:")


def test_the_core_looks_for_a_driver() -> None:
    try:
        names = _core.cuda_devices()
    except NotImplementedError as error:
        assert str(error).startswith("CUDA: ")
    else:
        assert names
        assert all(names)
