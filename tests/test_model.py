"""Model: opening, prompts of every kind, lists and n, numbers, what it says about wrong input, and its end."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.batch import IN_FLIGHT
from mimo_ultraspeed.make import make

SHORT: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}
CHAT = [{"role": "user", "content": "2+2?"}]


def test_properties(tiny_model: mu.Model, tiny_path: Path) -> None:
    assert tiny_model.config.num_hidden_layers == 4
    assert tiny_model.draft is None
    assert (tiny_model.precision, tiny_model.threads, tiny_model.max_context) == ("fast", 2, 65536)
    assert mu.backends()[tiny_model.backend].on
    assert tiny_model.memory()["total"] > 0
    assert tiny_model.checkpoint.folder == tiny_path.resolve()
    assert "layers 4" in repr(tiny_model) and "<table>" in tiny_model._repr_html_()


def test_text_is_a_user_message_unless_raw(tiny_model: mu.Model) -> None:
    by_text = tiny_model.generate("2+2?", **SHORT)
    by_chat = tiny_model.generate(CHAT, **SHORT)
    template = tiny_model.tokenizer.apply_chat_template(CHAT, tokenize=True)
    assert by_text.prompt_token_ids == by_chat.prompt_token_ids == template
    assert by_text.token_ids == by_chat.token_ids
    assert tiny_model.generate("2+2?", raw=True, **SHORT).prompt_token_ids == list(b"2+2?")


def test_enable_thinking_reaches_the_template(tiny_model: mu.Model) -> None:
    plain, quiet = (tiny_model.generate(CHAT, enable_thinking=flag, **SHORT).prompt_token_ids for flag in (True, False))
    assert plain == quiet[: len(plain)] and len(quiet) > len(plain)


def test_token_ids_as_lists_and_arrays(tiny_model: mu.Model) -> None:
    expected = tiny_model.generate([5, 6, 7], **SHORT).token_ids
    for prompt in ((5, 6, 7), np.array([5, 6, 7]), np.array([5, 6, 7], np.uint8), [np.int64(5), np.int64(6), np.int64(7)]):
        result = tiny_model.generate(prompt, **SHORT)
        assert isinstance(result, mu.Result) and result.token_ids == expected


def test_lists_in_lists_out_in_order(tiny_model: mu.Model) -> None:
    prompts = [[n + 1] * (n % 5 + 1) for n in range(IN_FLIGHT + 9)]
    alone = [tiny_model.generate(prompt, max_new_tokens=n % 7 + 1, ignore_eos=True).token_ids for n, prompt in enumerate(prompts)]
    together = tiny_model.generate(prompts, max_new_tokens=7, ignore_eos=True)
    assert [result.prompt_token_ids for result in together] == prompts
    assert [result.token_ids[: len(ids)] for result, ids in zip(together, alone, strict=True)] == alone


@pytest.mark.parametrize(
    ("prompts", "count"),
    [(["a", "b"], 2), (("a", "b", "c"), 3), ([CHAT, CHAT], 2), ([[1], [2, 3]], 2), (np.ones((3, 2), int), 3), ([np.array([1])], 1)],
)
def test_what_is_a_list_of_prompts(tiny_model: mu.Model, prompts: Any, count: int) -> None:
    results = tiny_model.generate(prompts, **SHORT)
    assert isinstance(results, list) and len(results) == count


def test_n_gives_a_list_per_prompt(tiny_model: mu.Model) -> None:
    four = tiny_model.generate([1, 2], n=4, seed=1, max_new_tokens=12, ignore_eos=True)
    assert [result.index for result in four] == [0, 1, 2, 3]
    assert len({tuple(result.token_ids) for result in four}) == 4
    assert {result.seed for result in four} == {1}
    assert four[0].token_ids == tiny_model.generate([1, 2], temperature=1.0, seed=1, max_new_tokens=12, ignore_eos=True).token_ids
    nested = tiny_model.generate([[1, 2], [3]], n=2, seed=1, max_new_tokens=12, ignore_eos=True)
    assert [len(group) for group in nested] == [2, 2]
    assert [result.token_ids for result in nested[0]] == [result.token_ids for result in four[:2]]
    assert isinstance(tiny_model.generate([1], n=1, **SHORT), list)


def test_seeds_repeat_an_answer(tiny_model: mu.Model) -> None:
    first = tiny_model.generate([9, 8], temperature=1.0, max_new_tokens=24, ignore_eos=True)
    again = tiny_model.generate([9, 8], temperature=1.0, max_new_tokens=24, ignore_eos=True, seed=first.seed)
    other = tiny_model.generate([9, 8], temperature=1.0, max_new_tokens=24, ignore_eos=True, seed=first.seed + 1)
    assert first.token_ids == again.token_ids != other.token_ids
    beside = tiny_model.generate([[9, 8], [7], [9, 8]], temperature=1.0, max_new_tokens=24, ignore_eos=True, seed=first.seed)
    assert beside[0].token_ids == beside[2].token_ids == first.token_ids
    fresh = tiny_model.generate([[9, 8], [9, 8]], temperature=1.0, max_new_tokens=24, ignore_eos=True)
    assert fresh[0].seed != fresh[1].seed


def test_logprobs_are_those_of_the_logits(tiny_model: mu.Model) -> None:
    result = tiny_model.generate([1, 2, 3], max_new_tokens=5, ignore_eos=True, logprobs=3)
    logits = tiny_model.logits(result.prompt_token_ids + result.token_ids)[2:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    assert result.logprobs is not None and len(result.logprobs) == 5
    for row, entry, token in zip(expected, result.logprobs, result.token_ids, strict=True):
        assert entry.token_id == token == entry.top[0][0]
        assert entry.logprob == pytest.approx(row[token], abs=1e-4)
        assert [number for number, _ in entry.top] == list(np.argsort(-row, kind="stable")[:3])
    assert tiny_model.generate([1], **SHORT).logprobs is None


def test_greedy_follows_the_logits(tiny_model: mu.Model) -> None:
    result = tiny_model.generate([1, 2, 3], max_new_tokens=8, ignore_eos=True)
    logits = tiny_model.logits(result.prompt_token_ids + result.token_ids)
    assert (logits.dtype, logits.shape) == (np.float32, (11, 512))
    assert list(logits[2:-1].argmax(1)) == result.token_ids


def test_hidden_states(tiny_model: mu.Model) -> None:
    states = tiny_model.hidden_states(np.array([1, 2, 3]), layers=[3, 0])
    assert (states.dtype, states.shape) == (np.float32, (2, 3, 160))
    assert np.array_equal(states[1], tiny_model.hidden_states([1, 2, 3], [0])[0])
    with pytest.raises(ValueError, match=r"layers\[1\]: expected a layer from 0 to 3, found 4"):
        tiny_model.hidden_states([1], [0, 4])


def test_result_shows_itself(tiny_model: mu.Model) -> None:
    result = tiny_model.generate("<b>", **SHORT)
    assert str(result) == result.text
    assert "finish_reason='length'" in repr(result)
    assert result.options.max_new_tokens == 6
    hostile = mu.Result("<script>", [], "stop", result.stats, result.options, [])
    shown = hostile._repr_mimebundle_()
    assert shown["text/plain"] == "<script>" and "&lt;script&gt;" in shown["text/html"] and "<script>" not in shown["text/html"]


def test_max_new_tokens_is_cut_to_the_context(tiny_path: Path) -> None:
    with mu.Model.from_pretrained(tiny_path, max_context=10, progress=False) as model:
        result = model.generate([1] * 7, ignore_eos=True)
        assert (len(result.token_ids), result.finish_reason) == (3, "length")
        with pytest.raises(mu.ContextOverflowError, match=r"prompt: 10 tokens and at least 1 new one .* the 10 positions"):
            model.generate([1] * 10)


WRONG_PROMPTS = [
    ("", ValueError, "prompt: expected some text, found an empty string"),
    ([], ValueError, "found an empty list"),
    (np.array([], int), ValueError, "expected at least one token, found none"),
    ([[1], []], ValueError, r"prompt\[1\]: expected at least one token, found none"),
    ([1, 512], ValueError, "prompt: token 1: expected an id from 0 to 511, found 512"),
    ([-1], ValueError, "prompt: token 0: expected an id from 0 to 511, found -1"),
    ([2**70], (TypeError, ValueError), "prompt: "),
    ([1, 2.5], TypeError, "expected integers"),
    ([1, "a"], TypeError, "expected integers"),
    ([["a"]], TypeError, "expected integers"),
    ([[[1]]], TypeError, "one dimension"),
    (5, TypeError, "prompt: expected text, a list of chat messages, token ids, or a list of these, found int"),
    (None, TypeError, "found NoneType"),
    ({"role": "user", "content": "x"}, TypeError, "found dict"),
    (b"abc", TypeError, "found bytes"),
]


@pytest.mark.parametrize(("prompt", "kind", "message"), WRONG_PROMPTS)
def test_wrong_prompts(tiny_model: mu.Model, prompt: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        tiny_model.generate(prompt, **SHORT)


def test_nothing_is_decoded_when_one_of_the_prompts_is_wrong(tiny_model: mu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "_start", lambda *_: pytest.fail("decoding began"))
    with pytest.raises(ValueError, match=r"prompt\[2\]: token 0"):
        tiny_model.generate([[1], [2], [9999]], **SHORT)


@pytest.mark.parametrize("n", [0, 65, -1])
def test_n_out_of_range(tiny_model: mu.Model, n: int) -> None:
    with pytest.raises(ValueError, match=f"n: expected an integer from 1 to 64, found {n}"):
        tiny_model.generate([1], n=n)


def test_wrong_options_reach_the_caller(tiny_model: mu.Model) -> None:
    with pytest.raises(ValueError, match=r"temperature: expected .* found -1"):
        tiny_model.generate([1], temperature=-1)
    with pytest.raises(TypeError, match="unknown option 'temprature'; did you mean temperature"):
        tiny_model.stream([1], temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="n: a stream is one answer"):
        tiny_model.stream([1], n=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="a stream is one answer, found a list"):
        tiny_model.stream(["a", "b"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at most 64"):
        tiny_model.stream([1], stop=[str(n) for n in range(65)])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"device": "tpu"}, ValueError, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found 'tpu'"),
        ({"device": "cuda:x"}, ValueError, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found 'cuda:x'"),
        ({"draft": "some/drafter"}, FileNotFoundError, "some/drafter: expected the folder of a drafter"),
        ({"draft": True}, FileNotFoundError, "expected the folder of a drafter"),
        ({"precision": "int4"}, ValueError, "precision: expected 'fast' or 'exact', found 'int4'"),
        ({"threads": 0}, ValueError, "threads: expected 1 or more"),
        ({"threads": 1.5}, TypeError, "threads: expected an integer"),
        ({"max_context": 0}, ValueError, "max_context: expected 1 or more"),
        ({"max_context": 65537}, ValueError, "max_context"),
    ],
)
def test_wrong_arguments_of_from_pretrained(
    tiny_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        mu.Model.from_pretrained(tiny_path, progress=False, **arguments)


def test_draft_can_be_refused(tiny_path: Path) -> None:
    for draft in (None, False):
        with mu.Model.from_pretrained(tiny_path, draft=draft, device="cpu", progress=False) as model:
            assert model.draft is None


def test_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'smollm2-135m'"):
        mu.Model.from_pretrained("smolm2-135m")
    monkeypatch.setenv("MIMO_ULTRASPEED_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="smollm2-135m has not been made yet"):
        mu.Model.from_pretrained("smollm2-135m", local_files_only=True)


def test_a_model_without_tokenizer_takes_token_ids(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "tiny", overrides={"vocab_size": 64}, progress=False)
    assert not (folder / "tokenizer.json").exists()
    with mu.Model.from_pretrained(folder, progress=False) as model:
        result = model.generate([1, 2], **SHORT)
        assert (len(result.token_ids), result.text) == (6, "")
        for prompt in ("text", CHAT):
            with pytest.raises(ValueError, match=r"prompt: this checkpoint has no tokenizer.json"):
                model.generate(prompt)
        with pytest.raises(ValueError, match=r"stop: needs the text"):
            model.generate([1], stop="x")
        with pytest.raises(ValueError, match=r"no tokenizer.json"):
            _ = model.tokenizer


def test_a_closed_model_says_so(tiny_path: Path) -> None:
    model = mu.Model.from_pretrained(tiny_path, progress=False)
    model.close()
    model.close()
    for use in (
        lambda: model.generate([1]),
        lambda: model.stream([1]),
        lambda: model.logits([1]),
        lambda: model.hidden_states([1], [0]),
        lambda: model.memory(),
    ):
        with pytest.raises(mu.EngineError, match="closed"):
            use()
    assert "closed" in repr(model)


def test_an_error_leaves_no_answer_running(tiny_model: mu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    start, running = tiny_model._start, []

    def start_two(*arguments: Any) -> mu.Stream:
        if len(running) == 2:
            raise OSError("the third fails")
        running.append(start(*arguments))
        return running[-1]

    monkeypatch.setattr(tiny_model, "_start", start_two)
    with pytest.raises(OSError, match="the third fails"):
        tiny_model.generate([[1], [2], [3]], max_new_tokens=60000, ignore_eos=True)
    assert [stream.finish_reason for stream in running] == ["cancelled", "cancelled"]


def test_fewer_in_flight_when_memory_is_short(tiny_model: mu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    start, running = tiny_model._start, []

    def start_at_most_two(*arguments: Any) -> mu.Stream:
        running[:] = [stream for stream in running if stream.finish_reason is None]
        if len(running) == 2:
            raise MemoryError("no more")
        running.append(start(*arguments))
        return running[-1]

    monkeypatch.setattr(tiny_model, "_start", start_at_most_two)
    results = tiny_model.generate([[n] for n in range(7)], **SHORT)
    assert [len(result.token_ids) for result in results] == [6] * 7

    def never(*_: Any) -> mu.Stream:
        raise MemoryError("none at all")

    monkeypatch.setattr(tiny_model, "_start", never)
    with pytest.raises(MemoryError, match="none at all"):
        tiny_model.generate([[1], [2]], **SHORT)


def test_mimo_cpu_forces_the_kernels(tiny_path, monkeypatch):
    monkeypatch.setenv("MIMO_CPU", "ref")
    with mu.Model.from_pretrained(tiny_path, progress=False) as model:
        assert model.backend == "cpu:ref"
    monkeypatch.setenv("MIMO_CPU", "sse9")
    with pytest.raises(ValueError, match="sse9"):
        mu.Model.from_pretrained(tiny_path, progress=False)
    monkeypatch.setenv("MIMO_CPU", "avx2" if platform.machine() == "aarch64" else "neon")
    with pytest.raises(NotImplementedError, match="not compiled in"):
        mu.Model.from_pretrained(tiny_path, progress=False)
