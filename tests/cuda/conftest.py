"""Made models, the file of kernels that a made-up driver is given, and where kernels are compiled for the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ptx.library import nvcc

from mimo_ultraspeed.make import make


@pytest.fixture(scope="module")
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a model of the module's MODELS (options of `make` by name) is; made when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp("made") / name, progress=False, **request.module.MODELS[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of kernels, which the made-up driver does not look into."""
    path = tmp_path_factory.mktemp("image") / "kernels.fatbin"
    path.write_bytes(b"kernels")
    return str(path)


@pytest.fixture(scope="session")
def ptx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels' PTX becomes libraries (tests/ptx), one for all processes of a test run. Tests that need it need nvcc."""
    if nvcc() is None:
        pytest.skip("not run: the package was built without nvcc")
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ptx"
