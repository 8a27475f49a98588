"""model/weights: tiny checkpoints in every published layout, and every way a list can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import CheckpointError

Tensor = tuple[str, str, tuple[int, ...], int, int, int]
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1, "F16": 2}
FULL = {"heads": 4, "kv_heads": 2, "head_dim": 192, "v_head_dim": 128, "rotary_dim": 64, "window": 0, "rope_theta": 1e7, "sinks": 0}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def make_config(**changes: Any) -> dict[str, Any]:
    config = {
        "hidden": 256,
        "layers": 3,
        "vocab": 50,
        "max_positions": 256,
        "dense_width": 160,
        "expert_width": 96,
        "experts": 3,
        "top_k": 2,
        "norm_eps": 1e-5,
        "value_scale": 0.612,
        "routed_scale": 1.0,
        "norm_topk": 1,
        "tied_head": 0,
        "qkv_chunks": 2,
        "full": FULL,
        "sliding": {**FULL, "window": 8, "rope_theta": 1e4, "sinks": 1},
        "layer_sliding": [0, 1, 1],
        "layer_sparse": [0, 1, 1],
    }
    return config | changes


class Builder:
    """Lays tensors one after the other in files, changing file now and then."""

    def __init__(self, files: int = 2) -> None:
        self.sizes = [100 + 8 * i for i in range(files)]
        self.tensors: list[Tensor] = []

    def add(self, name: str, dtype: str, *shape: int) -> None:
        file = len(self.tensors) % len(self.sizes)
        count = 1
        for dim in shape:
            count *= dim
        begin = self.sizes[file]
        self.sizes[file] += count * BYTES[dtype]
        self.tensors.append((name, dtype, shape, file, begin, self.sizes[file]))

    def matrix(self, name: str, form: str, rows: int, cols: int, scale_rows: int | None = None) -> None:
        if form == "MXFP4":
            self.add(name, "U8", rows, cols // 2)
            self.add(name + "_scale", "U8", rows, cols // 32)
            return
        self.add(name, form, rows, cols)
        if form == "F8_E4M3":
            self.add(name + "_scale_inv", "F32", ceil_div(rows, 128) if scale_rows is None else scale_rows, ceil_div(cols, 128))


def build(
    config: dict[str, Any], qkv: str = "F8_E4M3", mlp: str = "MXFP4", router: str = "F32", per_head: str = "", plain: str = "BF16"
) -> Builder:
    """A whole checkpoint of `config`. per_head: which of "qkv" restart the FP8 scale grid per head (split only)."""
    b, hidden = Builder(), config["hidden"]
    b.add("model.embed_tokens.weight", plain, config["vocab"], hidden)
    if not config["tied_head"]:
        b.add("lm_head.weight", plain, config["vocab"], hidden)
    b.add("model.norm.weight", plain, hidden)
    for i in range(config["layers"]):
        a = config["sliding" if config["layer_sliding"][i] else "full"]
        heads, kv, dim, v_dim = a["heads"], a["kv_heads"], a["head_dim"], a["v_head_dim"]
        layer = f"model.layers.{i}."
        b.add(layer + "input_layernorm.weight", plain, hidden)
        b.add(layer + "post_attention_layernorm.weight", plain, hidden)
        if a["sinks"]:
            b.add(layer + "self_attn.attention_sink_bias", plain, heads)
        chunks = config["qkv_chunks"]
        if chunks:
            rows = heads * dim + kv * (dim + v_dim)
            b.matrix(layer + "self_attn.qkv_proj.weight", qkv, rows, hidden, chunks * ceil_div(rows // chunks, 128))
        else:
            for part, count, width in (("q", heads, dim), ("k", kv, dim), ("v", kv, v_dim)):
                restart = count * ceil_div(width, 128) if part in per_head else None
                b.matrix(layer + f"self_attn.{part}_proj.weight", qkv, count * width, hidden, restart)
        b.matrix(layer + "self_attn.o_proj.weight", "BF16", hidden, heads * v_dim)
        sparse = config["layer_sparse"][i]
        if sparse:
            b.add(layer + "mlp.gate.weight", router, config["experts"], hidden)
            b.add(layer + "mlp.gate.e_score_correction_bias", "F32", config["experts"])
        width = config["expert_width" if sparse else "dense_width"]
        for mlp_name in [f"mlp.experts.{e}." for e in range(config["experts"])] if sparse else ["mlp."]:
            form = mlp if sparse else "F8_E4M3"
            b.matrix(layer + mlp_name + "gate_proj.weight", form, width, hidden)
            b.matrix(layer + mlp_name + "up_proj.weight", form, width, hidden)
            b.matrix(layer + mlp_name + "down_proj.weight", form, hidden, width)
    return b


def bind(config: dict[str, Any], b: Builder) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    return {(field, layer, expert): rest for field, layer, expert, *rest in _probe.bind(config, b.tensors, b.sizes)}


def spans(b: Builder) -> dict[str, Tensor]:
    return {tensor[0]: tensor for tensor in b.tensors}


def test_every_tensor_is_bound_once() -> None:
    config = make_config()
    b = build(config)
    bound, span = bind(config, b), spans(b)
    assert len(bound) == 3 + 3 * 4 + 2 + 2 * 2 + 3 + 2 * 3 * 3
    for (field, layer, expert), (name, form, rows, cols, segments) in bound.items():
        if field == "qkv":
            continue
        _, dtype, shape, file, begin, _ = span[name]
        if field in ("norm", "attention_norm", "mlp_norm", "sinks", "router_bias"):
            assert (rows,) == shape and segments == [(rows, file, begin)]
            continue
        scale = span.get(name + "_scale") or span.get(name + "_scale_inv")
        where = (scale[3], scale[4]) if scale else (0, 0)
        assert segments == [(rows, file, begin, *where, 0)]
        assert (rows, cols) == (shape[0], shape[1] * (2 if dtype == "U8" else 1))
        assert form == {"F32": "f32", "BF16": "bf16", "F8_E4M3": "fp8", "U8": "mxfp4"}[dtype]
        assert layer < 0 or f".layers.{layer}." in name
        assert "experts" not in name or f".experts.{expert}." in name
    assert bound["down", 2, 1][0] == "model.layers.2.mlp.experts.1.down_proj.weight"
    assert bound["gate", 0, 0][0] == "model.layers.0.mlp.gate_proj.weight"
    assert ("sinks", 0, 0) not in bound and ("sinks", 1, 0) in bound
    assert ("router", 0, 0) not in bound and ("router", 1, 0) in bound


def fused_rows(config: dict[str, Any]) -> list[int]:
    """Stored row of each logical row: chunks of [Q | K | V] read as all of Q, all of K, all of V."""
    a, chunks = config["full"], config["qkv_chunks"]
    widths = [a["heads"] * a["head_dim"], a["kv_heads"] * a["head_dim"], a["kv_heads"] * a["v_head_dim"]]
    chunk_rows = sum(widths) // chunks
    rows, first = [], 0
    for width in widths:
        for chunk in range(chunks):
            rows += range(chunk * chunk_rows + first, chunk * chunk_rows + first + width // chunks)
        first += width // chunks
    return rows


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("form", ["F8_E4M3", "BF16", "F32", "MXFP4"])
def test_fused_qkv_reads_in_logical_order(form: str, chunks: int) -> None:
    config = make_config(qkv_chunks=chunks)
    b = build(config, qkv=form)
    name, _, rows, cols, segments = bind(config, b)["qkv", 1, 0]
    span = spans(b)
    row_bytes = {"F8_E4M3": cols, "BF16": 2 * cols, "F32": 4 * cols, "MXFP4": cols // 2}[form]
    chunk_rows = rows // chunks
    where = []
    for count, file, data, scale_file, scale, scale_row in segments:
        assert file == span[name][3]
        for i in range(count):
            stored, rest = divmod(data + i * row_bytes - span[name][4], row_bytes)
            assert rest == 0
            where.append(stored)
            if form == "F8_E4M3":
                grid = span[name + "_scale_inv"]
                chunk, row = divmod(stored, chunk_rows)
                expected = chunk * ceil_div(chunk_rows, 128) + row // 128
                tiles = ceil_div(cols, 128)
                assert (scale_file, scale + 4 * ((scale_row + i) // 128) * tiles) == (
                    grid[3],
                    grid[4] + 4 * expected * tiles,
                )
            elif form == "MXFP4":
                grid = span[name + "_scale"]
                assert (scale_file, scale + i * cols // 32) == (grid[3], grid[4] + stored * cols // 32)
    assert where == fused_rows(config)


@pytest.mark.parametrize("per_head", ["", "k", "qkv"])
def test_split_fp8_grids_plain_or_per_head(per_head: str) -> None:
    config = make_config(qkv_chunks=0)
    b = build(config, per_head=per_head)
    name, form, rows, cols, segments = bind(config, b)["qkv", 0, 0]
    assert (name, form, rows) == ("model.layers.0.self_attn.q_proj.weight", "fp8", 4 * 192 + 2 * 192 + 2 * 128)
    span, tiles, position = spans(b), ceil_div(cols, 128), 0
    flat = [(segment, i) for segment in segments for i in range(segment[0])]
    for part, heads, width in (("q", 4, 192), ("k", 2, 192), ("v", 2, 128)):
        data, grid = (
            span[f"model.layers.0.self_attn.{part}_proj.weight"],
            span[f"model.layers.0.self_attn.{part}_proj.weight_scale_inv"],
        )
        for row in range(heads * width):
            (_, file, begin, scale_file, scale, scale_row), i = flat[position]
            position += 1
            head, rest = divmod(row, width)
            grid_row = head * ceil_div(width, 128) + rest // 128 if part in per_head else row // 128
            assert (file, begin + i * cols) == (data[3], data[4] + row * cols)
            assert (scale_file, scale + 4 * ((scale_row + i) // 128) * tiles) == (grid[3], grid[4] + 4 * grid_row * tiles)
    assert position == rows


@pytest.mark.parametrize("mlp", ["F32", "BF16", "F8_E4M3", "MXFP4"])
@pytest.mark.parametrize("router", ["F32", "BF16"])
def test_formats_of_experts_and_routers(mlp: str, router: str) -> None:
    config = make_config()
    bound = bind(config, build(config, mlp=mlp, router=router, plain=router))
    assert bound["up", 1, 2][1] == {"F32": "f32", "BF16": "bf16", "F8_E4M3": "fp8", "MXFP4": "mxfp4"}[mlp]
    assert bound["router", 1, 0][1] == router.lower()
    assert bound["norm", -1, 0][1] == router.lower()


def test_tied_head_is_the_embedding() -> None:
    config = make_config(tied_head=1)
    b = build(config)
    bound = bind(config, b)
    assert bound["head", -1, 0] == bound["embed", -1, 0]
    b.add("lm_head.weight", "BF16", 50, 256)
    assert bind(config, b)["head", -1, 0] == bound["embed", -1, 0]


@pytest.mark.parametrize(("dtype", "rows"), [("BF16", 51), ("U8", 50)])
def test_tied_head_with_a_wrong_copy(dtype: str, rows: int) -> None:
    config = make_config(tied_head=1)
    b = build(config)
    b.add("lm_head.weight", dtype, rows, 256)
    with pytest.raises(CheckpointError, match=r"lm_head.weight: expected "):
        bind(config, b)


def edit(name: str, **changes: Any) -> Callable[[Builder], None]:
    """Replaces fields of one tensor; a callable gets the old value."""
    fields = ("name", "dtype", "shape", "file", "begin", "end")

    def apply(b: Builder) -> None:
        at = next(i for i, tensor in enumerate(b.tensors) if tensor[0] == name)
        values = dict(zip(fields, b.tensors[at], strict=True))
        b.tensors[at] = tuple((values | {k: v(values) if callable(v) else v for k, v in changes.items()}).values())

    return apply


def replace(name: str, dtype: str, *shape: int) -> Callable[[Builder], None]:
    def apply(b: Builder) -> None:
        b.tensors = [tensor for tensor in b.tensors if tensor[0] != name]
        b.add(name, dtype, *shape)

    return apply


def remove(name: str) -> Callable[[Builder], None]:
    def apply(b: Builder) -> None:
        b.tensors = [tensor for tensor in b.tensors if tensor[0] != name]

    return apply


NORM, QKV, UP = "model.norm.weight", "model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.experts.2.up_proj.weight"
EMBED, OUT = "model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(UP), rf"{UP}: expected a tensor of \[96, 256\] elements, found none"),
        (remove(NORM), rf"{NORM}: expected a tensor of \[256\] elements, found none"),
        (remove(UP + "_scale"), rf"{UP}_scale: expected the scales of {UP} \(U8\), found none"),
        (remove(QKV + "_scale_inv"), rf"{QKV}_scale_inv: expected the scales of {QKV} \(F8_E4M3\), found none"),
        (lambda b: b.add("model.extra.weight", "F16", 3), r"model.extra.weight: expected no such tensor .* dtype F16"),
        (lambda b: b.add(OUT + "_scale_inv", "F32", 2, 4), rf"{OUT}_scale_inv: expected no such tensor"),
        (lambda b: b.add(NORM, "BF16", 256), rf"{NORM}: expected once, found twice"),
        (edit(NORM, dtype="F16"), rf"{NORM}: expected dtype F32 or BF16, found F16"),
        (replace(EMBED, "F8_E4M3", 50, 256), rf"{EMBED}: expected dtype F32 or BF16, found F8_E4M3"),
        (edit(OUT, dtype="F16"), rf"{OUT}: expected dtype F32, BF16, F8_E4M3 or U8 \(MXFP4\), found F16"),
        (replace(QKV + "_scale_inv", "BF16", 12, 2), rf"{QKV}_scale_inv: expected dtype F32, found BF16"),
        (replace(UP + "_scale", "F32", 96, 8), rf"{UP}_scale: expected dtype U8, found F32"),
        (replace(NORM, "BF16", 255), rf"{NORM}: expected shape \[256\], found \[255\]"),
        (replace(NORM, "BF16", 256, 1), rf"{NORM}: expected shape \[256\], found \[256, 1\]"),
        (replace(OUT, "BF16", 512, 256), rf"{OUT}: expected shape \[256, 512\], found \[512, 256\]"),
        (replace(UP, "U8", 96, 256), rf"{UP}: expected shape \[96, 128\], found \[96, 256\]"),
        (replace(UP + "_scale", "U8", 96, 16), rf"{UP}_scale: expected shape \[96, 8\], found \[96, 16\]"),
        (replace(QKV + "_scale_inv", "F32", 11, 2), rf"{QKV}_scale_inv: expected shape \[12, 2\], found \[11, 2\]"),
        (edit(NORM, file=2), rf"{NORM}: expected a file number below 2, found 2"),
        (edit(NORM, end=lambda t: t["begin"] - 1), rf"{NORM}: expected a span within the \d+ bytes of its file"),
        (edit(NORM, begin=1 << 40, end=(1 << 40) + 512), rf"{NORM}: expected a span within the \d+ bytes of its file"),
        (edit(NORM, end=lambda t: t["end"] - 2), rf"{NORM}: expected a span of 512 bytes by its dtype BF16 and shape, found 510"),
        (
            edit(NORM, begin=lambda t: t["begin"] - 2, end=lambda t: t["end"] - 2),
            r"expected bytes of its own, found .* overlapping",
        ),
        (edit(NORM, shape=(1 << 40, 1 << 40)), rf"{NORM}: its shape has more bytes than 64 bits can count"),
        (edit(NORM, shape=(256, 1, 1, 1, 1)), rf"{NORM}: expected at most 4 dimensions, found 5"),
    ],
)
def test_every_error_names_tensor_expected_and_found(change: Callable[[Builder], None], message: str) -> None:
    config = make_config()
    b = build(config)
    change(b)
    with pytest.raises(CheckpointError, match=message):
        bind(config, b)


def test_truncated_file_is_found() -> None:
    config = make_config()
    b = build(config)
    b.sizes[1] -= 1
    with pytest.raises(CheckpointError, match=r"expected a span within the \d+ bytes of its file"):
        bind(config, b)


def test_split_parts_must_agree_in_format() -> None:
    config = make_config(qkv_chunks=0)
    b = build(config)
    replace("model.layers.0.self_attn.k_proj.weight", "BF16", 384, 256)(b)
    with pytest.raises(CheckpointError, match=r"k_proj.weight: expected format fp8 as in .*q_proj.weight, found bf16"):
        bind(config, b)


def test_split_grid_of_neither_kind() -> None:
    config = make_config(qkv_chunks=0)
    b = build(config)
    replace("model.layers.0.self_attn.k_proj.weight_scale_inv", "F32", 5, 2)(b)
    with pytest.raises(CheckpointError, match=r"expected shape \[3, 2\], or \[4, 2\] with a grid per head, found \[5, 2\]"):
        bind(config, b)


def test_mxfp4_needs_whole_blocks() -> None:
    config = make_config(expert_width=80)
    with pytest.raises(CheckpointError, match=r"down_proj.weight: expected columns in multiples of 32 for MXFP4, found 80"):
        bind(config, build(config))


def test_config_far_larger_than_the_list_ends_at_the_first_missing_tensor() -> None:
    config = make_config()
    b = build(config)
    huge = config | {"experts": 16384, "layers": 512, "layer_sliding": [0, 1] + [1] * 510, "layer_sparse": [0] + [1] * 511}
    _probe.alloc_reset_peak()
    before = _probe.alloc_stats()["peak_bytes"]
    with pytest.raises(CheckpointError, match=r"mlp.gate.weight|experts.3.gate_proj.weight: expected a tensor"):
        bind(huge, b)
    assert _probe.alloc_stats()["peak_bytes"] - before < 1 << 20


def test_published_size_binds() -> None:
    """As many tensors as the 1.02T model has, in shapes of ours."""
    config = make_config(experts=384, layers=70, layer_sliding=[0] + [1] * 69, layer_sparse=[0] + [1] * 69)
    b = build(config, mlp="F8_E4M3")
    assert len(b.tensors) > 159000
    assert len(bind(config, b)) > 79000


def test_malformed_lists() -> None:
    config = make_config()
    for entry, kind, message in [
        (("a", "F32"), TypeError, r"tensors\[0\]: expected a tuple \(name, dtype, shape, file, begin, end\)"),
        ((1, "F32", (1,), 0, 0, 4), ValueError, r"tensors\[0\]: expected a name as text"),
        (("a\0b", "F32", (1,), 0, 0, 4), ValueError, r"tensors\[0\]: expected a name as text without NUL"),
        (("a", None, (1,), 0, 0, 4), ValueError, r"tensors\[0\]: expected a dtype as text"),
        (("a", "F32", (-1,), 0, 0, 4), ValueError, r"a: expected 0 to 18446744073709551615, found -1"),
        (("a", "F32", (1,), 0, 0, 1 << 63), ValueError, r"a: expected 0 to 9223372036854775807"),
        (("a", "F32", (1.5,), 0, 0, 4), TypeError, r"a: expected an integer, found 1.5"),
    ]:
        with pytest.raises(kind, match=message):
            _probe.bind(config, [entry], [10])


def test_every_failed_allocation_is_clean() -> None:
    config = make_config()
    b = build(config)
    before = _probe.alloc_stats()
    bind(config, b)
    calls = _probe.alloc_stats()["calls"] - before["calls"]
    assert calls >= 7
    for persistent in (False, True):
        for n in range(1, calls + 1):
            _probe.alloc_fail(n, persistent)
            with pytest.raises(MemoryError, match="out of memory"):
                bind(config, b)
            _probe.alloc_fail(0)
            after = _probe.alloc_stats()
            assert (after["live_bytes"], after["live_blocks"]) == (before["live_bytes"], before["live_blocks"])
    bind(config, b)
