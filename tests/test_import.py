"""`import mimo_ultraspeed` is light, and every public name is there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

import mimo_ultraspeed as mu

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_import_loads_nothing_heavy(run_python: Run) -> None:
    heavy = ["numpy", "torch", "tokenizers", "huggingface_hub", "tqdm", "jinja2", "asyncio", "importlib.metadata"]
    done = run_python("-c", f"import sys, mimo_ultraspeed; print(sorted(set({heavy}) & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_using_a_model_loads_no_torch_and_leaves_logging_alone(run_python: Run, tiny_path: object) -> None:
    done = run_python(
        "-c",
        "import sys, logging, mimo_ultraspeed as mu\n"
        f"print(mu.Model.from_pretrained({str(tiny_path)!r}).generate([1, 2], max_new_tokens=2).finish_reason)\n"
        "print('torch' in sys.modules, logging.root.handlers)",
    )
    assert (done.stdout, done.stderr) == ("length\nFalse []\n", "")


@pytest.mark.parametrize("name", mu.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(mu, name) is not None
    assert name in dir(mu)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = mu.Modell


def test_backends_say_what_is_on_and_why_others_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIMO_CPU", raising=False)
    table = mu.backends()
    assert table["cpu:ref"].on
    assert sum(backend.chosen for backend in table.values()) == 1
    assert not table["cuda"].on
    assert all(backend.reason for backend in table.values())
    assert "cuda" in repr(table) and "<table>" in table._repr_html_()
    monkeypatch.setenv("MIMO_CPU", "ref")
    assert [name for name, backend in mu.backends().items() if backend.chosen] == ["cpu:ref"]
