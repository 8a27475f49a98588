"""The house rules that a reader can check: which room includes which, and what no file of the core may call."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# A room may include itself and the rooms listed here, and nothing else of the project.
MAY_INCLUDE = {
    "base": set(),
    "format": {"base"},
    "model": {"base"},
    "plan": {"base", "model"},
    "sample": {"base"},
    "dflash": {"base", "sample"},
    "cpu": {"base", "format", "model", "plan"},
    "cuda": {"base", "format", "model", "plan"},
    "engine": {"base", "sample", "dflash", "model", "plan"},
    "python": {"base", "format", "sample", "dflash", "model", "plan", "cpu", "cuda", "engine"},
}
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".c", ".h", ".def", ".cc", ".cu"))
BANNED = re.compile(
    r"(?<![\w.>])(malloc|calloc|realloc|free|exit|abort|printf|fprintf|puts|strcpy|strcat|sprintf|alloca|getenv)\s*\("
)


def room(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def code(path: Path) -> str:
    """The text without comments and string literals."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', re.sub(r"//[^\n]*", " ", text))


def test_there_are_sources() -> None:
    assert {room(path) for path in SOURCES} == set(MAY_INCLUDE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_includes_run_one_way(path: Path) -> None:
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), flags=re.M):
        assert (CSRC / name).is_file(), f"{path}: {name} is not a path from csrc/"
        target = name.split("/")[0]
        assert target == room(path) or target in MAY_INCLUDE[room(path)], f"{path.relative_to(ROOT)} includes {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_only_the_python_room_knows_python(path: Path) -> None:
    knows = re.search(r"#\s*include\s*<(Python\.h|numpy/)", path.read_text()) is not None
    assert not knows or room(path) == "python"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_no_banned_calls(path: Path) -> None:
    found = set(BANNED.findall(code(path)))
    if path == CSRC / "base/alloc.c":
        found -= {"free"}
    assert not found, f"{path.relative_to(ROOT)} calls {found}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_every_c_room_has_tests() -> None:
    for name in MAY_INCLUDE:
        assert list((ROOT / "tests" / name).glob("test_*.py")), f"tests/{name} has no test"
