"""Tokenizer: agreement with the library, control tokens in texts, hostile files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mimo_ultraspeed import tokenizer_rules
from mimo_ultraspeed.chat import MIMO_TEMPLATE
from mimo_ultraspeed.errors import TokenizerError
from mimo_ultraspeed.tokenizer import MAX_TEXT_BYTES, Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
LINES = [
    "Hello world, this is some text to merge: 12345 and more text.",
    "für élan 你好 世界 🙂 <|im_end|> im_end\n\n\tdef f(x):\n    return x",
] * 4
QWEN2 = next(pattern for pattern, name in tokenizer_rules.PATTERNS.items() if name == "Qwen2")


def byte_level(pre_tokenizer: Any = None) -> tokenizers.Tokenizer:
    """A small byte-level BPE of the Qwen2 kind, as the library makes it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(SPECIAL)
    made.add_tokens(MARKS)
    return made


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """A byte-fallback BPE of the Llama-2 kind; `scheme` 'prepend' puts the blank in by a normalizer, else by Metaspace."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrdti", "he", "▁he", "▁w", "or"]
    merges = [("h", "e"), ("▁", "he"), ("▁", "w"), ("o", "r")]
    model = models.BPE({token: at for at, token in enumerate(vocab)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return made


def ours(made: tokenizers.Tokenizer, **more: Any) -> Tokenizer:
    return Tokenizer(json.loads(made.to_str()), **more)


LIBRARY = byte_level()
TOKENIZER = ours(LIBRARY, config={"eos_token": {"content": "<|im_end|>"}}, generation_config={"eos_token_id": [330, 332]})


def definition() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(LIBRARY.to_str())
    return value


words = st.lists(
    st.sampled_from([*SPECIAL, *MARKS, "<", "|", ">", "im_end", " ", "\n", "12", "é", "🙂", "hello"]), max_size=12
).map("".join)


@given(words | st.text())
def test_user_text_yields_no_control_token_and_survives(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.special_tokens.values())
    normal = normalizers.NFC().normalize_str(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == normal


@pytest.mark.parametrize("made", [LIBRARY, metaspace("prepend"), metaspace("first"), metaspace("always"), metaspace("never")])
@given(text=words | st.text(alphabet="helowrd <s>ti/", max_size=20))
def test_parse_special_agrees_with_the_library(made: tokenizers.Tokenizer, text: str) -> None:
    tokenizer = ours(made)
    assert tokenizer.encode(text, parse_special=True) == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, True, parse_special=True) == made.encode(text, add_special_tokens=True).ids


@pytest.mark.parametrize("scheme", ["prepend", "first", "always", "never"])
@pytest.mark.parametrize("text", ["he<s>he", "<s>he wor", "<s> he</s>he", "<s><s>wor<s>"])
def test_only_the_parts_that_should_get_a_leading_blank(scheme: str, text: str) -> None:
    made = metaspace(scheme)
    assert ours(made).encode(text, parse_special=True) == made.encode(text, add_special_tokens=False).ids


@given(words)
def test_user_text_is_encoded_as_if_there_were_no_control_tokens(text: str) -> None:
    bare = definition()
    bare["added_tokens"] = []
    plain = tokenizers.Tokenizer.from_str(json.dumps(bare))
    assert TOKENIZER.encode(text) == plain.encode(text, add_special_tokens=False).ids


@given(st.lists(st.integers(0, len(TOKENIZER) - 1)), st.booleans())
def test_decode_agrees_with_the_library(ids: list[int], skip: bool) -> None:
    if not skip or not set(MARKS) & {TOKENIZER.id_to_token(number) for number in ids}:
        assert TOKENIZER.decode(ids, skip) == LIBRARY.decode(ids, skip_special_tokens=skip)


@given(st.text(alphabet="helo wrd\x00é🙂"))
def test_byte_fallback_round_trip(text: str) -> None:
    made = metaspace("prepend")
    tokenizer = ours(made)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == made.decode(ids) == text
    assert tokenizer.leading_blanks == 1


def test_think_is_shown_and_special_tokens_are_skipped() -> None:
    ids = TOKENIZER.encode("<|im_start|>a<think>b</think><|im_end|>", parse_special=True)
    assert TOKENIZER.decode(ids) == "a<think>b</think>"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<|im_start|>a<think>b</think><|im_end|>"


def test_added_token_flags_strip_blanks_around_it() -> None:
    made = byte_level()
    made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True, special=True)])
    text = "a  <mask> \n b <|im_end|> <mask>"
    assert ours(made).encode(text, parse_special=True) == made.encode(text, add_special_tokens=False).ids


def test_a_control_token_that_the_model_itself_could_merge_is_broken_up() -> None:
    value = definition()
    value["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
    value["model"]["vocab"] |= {token: TOKENIZER.special_tokens[token] for token in SPECIAL}
    value["model"]["ignore_merges"] = True
    tokenizer = Tokenizer(value)
    ids = tokenizer.encode("<|im_end|>")
    assert TOKENIZER.special_tokens["<|im_end|>"] not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_end|>"


def test_digits_one_by_one_like_smollm2() -> None:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer = ours(byte_level(pre_tokenizers.Sequence(steps)))
    assert [tokenizer.decode([number]) for number in tokenizer.encode("12345")] == list("12345")


def test_properties() -> None:
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 339
    assert TOKENIZER.eos_token_ids == (330, 332)
    assert (TOKENIZER.eos_token, TOKENIZER.bos_token, TOKENIZER.bos_token_id) == ("<|im_end|>", None, None)
    assert set(TOKENIZER.special_tokens) == {*SPECIAL, *MARKS}
    assert TOKENIZER.id_to_token(332) == "<|im_end|>" and TOKENIZER.token_to_id("<|im_end|>") == 332
    assert TOKENIZER.id_to_token(339) is None and TOKENIZER.token_to_id("nothing") is None
    assert TOKENIZER.decode([339, 10**9]) == ""
    assert repr(TOKENIZER) == "Tokenizer(339 tokens, 9 control, eos [330, 332], MiMo's chat template)"
    assert "&lt;|im_end|&gt;" in TOKENIZER._repr_html_()
    with pytest.raises(TokenizerError, match="-1 is negative"):
        TOKENIZER.decode([-1])


def test_unusable_texts() -> None:
    with pytest.raises(TokenizerError, match="not valid Unicode at character 1"):
        TOKENIZER.encode("a\ud800")
    with pytest.raises(TokenizerError, match=f"at most {MAX_TEXT_BYTES}"):
        TOKENIZER.encode("é" * (MAX_TEXT_BYTES // 2 + 1))
    with pytest.raises(TypeError, match="expected str, found bytes"):
        TOKENIZER.encode(b"a")  # type: ignore[arg-type]


def replace(path: str, new: Any) -> dict[str, Any]:
    """The definition with the value at a dotted path replaced."""
    value = definition()
    *parents, last = path.split(".")
    place: Any = value
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[int(last) if isinstance(place, list) else last] = new
    return value


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
HOSTILE = [
    ("pre_tokenizer", REGEX, r"\(a\+\)\+\$.*not one of the published"),
    ("pre_tokenizer.pretokenizers.0", REGEX, r"pretokenizers\[0\].*\(a\+\)\+\$"),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}, "may only search for plain text"),
    ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, "2 characters, at most 1"),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": ""}, "pattern is empty"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "'Precompiled' is not supported"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}, "17 steps"),
    ("decoder", {"type": "CTC"}, "'CTC' is not supported"),
    ("decoder", None, "decoder is missing"),
    (
        "decoder",
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Strip"}]},
        "together with other steps",
    ),
    ("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}, "only after Fuse"),
    ("post_processor", {"type": "BertProcessing"}, "'BertProcessing' is not supported"),
    ("post_processor", {"type": "TemplateProcessing", "single": "x"}, "single: expected list, found str"),
    ("model.type", "WordPiece", "expected 'BPE', found 'WordPiece'"),
    ("model.dropout", 0.5, "dropout must be 0"),
    ("model.vocab", {"a": -1}, "id -1 is outside"),
    ("model.vocab", {"a": True}, "expected int, found bool"),
    ("model.vocab", {"a": 0, "b": 0}, "one id to several"),
    ("model.vocab", {}, "0 tokens"),
    ("model.merges", [["a", "b", "c"]], r"merges\[0\]: expected two strings"),
    ("model.merges", [["nowhere", "found"]], "tokenizer.json"),
    ("model.unk_token", "u" * 65, "65 characters"),
    ("added_tokens.0.id", 1 << 24, "is outside"),
    ("added_tokens.0.id", 5, "has id 5, but the vocabulary says"),
    ("added_tokens.0.content", "", "content is empty"),
    ("added_tokens.0", 7, "expected dict, found int"),
]


@pytest.mark.parametrize(("path", "new", "message"), HOSTILE)
def test_hostile_definitions_are_refused(path: str, new: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(replace(path, new))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_ends_in_a_tokenizer_error_or_a_working_tokenizer(data: st.DataObject) -> None:
    value = definition()
    place: Any = value
    while True:  # walk down to some random place
        keys = list(range(len(place))) if isinstance(place, list) else list(place)
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({}) | st.just([{}])
    place[key] = data.draw(leaf | st.dictionaries(st.sampled_from(["type", "pattern", "String", "Regex", "ids"]), leaf))
    try:
        tokenizer = Tokenizer(value)
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("Hello 12 <|im_end|>"))


def test_every_published_pattern_compiles_and_splits_long_runs() -> None:
    for pattern in tokenizer_rules.PATTERNS:
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        tokenizer = Tokenizer(replace("pre_tokenizer", {"type": "Sequence", "pretokenizers": [step, level]}))
        for char in (" ", "a", "1", "^", "\n", "你", "A", "'"):
            assert tokenizer.decode(tokenizer.encode(char * 20_000)) == char * 20_000


def test_a_panic_of_the_library_is_a_tokenizer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokenizer_rules.PATTERNS, "(a+)+$", "hostile")
    tokenizer = Tokenizer(replace("pre_tokenizer", REGEX))
    with pytest.raises(TokenizerError, match="text of 41 characters"):
        tokenizer.encode("a" * 40 + "!")
    assert tokenizer.encode("b")


def write(folder: Path, **files: str) -> Path:
    (folder / "tokenizer.json").write_text(LIBRARY.to_str())
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_from_folder_and_where_the_template_comes_from(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(write(tmp_path)).chat_template == MIMO_TEMPLATE
    named = json.dumps(
        {"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}], "eos_token": "<|im_end|>"}
    )
    write(tmp_path, tokenizer_config__json=named, generation_config__json='{"eos_token_id": 330}')
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.chat_template == "yes"
    assert tokenizer.eos_token_ids == (330, 332)
    write(tmp_path, chat_template__jinja="file")
    assert Tokenizer.from_folder(tmp_path).chat_template == "file"


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    for text, message in (("", "not readable as JSON"), ("[" * 100_000, "not readable as JSON"), ("[]", "expected a JSON object")):
        path.write_text(text)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_folder(tmp_path)
    path.write_bytes(b"{\xff}")
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 1"):
        Tokenizer.from_folder(tmp_path)
    os.truncate(path, 5 << 30)
    with pytest.raises(TokenizerError, match="5368709120 bytes"):
        Tokenizer.from_folder(tmp_path)
    for make in (lambda: os.mkfifo(path), lambda: path.mkdir(), lambda: path.symlink_to("/dev/zero")):
        path.unlink()
        make()
        with pytest.raises(TokenizerError, match="expected a regular file"):
            Tokenizer.from_folder(tmp_path)
        if path.is_dir():
            path.rmdir()
            path.touch()
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(TokenizerError, match="cannot be opened"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config__json", "generation_config__json"])
@pytest.mark.parametrize("text", ["[]", "{", '{"eos_token": 7, "eos_token_id": "x"}', '{"eos_token": ["x"], "eos_token_id": [-1]}'])
def test_damaged_configs(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.from_folder(write(tmp_path, **{name: text}))
