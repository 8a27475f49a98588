"""Tasks with one right answer: exact match on GSM8K, pass@1 on HumanEval and MBPP, for those who bring the sets.

from mimo_ultraspeed import evaluate
print(evaluate.tasks("smollm2-135m", {"gsm8k": "test.jsonl"}, limit=100))
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import bar
from .sandbox import run_program

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["TASKS", "Tasks", "tasks"]

_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_COMPLETE = "Complete this function. Answer with the whole function in one Python code block.\n```python\n{}\n```"
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_AT_ONCE = 16


@dataclass(frozen=True)
class _Task:
    """How a set is asked and judged. judge: what is wrong with an answer, "" when it is right."""

    needs: tuple[str, ...]
    runs_code: bool
    ask: Callable[[Mapping[str, Any]], str]
    judge: Callable[[Mapping[str, Any], str], str]


@dataclass(frozen=True)
class Tasks:
    """A result. figures: by set: right, asked, rate and its 95 % interval (Wilson). answers: each, and what is wrong with it."""

    figures: Mapping[str, Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        lines = [f"{'':12}{'right':>8}{'of':>7}{'rate':>9}{'95 %':>18}"]
        for name, one in self.figures.items():
            low, high = one["rate_ci95"]
            lines.append(f"{name:12}{one['right']:8}{one['asked']:7}{one['rate']:9.3f}{f'{low:.3f}-{high:.3f}':>18}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes figures and answers as JSON."""
        Path(path).write_text(json.dumps({"figures": self.figures, "answers": self.answers}, indent=1) + "\n", encoding="utf-8")


def tasks(
    model: Model | str | os.PathLike[str],
    sets: Mapping[str, str | os.PathLike[str]],
    *,
    run_code: bool = False,
    limit: int | None = None,
    max_new_tokens: int = 512,
    seconds: float = 10.0,
    memory_mib: int = 512,
    progress: bool = True,
    **options: Any,
) -> Tasks:
    """Answers the problems of each set greedily, and judges the answers.

    model: open, or what `Model.from_pretrained` takes, with `options`. sets: .jsonl files by the names in TASKS, in the form
    they are published in. run_code: allows to run what the model wrote, in a sandbox (`evaluate/sandbox.py`) with limits of
    `seconds` and `memory_mib`; without it, sets that need it are refused.

    Raises ValueError for other sets or lines, SandboxError where programs cannot be isolated, OSError.
    """
    from ..model import Model

    problems = {name: _read(name, path, run_code)[:limit] for name, path in sets.items()}
    if any(TASKS[name].runs_code for name in problems):
        run_program("")  # before hours of answers, not after
    figures, answers = {}, []
    with ExitStack() as stack:
        opened: Any = model
        if isinstance(model, str | os.PathLike):
            opened = stack.enter_context(Model.from_pretrained(model, progress=progress, **options))
        for name, rows in problems.items():
            found = _answers(opened, name, rows, max_new_tokens, progress)
            wrong = [_judged(name, row, answer, seconds, memory_mib) for row, answer in zip(rows, found, strict=True)]
            right = sum(not one for one in wrong)
            figures[name] = {
                "right": right,
                "asked": len(rows),
                "rate": right / len(rows),
                "rate_ci95": _interval(right, len(rows)),
            }
            answers += [
                {"set": name, "number": at, "answer": answer, "wrong": why}
                for at, (answer, why) in enumerate(zip(found, wrong, strict=True))
            ]
    return Tasks(figures, answers)


def _read(name: str, path: str | os.PathLike[str], run_code: bool) -> list[dict[str, Any]]:
    if name not in TASKS:
        raise ValueError(f"sets: expected of {', '.join(TASKS)}, found {name!r}")
    task = TASKS[name]
    if task.runs_code and not run_code:
        raise ValueError(f"{name}: judging it runs what the model wrote, which has to be allowed (run_code, --run-code)")
    rows = []
    for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(row.get(key) for key in task.needs):
            raise ValueError(f"{path}:{number}: expected an object with {', '.join(task.needs)}, found {line[:60]!r}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: expected problems, found none")
    return rows


def _answers(model: Model, name: str, rows: Sequence[Mapping[str, Any]], max_new_tokens: int, progress: bool) -> list[str]:
    found: list[str] = []
    with bar(progress, total=len(rows), unit="answer", desc=name) as shown:
        for at in range(0, len(rows), _AT_ONCE):
            asked = [[{"role": "user", "content": TASKS[name].ask(row)}] for row in rows[at : at + _AT_ONCE]]
            for result in model.generate(asked, max_new_tokens=max_new_tokens, temperature=0.0):
                found.append(result.text)
                shown.update(1)
    return found


def _judged(name: str, row: Mapping[str, Any], answer: str, seconds: float, memory_mib: int) -> str:
    told = TASKS[name].judge(row, answer)
    if not TASKS[name].runs_code:
        return told
    outcome = run_program(told, seconds=seconds, memory_mib=memory_mib)
    return "" if outcome.passed else outcome.why


def _interval(right: int, asked: int) -> list[float]:
    """Wilson's, of 95 %."""
    z, rate = 1.96, right / asked
    middle, half = rate + z * z / (2 * asked), z * math.sqrt(rate * (1 - rate) / asked + (z / (2 * asked)) ** 2)
    return [(middle + sign * half) / (1 + z * z / asked) for sign in (-1, 1)]


def _number(text: str) -> str | None:
    """The last number, of a \\boxed{} if there is one, in one spelling."""
    boxed = re.findall(r"\\boxed\{([^}]*)\}", text)
    numbers = _NUMBER.findall(boxed[-1] if boxed else text)
    if not numbers:
        return None
    plain: str = numbers[-1].replace(",", "").replace("$", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _gsm8k(row: Mapping[str, Any], answer: str) -> str:
    wanted, found = _number(row["answer"].rpartition("####")[2]), _number(answer)
    return "" if wanted == found else f"expected {wanted}, found {found}"


def _code(answer: str) -> str:
    """The longest code block; all of an answer without one."""
    blocks: list[str] = _BLOCK.findall(answer)
    return max(blocks, key=len, default=answer)


def _humaneval(row: Mapping[str, Any], answer: str) -> str:
    """The program whose success is the answer's."""
    code = _code(answer)
    head = row["prompt"].rpartition("\ndef ")[0] if f"def {row['entry_point']}" in code else row["prompt"]
    return f"{head}\n{code}\n{row['test']}\ncheck({row['entry_point']})\n"


def _mbpp(row: Mapping[str, Any], answer: str) -> str:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    return "\n".join([setup, _code(answer), *row["test_list"]]) + "\n"


def _mbpp_question(row: Mapping[str, Any]) -> str:
    return "{} Answer with one Python code block. Your code should pass this test:\n{}".format(
        row.get("text") or row["prompt"], row["test_list"][0]
    )


TASKS: Mapping[str, _Task] = {
    "gsm8k": _Task(("question", "answer"), False, lambda row: row["question"] + _BOXED, _gsm8k),
    "humaneval": _Task(
        ("prompt", "test", "entry_point"), True, lambda row: _COMPLETE.format(row["prompt"].strip("\n")), _humaneval
    ),
    "mbpp": _Task(("test_list",), True, _mbpp_question, _mbpp),
}
"""Sets by name: problems as they are published."""
