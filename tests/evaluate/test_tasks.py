"""Tasks with right answers, and the sandbox for programs that a model wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mimo_ultraspeed import evaluate
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.evaluate.sandbox import SandboxError, run_program
from mimo_ultraspeed.evaluate.tasks import _code, _number


@pytest.fixture
def sandbox() -> None:
    if sys.platform != "linux":
        pytest.skip("not run: the sandbox is made of Linux namespaces")
    try:
        run_program("")
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


@pytest.mark.usefixtures("sandbox")
def test_programs_pass_or_say_why() -> None:
    assert run_program("assert 1 + 1 == 2") == evaluate.sandbox.Outcome(True, "")
    failed = run_program("print('é' * 9000)\nassert 1 + 1 == 3, 'sum'")
    assert not failed.passed and failed.why.endswith("AssertionError: sum") and len(failed.why) < 4100
    assert run_program("def f(:").why.endswith("SyntaxError: invalid syntax")
    assert not run_program("import os; os._exit(3)").passed
    assert run_program("raise SystemExit(0)").why == "ended early, with exit status 0"
    assert run_program("print('x', end='')").passed


@pytest.mark.usefixtures("sandbox")
def test_nothing_is_in_reach(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    program = f"""
import os, socket
open("own", "w").write("x")
for action in (
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: os.unlink({str(tmp_path / "file")!r}),
    lambda: os.kill({__import__("os").getpid()}, 0),
    lambda: socket.create_connection(("127.0.0.1", 80), 1),
    lambda: open("own", "w").write("x" * (20 << 20)),
):
    try:
        action()
    except OSError:
        continue
    raise SystemExit("done what it should not")
assert not os.environ.get("HOME")
assert socket.if_nameindex() == [(1, "lo")]
assert os.getpid() == 1
"""
    assert run_program(program) == evaluate.sandbox.Outcome(True, "")
    assert (tmp_path / "file").exists() and not (tmp_path / "new").exists()


@pytest.mark.usefixtures("sandbox")
def test_time_and_memory_end() -> None:
    assert run_program("while True: pass", seconds=1.0).why == "stopped after 1 s"
    assert run_program("import time; time.sleep(60)", seconds=1.0).why == "stopped after 1 s"
    assert run_program("x = bytearray(200 << 20)", memory_mib=100).why.endswith("MemoryError")
    children = "import os, time\nfor _ in range(3):\n    if not os.fork():\n        os.setsid(); time.sleep(60)\n"
    assert run_program(children, seconds=5.0).passed


def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('no such thing'); sys.exit(117)"
    monkeypatch.setattr("mimo_ultraspeed.evaluate.sandbox._START", code)
    with pytest.raises(SandboxError, match="cannot be isolated here: no such thing"):
        run_program("raise SystemExit")


def test_numbers_and_code() -> None:
    assert [_number(text) for text in ("so 3, then \\boxed{\\$1,200.50} or 7", "it is $1,000.", "no", "x = -3.0")] == [
        "1200.5",
        "1000",
        None,
        "-3",
    ]
    assert _code("a\n```python\nx = 1\n```\nb\n```\ny = 22\n```") == "y = 22\n"
    assert _code("x = 1") == "x = 1" and _code("```py\nx = 1") == "x = 1"


class Parrot:
    """Answers what it was given to say."""

    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.asked: list[str] = []

    def generate(self, messages: list[Any], **options: Any) -> list[Any]:
        assert options["temperature"] == 0.0
        self.asked += [one[0]["content"] for one in messages]
        return [SimpleNamespace(text=self.says.pop(0)) for _ in messages]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"First 5.\n#### {n},000"} for n in range(1, 4)]
    found = evaluate.tasks(
        Parrot("\\boxed{1000}", "about 2,000", "3001"), {"gsm8k": lines(tmp_path / "a.jsonl", *rows)}, progress=False
    )
    one = found.figures["gsm8k"]
    assert (one["right"], one["asked"]) == (2, 3) and one["rate_ci95"][0] < 2 / 3 < one["rate_ci95"][1]
    assert [answer["wrong"] for answer in found.answers] == ["", "", "expected 3000, found 3001"]
    assert "gsm8k" in str(found) and "0.667" in str(found)
    found.save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["figures"]["gsm8k"]["right"] == 2


@pytest.mark.usefixtures("sandbox")
def test_code_is_judged_by_its_tests(tmp_path: Path) -> None:
    prompt = 'import math\n\ndef double(x):\n    """Twice x."""\n'
    human = {"prompt": prompt, "test": "def check(f):\n    assert f(2) == 4 and math.pi", "entry_point": "double"}
    mbpp = {"text": "Write one.", "test_list": ["assert one() == 1", "assert one() < 2"], "test_setup_code": ""}
    sets = {"humaneval": lines(tmp_path / "h.jsonl", human, human, human), "mbpp": lines(tmp_path / "m.jsonl", mbpp, mbpp)}
    fence = "```python\n{}\n```"
    model = Parrot(
        fence.format("def double(x):\n    return x + x"),
        "    return 2 * x",
        fence.format("def double(x):\n    return x"),
        fence.format("def one():\n    return 1"),
        "I do not know.",
    )
    found = evaluate.tasks(model, sets, run_code=True, progress=False)
    assert [bool(answer["wrong"]) for answer in found.answers] == [False, False, True, False, True]
    assert prompt.strip("\n") in model.asked[0] and "assert one() == 1" in model.asked[3]
    with pytest.raises(ValueError, match="has to be allowed"):
        evaluate.tasks(model, sets, progress=False)


def test_wrong_words(tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = lines(tmp_path / "a.jsonl", {"question": "1?", "answer": "#### 1"})
    words = ["evaluate", "tasks", str(tiny_path), "--threads", "1", "--max-new-tokens", "4"]
    assert main([*words, "--gsm8k", str(row), "--out", str(tmp_path / "o.json")]) == 0
    assert (tmp_path / "o.json").exists() and "gsm8k" in capsys.readouterr().out
    for extra, told in (
        ([], "expected at least one of --gsm8k, --humaneval, --mbpp"),
        (["--mbpp", str(row)], "has to be allowed"),
        (["--mbpp", str(row), "--run-code"], "a.jsonl:1: expected an object with test_list"),
        (["--gsm8k", str(lines(tmp_path / "b.jsonl"))], "expected problems, found none"),
    ):
        assert main([*words, *extra]) == 1
        assert told in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected of gsm8k, humaneval, mbpp, found 'other'"):
        evaluate.tasks(Parrot(), {"other": row}, progress=False)
