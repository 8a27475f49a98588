"""A tiny random checkpoint, made once, and a model that has loaded it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mimo_ultraspeed as mu

# A shell starts what it puts into the background with interrupts ignored; tests send interrupts to themselves and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made checkpoint: byte-level tokenizer (ids 0 to 255 are bytes), chat template, V = 512, room for answers of seconds."""
    from mimo_ultraspeed.make import make

    return make(tmp_path_factory.mktemp("tiny") / "model", "tiny", overrides={"max_position_embeddings": 65536}, progress=False)


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Iterator[mu.Model]:
    """Shared by tests: do not close it."""
    with mu.Model.from_pretrained(tiny_path, threads=2, progress=False) as model:
        yield model


@pytest.fixture(scope="session")
def default_folder() -> Path:
    """The checkpoint of the embedded default model, fetched and converted on first use."""
    from mimo_ultraspeed.default_model import ensure_default

    try:
        return ensure_default(progress=False)
    except ConnectionError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(scope="session")
def package_environment() -> dict[str, str]:
    """Environment in which a child process imports the same package as this one, from whatever folder it runs in."""
    return {**os.environ, "PYTHONPATH": str(Path(mu.__file__).parents[1])}


@pytest.fixture
def run_python(package_environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with the given arguments; warnings are errors."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            input=stdin,
            env=package_environment | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
