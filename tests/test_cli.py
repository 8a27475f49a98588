"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_generate_streams_the_answer_and_tells_the_rest_on_stderr(
    tiny_path: Path, tiny_model: mu.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-tokens", "12", "--ignore-eos", "--temperature", "1", "--seed", "4", "--top-p", "0.9"]
    assert main(["generate", "--model", str(tiny_path), "hello", *options]) == 0
    told = capsys.readouterr()
    expected = tiny_model.generate("hello", max_new_tokens=12, ignore_eos=True, temperature=1.0, seed=4, top_p=0.9)
    assert told.out == expected.text + "\n"
    assert "temperature 1, top_p 0.9, seed 4" in told.err and "12 new" in told.err and "length" in told.err
    assert "\x1b" not in told.err


def test_generate_reads_stdin_and_takes_a_system_message(run_python: Run, tiny_path: Path, tiny_model: mu.Model) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "from stdin"}]
    command = [
        "-m",
        "mimo_ultraspeed",
        "generate",
        "--model",
        str(tiny_path),
        "--max-tokens",
        "9",
        "--quiet",
        "--system",
        "Be brief.",
    ]
    done = run_python(*command, stdin="from stdin", PYTHONIOENCODING="utf-8")
    assert (done.stdout, done.stderr, done.returncode) == (tiny_model.generate(chat, max_tokens=9).text + "\n", "", 0)


def test_generate_raw_and_stop(tiny_path: Path, tiny_model: mu.Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(tiny_path), "--raw", "--stop", "zzz", "--max-tokens", "5", "--quiet", "abc"]) == 0
    assert capsys.readouterr() == (tiny_model.generate("abc", raw=True, max_tokens=5).text + "\n", "")
    assert main(["generate", "--model", str(tiny_path), "--raw", "--system", "x", "abc"]) == 1
    assert "--raw" in capsys.readouterr().err


def test_chat_keeps_the_conversation(run_python: Run, tiny_path: Path) -> None:
    lines = "first\nsecond\n/clear\n/wrong\nthird\n/exit\nnever\n"
    command = ["-m", "mimo_ultraspeed", "chat", "--model", str(tiny_path), "--max-tokens", "6", "--ignore-eos"]
    done = run_python(*command, stdin=lines)
    prompts = [int(line.split(" prompt tokens")[0]) for line in done.stderr.splitlines() if " prompt tokens" in line]
    assert done.returncode == 0 and len(prompts) == 3
    assert prompts[1] > prompts[0] + 6
    assert prompts[2] == prompts[0]
    assert done.stderr.count("/clear forgets") == 2


def test_chat_survives_an_overflow(run_python: Run, tiny_path: Path) -> None:
    command = ["-m", "mimo_ultraspeed", "chat", "--model", str(tiny_path), "--max-tokens", "2", "--max-context", "120"]
    done = run_python(*command, stdin=f"{'x' * 200}\nshort\n")
    assert done.returncode == 0
    assert "error: prompt: " in done.stderr and "/clear starts over" in done.stderr
    assert done.stderr.count("new, first after") == 1


def test_an_interrupt_stops_the_answer_and_not_the_chat(
    tiny_path: Path, tiny_model: mu.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mimo_ultraspeed.cli.chat import _turn

    poll, seen = mu.Stream.poll, []

    def interrupted(stream: mu.Stream, timeout: float | None = None) -> mu.Piece | None:
        seen.append(stream)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return poll(stream, timeout)

    monkeypatch.setattr(mu.Stream, "poll", interrupted)
    history = _turn(tiny_model, [], "hello", {"max_new_tokens": 60000, "ignore_eos": True})
    assert "cancelled" in capsys.readouterr().err
    assert [message["role"] for message in history] in (["user", "assistant"], [])
    monkeypatch.undo()
    assert len(_turn(tiny_model, [], "hello", {"max_new_tokens": 30, "ignore_eos": True})) == 2


def test_thinking_is_set_apart_in_the_conversation() -> None:
    from mimo_ultraspeed.cli.chat import _message

    assert _message("<think>\nhm\n</think>\n\nyes") == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    assert _message("yes") == {"role": "assistant", "content": "yes"}


def test_info_reads_headers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "flash"
    assert main(["make", str(folder), "--shape", "flash", "--headers-only", "num_hidden_layers=3", "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(["info", str(folder), "--plan", "8"]) == 0
    told = capsys.readouterr().out
    for part in (
        "F8_E4M3",
        "KV per token",
        "expert_up",
        "model.layers.*.mlp.experts.*.up_proj.weight",
        "cuda",
        "plan: up to 8 rows",
    ):
        assert part in told


def test_make_and_info_of_a_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "drafted"
    assert main(["make", str(folder), "--draft", "block=4", "vocab=100", "markov_rank=8"]) == 0
    assert main(["info", str(folder), "--plan"]) == 0
    told = capsys.readouterr().out
    for part in (
        "block        4: the last token and 3 drafts",
        "taps         after target layers 0, 1, 3",
        "drafts       100 of 512 ids, Markov head of rank 8",
        "mask from    mask_embedding.pt",
        "model.fc.weight",
        "the drafter's",
        "draft_fuse  M=3 H=160",
    ):
        assert part in told
    assert main(["info", str(folder), "--draft", str(tmp_path / "nowhere")]) == 1
    assert "expected the folder of a drafter" in capsys.readouterr().err
    assert main(["make", str(tmp_path / "x"), "--draft", "blocks=4"]) == 1
    assert "'blocks' is not an option of a made drafter" in capsys.readouterr().err
    assert main(["make", str(tmp_path / "x"), "--draft", "block"]) == 1
    assert "--draft: expected KEY=VALUE, found 'block'" in capsys.readouterr().err


def test_make_overrides_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mimo_ultraspeed.checkpoint import Checkpoint

    for at, words in enumerate((["--shape", "tiny", "vocab_size=64"], ["vocab_size=64", "--shape", "tiny"])):
        assert main(["make", str(tmp_path / str(at)), *words]) == 0
        assert Checkpoint.open(tmp_path / str(at)).config.vocab_size == 64
    assert main(["make", str(tmp_path / "x"), "vocabsize=64"]) == 1
    assert "did you mean 'vocab_size'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["make", str(tmp_path / "y"), "--shape", "tiny", "--wrong"])
    assert caught.value.code == 2


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMO_ULTRASPEED_HOME", str(tmp_path))
    monkeypatch.setenv("MIMO_CPU", "neon" if mu.backends()["cpu:avx2"].on else "avx2")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for part in ("python ", "memory nodes ", "cpu:ref", "cuda", "smollm2-135m: not made yet", "numpy", "opening a model will fail"):
        assert part in told


def test_convert_is_wired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "none.gguf"), str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and "none.gguf" in told.err and told.err.count("\n") == 1


def test_errors_are_one_line_and_debug_shows_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert main(["info", missing]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["info", missing, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["generate", "hello"], ["chat"]])
@pytest.mark.parametrize("asked", [["--width", "4"], ["--lookup"]])
def test_options_that_contradict_are_told_before_a_model_is_opened(
    command: list[str], asked: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing")
    assert main([*command, "--model", missing, "--no-speculative", *asked]) == 1
    name = asked[0].removeprefix("--")
    assert capsys.readouterr().err == f"error: {name}: it is about drafts, which speculative=False turns off\n"


@pytest.mark.parametrize("words", [[], ["wrong"], ["generate", "--temperature", "hot"], ["info"]])
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: mimo-ultraspeed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "generate",
        "chat",
        "info",
        "doctor",
        "evaluate",
        "evaluate acceptance",
        "evaluate merge",
        "evaluate self-check",
        "make",
        "convert",
        "bench",
    ],
)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert f"usage: mimo-ultraspeed {command}".rstrip() in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == mu.__version__


def child(environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mimo_ultraspeed", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def endless(model: Path) -> list[str]:
    """More than a pipe holds, so it cannot end while nobody reads."""
    return ["generate", "--model", str(model), "--max-tokens", "60000", "--ignore-eos", "--temperature", "1", "hello"]


def test_a_reader_that_goes_away_is_no_error(package_environment: dict[str, str], tiny_path: Path) -> None:
    process = child(package_environment, *endless(tiny_path))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_ctrl_c_is_quiet(package_environment: dict[str, str], tiny_path: Path) -> None:
    process = child(package_environment, *endless(tiny_path))
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"")
